//! When a member has gone wrong often or long enough, and whose clock says so.
//!
//! Limits can be changed while the array is in use. Time comes in through a
//! handle (R24): simulations turn the hands themselves.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The time since some moment, never going back.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time since the clock's beginning.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that is turned by hand. Clones show the same time.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// What a member may do wrong before it is failed, subject to R4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may leave an operation without an answer.
    pub stall: Duration,
    /// More failed reads within an hour than this fail it.
    pub read_errors_per_hour: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            read_errors_per_hour: 32,
        }
    }
}

/// The limits in force.
#[derive(Debug)]
pub(super) struct LimitsInForce {
    stall_millis: AtomicU64,
    read_errors_per_hour: AtomicU32,
}

impl LimitsInForce {
    pub(super) fn new(limits: Limits) -> Self {
        let in_force = Self {
            stall_millis: AtomicU64::new(0),
            read_errors_per_hour: AtomicU32::new(0),
        };
        in_force.set(limits);
        in_force
    }

    pub(super) fn set(&self, limits: Limits) {
        let millis = u64::try_from(limits.stall.as_millis()).unwrap_or(u64::MAX);
        self.stall_millis.store(millis, Ordering::Relaxed);
        self.read_errors_per_hour
            .store(limits.read_errors_per_hour, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Limits {
        Limits {
            stall: Duration::from_millis(self.stall_millis.load(Ordering::Relaxed)),
            read_errors_per_hour: self.read_errors_per_hour.load(Ordering::Relaxed),
        }
    }
}

/// What a member did wrong, and what was put right on it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) read_errors: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) repaired: AtomicU64,
    /// When the latest reads failed, as many as could matter.
    recent: Mutex<VecDeque<Duration>>,
    /// Why it was failed.
    pub(super) reason: Mutex<Option<String>>,
}

impl Counters {
    /// Counts a failed read; whether that makes more than `limit` an hour.
    pub(super) fn read_failed(&self, now: Duration, limit: u32) -> bool {
        const HOUR: Duration = Duration::from_secs(3600);
        self.read_errors.fetch_add(1, Ordering::Relaxed);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut recent = self.recent.lock();
        while recent.front().is_some_and(|at| *at + HOUR <= now) {
            recent.pop_front();
        }
        // One over the limit is all that needs to be remembered.
        if recent.len() <= limit.min(1 << 16) {
            recent.push_back(now);
        }
        recent.len() > limit
    }

    pub(super) fn write_failed(&self) {
        self.write_errors.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_last_hour_count() {
        let counters = Counters::default();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for minute in 0..3 {
            assert!(!counters.read_failed(minutes(minute), 3));
        }
        assert!(
            !counters.read_failed(minutes(61), 3),
            "the first two are forgotten"
        );
        assert!(!counters.read_failed(minutes(61), 3));
        assert!(counters.read_failed(minutes(61), 3));
        assert_eq!(counters.read_errors.load(Ordering::Relaxed), 6);
        assert!(Counters::default().read_failed(Duration::ZERO, 0));
    }
}
