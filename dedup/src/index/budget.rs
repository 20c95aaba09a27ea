//! How much of the database one probe may use (R10).
//!
//! A probe may look up so many keys that it should take no longer than
//! [`PROBE_TIME`], judged by how long lookups took lately; a few are always
//! allowed, or it would never be known that the database is fast again. While
//! an earlier lookup hangs, others do not join it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Keys a probe may look up at the most: a request of 1 MiB in 4 KiB chunks.
const KEYS_MAX: usize = 256;
/// Keys a probe may look up even when the database is slow.
const KEYS_MIN: usize = 4;
/// What a probe may take in the database, about: half of what the members
/// take to write the 1 MiB it is for.
const PROBE_TIME: Duration = Duration::from_millis(2);
/// A lookup under way for so long hangs.
const HANGS: Duration = Duration::from_millis(10);

/// See the module. Without a clock (R24) only the number of keys is bounded.
#[derive(Debug)]
pub(crate) struct LookupBudget {
    clock: bool,
    /// Moving average.
    nanos_per_key: AtomicU64,
    /// When the lookups under way began.
    active: Mutex<Vec<Instant>>,
}

impl LookupBudget {
    pub(crate) fn new(clock: bool) -> Self {
        Self {
            clock,
            nanos_per_key: AtomicU64::new(0),
            active: Mutex::default(),
        }
    }

    /// Keys the next probe may look up.
    pub(crate) fn keys(&self) -> usize {
        if !self.clock {
            return KEYS_MAX;
        }
        if self
            .active
            .lock()
            .iter()
            .any(|began| began.elapsed() > HANGS)
        {
            return 0;
        }
        let nanos = u128::from(self.nanos_per_key.load(Ordering::Relaxed).max(1));
        let keys = usize::try_from(PROBE_TIME.as_nanos() / nanos).unwrap_or(KEYS_MAX);
        keys.clamp(KEYS_MIN, KEYS_MAX)
    }

    /// Runs a lookup of `keys` keys and remembers how long it took.
    pub(crate) fn measure<T>(&self, keys: usize, lookup: impl FnOnce() -> T) -> T {
        if !self.clock || keys == 0 {
            return lookup();
        }
        let began = Instant::now();
        self.active.lock().push(began);
        let result = lookup();
        let mut active = self.active.lock();
        if let Some(own) = active.iter().position(|other| *other == began) {
            active.swap_remove(own);
        }
        drop(active);
        self.record(keys, began.elapsed());
        result
    }

    fn record(&self, keys: usize, took: Duration) {
        let keys = u64::try_from(keys).unwrap_or(u64::MAX);
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / keys;
        let old = self.nanos_per_key.load(Ordering::Relaxed);
        // Racing updates lose a sample; that is all.
        let new = if old == 0 {
            sample
        } else {
            old - old / 4 + sample / 4
        };
        self.nanos_per_key.store(new.max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_lookups_shrink_the_budget_and_fast_ones_restore_it() {
        let budget = LookupBudget::new(true);
        assert_eq!(budget.keys(), KEYS_MAX);
        for _ in 0..20 {
            budget.record(8, Duration::from_millis(80));
        }
        assert_eq!(budget.keys(), KEYS_MIN);
        for _ in 0..60 {
            budget.record(4, Duration::from_micros(8));
        }
        assert_eq!(budget.keys(), KEYS_MAX);
    }

    #[test]
    fn nobody_joins_a_lookup_that_hangs() {
        let budget = LookupBudget::new(true);
        let long_ago = Instant::now().checked_sub(HANGS * 2).unwrap();
        budget.active.lock().push(long_ago);
        assert_eq!(budget.keys(), 0);
        budget.active.lock().clear();
        assert_eq!(budget.keys(), KEYS_MAX);
    }

    #[test]
    fn without_a_clock_only_the_number_is_bounded() {
        let budget = LookupBudget::new(false);
        budget.measure(1, || std::thread::sleep(Duration::from_millis(1)));
        assert_eq!(budget.keys(), KEYS_MAX);
        assert_eq!(budget.nanos_per_key.load(Ordering::Relaxed), 0);
    }
}
