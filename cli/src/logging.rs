//! What the process tells on stderr besides errors.
//!
//! A command says what is wrong in one sentence and leaves the rest to `-v`. A
//! server that runs also warns by itself: nobody else would notice that a
//! member failed. Its configuration may ask for more. `TESSERA_LOG` overrides
//! all of it with a filter such as `tessera_engine=debug`, and `-v` overrides
//! the configuration.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::output;

/// The environment variable that holds a filter.
const VARIABLE: &str = "TESSERA_LOG";

/// Sets another level; unset where the user has chosen one.
static CHANGE: OnceLock<Box<dyn Fn(Level) + Send + Sync>> = OnceLock::new();

/// How much is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// What went wrong and was not expected to.
    Error,
    /// Also what an operator should look at.
    #[default]
    Warn,
    /// Also what the server does.
    Info,
    /// Also how.
    Debug,
}

impl Level {
    const fn filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

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
        .with_ansi(output::on_stderr())
        .with_target(verbose > 1)
        .with_env_filter(chosen.unwrap_or_else(|| EnvFilter::new(level)))
        .with_filter_reloading();
    if quiet {
        let handle = builder.reload_handle();
        let change = move |level: Level| {
            if let Err(error) = handle.reload(EnvFilter::new(level.filter())) {
                output::complain(&format!("Warnings cannot be shown: {error}"));
            }
        };
        // Logging is started once; a second handle would be of no use.
        let _ = CHANGE.set(Box::new(change));
    }
    if let Err(error) = builder.try_init() {
        output::complain(&format!("Logging could not be started: {error}"));
    }
}

/// From here on the process warns by itself, unless the user chose a level.
pub(crate) fn warn_from_now_on() {
    tell_from_now_on(Level::Warn);
}

/// From here on the process tells this much, unless the user chose a level.
pub(crate) fn tell_from_now_on(level: Level) {
    if let Some(change) = CHANGE.get() {
        change(level);
    }
}
