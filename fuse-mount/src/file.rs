//! An open volume as a file: reads, writes, holes, flushes.
//!
//! A volume has a fixed end, like a disk. Reads stop there, writes stop there
//! and then say that there is no space. Only a new file grows ([`crate::node`]).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tessera_engine::disk::{Disk, DiskError, ExtentKind, FlushDone, Operation, Request};

use crate::{
    errno::{Errno, errno_of},
    node::{Held, Node},
    volumes::Volumes,
};

/// `fallocate`: do not change the size. Values of Linux's `falloc.h`.
const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;

/// `lseek`: values of Linux's `fs.h`.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Runs asked of the disk at once while looking for data or a hole.
const RUNS: usize = 256;

/// A volume that a program has opened.
pub struct OpenFile {
    disk: Arc<dyn Disk>,
    node: Arc<Node>,
    volumes: Arc<dyn Volumes>,
    /// Something was written since the last flush began.
    dirty: AtomicBool,
    /// After the disk: whoever waits for it finds the volume unused.
    _held: Held,
}

/// One read of a batch.
#[derive(Debug)]
pub struct ReadPiece<'a> {
    /// First byte.
    pub offset: u64,
    /// Where the bytes go.
    pub buffer: &'a mut [u8],
    /// How many there are.
    pub result: Result<usize, Errno>,
}

impl OpenFile {
    /// A handle on `disk`, a volume of `volumes`.
    pub fn new(disk: Arc<dyn Disk>, node: Arc<Node>, volumes: Arc<dyn Volumes>) -> Self {
        node.enter();
        let held = Held::new(Arc::clone(&node));
        Self {
            disk,
            node,
            volumes,
            dirty: AtomicBool::new(false),
            _held: held,
        }
    }

    /// The size at this moment, in bytes.
    pub fn size(&self) -> u64 {
        self.node.length(self.disk.size())
    }

    fn growing<T>(&self, end: u64, write: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        self.node
            .growing(self.volumes.as_ref(), self.disk.as_ref(), end, write)
    }

    /// Cuts off what a growing file has reserved beyond its end.
    ///
    /// # Errors
    /// What resizing says.
    pub fn settle(&self) -> Result<(), Errno> {
        self.node.settle(self.volumes.as_ref(), self.disk.as_ref())
    }

