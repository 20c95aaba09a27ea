//! `tessera clone`: a new volume that begins as a snapshot.

use std::path::PathBuf;

use clap::Args;

use super::volume_show;
use crate::{
    access::{self, Intent, SnapshotName},
    args::Globals,
    output, suggest,
};

/// Make a new volume that begins as a snapshot
///
/// It shares the snapshot's space until it is written to, and is a volume like
/// any other: the snapshot and its volume may be deleted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera clone tank debian@installed vm7\n  \
    tessera clone tank vm1@monday rescue --json")]
pub(crate) struct Clone {
    /// The pool's directory
    dir: PathBuf,
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    name: SnapshotName,
    /// The new volume
    new: String,
    /// Show the new volume as JSON
    #[arg(long)]
    json: bool,
}

impl Clone {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let volume = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let made = pool.clone_snapshot(&self.name, &self.new);
            Ok(suggest::volume(pool, &self.name.volume, made)?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&volume_show::render(&volume))
        }
    }
}
