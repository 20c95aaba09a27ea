//! `tessera index status`: what the fingerprint index takes and leaves out.

use std::path::PathBuf;

use clap::Args;

use super::index_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Show what the fingerprint index takes, and what it leaves out
///
/// When fingerprints outgrow the memory or disk given, a sample is kept: one
/// chunk of a run of duplicates then still finds the others, while duplicates
/// scattered alone are stored again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera index status tank\n  \
    tessera index status tank --json | jq .sampled_one_in")]
pub(crate) struct Status {
    /// The pool's directory
    dir: PathBuf,
    /// Show it as JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let index = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.index()?)
        })?;
        if self.json {
            output::print_json(&index)
        } else {
            output::print(&index_view::render(&index))
        }
    }
}
