//! Signals that ask a serving process for something: the first that asks it to
//! stop drains, the second ends it at once; SIGHUP may ask it to read its
//! configuration again instead.

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

/// What SIGHUP means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// The terminal has gone, and with it who started this: stop.
    Stops,
    /// There is a configuration to read again.
    Reloads,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To drain and end.
    Stop,
    /// To read the configuration again.
    Reload,
}

/// Signals that have arrived, from the start of this on.
pub(crate) struct StopSignals {
    stopping: Arc<AtomicBool>,
    signals: Signals,
}

impl StopSignals {
    /// Takes over SIGTERM, SIGINT and SIGHUP for the rest of the process; all
    /// of them stop it.
    pub(crate) fn install() -> anyhow::Result<Self> {
        Self::install_with(Hangup::Stops)
    }

    /// Takes over the same signals, with a meaning of SIGHUP.
    pub(crate) fn install_with(hangup: Hangup) -> anyhow::Result<Self> {
        const HANDLED: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in HANDLED {
            if signal == SIGHUP && hangup == Hangup::Reloads {
                continue;
            }
            // The order matters: the exit looks at the flag before this very
            // signal sets it, so only a second signal ends the process.
            flag::register_conditional_shutdown(signal, IMPATIENT_EXIT, Arc::clone(&stopping))
                .and_then(|_| flag::register(signal, Arc::clone(&stopping)))
                .context("The stop signals cannot be handled")?;
        }
        let signals = Signals::new(HANDLED).context("The stop signals cannot be handled")?;
        Ok(Self { stopping, signals })
    }

    /// Set by the first signal to stop, for one who looks now and then.
    pub(crate) fn stopping(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopping)
    }

    /// Ends [`StopSignals::wait`] when called, as a signal would.
    pub(crate) fn stopper(&self) -> impl FnOnce() + Send + 'static {
        let handle = self.signals.handle();
        move || handle.close()
    }

    /// Blocks until the first stop signal, which may have come before.
    pub(crate) fn wait(&mut self) {
        while self.next() == Asked::Reload {}
    }

    /// Blocks until a signal asks for something. Once it was to stop, it
    /// stays so.
    pub(crate) fn next(&mut self) -> Asked {
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return Asked::Stop;
            }
            let asked = self.signals.forever().next();
            // A stop that came together with it goes first.
            if !self.stopping.load(Ordering::SeqCst) && asked == Some(SIGHUP) {
                return Asked::Reload;
            }
            if asked.is_none() {
                return Asked::Stop;
            }
        }
    }
}
