//! The engine without threads, over any array: for simulation and tests.
//!
//! Every wait in the engine is a call to a step function, so one thread can
//! drive everything, deterministically (R24). A crash is a drop.

use std::{path::Path, sync::Arc};

use tessera_dedup::segment::SegmentState;
use tessera_raid::Array;

use super::{CheckpointKind, EngineOptions, disk::PoolCatalog, engine::Engine, open::new_record};
use crate::{
    api::{
        CheckReport, IndexInfo, JobInfo, JobKind, LossReport, MemberStatus, PoolSettings,
        PoolStatus, RepairReport, SettingsChange, SnapshotDiff, SnapshotInfo, VolumeChange,
        VolumeInfo, VolumeSpec,
    },
    disk::{Disk, DiskCatalog, DiskError},
    error::EngineError,
};

/// As [`super::Pool::check`], on an array that was opened read-only.
pub fn check(array: &Array, data: bool, observer: &dyn super::CheckObserver) -> CheckReport {
    super::check::check_array(array, data, observer)
}

/// As [`super::Pool::repair`]; `open` opens the array read-only or not.
///
/// # Errors
/// As there.
pub fn repair(
    open: &dyn Fn(bool) -> Result<Array, EngineError>,
    options: &EngineOptions,
    mode: super::RepairMode,
    observer: &dyn super::CheckObserver,
) -> Result<RepairReport, EngineError> {
    super::repair::repair(open, options, mode, observer)
}

/// An engine that only moves when called.
pub struct Simulated {
    engine: Arc<Engine>,
}

impl Simulated {
    /// The engine record with which a new array is created.
    pub fn new_record(options: &EngineOptions) -> Vec<u8> {
        new_record(&options.epochs).encode()
    }

    /// Opens and, if need be, recovers.
    ///
    /// # Errors
    /// As for a real pool.
    pub fn open(array: Array, options: &EngineOptions) -> Result<Self, EngineError> {
        Ok(Self {
            engine: Engine::open(array, options)?,
        })
    }

    /// As [`super::Pool::check_in_use`].
    ///
    /// # Errors
    /// As there.
    pub fn check(
        &self,
        data: bool,
        observer: &dyn super::CheckObserver,
    ) -> Result<CheckReport, EngineError> {
        self.engine.check_in_use(data, observer)
    }

    /// A volume as a disk. Its flushes complete inside the call.
    pub fn disk(&self, name: &str) -> Option<Arc<dyn Disk>> {
        PoolCatalog(Arc::clone(&self.engine)).open(name)
    }

