//! Waking the background threads. Without threads nobody listens, and nothing
//! depends on it: every step can be called by whoever needs it.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A flag that a thread sleeps on.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    condition: Condvar,
}

impl Bell {
    /// Wakes the listener, now or when it next listens.
    pub(crate) fn ring(&self) {
        let mut rung = self.rung.lock();
        if !*rung {
            *rung = true;
            self.condition.notify_all();
        }
    }

    /// Sleeps until rung, at most `patience`. True when it was rung.
    pub(crate) fn listen(&self, patience: Duration) -> bool {
        let mut rung = self.rung.lock();
        if !*rung {
            self.condition.wait_for(&mut rung, patience);
        }
        std::mem::take(&mut *rung)
    }
}

/// One bell per background thread.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Stripes are closed.
    pub(crate) writer: Bell,
    /// A flush waits, or many records are pending.
    pub(crate) committer: Bell,
    /// A checkpoint or a reclaim pass is due.
    pub(crate) maintenance: Bell,
    /// A job was started or let go on, or may go faster.
    pub(crate) jobs: Bell,
    /// Summaries are waiting for the index.
    pub(crate) index: Bell,
}
