//! `tessera pool import`: make the pool directory again from the members.

use std::path::{Path, PathBuf, absolute};

use anyhow::Context;
use clap::Args;
use tessera_engine::pool::Pool;

use super::pool_status;
use crate::{
    access::{self, StatusAnswer},
    args::Globals,
    failure::{Failure, Kind},
    output,
};

/// Make a pool directory again from the members alone
///
/// The members may be given in any order and may have moved. Members that are
/// missing leave the pool degraded, as far as its level allows.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera pool import tank /mnt/a/disk2.img /mnt/b/disk0.img /mnt/c/disk1.img\n  \
    tessera pool import tank /dev/sd[b-e]")]
pub(crate) struct Import {
    /// The pool's directory; made if it is missing
    dir: PathBuf,
    /// Go on although the missing members could have been written without these
    #[arg(long)]
    force: bool,
    /// Show the pool as JSON
    #[arg(long)]
    json: bool,
    /// Files or block devices of one pool, in any order
    #[arg(value_name = "MEMBER", required = true)]
    members: Vec<PathBuf>,
}

impl Import {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        access::refuse_if_served(&self.dir, "importing")?;
        let members: Vec<PathBuf> = self
            .members
            .iter()
            .map(|path| existing(path))
            .collect::<anyhow::Result<_>>()?;
        let status =
            Pool::import(&self.dir, &members, self.force, globals.io()).map_err(Failure::from)?;
        let answer = StatusAnswer {
            pool: status,
            server: None,
        };
        if self.json {
            output::print_json(&answer)
        } else {
            output::print(&pool_status::render(&self.dir, &answer))
        }
    }
}

/// A member that is named must be there: only one left out is missing. The
/// path becomes absolute, because `pool.toml` must name it independently of
/// today's working directory.
fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    if let Err(error) = path.metadata() {
        return Err(Failure::new(
            Kind::NotFound,
            format!(
                "Member {} cannot be found ({error}): leave it out if it is lost",
                path.display()
            ),
        )
        .into());
    }
    absolute(path).with_context(|| format!("{} is not a usable path", path.display()))
}
