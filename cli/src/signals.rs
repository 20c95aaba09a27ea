//! Signals that ask the server to stop: the first one drains, the second one
//! ends the process at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};

/// The exit status of a process that did not wait for the drain.
const IMPATIENT_EXIT: i32 = 1;

/// Signals that have been asked to stop, from [`StopSignals::install`] on.
pub(crate) struct StopSignals {
    stopping: Arc<AtomicBool>,
    signals: Signals,
}

impl StopSignals {
    /// Takes over SIGTERM, SIGINT and SIGHUP for the rest of the process.
    pub(crate) fn install() -> anyhow::Result<Self> {
        const HANDLED: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in HANDLED {
            // The order matters: the exit looks at the flag before this very
            // signal sets it, so only a second signal ends the process.
            flag::register_conditional_shutdown(signal, IMPATIENT_EXIT, Arc::clone(&stopping))
                .and_then(|_| flag::register(signal, Arc::clone(&stopping)))
                .context("The stop signals cannot be handled")?;
        }
        let signals = Signals::new(HANDLED).context("The stop signals cannot be handled")?;
        Ok(Self { stopping, signals })
    }

    /// Ends [`StopSignals::wait`] when called, as a signal would.
    pub(crate) fn stopper(&self) -> impl FnOnce() + Send + 'static {
        let handle = self.signals.handle();
        move || handle.close()
    }

    /// Blocks until the first stop signal, which may have come before.
    pub(crate) fn wait(&mut self) {
        while !self.stopping.load(Ordering::SeqCst) {
            if self.signals.forever().next().is_none() {
                return;
            }
        }
    }
}
