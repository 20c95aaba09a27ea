//! Opening, locking and measuring members; blocking operations on them.
//!
//! What the io_uring and the thread backends share. The lock is an flock on
//! the very descriptor that does the I/O: it lives exactly as long as any
//! operation can still reach the member, abandoned ones included, so no other
//! process (and no re-add, R5) gets at a member with writes in flight.
#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags},
    io::{Errno, ReadWriteFlags},
};

use super::{AlignedBuf, BLOCK_BYTES, BufSlice, DeviceFacts, DeviceHandle, IoOp, OpenMode};
use crate::sabotage::broken;

/// How long to sleep between attempts at a lock held elsewhere.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Slices of one vectored call: the kernel's `UIO_MAXIOV`.
pub(super) const MAX_VECTORS: usize = 1024;

/// The most bytes asked of one call, below the kernel's `MAX_RW_COUNT`.
pub(super) const MAX_TRANSFER_BYTES: usize = 1 << 30;

/// Abandoned operations a device may have before new ones are refused (R5).
const ORPHAN_OPERATIONS_MAX: u64 = 1024;

/// Bytes of abandoned operations before new ones are refused (R5).
const ORPHAN_BYTES_MAX: u64 = 64 << 20;

/// Zeroes that preallocation writes from.
pub(super) static ZEROES: LazyLock<Arc<AlignedBuf>> =
    LazyLock::new(|| Arc::new(AlignedBuf::zeroed(1 << 20)));

/// An open and locked member. Closing it (the last reference) unlocks it.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) facts: DeviceFacts,
    pub(super) path: PathBuf,
    orphan_operations: AtomicU64,
    orphan_bytes: AtomicU64,
    /// Lets a test hold up blocking operations.
    #[cfg(test)]
    pub(super) gate: Option<Arc<super::tests::Gate>>,
    /// Lets a test be without RWF_DSYNC, and counts the syncs in its place.
    #[cfg(test)]
    pub(super) without_dsync: Option<Arc<std::sync::atomic::AtomicUsize>>,
}

fn error(kind: io::ErrorKind, path: &Path, what: &str) -> io::Error {
    io::Error::new(kind, format!("{} {what}", path.display()))
}

