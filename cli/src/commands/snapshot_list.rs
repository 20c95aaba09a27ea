//! `tessera snapshot list`: the snapshots of a volume, or of all.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::SnapshotInfo;

use super::volume_show::bytes;
use crate::{
    access::{self, Intent},
    args::Globals,
    moment,
    output::{self, Align, Table},
    size, suggest,
};

/// List the snapshots of a volume, or of all, oldest first
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera snapshot list tank\n  \
    tessera snapshot list tank vm1 --json | jq -r '.[-1].name'")]
pub(crate) struct List {
    /// The pool's directory
    dir: PathBuf,
    /// Only those of this volume
    volume: Option<String>,
    /// Show them as a JSON array, sizes in bytes
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let snapshots = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            let found = pool.snapshots(self.volume.as_deref());
            Ok(match &self.volume {
                Some(volume) => suggest::volume(pool, volume, found)?,
                None => found?,
            })
        })?;
        if self.json {
            output::print_json(&snapshots)
        } else {
            output::print(&render(&snapshots))
        }
    }
}

/// A table of snapshots.
pub(super) fn render(snapshots: &[SnapshotInfo]) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("TAKEN", Align::Left),
        ("SIZE", Align::Right),
        ("MAPPED", Align::Right),
        ("STORED", Align::Right),
        ("EXCLUSIVE", Align::Right),
        ("SHARED", Align::Right),
    ]);
    for snapshot in snapshots {
        table.row(vec![
            format!("{}@{}", snapshot.volume, snapshot.name),
            moment::format(snapshot.taken_unix_ms),
            size::format(snapshot.size_bytes),
            size::format(snapshot.logical_bytes),
            bytes(snapshot.space.stored_bytes),
            bytes(snapshot.space.exclusive_bytes),
            bytes(snapshot.space.shared_bytes),
        ]);
    }
    table.render(0)
}
