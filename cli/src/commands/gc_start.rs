//! `tessera gc start`: give back what nothing uses any more.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::JobKind;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output::{self, Outcome},
};

/// Give back the space of what nothing uses any more
///
/// Frees segments that hold nothing live, and moves what is live out of
/// segments that are mostly dead. A pool does so by itself when less than a
/// quarter of it is free; this is for having the space now. A served pool is
/// reclaimed in the background while clients go on; a stopped one in the
/// foreground, and an interrupted reclaim begins again where it matters.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera gc start tank\n  \
    tessera gc start tank --wait --json")]
pub(crate) struct Start {
    /// The pool's directory
    dir: PathBuf,
    /// Wait for its end
    #[arg(long)]
    wait: bool,
    /// Show the reclaim as JSON
    #[arg(long)]
    json: bool,
}

impl Start {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let job = pool.start_job(JobKind::Reclaim)?;
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
