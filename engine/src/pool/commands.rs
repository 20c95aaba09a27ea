//! What commands ask of an open pool, of one that is served and of one that a
//! command opens for itself alike. The work is in the modules that each call
//! leads to.

use std::path::Path;

use super::Pool;
use crate::{
    api::{
        IndexInfo, JobInfo, JobKind, LossReport, MemberStatus, PoolSettings, SettingsChange,
        SnapshotDiff, SnapshotInfo, VolumeChange, VolumeInfo, VolumeSpec,
    },
    error::EngineError,
};

impl Pool {
    /// Creates a thin volume; durable on return.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`, `NoSpace`, or the pool's failure.
    pub fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, EngineError> {
        self.engine.create_volume(spec)
    }

    /// Changes a volume's size; durable on return. A smaller size needs
    /// `force`, and what is cut off is gone.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument`, or the pool's failure.
    pub fn resize_volume(
        &self,
        name: &str,
        size_bytes: u64,
        force: bool,
    ) -> Result<VolumeInfo, EngineError> {
        self.engine.resize_volume(name, size_bytes, force)
    }

    /// Renames a volume; durable on return. Attached clients are not disturbed.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, `InvalidArgument`, or the pool's failure.
    pub fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, EngineError> {
        self.engine.rename_volume(old, new)
    }

    /// Changes how new writes of a volume are treated, under its clients if it
    /// has any; durable on return. What is stored stays as it is.
    ///
    /// # Errors
    /// `NotFound`, or the pool's failure.
    pub fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeInfo, EngineError> {
        self.engine.set_volume(name, change)
    }

    /// Deletes a volume that no client uses; durable on return. Its space
    /// comes back in the background.
    ///
    /// # Errors
    /// `NotFound`, `Busy` (also where it has snapshots), or the pool's failure.
    pub fn delete_volume(&self, name: &str) -> Result<(), EngineError> {
        self.engine.delete_volume(name, false)
    }

    /// The same with all its snapshots.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, or the pool's failure.
    pub fn delete_volume_and_snapshots(&self, name: &str) -> Result<(), EngineError> {
        self.engine.delete_volume(name, true)
    }

    /// Takes a snapshot: what the volume holds at this moment, whatever writes
    /// are under way. Takes as long for a terabyte as for nothing; durable on
    /// return.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, `InvalidArgument`, `NoSpace`, or the pool's
    /// failure.
    pub fn create_snapshot(&self, volume: &str, name: &str) -> Result<SnapshotInfo, EngineError> {
        self.engine.create_snapshot(volume, name)
    }

