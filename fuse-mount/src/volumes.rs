//! What the file system needs of a pool.

use std::sync::Arc;

use tessera_engine::{api::VolumeInfo, disk::Disk, pool::Pool};

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

/// The volumes to show. Called for every lookup, so it answers from memory.
pub trait Volumes: Send + Sync + 'static {
    /// All of them.
    fn list(&self) -> Vec<VolumeInfo>;
    /// One by its name.
    fn find(&self, name: &str) -> Option<VolumeInfo>;
    /// One by its name, to be read and written; in use while it is held.
    fn open(&self, name: &str) -> Option<Arc<dyn Disk>>;
    /// The pool's room.
    fn space(&self) -> Space;
}

impl Volumes for Pool {
    fn list(&self) -> Vec<VolumeInfo> {
        self.volumes()
    }

    fn find(&self, name: &str) -> Option<VolumeInfo> {
        self.volume(name).ok()
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Disk>> {
        self.catalog().open(name)
    }

    fn space(&self) -> Space {
        let status = self.status();
        Space {
            capacity: status.capacity_bytes,
            free: status.free_bytes,
            volumes: status.volumes,
        }
    }
}