    /// A flush of everything acknowledged so far.
    ///
    /// # Errors
    /// What the client would be told.
    pub fn flush(&self) -> Result<(), DiskError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.engine.queue_flush(Box::new(move |result| {
            let _nobody_listens = sender.send(result);
        }));
        receiver.recv().unwrap_or(Err(DiskError::Gone))
    }

    /// One step of the stripe writer.
    ///
    /// # Errors
    /// The array's.
    pub fn writer_step(&self) -> Result<bool, EngineError> {
        Ok(self.engine.writer.step()?)
    }

    /// One tick of the timer.
    ///
    /// # Errors
    /// The pool's failure.
    pub fn timer_step(&self) -> Result<(), EngineError> {
        self.engine.timer_step()
    }

    /// A checkpoint.
    ///
    /// # Errors
    /// The pool's failure, or no space.
    pub fn checkpoint(&self) -> Result<(), EngineError> {
        self.engine.checkpoint_now(CheckpointKind::Normal)
    }

    /// One turn of maintenance; `idle` says that nothing more is coming.
    ///
    /// # Errors
    /// The pool's failure, or no space.
    pub fn maintenance_step(&self, idle: bool) -> Result<(), EngineError> {
        self.engine.maintenance_step(idle)
    }

    /// A reclaim pass. True when it freed something.
    ///
    /// # Errors
    /// The pool's failure.
    pub fn reclaim(&self) -> Result<bool, EngineError> {
        self.engine.reclaim_pass()
    }

    /// One step of the job whose turn it is. False when there is none.
    ///
    /// # Errors
    /// What made the job, or the pool, fail.
    pub fn job_step(&self) -> Result<bool, EngineError> {
        Ok(self.engine.job_step()?.is_some())
    }

    /// See [`super::Pool::members`].
    pub fn members(&self) -> Vec<MemberStatus> {
        self.engine.members()
    }

    /// See [`super::Pool::fail_member`].
    ///
    /// # Errors
    /// As there.
    pub fn fail_member(&self, index: u32, reason: &str) -> Result<(), EngineError> {
        self.engine.fail_member(index, reason)
    }

    /// See [`super::Pool::remove_member`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_member(&self, index: u32) -> Result<(), EngineError> {
        self.engine.remove_member(index)
    }

    /// See [`super::Pool::replace_member`].
    ///
    /// # Errors
    /// As there.
    pub fn replace_member(
        &self,
        index: u32,
        path: &Path,
        force: bool,
    ) -> Result<JobInfo, EngineError> {
        self.engine.replace_member(index, path, force)
    }

    /// See [`super::Pool::readd_member`].
    ///
    /// # Errors
    /// As there.
    pub fn readd_member(&self, index: u32, path: &Path) -> Result<JobInfo, EngineError> {
        self.engine.readd_member(index, path)
    }

    /// See [`super::Pool::add_spare`].
    ///
    /// # Errors
    /// As there.
    pub fn add_spare(&self, path: &Path, force: bool) -> Result<u32, EngineError> {
        self.engine.add_spare(path, force)
    }

    /// See [`super::Pool::remove_spare`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_spare(&self, index: u32) -> Result<(), EngineError> {
        self.engine.remove_spare(index)
    }

    /// See [`super::Pool::jobs`].
    pub fn jobs(&self) -> Vec<JobInfo> {
        self.engine.job_infos()
    }

    /// See [`super::Pool::job`].
    ///
    /// # Errors
    /// As there.
    pub fn job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.job_info(id)
    }

    /// See [`super::Pool::pause_job`].
    ///
    /// # Errors
    /// As there.
    pub fn pause_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.pause_job(id)
    }

    /// See [`super::Pool::resume_job`].
    ///
    /// # Errors
    /// As there.
    pub fn resume_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.resume_job(id)
    }

    /// See [`super::Pool::cancel_job`].
    ///
    /// # Errors
    /// As there.
    pub fn cancel_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.engine.cancel_job(id)
    }

    /// See [`super::Pool::start_job`].
    ///
    /// # Errors
    /// As there.
    pub fn scrub_start(&self) -> Result<JobInfo, EngineError> {
        self.engine.start_job(JobKind::Scrub)
    }

    /// See [`super::Pool::start_job`].
    ///
    /// # Errors
    /// As there.
    pub fn reclaim_start(&self) -> Result<JobInfo, EngineError> {
        self.engine.start_job(JobKind::Reclaim)
    }

    /// See [`super::Pool::start_job`].
    ///
    /// # Errors
    /// As there.
    pub fn dedup_start(&self) -> Result<JobInfo, EngineError> {
        self.engine.start_job(JobKind::Dedup)
    }

    /// See [`super::Pool::newest_job`].
    pub fn scrub_status(&self) -> JobInfo {
        self.engine.newest_job(JobKind::Scrub)
    }

    /// See [`super::Pool::settings`].
    pub fn settings(&self) -> PoolSettings {
        self.engine.pool_settings()
    }

    /// See [`super::Pool::set_settings`].
    ///
    /// # Errors
    /// As there.
    pub fn set_settings(&self, change: &SettingsChange) -> Result<PoolSettings, EngineError> {
        self.engine.set_settings(change)
    }

    /// See [`super::Pool::losses`].
    ///
    /// # Errors
    /// As there.
    pub fn losses(&self) -> Result<LossReport, EngineError> {
        self.engine.losses()
    }

    /// See [`super::Pool::index`].
    pub fn index(&self) -> IndexInfo {
        self.engine.index_info()
    }

    /// See [`super::Pool::drop_index`].
    ///
    /// # Errors
    /// As there.
    pub fn drop_index(&self) -> Result<IndexInfo, EngineError> {
        self.engine.drop_index()
    }

    /// See [`super::Pool::rebuild_index`].
    ///
    /// # Errors
    /// As there.
    pub fn rebuild_index(&self) -> Result<IndexInfo, EngineError> {
        self.engine.rebuild_index()
    }

    /// One turn of the index's background work.
    pub fn index_step(&self) -> bool {
        self.engine.index.step() | self.engine.index.rebuild_step(&*self.engine.table)
    }

    /// See [`super::Pool::create_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, EngineError> {
        self.engine.create_volume(spec)
    }

    /// See [`super::Pool::resize_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn resize_volume(
        &self,
        name: &str,
        size: u64,
        force: bool,
    ) -> Result<VolumeInfo, EngineError> {
        self.engine.resize_volume(name, size, force)
    }

    /// See [`super::Pool::rename_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, EngineError> {
        self.engine.rename_volume(old, new)
    }

    /// See [`super::Pool::set_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeInfo, EngineError> {
        self.engine.set_volume(name, change)
    }

    /// See [`super::Pool::delete_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_volume(&self, name: &str) -> Result<(), EngineError> {
        self.engine.delete_volume(name, false)
    }

    /// See [`super::Pool::delete_volume_and_snapshots`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_volume_and_snapshots(&self, name: &str) -> Result<(), EngineError> {
        self.engine.delete_volume(name, true)
    }

    /// See [`super::Pool::create_snapshot`].
    ///
    /// # Errors
    /// As there.
    pub fn create_snapshot(&self, volume: &str, name: &str) -> Result<SnapshotInfo, EngineError> {
        self.engine.create_snapshot(volume, name)
    }

    /// See [`super::Pool::snapshots`].
    ///
    /// # Errors
    /// As there.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, EngineError> {
        self.engine.snapshot_infos(volume)
    }

    /// See [`super::Pool::delete_snapshot`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), EngineError> {
        self.engine.delete_snapshot(volume, name)
    }

    /// See [`super::Pool::roll_back`].
    ///
    /// # Errors
    /// As there.
    pub fn roll_back(
        &self,
        volume: &str,
        snapshot: &str,
        force: bool,
    ) -> Result<VolumeInfo, EngineError> {
        self.engine.roll_back(volume, snapshot, force)
    }

    /// See [`super::Pool::snapshot_diff`].
    ///
    /// # Errors
    /// As there.
    pub fn snapshot_diff(
        &self,
        from: &str,
        to: &str,
        offset: u64,
        max: usize,
    ) -> Result<SnapshotDiff, EngineError> {
        self.engine.snapshot_diff(from, to, offset, max)
    }

    /// See [`super::Pool::clone_snapshot`].
    ///
    /// # Errors
    /// As there.
    pub fn clone_snapshot(
        &self,
        volume: &str,
        snapshot: &str,
        new: &str,
    ) -> Result<VolumeInfo, EngineError> {
        self.engine.clone_snapshot(volume, snapshot, new)
    }

    /// The names of all snapshots, as `VOLUME@NAME`, sorted; takes no
    /// checkpoint for it.
    pub fn snapshot_names(&self) -> Vec<String> {
        let mut names = self.engine.volumes.read().snapshot_names();
        names.sort_unstable();
        names
    }

    /// The names of all volumes, sorted; takes no checkpoint for it.
    pub fn names(&self) -> Vec<String> {
        PoolCatalog(Arc::clone(&self.engine)).names()
    }

    /// Every segment that is not free: its number, its generation, and whether
    /// it is still being filled.
    pub fn segments(&self) -> Vec<(u32, u64, bool)> {
        let live = self.engine.table.live().into_iter();
        live.map(|(id, record)| {
            (
                id.0,
                record.generation.0,
                record.state == SegmentState::Open,
            )
        })
        .collect()
    }

    /// Why the pool has stopped accepting writes, if it has.
    pub fn failure(&self) -> Option<String> {
        self.engine.failure.lock().clone()
    }

    /// See [`super::Pool::status`].
    pub fn status(&self) -> PoolStatus {
        self.engine.status()
    }

    /// See [`super::Pool::volumes`].
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.engine.volume_infos()
    }

    /// A clean stop.
    ///
    /// # Errors
    /// What kept it from being clean.
    pub fn close(&self) -> Result<(), EngineError> {
        self.engine.shut_down()
    }
}
