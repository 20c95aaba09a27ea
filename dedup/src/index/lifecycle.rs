//! Opening the index, dropping it and making it anew while the pool is in use,
//! and what it says about itself.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use super::{
    FingerprintIndex, IndexOptions, IndexState, Worker,
    coverage::Coverage,
    liveness::Liveness,
    rocks::{self, RocksStore},
    store::{KeyStore, MEMORY_ENTRY_BYTES, MemoryStore},
    tables::{Tables, store_bytes},
};

/// Chunks of 4 KiB in a TiB.
const CHUNKS_PER_TIB: u64 = 1 << 28;
/// What a fingerprint takes on disk when there are too few to tell.
const DISK_PER_ENTRY: u64 = 30;
/// Below, files are mostly made of what every file has.
const ENTRIES_TO_TELL: u64 = 100_000;

/// What an index is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexFacts {
    /// What background work it has.
    pub state: IndexState,
    /// Fingerprints known, about.
    pub entries: u64,
    /// One of so many fingerprints is looked up: what fits in memory.
    pub asked_one_in: u64,
    /// One of so many fingerprints is kept: what fits on disk.
    pub kept_one_in: u64,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
    /// Memory it may use, bytes.
    pub memory_limit_bytes: u64,
    /// What the database's files take, bytes.
    pub disk_bytes: u64,
    /// What they may take, bytes; 0: no limit.
    pub disk_limit_bytes: u64,
    /// Memory that a TiB of unique 4 KiB chunks takes at the present rate, for
    /// ten bits of filter a fingerprint.
    pub memory_bytes_per_tib: u64,
    /// Disk that it takes, by what fingerprints take now.
    pub disk_bytes_per_tib: u64,
}

/// A database and what it covers; on disk or not.
pub(super) struct Opened {
    pub(super) store: Box<dyn KeyStore>,
    pub(super) coverage: Coverage,
    pub(super) on_disk: bool,
}

/// Opens the database where it can be used, else one in memory.
pub(super) fn open_store(options: &IndexOptions, liveness: &Liveness) -> Opened {
    let bytes = store_bytes(options.memory_bytes);
    if let Some(dir) = &options.dir {
        match RocksStore::open(dir, options.pool, bytes, liveness) {
            Ok((store, coverage)) => {
                return Opened {
                    store: Box::new(store),
                    coverage,
                    on_disk: true,
                };
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    dir = %dir.display(), %error, cause,
                    "fingerprint index lives in memory only"
                );
            }
        }
    }
    Opened {
        store: Box::new(MemoryStore::new(bytes / MEMORY_ENTRY_BYTES)),
        coverage: Coverage::default(),
        on_disk: false,
    }
}

/// Tables over a database, and what background work begins with.
pub(super) fn furnish(options: &IndexOptions, opened: Opened) -> (Arc<Tables>, Worker) {
    let Opened {
        store,
        coverage,
        on_disk,
    } = opened;
    let tables = Tables::new(options.memory_bytes, store, options.dir.is_some());
    let keys = tables.store.entries();
    let asked = coverage.rate.fitting(keys, tables.filter.capacity());
    tables.set_asked(asked);
    tables.set_kept(coverage.rate);
    let worker = Worker {
        coverage,
        scan_from: Some(0),
        keys,
        keys_unsifted: true,
        compacted_to: None,
        on_disk,
        retired: None,
    };
    (Arc::new(tables), worker)
}

/// The tables of an index that was dropped before.
pub(super) fn furnish_dropped(
    options: &IndexOptions,
    liveness: &Liveness,
) -> (Arc<Tables>, Worker) {
    // Somebody may have put it back, or the drop was cut short.
    let left = options
        .dir
        .as_deref()
        .filter(|dir| dir.join("CURRENT").exists());
    if let Some(dir) = left
        && open_store(options, liveness).on_disk
    {
        remove_files(dir);
    }
    (Arc::new(Tables::none()), Worker::default())
}

fn remove_files(dir: &Path) {
    if let Err(error) = rocks::discard(dir) {
        tracing::warn!(dir = %dir.display(), %error, "a dropped index cannot be removed");
    }
}

