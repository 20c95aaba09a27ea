//! `tessera snapshot rollback`: make a volume what it was.

use std::path::PathBuf;

use clap::Args;

use super::volume_show;
use crate::{
    access::{self, Intent, SnapshotName},
    args::Globals,
    output, size, suggest,
};

/// Make a volume what it was, and lose what came after
///
/// Content and size become those of the snapshot. Other snapshots stay, newer
/// ones too: take one first if what the volume holds now may be wanted again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera snapshot rollback tank vm1@before-update\n  \
    tessera snapshot rollback tank vm1@before-update --dry-run")]
pub(crate) struct Rollback {
    /// The pool's directory
    dir: PathBuf,
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    name: SnapshotName,
    /// Although clients are connected to the volume
    #[arg(long)]
    force: bool,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the volume as JSON; with --dry-run what would change
    #[arg(long)]
    json: bool,
}

impl Rollback {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        if self.dry_run {
            let diff = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
                super::snapshot_diff::whole(pool, name, &name.volume)
            })?;
            if self.json {
                return output::print_json(&diff);
            }
            return output::print(&format!(
                "Would make {} what {name} is: {} in {} ranges would be lost\n",
                name.volume,
                size::format(diff.changed_bytes),
                diff.ranges.len()
            ));
        }
        let volume = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let done = pool.roll_back(name, self.force);
            Ok(suggest::volume(pool, &name.volume, done)?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&volume_show::render(&volume))
        }
    }
}