    /// Fills `buffer` from `offset` as far as the volume goes.
    ///
    /// # Errors
    /// EIO when any of it cannot be read; never bytes that are not right.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let length = self.clamp(offset, buffer.len() as u64);
        if length == 0 {
            return Ok(0);
        }
        let length = usize::try_from(length).expect("no longer than the buffer");
        let buffer = &mut buffer[..length];
        self.execute(Operation::Read { offset, buffer })?;
        Ok(length)
    }

    /// The same for many reads at once, which then wait for the members
    /// together. Each has a result of its own.
    pub fn read_many(&self, pieces: &mut [ReadPiece<'_>]) {
        let mut batch = Vec::with_capacity(pieces.len());
        let mut results = Vec::with_capacity(pieces.len());
        for ReadPiece {
            offset,
            buffer,
            result,
        } in pieces
        {
            let length = self.clamp(*offset, buffer.len() as u64);
            *result = Ok(usize::try_from(length).expect("no longer than the buffer"));
            if let Ok(length @ 1..) = *result {
                let (offset, buffer) = (*offset, &mut buffer[..length]);
                batch.push(Request::new(Operation::Read { offset, buffer }));
                results.push(result);
            }
        }
        self.disk.execute(&mut batch);
        for (request, result) in batch.into_iter().zip(results) {
            if let Err(error) = request.result {
                *result = Err(told(&error));
            }
        }
    }

    /// Stores as much of `data` at `offset` as the volume has room for.
    ///
    /// # Errors
    /// ENOSPC at the volume's end and in a full pool, EROFS, EIO.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if data.is_empty() {
            return Ok(0);
        }
        let end = offset.saturating_add(data.len() as u64);
        self.growing(end, || {
            // To the volume's end: that of a growing file is where writes are.
            let room = self.disk.size().saturating_sub(offset);
            let length = usize::try_from(room).map_or(data.len(), |room| room.min(data.len()));
            if length == 0 {
                return Err(Errno::ENOSPC);
            }
            let data = &data[..length];
            self.change(Operation::Write { offset, data })?;
            Ok(length)
        })
    }

    /// `fallocate(2)`: makes a hole or zeroes; the size never changes, and
    /// what lies beyond the end is as it should be already.
    ///
    /// # Errors
    /// EOPNOTSUPP for other modes, EFBIG for what would make the file longer.
    pub fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let zero = match mode & !KEEP_SIZE {
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => false,
            ZERO_RANGE => true,
            // Space is not set aside for volumes, so a promise that writes
            // will find room cannot be given.
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let end = offset.saturating_add(length);
        if mode & KEEP_SIZE == 0 && self.node.is_growing() {
            return self.growing(end, || self.change(zeroes(offset, length)));
        }
        let within = self.clamp(offset, length);
        if mode & KEEP_SIZE == 0 && within < length {
            return Err(Errno::EFBIG);
        }
        if within == 0 {
            return Ok(());
        }
        self.change(if zero {
            zeroes(offset, within)
        } else {
            Operation::Discard {
                offset,
                length: within,
            }
        })
    }

    /// `lseek(2)` with SEEK_DATA or SEEK_HOLE. Whatever is known to read as
    /// zeroes is a hole; the end of the volume is one too.
    ///
    /// # Errors
    /// ENXIO at or past the end and where no data follows, EINVAL for others.
    pub fn seek(&self, offset: i64, whence: i32) -> Result<u64, Errno> {
        let want_data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let size = self.size();
        let mut at = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if at >= size {
            return Err(Errno::ENXIO);
        }
        while at < size {
            let runs = self
                .disk
                .extents(at, size - at, RUNS)
                .map_err(|error| errno_of(&error))?;
            if runs.is_empty() {
                return Err(Errno::EIO);
            }
            for run in runs {
                if (run.kind == ExtentKind::Data) == want_data {
                    return Ok(at);
                }
                at += run.length;
            }
        }
        if want_data {
            Err(Errno::ENXIO)
        } else {
            Ok(size)
        }
    }

    /// Makes everything written before durable, then calls `done`, from any
    /// thread.
    pub fn flush(&self, done: FlushDone) {
        self.dirty.store(false, Ordering::Release);
        self.disk.flush(done);
    }

    /// The same, but only if something was written through this handle since
    /// the last flush; else calls `done` at once.
    pub fn flush_if_dirty(&self, done: FlushDone) {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.disk.flush(done);
        } else {
            done(Ok(()));
        }
    }

    /// How much of `offset..offset + length` lies within the volume.
    fn clamp(&self, offset: u64, length: u64) -> u64 {
        length.min(self.size().saturating_sub(offset))
    }

    fn change(&self, operation: Operation<'_>) -> Result<(), Errno> {
        let done = self.execute(operation);
        // Also after a failure: part of it may have been written.
        self.dirty.store(true, Ordering::Release);
        self.node.touch();
        done
    }

    fn execute(&self, operation: Operation<'_>) -> Result<(), Errno> {
        let mut batch = [Request::new(operation)];
        self.disk.execute(&mut batch);
        let [request] = batch;
        request.result.map_err(|error| told(&error))
    }
}

/// The number of an error, which is logged if somebody should look at it.
fn told(error: &DiskError) -> Errno {
    if let DiskError::Io(reason) = error {
        tracing::warn!(reason, "an operation on a mounted volume failed");
    }
    errno_of(error)
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.node.leave()
            && let Err(errno) = self.node.finish(self.volumes.as_ref(), self.disk.as_ref())
        {
            tracing::warn!(?errno, "a new volume stays longer than its file");
        }
    }
}

fn zeroes(offset: u64, length: u64) -> Operation<'static> {
    Operation::WriteZeroes {
        offset,
        length,
        keep_allocated: true,
    }
}

#[cfg(test)]
mod tests;
