//! `tessera volume set`: what can be changed of a volume in use.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tessera_engine::api::VolumeChange;

use super::{
    volume_create::{CompressionArg, DedupArg},
    volume_show,
};
use crate::{
    access::{self, Intent},
    args::Globals,
    output, suggest,
};

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Show a volume's settings, or change some
///
/// They hold at once for new writes, also while clients use the volume. What
/// is stored stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume set tank vm1 --dedup post\n  \
    tessera volume set tank vm1 --dedup off --compression none --json\n  \
    tessera volume set tank vm1 --allow-shrink on")]
pub(crate) struct Set {
    /// The pool's directory
    dir: PathBuf,
    /// The volume
    name: String,
    /// When new writes are deduplicated
    #[arg(long, value_enum)]
    dedup: Option<DedupArg>,
    /// Whether new writes are compressed
    #[arg(long, value_enum)]
    compression: Option<CompressionArg>,
    /// Whether truncating its file in a mount makes it smaller
    #[arg(long, value_enum, value_name = "ON|OFF")]
    allow_shrink: Option<Switch>,
    /// Show the volume as JSON
    #[arg(long)]
    json: bool,
}

impl Set {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let change = VolumeChange {
            dedup: self.dedup.map(Into::into),
            compression: self.compression.map(Into::into),
            allow_shrink: self.allow_shrink.map(|switch| switch == Switch::On),
        };
        let changes = change != VolumeChange::default();
        let intent = if changes {
            Intent::Change
        } else {
            Intent::Look
        };
        let volume = access::with_pool(&self.dir, intent, globals.io(), |pool| {
            let answer = if changes {
                pool.set_volume(&self.name, &change)
            } else {
                pool.volume(&self.name)
            };
            Ok(suggest::volume(pool, &self.name, answer)?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&volume_show::render(&volume))
        }
    }
}
