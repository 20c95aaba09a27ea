//! What a front end (NBD, FUSE) sees of a volume: a disk that executes batches.
//!
//! A front end collects every request that has arrived, calls [`Disk::execute`]
//! once, and answers them together. Writes and cached reads complete inside the
//! call; a flush is completed later, by the committer, through its callback.
//!
//! Ordering and durability (a disk with a volatile write cache):
//! * A request acknowledged before another one is submitted is seen by it,
//!   whatever connection or front end they came through.
//! * Requests of one batch may take effect in any order.
//! * A write is durable once a flush submitted after its acknowledgement has
//!   completed. A flush covers all volumes of the pool and all connections.
//! * A failed request may have changed any part of its own range, nothing else.

use std::sync::Arc;

use thiserror::Error;

/// The longest transfer of one request, in bytes (32 MiB).
pub const MAX_TRANSFER_BYTES: usize = 32 << 20;

/// Why a disk refused or failed a request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DiskError {
    /// The range does not lie within the disk.
    #[error("The range {offset}+{length} lies beyond the end of the disk at {size}")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// The disk, the export or the whole pool is read-only.
    #[error("The disk is read-only")]
    ReadOnly,
    /// The pool has no room for new data. Reads, flushes and discards still work.
    #[error("The pool is full: delete or discard data, or add capacity")]
    NoSpace,
    /// The bytes cannot be read or the write could not be made.
    #[error("Input/output error: {0}")]
    Io(String),
    /// The request cannot be done quickly, as `fast` demanded.
    #[error("The range cannot be zeroed faster than by writing zeroes")]
    NotFast,
    /// The pool is shutting down or the volume has been deleted.
    #[error("The disk is going away")]
    Gone,
}

/// One operation on a byte range. Offsets and lengths need no alignment.
#[derive(Debug)]
pub enum Operation<'a> {
    /// Fill `buffer` from `offset`. Never returns bytes that failed verification.
    Read {
        /// First byte.
        offset: u64,
        /// Where the bytes go; its length is the length of the read.
        buffer: &'a mut [u8],
    },
    /// Store `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Forget the range: it reads as zeroes afterwards and holds no space.
    Discard {
        /// First byte.
        offset: u64,
        /// Any length up to the disk's size.
        length: u64,
    },
    /// Make the range read as zeroes. Zeroes are never stored, so this is as
    /// fast as a discard; it always is a map operation.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Any length up to the disk's size.
        length: u64,
        /// The caller asked that the range stay allocated (NBD `NO_HOLE`).
        keep_allocated: bool,
    },
    /// Bring the range into the cache. A hint; never fails for lack of memory.
    Prefetch {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// An operation and, after [`Disk::execute`], its result.
#[derive(Debug)]
pub struct Request<'a> {
    /// What to do.
    pub operation: Operation<'a>,
    /// `Ok` until the disk says otherwise.
    pub result: Result<(), DiskError>,
}

impl<'a> Request<'a> {
    /// A request that has not been executed.
    pub fn new(operation: Operation<'a>) -> Self {
        Self {
            operation,
            result: Ok(()),
        }
    }
}

/// What a range of the disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored bytes.
    Data,
    /// Nothing stored; reads as zeroes.
    Hole,
    /// Reads as zeroes and was asked to stay allocated.
    Zero,
}

/// A run of one kind. Runs are non-empty, in order, and without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes in the run.
    pub length: u64,
    /// What it is made of.
    pub kind: ExtentKind,
}

/// A run that is the same as it was, or that may read differently. Runs are
/// non-empty, in order, and without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeExtent {
    /// Bytes in the run.
    pub length: u64,
    /// It may read differently.
    pub changed: bool,
}

/// What does not change between two requests, except by a management operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// The name it is exported under.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Writes fail with [`DiskError::ReadOnly`].
    pub read_only: bool,
    /// The size in bytes in which writes cost least.
    pub chunk_size: u32,
}

/// Called exactly once, from any thread. It must not block and must not call
/// back into the disk.
pub type FlushDone = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// A virtual disk.
pub trait Disk: Send + Sync + 'static {
    /// What the disk is at this moment.
    fn info(&self) -> DiskInfo;

    /// The size in bytes at this moment. Front ends ask before every batch, so
    /// implementations should answer without building a whole [`DiskInfo`].
    fn size(&self) -> u64 {
        self.info().size
    }

    /// Executes every request of the batch and sets its result. Blocks for
    /// cold reads and, under memory or space pressure, for the stripe writer;
    /// never for a flush.
    fn execute(&self, batch: &mut [Request<'_>]);

    /// Makes every write acknowledged before this call durable, on any
    /// connection and volume, then calls `done`. Does not block.
    fn flush(&self, done: FlushDone);

    /// For a front end that has answered all it had taken in: does some of what
    /// a flush would ask for, in this thread, if one is to be expected. Blocks
    /// for the members at most as long as that flush would take. What a flush
    /// promises does not depend on it.
    fn work_ahead(&self) {}

    /// What `offset..offset + length` is made of, in at most `max` runs. The
    /// runs start at `offset`, never pass the end of the range, and may stop
    /// short of it only when `max` is reached.
    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, DiskError>;

    /// The snapshots that [`Self::changed_since`] knows by a short name, oldest
    /// first.
    fn snapshots(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether [`Self::changed_since`] knows a snapshot of this name.
    fn knows_snapshot(&self, snapshot: &str) -> bool {
        self.snapshots().iter().any(|name| name == snapshot)
    }

    /// What of `offset..offset + length` may read differently than in a
    /// snapshot, in at least one and at most `max` runs. They start at `offset`,
    /// never pass the end of the range, and may stop short of it. Every byte
    /// that reads differently is in a run that says so; bytes that were written
    /// again as they were may be.
    fn changed_since(
        &self,
        snapshot: &str,
        offset: u64,
        length: u64,
        max: usize,
    ) -> Result<Vec<ChangeExtent>, DiskError> {
        let _ = (offset, length, max);
        Err(DiskError::Io(format!("There is no snapshot {snapshot:?}")))
    }
}

/// The disks a server exports.
pub trait DiskCatalog: Send + Sync + 'static {
    /// The names of all disks, sorted.
    fn names(&self) -> Vec<String>;

    /// Looks a disk up; `None` when there is none of that name. Called after
    /// negotiation has chosen an export, or to describe one.
    fn open(&self, name: &str) -> Option<Arc<dyn Disk>>;
}
