//! `tessera volume delete`: delete a volume and everything on it.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tessera_engine::api::VolumeInfo;

use crate::{
    access::{self, Intent},
    args::Globals,
    output, size, suggest,
};

/// Delete a volume and everything on it
///
/// It asks nothing: --dry-run shows what would go. A volume that a client is
/// connected to is not deleted, and one that has snapshots only with them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume delete tank vm1 --dry-run\n  \
    tessera volume delete tank vm1 --snapshots")]
pub(crate) struct Delete {
    /// The pool's directory
    dir: PathBuf,
    /// The volume
    name: String,
    /// Delete its snapshots as well
    #[arg(long)]
    snapshots: bool,
    /// Say what would be deleted and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the volume as JSON, and whether it was deleted
    #[arg(long)]
    json: bool,
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Answer {
    /// It is gone; otherwise it would have gone.
    deleted: bool,
    /// How many it has.
    snapshots: usize,
    #[serde(flatten)]
    volume: VolumeInfo,
}

impl Delete {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let intent = if self.dry_run {
            Intent::Look
        } else {
            Intent::Change
        };
        let answer = access::with_pool(&self.dir, intent, globals.io(), |pool| {
            let volume = suggest::volume(pool, &self.name, pool.volume(&self.name))?;
            let snapshots = pool.snapshots(Some(&self.name))?.len();
            if !self.dry_run {
                pool.delete_volume(&self.name, self.snapshots)?;
            }
            Ok(Answer {
                deleted: !self.dry_run,
                snapshots,
                volume,
            })
        })?;
        if self.json {
            return output::print_json(&answer);
        }
        let volume = &answer.volume;
        if answer.deleted {
            output::remark(&format!("Deleted {}", volume.name));
            return Ok(());
        }
        output::print(&format!(
            "Would delete {}: {}, of which {} are mapped{}\n",
            volume.name,
            size::format(volume.size_bytes),
            size::format(volume.logical_bytes),
            match (answer.snapshots, self.snapshots) {
                (0, _) => String::new(),
                (count, true) => format!(", and {count} snapshots"),
                (count, false) => format!(", but for its {count} snapshots: add --snapshots"),
            }
        ))
    }
}
