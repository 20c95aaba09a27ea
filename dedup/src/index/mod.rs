//! The fingerprint index: a hint where a chunk with given contents may be.
//!
//! ```text
//!   probe(fingerprints)
//!     1  neighbours   cached parts of summaries, by prefix     memory
//!     2  fresh        chunks appended lately                   memory
//!     3  filter       "certainly not there"                    memory
//!     4  store        RocksDB: prefix -> segment, record       bounded (R10)
//!     5  summaries    one batched read of what 4 named         members
//!        then 1 again for every fingerprint still unanswered
//! ```
//!
//! What keeps it a hint, whatever the database holds (R8): every answer comes
//! from a summary block that carries its own checksum, pool, segment and
//! generation and lists all 32 bytes of the fingerprint, or from the fresh
//! table; and the segment directory must show that very generation live and
//! not frozen. The database only says which block to look at.
//!
//! Sealed segments are queued and put into the database many at a time, as one
//! sorted file, by [`FingerprintIndex::step`]. Whatever does not fit into the
//! queue is dropped (R10) and read in again from its summary later.
//!
//! Nothing here has a thread or, with the database in memory, a clock (R24).

mod budget;
mod coverage;
mod filter;
mod fresh;
mod keyed;
mod later;
mod liveness;
mod neighbours;
mod probe;
mod queue;
mod rebuild;
mod rocks;
mod store;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use tessera_raid::{Array, SegmentId, sabotage::broken};
use uuid::Uuid;

use self::{
    budget::LookupBudget,
    coverage::Coverage,
    filter::Filter,
    fresh::{FRESH_ENTRY_BYTES, FreshTable},
    liveness::Liveness,
    neighbours::{GROUP_RECORDS, Neighbours},
    queue::{Pending, Queue},
    rebuild::Rebuild,
    rocks::RocksStore,
    store::{KeyStore, MEMORY_ENTRY_BYTES, MemoryStore},
};
use crate::{
    Entry, Fingerprint, Generation, SegmentDirectory, blocks::Blocks, segment::summary::Summary,
};

/// A chunk that may be used in place of writing the same bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The pointer to it.
    pub entry: Entry,
    /// Its segment's incarnation.
    pub generation: Generation,
    /// Its length before compression, bytes. A hit is of use only to a chunk
    /// of the same length.
    pub logical: u32,
}

/// How to open an index.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Directory of the database; `None` for one that lives in memory.
    pub dir: Option<PathBuf>,
    /// The pool the index is for. One stamped with another pool is discarded.
    pub pool: Uuid,
    /// What the index may use in all, bytes.
    pub memory_bytes: usize,
}

impl IndexOptions {
    /// The least memory an index works with.
    pub const MEMORY_BYTES_MIN: usize = 1 << 20;
}

/// What background work the index still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Every sealed segment that can be read is covered or in the queue.
    Ready,
    /// Segments are read in again.
    Rebuilding {
        /// Segments read in.
        done: u64,
        /// Segments to read in all.
        total: u64,
    },
}

/// Why an index cannot be opened, even in memory.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The budget is below [`IndexOptions::MEMORY_BYTES_MIN`].
    #[error("Index memory of {actual} bytes is too little: give at least {least}")]
    Memory {
        /// Bytes given.
        actual: usize,
        /// Bytes needed.
        least: usize,
    },
}

/// Shares of the memory budget, in 16ths. The rest is for what RocksDB takes
/// beyond its cache.
const SHARE_FILTER: usize = 4;
const SHARE_NEIGHBOURS: usize = 5;
const SHARE_FRESH: usize = 4;
const SHARE_STORE: usize = 2;
/// Records put into the database at a time at the most: 256 MiB of 4 KiB
/// chunks in a file of 1.8 MB.
const BATCH_RECORDS_MAX: usize = 1 << 16;
/// The queue holds so many batches.
const QUEUE_BATCHES: usize = 2;
/// Keys scanned into the filter by one step.
const SCAN_KEYS: usize = 8192;

/// See the module. All methods may be called from several threads at once.
pub struct FingerprintIndex {
    pool: Uuid,
    array: Arc<dyn Blocks>,
    neighbours: Neighbours,
    fresh: FreshTable,
    filter: Filter,
    store: Box<dyn KeyStore>,
    budget: LookupBudget,
    liveness: Liveness,
    queue: Mutex<Queue>,
    rebuild: Mutex<Rebuild>,
    rebuild_turn: Mutex<rebuild::Turn>,
    /// Held by whoever does background work.
    worker: Mutex<Worker>,
}

