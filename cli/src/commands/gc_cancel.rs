//! `tessera gc cancel`: stop the reclaim that runs.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::JobKind;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Stop the reclaim that runs; what it has moved stays moved
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera gc cancel tank")]
pub(crate) struct Cancel {
    /// The pool's directory
    dir: PathBuf,
    /// Show it as JSON
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(pool.cancel_newest(JobKind::Reclaim)?)
        })?;
        if self.json {
            output::print_json(&job)
        } else {
            output::print(&job_view::render(&job))
        }
    }
}
