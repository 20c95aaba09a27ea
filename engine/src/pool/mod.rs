//! The pool: what a program opens, serves and closes.
//!
//! The parts: `engine` holds the shared state and the lock order; a write goes
//! through `disk` and `write`, a read through `disk` and `read`; `commit` makes
//! things durable, `checkpoint` folds them into map pages, `recovery` gets them
//! back, `reclaim` frees what is dead, `space` keeps enough in reserve.

mod accounting;
mod anticipation;
mod check;
mod checkpoint;
mod commit;
mod dedup;
mod diff;
mod disk;
mod engine;
mod index;
mod jobs;
mod losses;
mod manage;
mod members;
mod open;
mod pages;
mod read;
mod rebuild;
mod reclaim;
mod recovery;
mod repair;
mod roots;
mod schedule;
mod scrub;
mod signals;
pub mod simulation;
mod snapshots;
mod space;
mod threads;
mod view;
mod volume;
mod walk;
mod write;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tessera_raid::{
    Array, CreateSpec, Level, Limits, OpenOptions, PoolFile, Sizes, Witness,
    device::{Backend, ThreadBackend, UringBackend, default_backend},
};

pub use check::CheckObserver;
pub use checkpoint::CheckpointKind;
pub use manage::VOLUME_BYTES_MAX;
pub use open::{EngineOptions, EpochSource};
pub use repair::RepairMode;

use self::{disk::PoolCatalog, engine::Engine, threads::Threads};
use crate::{
    api::{
        IndexInfo, JobInfo, JobKind, LossReport, MemberStatus, PoolSettings, PoolSpec, PoolStatus,
        SettingsChange, SnapshotDiff, SnapshotInfo, VolumeChange, VolumeInfo, VolumeSpec,
    },
    disk::DiskCatalog,
    error::{EngineError, ErrorKind},
    jobs::system_clock,
};

/// Which implementation of device I/O to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads calling `pread` and `pwrite`.
    Threads,
}

impl IoChoice {
    fn backend(self) -> Result<Arc<dyn Backend>, EngineError> {
        Ok(match self {
            Self::Auto => default_backend(),
            Self::Threads => Arc::new(ThreadBackend::new()),
            Self::Uring => Arc::new(UringBackend::probe().map_err(|error| {
                EngineError::new(ErrorKind::Io, "io_uring is not available here").caused_by(error)
            })?),
        })
    }
}

/// How to open a pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Write nothing, not even after an unclean stop.
    pub read_only: bool,
    /// The budget for caches, index and buffers, in bytes; at least 64 MiB.
    pub memory_bytes: u64,
    /// Device I/O.
    pub io: IoChoice,
}

/// The default memory budget, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// The least memory budget, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            io: IoChoice::Auto,
        }
    }
}

/// How long a member's lock held by a dying process is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// An open pool with its background threads.
pub struct Pool {
    engine: Arc<Engine>,
    threads: Mutex<Option<Threads>>,
}

impl Pool {
    /// Creates a pool. `DIR` is made if it is missing; members are made if the
    /// spec says so. Nothing is left behind by a refusal.
    ///
    /// # Errors
    /// One sentence about the first thing that is wrong.
    pub fn create(
        directory: &Path,
        spec: &PoolSpec,
        io: IoChoice,
    ) -> Result<PoolStatus, EngineError> {
        let backend = io.backend()?;
        let file = PoolFile::new(directory);
        if file.path().exists() {
            let message = format!("There is already a pool in {}", directory.display());
            return Err(EngineError::new(ErrorKind::AlreadyExists, message));
        }
        let mut made = Made::default();
        made.directory(directory)?;
        if let Some(bytes) = spec.create_files_bytes {
            for member in &spec.members {
                backend.create_file(member, bytes).map_err(|error| {
                    let message = format!("Cannot create member {}: {error}", member.display());
                    EngineError::new(ErrorKind::Io, message)
                })?;
                made.files.push(member.clone());
            }
        }
        let members = absolute(&spec.members)?;
        let sizes = sizes_for(backend.as_ref(), spec, &members)?;
        let create = CreateSpec {
            level: spec.level,
            stripe_unit_bytes: spec.stripe_unit_bytes,
            members,
            force: spec.force,
            sizes,
            stall_limit: Limits::default().stall,
        };
        let options = EngineOptions::new(MIN_MEMORY_BYTES);
        let record = open::new_record(&options.epochs).encode();
        made.files.push(file.path());
        let array = Array::create(Arc::clone(&backend), &create, &record, Box::new(file))?;
        let engine = Engine::open(array, &options)?;
        let status = engine.status();
        engine.shut_down()?;
        made.keep();
        Ok(status)
    }

