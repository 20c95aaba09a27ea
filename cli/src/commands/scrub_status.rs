//! `tessera scrub status`: how far the scrub is, and what it has found.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::JobKind;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Show the newest scrub
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera scrub status tank\n  \
    tessera scrub status tank --json | jq .progress")]
pub(crate) struct Status {
    /// The pool's directory
    dir: PathBuf,
    /// Show it as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let job = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.newest_job(JobKind::Scrub)?)
        })?;
        if self.json {
            output::print_json(&job)
        } else {
            output::print(&job_view::render(&job))
        }
    }
}
