//! All of the index that takes memory or disk, in one piece: so that it can be
//! dropped, or made anew, while lookups go on. Who is in the middle of one goes
//! on with the tables it began with; what those say is verified as ever (R8).

use std::sync::atomic::{AtomicU8, Ordering};

use super::{
    budget::LookupBudget,
    filter::Filter,
    fresh::{FRESH_ENTRY_BYTES, FreshTable},
    neighbours::Neighbours,
    sampling::Rate,
    store::{KeyStore, MemoryStore},
};

/// Shares of the memory budget, in 16ths. The rest is for what RocksDB takes
/// beyond its cache.
const SHARE_FILTER: usize = 4;
const SHARE_NEIGHBOURS: usize = 5;
const SHARE_FRESH: usize = 4;
const SHARE_STORE: usize = 2;

/// What the database's cache may take of `memory_bytes`.
pub(super) fn store_bytes(memory_bytes: usize) -> usize {
    memory_bytes / 16 * SHARE_STORE
}

/// Chunks that are remembered as fresh within `memory_bytes`.
pub(super) fn fresh_entries(memory_bytes: usize) -> usize {
    memory_bytes / 16 * SHARE_FRESH / FRESH_ENTRY_BYTES
}

/// See the module.
pub(super) struct Tables {
    pub(super) neighbours: Neighbours,
    pub(super) fresh: FreshTable,
    pub(super) filter: Filter,
    pub(super) store: Box<dyn KeyStore>,
    pub(super) budget: LookupBudget,
    /// Bits of the rate at which the database is asked: that of the filter.
    asked: AtomicU8,
    /// Bits of the rate at which the database keeps, for who wants to know
    /// without waiting for whoever feeds it.
    kept: AtomicU8,
}

impl Tables {
    pub(super) fn new(memory_bytes: usize, store: Box<dyn KeyStore>, clock: bool) -> Self {
        let share = memory_bytes / 16;
        Self {
            neighbours: Neighbours::new(share * SHARE_NEIGHBOURS),
            fresh: FreshTable::new(fresh_entries(memory_bytes)),
            filter: Filter::new(share * SHARE_FILTER),
            store,
            budget: LookupBudget::new(clock),
            asked: AtomicU8::new(Rate::ALL.bits()),
            kept: AtomicU8::new(Rate::ALL.bits()),
        }
    }

    /// Those of a dropped index: they know nothing and take nothing in.
    pub(super) fn none() -> Self {
        let tables = Self::new(0, Box::new(MemoryStore::none()), false);
        tables.filter.set_complete();
        tables
    }

    pub(super) fn asked(&self) -> Rate {
        Rate::from_bits(self.asked.load(Ordering::Relaxed)).unwrap_or(Rate::SPARSEST)
    }

    pub(super) fn set_asked(&self, rate: Rate) {
        self.asked.store(rate.bits(), Ordering::Relaxed);
    }

    pub(super) fn kept(&self) -> Rate {
        Rate::from_bits(self.kept.load(Ordering::Relaxed)).unwrap_or(Rate::SPARSEST)
    }

    pub(super) fn set_kept(&self, rate: Rate) {
        self.kept.store(rate.bits(), Ordering::Relaxed);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.neighbours.memory_bytes()
            + self.fresh.memory_bytes()
            + self.filter.memory_bytes()
            + self.store.memory_bytes()
    }
}
