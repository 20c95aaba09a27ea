//! `tessera volume rename`: give a volume another name.

use std::path::PathBuf;

use clap::Args;

use super::volume_show;
use crate::{
    access::{self, Intent},
    args::Globals,
    output, suggest,
};

/// Give a volume another name
///
/// Its export is named like it, so clients connect to the new name from then
/// on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera volume rename tank vm1 web1")]
pub(crate) struct Rename {
    /// The pool's directory
    dir: PathBuf,
    /// The volume
    name: String,
    /// Its new name
    new: String,
    /// Show the volume as JSON
    #[arg(long)]
    json: bool,
}

impl Rename {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let volume = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(suggest::volume(
                pool,
                &self.name,
                pool.rename_volume(&self.name, &self.new),
            )?)
        })?;
        if self.json {
            output::print_json(&volume)
        } else {
            output::print(&volume_show::render(&volume))
        }
    }
}
