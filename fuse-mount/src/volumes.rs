//! What the file system needs of a pool.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tessera_engine::{
    EngineError, ErrorKind,
    api::{VolumeChange, VolumeInfo, VolumeSpec},
    disk::Disk,
    pool::Pool,
};

/// A pool's room, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub capacity: u64,
    /// Unique data still writable.
    pub free: u64,
    /// The number of volumes.
    pub volumes: u64,
}

/// How much a pool saves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratios {
    /// Bytes mapped by volumes for each distinct byte.
    pub dedup: f64,
    /// Distinct bytes for each byte stored.
    pub compression: f64,
}

/// The volumes to show and to manage. Looking is asked for every lookup, so it
/// answers from memory; changes are durable on return.
pub trait Volumes: Send + Sync + 'static {
    /// All of them.
    fn list(&self) -> Vec<VolumeInfo>;
    /// One by its name.
    fn find(&self, name: &str) -> Option<VolumeInfo>;
    /// One by its id, which never changes.
    fn by_id(&self, id: u64) -> Option<VolumeInfo>;
    /// All snapshots, as if they were volumes named `VOLUME@SNAPSHOT`.
    fn snapshots(&self) -> Vec<VolumeInfo> {
        Vec::new()
    }
    /// One snapshot by its full name, and when it was taken.
    fn snapshot(&self, name: &str) -> Option<(VolumeInfo, SystemTime)> {
        let _ = name;
        None
    }
    /// One snapshot by its id, which no volume has.
    fn snapshot_by_id(&self, id: u64) -> Option<(VolumeInfo, SystemTime)> {
        let _ = id;
        None
    }
    /// A volume or a snapshot by its name, to be read and, if it is a volume,
    /// written; in use while it is held.
    fn open(&self, name: &str) -> Option<Arc<dyn Disk>>;
    /// The pool's room.
    fn space(&self) -> Space;
    /// What the pool saves, counted exactly; may take a while.
    fn ratios(&self) -> Ratios;
    /// A volume or a snapshot with what it takes; may take a while.
    fn counted(&self, id: u64) -> Option<VolumeInfo>;
    /// Says whether a volume may be made smaller.
    ///
    /// # Errors
    /// As [`Pool::set_volume`].
    fn allow_shrink(&self, id: u64, allowed: bool) -> Result<(), EngineError>;
    /// Makes a volume.
    ///
    /// # Errors
    /// As [`Pool::create_volume`].
    fn create(&self, spec: &VolumeSpec) -> Result<VolumeInfo, EngineError>;
    /// Changes a volume's size, downwards too.
    ///
    /// # Errors
    /// As [`Pool::resize_volume`].
    fn resize(&self, id: u64, size_bytes: u64) -> Result<(), EngineError>;
    /// Gives a volume another name.
    ///
    /// # Errors
    /// As [`Pool::rename_volume`].
    fn rename(&self, old: &str, new: &str) -> Result<(), EngineError>;
    /// Deletes a volume that nobody uses.
    ///
    /// # Errors
    /// As [`Pool::delete_volume`].
    fn delete(&self, name: &str) -> Result<(), EngineError>;
}

fn with_time((snapshot, unix_ms): (VolumeInfo, u64)) -> (VolumeInfo, SystemTime) {
    let taken = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    (snapshot, taken.unwrap_or(SystemTime::UNIX_EPOCH))
}

/// The name that a volume has now.
fn named(pool: &Pool, id: u64) -> Result<String, EngineError> {
    let volume = pool.glance_at_id(id);
    let volume = volume
        .ok_or_else(|| EngineError::new(ErrorKind::NotFound, "The volume has been deleted"))?;
    Ok(volume.name)
}

/// Volumes cannot have such names.
pub(crate) fn is_snapshot(volume: &VolumeInfo) -> bool {
    volume.name.contains('@')
}

impl Volumes for Pool {
    fn list(&self) -> Vec<VolumeInfo> {
        self.glance()
    }

    fn find(&self, name: &str) -> Option<VolumeInfo> {
        self.glance_at(name)
    }

    fn by_id(&self, id: u64) -> Option<VolumeInfo> {
        self.glance_at_id(id)
    }

    fn snapshots(&self) -> Vec<VolumeInfo> {
        let all = self.glance_snapshots().into_iter();
        all.map(|(snapshot, _)| snapshot).collect()
    }

    fn snapshot(&self, name: &str) -> Option<(VolumeInfo, SystemTime)> {
        self.glance_snapshot(name).map(with_time)
    }

    fn snapshot_by_id(&self, id: u64) -> Option<(VolumeInfo, SystemTime)> {
        self.glance_snapshot_at_id(id).map(with_time)
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Disk>> {
        self.catalog().open(name)
    }

    fn space(&self) -> Space {
        let (capacity, free) = Pool::space(self);
        Space {
            capacity,
            free,
            volumes: self.glance().len() as u64,
        }
    }

    fn ratios(&self) -> Ratios {
        let status = self.status();
        Ratios {
            dedup: status.dedup_ratio,
            compression: status.compression_ratio,
        }
    }

    fn counted(&self, id: u64) -> Option<VolumeInfo> {
        self.counted_at_id(id)
    }

    fn allow_shrink(&self, id: u64, allowed: bool) -> Result<(), EngineError> {
        let change = VolumeChange {
            allow_shrink: Some(allowed),
            ..VolumeChange::default()
        };
        self.set_volume(&named(self, id)?, &change)?;
        Ok(())
    }

    fn create(&self, spec: &VolumeSpec) -> Result<VolumeInfo, EngineError> {
        self.create_volume(spec)
    }

    fn resize(&self, id: u64, size_bytes: u64) -> Result<(), EngineError> {
        self.resize_volume(&named(self, id)?, size_bytes, true)?;
        Ok(())
    }

    fn rename(&self, old: &str, new: &str) -> Result<(), EngineError> {
        self.rename_volume(old, new)?;
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<(), EngineError> {
        self.delete_volume(name)
    }
}
