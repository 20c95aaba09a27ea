//! `tessera volume delete`: delete a volume and everything on it.

use std::path::PathBuf;

use clap::Args;

use crate::{
    access::{self, Intent},
    args::Globals,
    output, size, suggest,
};

/// Delete a volume and everything on it
///
/// It asks nothing: --dry-run shows what would go. A volume that a client is
/// connected to is not deleted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera volume delete tank vm1 --dry-run\n  \
    tessera volume delete tank vm1")]
pub(crate) struct Delete {
    /// The pool's directory
    dir: PathBuf,
    /// The volume
    name: String,
    /// Say what would be deleted and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Delete {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        if self.dry_run {
            let volume = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
                Ok(suggest::volume(pool, &self.name, pool.volume(&self.name))?)
            })?;
            return output::print(&format!(
                "Would delete {}: {}, of which {} are mapped\n",
                volume.name,
                size::format(volume.size_bytes),
                size::format(volume.logical_bytes)
            ));
        }
        access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            Ok(suggest::volume(
                pool,
                &self.name,
                pool.delete_volume(&self.name),
            )?)
        })?;
        output::remark(&format!("Deleted {}", self.name));
        Ok(())
    }
}