/// What background work remembers.
#[derive(Debug)]
struct Worker {
    coverage: Coverage,
    /// Where the scan into the filter goes on; `None` when it is done.
    scan_from: Option<u64>,
}

impl std::fmt::Debug for FingerprintIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FingerprintIndex")
            .field("pool", &self.pool)
            .field("fresh", &self.fresh.len())
            .field("filter", &self.filter)
            .finish_non_exhaustive()
    }
}

impl FingerprintIndex {
    /// Opens the index of a pool.
    ///
    /// A directory that is damaged, of another pool, or of an unknown format
    /// is emptied; where none can be used at all the index lives in memory.
    /// Neither stops the pool.
    pub fn open(options: IndexOptions, array: Arc<Array>) -> Result<Self, IndexError> {
        Self::open_on(options, array)
    }

    fn open_on(options: IndexOptions, array: Arc<dyn Blocks>) -> Result<Self, IndexError> {
        let least = IndexOptions::MEMORY_BYTES_MIN;
        if options.memory_bytes < least {
            return Err(IndexError::Memory {
                actual: options.memory_bytes,
                least,
            });
        }
        let liveness = Liveness::default();
        let share = options.memory_bytes / 16;
        let memory = || -> Box<dyn KeyStore> {
            Box::new(MemoryStore::new(share * SHARE_STORE / MEMORY_ENTRY_BYTES))
        };
        let Some(dir) = &options.dir else {
            return Ok(Self::with_store(
                &options,
                array,
                memory(),
                Coverage::default(),
                liveness,
            ));
        };
        match RocksStore::open(dir, options.pool, share * SHARE_STORE, &liveness) {
            Ok((store, coverage)) => Ok(Self::with_store(
                &options,
                array,
                Box::new(store),
                coverage,
                liveness,
            )),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    dir = %dir.display(), %error, cause,
                    "fingerprint index lives in memory only"
                );
                Ok(Self::with_store(
                    &options,
                    array,
                    memory(),
                    Coverage::default(),
                    liveness,
                ))
            }
        }
    }

    fn with_store(
        options: &IndexOptions,
        array: Arc<dyn Blocks>,
        store: Box<dyn KeyStore>,
        coverage: Coverage,
        liveness: Liveness,
    ) -> Self {
        let share = options.memory_bytes / 16;
        let fresh = share * SHARE_FRESH / FRESH_ENTRY_BYTES;
        // Entries stay fresh while they are queued, and the open segments'
        // are fresh too.
        let batch = (fresh / (QUEUE_BATCHES + 1)).clamp(1, BATCH_RECORDS_MAX);
        Self {
            pool: options.pool,
            array,
            neighbours: Neighbours::new(share * SHARE_NEIGHBOURS),
            fresh: FreshTable::new(fresh),
            filter: Filter::new(share * SHARE_FILTER),
            store,
            budget: LookupBudget::new(options.dir.is_some()),
            liveness,
            queue: Mutex::new(Queue::new(batch, QUEUE_BATCHES * batch)),
            rebuild: Mutex::default(),
            rebuild_turn: Mutex::default(),
            worker: Mutex::new(Worker {
                coverage,
                scan_from: Some(0),
            }),
        }
    }

    /// Under the append lock: a chunk appended lately whose segment is live
    /// and not frozen.
    pub fn fresh_get(
        &self,
        fingerprint: &Fingerprint,
        directory: &dyn SegmentDirectory,
    ) -> Option<Hit> {
        let hit = self.fresh.get(fingerprint)?;
        probe::usable(directory.facts(hit.entry.segment).as_ref(), &hit).then_some(hit)
    }

    /// Offers a chunk to whoever writes the same bytes next. Only once its
    /// bytes are in the stripe buffer (R8).
    pub fn fresh_insert(&self, fingerprint: Fingerprint, hit: Hit) {
        self.fresh.insert(fingerprint, hit);
    }

    /// The segment and its summary at its end are durable.
    pub fn segment_sealed(&self, summary: Arc<Summary>) {
        let Summary {
            segment,
            generation,
            ref records,
            ..
        } = *summary;
        self.liveness.live(segment, generation);
        for (number, group) in (0u32..).zip(records.chunks(GROUP_RECORDS as usize)) {
            if group.iter().any(|record| record.fingerprint.is_some()) {
                self.neighbours.insert(segment, generation, number, group);
            }
        }
        let pending = Pending::new(segment, generation, (0..).zip(records.iter()), true);
        let mut refused = self.queue.lock().push(pending);
        while let Some(waiting) = refused.take_if(|_| broken("R10.never_wait")) {
            std::thread::yield_now();
            refused = self.queue.lock().push(waiting);
        }
        if let Some(refused) = refused {
            // R10: nobody waits. The segment is read in again in time.
            self.forget_fresh(&refused);
            self.rebuild.lock().add(segment, generation);
        }
    }

    /// The segment is free: nothing of this generation is offered any more.
    pub fn segment_freed(&self, segment: SegmentId, generation: Generation) {
        self.liveness.freed(segment, generation);
        self.neighbours.remove_segment(segment);
        self.fresh.remove_segment(segment, generation);
        self.queue.lock().remove(segment, generation);
    }

    fn forget_fresh(&self, pending: &Pending) {
        for (prefix, _) in &pending.keys {
            self.fresh
                .remove(*prefix, pending.segment, pending.generation);
        }
    }

    /// One piece of background work; true if there may be more at once.
    ///
    /// Queued segments wait for a batch to fill; after some calls with nothing
    /// else to do, they are put in as they are.
    pub fn step(&self) -> bool {
        let mut worker = self.worker.lock();
        let ripe = self.queue.lock().ripe();
        if ripe && self.ingest(&mut worker) {
            return true;
        }
        self.scan(&mut worker)
    }

    /// Puts everything queued into the database, for a clean stop. What cannot
    /// be put in is read in again at the next start.
    pub fn flush(&self) {
        let mut worker = self.worker.lock();
        while self.ingest(&mut worker) {}
    }

    /// Puts one batch in; false when there is none or it has to wait.
    fn ingest(&self, worker: &mut Worker) -> bool {
        if self.store.crowded() {
            return false;
        }
        let batch = self.queue.lock().take_batch();
        if batch.is_empty() {
            return false;
        }
        let entries = queue::sorted_entries(&batch);
        let mut coverage = worker.coverage.clone();
        for pending in batch.iter().filter(|pending| pending.complete) {
            coverage.insert(pending.generation);
        }
        // The filter first: what is in the database is never denied.
        for (prefix, _) in &entries {
            self.filter.insert(*prefix);
        }
        let outcome = self.store.ingest(&entries, &coverage.encode(self.pool));
        match outcome {
            Ok(()) => worker.coverage = coverage,
            Err(error) => {
                tracing::warn!(%error, entries = entries.len(), "fingerprints dropped");
            }
        }
        // Either findable otherwise now, or given up.
        for pending in &batch {
            self.forget_fresh(pending);
        }
        true
    }

    /// Fills the filter from the database, a piece at a time.
    fn scan(&self, worker: &mut Worker) -> bool {
        let Some(from) = worker.scan_from else {
            return false;
        };
        match self
            .store
            .scan(from, SCAN_KEYS, &mut |prefix| self.filter.insert(prefix))
        {
            Ok(Some(next)) => {
                worker.scan_from = Some(next);
                true
            }
            Ok(None) => {
                worker.scan_from = None;
                self.filter.set_complete();
                false
            }
            Err(error) => {
                // It goes on saying "maybe"; the lookup budget bounds the cost.
                tracing::warn!(%error, "the fingerprint filter stays incomplete");
                worker.scan_from = None;
                false
            }
        }
    }

    /// Fingerprints known, about.
    pub fn entries(&self) -> u64 {
        let fresh = u64::try_from(self.fresh.len()).unwrap_or(u64::MAX);
        self.store.entries().saturating_add(fresh)
    }

    /// What is still to be read in.
    pub fn state(&self) -> IndexState {
        self.rebuild.lock().state()
    }

    /// Memory in use, bytes, about.
    pub fn memory_bytes(&self) -> usize {
        self.neighbours.memory_bytes()
            + self.fresh.memory_bytes()
            + self.filter.memory_bytes()
            + self.store.memory_bytes()
            + self.queue.lock().memory_bytes()
    }
}
