//! Chunks in append-only segments, found again by their BLAKE3 fingerprint.

mod blocks;
mod chunk;
mod directory;
mod entry;
mod fingerprint;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod load;
mod reader;
pub mod segment;
#[cfg(test)]
mod testkit;

pub use chunk::{CHUNK_BYTES_MAX, CodecError, Compressor, PACK_BLOCK, decompress, is_zero, place};
pub use directory::{SegmentDirectory, SegmentFacts, SummaryPlace};
pub use entry::{ENTRY_BYTES, Entry, EntryKind, Generation, POSITION_LIMIT, STORED_LIMIT};
pub use fingerprint::{Fingerprint, fingerprint, fingerprint_many};
pub use index::{FingerprintIndex, Hit, IndexError, IndexFacts, IndexOptions, IndexState};
pub use reader::{
    ChunkRead, ChunkReader, NothingUnwritten, Page, PlacedPage, ReadError, ReaderCounters,
    ReaderOptions, UnwrittenSource,
};
pub use segment::{
    summary::{self, Owner, Summary, SummaryId, SummaryRecord},
    *,
};
