//! An open volume as a file: reads, writes, holes, flushes.
//!
//! A volume has a fixed end, like a disk. Reads stop there, writes stop there
//! and then say that there is no space, and nothing makes a file longer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tessera_engine::disk::{Disk, DiskError, ExtentKind, FlushDone, Operation, Request};

use crate::errno::{Errno, errno_of};

/// `fallocate`: do not change the size. Values of Linux's `falloc.h`.
const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;

/// `lseek`: values of Linux's `fs.h`.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Runs asked of the disk at once while looking for data or a hole.
const RUNS: usize = 256;

/// When a volume was last written through this mount; shared by all who have
/// it open. Programs such as rsync skip what has not changed since.
#[derive(Debug)]
pub struct Modified(AtomicU64);

impl Modified {
    /// As if last written at `time`.
    pub fn new(time: SystemTime) -> Self {
        Self(AtomicU64::new(nanoseconds(time)))
    }

    /// The time of the last write.
    pub fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn touch(&self) {
        self.0
            .fetch_max(nanoseconds(SystemTime::now()), Ordering::Relaxed);
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 or after 2500 is as good as none.
    since
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

/// A volume that a program has opened.
pub struct OpenFile {
    disk: Arc<dyn Disk>,
    modified: Arc<Modified>,
    /// Something was written since the last flush began.
    dirty: AtomicBool,
}

impl OpenFile {
    /// A handle on `disk`.
    pub fn new(disk: Arc<dyn Disk>, modified: Arc<Modified>) -> Self {
        Self {
            disk,
            modified,
            dirty: AtomicBool::new(false),
        }
    }

    /// The size at this moment, in bytes.
    pub fn size(&self) -> u64 {
        self.disk.size()
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

    /// Stores as much of `data` at `offset` as the volume has room for.
    ///
    /// # Errors
    /// ENOSPC at the volume's end and in a full pool, EROFS, EIO.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let length = self.clamp(offset, data.len() as u64);
        let length = usize::try_from(length).expect("no longer than the data");
        if data.is_empty() {
            return Ok(0);
        }
        if length == 0 {
            return Err(Errno::ENOSPC);
        }
        let data = &data[..length];
        self.change(Operation::Write { offset, data })?;
        Ok(length)
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
        let within = self.clamp(offset, length);
        if mode & KEEP_SIZE == 0 && within < length {
            return Err(Errno::EFBIG);
        }
        if within == 0 {
            return Ok(());
        }
        self.change(if zero {
            Operation::WriteZeroes {
                offset,
                length: within,
                keep_allocated: true,
            }
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
        let size = self.disk.size();
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
        length.min(self.disk.size().saturating_sub(offset))
    }

    fn change(&self, operation: Operation<'_>) -> Result<(), Errno> {
        let done = self.execute(operation);
        // Also after a failure: part of it may have been written.
        self.dirty.store(true, Ordering::Release);
        self.modified.touch();
        done
    }

    fn execute(&self, operation: Operation<'_>) -> Result<(), Errno> {
        let mut batch = [Request::new(operation)];
        self.disk.execute(&mut batch);
        let [request] = batch;
        request.result.map_err(|error| {
            if let DiskError::Io(reason) = &error {
                tracing::warn!(reason, "an operation on a mounted volume failed");
            }
            errno_of(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use parking_lot::Mutex;
    use tessera_engine::disk::{DiskInfo, Extent};

    use super::*;

    const CHUNK: usize = 16;

    /// A disk in memory whose chunks are data, holes or zeroes.
    struct MemoryDisk {
        bytes: Mutex<Vec<u8>>,
        kinds: Mutex<Vec<ExtentKind>>,
        runs_at_once: usize,
        failure: Mutex<Option<DiskError>>,
        flushes: AtomicU32,
    }

    impl MemoryDisk {
        fn new(chunks: usize, tail: usize) -> Arc<Self> {
            Arc::new(Self {
                bytes: Mutex::new(vec![0; chunks * CHUNK + tail]),
                kinds: Mutex::new(vec![ExtentKind::Hole; chunks + tail.div_ceil(CHUNK)]),
                runs_at_once: 2,
                failure: Mutex::new(None),
                flushes: AtomicU32::new(0),
            })
        }

        fn put(&self, offset: u64, data: &[u8], kind: ExtentKind) {
            let from = usize::try_from(offset).unwrap();
            self.bytes.lock()[from..from + data.len()].copy_from_slice(data);
            let last = (from + data.len() - 1) / CHUNK;
            for chunk in &mut self.kinds.lock()[from / CHUNK..=last] {
                *chunk = kind;
            }
        }
    }

    impl Disk for MemoryDisk {
        fn info(&self) -> DiskInfo {
            DiskInfo {
                name: "memory".into(),
                description: String::new(),
                size: self.bytes.lock().len() as u64,
                read_only: false,
                chunk_size: 16,
            }
        }

        fn execute(&self, batch: &mut [Request<'_>]) {
            for request in batch {
                if let Some(failure) = &*self.failure.lock() {
                    request.result = Err(failure.clone());
                    continue;
                }
                match &mut request.operation {
                    Operation::Read { offset, buffer } => {
                        let from = usize::try_from(*offset).unwrap();
                        buffer.copy_from_slice(&self.bytes.lock()[from..from + buffer.len()]);
                    }
                    Operation::Write { offset, data } => {
                        self.put(*offset, data, ExtentKind::Data);
                    }
                    Operation::Discard { offset, length } => {
                        let zeroes = vec![0; usize::try_from(*length).unwrap()];
                        self.put(*offset, &zeroes, ExtentKind::Hole);
                    }
                    Operation::WriteZeroes { offset, length, .. } => {
                        let zeroes = vec![0; usize::try_from(*length).unwrap()];
                        self.put(*offset, &zeroes, ExtentKind::Zero);
                    }
                    Operation::Prefetch { .. } => {}
                }
            }
        }

        fn flush(&self, done: FlushDone) {
            self.flushes.fetch_add(1, Ordering::SeqCst);
            done(Ok(()));
        }

        fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, DiskError> {
            let mut at = usize::try_from(offset).unwrap();
            let end = at + usize::try_from(length).unwrap();
            let mut extents = Vec::new();
            let kinds = self.kinds.lock();
            while at < end && extents.len() < max.min(self.runs_at_once) {
                let next = ((at / CHUNK + 1) * CHUNK).min(end);
                extents.push(Extent {
                    length: (next - at) as u64,
                    kind: kinds[at / CHUNK],
                });
                at = next;
            }
            Ok(extents)
        }
    }

    fn open(disk: &Arc<MemoryDisk>) -> OpenFile {
        let modified = Arc::new(Modified::new(SystemTime::UNIX_EPOCH));
        OpenFile::new(Arc::clone(disk) as Arc<dyn Disk>, modified)
    }

    #[test]
    fn reads_and_writes_stop_at_the_end() {
        let disk = MemoryDisk::new(2, 5);
        let file = open(&disk);
        assert_eq!(file.write(30, b"0123456789"), Ok(7));
        assert_eq!(file.write(37, b"x"), Err(Errno::ENOSPC));
        assert_eq!(file.write(u64::MAX, b"x"), Err(Errno::ENOSPC));
        assert_eq!(file.write(37, b""), Ok(0));
        let mut buffer = [0xff; 10];
        assert_eq!(file.read(32, &mut buffer), Ok(5));
        assert_eq!(&buffer, b"23456\xff\xff\xff\xff\xff");
        assert_eq!(file.read(37, &mut buffer), Ok(0));
        assert_eq!(file.read(u64::MAX, &mut buffer), Ok(0));
    }

    #[test]
    fn holes_and_zeroes_are_made_within_the_end_only() {
        let disk = MemoryDisk::new(4, 0);
        let file = open(&disk);
        assert_eq!(file.write(0, &[7; 64]), Ok(64));
        assert_eq!(file.allocate(PUNCH_HOLE | KEEP_SIZE, 16, 16), Ok(()));
        assert_eq!(file.allocate(ZERO_RANGE | KEEP_SIZE, 48, 1 << 40), Ok(()));
        assert_eq!(file.allocate(PUNCH_HOLE | KEEP_SIZE, 64, 16), Ok(()));
        let mut want = vec![7; 64];
        want[16..32].fill(0);
        want[48..].fill(0);
        assert_eq!(*disk.bytes.lock(), want);
        assert_eq!(
            *disk.kinds.lock(),
            [
                ExtentKind::Data,
                ExtentKind::Hole,
                ExtentKind::Data,
                ExtentKind::Zero
            ]
        );
        assert_eq!(file.allocate(ZERO_RANGE, 0, 16), Ok(()));
        assert_eq!(file.allocate(ZERO_RANGE, 48, 17), Err(Errno::EFBIG));
    }

    #[test]
    fn other_ways_to_allocate_are_not_supported() {
        let file = open(&MemoryDisk::new(4, 0));
        // Preallocation, punching without keeping the size, collapsing.
        for mode in [0, KEEP_SIZE, PUNCH_HOLE, 0x08, 0x20, 0x40] {
            assert_eq!(file.allocate(mode, 0, 16), Err(Errno::EOPNOTSUPP), "{mode}");
        }
        assert_eq!(
            file.allocate(PUNCH_HOLE | KEEP_SIZE, 0, 0),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn data_and_holes_are_found_across_many_runs() {
        let disk = MemoryDisk::new(8, 3);
        let file = open(&disk);
        assert_eq!(file.seek(0, SEEK_DATA), Err(Errno::ENXIO));
        assert_eq!(file.seek(5, SEEK_HOLE), Ok(5));
        file.write(48, &[1; 32]).unwrap();
        file.allocate(ZERO_RANGE | KEEP_SIZE, 96, 16).unwrap();
        file.write(128, &[1; 3]).unwrap();
        assert_eq!(file.seek(0, SEEK_DATA), Ok(48));
        assert_eq!(file.seek(50, SEEK_DATA), Ok(50));
        assert_eq!(file.seek(50, SEEK_HOLE), Ok(80));
        assert_eq!(file.seek(80, SEEK_DATA), Ok(128));
        // The end is a hole, and nothing comes after it.
        assert_eq!(file.seek(129, SEEK_HOLE), Ok(131));
        for whence in [SEEK_DATA, SEEK_HOLE] {
            assert_eq!(file.seek(131, whence), Err(Errno::ENXIO));
            assert_eq!(file.seek(-1, whence), Err(Errno::ENXIO));
        }
        assert_eq!(file.seek(0, 0), Err(Errno::EINVAL));
    }

    #[test]
    fn closing_flushes_only_what_was_written() {
        let disk = MemoryDisk::new(1, 0);
        let file = open(&disk);
        let flushes = || disk.flushes.load(Ordering::SeqCst);
        file.flush_if_dirty(Box::new(|done| assert_eq!(done, Ok(()))));
        assert_eq!(flushes(), 0);
        file.write(0, b"x").unwrap();
        file.flush_if_dirty(Box::new(|_| ()));
        file.flush_if_dirty(Box::new(|_| ()));
        assert_eq!(flushes(), 1);
        file.allocate(PUNCH_HOLE | KEEP_SIZE, 0, 16).unwrap();
        file.flush_if_dirty(Box::new(|_| ()));
        assert_eq!(flushes(), 2);
        // Asked for outright, it is done in any case: others may have written.
        file.flush(Box::new(|_| ()));
        assert_eq!(flushes(), 3);
    }

    #[test]
    fn writing_changes_the_time_and_reading_does_not() {
        let disk = MemoryDisk::new(1, 0);
        let file = open(&disk);
        file.read(0, &mut [0; 4]).unwrap();
        assert_eq!(file.modified.time(), SystemTime::UNIX_EPOCH);
        file.write(0, b"x").unwrap();
        assert!(file.modified.time() > SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn failures_are_passed_on() {
        let disk = MemoryDisk::new(1, 0);
        let file = open(&disk);
        for (failure, errno) in [
            (DiskError::Io("gone bad".into()), Errno::EIO),
            (DiskError::NoSpace, Errno::ENOSPC),
            (DiskError::ReadOnly, Errno::EROFS),
        ] {
            *disk.failure.lock() = Some(failure);
            assert_eq!(file.read(0, &mut [0; 4]), Err(errno));
            assert_eq!(file.write(0, b"x"), Err(errno));
            assert_eq!(file.allocate(PUNCH_HOLE | KEEP_SIZE, 0, 4), Err(errno));
        }
    }
}
