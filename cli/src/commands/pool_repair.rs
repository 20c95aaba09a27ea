//! `tessera pool repair`: put right what `pool check` found on a stopped pool.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use tessera_engine::{
    api::RepairReport,
    pool::{Pool, RepairMode},
};

use super::pool_check::Progress;
use crate::{
    access,
    args::Globals,
    failure::Failure,
    output::{self, Outcome},
};

/// Mend a damaged pool that is stopped
///
/// Restores superblocks from their copies, rebuilds the segment table and the
/// index from summaries, and salvages what verifies when the newest checkpoint
/// is lost. Nothing is discarded that is not proven bad. Look at --dry-run
/// first. Exit status 2 means that problems are left.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera pool repair tank --dry-run\n  \
    tessera pool repair tank --yes")]
#[command(group(ArgGroup::new("how").required(true).args(["dry_run", "yes"])))]
pub(crate) struct Repair {
    /// The pool's directory
    dir: PathBuf,
    /// Say what would be done and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Show the report as JSON
    #[arg(long)]
    json: bool,
}

impl Repair {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        access::refuse_if_served(&self.dir, "repairing it")?;
        let mode = if self.yes {
            RepairMode::Apply
        } else {
            RepairMode::Plan
        };
        let progress = Progress::new();
        let report = Pool::repair(&self.dir, mode, globals.io(), &progress);
        progress.finish();
        let report = report.map_err(Failure::from)?;
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&render(&report, mode))?;
        }
        Ok(if report.problems.is_empty() {
            Outcome::Done
        } else {
            Outcome::Problems
        })
    }
}

fn render(report: &RepairReport, mode: RepairMode) -> String {
    let mut text = String::new();
    let word = match mode {
        RepairMode::Plan => "WOULD   ",
        RepairMode::Apply => "DONE    ",
    };
    for action in &report.actions {
        text.push_str(&format!("{word} {action}\n"));
    }
    for problem in &report.problems {
        text.push_str(&format!("PROBLEM  {problem}\n"));
    }
    if report.actions.is_empty() {
        text.push_str(match report.problems.len() {
            0 => "There is nothing to repair\n",
            _ => "Nothing of this can be repaired\n",
        });
    }
    text
}
