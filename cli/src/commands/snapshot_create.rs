//! `tessera snapshot create`: keep what a volume holds at this moment.

use std::path::PathBuf;

use clap::Args;

use super::snapshot_list;
use crate::{
    access::{self, Intent, SnapshotName},
    args::Globals,
    output, suggest,
};

/// Keep what a volume holds at this moment
///
/// Takes as long for a terabyte as for nothing, while clients write. To the file
/// system on the volume it is as if the power had failed: freeze it first
/// (fsfreeze, or the guest agent) where that is not enough. The snapshot takes
/// space for what changes afterwards, and is served as VOLUME@SNAPSHOT,
/// read-only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera snapshot create tank vm1@before-update\n  \
    tessera snapshot create tank vm1@$(date +%F) --json")]
pub(crate) struct Create {
    /// The pool's directory
    dir: PathBuf,
    /// The volume, and the snapshot's name
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    name: SnapshotName,
    /// Show the snapshot as JSON
    #[arg(long)]
    json: bool,
}

impl Create {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let snapshot = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let made = pool.create_snapshot(&self.name);
            Ok(suggest::volume(pool, &self.name.volume, made)?)
        })?;
        if self.json {
            output::print_json(&snapshot)
        } else {
            output::print(&snapshot_list::render(&[snapshot]))
        }
    }
}
