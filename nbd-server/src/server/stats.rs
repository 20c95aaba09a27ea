//! Counters of what a server has done, for status displays.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; each only grows, except `connections_open`.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) connections_accepted: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) connections_open: AtomicU64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Connections taken in.
    pub connections_accepted: u64,
    /// Connections turned away because there were too many.
    pub connections_refused: u64,
    /// Connections now.
    pub connections_open: u64,
    /// Connections that ended before they had chosen an export.
    pub handshakes_failed: u64,
    /// Requests answered.
    pub requests: u64,
    /// Batches they were executed in.
    pub batches: u64,
    /// Flushes asked of disks, for `FLUSH` and `FUA`.
    pub flushes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Payload bytes sent to clients.
    pub bytes_read: u64,
    /// Payload bytes received from clients and written.
    pub bytes_written: u64,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    if value != 0 {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

impl Stats {
    /// Reads all counters, each by itself.
    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StatsSnapshot {
            connections_accepted: get(&self.connections_accepted),
            connections_refused: get(&self.connections_refused),
            connections_open: get(&self.connections_open),
            handshakes_failed: get(&self.handshakes_failed),
            requests: get(&self.requests),
            batches: get(&self.batches),
            flushes: get(&self.flushes),
            errors: get(&self.errors),
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
        }
    }
}
