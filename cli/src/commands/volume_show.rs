//! `tessera volume show`: one volume.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::{Compression, VolumeInfo};

use crate::{
    access::{self, Intent},
    args::Globals,
    output, size, suggest,
};

/// Show one volume
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume show tank vm1\n  \
    tessera volume show tank vm1 --json | jq .exclusive_bytes")]
pub(crate) struct Show {
    /// The pool's directory
    dir: PathBuf,
    /// The volume
    name: String,
    /// Show it as JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let volume = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(suggest::volume(pool, &self.name, pool.volume(&self.name))?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&render(&volume))
        }
    }
}

/// A volume for people.
pub(crate) fn render(volume: &VolumeInfo) -> String {
    let space = &volume.space;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{:<14}{value}\n", format!("{name}:")));
    };
    line("Volume", volume.name.clone());
    line("Size", size::format(volume.size_bytes));
    line("Mapped", size::format(volume.logical_bytes));
    if let (Some(unique), Some(stored), Some(exclusive), Some(shared)) = (
        space.unique_bytes,
        space.stored_bytes,
        space.exclusive_bytes,
        space.shared_bytes,
    ) {
        line("Unique", size::format(unique));
        line("Stored", size::format(stored));
        let exclusive = size::format(exclusive);
        line(
            "Exclusive",
            format!("{exclusive} (deleting it alone frees this)"),
        );
        line("Shared", size::format(shared));
    }
    line("Chunk size", size::format(u64::from(volume.chunk_bytes)));
    line("Dedup", volume.dedup.name().to_owned());
    line(
        "Compression",
        compression_name(volume.compression).to_owned(),
    );
    line("Shrinking", shrinking(volume).to_owned());
    line("Id", volume.id.to_string());
    text
}

fn shrinking(volume: &VolumeInfo) -> &'static str {
    match volume.allow_shrink {
        true => "allowed through a mount",
        false => "only with --force",
    }
}

/// Bytes that may not have been counted.
pub(crate) fn bytes(counted: Option<u64>) -> String {
    counted.map_or_else(|| "-".to_owned(), size::format)
}

/// The method's name on the command line.
pub(crate) fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::Lz4 => "lz4",
        Compression::None => "none",
    }
}
