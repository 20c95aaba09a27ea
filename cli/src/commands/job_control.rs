//! `tessera job pause`, `resume` and `cancel`.

use std::path::PathBuf;

use clap::Args;

use super::job_view;
use crate::{
    access::{self, Intent, JobControl},
    args::Globals,
    output,
};

/// Which job, and how to show it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera job pause tank 3\n  \
    tessera job resume tank 3\n  \
    tessera job cancel tank 3")]
pub(crate) struct Control {
    /// The pool's directory
    dir: PathBuf,
    /// The job's number, as listed
    id: u64,
    /// Show the job as JSON
    #[arg(long)]
    json: bool,
}

impl Control {
    pub(crate) fn run(self, globals: &Globals, control: JobControl) -> anyhow::Result<()> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(pool.control_job(self.id, control)?)
        })?;
        if self.json {
            output::print_json(&job)
        } else {
            output::print(&job_view::render(&job))
        }
    }
}
