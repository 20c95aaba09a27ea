//! One operation on its way through the kernel: a small state machine.
//!
//! [`Flight::entry`] says what to submit next, [`Flight::complete`] takes the
//! result and says whether that was all. A short transfer is continued where
//! it stopped.
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd, sync::Arc};

use io_uring::{opcode, squeue, types};

use crate::{
    device::{
        IoOp,
        file::{MAX_TRANSFER_BYTES, MAX_VECTORS, OpenFile, ZEROES},
    },
    sabotage::broken,
};

/// An operation, its buffers and its progress. While an entry of it is in the
/// kernel, the flight must neither be dropped nor its buffers touched.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) file: Arc<OpenFile>,
    pub(super) op: IoOp,
    /// Its place in the batch.
    pub(super) position: usize,
    /// Nobody waits for it any more (R5).
    pub(super) abandoned: bool,
    /// Bytes it holds if it is abandoned.
    pub(super) bytes: u64,
    offset: u64,
    /// Bytes transferred.
    done: u64,
    phase: Phase,
    /// Read by the kernel: it stays as it is while an entry is submitted.
    vectors: Vec<libc::iovec>,
}

/// What the next entry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The operation itself, or what is left of it.
    Main,
    /// A durable write where RWF_DSYNC does not exist: plain writes, and
    /// then [`Phase::SyncAfter`].
    WriteThenSync,
    /// The sync that makes such a write durable.
    SyncAfter,
    /// The zeroes of a preallocation whose space is allocated.
    Zeroes,
}

/// What a completion means.
pub(super) enum Progress {
    /// There is more to submit.
    Again,
    /// The operation is over.
    Done(io::Result<()>),
}

// SAFETY: the raw pointers of `vectors` point into buffers that the flight's
// `op` owns or shares, which are `Send`.
unsafe impl Send for Flight {}

fn entry_length(bytes: usize) -> u32 {
    u32::try_from(bytes.min(MAX_TRANSFER_BYTES)).expect("1 GiB fits 32 bits")
}

impl Flight {
    pub(super) fn new(file: Arc<OpenFile>, op: IoOp, offset: u64, position: usize) -> Self {
        let bytes = crate::device::file::buffer_bytes(&op);
        let (done, phase) = (0, Phase::Main);
        Self {
            file,
            op,
            position,
            abandoned: false,
            bytes,
            offset,
            done,
            phase,
            vectors: Vec::new(),
        }
    }

    /// Whether there is nothing to transfer at all.
    pub(super) fn is_trivial(&self) -> bool {
        match &self.op {
            IoOp::Read(_) => self.bytes == 0,
            IoOp::Write { durable, .. } => self.bytes == 0 && !durable,
            IoOp::Discard { length } | IoOp::Preallocate { length } => *length == 0,
            IoOp::Sync => false,
        }
    }

