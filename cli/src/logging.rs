//! What the process tells on stderr besides errors.
//!
//! A command says what is wrong in one sentence and leaves the rest to `-v`. A
//! server that runs also warns by itself: nobody else would notice that a
//! member failed. `TESSERA_LOG` overrides both with a filter such as
//! `tessera_engine=debug`.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::EnvFilter;

use crate::output;

/// The environment variable that holds a filter.
const VARIABLE: &str = "TESSERA_LOG";

/// Turns warnings on; unset where the user has chosen a level.
static WARN: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Starts logging at the level that `-v`, given `verbose` times, asks for.
pub(crate) fn start(verbose: u8) {
    let chosen = EnvFilter::try_from_env(VARIABLE).ok();
    let quiet = chosen.is_none() && verbose == 0;
    let level = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 1)
        .with_env_filter(chosen.unwrap_or_else(|| EnvFilter::new(level)))
        .with_filter_reloading();
    if quiet {
        let handle = builder.reload_handle();
        let warn = move || {
            if let Err(error) = handle.reload(EnvFilter::new("warn")) {
                output::complain(&format!("Warnings cannot be shown: {error}"));
            }
        };
        // Logging is started once; a second handle would be of no use.
        let _ = WARN.set(Box::new(warn));
    }
    if let Err(error) = builder.try_init() {
        output::complain(&format!("Logging could not be started: {error}"));
    }
}

/// From here on the process warns by itself, unless the user chose a level.
pub(crate) fn warn_from_now_on() {
    if let Some(warn) = WARN.get() {
        warn();
    }
}
