//! The `tessera` command: makes pools and volumes, looks after them, and
//! serves the volumes as disks over NBD.
//!
//! Data goes to stdout, everything else to stderr. Exit status: 0 done,
//! 1 failed (one line on stderr), 2 a check finished and found problems.

mod access;
mod args;
mod commands;
mod control;
mod failure;
mod notify;
mod output;
mod signals;
mod size;

use std::process::ExitCode;

use crate::{args::Cli, output::Outcome};

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(args::Stop::Show(text)) => return finish(output::print(&text)),
        Err(args::Stop::Refuse(sentence)) => {
            output::complain(&sentence);
            return ExitCode::FAILURE;
        }
    };
    start_logging(&cli);
    match commands::run(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Problems) => ExitCode::from(2),
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn finish(printed: anyhow::Result<()>) -> ExitCode {
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Warnings always, more with `-v`; `TESSERA_LOG` overrides both with a filter
/// such as `tessera_engine=debug`.
fn start_logging(cli: &Cli) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;

    let level = match cli.globals.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("TESSERA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(cli.globals.verbose > 1);
    if let Err(error) = logger.try_init() {
        output::complain(&format!("Logging could not be started: {error}"));
    }
}
