//! `tessera volume resize`: grow a volume, or shrink it when told to.

use std::{cmp::Ordering, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::volume_show;
use crate::{
    access::{self, Intent, Resize as Change},
    args::Globals,
    failure::{Failure, Kind},
    output, size, suggest,
};

/// Grow a volume, or shrink it with --force
///
/// Shrinking throws away everything beyond the new end. Clients that are
/// connected see the new size when they connect again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume resize tank vm1 --size 40G\n  \
    tessera volume resize tank vm1 --size 10G --force --dry-run")]
pub(crate) struct Resize {
    /// The pool's directory
    dir: PathBuf,
    /// The volume
    name: String,
    /// The new size
    #[arg(long, value_parser = size::parse)]
    size: u64,
    /// Shrink, and lose what lies beyond the new end
    #[arg(long)]
    force: bool,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the volume as JSON
    #[arg(long)]
    json: bool,
}

impl Resize {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        if self.dry_run {
            return self.explain(globals);
        }
        let change = Change {
            size_bytes: self.size,
            force: self.force,
        };
        let volume = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(suggest::volume(
                pool,
                &self.name,
                pool.resize_volume(&self.name, change),
            )?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&volume_show::render(&volume))
        }
    }

    fn explain(&self, globals: &Globals) -> anyhow::Result<()> {
        let volume = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(suggest::volume(pool, &self.name, pool.volume(&self.name))?)
        })?;
        if self.size < volume.size_bytes && !self.force {
            let message = format!(
                "Shrinking {} from {} to {} loses what lies beyond: add --force",
                volume.name,
                size::format(volume.size_bytes),
                size::format(self.size)
            );
            return Err(Failure::new(Kind::InvalidArgument, message).into());
        }
        if self.json {
            return output::print_json(&Plan {
                name: volume.name,
                size_bytes: volume.size_bytes,
                new_size_bytes: self.size,
                resized: false,
            });
        }
        let (name, old, new) = (
            &volume.name,
            size::format(volume.size_bytes),
            size::format(self.size),
        );
        output::print(&match self.size.cmp(&volume.size_bytes) {
            Ordering::Equal => format!("{name} is {old} already: nothing would change\n"),
            Ordering::Greater => format!("Would grow {name} from {old} to {new}\n"),
            Ordering::Less => {
                format!("Would shrink {name} from {old} to {new} and lose what lies beyond\n")
            }
        })
    }
}

/// What `--dry-run --json` shows.
#[derive(Debug, Serialize)]
struct Plan {
    name: String,
    size_bytes: u64,
    new_size_bytes: u64,
    resized: bool,
}
