//! The engine without threads, over any array: for simulation and tests.
//!
//! Every wait in the engine is a call to a step function, so one thread can
//! drive everything, deterministically (R24). A crash is a drop.

use std::sync::Arc;

use tessera_dedup::segment::SegmentState;
use tessera_raid::Array;

use super::{CheckpointKind, EngineOptions, disk::PoolCatalog, engine::Engine, open::new_record};
use crate::{
    api::{CheckReport, PoolStatus, VolumeInfo, VolumeSpec},
    disk::{Disk, DiskCatalog, DiskError},
    error::EngineError,
};

/// As [`super::Pool::check`], on an array that was opened read-only.
pub fn check(array: &Array, data: bool, observer: &dyn super::CheckObserver) -> CheckReport {
    super::check::check_array(array, data, observer)
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

    /// See [`super::Pool::delete_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_volume(&self, name: &str) -> Result<(), EngineError> {
        self.engine.delete_volume(name)
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
