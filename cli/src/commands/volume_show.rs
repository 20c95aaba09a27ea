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
    tessera volume show tank vm1 --json | jq .logical_bytes")]
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
    format!(
        "Volume:       {}\nSize:         {}\nMapped:       {}\nChunk size:   {}\nDedup:        {}\nCompression:  {}\nId:           {}\n",
        volume.name,
        size::format(volume.size_bytes),
        size::format(volume.logical_bytes),
        size::format(u64::from(volume.chunk_bytes)),
        volume.dedup.name(),
        compression_name(volume.compression),
        volume.id,
    )
}

/// The method's name on the command line.
pub(crate) fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::Lz4 => "lz4",
        Compression::None => "none",
    }
}
