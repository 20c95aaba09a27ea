//! Open files over a disk in memory.

use std::{sync::atomic::AtomicU32, time::SystemTime};

use parking_lot::Mutex;
use tessera_engine::{
    EngineError, ErrorKind,
    api::{VolumeInfo, VolumeSpec},
    disk::{DiskInfo, Extent},
};

use super::*;
use crate::volumes::{Ratios, Space};

const CHUNK: usize = 16;
const MEMORY_MAX: usize = 64 << 20;

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

/// Makes the one disk longer or shorter.
struct OneVolume {
    disk: Arc<MemoryDisk>,
    resizes: Mutex<Vec<u64>>,
}

impl Volumes for OneVolume {
    fn list(&self) -> Vec<VolumeInfo> {
        Vec::new()
    }
    fn find(&self, _: &str) -> Option<VolumeInfo> {
        None
    }
    fn by_id(&self, _: u64) -> Option<VolumeInfo> {
        None
    }
    fn open(&self, _: &str) -> Option<Arc<dyn Disk>> {
        None
    }
    fn space(&self) -> Space {
        unreachable!("files do not ask")
    }
    fn ratios(&self) -> Ratios {
        unreachable!("files do not ask")
    }
    fn counted(&self, _: u64) -> Option<VolumeInfo> {
        unreachable!("files do not ask")
    }
    fn allow_shrink(&self, _: u64, _: bool) -> Result<(), EngineError> {
        unreachable!("files do not say")
    }
    fn create(&self, _: &VolumeSpec) -> Result<VolumeInfo, EngineError> {
        unreachable!("files do not make files")
    }
    fn resize(&self, _: u64, size_bytes: u64) -> Result<(), EngineError> {
        let size = usize::try_from(size_bytes).unwrap();
        if size > MEMORY_MAX {
            return Err(EngineError::new(ErrorKind::NoSpace, "The memory is full"));
        }
        self.disk.bytes.lock().resize(size, 0);
        let chunks = size.div_ceil(CHUNK);
        self.disk.kinds.lock().resize(chunks, ExtentKind::Hole);
        self.resizes.lock().push(size_bytes);
        Ok(())
    }
    fn rename(&self, _: &str, _: &str) -> Result<(), EngineError> {
        unreachable!("files do not rename")
    }
    fn delete(&self, _: &str) -> Result<(), EngineError> {
        unreachable!("files do not delete")
    }
}

fn volumes(disk: &Arc<MemoryDisk>) -> Arc<OneVolume> {
    Arc::new(OneVolume {
        disk: Arc::clone(disk),
        resizes: Mutex::default(),
    })
}

fn open(disk: &Arc<MemoryDisk>) -> OpenFile {
    let node = Arc::new(Node::new(1, SystemTime::UNIX_EPOCH));
    open_as(&node, &volumes(disk))
}

fn open_as(node: &Arc<Node>, volumes: &Arc<OneVolume>) -> OpenFile {
    let disk = Arc::clone(&volumes.disk) as Arc<dyn Disk>;
    OpenFile::new(disk, Arc::clone(node), Arc::clone(volumes) as _)
}

#[test]
fn a_new_file_grows_in_few_steps_and_ends_where_its_bytes_do() {
    let disk = MemoryDisk::new(0, 1);
    let volumes = volumes(&disk);
    let node = Arc::new(Node::newborn(1, SystemTime::UNIX_EPOCH));
    let file = open_as(&node, &volumes);
    assert_eq!(file.size(), 0);
    for block in 0..100 {
        assert_eq!(file.write(block * 10_000, &[7; 10_000]), Ok(10_000));
        assert_eq!(file.size(), (block + 1) * 10_000);
    }
    assert_eq!(file.write(1_000_003, b"end"), Ok(3));
    let mut buffer = [1; 16];
    assert_eq!(file.read(999_999, &mut buffer), Ok(7));
    assert_eq!(&buffer[..8], b"\x07\0\0\0end\x01");
    assert_eq!(file.seek(1_000_005, SEEK_HOLE), Ok(1_000_006));
    assert_eq!(volumes.resizes.lock().len(), 1, "one resize for all");
    file.settle().unwrap();
    assert_eq!(disk.size(), 1_000_006);
    // Synced, but not closed: it goes on growing.
    assert_eq!(file.write(1_000_006, b"more"), Ok(4));
    drop(file);
    assert_eq!(disk.size(), 1_000_010);
    let file = open_as(&node, &volumes);
    assert_eq!(file.write(1_000_010, b"x"), Err(Errno::ENOSPC));
}

