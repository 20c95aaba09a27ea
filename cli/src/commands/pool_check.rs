//! `tessera pool check`: verify a pool, changing nothing.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tessera_engine::{
    api::CheckReport,
    pool::{CheckObserver, Pool},
};

use crate::{
    access::{self, Management},
    args::Globals,
    check_run::CheckState,
    failure::{Failure, Kind},
    output::{self, Outcome},
    size,
};

/// How often a served pool is asked how far its check is.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Verify a pool without changing it
///
/// Reads superblocks, journal, every page and every pointer; with --data also
/// every chunk, which is verified by its hash where there is one, else by its
/// checksum. A pool that is being served is checked as of a checkpoint taken
/// for it, while its clients go on. Exit status 2 means the check finished and
/// found problems.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera pool check tank\n  \
    tessera pool check tank --data --json | jq .problems")]
pub(crate) struct Check {
    /// The pool's directory
    dir: PathBuf,
    /// Read and verify every chunk too
    #[arg(long)]
    data: bool,
    /// Show the report as JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        let progress = Progress::new();
        let report = access::served_or_stopped(
            &self.dir,
            |pool| follow(pool, self.data, &progress),
            || Ok(Pool::check(&self.dir, self.data, globals.io(), &progress)?),
        );
        progress.finish();
        let report = report?;
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&render(&report, self.data))?;
        }
        Ok(if report.problems.is_empty() {
            Outcome::Done
        } else {
            Outcome::Problems
        })
    }
}

/// Has a served pool checked and waits for the report.
fn follow(pool: &dyn Management, data: bool, progress: &Progress) -> Result<CheckReport, Failure> {
    let mut answer = pool.start_check(data)?;
    loop {
        match (answer.state, answer.report, answer.error) {
            (CheckState::Done, Some(report), _) => return Ok(report),
            (CheckState::Running, ..) => {}
            (.., Some(failure)) => return Err(failure),
            _ => {
                let message = "The server has ended the check without a report: try again";
                return Err(Failure::new(Kind::Io, message));
            }
        }
        progress.progress(&answer.stage, answer.done, answer.total);
        std::thread::sleep(ASK_EVERY);
        answer = pool.check()?;
    }
}

fn render(report: &CheckReport, data: bool) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text.push_str(&format!("PROBLEM  {problem}\n"));
    }
    for note in &report.notes {
        text.push_str(&format!("note     {note}\n"));
    }
    text.push_str(&format!(
        "Checked {} superblocks, {} journal batches, {} pages, {} pointers",
        report.superblocks_checked,
        report.journal_batches_checked,
        report.pages_checked,
        report.pointers_checked
    ));
    if data {
        text.push_str(&format!(
            ", {} chunks ({})",
            report.chunks_checked,
            size::format(report.bytes_checked)
        ));
    }
    match report.problems.len() {
        0 => text.push_str(": no problems\n"),
        1 => text.push_str(": 1 problem\n"),
        count => text.push_str(&format!(": {count} problems\n")),
    }
    text
}

/// Draws the progress of a check or a repair on stderr, on a terminal only.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    pub(crate) fn new() -> Self {
        // A new bar draws to stderr, and hides itself where that is no terminal.
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} {eta:>5}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Self { bar }
    }
}

impl CheckObserver for Progress {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        if self.bar.message() != stage {
            self.bar.reset_eta();
            self.bar.set_message(stage.to_owned());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_lists_problems_first_and_counts_them() {
        let mut report = CheckReport {
            pages_checked: 7,
            ..CheckReport::default()
        };
        assert!(render(&report, false).ends_with("7 pages, 0 pointers: no problems\n"));
        report.problems.push("Page 3 is torn".to_owned());
        report.notes.push("Member 1 is missing".to_owned());
        let text = render(&report, true);
        assert!(text.starts_with("PROBLEM  Page 3 is torn\nnote     Member 1 is missing\n"));
        assert!(text.ends_with("0 chunks (0): 1 problem\n"), "{text}");
    }
}
