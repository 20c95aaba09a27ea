//! `tessera member fail`: stop using a member.

use std::path::PathBuf;

use clap::Args;

use super::{member_choice, member_list};
use crate::{
    access::{self, Intent},
    args::Globals,
    output,
};

/// Stop using a member that the pool can do without
///
/// The pool goes on without it, and a spare takes its place if there is one.
/// The member is not erased; while it misses little, 're-add' brings it back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera member fail tank 2\n  \
    tessera member fail tank /srv/disks/c.img")]
pub(crate) struct Fail {
    /// The pool's directory
    dir: PathBuf,
    /// The member: its index or its path
    member: String,
    /// Show the members as JSON
    #[arg(long)]
    json: bool,
}

impl Fail {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let answer = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let member = member_choice::choose(&pool.status()?.pool.members, &self.member)?;
            pool.fail_member(member, "it was failed by hand")?;
            Ok(pool.status()?)
        })?;
        if self.json {
            output::print_json(&answer.pool.members)
        } else {
            output::print(&member_list::table(&answer.pool.members).render(0))
        }
    }
}
