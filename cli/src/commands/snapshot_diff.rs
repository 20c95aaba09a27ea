//! `tessera snapshot diff`: which ranges changed.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::SnapshotDiff;

use crate::{
    access::{self, DiffPart, Intent, Management, SnapshotName},
    args::Globals,
    output::{self, Align, Table},
    size, suggest,
};

/// Show which ranges changed since a snapshot
///
/// Compares maps, not data, and only what the two do not share: the cost is in
/// what changed. Every byte that reads differently is in a range; what was
/// written again as it was may be, too. Of a volume in use, what changes
/// meanwhile may be told or not: to copy, compare two snapshots.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera snapshot diff tank vm1@monday\n  \
    tessera snapshot diff tank vm1@monday vm1@tuesday --json | jq .changed_bytes")]
pub(crate) struct Diff {
    /// The pool's directory
    dir: PathBuf,
    /// The older snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    from: SnapshotName,
    /// The newer snapshot, or a volume [default: the volume as it is]
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    to: Option<String>,
    /// Show it as JSON, in bytes
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let to = self.to.as_ref().unwrap_or(&self.from.volume);
        let diff = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            whole(pool, &self.from, to)
        })?;
        if self.json {
            return output::print_json(&diff);
        }
        let mut table = Table::new(&[("OFFSET", Align::Right), ("LENGTH", Align::Right)]);
        for range in &diff.ranges {
            table.row(vec![range.offset.to_string(), range.length.to_string()]);
        }
        let total = size::format(diff.changed_bytes);
        output::remark(&format!("{total} in {} ranges", diff.ranges.len()));
        output::print(&table.render(0))
    }
}

/// All parts of a difference as one.
pub(super) fn whole(
    pool: &dyn Management,
    from: &SnapshotName,
    to: &str,
) -> anyhow::Result<SnapshotDiff> {
    let part = |offset| {
        let found = pool.snapshot_diff(from, to, DiffPart::from(offset));
        suggest::volume(pool, &from.volume, found)
    };
    let mut diff = part(0)?;
    while diff.end < diff.to_bytes {
        let more = part(diff.end)?;
        anyhow::ensure!(
            more.end > diff.end,
            "The volume has been made smaller meanwhile"
        );
        diff.changed_bytes += more.changed_bytes;
        diff.end = more.end;
        diff.to_bytes = more.to_bytes;
        for range in more.ranges {
            match diff.ranges.last_mut() {
                Some(last) if last.offset + last.length == range.offset => {
                    last.length += range.length;
                }
                _ => diff.ranges.push(range),
            }
        }
    }
    Ok(diff)
}