impl FingerprintIndex {
    /// Drops everything, from memory and disk, and takes nothing in until
    /// [`Self::reopen`]. Lookups under way end first; the files go with the
    /// next [`Self::step`] after that, if not at once.
    pub fn discard(&self) {
        let mut worker = self.worker.lock();
        if self.dropped.swap(true, Ordering::AcqRel) {
            return;
        }
        let none = Arc::new(Tables::none());
        let old = std::mem::replace(&mut *self.tables.write(), none);
        self.queue.lock().clear();
        *self.rebuild.lock() = Default::default();
        *worker = Worker {
            on_disk: worker.on_disk,
            retired: Some(old),
            ..Worker::default()
        };
        self.retire(&mut worker);
    }

    /// Begins anew after [`Self::discard`]; what is sealed is to be told to
    /// [`Self::rebuild_begin`]. False: lookups from before are still under way,
    /// try again.
    pub fn reopen(&self) -> bool {
        let mut worker = self.worker.lock();
        if !self.is_dropped() {
            return true;
        }
        if !self.retire(&mut worker) {
            return false;
        }
        let opened = open_store(&self.options, &self.liveness);
        let (tables, begun) = furnish(&self.options, opened);
        *worker = begun;
        *self.tables.write() = tables;
        self.dropped.store(false, Ordering::Release);
        true
    }

    /// Closes tables that were dropped, once nobody uses them, and removes
    /// their files; false while somebody does.
    pub(super) fn retire(&self, worker: &mut Worker) -> bool {
        let Some(old) = worker.retired.take() else {
            return true;
        };
        match Arc::try_unwrap(old) {
            Ok(tables) => {
                drop(tables);
                if let Some(dir) = self.options.dir.as_deref().filter(|_| worker.on_disk) {
                    remove_files(dir);
                }
                worker.on_disk = false;
                true
            }
            Err(old) => {
                worker.retired = Some(old);
                false
            }
        }
    }

    /// It was dropped and not made anew.
    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(super) fn disk_limit(&self) -> u64 {
        self.disk_limit.load(Ordering::Relaxed)
    }

    /// Changes what the database's files may take; 0: no limit. A lower limit
    /// is reached by steps.
    pub fn set_disk_limit(&self, bytes: u64) {
        self.disk_limit.store(bytes, Ordering::Relaxed);
    }

    /// Fingerprints known, about.
    pub fn entries(&self) -> u64 {
        let tables = self.tables();
        let fresh = u64::try_from(tables.fresh.len()).unwrap_or(u64::MAX);
        tables.store.entries().saturating_add(fresh)
    }

    /// What is still to be read in.
    pub fn state(&self) -> IndexState {
        if self.is_dropped() {
            IndexState::Dropped
        } else {
            self.rebuild.lock().state()
        }
    }

    /// Memory in use, bytes, about.
    pub fn memory_bytes(&self) -> usize {
        self.tables().memory_bytes() + self.queue.lock().memory_bytes()
    }

    /// What it is at this moment.
    pub fn facts(&self) -> IndexFacts {
        let tables = self.tables();
        let asked = tables.asked().one_in();
        let kept_one_in = tables.kept().one_in();
        let disk_bytes = tables.store.disk_bytes();
        let stored = tables.store.entries();
        let disk_per_entry = match stored {
            ENTRIES_TO_TELL.. if disk_bytes > 0 => disk_bytes.div_ceil(stored),
            _ => DISK_PER_ENTRY,
        };
        IndexFacts {
            state: self.state(),
            entries: self.entries(),
            asked_one_in: asked,
            kept_one_in,
            memory_bytes: self.memory_bytes() as u64, // usize is at most 64 bits
            memory_limit_bytes: self.options.memory_bytes as u64,
            disk_bytes,
            disk_limit_bytes: self.disk_limit(),
            memory_bytes_per_tib: CHUNKS_PER_TIB / asked * 10 / 8,
            disk_bytes_per_tib: CHUNKS_PER_TIB / kept_one_in * disk_per_entry,
        }
    }
}
