//! Reading stored bytes, verified by the checksum that the pointer holds.
//!
//! ```text
//!   read(batch)
//!     hole, zero      filled in
//!     cache           chunks by (segment, generation, position), verified once
//!     stripe buffers  bytes not on the members yet
//!     members         neighbours joined, one submission for the whole batch
//!        checksum wrong, or no reading: every reconstruction is tried
//! ```
//!
//! What comes back is right or an error, never something else: bytes are
//! offered only when their CRC32C matches, and those that needed another
//! reading than the plain one must also match the fingerprint where the
//! segment's summary has it. Only bytes verified so are written back (R7).
//!
//! A pointer means nothing without its segment's generation (R9): it is
//! compared with the directory's before anything is read, and is part of
//! every cache key. The caller holds the epoch that keeps the segment from
//! being reused meanwhile.

mod cache;
mod fetch;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tessera_raid::{Array, Placement, RaidError, SegmentId, device::BufferPool};
use uuid::Uuid;

use self::{
    cache::{CacheKey, Cached, ChunkCache, PageCache},
    plan::Want,
};
use crate::{
    CHUNK_BYTES_MAX, CodecError, Entry, EntryKind, Generation, POSITION_LIMIT, SegmentDirectory,
    SegmentFacts, blocks::Blocks, decompress,
};

/// Bytes that are still in a stripe buffer in memory.
pub trait UnwrittenSource: Send + Sync {
    /// Copies stored bytes that are still in memory to all of `target`; false
    /// when they are on the members. A range never spans two stripes unless
    /// its chunk does.
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
    /// The map says so: the page that named the bytes was damaged beyond the
    /// redundancy before this.
    #[error("The map of this range was lost; write it anew or discard it")]
    Lost,
    /// The entry's position, length or kind cannot be, or the range asked for
    /// leaves the chunk.
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
        Self {
            entry,
            logical,
            from,
            target,
            outcome: Ok(()),
        }
    }

    fn is_whole(&self) -> bool {
        self.target.len() == self.logical as usize
    }

    fn is_valid(&self) -> bool {
        let Entry {
            kind,
            position,
            stored,
            ..
        } = self.entry;
        let logical = self.logical as usize;
        let within = logical <= CHUNK_BYTES_MAX
            && (self.from as usize)
                .checked_add(self.target.len())
                .is_some_and(|end| end <= logical);
        within
            && match kind {
                EntryKind::Hole | EntryKind::Zero | EntryKind::Lost => true,
                EntryKind::Raw | EntryKind::Page => {
                    stored == self.logical && position + stored <= POSITION_LIMIT
                }
                EntryKind::Lz4 => stored <= self.logical && position + stored <= POSITION_LIMIT,
            }
    }

    /// Turns verified stored bytes into what was asked for. Gives the whole
    /// chunk back when it had to be unpacked elsewhere.
    fn deliver(&mut self, stored: &[u8]) -> Option<Vec<u8>> {
        let range = self.from as usize..self.from as usize + self.target.len();
        let mut unpacked = None;
        let result = match self.entry.kind {
            EntryKind::Raw | EntryKind::Page => {
                self.target.copy_from_slice(&stored[range]);
                Ok(())
            }
            kind if self.is_whole() => decompress(stored, kind, self.target),
            kind => {
                let mut whole = vec![0; self.logical as usize];
                let result = decompress(stored, kind, &mut whole);
                self.target.copy_from_slice(&whole[range]);
                unpacked = Some(whole);
                result
            }
        };
        self.outcome = result.map_err(|error| malformed(&self.entry, error));
        unpacked
    }
}

fn malformed(entry: &Entry, error: CodecError) -> ReadError {
    let Entry {
        segment, position, ..
    } = *entry;
    ReadError::Malformed {
        segment,
        position,
        source: Arc::new(error),
    }
}

