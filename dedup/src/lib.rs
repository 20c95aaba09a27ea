//! Chunks in append-only segments, found again by their BLAKE3 fingerprint.

mod entry;

pub use entry::{ENTRY_BYTES, Entry, EntryKind, Generation, POSITION_LIMIT, STORED_LIMIT};
