//! Beginning a commit before the flush that will ask for it.
//!
//! ```text
//!   client   write ------> answer   flush ----------> answer
//!   without                         commit..........|
//!   with           commit..........................|
//! ```
//! A client that flushes after every write (a database's log, the journal of a
//! guest's file system) leaves the members idle while its answer and its next
//! request travel. When every one of the last few flushes came after exactly
//! one batch of writes, the thread that has answered the next such batch commits
//! it before it looks for more; the flush finds that done.
//!
//! This only moves a commit forward: what a flush promises does not depend on
//! it. A wrong guess costs one small journal batch, and the pattern has to show
//! itself anew before there is another.

use std::sync::atomic::{AtomicU32, Ordering};

/// Flushes in a row that must have followed one batch of writes.
const PATTERN: u32 = 4;

/// Watches one client's writes and flushes.
#[derive(Debug, Default)]
pub(crate) struct Anticipation {
    /// Batches with writes since the last flush.
    batches: AtomicU32,
    /// Flushes in a row that followed exactly one.
    matches: AtomicU32,
}

impl Anticipation {
    /// Notes a batch that has written.
    pub(crate) fn note_writes(&self) {
        if self.batches.fetch_add(1, Ordering::Relaxed) > 0 {
            self.matches.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a flush.
    pub(crate) fn note_flush(&self) {
        // One without writes says nothing about the next.
        if self.batches.swap(0, Ordering::Relaxed) == 1 {
            let matches = self.matches.load(Ordering::Relaxed).saturating_add(1);
            self.matches.store(matches, Ordering::Relaxed);
        }
    }

    /// Whether the next request is probably a flush of the last writes.
    pub(crate) fn expects_flush(&self) -> bool {
        self.batches.load(Ordering::Relaxed) == 1 && self.matches.load(Ordering::Relaxed) >= PATTERN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alternate(anticipation: &Anticipation, times: u32) {
        for _ in 0..times {
            anticipation.note_writes();
            anticipation.note_flush();
        }
    }

    #[test]
    fn a_flush_is_expected_once_every_write_has_been_followed_by_one() {
        let anticipation = Anticipation::default();
        alternate(&anticipation, PATTERN - 1);
        anticipation.note_writes();
        assert!(!anticipation.expects_flush());
        anticipation.note_flush();
        assert!(!anticipation.expects_flush(), "nothing has been written");
        anticipation.note_writes();
        assert!(anticipation.expects_flush());
    }

    #[test]
    fn a_flush_of_nothing_keeps_the_pattern() {
        let anticipation = Anticipation::default();
        alternate(&anticipation, PATTERN);
        anticipation.note_flush();
        anticipation.note_writes();
        assert!(anticipation.expects_flush());
    }

    #[test]
    fn a_second_batch_without_a_flush_breaks_the_pattern() {
        let anticipation = Anticipation::default();
        alternate(&anticipation, PATTERN);
        anticipation.note_writes();
        anticipation.note_writes();
        assert!(!anticipation.expects_flush());
        anticipation.note_flush();
        anticipation.note_writes();
        assert!(!anticipation.expects_flush());
    }
}
