//! `tessera index drop`: no deduplication, and nothing kept for it.

use std::path::PathBuf;

use clap::Args;

use super::index_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Drop the fingerprint index, and with it deduplication
///
/// Gives back its memory and disk at once. Everything stored stays readable and
/// stays deduplicated; what is written from now on is stored anew, until
/// 'tessera index rebuild'. A served pool goes on meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera index drop tank\n  \
    tessera index drop tank --json")]
pub(crate) struct DropIndex {
    /// The pool's directory
    dir: PathBuf,
    /// Show the index as JSON
    #[arg(long)]
    json: bool,
}

impl DropIndex {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let index = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(pool.drop_index()?)
        })?;
        if self.json {
            output::print_json(&index)
        } else {
            output::print(&index_view::render(&index))
        }
    }
}
