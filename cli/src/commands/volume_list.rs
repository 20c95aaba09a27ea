//! `tessera volume list`: all volumes of a pool.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::VolumeInfo;

use super::volume_show::{bytes, compression_name};
use crate::{
    access::{self, Intent},
    args::Globals,
    output::{self, Align, Table},
    size,
};

/// List a pool's volumes
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume list tank\n  \
    tessera volume list tank --json | jq -r '.[].name'")]
pub(crate) struct List {
    /// The pool's directory
    dir: PathBuf,
    /// Show them as a JSON array, sizes in bytes
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let volumes = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.volumes()?)
        })?;
        if self.json {
            output::print_json(&volumes)
        } else {
            output::print(&render(&volumes))
        }
    }
}

fn render(volumes: &[VolumeInfo]) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("MAPPED", Align::Right),
        ("STORED", Align::Right),
        ("EXCLUSIVE", Align::Right),
        ("SHARED", Align::Right),
        ("CHUNK", Align::Right),
        ("DEDUP", Align::Left),
        ("COMPRESSION", Align::Left),
    ]);
    for volume in volumes {
        table.row(vec![
            volume.name.clone(),
            size::format(volume.size_bytes),
            size::format(volume.logical_bytes),
            bytes(volume.space.stored_bytes),
            bytes(volume.space.exclusive_bytes),
            bytes(volume.space.shared_bytes),
            size::format(u64::from(volume.chunk_bytes)),
            volume.dedup.name().to_owned(),
            compression_name(volume.compression).to_owned(),
        ]);
    }
    table.render(0)
}
