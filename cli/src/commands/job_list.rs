//! `tessera job list`: what a pool does in the background.

use std::path::PathBuf;

use clap::Args;

use super::job_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output::{self, Align, Table},
};

/// List the jobs of a pool, ended ones too
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera job list tank\n  \
    tessera job list tank --json")]
pub(crate) struct List {
    /// The pool's directory
    dir: PathBuf,
    /// Show them as JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let jobs = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.jobs()?)
        })?;
        if self.json {
            return output::print_json(&jobs);
        }
        let mut table = Table::new(&[
            ("ID", Align::Right),
            ("JOB", Align::Left),
            ("STATE", Align::Left),
        ]);
        for job in &jobs {
            table.row(vec![
                job.id.to_string(),
                job_view::kind(job).to_owned(),
                job_view::line(job),
            ]);
        }
        output::print(&table.render(0))
    }
}
