//! What a mount knows of a volume beyond the pool: when it was written, and how
//! long its file is while it is still growing.
//!
//! A volume has a fixed end, like a disk. Only a file that was created through
//! the mount grows as it is written, until it is closed. Making a volume longer
//! is a commit, so it is made longer by more than was asked for:
//!
//! ```text
//!   0              apparent                reserved = the volume's size
//!   |-- the file ---|-- nothing but holes --|
//! ```
//!
//! and cut at `apparent` when the file is synced or closed. Programs see the
//! file; after a crash before that, and through other front ends meanwhile, it
//! is as long as what was reserved, and the rest reads as zeroes.
//!
//! A volume has at least one byte. A file that has none, and stays so, is one of
//! a byte at the next mount.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::{Condvar, Mutex, RwLock};
use tessera_engine::{
    disk::{Disk, ExtentKind},
    pool::VOLUME_BYTES_MAX,
};

use crate::{
    errno::{Errno, errno_of, errno_of_management},
    volumes::Volumes,
};

/// `apparent` of a file that is as long as its volume.
const FIXED: u64 = u64::MAX;
/// Reserved beyond what was asked for: a quarter, within these bounds.
const AHEAD_BYTES_MIN: u64 = 4 << 20;
const AHEAD_BYTES_MAX: u64 = 1 << 30;
/// Runs asked of the disk at once.
const RUNS: usize = 16;
/// The smallest volume.
const VOLUME_BYTES_MIN: u64 = 1;

/// One volume, for all who have it open through the mount.
#[derive(Debug)]
pub struct Node {
    id: u64,
    /// Nanoseconds since 1970. Programs such as rsync skip what has not changed.
    modified: AtomicU64,
    apparent: AtomicU64,
    /// The volume's size as the mount left it while the file grows. Held for
    /// reading over a write that may grow, for writing over changes of size.
    reserved: RwLock<u64>,
    users: AtomicUsize,
    /// Disks held through the mount.
    held: Mutex<usize>,
    closed: Condvar,
}

impl Node {
    /// A volume that was last written at `modified`.
    pub fn new(id: u64, modified: SystemTime) -> Self {
        Self {
            id,
            modified: AtomicU64::new(nanoseconds(modified)),
            apparent: AtomicU64::new(FIXED),
            reserved: RwLock::new(0),
            users: AtomicUsize::new(0),
            held: Mutex::new(0),
            closed: Condvar::new(),
        }
    }

    /// An empty file that grows as it is written.
    pub fn newborn(id: u64, born: SystemTime) -> Self {
        Self {
            apparent: AtomicU64::new(0),
            reserved: RwLock::new(VOLUME_BYTES_MIN),
            ..Self::new(id, born)
        }
    }

    /// The size of a volume that an empty file stands for.
    pub const fn newborn_bytes() -> u64 {
        VOLUME_BYTES_MIN
    }

