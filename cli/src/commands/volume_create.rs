//! `tessera volume create`: make a thin volume.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tessera_engine::api::{Compression, DedupMode, VolumeSpec};

use super::volume_show;
use crate::{
    access::{self, Intent},
    args::Globals,
    output, size,
};

/// Make a thin volume
///
/// A volume takes no space until something is written to it, and its size may
/// exceed the pool's.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume create tank vm1 --size 20G\n  \
    tessera volume create tank media --size 2T --chunk-size 64K --dedup off --compression none")]
pub(crate) struct Create {
    /// The pool's directory
    dir: PathBuf,
    /// 1 to 128 of A-Z a-z 0-9 . _ -, not starting with . or -
    name: String,
    /// Size of the disk
    #[arg(long, value_parser = size::parse)]
    size: u64,
    /// Unit of deduplication: 4K, 8K, 16K, 32K or 64K
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse_u32)]
    chunk_size: u32,
    /// When new writes are deduplicated
    #[arg(long, value_enum, default_value = "inline")]
    dedup: DedupArg,
    /// Whether new writes are compressed
    #[arg(long, value_enum, default_value = "lz4")]
    compression: CompressionArg,
    /// Show the new volume as JSON
    #[arg(long)]
    json: bool,
}

/// How duplicates of new writes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DedupArg {
    /// In the write path
    Inline,
    /// Later, by 'tessera dedup': writes are as fast as without
    Post,
    /// Never
    Off,
}

impl From<DedupArg> for DedupMode {
    fn from(arg: DedupArg) -> Self {
        match arg {
            DedupArg::Inline => Self::Inline,
            DedupArg::Post => Self::Post,
            DedupArg::Off => Self::Off,
        }
    }
}

/// How new writes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionArg {
    /// LZ4 where it saves at least an eighth
    Lz4,
    /// Never
    None,
}

impl From<CompressionArg> for Compression {
    fn from(arg: CompressionArg) -> Self {
        match arg {
            CompressionArg::Lz4 => Self::Lz4,
            CompressionArg::None => Self::None,
        }
    }
}

impl Create {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let spec = VolumeSpec {
            name: self.name,
            size_bytes: self.size,
            chunk_bytes: self.chunk_size,
            dedup: self.dedup.into(),
            compression: self.compression.into(),
        };
        let volume = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(pool.create_volume(&spec)?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&volume_show::render(&volume))
        }
    }
}
