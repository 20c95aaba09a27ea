//! Knowing when every operation begun before some moment has ended (R9, R20).
//!
//! An operation holds a guard from before it looks anything up until it has
//! taken its sequence and finished its reads. [`Epochs::advance`] names a
//! moment; once [`Epochs::quiesced`] holds for it, no operation begun before
//! it is in flight. Nobody waits for an epoch while holding a guard.
//!
//! `tests/epochs.rs` runs this file under a scheduler that tries the orders in
//! which threads can meet.

use crossbeam::utils::CachePadded;
use tessera_raid::sabotage::broken;

use crate::concurrency::{AtomicU64, AtomicUsize, EPOCH_SLOTS as SLOTS, Ordering, yield_now};

const IDLE: u64 = 0;

/// See the module's text.
#[derive(Debug)]
pub struct Epochs {
    current: AtomicU64,
    slots: Box<[CachePadded<AtomicU64>]>,
    next_slot: AtomicUsize,
}

/// An operation in flight.
#[derive(Debug)]
pub struct Guard<'a> {
    slot: &'a AtomicU64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.slot.store(IDLE, Ordering::SeqCst);
    }
}

impl Default for Epochs {
    fn default() -> Self {
        let slots = (0..SLOTS)
            .map(|_| CachePadded::new(AtomicU64::new(IDLE)))
            .collect();
        Self {
            current: AtomicU64::new(1),
            slots,
            next_slot: AtomicUsize::new(0),
        }
    }
}

impl Epochs {
    /// Begins an operation.
    pub fn enter(&self) -> Guard<'_> {
        let start = self.next_slot.fetch_add(1, Ordering::Relaxed);
        for attempt in start.. {
            let slot = &*self.slots[attempt % SLOTS];
            let mut epoch = self.current.load(Ordering::SeqCst);
            if slot
                .compare_exchange(IDLE, epoch, Ordering::SeqCst, Ordering::Relaxed)
                .is_err()
            {
                if attempt % SLOTS == SLOTS - 1 {
                    yield_now();
                }
                continue;
            }
            // An advance between the load and the exchange may have looked at
            // this slot while it was idle: announce the newer epoch then.
            loop {
                let now = self.current.load(Ordering::SeqCst);
                if now == epoch {
                    return Guard { slot };
                }
                epoch = now;
                slot.store(epoch, Ordering::SeqCst);
            }
        }
        unreachable!("the range has no end")
    }

    /// Ends the current epoch and returns it.
    pub fn advance(&self) -> u64 {
        self.current.fetch_add(1, Ordering::SeqCst)
    }

    /// True when every operation begun in `epoch` or earlier has ended.
    pub fn quiesced(&self, epoch: u64) -> bool {
        broken("R20.guards")
            || self.slots.iter().all(|slot| {
                let at = slot.load(Ordering::SeqCst);
                at == IDLE || at > epoch
            })
    }
}