    /// The time of the last write.
    pub fn modified(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.modified.load(Ordering::Relaxed))
    }

    /// Says that it was written now.
    pub fn touch(&self) {
        let now = nanoseconds(SystemTime::now());
        self.modified.fetch_max(now, Ordering::Relaxed);
    }

    /// Says when it was written.
    pub fn set_modified(&self, time: SystemTime) {
        self.modified.store(nanoseconds(time), Ordering::Relaxed);
    }

    /// Whether it may be made smaller, and O_TRUNC empties it, where the volume
    /// allows it or not.
    pub fn may_shrink(&self, allowed: bool) -> bool {
        allowed || self.is_growing()
    }

    pub(crate) fn enter(&self) {
        self.users.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the last one leaves.
    pub(crate) fn leave(&self) -> bool {
        self.users.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Waits until nobody has it open. The kernel tells of the last close only
    /// after the program goes on.
    pub(crate) fn wait_closed(&self, patience: Duration) {
        let mut held = self.held.lock();
        self.closed
            .wait_while_for(&mut held, |held| *held > 0, patience);
    }

    /// The file grows as it is written.
    pub fn is_growing(&self) -> bool {
        self.apparent.load(Ordering::Acquire) != FIXED
    }

    /// The file's length when its volume has `actual` bytes.
    pub fn length(&self, actual: u64) -> u64 {
        self.apparent.load(Ordering::Acquire).min(actual)
    }

    /// Runs `write`, which ends at `end`, with the volume long enough for it if
    /// the file may grow.
    ///
    /// # Errors
    /// What `write` returns; ENOSPC or EFBIG if the volume cannot grow.
    pub(crate) fn growing<T>(
        &self,
        volumes: &dyn Volumes,
        disk: &dyn Disk,
        end: u64,
        write: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            let reserved = self.reserved.read();
            let actual = disk.size();
            if !self.is_growing() || end <= actual {
                let done = write()?;
                // Stays FIXED, the largest number, where it is.
                self.apparent.fetch_max(end.min(actual), Ordering::AcqRel);
                return Ok(done);
            }
            drop(reserved);
            self.grow(volumes, disk, end)?;
        }
    }

    fn grow(&self, volumes: &dyn Volumes, disk: &dyn Disk, end: u64) -> Result<(), Errno> {
        let mut reserved = self.reserved.write();
        let actual = disk.size();
        if end <= actual || !self.is_growing() {
            return Ok(());
        }
        if actual != *reserved {
            // Somebody has given it a size of its own meanwhile.
            self.apparent.store(FIXED, Ordering::Release);
            return Ok(());
        }
        if end > VOLUME_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let ahead = (end / 4).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        let size = end.saturating_add(ahead).min(VOLUME_BYTES_MAX);
        volumes
            .resize(self.id, size)
            .map_err(|error| errno_of_management(&error))?;
        *reserved = size;
        Ok(())
    }

    /// Cuts off what is reserved beyond the file's end.
    ///
    /// # Errors
    /// The volume is longer than the file; nothing else is wrong.
    pub(crate) fn settle(&self, volumes: &dyn Volumes, disk: &dyn Disk) -> Result<(), Errno> {
        if !self.is_growing() {
            return Ok(());
        }
        let mut reserved = self.reserved.write();
        let actual = disk.size();
        let size = self.apparent.load(Ordering::Acquire).max(VOLUME_BYTES_MIN);
        if size >= actual || actual != *reserved {
            return Ok(());
        }
        // Another front end may have written beyond the file's last chunk.
        let chunk = u64::from(disk.info().chunk_size);
        let from = size.next_multiple_of(chunk).min(actual);
        if holds_data(disk, from, actual)? {
            self.apparent.store(FIXED, Ordering::Release);
            return Ok(());
        }
        volumes
            .resize(self.id, size)
            .map_err(|error| errno_of_management(&error))?;
        *reserved = size;
        Ok(())
    }

    /// The file has been closed: it is now as long as its volume, unless it is
    /// still empty.
    pub(crate) fn finish(&self, volumes: &dyn Volumes, disk: &dyn Disk) -> Result<(), Errno> {
        let settled = self.settle(volumes, disk);
        let _reserved = self.reserved.write();
        if self.apparent.load(Ordering::Acquire) > 0 {
            self.apparent.store(FIXED, Ordering::Release);
        }
        settled
    }

    /// `truncate(2)` of a file whose volume has `actual` bytes, and may be made
    /// smaller or not.
    ///
    /// # Errors
    /// EPERM for a shorter file that may not shrink; what resizing says.
    pub fn truncate(
        &self,
        volumes: &dyn Volumes,
        actual: u64,
        may_shrink: bool,
        size: u64,
    ) -> Result<(), Errno> {
        let mut reserved = self.reserved.write();
        let length = self.length(actual);
        if size == length {
            return Ok(());
        }
        if size < length && !self.may_shrink(may_shrink) {
            return Err(Errno::EPERM);
        }
        if size > VOLUME_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let wanted = size.max(VOLUME_BYTES_MIN);
        if wanted != actual {
            volumes
                .resize(self.id, wanted)
                .map_err(|error| errno_of_management(&error))?;
        }
        *reserved = wanted;
        // An empty file is a new one; one that grows goes on growing.
        if size == 0 || self.is_growing() {
            self.apparent.store(size, Ordering::Release);
        }
        self.touch();
        Ok(())
    }
}

/// Somebody holds the volume's disk.
#[derive(Debug)]
pub(crate) struct Held(Arc<Node>);

impl Held {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        *node.held.lock() += 1;
        Self(node)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.held.lock() -= 1;
        self.0.closed.notify_all();
    }
}

fn holds_data(disk: &dyn Disk, mut from: u64, to: u64) -> Result<bool, Errno> {
    while from < to {
        let runs = disk
            .extents(from, to - from, RUNS)
            .map_err(|error| errno_of(&error))?;
        if runs.is_empty() || runs.iter().any(|run| run.kind == ExtentKind::Data) {
            return Ok(true);
        }
        from += runs.iter().map(|run| run.length).sum::<u64>();
    }
    Ok(false)
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 or after 2500 is as good as none.
    since
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