fn invalid(entry: &Entry) -> ReadError {
    ReadError::Invalid {
        segment: entry.segment,
        position: entry.position,
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

/// Bytes of a page.
const PAGE_BYTES: u32 = 4096;

/// A page whose segment's place is known otherwise than from the directory.
#[derive(Debug, Clone)]
pub struct PlacedPage {
    /// The page.
    pub entry: Entry,
    /// Its segment's incarnation.
    pub generation: Generation,
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

#[derive(Debug, Default)]
struct Counters {
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
    mismatches: AtomicU64,
    mended: AtomicU64,
}

/// See the module. All methods may be called from several threads at once.
pub struct ChunkReader {
    pool: Uuid,
    array: Arc<dyn Blocks>,
    directory: Arc<dyn SegmentDirectory>,
    unwritten: Arc<dyn UnwrittenSource>,
    buffers: BufferPool,
    /// Bytes read in one submission, so that no batch takes all buffers (R23).
    piece_bytes: usize,
    chunks: ChunkCache,
    pages: PageCache,
    counters: Counters,
}

impl std::fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkReader")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Asks the directory once for entries of one segment that follow each other.
#[derive(Default)]
struct Facts {
    last: Option<(SegmentId, Option<SegmentFacts>)>,
}

impl Facts {
    /// The facts of the entry's segment if it is of the entry's generation.
    fn of(
        &mut self,
        directory: &dyn SegmentDirectory,
        entry: &Entry,
    ) -> Result<&SegmentFacts, ReadError> {
        let segment = entry.segment;
        if self.last.as_ref().is_none_or(|(last, _)| *last != segment) {
            self.last = Some((segment, directory.facts(segment)));
        }
        self.last
            .as_ref()
            .and_then(|(_, facts)| facts.as_ref())
            .filter(|facts| facts.generation.low() == entry.generation)
            .ok_or(ReadError::Stale { segment })
    }
}

impl ChunkReader {
    /// A reader over an array.
    pub fn new(
        array: Arc<Array>,
        directory: Arc<dyn SegmentDirectory>,
        unwritten: Arc<dyn UnwrittenSource>,
        options: ReaderOptions,
    ) -> Self {
        Self::on(array, directory, unwritten, options)
    }

    fn on(
        array: Arc<dyn Blocks>,
        directory: Arc<dyn SegmentDirectory>,
        unwritten: Arc<dyn UnwrittenSource>,
        options: ReaderOptions,
    ) -> Self {
        Self {
            pool: options.pool,
            array,
            directory,
            unwritten,
            buffers: BufferPool::new(options.buffer_bytes),
            piece_bytes: (options.buffer_bytes / 4).max(64 << 10),
            chunks: ChunkCache::new(options.chunk_cache_bytes),
            pages: PageCache::new(options.page_cache_bytes),
            counters: Counters::default(),
        }
    }

    /// Reads a batch, with one submission to the array unless it is large.
    pub fn read(&self, reads: &mut [ChunkRead<'_>]) {
        let mut facts = Facts::default();
        let mut wants = Vec::new();
        let (mut hits, mut misses) = (0, 0);
        for (index, read) in reads.iter_mut().enumerate() {
            read.outcome = Ok(());
            if !read.is_valid() {
                read.outcome = Err(invalid(&read.entry));
                continue;
            }
            if read.entry.kind == EntryKind::Lost {
                read.outcome = Err(ReadError::Lost);
                continue;
            }
            if !read.entry.is_stored() {
                read.target.fill(0);
                continue;
            }
            let facts = match facts.of(self.directory.as_ref(), &read.entry) {
                Ok(facts) => facts,
                Err(error) => {
                    read.outcome = Err(error);
                    continue;
                }
            };
            let key = CacheKey::new(&read.entry, facts.generation);
            if self
                .chunks
                .copy(&key, &read.entry, read.from as usize, read.target)
            {
                hits += 1;
                continue;
            }
            misses += 1;
            if !self.read_unwritten(read) {
                wants.push(Want {
                    index,
                    entry: read.entry,
                    generation: facts.generation,
                    placement: facts.placement.clone(),
                });
            }
        }
        self.counters.cache_hits.fetch_add(hits, Ordering::Relaxed);
        self.counters
            .cache_misses
            .fetch_add(misses, Ordering::Relaxed);
        if wants.is_empty() {
            return;
        }
        self.fetch(&mut wants, &mut |want, run_bytes, stored| {
            let read = &mut reads[want.index];
            match stored {
                Ok(stored) => {
                    let unpacked = read.deliver(stored);
                    if read.outcome.is_ok() && self.chunks.wants(run_bytes) {
                        let whole = match &unpacked {
                            Some(whole) => whole.as_slice(),
                            None if read.is_whole() => read.target,
                            None => stored,
                        };
                        let key = CacheKey::new(&want.entry, want.generation);
                        self.chunks.insert(key, Cached::new(&want.entry, whole));
                    }
                }
                Err(error) => read.outcome = Err(error),
            }
        });
    }

    /// Serves a read from a stripe buffer; false when it is on the members.
    fn read_unwritten(&self, read: &mut ChunkRead<'_>) -> bool {
        let Entry {
            kind,
            segment,
            position,
            stored,
            generation,
            checksum,
        } = read.entry;
        let copy = |target: &mut [u8]| self.unwritten.copy(segment, generation, position, target);
        let damaged = || {
            Err(ReadError::Damaged {
                segment,
                position,
                stored,
                source: None,
            })
        };
        if kind == EntryKind::Raw && read.is_whole() {
            let copied = copy(read.target);
            if copied && crc32c::crc32c(read.target) != checksum {
                read.outcome = damaged();
            }
            return copied;
        }
        let mut bytes = vec![0; stored as usize];
        let copied = copy(&mut bytes);
        if copied && crc32c::crc32c(&bytes) == checksum {
            read.deliver(&bytes);
        } else if copied {
            read.outcome = damaged();
        }
        copied
    }

    /// The verified stored bytes of some chunks, past the cache, with one
    /// submission to the array unless they are many. For chunks that lie on
    /// the members: stripes still in memory are not looked at.
    pub fn read_stored(&self, entries: &[Entry]) -> Vec<Result<Vec<u8>, ReadError>> {
        let mut facts = Facts::default();
        let mut stored: Vec<Result<Vec<u8>, ReadError>> = Vec::with_capacity(entries.len());
        let mut wants = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            stored.push(Ok(Vec::new()));
            match facts.of(self.directory.as_ref(), entry) {
                Ok(facts) => wants.push(Want {
                    index,
                    entry: *entry,
                    generation: facts.generation,
                    placement: facts.placement.clone(),
                }),
                Err(error) => stored[index] = Err(error),
            }
        }
        self.fetch(&mut wants, &mut |want, _, bytes| {
            stored[want.index] = bytes.map(<[u8]>::to_vec);
        });
        stored
    }

    /// Reads pages, with one submission to the array.
    pub fn read_page(&self, entries: &[Entry]) -> Vec<Result<Page, ReadError>> {
        let mut facts = Facts::default();
        let placed = entries.iter().map(|entry| {
            let facts = facts.of(self.directory.as_ref(), entry)?;
            Ok(PlacedPage {
                entry: *entry,
                generation: facts.generation,
                placement: facts.placement.clone(),
            })
        });
        self.read_pages(placed.collect())
    }

    /// As [`Self::read_page`] without asking the directory, which itself has to
    /// be read first when a pool is opened.
    pub fn read_placed(&self, pages: &[PlacedPage]) -> Vec<Result<Page, ReadError>> {
        let placed = pages.iter().map(|page| {
            let segment = page.entry.segment;
            let current = page.generation.low() == page.entry.generation;
            if current {
                Ok(page.clone())
            } else {
                Err(ReadError::Stale { segment })
            }
        });
        self.read_pages(placed.collect())
    }

    fn read_pages(
        &self,
        placed: Vec<Result<PlacedPage, ReadError>>,
    ) -> Vec<Result<Page, ReadError>> {
        let mut wants = Vec::new();
        let (mut hits, mut misses) = (0, 0);
        let mut results: Vec<Result<Page, ReadError>> = Vec::with_capacity(placed.len());
        for (index, page) in placed.into_iter().enumerate() {
            results.push(page.and_then(|page| {
                let PlacedPage {
                    entry,
                    generation,
                    placement,
                } = page;
                let valid = entry.kind == EntryKind::Page
                    && entry.stored == PAGE_BYTES
                    && entry.position + PAGE_BYTES <= POSITION_LIMIT;
                if !valid {
                    return Err(invalid(&entry));
                }
                if let Some(page) = self.pages.get(&CacheKey::new(&entry, generation), &entry) {
                    hits += 1;
                    return Ok(page);
                }
                misses += 1;
                let mut page = [0; PAGE_BYTES as usize];
                let Entry {
                    segment,
                    position,
                    stored,
                    ..
                } = entry;
                let damaged = ReadError::Damaged {
                    segment,
                    position,
                    stored,
                    source: None,
                };
                if !self
                    .unwritten
                    .copy(segment, entry.generation, position, &mut page)
                {
                    wants.push(Want {
                        index,
                        entry,
                        generation,
                        placement,
                    });
                    // Replaced below.
                    return Err(damaged);
                }
                if crc32c::crc32c(&page) != entry.checksum {
                    return Err(damaged);
                }
                let page = Arc::new(page);
                self.remember_page(entry, generation, Arc::clone(&page));
                Ok(page)
            }));
        }
        self.counters.cache_hits.fetch_add(hits, Ordering::Relaxed);
        self.counters
            .cache_misses
            .fetch_add(misses, Ordering::Relaxed);
        self.fetch(&mut wants, &mut |want, _, stored| {
            results[want.index] = stored.and_then(|stored| {
                let page = stored.try_into().map_err(|_| invalid(&want.entry))?;
                let page = Arc::new(page);
                self.remember_page(want.entry, want.generation, Arc::clone(&page));
                Ok(page)
            });
        });
        results
    }

    /// Puts a page that was just written, or verified elsewhere, in the cache.
    pub fn remember_page(&self, entry: Entry, generation: Generation, page: Page) {
        self.pages
            .insert(CacheKey::new(&entry, generation), &entry, page);
    }

    /// What has been done so far.
    pub fn counters(&self) -> ReaderCounters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReaderCounters {
            cache_hits: load(&self.counters.cache_hits),
            cache_misses: load(&self.counters.cache_misses),
            mismatches: load(&self.counters.mismatches),
            mended: load(&self.counters.mended),
        }
    }

    /// Memory in use, bytes, about.
    pub fn memory_bytes(&self) -> usize {
        self.chunks.memory_bytes() + self.pages.memory_bytes() + self.buffers.lent_bytes()
    }
}
