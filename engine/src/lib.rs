//! The pool: volumes, map trees, journal, checkpoints and recovery.

pub mod api;
mod catalogue;
mod concurrency;
pub mod disk;
mod epochs;
mod error;
pub mod estimate;
#[doc(hidden)]
pub mod fuzzing;
mod jobs;
pub mod journal;
pub mod map;
pub mod pool;
mod root;
mod settings;
pub mod snapshot;

pub use error::{EngineError, ErrorKind};
