//! `tessera member replace` and `re-add`: fill a device with what a member holds.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::JobInfo;

use super::{job_view, member_choice};
use crate::{
    access::{self, Intent, Management, NewDevice},
    args::Globals,
    output::{self, Outcome},
};

/// Put a new device in a member's place
///
/// A healthy member is copied and stays in use until the copy is whole, so
/// nothing is less safe meanwhile; a failed or missing one is reconstructed
/// from the others. The new device must be as large as the pool needs, and may
/// be larger. A file that does not exist is made. On a served pool this goes on
/// in the background; on a stopped one in the foreground.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera member replace tank 2 /srv/disks/new.img\n  \
    tessera member replace tank /dev/sdc /dev/sdf --wait")]
pub(crate) struct Replace {
    /// The pool's directory
    dir: PathBuf,
    /// The member: its index or its path
    member: String,
    /// The new device or file
    new_path: PathBuf,
    /// Lose whatever the new device holds
    #[arg(long)]
    force: bool,
    /// Wait until it is in use
    #[arg(long)]
    wait: bool,
    /// Show the job as JSON
    #[arg(long)]
    json: bool,
}

impl Replace {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        let device = NewDevice {
            path: member_choice::absolute(&self.new_path)?,
            force: self.force,
        };
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let member = member_choice::choose(&pool.status()?.pool.members, &self.member)?;
            let job = pool.replace_member(member, &device)?;
            finish(pool, job, self.wait)
        })?;
        show(&job, self.json)
    }
}

/// Bring a member back that was away for a while
///
/// Only what was written meanwhile is copied to it. It must be the pool's own;
/// otherwise use 'replace', which copies everything.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera member re-add tank 2\n  \
    tessera member re-add tank 2 /mnt/elsewhere/c.img")]
pub(crate) struct Readd {
    /// The pool's directory
    dir: PathBuf,
    /// The member: its index or its path
    member: String,
    /// Where it is now [default: where it was]
    path: Option<PathBuf>,
    /// Wait until it is in use
    #[arg(long)]
    wait: bool,
    /// Show the job as JSON
    #[arg(long)]
    json: bool,
}

impl Readd {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<Outcome> {
        let job = access::with_pool(&self.dir, Intent::Change, globals.io(), |pool| {
            let members = pool.status()?.pool.members;
            let member = member_choice::choose(&members, &self.member)?;
            let was_at = || {
                let row = members.iter().find(|row| row.index == member);
                row.map_or_else(PathBuf::new, |row| PathBuf::from(&row.path))
            };
            let path = self.path.clone().unwrap_or_else(was_at);
            let job = pool.readd_member(member, &member_choice::absolute(&path)?)?;
            finish(pool, job, self.wait)
        })?;
        show(&job, self.json)
    }
}

/// Sees the job to its end where it would end with this command.
fn finish(pool: &dyn Management, job: JobInfo, wait: bool) -> anyhow::Result<JobInfo> {
    Ok(if wait || pool.is_for_command() {
        job_view::follow(pool, job.id)?
    } else {
        job
    })
}

fn show(job: &JobInfo, json: bool) -> anyhow::Result<Outcome> {
    if json {
        output::print_json(job)?;
    } else {
        output::print(&job_view::render(job))?;
    }
    Ok(job_view::outcome(job)?)
}