    /// The snapshots of a volume, or of all, by volume and then by age.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, EngineError> {
        self.engine.snapshot_infos(volume)
    }

    /// Deletes a snapshot that no client uses; durable on return. What only it
    /// held comes back in the background.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, or the pool's failure.
    pub fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), EngineError> {
        self.engine.delete_snapshot(volume, name)
    }

    /// Gives a volume the content and the size of one of its snapshots; durable
    /// on return. Other snapshots stay, also newer ones. A volume that clients
    /// use needs `force`.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, or the pool's failure.
    pub fn roll_back(
        &self,
        volume: &str,
        snapshot: &str,
        force: bool,
    ) -> Result<VolumeInfo, EngineError> {
        self.engine.roll_back(volume, snapshot, force)
    }

    /// What reads differently in `to`, a volume or a `VOLUME@SNAPSHOT`, than in
    /// `from`, from `offset` on and in at most `max` ranges (at least one);
    /// `end` says where to go on. Ranges that were written with the bytes they had may be among
    /// them. Of a volume that is written to meanwhile, what changes during the
    /// search may be told or not.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` where chunks are of different sizes, or a
    /// damaged page.
    pub fn snapshot_diff(
        &self,
        from: &str,
        to: &str,
        offset: u64,
        max: usize,
    ) -> Result<SnapshotDiff, EngineError> {
        self.engine.snapshot_diff(from, to, offset, max)
    }

    /// Makes a new volume that holds what a snapshot does, and shares its space
    /// until it is written to; durable on return.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, `InvalidArgument`, `NoSpace`, or the pool's
    /// failure.
    pub fn clone_snapshot(
        &self,
        volume: &str,
        snapshot: &str,
        new: &str,
    ) -> Result<VolumeInfo, EngineError> {
        self.engine.clone_snapshot(volume, snapshot, new)
    }

    /// Every member, spare and replacement, without a look at the rest.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.engine.members()
    }

    /// Fails a member that is in use; on return the others know (R2).
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` where it is not in use, or where the pool
    /// cannot do without it: nothing changes then (R4).
    pub fn fail_member(&self, index: u32, reason: &str) -> Result<(), EngineError> {
        self.engine.fail_member(index, reason)
    }

    /// Takes a member out: a spare leaves the pool, the rebuild of a
    /// replacement is cancelled, and one that is in use is failed.
    ///
    /// # Errors
    /// As for [`Self::fail_member`].
    pub fn remove_member(&self, index: u32) -> Result<(), EngineError> {
        self.engine.remove_member(index)
    }

    /// Begins to put a new device in a member's place. One that is in use stays
    /// so until the new one holds everything.
    ///
    /// # Errors
    /// `InvalidArgument` where it is too small (the message has the bytes
    /// needed), `AlreadyExists` where it holds something and is not forced.
    pub fn replace_member(
        &self,
        index: u32,
        path: &Path,
        force: bool,
    ) -> Result<JobInfo, EngineError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.engine.replace_member(index, &path, force)
    }

    /// Begins to take a member back that was away: it gets what it missed.
    ///
    /// # Errors
    /// `InvalidArgument` where the device is not that member, or has gone on
    /// alone.
    pub fn readd_member(&self, index: u32, path: &Path) -> Result<JobInfo, EngineError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.engine.readd_member(index, &path)
    }

    /// Adds a device that takes over by itself when a member fails. Returns
    /// its index.
    ///
    /// # Errors
    /// As for [`Self::replace_member`].
    pub fn add_spare(&self, path: &Path, force: bool) -> Result<u32, EngineError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.engine.add_spare(&path, force)
    }

    /// Takes a spare out of the pool.
    ///
    /// # Errors
    /// `InvalidArgument` where the member is none.
    pub fn remove_spare(&self, index: u32) -> Result<(), EngineError> {
        self.engine.remove_spare(index)
    }

    /// Jobs under way and the last that ended, oldest first.
    pub fn jobs(&self) -> Vec<JobInfo> {
        self.engine.job_infos()
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.job_info(id)
    }

    /// Lets a running job rest; it keeps what it has done.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` where it has ended.
    pub fn pause_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.pause_job(id)
    }

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// As for [`Self::pause_job`].
    pub fn resume_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.resume_job(id)
    }

    /// Ends a job before its time. The replacement that a rebuild was filling
    /// is let go.
    ///
    /// # Errors
    /// As for [`Self::pause_job`].
    pub fn cancel_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.cancel_job(id)
    }

    /// Begins a scrub, or a reclaim.
    ///
    /// # Errors
    /// `Busy` where one is under way.
    pub fn start_job(&self, kind: JobKind) -> Result<JobInfo, EngineError> {
        self.engine.start_job(kind)
    }

    /// The newest job of a kind; one that has never been is idle.
    pub fn newest_job(&self, kind: JobKind) -> JobInfo {
        self.engine.newest_job(kind)
    }

    /// Ends the scrub or reclaim that is under way.
    ///
    /// # Errors
    /// `InvalidArgument` where there is none.
    pub fn cancel_newest(&self, kind: JobKind) -> Result<JobInfo, EngineError> {
        self.engine.cancel_newest(kind)
    }

    /// The fingerprint index at this moment. Answers from memory.
    pub fn index(&self) -> IndexInfo {
        self.engine.index_info()
    }

    /// Drops the fingerprint index, from memory and disk: nothing is
    /// deduplicated against anything until [`Pool::rebuild_index`]. Durable on
    /// return.
    ///
    /// # Errors
    /// The pool's failure.
    pub fn drop_index(&self) -> Result<IndexInfo, EngineError> {
        self.engine.drop_index()
    }

    /// Makes the fingerprint index anew from what is stored, in the
    /// background; what is read in is deduplicated against at once.
    ///
    /// # Errors
    /// `Busy` when lookups in the old one do not end; the pool's failure.
    pub fn rebuild_index(&self) -> Result<IndexInfo, EngineError> {
        self.engine.rebuild_index()
    }

    /// What the administrator has set.
    pub fn settings(&self) -> PoolSettings {
        self.engine.pool_settings()
    }

    /// Changes settings: in force at once, durable on return.
    ///
    /// # Errors
    /// `InvalidArgument` for limits that would fail healthy members.
    pub fn set_settings(&self, change: &SettingsChange) -> Result<PoolSettings, EngineError> {
        self.engine.set_settings(change)
    }

    /// What of all volumes cannot be read, as of the newest checkpoint: reads
    /// the maps, and nothing else.
    ///
    /// # Errors
    /// The pool's failure.
    pub fn losses(&self) -> Result<LossReport, EngineError> {
        self.engine.losses()
    }
}