impl OpenFile {
    /// Opens, checks and locks a regular file or block device.
    pub(super) fn open(path: &Path, mode: OpenMode) -> io::Result<Self> {
        // Before opening: opening a FIFO can block and a tape can move.
        let metadata = fs::metadata(path)?;
        let kind = metadata.file_type();
        if metadata.is_dir() {
            return Err(error(io::ErrorKind::IsADirectory, path, "is a directory"));
        }
        if !(metadata.is_file() || kind.is_block_device()) {
            let what = "is neither a regular file nor a block device";
            return Err(error(io::ErrorKind::InvalidInput, path, what));
        }
        let regular_file = metadata.is_file();
        let patience_ends = Instant::now() + mode.lock_patience;
        let (file, direct) = loop {
            match open_and_lock(path, mode, regular_file) {
                Err(busy) if busy.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= patience_ends {
                        return Err(busy);
                    }
                    thread::sleep(LOCK_RETRY);
                }
                done => break done?,
            }
        };
        // What was opened may not be what was looked at before.
        let metadata = file.metadata()?;
        if metadata.is_file() != regular_file
            || metadata.file_type().is_block_device() == regular_file
        {
            return Err(error(
                io::ErrorKind::InvalidInput,
                path,
                "changed while it was opened",
            ));
        }
        let (identity, raw_size) = if regular_file {
            ((metadata.dev(), metadata.ino()), metadata.len())
        } else {
            let logical = u64::from(rustix::fs::ioctl_blksszget(&file)?);
            if logical == 0 || !(BLOCK_BYTES as u64).is_multiple_of(logical) {
                let what = format!("has sectors of {logical} bytes, which do not divide 4096");
                return Err(error(io::ErrorKind::Unsupported, path, &what));
            }
            let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
            ((u64::MAX, metadata.rdev()), size)
        };
        if !direct {
            tracing::warn!(path = %path.display(), "O_DIRECT does not work here, using the page cache");
        }
        let size_bytes = raw_size - raw_size % BLOCK_BYTES as u64;
        Ok(Self::new(
            file,
            path,
            DeviceFacts {
                size_bytes,
                identity,
                direct,
                regular_file,
            },
        ))
    }

    pub(super) fn new(file: File, path: &Path, facts: DeviceFacts) -> Self {
        Self {
            file,
            facts,
            path: path.to_owned(),
            orphan_operations: AtomicU64::new(0),
            orphan_bytes: AtomicU64::new(0),
            #[cfg(test)]
            gate: None,
            #[cfg(test)]
            without_dsync: None,
        }
    }

    /// Whether the abandoned operations leave room for new ones (R5).
    pub(super) fn check_quota(&self) -> io::Result<()> {
        if self.orphan_operations.load(Ordering::Relaxed) < ORPHAN_OPERATIONS_MAX
            && self.orphan_bytes.load(Ordering::Relaxed) < ORPHAN_BYTES_MAX
        {
            return Ok(());
        }
        let what = "has too many abandoned operations that never completed";
        Err(error(io::ErrorKind::ResourceBusy, &self.path, what))
    }

    /// Counts an abandoned operation that holds `bytes` of buffers.
    pub(super) fn orphan(&self, bytes: u64) {
        self.orphan_operations.fetch_add(1, Ordering::Relaxed);
        self.orphan_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An abandoned operation has completed after all.
    pub(super) fn orphan_done(&self, bytes: u64) {
        self.orphan_operations.fetch_sub(1, Ordering::Relaxed);
        self.orphan_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Performs an operation in this thread. Short transfers are continued.
    pub(super) fn perform(&self, offset: u64, op: &mut IoOp) -> io::Result<()> {
        #[cfg(test)]
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        match op {
            IoOp::Read(buffer) => self.file.read_exact_at(buffer, offset),
            IoOp::Write { data, durable } => self.write(offset, data, *durable),
            IoOp::Sync if broken("sync.threads") => Ok(()),
            IoOp::Sync => Ok(rustix::fs::fdatasync(&self.file)?),
            IoOp::Discard { length } => self.discard(offset, *length),
            IoOp::Preallocate { length } => self.preallocate(offset, *length),
        }
    }

    fn write(&self, mut offset: u64, data: &[BufSlice], durable: bool) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = data
            .iter()
            .map(|slice| IoSlice::new(slice.as_slice()))
            .collect();
        let mut rest = slices.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0);
        let mut sync_after = false;
        while !rest.is_empty() {
            let vectors = &rest[..rest.len().min(MAX_VECTORS)];
            let flags = if durable && !sync_after && !broken("sync.threads_write") {
                ReadWriteFlags::DSYNC
            } else {
                ReadWriteFlags::empty()
            };
            let written = match self.write_vectors(vectors, offset, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) if !flags.is_empty() => {
                    sync_after = true;
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        if sync_after && !broken("sync.threads_fallback") {
            #[cfg(test)]
            if let Some(syncs) = &self.without_dsync {
                syncs.fetch_add(1, Ordering::SeqCst);
            }
            rustix::fs::fdatasync(&self.file)?;
        }
        Ok(())
    }

    fn write_vectors(
        &self,
        vectors: &[IoSlice<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> rustix::io::Result<usize> {
        #[cfg(test)]
        if self.without_dsync.is_some() && !flags.is_empty() {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::io::pwritev2(&self.file, vectors, offset, flags)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.facts.regular_file {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            return Ok(rustix::fs::fallocate(&self.file, punch, offset, length)?);
        }
        /// `_IO(0x12, 119)` of `linux/fs.h`.
        const BLKDISCARD: libc::Ioctl = 0x1277;
        let range = [offset, length];
        // SAFETY: BLKDISCARD reads two 64-bit words behind the pointer, which
        // outlive the call; the descriptor is open.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Allocates, then writes real zeroes: extents that are only reserved
    /// would still cost a metadata update at the first write.
    fn preallocate(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODEV) => {}
            Err(errno) => return Err(errno.into()),
        }
        while length > 0 {
            let part = length.min(ZEROES.len() as u64);
            let bytes = usize::try_from(part).expect("at most the length of ZEROES");
            self.file.write_all_at(&ZEROES[..bytes], offset)?;
            offset += part;
            length -= part;
        }
        Ok(())
    }
}

/// One attempt; `WouldBlock` where another holds the lock. Also whether
/// O_DIRECT works.
fn open_and_lock(path: &Path, mode: OpenMode, regular_file: bool) -> io::Result<(File, bool)> {
    let open = |flags: OFlags| {
        let mut flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if mode.writable && !regular_file {
            // Refuses block devices that are mounted or otherwise claimed.
            flags |= OFlags::EXCL;
        }
        let flags = i32::try_from(flags.bits()).expect("open flags fit a C int");
        let file = OpenOptions::new()
            .read(true)
            .write(mode.writable)
            .custom_flags(flags)
            .open(path)?;
        // It was only for opening: io_uring would answer EAGAIN for it
        // wherever an operation has to wait.
        let opened = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, opened.difference(OFlags::NONBLOCK))?;
        Ok(file)
    };
    let direct = open(OFlags::DIRECT).and_then(|file: File| {
        // Some file systems take the flag and refuse the I/O.
        match file.read_at(&mut AlignedBuf::zeroed(BLOCK_BYTES), 0) {
            Err(refused) if refused.raw_os_error() == Some(libc::EINVAL) => Err(refused),
            _ => Ok(file),
        }
    });
    let (file, direct) = match direct {
        Err(refused) if refused.raw_os_error() == Some(libc::EINVAL) => {
            (open(OFlags::empty())?, false)
        }
        Err(busy) if busy.raw_os_error() == Some(libc::EBUSY) => {
            let what = "is in use by a mounted file system or another process";
            return Err(error(io::ErrorKind::WouldBlock, path, what));
        }
        opened => (opened?, true),
    };
    let operation = if mode.writable {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    loop {
        return match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok((file, direct)),
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => Err(error(
                io::ErrorKind::WouldBlock,
                path,
                "is in use by another process",
            )),
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Creates a sparse file and makes its name durable.
pub(super) fn create_file(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let sized = file
        .set_len(size_bytes)
        .and_then(|()| match broken("sync.new_file") {
            true => Ok(()),
            false => file.sync_all(),
        });
    let named = sized.and_then(|()| {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if broken("sync.new_name") {
            return Ok(());
        }
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    });
    if named.is_err() {
        // Nothing half-made stays behind; the first error is the one to tell.
        let _ = fs::remove_file(path);
    }
    named
}

/// The open devices of a backend by handle. Handles are never reused.
#[derive(Debug)]
pub(super) struct Table<D> {
    devices: RwLock<Vec<Option<Arc<D>>>>,
}

impl<D> Default for Table<D> {
    fn default() -> Self {
        Self {
            devices: RwLock::default(),
        }
    }
}

impl<D> Table<D> {
    pub(super) fn add(&self, device: D) -> DeviceHandle {
        let mut devices = self.devices.write();
        let handle = u32::try_from(devices.len()).expect("fewer than 2^32 opens");
        devices.push(Some(Arc::new(device)));
        DeviceHandle(handle)
    }

    /// The device; an error where it is closed.
    pub(super) fn get(&self, handle: DeviceHandle) -> io::Result<Arc<D>> {
        let devices = self.devices.read();
        let device = usize::try_from(handle.0)
            .ok()
            .and_then(|index| devices.get(index));
        let device = device.and_then(Option::clone);
        device.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Forgets the device; the last operation in flight closes it.
    pub(super) fn close(&self, handle: DeviceHandle) {
        let mut devices = self.devices.write();
        let slot = usize::try_from(handle.0)
            .ok()
            .and_then(|index| devices.get_mut(index));
        let device = slot.and_then(Option::take);
        drop(devices);
        // Closing can take long: not under the lock.
        drop(device);
    }
}

/// Bytes of buffers that an operation owns.
pub(super) fn buffer_bytes(op: &IoOp) -> u64 {
    match op {
        IoOp::Read(buffer) => buffer.len() as u64,
        IoOp::Write { data, .. } => data.iter().map(|slice| slice.len() as u64).sum(),
        IoOp::Sync | IoOp::Discard { .. } | IoOp::Preallocate { .. } => 0,
    }
}

/// The operation without its buffers, as an abandoned one is left behind.
pub(super) fn without_buffers(op: &IoOp) -> IoOp {
    match op {
        IoOp::Read(_) => IoOp::Read(AlignedBuf::empty()),
        IoOp::Write { durable, .. } => IoOp::Write {
            data: Vec::new(),
            durable: *durable,
        },
        IoOp::Sync => IoOp::Sync,
        IoOp::Discard { length } => IoOp::Discard { length: *length },
        IoOp::Preallocate { length } => IoOp::Preallocate { length: *length },
    }
}

/// The outcome of an operation that was given up.
pub(super) fn timed_out(path: &Path) -> io::Error {
    error(
        io::ErrorKind::TimedOut,
        path,
        "did not answer and was given up",
    )
}
