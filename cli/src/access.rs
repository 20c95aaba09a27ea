//! Reaching a pool, served or not: the user need not know which.
//!
//! A served pool is locked by its serving process, which listens on
//! `DIR/control.sock`; management then goes through that socket. Otherwise
//! the pool is opened here for the moment of the command.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tessera_engine::{
    api::{
        IndexInfo, JobInfo, JobKind, PoolSettings, PoolStatus, SettingsChange, SnapshotDiff,
        SnapshotInfo, VolumeChange, VolumeInfo, VolumeSpec,
    },
    pool::{IoChoice, Pool, PoolOptions},
};

use crate::{
    check_run::{CheckAnswer, CheckRun},
    control::client::Client,
    failure::{Failure, Kind},
};

/// Memory for a pool that is opened only for the moment of a command.
const COMMAND_MEMORY_BYTES: u64 = 256 << 20;

/// The process that serves a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerInfo {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its version of Tessera.
    pub(crate) version: String,
    /// Where NBD clients connect, and where volumes are mounted.
    pub(crate) endpoints: Vec<String>,
    /// Clients can only read.
    pub(crate) read_only: bool,
    /// NBD connections and open files at this moment.
    pub(crate) connections: u64,
}

/// A pool's status and, while it is served, by whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusAnswer {
    /// The pool itself.
    #[serde(flatten)]
    pub(crate) pool: PoolStatus,
    /// The serving process, if any.
    pub(crate) server: Option<ServerInfo>,
}

/// A change of a volume's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resize {
    /// The new size.
    pub(crate) size_bytes: u64,
    /// Shrinking, and so losing what lies beyond, is meant.
    pub(crate) force: bool,
}

/// A snapshot: what `VOLUME@SNAPSHOT` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotName {
    /// The volume's name.
    pub(crate) volume: String,
    /// The snapshot's own.
    pub(crate) snapshot: String,
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

impl std::str::FromStr for SnapshotName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (volume, snapshot) = tessera_engine::snapshot::split_name(name)
            .ok_or_else(|| format!("{name:?} is not of the form VOLUME@SNAPSHOT"))?;
        Ok(Self {
            volume: volume.to_owned(),
            snapshot: snapshot.to_owned(),
        })
    }
}

/// Which part of a difference is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffPart {
    /// Where it begins.
    #[serde(default)]
    pub(crate) offset: u64,
    /// Most ranges.
    #[serde(default = "DiffPart::ranges_max")]
    pub(crate) max: usize,
}

impl DiffPart {
    /// What one answer has at most.
    pub(crate) const fn ranges_max() -> usize {
        100_000
    }

    /// The part from `offset` on.
    pub(crate) const fn from(offset: u64) -> Self {
        Self {
            offset,
            max: Self::ranges_max(),
        }
    }
}

/// A device that the pool does not use yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDevice {
    /// Where it is, as the process that opens the pool sees it.
    pub(crate) path: PathBuf,
    /// Whatever it holds is lost, and that is meant.
    #[serde(default)]
    pub(crate) force: bool,
}

/// What can be done with a job that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobControl {
    /// Stop until told to go on.
    Pause,
    /// Go on.
    Resume,
    /// Stop for good.
    Cancel,
}

/// What can be asked of a pool, wherever it is open.
pub(crate) trait Management: Send + Sync {
    /// The pool's health and space.
    fn status(&self) -> Result<StatusAnswer, Failure>;
    /// All volumes by name.
    fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure>;
    /// One volume.
    fn volume(&self, name: &str) -> Result<VolumeInfo, Failure>;
    /// Makes a volume.
    fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, Failure>;
    /// Grows or shrinks a volume.
    fn resize_volume(&self, name: &str, resize: Resize) -> Result<VolumeInfo, Failure>;
    /// Gives a volume another name.
    fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, Failure>;
    /// Changes how new writes of a volume are treated.
    fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeInfo, Failure>;
    /// Deletes a volume; one that has snapshots only with them.
    fn delete_volume(&self, name: &str, snapshots: bool) -> Result<(), Failure>;

