//! The commands, one file each.

pub(crate) mod attach;
pub(crate) mod clone;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod detach;
pub(crate) mod estimate;
pub(crate) mod index_drop;
pub(crate) mod index_rebuild;
pub(crate) mod index_status;
pub(crate) mod index_view;
pub(crate) mod job_control;
pub(crate) mod job_follow;
pub(crate) mod job_list;
pub(crate) mod job_view;
pub(crate) mod man;
pub(crate) mod member_add_spare;
pub(crate) mod member_choice;
pub(crate) mod member_fail;
pub(crate) mod member_list;
pub(crate) mod member_remove;
pub(crate) mod member_replace;
pub(crate) mod mount;
pub(crate) mod pool_check;
pub(crate) mod pool_create;
pub(crate) mod pool_import;
pub(crate) mod pool_repair;
pub(crate) mod pool_set;
pub(crate) mod pool_status;
pub(crate) mod serve;
pub(crate) mod snapshot_create;
pub(crate) mod snapshot_delete;
pub(crate) mod snapshot_diff;
pub(crate) mod snapshot_list;
pub(crate) mod snapshot_rollback;
pub(crate) mod started_job;
pub(crate) mod volume_create;
pub(crate) mod volume_delete;
pub(crate) mod volume_list;
pub(crate) mod volume_rename;
pub(crate) mod volume_resize;
pub(crate) mod volume_set;
pub(crate) mod volume_show;

use tessera_engine::api::JobKind;

use crate::{
    access::JobControl,
    args::{
        Cli, Command, ConfigCommand, DedupCommand, GcCommand, IndexCommand, JobCommand,
        MemberCommand, PoolCommand, ScrubCommand, SnapshotCommand, VolumeCommand,
    },
    output::Outcome,
};

/// Runs what the command line asks for.
pub(crate) fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let globals = &cli.globals;
    match cli.command {
        Command::Pool(PoolCommand::Create(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Status(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Import(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Check(command)) => return command.run(globals),
        Command::Pool(PoolCommand::Set(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Repair(command)) => return command.run(globals),
        Command::Member(MemberCommand::List(command)) => command.run(globals)?,
        Command::Member(MemberCommand::Fail(command)) => command.run(globals)?,
        Command::Member(MemberCommand::Remove(command)) => command.run(globals)?,
        Command::Member(MemberCommand::Replace(command)) => return command.run(globals),
        Command::Member(MemberCommand::ReAdd(command)) => return command.run(globals),
        Command::Member(MemberCommand::AddSpare(command)) => command.run(globals)?,
        Command::Scrub(ScrubCommand::Start(job)) => return job.run(globals, JobKind::Scrub),
        Command::Scrub(ScrubCommand::Status(job)) => job.show(globals, JobKind::Scrub)?,
        Command::Scrub(ScrubCommand::Cancel(job)) => job.cancel(globals, JobKind::Scrub)?,
        Command::Gc(GcCommand::Start(job)) => return job.run(globals, JobKind::Reclaim),
        Command::Gc(GcCommand::Status(job)) => job.show(globals, JobKind::Reclaim)?,
        Command::Gc(GcCommand::Cancel(job)) => job.cancel(globals, JobKind::Reclaim)?,
        Command::Dedup(DedupCommand::Start(job)) => return job.run(globals, JobKind::Dedup),
        Command::Dedup(DedupCommand::Status(job)) => job.show(globals, JobKind::Dedup)?,
        Command::Dedup(DedupCommand::Cancel(job)) => job.cancel(globals, JobKind::Dedup)?,
        Command::Index(IndexCommand::Status(command)) => command.run(globals)?,
        Command::Index(IndexCommand::Drop(command)) => command.run(globals)?,
        Command::Index(IndexCommand::Rebuild(command)) => command.run(globals)?,
        Command::Job(JobCommand::List(command)) => command.run(globals)?,
        Command::Job(JobCommand::Follow(command)) => return command.run(globals),
        Command::Job(JobCommand::Pause(command)) => command.run(globals, JobControl::Pause)?,
        Command::Job(JobCommand::Resume(command)) => command.run(globals, JobControl::Resume)?,
        Command::Job(JobCommand::Cancel(command)) => command.run(globals, JobControl::Cancel)?,
        Command::Volume(VolumeCommand::Create(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::List(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Show(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Resize(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Rename(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Set(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Delete(command)) => command.run(globals)?,
        Command::Snapshot(SnapshotCommand::Create(command)) => command.run(globals)?,
        Command::Snapshot(SnapshotCommand::List(command)) => command.run(globals)?,
        Command::Snapshot(SnapshotCommand::Delete(command)) => command.run(globals)?,
        Command::Snapshot(SnapshotCommand::Rollback(command)) => command.run(globals)?,
        Command::Snapshot(SnapshotCommand::Diff(command)) => command.run(globals)?,
        Command::Clone(command) => command.run(globals)?,
        Command::Serve(command) => command.run(globals)?,
        Command::Mount(command) => command.run(globals)?,
        Command::Attach(command) => command.run()?,
        Command::Detach(command) => command.run()?,
        Command::Config(ConfigCommand::Check(command)) => command.run()?,
        Command::Config(ConfigCommand::Example(command)) => command.run()?,
        Command::Estimate(command) => command.run()?,
        Command::Completions(command) => command.run()?,
        Command::Man(command) => command.run()?,
    }
    Ok(Outcome::Done)
}
