//! `tessera snapshot delete`: give up a snapshot and the space only it holds.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::{
    access::{self, Intent, SnapshotName},
    args::Globals,
    failure::{Failure, Kind},
    output, suggest,
};

/// Delete a snapshot
///
/// Other snapshots and clones do not need it. What only it held becomes free in
/// the background. A snapshot that a client is connected to is not deleted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera snapshot delete tank vm1@before-update\n  \
    tessera snapshot delete tank vm1@before-update --dry-run")]
pub(crate) struct Delete {
    /// The pool's directory
    dir: PathBuf,
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    name: SnapshotName,
    /// Say what would be deleted and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Show what was deleted as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Answer {
    /// It is gone; otherwise it would have gone.
    deleted: bool,
    volume: String,
    name: String,
}

impl Delete {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let name = &self.name;
        let intent = match self.dry_run {
            true => Intent::Look,
            false => Intent::Change,
        };
        access::with_pool(&self.dir, intent, globals.io(), |pool| {
            if !self.dry_run {
                let deleted = pool.delete_snapshot(name);
                return Ok(suggest::volume(pool, &name.volume, deleted)?);
            }
            let found = pool.snapshots(Some(&name.volume));
            let known = suggest::volume(pool, &name.volume, found)?;
            if known.iter().any(|known| known.name == name.snapshot) {
                return Ok(());
            }
            let message = format!("There is no snapshot \"{name}\"");
            Err(Failure::new(Kind::NotFound, message).into())
        })?;
        if self.json {
            return output::print_json(&Answer {
                deleted: !self.dry_run,
                volume: name.volume.clone(),
                name: name.snapshot.clone(),
            });
        }
        if self.dry_run {
            return output::print(&format!("Would delete {name}\n"));
        }
        output::remark(&format!("Deleted {name}"));
        Ok(())
    }
}
