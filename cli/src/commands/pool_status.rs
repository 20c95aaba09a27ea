//! `tessera pool status`: health and space of a pool, served or stopped.

use std::path::{Path, PathBuf};

use clap::Args;
use tessera_engine::api::{JobKind, JobState, PoolState};

use super::{index_view, job_view, member_list};
use crate::{
    access::{self, Intent, StatusAnswer},
    args::Globals,
    moment, output, size,
};

/// Show a pool's health and space
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera pool status tank\n  \
    tessera pool status tank --json | jq .dedup_ratio")]
pub(crate) struct Status {
    /// The pool's directory
    dir: PathBuf,
    /// Show it as JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let answer = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.status()?)
        })?;
        if self.json {
            output::print_json(&answer)
        } else {
            output::print(&render(&self.dir, &answer))
        }
    }
}

/// The status for people.
pub(crate) fn render(dir: &Path, answer: &StatusAnswer) -> String {
    let pool = &answer.pool;
    let state = match pool.state {
        PoolState::Online => "online",
        PoolState::Degraded => "degraded",
        PoolState::Failed => "failed",
    };
    let explained = match pool.state {
        PoolState::Online => "",
        PoolState::Degraded => " (a member is missing or failed; all data is there)",
        PoolState::Failed => " (nothing can be written)",
    };
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{:<14}{value}\n", format!("{name}:")));
    };
    line("Pool", dir.display().to_string());
    line("UUID", pool.uuid.clone());
    line("State", format!("{}{explained}", output::state(state)));
    line(
        "Layout",
        format!(
            "{}, {} members, stripe unit {}",
            pool.level,
            pool.members.len(),
            size::format(pool.stripe_unit_bytes)
        ),
    );
    if let Some(reason) = &pool.stopped {
        line("Stopped", reason.clone());
    }
    for warning in &pool.warnings {
        line("Warning", warning.message.clone());
    }
    if let Some(losses) = &pool.losses {
        for volume in &losses.volumes {
            line(
                "Lost",
                format!("{} of volume {}", size::format(volume.bytes), volume.volume),
            );
        }
    }
    line("Capacity", size::format(pool.capacity_bytes));
    line(
        "Free",
        match pool.reclaimable_bytes {
            Some(more @ 1..) => format!(
                "{} of unique data, and about {} more once reclaimed",
                size::format(pool.free_bytes),
                size::format(more)
            ),
            _ => format!("{} of unique data", size::format(pool.free_bytes)),
        },
    );
    line(
        "Mapped",
        format!(
            "{} in {} volumes{}",
            size::format(pool.logical_bytes),
            pool.volumes,
            match pool.snapshots {
                0 => String::new(),
                count => format!(
                    ", with {count} snapshots that hold {} more",
                    size::format(pool.snapshot_bytes)
                ),
            }
        ),
    );
    line(
        "Unique",
        format!(
            "{} (dedup ratio {:.2})",
            size::format(pool.unique_bytes),
            pool.dedup_ratio
        ),
    );
    line(
        "Stored",
        format!(
            "{} (compression ratio {:.2})",
            size::format(pool.stored_bytes),
            pool.compression_ratio
        ),
    );
    if !pool.counted_exactly {
        let counted = pool.counted_unix_ms.map(moment::format);
        line(
            "Counted",
            match counted {
                Some(at) => format!("as of {at}, by samples: an estimate"),
                None => "not yet: what is unique and stored includes what is dead".to_owned(),
            },
        );
    }
    line("Index", index_view::line(&pool.index));
    line("I/O", pool.io_engine.clone());
    match &answer.server {
        Some(server) => {
            let access = if server.read_only { ", read-only" } else { "" };
            let at = server.endpoints.join(" ");
            line(
                "Served",
                format!("by process {}{access} at {at}", server.pid),
            );
        }
        None => line("Served", "no".to_owned()),
    }

    for job in &pool.jobs {
        if !matches!(job.state, JobState::Running | JobState::Paused) {
            continue;
        }
        line(
            match job.kind {
                JobKind::Rebuild => "Rebuild",
                JobKind::Scrub => "Scrub",
                JobKind::Reclaim => "Reclaim",
                JobKind::Dedup => "Dedup",
            },
            job_view::line(job),
        );
    }
    text.push_str("Members:\n");
    text.push_str(&member_list::table(&pool.members).render(2));
    text
}
