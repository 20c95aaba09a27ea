//! Caches of verified chunks and pages.
//!
//! The key is where the bytes are stored, so what many disks share is cached
//! once; it holds the generation, so a reused segment never answers for its
//! predecessor (R9). Long runs are not cached: whoever reads megabytes in
//! order does not come back, and would push out those who do.

use std::sync::Arc;

use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync::Cache};
use tessera_raid::{SegmentId, sabotage::broken};

use super::Page;
use crate::{Entry, Generation};

/// Runs from this length on are not cached, bytes.
const RUN_BYTES_LIMIT: usize = 64 << 10;
/// What an entry takes besides its bytes.
const OVERHEAD: u64 = 128;

/// Where bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    generation: Generation,
    segment: SegmentId,
    position: u32,
}

impl CacheKey {
    pub(super) fn new(entry: &Entry, generation: Generation) -> Self {
        Self {
            generation: match broken("R9.cache_key") {
                true => Generation(0),
                false => generation,
            },
            segment: entry.segment,
            position: entry.position,
        }
    }
}

/// A chunk's logical bytes, with what proves that they are the entry's.
#[derive(Debug, Clone)]
pub(super) struct Cached {
    stored: u32,
    checksum: u32,
    bytes: Arc<[u8]>,
}

impl Cached {
    pub(super) fn new(entry: &Entry, bytes: &[u8]) -> Self {
        Self {
            stored: entry.stored,
            checksum: entry.checksum,
            bytes: bytes.into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<CacheKey, Cached> for ByBytes {
    fn weight(&self, _: &CacheKey, value: &Cached) -> u64 {
        OVERHEAD + u64::try_from(value.bytes.len()).unwrap_or(u64::MAX)
    }
}

impl Weighter<CacheKey, (u32, Page)> for ByBytes {
    fn weight(&self, _: &CacheKey, _: &(u32, Page)) -> u64 {
        OVERHEAD + 4096
    }
}

fn cache<V: Clone>(bytes: usize) -> Cache<CacheKey, V, ByBytes>
where
    ByBytes: Weighter<CacheKey, V>,
{
    // A shard must have room for many chunks of the longest kind.
    let shards = (bytes / (4 << 20)).clamp(1, 16);
    let weight = u64::try_from(bytes).unwrap_or(u64::MAX);
    let options = OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity((bytes / 4096).max(1))
        .weight_capacity(weight)
        .build()
        .expect("every required option is set");
    Cache::with_options(
        options,
        ByBytes,
        DefaultHashBuilder::default(),
        Default::default(),
    )
}

/// Chunks.
#[derive(Debug)]
pub(super) struct ChunkCache(Cache<CacheKey, Cached, ByBytes>);

impl ChunkCache {
    pub(super) fn new(bytes: usize) -> Self {
        Self(cache(bytes))
    }

    /// Copies a part of a chunk, if it is there.
    pub(super) fn copy(
        &self,
        key: &CacheKey,
        entry: &Entry,
        from: usize,
        target: &mut [u8],
    ) -> bool {
        let Some(found) = self.0.get(key) else {
            return false;
        };
        let same = found.stored == entry.stored && found.checksum == entry.checksum;
        let part = found.bytes.get(from..from + target.len());
        match part {
            Some(part) if same => {
                target.copy_from_slice(part);
                true
            }
            _ => false,
        }
    }

    /// Whether chunks of a run of this length are to be put in.
    pub(super) fn wants(&self, run_bytes: usize) -> bool {
        run_bytes < RUN_BYTES_LIMIT
    }

    pub(super) fn insert(&self, key: CacheKey, chunk: Cached) {
        self.0.insert(key, chunk);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        usize::try_from(self.0.weight()).unwrap_or(usize::MAX)
    }
}

/// Pages of trees, each with its checksum.
#[derive(Debug)]
pub(super) struct PageCache(Cache<CacheKey, (u32, Page), ByBytes>);

impl PageCache {
    pub(super) fn new(bytes: usize) -> Self {
        Self(cache(bytes))
    }

    pub(super) fn get(&self, key: &CacheKey, entry: &Entry) -> Option<Page> {
        let (checksum, page) = self.0.get(key)?;
        (checksum == entry.checksum).then_some(page)
    }

    pub(super) fn insert(&self, key: CacheKey, entry: &Entry, page: Page) {
        self.0.insert(key, (entry.checksum, page));
    }

    pub(super) fn memory_bytes(&self) -> usize {
        usize::try_from(self.0.weight()).unwrap_or(usize::MAX)
    }
}
