//! `tessera member remove`: take a spare or a member away.

use std::path::PathBuf;

use clap::Args;

use super::{member_choice, member_list};
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Take a spare or a member away
///
/// A spare is given up, and a rebuild onto a new member is ended. A member of
/// the layout is failed for good, if the pool can do without it (else the
/// command is refused and nothing changes): when this command has ended, the
/// pool has closed the file or device, and it can be taken away. Its place
/// stays, listed as failed, until 'member replace' or a spare fills it.
/// Nothing is erased; 'member re-add' takes an unchanged member back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera member remove tank 4\n  \
    tessera member remove tank /srv/disks/spare.img")]
pub(crate) struct Remove {
    /// The pool's directory
    dir: PathBuf,
    /// The member: its index or its path
    member: String,
    /// Show the members as JSON
    #[arg(long)]
    json: bool,
}

impl Remove {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let answer = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let member = member_choice::choose(&pool.status()?.pool.members, &self.member)?;
            pool.remove_member(member)?;
            Ok(pool.status()?)
        })?;
        if self.json {
            output::print_json(&answer.pool.members)
        } else {
            output::print(&member_list::table(&answer.pool.members).render(0))
        }
    }
}
