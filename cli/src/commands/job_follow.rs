//! `tessera job follow`: wait for a job, with a bar on a terminal.

use std::path::PathBuf;

use clap::Args;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    failure::{Failure, Kind},
    output::{self, Outcome},
};

/// Wait until a job ends or is paused
///
/// Without ID it is the newest one. A stopped pool's jobs go on in this
/// command. Exit status 1 means that the job has failed, 2 that it found
/// something to be lost.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera job follow tank\n  \
    tessera job follow tank 3 --json")]
pub(crate) struct Follow {
    /// The pool's directory
    dir: PathBuf,
    /// The job's number, as listed
    id: Option<u64>,
    /// Show the job at its end as JSON
    #[arg(long)]
    json: bool,
}

impl Follow {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let id = match self.id {
                Some(id) => id,
                None => newest(&pool.jobs()?)?,
            };
            Ok(job_view::follow(pool, id)?)
        })?;
        if self.json {
            output::print_json(&job)?;
        } else {
            output::print(&job_view::render(&job))?;
        }
        Ok(job_view::outcome(&job)?)
    }
}

fn newest(jobs: &[tessera_engine::api::JobInfo]) -> Result<u64, Failure> {
    jobs.iter()
        .map(|job| job.id)
        .max()
        .ok_or_else(|| Failure::new(Kind::NotFound, "The pool has no jobs"))
}