    /// The snapshots of a volume, or of all.
    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, Failure>;
    /// Takes a snapshot.
    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo, Failure>;
    /// Deletes a snapshot.
    fn delete_snapshot(&self, name: &SnapshotName) -> Result<(), Failure>;
    /// Makes the volume what its snapshot is; one in use only if forced.
    fn roll_back(&self, name: &SnapshotName, force: bool) -> Result<VolumeInfo, Failure>;
    /// Makes a volume of a snapshot.
    fn clone_snapshot(&self, name: &SnapshotName, new: &str) -> Result<VolumeInfo, Failure>;
    /// What changed from a snapshot to a volume or another snapshot.
    fn snapshot_diff(
        &self,
        from: &SnapshotName,
        to: &str,
        part: DiffPart,
    ) -> Result<SnapshotDiff, Failure>;

    /// Fails a member of the layout.
    fn fail_member(&self, member: u32, reason: &str) -> Result<(), Failure>;
    /// Takes a spare, a member being filled, or a member of the layout away.
    fn remove_member(&self, member: u32) -> Result<(), Failure>;
    /// Begins to fill a device that will take a member's place.
    fn replace_member(&self, member: u32, device: &NewDevice) -> Result<JobInfo, Failure>;
    /// Begins to bring a member up to date that was away.
    fn readd_member(&self, member: u32, path: &Path) -> Result<JobInfo, Failure>;
    /// Adds a spare; tells its index.
    fn add_spare(&self, device: &NewDevice) -> Result<u32, Failure>;

    /// All jobs, newest last.
    fn jobs(&self) -> Result<Vec<JobInfo>, Failure>;
    /// One job.
    fn job(&self, id: u64) -> Result<JobInfo, Failure>;
    /// Pauses, resumes or cancels a job.
    fn control_job(&self, id: u64, control: JobControl) -> Result<JobInfo, Failure>;

    /// Begins a job of which there is one at a time.
    fn start_job(&self, kind: JobKind) -> Result<JobInfo, Failure>;
    /// The newest job of a kind; idle when there was none.
    fn newest_job(&self, kind: JobKind) -> Result<JobInfo, Failure>;
    /// Cancels the job of a kind that runs.
    fn cancel_newest(&self, kind: JobKind) -> Result<JobInfo, Failure>;

    /// The fingerprint index.
    fn index(&self) -> Result<IndexInfo, Failure>;
    /// Drops it until it is made anew.
    fn drop_index(&self) -> Result<IndexInfo, Failure>;
    /// Makes it anew.
    fn rebuild_index(&self) -> Result<IndexInfo, Failure>;

    /// What can be set while the pool is in use.
    fn settings(&self) -> Result<PoolSettings, Failure>;
    /// Changes some of it.
    fn change_settings(&self, change: &SettingsChange) -> Result<PoolSettings, Failure>;

    /// Begins a check of a pool in use.
    fn start_check(&self, data: bool) -> Result<CheckAnswer, Failure>;
    /// How far the newest check is.
    fn check(&self) -> Result<CheckAnswer, Failure>;

    /// Whether jobs end with this process: the pool is open for a command only.
    fn is_for_command(&self) -> bool;
}

/// A pool that is open in this process.
pub(crate) struct LocalPool {
    pool: Arc<Pool>,
    check: CheckRun,
    server: Option<Box<dyn Fn() -> ServerInfo + Send + Sync>>,
}

impl LocalPool {
    /// A pool opened for a command.
    fn for_command(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            check: CheckRun::default(),
            server: None,
        }
    }

    /// A pool that this process serves.
    pub(crate) fn served(
        pool: Arc<Pool>,
        server: impl Fn() -> ServerInfo + Send + Sync + 'static,
    ) -> Self {
        Self {
            pool,
            check: CheckRun::default(),
            server: Some(Box::new(server)),
        }
    }
}

/// A file that was made for a new member; removed again unless it is kept.
struct Made(Option<PathBuf>);

impl Made {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "a file that is not needed was not removed");
        }
    }
}