    /// Opens a pool: locks its members, recovers if need be, starts threads.
    ///
    /// # Errors
    /// One sentence; nothing was written if the members do not make a pool.
    pub fn open(directory: &Path, options: &PoolOptions) -> Result<Arc<Self>, EngineError> {
        if options.memory_bytes < MIN_MEMORY_BYTES {
            let message = format!(
                "The memory budget is at least {} MiB",
                MIN_MEMORY_BYTES >> 20
            );
            return Err(EngineError::new(ErrorKind::InvalidArgument, message));
        }
        let backend = options.io.backend()?;
        let array = open_array(directory, backend, options.read_only)?;
        let engine_options = EngineOptions {
            index_directory: Some(directory.join("index")),
            threads: true,
            clock: system_clock(),
            ..EngineOptions::new(options.memory_bytes)
        };
        let engine = Engine::open(array, &engine_options)?;
        let threads = Threads::start(&engine).map_err(|error| {
            EngineError::new(ErrorKind::Io, "Cannot start threads").caused_by(error)
        })?;
        Ok(Arc::new(Self {
            engine,
            threads: Mutex::new(Some(threads)),
        }))
    }

    /// Makes `DIR/pool.toml` anew from members alone, in any order, by any path.
    ///
    /// # Errors
    /// One sentence; an existing `pool.toml` is obeyed, `force` or not.
    pub fn import(
        directory: &Path,
        members: &[PathBuf],
        force: bool,
        io: IoChoice,
    ) -> Result<PoolStatus, EngineError> {
        let backend = io.backend()?;
        if members.is_empty() {
            return Err(EngineError::new(
                ErrorKind::InvalidArgument,
                "Name at least one member",
            ));
        }
        let mut made = Made::default();
        made.directory(directory)?;
        let file = PoolFile::new(directory);
        if !file.path().exists() {
            made.files.push(file.path());
        }
        let options = OpenOptions {
            force,
            lock_patience: LOCK_PATIENCE,
            ..OpenOptions::default()
        };
        let array = Array::open(backend, &absolute(members)?, Box::new(file), &options)?;
        let engine_options = EngineOptions::new(MIN_MEMORY_BYTES);
        let engine = Engine::open(array, &engine_options)?;
        let status = engine.status();
        engine.shut_down()?;
        made.keep();
        Ok(status)
    }

    /// What the pool is at this moment.
    pub fn status(&self) -> PoolStatus {
        self.engine.status()
    }

    /// Every volume, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.engine.volume_infos()
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo, EngineError> {
        self.engine.volume_info(name)
    }

    /// Every volume, by name, without the work for an exact count of what it
    /// maps: that is as of the last checkpoint. Answers from memory.
    pub fn glance(&self) -> Vec<VolumeInfo> {
        self.engine.glance()
    }

    /// A volume or a snapshot by its id, with what it takes; the latter may have
    /// to be counted, and that takes a while.
    pub fn counted_at_id(&self, id: u64) -> Option<VolumeInfo> {
        self.engine.counted_at_id(id)
    }

    /// One volume as [`Pool::glance`] shows it.
    pub fn glance_at(&self, name: &str) -> Option<VolumeInfo> {
        self.engine.glance_at(name)
    }

    /// One volume by its id, as [`Pool::glance`] shows it.
    pub fn glance_at_id(&self, id: u64) -> Option<VolumeInfo> {
        self.engine.glance_at_id(id)
    }

    /// Every snapshot as if it were a volume, under its full name, by volume and
    /// name, and when each was taken, in milliseconds since 1970. Answers from
    /// memory.
    pub fn glance_snapshots(&self) -> Vec<(VolumeInfo, u64)> {
        self.engine.glance_snapshots()
    }

    /// One snapshot as [`Pool::glance_snapshots`] shows it.
    pub fn glance_snapshot(&self, name: &str) -> Option<(VolumeInfo, u64)> {
        self.engine.glance_snapshot(name)
    }

    /// One snapshot by its id, which no volume has, the same way.
    pub fn glance_snapshot_at_id(&self, id: u64) -> Option<(VolumeInfo, u64)> {
        self.engine.glance_snapshot_at_id(id)
    }

    /// Bytes of data the pool can hold after parity, and bytes of unique data
    /// still writable after reserves. Answers from memory.
    pub fn space(&self) -> (u64, u64) {
        self.engine.space()
    }

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

    /// The volumes as disks to serve.
    pub fn catalog(&self) -> Arc<dyn DiskCatalog> {
        Arc::new(PoolCatalog(Arc::clone(&self.engine)))
    }

    /// Flushes, takes a last checkpoint and marks the pool clean. Idempotent;
    /// requests that come later fail.
    ///
    /// # Errors
    /// What kept it from being clean: the next open recovers.
    pub fn close(&self) -> Result<(), EngineError> {
        if let Some(threads) = self.threads.lock().take() {
            threads.stop(&self.engine);
        }
        self.engine.shut_down()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "The pool was not closed cleanly");
        }
    }
}