#[test]
fn a_file_that_stays_empty_can_grow_later() {
    let disk = MemoryDisk::new(0, 1);
    let volumes = volumes(&disk);
    let node = Arc::new(Node::newborn(1, SystemTime::UNIX_EPOCH));
    drop(open_as(&node, &volumes));
    let file = open_as(&node, &volumes);
    assert_eq!((file.size(), disk.size()), (0, 1));
    assert_eq!(file.allocate(ZERO_RANGE, 10, 20), Ok(()));
    assert_eq!(file.size(), 30);
    let far = MEMORY_MAX as u64;
    assert_eq!(file.write(far, b"x"), Err(Errno::ENOSPC));
    assert_eq!(file.size(), 30);
}

#[test]
fn what_others_do_to_a_growing_volume_is_kept() {
    let disk = MemoryDisk::new(0, 1);
    let volumes = volumes(&disk);
    let node = Arc::new(Node::newborn(1, SystemTime::UNIX_EPOCH));
    let file = open_as(&node, &volumes);
    file.write(0, b"abc").unwrap();
    // Another front end writes to what is only reserved.
    disk.put(4096, b"theirs", ExtentKind::Data);
    let reserved = disk.size();
    drop(file);
    assert_eq!(disk.size(), reserved);
    // And here it is given another size.
    let node = Arc::new(Node::newborn(1, SystemTime::UNIX_EPOCH));
    volumes.resize(1, 1).unwrap();
    let file = open_as(&node, &volumes);
    file.write(0, b"abc").unwrap();
    volumes.resize(1, 5000).unwrap();
    assert_eq!(file.write(4998, b"xyz"), Ok(2));
    drop(file);
    assert_eq!(disk.size(), 5000);
}

#[test]
fn a_file_shrinks_only_where_that_is_allowed() {
    let disk = MemoryDisk::new(4, 0);
    let volumes = volumes(&disk);
    let node = Node::new(1, SystemTime::UNIX_EPOCH);
    let truncate = |size| node.truncate(volumes.as_ref(), disk.size(), false, size);
    assert_eq!(truncate(63), Err(Errno::EPERM));
    assert_eq!(truncate(64), Ok(()));
    assert_eq!(truncate(100), Ok(()));
    assert_eq!(truncate(u64::MAX), Err(Errno::EFBIG));
    let truncate = |size| node.truncate(volumes.as_ref(), disk.size(), true, size);
    assert_eq!(truncate(10), Ok(()));
    assert_eq!(*volumes.resizes.lock(), [100, 10]);
    assert_eq!(truncate(0), Ok(()));
    assert_eq!((disk.size(), node.length(disk.size())), (1, 0));
    assert!(node.is_growing());
}

#[test]
fn reads_of_a_batch_end_each_for_itself() {
    let disk = MemoryDisk::new(2, 0);
    let file = open(&disk);
    file.write(0, b"0123456789").unwrap();
    let (mut one, mut two, mut three) = ([0; 4], [0; 8], [0; 4]);
    let mut read = |offsets: [u64; 3]| {
        let buffers = [&mut one[..], &mut two[..], &mut three[..]];
        let mut pieces = offsets.into_iter().zip(buffers);
        let mut pieces = [(); 3].map(|()| {
            let (offset, buffer) = pieces.next().unwrap();
            ReadPiece {
                offset,
                buffer,
                result: Err(Errno::EBADF),
            }
        });
        file.read_many(&mut pieces);
        pieces.map(|piece| piece.result)
    };
    assert_eq!(read([2, 28, 40]), [Ok(4), Ok(4), Ok(0)]);
    *disk.failure.lock() = Some(DiskError::Io("gone bad".into()));
    assert_eq!(read([2, 28, 40]), [Err(Errno::EIO), Err(Errno::EIO), Ok(0)]);
    assert_eq!(&one, b"2345");
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
    assert_eq!(file.node.modified(), SystemTime::UNIX_EPOCH);
    file.write(0, b"x").unwrap();
    assert!(file.node.modified() > SystemTime::UNIX_EPOCH);
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