impl LocalPool {
    /// Makes a sparse file as large as the largest member where there is
    /// nothing yet.
    fn make_if_missing(&self, path: &Path) -> Result<Made, Failure> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            // What is wrong with it is for the pool to say.
            _ => return Ok(Made(None)),
        }
        let failed = |error: std::io::Error| {
            Failure::new(
                Kind::Io,
                format!("{} cannot be made: {error}", path.display()),
            )
        };
        let members = self.pool.members();
        let bytes = members.iter().map(|member| member.size_bytes).max();
        let file = std::fs::File::create_new(path).map_err(failed)?;
        let made = Made(Some(path.to_owned()));
        file.set_len(bytes.unwrap_or(0)).map_err(failed)?;
        Ok(made)
    }
}

impl Management for LocalPool {
    fn status(&self) -> Result<StatusAnswer, Failure> {
        let mut pool = self.pool.status();
        pool.served = self.server.is_some();
        Ok(StatusAnswer {
            pool,
            server: self.server.as_ref().map(|server| server()),
        })
    }

    fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure> {
        Ok(self.pool.volumes())
    }

    fn volume(&self, name: &str) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.volume(name)?)
    }

    fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.create_volume(spec)?)
    }

    fn resize_volume(&self, name: &str, resize: Resize) -> Result<VolumeInfo, Failure> {
        Ok(self
            .pool
            .resize_volume(name, resize.size_bytes, resize.force)?)
    }

    fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.rename_volume(old, new)?)
    }

    fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.set_volume(name, change)?)
    }

    fn delete_volume(&self, name: &str, snapshots: bool) -> Result<(), Failure> {
        let deleted = match snapshots {
            true => self.pool.delete_volume_and_snapshots(name),
            false => self.pool.delete_volume(name),
        };
        deleted.map_err(Failure::from)
    }

    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, Failure> {
        Ok(self.pool.snapshots(volume)?)
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo, Failure> {
        Ok(self.pool.create_snapshot(&name.volume, &name.snapshot)?)
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<(), Failure> {
        Ok(self.pool.delete_snapshot(&name.volume, &name.snapshot)?)
    }

    fn roll_back(&self, name: &SnapshotName, force: bool) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.roll_back(&name.volume, &name.snapshot, force)?)
    }

    fn clone_snapshot(&self, name: &SnapshotName, new: &str) -> Result<VolumeInfo, Failure> {
        Ok(self
            .pool
            .clone_snapshot(&name.volume, &name.snapshot, new)?)
    }

    fn snapshot_diff(
        &self,
        from: &SnapshotName,
        to: &str,
        part: DiffPart,
    ) -> Result<SnapshotDiff, Failure> {
        let max = part.max.clamp(1, DiffPart::ranges_max());
        Ok(self
            .pool
            .snapshot_diff(&from.to_string(), to, part.offset, max)?)
    }

    fn fail_member(&self, member: u32, reason: &str) -> Result<(), Failure> {
        Ok(self.pool.fail_member(member, reason)?)
    }

    fn remove_member(&self, member: u32) -> Result<(), Failure> {
        Ok(self.pool.remove_member(member)?)
    }

    fn replace_member(&self, member: u32, device: &NewDevice) -> Result<JobInfo, Failure> {
        let made = self.make_if_missing(&device.path)?;
        let begun = self
            .pool
            .replace_member(member, &device.path, device.force)?;
        made.keep();
        Ok(begun)
    }

    fn readd_member(&self, member: u32, path: &Path) -> Result<JobInfo, Failure> {
        Ok(self.pool.readd_member(member, path)?)
    }

    fn add_spare(&self, device: &NewDevice) -> Result<u32, Failure> {
        let made = self.make_if_missing(&device.path)?;
        let index = self.pool.add_spare(&device.path, device.force)?;
        made.keep();
        Ok(index)
    }

    fn jobs(&self) -> Result<Vec<JobInfo>, Failure> {
        Ok(self.pool.jobs())
    }

    fn job(&self, id: u64) -> Result<JobInfo, Failure> {
        Ok(self.pool.job(id)?)
    }

    fn control_job(&self, id: u64, control: JobControl) -> Result<JobInfo, Failure> {
        Ok(match control {
            JobControl::Pause => self.pool.pause_job(id)?,
            JobControl::Resume => self.pool.resume_job(id)?,
            JobControl::Cancel => self.pool.cancel_job(id)?,
        })
    }

    fn start_job(&self, kind: JobKind) -> Result<JobInfo, Failure> {
        Ok(self.pool.start_job(kind)?)
    }

    fn newest_job(&self, kind: JobKind) -> Result<JobInfo, Failure> {
        Ok(self.pool.newest_job(kind))
    }

    fn cancel_newest(&self, kind: JobKind) -> Result<JobInfo, Failure> {
        Ok(self.pool.cancel_newest(kind)?)
    }

    fn index(&self) -> Result<IndexInfo, Failure> {
        Ok(self.pool.index())
    }

    fn drop_index(&self) -> Result<IndexInfo, Failure> {
        Ok(self.pool.drop_index()?)
    }

    fn rebuild_index(&self) -> Result<IndexInfo, Failure> {
        Ok(self.pool.rebuild_index()?)
    }

    fn settings(&self) -> Result<PoolSettings, Failure> {
        Ok(self.pool.settings())
    }

    fn change_settings(&self, change: &SettingsChange) -> Result<PoolSettings, Failure> {
        Ok(self.pool.set_settings(change)?)
    }

    fn start_check(&self, data: bool) -> Result<CheckAnswer, Failure> {
        self.check.start(&self.pool, data)
    }

    fn check(&self) -> Result<CheckAnswer, Failure> {
        Ok(self.check.ask())
    }

    fn is_for_command(&self) -> bool {
        self.server.is_none()
    }
}

