//! What small concurrent parts are built from, in one place: a test that runs
//! such a part under a controlled scheduler puts the scheduler's in its place.

pub(crate) use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread::yield_now,
};

/// Operations that can be in flight without meeting in a slot.
pub(crate) const EPOCH_SLOTS: usize = 128;
