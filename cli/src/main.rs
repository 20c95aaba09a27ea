//! The `tessera` command: makes pools and volumes, looks after them, and
//! serves the volumes as disks over NBD.
//!
//! Data goes to stdout, everything else to stderr. Exit status: 0 done,
//! 1 failed (one line on stderr), 2 a check finished and found problems.

mod access;
mod activation;
mod args;
mod check_run;
mod commands;
mod control;
mod daemon;
mod estimate;
mod failure;
mod logging;
mod moment;
mod notify;
mod output;
mod signals;
mod size;
mod suggest;

use std::process::ExitCode;

use crate::output::Outcome;

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(args::Stop::Show(text)) => return finish(output::print(&text)),
        Err(args::Stop::Refuse(sentence)) => {
            output::complain(&sentence);
            return ExitCode::FAILURE;
        }
    };
    output::choose_colours(cli.globals.color);
    logging::start(cli.globals.verbose);
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