/// Whether a command changes the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// It only looks: a stopped pool is opened read-only and left as it is.
    Look,
    /// It changes something.
    Change,
}

/// Runs `action` on the pool in `dir`: in the serving process if there is
/// one, else by opening the pool here and closing it clean afterwards.
pub(crate) fn with_pool<T>(
    dir: &Path,
    intent: Intent,
    io: IoChoice,
    action: impl FnOnce(&dyn Management) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if let Some(client) = Client::connect(dir)? {
        return action(&client);
    }
    let options = PoolOptions {
        read_only: intent == Intent::Look,
        memory_bytes: COMMAND_MEMORY_BYTES,
        io,
    };
    let pool = match Pool::open(dir, &options).map_err(Failure::from) {
        Ok(pool) => pool,
        Err(failure) if failure.kind == Kind::Busy => {
            // A server that was starting may answer by now.
            if let Some(client) = Client::connect(dir)? {
                return action(&client);
            }
            return Err(unreachable_holder(dir, &failure).into());
        }
        Err(failure) => return Err(failure.into()),
    };
    let done = action(&LocalPool::for_command(Arc::clone(&pool)));
    let closed = pool.close().map_err(Failure::from);
    let value = done?;
    closed?;
    Ok(value)
}

/// Runs `served` in the serving process if there is one, else `stopped`, which
/// locks the members itself.
pub(crate) fn served_or_stopped<T>(
    dir: &Path,
    served: impl Fn(&dyn Management) -> Result<T, Failure>,
    stopped: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let Some(client) = Client::connect(dir)? {
        return served(&client);
    }
    match stopped() {
        Err(failure) if failure.kind == Kind::Busy => {
            // A server that was starting may answer by now.
            match Client::connect(dir)? {
                Some(client) => served(&client),
                None => Err(unreachable_holder(dir, &failure)),
            }
        }
        done => done,
    }
}

/// Refuses when the pool in `dir` is being served; `what` then cannot be done.
pub(crate) fn refuse_if_served(dir: &Path, what: &str) -> anyhow::Result<()> {
    if Client::connect(dir)?.is_some() {
        return Err(Failure::new(
            Kind::Busy,
            format!(
                "The pool {} is being served: stop the server before {what}",
                dir.display()
            ),
        )
        .into());
    }
    Ok(())
}

/// The pool is locked, yet nobody answers on its control socket.
fn unreachable_holder(dir: &Path, failure: &Failure) -> Failure {
    Failure::new(
        Kind::Busy,
        format!(
            "{failure}, and no server answers at {}: wait for that process or stop it",
            dir.join(crate::control::SOCKET_NAME).display()
        ),
    )
}
