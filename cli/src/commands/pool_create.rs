//! `tessera pool create`: make a pool out of files or block devices.

use std::path::{Path, PathBuf, absolute};

use anyhow::Context;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde::Serialize;
use tessera_engine::{api::PoolSpec, pool::Pool};
use tessera_raid::Level;

use super::pool_status;
use crate::{
    access::{self, StatusAnswer},
    args::Globals,
    failure::{Failure, Kind},
    output, size,
};

/// Make a pool out of files or block devices
///
/// The members must exist, unless --files makes them as sparse files inside
/// DIR. Everything on them is lost; a member that seems to be in use is
/// refused without --force.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera pool create tank --level raid5 --files 4 --file-size 4G\n  \
    tessera pool create tank --level raid10 /dev/sdb /dev/sdc /dev/sdd /dev/sde\n  \
    tessera pool create tank --level raid6 --stripe-unit 128K /mnt/*/member.img --dry-run")]
pub(crate) struct Create {
    /// The pool's directory; made if it is missing
    dir: PathBuf,
    /// How data and redundancy are spread over the members
    #[arg(long, value_parser = level_parser())]
    level: Level,
    /// Bytes each member contributes to a stripe: a power of two from 4K to 1M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = size::parse_u32)]
    stripe_unit: u32,
    /// Make this many member files, DIR/disk0.img and so on
    #[arg(
        long,
        value_name = "COUNT",
        requires = "file_size",
        conflicts_with = "members"
    )]
    files: Option<u32>,
    /// Size of each file that --files makes
    #[arg(long, value_name = "SIZE", requires = "files", value_parser = size::parse)]
    file_size: Option<u64>,
    /// Take members that seem to hold other data or another pool
    #[arg(long)]
    force: bool,
    /// Say what would be made and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the new pool as JSON
    #[arg(long)]
    json: bool,
    /// Files or block devices, in the order of the layout
    #[arg(value_name = "MEMBER", required_unless_present = "files")]
    members: Vec<PathBuf>,
}

fn level_parser() -> impl TypedValueParser<Value = Level> {
    PossibleValuesParser::new(Level::ALL.map(Level::name)).try_map(|name| name.parse::<Level>())
}

impl Create {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        access::refuse_if_served(&self.dir, "making a new one there")?;
        let spec = self.spec()?;
        if self.dry_run {
            let plan = self.plan(&spec)?;
            return match self.json {
                true => output::print_json(&plan),
                false => output::print(&plan.render()),
            };
        }
        let status = Pool::create(&self.dir, &spec, globals.io()).map_err(Failure::from)?;
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

    fn spec(&self) -> anyhow::Result<PoolSpec> {
        let members = match self.files {
            // The level's bounds also bound what is made here.
            Some(count) if self.level.accepts(usize::try_from(count)?) => (0..count)
                .map(|i| self.dir.join(format!("disk{i}.img")))
                .collect(),
            Some(count) => {
                let wanted = self.level.members_in_words();
                return Err(Failure::new(
                    Kind::InvalidArgument,
                    format!("{} takes {wanted}, not {count}", self.level),
                )
                .into());
            }
            None => self.members.clone(),
        };
        // `pool.toml` must name them independently of today's working directory.
        let members = members
            .iter()
            .map(|path| {
                absolute(path).with_context(|| format!("{} is not a usable path", path.display()))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(PoolSpec {
            level: self.level,
            stripe_unit_bytes: self.stripe_unit,
            members,
            create_files_bytes: self.file_size,
            force: self.force,
        })
    }

    /// What would be made; fails where making it would be refused.
    fn plan(&self, spec: &PoolSpec) -> anyhow::Result<Plan> {
        if self.dir.join("pool.toml").exists() {
            return Err(Failure::new(
                Kind::AlreadyExists,
                format!("There is a pool in {} already", self.dir.display()),
            )
            .into());
        }
        if !spec.level.accepts(spec.members.len()) {
            return Err(Failure::new(
                Kind::InvalidArgument,
                format!(
                    "{} takes {}, not {}",
                    spec.level,
                    spec.level.members_in_words(),
                    spec.members.len()
                ),
            )
            .into());
        }
        let members = spec.members.iter().map(|path| planned(path, spec));
        Ok(Plan {
            dry_run: true,
            directory: self.dir.clone(),
            level: spec.level.name().to_owned(),
            stripe_unit_bytes: spec.stripe_unit_bytes,
            members: members.collect::<anyhow::Result<_>>()?,
        })
    }
}

/// What `--dry-run` tells.
#[derive(Debug, Serialize)]
struct Plan {
    dry_run: bool,
    directory: PathBuf,
    level: String,
    stripe_unit_bytes: u32,
    members: Vec<PlannedMember>,
}

#[derive(Debug, Serialize)]
struct PlannedMember {
    path: PathBuf,
    /// The size of the sparse file that would be made; null for what exists,
    /// which would lose everything on it.
    create_bytes: Option<u64>,
}

impl Plan {
    fn render(&self) -> String {
        let mut text = format!(
            "Would make a {} pool in {} with a stripe unit of {} out of\n",
            self.level,
            self.directory.display(),
            size::format(u64::from(self.stripe_unit_bytes)),
        );
        for member in &self.members {
            let what = match member.create_bytes {
                Some(bytes) => format!("a new sparse file of {}", size::format(bytes)),
                None => "everything on it would be lost".to_owned(),
            };
            text.push_str(&format!("  {}  ({what})\n", member.path.display()));
        }
        text
    }
}

fn planned(path: &Path, spec: &PoolSpec) -> anyhow::Result<PlannedMember> {
    let (kind, problem) = match (spec.create_files_bytes, path.exists()) {
        (Some(_), true) => (Kind::AlreadyExists, "exists already"),
        (None, false) => (Kind::NotFound, "does not exist"),
        (create_bytes, _) => {
            return Ok(PlannedMember {
                path: path.to_owned(),
                create_bytes,
            });
        }
    };
    let message = format!("{} {problem}", path.display());
    Err(Failure::new(kind, message).into())
}
