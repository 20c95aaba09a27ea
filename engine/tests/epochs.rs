//! The wait for operations in flight (R9, R20) under a controlled scheduler,
//! which tries the orders in which threads can meet, some thousands of them.
//!
//! `src/epochs.rs` is compiled into this test with shuttle's atomics.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod concurrency {
    pub(crate) use shuttle::{
        sync::atomic::{AtomicU64, AtomicUsize, Ordering},
        thread::yield_now,
    };

    /// Few, so that operations meet.
    pub(crate) const EPOCH_SLOTS: usize = 2;
}

#[path = "../src/epochs.rs"]
mod epochs;

use epochs::Epochs;
use shuttle::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

const SCHEDULES: usize = 3000;

/// Reclaim's protocol in small: a frozen segment gets no new names, and what
/// operations named before is seen once they have ended.
fn freeze_wait_and_mark(operations: usize) {
    let epochs = Arc::new(Epochs::default());
    let frozen = Arc::new(AtomicBool::new(false));
    let names = Arc::new(AtomicUsize::new(0));
    let running: Vec<_> = (0..operations)
        .map(|_| {
            let (epochs, frozen, names) = (epochs.clone(), frozen.clone(), names.clone());
            thread::spawn(move || {
                let _guard = epochs.enter();
                // The probe; and later, without another look, the map change.
                if !frozen.load(Ordering::SeqCst) {
                    names.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    frozen.store(true, Ordering::SeqCst);
    let epoch = epochs.advance();
    while !epochs.quiesced(epoch) {
        thread::yield_now();
    }
    let marked = names.load(Ordering::SeqCst);
    for operation in running {
        operation.join().unwrap();
    }
    assert_eq!(
        names.load(Ordering::SeqCst),
        marked,
        "a name was given after the mark"
    );
}

#[test]
fn r20_nothing_frozen_is_named_after_the_wait() {
    shuttle::check_random(|| freeze_wait_and_mark(2), SCHEDULES);
    // More than there are slots: some wait for one.
    shuttle::check_pct(|| freeze_wait_and_mark(3), SCHEDULES, 3);
}

/// R9: who reads a location before its release keeps it from being used again.
#[test]
fn r9_nothing_is_used_again_under_a_reader() {
    shuttle::check_random(
        || {
            let epochs = Arc::new(Epochs::default());
            let released = Arc::new(AtomicBool::new(false));
            let used_again = Arc::new(AtomicBool::new(false));
            let reader = {
                let (epochs, released, used_again) =
                    (epochs.clone(), released.clone(), used_again.clone());
                thread::spawn(move || {
                    let _guard = epochs.enter();
                    let found = !released.load(Ordering::SeqCst);
                    if found {
                        thread::yield_now();
                        assert!(
                            !used_again.load(Ordering::SeqCst),
                            "the location was used again under its reader"
                        );
                    }
                })
            };
            released.store(true, Ordering::SeqCst);
            let epoch = epochs.advance();
            while !epochs.quiesced(epoch) {
                thread::yield_now();
            }
            used_again.store(true, Ordering::SeqCst);
            reader.join().unwrap();
        },
        SCHEDULES,
    );
}

#[test]
fn an_epoch_is_quiesced_once_its_operations_ended() {
    shuttle::check_random(
        || {
            let epochs = Epochs::default();
            let before = epochs.enter();
            let epoch = epochs.advance();
            let after = epochs.enter();
            assert!(!epochs.quiesced(epoch));
            drop(before);
            assert!(epochs.quiesced(epoch));
            drop(after);
        },
        1,
    );
}
