//! The journal: one ring for all volumes, holding what happened since the last
//! checkpoint.
//!
//! A batch says which chunks now lie where, and carries the bytes of those that
//! are not yet in a closed and synced stripe (R14). `docs/format/journal.md`
//! draws it; [`ring`] writes and reads the chain, [`batch`] and [`record`] are
//! the codecs.

pub mod batch;
pub mod record;
pub mod ring;

pub use batch::{Batch, Epoch, SyncedPosition};
pub use record::{Record, RecordBuffer, Records};
pub use ring::{Chain, ChainPoint, Ring, has_copy, read_chain};