    /// The next entry to submit.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.file.file.as_raw_fd());
        let offset = self.offset + self.done;
        let done = usize::try_from(self.done).expect("transfers fit in memory");
        let phase = self.phase;
        let sync = || {
            if broken("sync.uring") {
                return opcode::Nop::new().build();
            }
            opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build()
        };
        match &mut self.op {
            _ if phase == Phase::SyncAfter => sync(),
            IoOp::Sync => sync(),
            IoOp::Read(buffer) => {
                let rest = &mut buffer[done..];
                let length = entry_length(rest.len());
                opcode::Read::new(fd, rest.as_mut_ptr(), length)
                    .offset(offset)
                    .build()
            }
            IoOp::Write { data, .. } if self.bytes == 0 => {
                // Nothing to write, only to sync.
                debug_assert!(data.iter().all(|slice| slice.is_empty()));
                sync()
            }
            IoOp::Write { data, durable } => {
                self.vectors.clear();
                let (mut skip, mut room) = (done, MAX_TRANSFER_BYTES);
                for slice in data.iter() {
                    let bytes = slice.as_slice();
                    if skip >= bytes.len() {
                        skip -= bytes.len();
                        continue;
                    }
                    let rest = &bytes[skip..];
                    skip = 0;
                    let length = rest.len().min(room);
                    room -= length;
                    if length == 0 || self.vectors.len() == MAX_VECTORS {
                        break;
                    }
                    let base = rest.as_ptr().cast_mut().cast();
                    self.vectors.push(libc::iovec {
                        iov_base: base,
                        iov_len: length,
                    });
                }
                let dsync = *durable && phase == Phase::Main && !broken("sync.uring_write");
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                match self.vectors.as_slice() {
                    [one] => {
                        let length = entry_length(one.iov_len);
                        opcode::Write::new(fd, one.iov_base.cast(), length)
                            .offset(offset)
                            .rw_flags(flags)
                            .build()
                    }
                    many => {
                        let count = u32::try_from(many.len()).expect("at most 1024 vectors");
                        opcode::Writev::new(fd, many.as_ptr(), count)
                            .offset(offset)
                            .rw_flags(flags)
                            .build()
                    }
                }
            }
            // On a block device too: the kernel discards there if it can.
            IoOp::Discard { length } => {
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, *length)
                    .offset(offset)
                    .mode(punch)
                    .build()
            }
            IoOp::Preallocate { length } if phase == Phase::Main => {
                opcode::Fallocate::new(fd, *length).offset(offset).build()
            }
            IoOp::Preallocate { length } => {
                let rest = usize::try_from(*length - self.done).unwrap_or(usize::MAX);
                let length = entry_length(rest.min(ZEROES.len()));
                opcode::Write::new(fd, ZEROES.as_ptr(), length)
                    .offset(offset)
                    .build()
            }
        }
    }

    /// Takes the result of the entry.
    pub(super) fn complete(&mut self, result: i32) -> Progress {
        let moved = match u64::try_from(result) {
            Ok(moved) => moved,
            Err(_) => return self.fail(-result),
        };
        let (total, at_end) = match &self.op {
            _ if self.phase == Phase::SyncAfter => return Progress::Done(Ok(())),
            IoOp::Sync | IoOp::Discard { .. } => return Progress::Done(Ok(())),
            IoOp::Write { .. } if self.bytes == 0 => return Progress::Done(Ok(())),
            IoOp::Preallocate { .. } if self.phase == Phase::Main => {
                self.phase = Phase::Zeroes;
                return Progress::Again;
            }
            IoOp::Read(_) => (self.bytes, io::ErrorKind::UnexpectedEof),
            IoOp::Write { .. } => (self.bytes, io::ErrorKind::WriteZero),
            IoOp::Preallocate { length } => (*length, io::ErrorKind::WriteZero),
        };
        if moved == 0 {
            return Progress::Done(Err(at_end.into()));
        }
        self.done += moved;
        if self.done < total {
            return Progress::Again;
        }
        if self.phase == Phase::WriteThenSync {
            self.phase = Phase::SyncAfter;
            return Progress::Again;
        }
        Progress::Done(Ok(()))
    }

    fn fail(&mut self, errno: i32) -> Progress {
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENODEV);
        match &self.op {
            // Nothing happened yet; the same again.
            _ if matches!(errno, libc::EINTR | libc::EAGAIN) => Progress::Again,
            IoOp::Write { durable: true, .. }
                if errno == libc::EOPNOTSUPP && self.phase == Phase::Main && self.bytes > 0 =>
            {
                self.phase = Phase::WriteThenSync;
                Progress::Again
            }
            IoOp::Preallocate { .. } if unsupported && self.phase == Phase::Main => {
                self.phase = Phase::Zeroes;
                Progress::Again
            }
            _ => Progress::Done(Err(io::Error::from_raw_os_error(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::*;
    use crate::device::{AlignedBuf, BLOCK_BYTES, BufSlice, OpenMode};

    /// Opcode and flags of an entry, as the kernel will read them.
    fn opcode_and_flags(flight: &mut Flight) -> (u8, u32) {
        let entry = flight.entry();
        // SAFETY: an entry is the kernel's `io_uring_sqe`: 64 plain bytes, all
        // of them initialized.
        let bytes: [u8; 64] = unsafe { std::mem::transmute_copy(&entry) };
        let flags = bytes[28..32].try_into().unwrap();
        (bytes[0], u32::from_ne_bytes(flags))
    }

    #[test]
    fn syncs_and_durable_writes_say_so_to_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let mode = OpenMode {
            writable: true,
            lock_patience: Duration::ZERO,
        };
        let file = Arc::new(OpenFile::open(&path, mode).unwrap());
        let flight = |op| Flight::new(Arc::clone(&file), op, 0, 0);
        let dsync = u32::try_from(libc::RWF_DSYNC).unwrap();
        let datasync = 1;
        assert_eq!(
            opcode_and_flags(&mut flight(IoOp::Sync)),
            (opcode::Fsync::CODE, datasync)
        );
        for (slices, code) in [(1, opcode::Write::CODE), (3, opcode::Writev::CODE)] {
            for (durable, flags) in [(true, dsync), (false, 0)] {
                let block = || BufSlice::from(AlignedBuf::zeroed(BLOCK_BYTES));
                let data = (0..slices).map(|_| block()).collect();
                let mut write = flight(IoOp::Write { data, durable });
                assert_eq!(opcode_and_flags(&mut write), (code, flags));
            }
        }
    }

    #[test]
    fn a_durable_write_without_dsync_is_followed_by_a_sync() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let mode = OpenMode {
            writable: true,
            lock_patience: Duration::ZERO,
        };
        let file = Arc::new(OpenFile::open(&path, mode).unwrap());
        let data = vec![BufSlice::from(AlignedBuf::zeroed(BLOCK_BYTES))];
        let op = IoOp::Write {
            data,
            durable: true,
        };
        let mut write = Flight::new(file, op, 0, 0);
        assert!(matches!(write.complete(-libc::EOPNOTSUPP), Progress::Again));
        assert_eq!(opcode_and_flags(&mut write), (opcode::Write::CODE, 0));
        assert!(matches!(write.complete(4096), Progress::Again));
        assert_eq!(opcode_and_flags(&mut write), (opcode::Fsync::CODE, 1));
        assert!(matches!(write.complete(0), Progress::Done(Ok(()))));
    }
}
