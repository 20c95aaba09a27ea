//! The NBD protocol without any I/O: what bytes mean and which bytes answer them.
//!
//! ```text
//!   bytes in ──> Negotiation::feed ──> replies, then an Agreement
//!   bytes in ──> request::parse    ──> RequestHeader ──> Terms::validate ──> Action
//!   result   ──> reply::*          ──> bytes out
//! ```
//!
//! Every function here is total: any bytes give an answer or an error, never a
//! panic, and no length taken from the wire is allocated before it has been
//! bounded. Numbers on the wire are big-endian.
//!
//! The source is `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>,
//! its branch `extension-ext-header` for extended headers.

pub mod constants;
pub mod contexts;
pub(crate) mod cursor;
pub mod negotiation;
pub mod reply;
pub mod request;

pub use constants::{ErrorCode, HeaderStyle};
pub use contexts::{ContextSet, Contexts};
pub use negotiation::{
    Agreement, Encryption, ExportInfo, Exports, Instance, Negotiation, Progress, Step,
};
pub use request::{Action, Parsed, RequestHeader, Terms};
