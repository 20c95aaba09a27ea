//! `tessera index rebuild`: the index anew, from what is stored.

use std::path::PathBuf;

use clap::Args;

use super::index_view;
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Make the fingerprint index anew from what is stored
///
/// After a drop, or to use more memory or disk than the sample of now was taken
/// for. A served pool's clients go on, and what has been read in is deduplicated
/// against at once; a stopped pool's index is made in the foreground.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera index rebuild tank\n  \
    tessera index rebuild tank --wait --json")]
pub(crate) struct Rebuild {
    /// The pool's directory
    dir: PathBuf,
    /// Wait for its end
    #[arg(long)]
    wait: bool,
    /// Show the index as JSON
    #[arg(long)]
    json: bool,
}

impl Rebuild {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let index = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let index = pool.rebuild_index()?;
            Ok(if self.wait || pool.is_for_command() {
                index_view::follow(pool)?
            } else {
                index
            })
        })?;
        if self.json {
            output::print_json(&index)
        } else {
            output::print(&index_view::render(&index))
        }
    }
}
