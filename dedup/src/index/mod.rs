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
mod feeding;
mod filter;
mod fresh;
mod keyed;
mod later;
mod lifecycle;
mod liveness;
mod neighbours;
mod probe;
mod queue;
mod rebuild;
mod rocks;
mod sampling;
mod store;
mod tables;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_budget;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use parking_lot::{Mutex, RwLock};
use tessera_raid::{Array, SegmentId, sabotage::broken};
use uuid::Uuid;

pub use self::lifecycle::IndexFacts;
use self::{
    coverage::Coverage,
    lifecycle::{furnish, furnish_dropped, open_store},
    liveness::Liveness,
    neighbours::GROUP_RECORDS,
    queue::{Pending, Queue},
    rebuild::Rebuild,
    tables::{Tables, fresh_entries},
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
    /// What the database's files may take, bytes; 0: no limit.
    pub disk_bytes: u64,
    /// It was dropped ([`FingerprintIndex::discard`]) and stays so.
    pub dropped: bool,
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
    /// It was dropped and is not made anew before it is told to.
    Dropped,
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

/// Records put into the database at a time at the most: 256 MiB of 4 KiB
/// chunks in a file of 1.8 MB.
const BATCH_RECORDS_MAX: usize = 1 << 16;
/// The queue holds so many batches.
const QUEUE_BATCHES: usize = 2;

/// See the module. All methods may be called from several threads at once.
pub struct FingerprintIndex {
    pool: Uuid,
    array: Arc<dyn Blocks>,
    options: IndexOptions,
    /// Replaced as a whole; the lock is held for a moment only.
    tables: RwLock<Arc<Tables>>,
    /// It was dropped: the tables are those of an index that knows nothing.
    dropped: AtomicBool,
    disk_limit: AtomicU64,
    liveness: Liveness,
    queue: Mutex<Queue>,
    rebuild: Mutex<Rebuild>,
    rebuild_turn: Mutex<rebuild::Turn>,
    /// Held by whoever does background work.
    worker: Mutex<Worker>,
}

/// What background work remembers.
#[derive(Default)]
struct Worker {
    coverage: Coverage,
    /// Where the scan into the filter goes on; `None` when it is done.
    scan_from: Option<u64>,
    /// Keys in the database that its rate keeps, about.
    keys: u64,
    /// They are what the database counted when it was opened: perhaps with
    /// those that were thinned out before and are still in its files.
    keys_unsifted: bool,
    /// What the files took after the last compaction for the disk limit.
    compacted_to: Option<u64>,
    /// The database, or the dropped one, is in the directory.
    on_disk: bool,
    /// Dropped tables that lookups may still use.
    retired: Option<Arc<Tables>>,
}

impl std::fmt::Debug for FingerprintIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FingerprintIndex")
            .field("pool", &self.pool)
            .field("fresh", &self.tables().fresh.len())
            .field("filter", &self.tables().filter)
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
        let furnished = if options.dropped {
            furnish_dropped(&options, &liveness)
        } else {
            furnish(&options, open_store(&options, &liveness))
        };
        Ok(Self::with(options, array, furnished, liveness))
    }

    fn with(
        options: IndexOptions,
        array: Arc<dyn Blocks>,
        (tables, worker): (Arc<Tables>, Worker),
        liveness: Liveness,
    ) -> Self {
        // Entries stay fresh while they are queued, and the open segments'
        // are fresh too.
        let fresh = fresh_entries(options.memory_bytes);
        let batch = (fresh / (QUEUE_BATCHES + 1)).clamp(1, BATCH_RECORDS_MAX);
        Self {
            pool: options.pool,
            array,
            tables: RwLock::new(tables),
            dropped: AtomicBool::new(options.dropped),
            disk_limit: AtomicU64::new(options.disk_bytes),
            options,
            liveness,
            queue: Mutex::new(Queue::new(batch, QUEUE_BATCHES * batch)),
            rebuild: Mutex::default(),
            rebuild_turn: Mutex::default(),
            worker: Mutex::new(worker),
        }
    }

    /// What answers just now.
    fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.read())
    }

    /// Under the append lock: a chunk appended lately whose segment is live
    /// and not frozen.
    pub fn fresh_get(
        &self,
        fingerprint: &Fingerprint,
        directory: &dyn SegmentDirectory,
    ) -> Option<Hit> {
        let hit = self.tables.read().fresh.get(fingerprint)?;
        probe::usable(directory.facts(hit.entry.segment).as_ref(), &hit).then_some(hit)
    }

    /// Offers a chunk to whoever writes the same bytes next. Only once its
    /// bytes are in the stripe buffer (R8).
    pub fn fresh_insert(&self, fingerprint: Fingerprint, hit: Hit) {
        self.tables.read().fresh.insert(fingerprint, hit);
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
        if self.is_dropped() {
            return;
        }
        let tables = self.tables();
        for (number, group) in (0u32..).zip(records.chunks(GROUP_RECORDS as usize)) {
            if group.iter().any(|record| record.fingerprint.is_some()) {
                tables.neighbours.insert(segment, generation, number, group);
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
        let tables = self.tables();
        tables.neighbours.remove_segment(segment);
        tables.fresh.remove_segment(segment, generation);
        self.queue.lock().remove(segment, generation);
    }

    fn forget_fresh(&self, pending: &Pending) {
        let tables = self.tables();
        for (prefix, _) in &pending.keys {
            tables
                .fresh
                .remove(*prefix, pending.segment, pending.generation);
        }
    }
}
