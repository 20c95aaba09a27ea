//! The pool: what a program opens, serves and closes.
//!
//! The parts: `create` makes or imports one, `commands` is what an operator asks of
//! it, `engine` holds the shared state and the lock order; a write goes
//! through `disk` and `write`, a read through `disk` and `read`; `commit` makes
//! things durable, `checkpoint` folds them into map pages, `recovery` gets them
//! back, `reclaim` frees what is dead, `space` keeps enough in reserve.

mod accounting;
mod anticipation;
mod check;
mod checkpoint;
mod commands;
mod commit;
mod create;
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
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tessera_raid::{
    Array, OpenOptions, PoolFile, Witness,
    device::{Backend, ThreadBackend, UringBackend, default_backend},
};

pub use check::CheckObserver;
pub use checkpoint::CheckpointKind;
pub use manage::VOLUME_BYTES_MAX;
pub use open::{EngineOptions, EpochSource};
pub use repair::RepairMode;

use self::{disk::PoolCatalog, engine::Engine, threads::Threads};
use crate::{
    api::{PoolStatus, VolumeInfo},
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