/// Opens the array that `DIR/pool.toml` describes.
pub(crate) fn open_array(
    directory: &Path,
    backend: Arc<dyn Backend>,
    read_only: bool,
) -> Result<Array, EngineError> {
    let file = PoolFile::new(directory);
    let witness = file.load()?.ok_or_else(|| {
        let message = format!(
            "There is no pool in {}: create one, or import its members",
            directory.display()
        );
        EngineError::new(ErrorKind::NotFound, message)
    })?;
    // A member that comes back has two rows until it has all that it missed.
    let mut members: Vec<PathBuf> = Vec::new();
    for member in witness.members {
        if !members.contains(&member.path) {
            members.push(member.path);
        }
    }
    let options = OpenOptions {
        read_only,
        lock_patience: LOCK_PATIENCE,
        ..OpenOptions::default()
    };
    Ok(Array::open(backend, &members, Box::new(file), &options)?)
}

/// Segment and journal sizes for members as they are: enough segments for
/// reserves to be small, a journal that holds many stripes.
fn sizes_for(
    backend: &dyn Backend,
    spec: &PoolSpec,
    members: &[PathBuf],
) -> Result<Sizes, EngineError> {
    let data_units = |count: u64| match spec.level {
        Level::Single | Level::Raid1 => 1,
        Level::Raid0 => count,
        Level::Raid5 => count.saturating_sub(1),
        Level::Raid6 => count.saturating_sub(2),
        Level::Raid10 => count / 2,
    };
    let unit = spec.stripe_unit_bytes;
    if !unit.is_power_of_two() || !(4 << 10..=1 << 20).contains(&unit) {
        let message = format!("A stripe unit of {unit} bytes is no power of two between 4K and 1M");
        return Err(EngineError::new(ErrorKind::InvalidArgument, message));
    }
    let units = data_units(members.len() as u64).max(1);
    let stripe = u64::from(spec.stripe_unit_bytes) * units;
    if stripe > STRIPE_BYTES_MAX {
        let message = format!(
            "A stripe of {units} units of {} bytes is too large: use a smaller stripe unit",
            spec.stripe_unit_bytes
        );
        return Err(EngineError::new(ErrorKind::InvalidArgument, message));
    }
    let smallest = match spec.create_files_bytes {
        Some(bytes) => bytes,
        None => smallest_member(backend, members)?,
    };
    let capacity = smallest.saturating_mul(units);
    let target = (capacity / 512).clamp(1 << 20, 8 << 20).max(4 * stripe);
    let journal = (smallest / 64).clamp(4 << 20, 256 << 20).max(32 * stripe);
    Ok(Sizes {
        segment_data_bytes_target: u32::try_from(target).expect("at most 16 MiB"),
        journal_bytes: Some(journal.next_multiple_of(4096)),
    })
}

/// Four stripes must fit a segment of 16 MiB.
const STRIPE_BYTES_MAX: u64 = 4 << 20;

fn smallest_member(backend: &dyn Backend, members: &[PathBuf]) -> Result<u64, EngineError> {
    let size = |path: &PathBuf| {
        let mode = tessera_raid::device::OpenMode {
            writable: false,
            lock_patience: Duration::ZERO,
        };
        let handle = backend.open(path, mode).map_err(|error| {
            let message = format!("Cannot open member {}: {error}", path.display());
            EngineError::new(ErrorKind::Io, message)
        })?;
        let size = backend.facts(handle).size_bytes;
        backend.close(handle);
        Ok(size)
    };
    let sizes = members
        .iter()
        .map(size)
        .collect::<Result<Vec<u64>, EngineError>>()?;
    Ok(sizes.into_iter().min().unwrap_or(0))
}

fn absolute(members: &[PathBuf]) -> Result<Vec<PathBuf>, EngineError> {
    let one = |path: &PathBuf| {
        std::path::absolute(path).map_err(|error| {
            let message = format!("The path {} cannot be used", path.display());
            EngineError::new(ErrorKind::InvalidArgument, message).caused_by(error)
        })
    };
    members.iter().map(one).collect()
}

/// What a failed operation has to take back.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    directory: Option<PathBuf>,
}

impl Made {
    fn directory(&mut self, path: &Path) -> Result<(), EngineError> {
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path).map_err(|error| {
            let message = format!("Cannot make the directory {}: {error}", path.display());
            EngineError::new(ErrorKind::Io, message)
        })?;
        self.directory = Some(path.to_owned());
        Ok(())
    }

    fn keep(mut self) {
        self.files.clear();
        self.directory = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.files {
            let _gone_or_never_made = fs::remove_file(file);
        }
        if let Some(directory) = &self.directory {
            let _not_empty = fs::remove_dir(directory);
        }
    }
}
