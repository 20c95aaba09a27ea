//! Reading stored bytes, verified.
//!
//! Public skeleton; bodies follow.
#![allow(unused_variables, missing_docs)]

use std::sync::Arc;

use tessera_raid::{Array, Placement, RaidError, SegmentId};
use uuid::Uuid;

use crate::{CodecError, Entry, SegmentDirectory};

/// Bytes that are still in a stripe buffer in memory.
pub trait UnwrittenSource: Send + Sync {
    /// Copies stored bytes that are still in memory to all of `target`; false
    /// when they are on the members.
    fn copy(
        &self,
        segment: SegmentId,
        generation_low: u8,
        position: u32,
        target: &mut [u8],
    ) -> bool;
}

/// No bytes are in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingUnwritten;

impl UnwrittenSource for NothingUnwritten {
    fn copy(&self, _: SegmentId, _: u8, _: u32, _: &mut [u8]) -> bool {
        false
    }
}

/// Why bytes cannot be had. Never wrong data instead (R7).
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The segment is free or of another generation.
    #[error("Segment {} no longer holds what the pointer names", segment.0)]
    Stale {
        /// The segment.
        segment: SegmentId,
    },
    /// No reading that the redundancy allows has the right checksum.
    #[error("Segment {} is damaged at {position}: no copy of {stored} bytes verifies", segment.0)]
    Damaged {
        /// The segment.
        segment: SegmentId,
        /// First byte of the stored chunk.
        position: u32,
        /// Its stored length.
        stored: u32,
        /// What the array said, where it said something.
        #[source]
        source: Option<RaidError>,
    },
    /// The checksum is right but the bytes are no such chunk.
    #[error("Segment {} holds a malformed chunk at {position}", segment.0)]
    Malformed {
        /// The segment.
        segment: SegmentId,
        /// First byte of the stored chunk.
        position: u32,
        /// What is wrong with it.
        #[source]
        source: Arc<CodecError>,
    },
    /// The entry's position or length cannot be, or the range asked for leaves
    /// the chunk.
    #[error("Pointer to segment {} at {position} is not valid", segment.0)]
    Invalid {
        /// The segment.
        segment: SegmentId,
        /// Position in the entry.
        position: u32,
    },
}

/// One chunk, or part of one, to read.
#[derive(Debug)]
pub struct ChunkRead<'a> {
    /// What to read. Holes and zeroes are filled in too.
    pub entry: Entry,
    /// Length of the whole chunk before compression, bytes.
    pub logical: u32,
    /// First byte wanted within the chunk.
    pub from: u32,
    /// Filled with `target.len()` bytes from `from` on; holds arbitrary bytes
    /// after an error.
    pub target: &'a mut [u8],
    /// Set by [`ChunkReader::read`].
    pub outcome: Result<(), ReadError>,
}

impl<'a> ChunkRead<'a> {
    /// Reads from `from` within a chunk of `logical` bytes.
    pub fn new(entry: Entry, logical: u32, from: u32, target: &'a mut [u8]) -> Self {
        Self { entry, logical, from, target, outcome: Ok(()) }
    }
}

/// Sizes of the reader's memory.
#[derive(Debug, Clone, Copy)]
pub struct ReaderOptions {
    /// The pool, as summaries name it.
    pub pool: Uuid,
    /// Cache of chunks, bytes.
    pub chunk_cache_bytes: usize,
    /// Cache of map pages, bytes.
    pub page_cache_bytes: usize,
    /// Buffers for reads in flight, bytes.
    pub buffer_bytes: usize,
}

/// A page of a tree.
pub type Page = Arc<[u8; 4096]>;

/// A page whose segment's place is known otherwise than from the directory.
#[derive(Debug, Clone)]
pub struct PlacedPage {
    /// The page.
    pub entry: Entry,
    /// Its segment's incarnation.
    pub generation: crate::Generation,
    /// Its segment's placement.
    pub placement: Placement,
}

/// What the reader did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReaderCounters {
    /// Chunks and pages served from the caches.
    pub cache_hits: u64,
    /// Chunks and pages read from the members or from stripe buffers.
    pub cache_misses: u64,
    /// Chunks and pages whose plain read did not verify.
    pub mismatches: u64,
    /// Of these, those another reading gave back.
    pub mended: u64,
}

/// See the module.
pub struct ChunkReader {}

impl ChunkReader {
    pub fn new(
        array: Arc<Array>,
        directory: Arc<dyn SegmentDirectory>,
        unwritten: Arc<dyn UnwrittenSource>,
        options: ReaderOptions,
    ) -> Self {
        todo!()
    }
    /// Reads a batch with one submission to the array.
    pub fn read(&self, reads: &mut [ChunkRead<'_>]) {
        todo!()
    }
    /// Reads pages with one submission to the array.
    pub fn read_page(&self, entries: &[Entry]) -> Vec<Result<Page, ReadError>> {
        todo!()
    }
    /// As [`Self::read_page`] without asking the directory.
    pub fn read_placed(&self, pages: &[PlacedPage]) -> Vec<Result<Page, ReadError>> {
        todo!()
    }
    /// A page just written, so that the next reader finds it in the cache.
    pub fn remember_page(&self, entry: Entry, generation: crate::Generation, page: Page) {
        todo!()
    }
    pub fn counters(&self) -> ReaderCounters {
        todo!()
    }
    pub fn memory_bytes(&self) -> usize {
        todo!()
    }
}
