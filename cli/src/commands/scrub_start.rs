//! `tessera scrub start`: verify and mend a pool in use.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::JobKind;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output::{self, Outcome},
};

/// Verify every copy of everything, and mend what is wrong
///
/// Reads every chunk, page, summary, parity, journal and superblock copy,
/// knows by checksum and hash which copy is wrong, and writes the right one
/// over it. A served pool is scrubbed in the background while clients go on;
/// a stopped one in the foreground, and an interrupted scrub goes on later.
/// Exit status 2 means that something is lost.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera scrub start tank\n  \
    tessera scrub start tank --wait --json")]
pub(crate) struct Start {
    /// The pool's directory
    dir: PathBuf,
    /// Wait for its end
    #[arg(long)]
    wait: bool,
    /// Show the scrub as JSON
    #[arg(long)]
    json: bool,
}

impl Start {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let job = pool.start_job(JobKind::Scrub)?;
            Ok(if self.wait || pool.is_for_command() {
                job_view::follow(pool, job.id)?
            } else {
                job
            })
        })?;
        if self.json {
            output::print_json(&job)?;
        } else {
            output::print(&job_view::render(&job))?;
        }
        Ok(job_view::outcome(&job)?)
    }
}
