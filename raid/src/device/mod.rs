//! The one seam through which all member I/O goes.
//!
//! A [`Backend`] opens members and runs batches of operations on them. There
//! are three: io_uring, threaded `pread`/`pwrite`, and a simulation that
//! remembers what was flushed and can cut the power (see [`sim`]).

mod buffer;
mod file;
pub mod sim;
#[cfg(test)]
mod tests;
mod threads;
mod uring;

use std::{io, path::Path, sync::Arc};

pub use buffer::{AlignedBuf, BufSlice, BufferPool};
pub use threads::ThreadBackend;
pub use uring::UringBackend;

/// The unit of alignment of every offset, length and buffer address, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// How often a waiting batch asks its [`Verdict`].
const VERDICT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// An open device of one backend. Never reused within a backend's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceHandle(pub u32);

/// How to open a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenMode {
    /// Open for writing and take the exclusive lock; otherwise shared lock.
    pub writable: bool,
    /// Keep retrying a lock held elsewhere for this long before giving up.
    pub lock_patience: std::time::Duration,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Usable bytes, a multiple of [`BLOCK_BYTES`].
    pub size_bytes: u64,
    /// Equal for two handles exactly when they reach the same file or device,
    /// by whatever path or link.
    pub identity: (u64, u64),
    /// False where O_DIRECT was refused and the page cache is in between.
    pub direct: bool,
    /// A regular file rather than a block device: it can be punched and grown.
    pub regular_file: bool,
}

/// One operation. It owns its buffers until it completes, so an operation
/// abandoned on a stalled member can never touch memory that was reused (R5).
#[derive(Debug)]
pub enum IoOp {
    /// Fills the whole buffer or fails.
    Read(AlignedBuf),
    /// Writes the slices one after the other. With `durable` the completion
    /// means the bytes are on stable media (RWF_DSYNC).
    Write {
        /// What to write; every slice is block-aligned in address and length.
        data: Vec<BufSlice>,
        /// Complete only when on stable media.
        durable: bool,
    },
    /// Everything completed on this device before this batch becomes durable.
    Sync,
    /// The range's contents no longer matter; a sparse file gives the space
    /// back. Failure is harmless.
    Discard {
        /// Bytes.
        length: u64,
    },
    /// Allocates the range and makes it read as zeroes, so that later writes
    /// need no metadata update.
    Preallocate {
        /// Bytes.
        length: u64,
    },
}

/// An operation on a device and, after [`Backend::run`], its outcome.
#[derive(Debug)]
pub struct Io {
    /// The device.
    pub device: DeviceHandle,
    /// First byte, block-aligned. Unused by [`IoOp::Sync`].
    pub offset: u64,
    /// What to do. After an abandoned operation (outcome `TimedOut`) the
    /// buffers are gone: a read holds an empty buffer.
    pub op: IoOp,
    /// `None` before the run. Short transfers are continued by the backend;
    /// zero bytes before the end is `UnexpectedEof` or `WriteZero`.
    pub outcome: Option<io::Result<()>>,
}

/// Decides, while a batch waits, whether to give up on a device (R4, R5).
/// Called about once a second per device with unfinished operations.
pub trait Verdict {
    /// True when the unfinished operations on `device` are to be abandoned.
    fn abandon(&self, device: DeviceHandle) -> bool;

    /// Told of every operation of the batch that has failed so far, before
    /// each round of questions: a device that is no longer asked about has
    /// finished its part, but this one not well. May be told again.
    fn failed(&self, _io: &Io) {}

    /// Whether the answer can ever be true. A verdict that never abandons
    /// lets a backend take shorter ways that cannot be left.
    fn may_abandon(&self) -> bool {
        true
    }
}

/// Tells a verdict what has failed so far.
fn tell_failures(batch: &[Io], verdict: &dyn Verdict) {
    let failed = |io: &&Io| matches!(io.outcome, Some(Err(_)));
    batch
        .iter()
        .filter(failed)
        .for_each(|io| verdict.failed(io));
}

/// Waits for ever.
#[derive(Debug)]
pub struct Patient;

impl Verdict for Patient {
    fn abandon(&self, _device: DeviceHandle) -> bool {
        false
    }

    fn may_abandon(&self) -> bool {
        false
    }
}

/// Waits so long and no longer, whoever else answers.
#[derive(Debug)]
pub struct Deadline {
    begun: std::time::Instant,
    patience: std::time::Duration,
}

impl Deadline {
    /// Begins to wait now.
    pub fn after(patience: std::time::Duration) -> Self {
        Self {
            begun: std::time::Instant::now(),
            patience,
        }
    }
}

impl Verdict for Deadline {
    fn abandon(&self, _device: DeviceHandle) -> bool {
        self.begun.elapsed() >= self.patience
    }
}

/// Opens devices and runs batches on them.
///
/// Operations of a batch run in any order and concurrently; batches of
/// different threads too. Only [`IoOp::Sync`] (and `durable` writes) make
/// anything durable, and only what completed before they were submitted.
pub trait Backend: Send + Sync + 'static {
    /// `"io_uring"`, `"threads"` or `"simulated"`.
    fn name(&self) -> &'static str;

    /// Opens and locks an existing file or block device.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle>;

    /// Creates a regular sparse file of `size_bytes`; fails if it exists.
    fn create_file(&self, path: &Path, size_bytes: u64) -> io::Result<()>;

    /// What the device is.
    fn facts(&self, device: DeviceHandle) -> DeviceFacts;

    /// Closes the device once its last operation has completed.
    fn close(&self, device: DeviceHandle);

    /// Submits all operations and waits until every one has an outcome.
    fn run(&self, batch: &mut [Io], verdict: &dyn Verdict);
}

/// Chooses io_uring where the kernel allows it, else threads.
pub fn default_backend() -> Arc<dyn Backend> {
    match UringBackend::probe() {
        Ok(backend) => Arc::new(backend),
        Err(reason) => {
            tracing::info!(%reason, "io_uring is not available, using threads");
            Arc::new(ThreadBackend::new())
        }
    }
}
