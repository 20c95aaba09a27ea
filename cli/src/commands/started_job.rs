//! `start`, `status` and `cancel` of the jobs that one begins by hand: scrubs,
//! reclaims and deduplications. `args.rs` says of each what it is.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::JobKind;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output::{self, Outcome},
};

/// Begin one
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// The pool's directory
    dir: PathBuf,
    /// Wait for its end
    #[arg(long)]
    wait: bool,
    /// Show it as JSON
    #[arg(long)]
    json: bool,
}

impl Start {
    pub(crate) fn run(self, globals: &Globals, kind: JobKind) -> anyhow::Result<Outcome> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let job = pool.start_job(kind)?;
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

/// Show the newest one, or stop it
#[derive(Debug, Args)]
pub(crate) struct Newest {
    /// The pool's directory
    dir: PathBuf,
    /// Show it as JSON
    #[arg(long)]
    json: bool,
}

impl Newest {
    pub(crate) fn show(self, globals: &Globals, kind: JobKind) -> anyhow::Result<()> {
        let job = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.newest_job(kind)?)
        })?;
        if self.json {
            output::print_json(&job)
        } else {
            output::print(&job_view::render(&job))
        }
    }

    pub(crate) fn cancel(self, globals: &Globals, kind: JobKind) -> anyhow::Result<()> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(pool.cancel_newest(kind)?)
        })?;
        if self.json {
            output::print_json(&job)
        } else {
            output::print(&job_view::render(&job))
        }
    }
}
