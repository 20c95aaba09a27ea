//! `tessera member add-spare`: keep a device ready.

use std::path::PathBuf;

use clap::Args;

use super::{member_choice, member_list};
use crate::{
    access::{self, Intent, NewDevice},
    args::Globals,
    output,
};

/// Keep a device ready to take a failed member's place
///
/// The pool starts to rebuild onto it by itself as soon as a member fails.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera member add-spare tank /srv/disks/spare.img")]
pub(crate) struct AddSpare {
    /// The pool's directory
    dir: PathBuf,
    /// The device or file; a file that does not exist is made
    path: PathBuf,
    /// Lose whatever it holds
    #[arg(long)]
    force: bool,
    /// Show the members as JSON
    #[arg(long)]
    json: bool,
}

impl AddSpare {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let device = NewDevice {
            path: member_choice::absolute(&self.path)?,
            force: self.force,
        };
        let answer = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            pool.add_spare(&device)?;
            Ok(pool.status()?)
        })?;
        if self.json {
            output::print_json(&answer.pool.members)
        } else {
            output::print(&member_list::table(&answer.pool.members).render(0))
        }
    }
}
