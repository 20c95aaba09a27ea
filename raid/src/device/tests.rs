//! One suite for all backends, on files, on loop devices where root may make
//! them, and on simulated devices.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::RwLock;

use super::{sim::SimWorld, *};

mod giving_up;

pub(super) use giving_up::Gate;

const BLOCK: u64 = BLOCK_BYTES as u64;
const SIZE: u64 = 8 << 20;

const WRITE: OpenMode = OpenMode {
    writable: true,
    lock_patience: Duration::ZERO,
};
const READ: OpenMode = OpenMode {
    writable: false,
    lock_patience: Duration::ZERO,
};

/// Held for writing while a process is started: between fork and exec the
/// child has all descriptors, and so all locks, of this process.
static STARTING_PROCESSES: RwLock<()> = RwLock::new(());

/// A backend and a fresh device of [`SIZE`] bytes to run the suite on.
struct Subject {
    backend: Arc<dyn Backend>,
    path: PathBuf,
    /// Whether missing paths and strange files can be made next to `path`.
    real_file: bool,
    _cleanup: Box<dyn std::any::Any>,
}

/// A loop device that goes away again.
struct LoopDevice(PathBuf);

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _starting = STARTING_PROCESSES.write();
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

fn loop_device(file: &Path) -> Option<LoopDevice> {
    let starting = STARTING_PROCESSES.write();
    let output = Command::new("losetup")
        .args([
            "--find",
            "--show",
            "--direct-io=on",
            "--sector-size",
            "4096",
        ])
        .arg(file)
        .output();
    drop(starting);
    match output {
        Ok(output) if output.status.success() => {
            let name = String::from_utf8(output.stdout).unwrap();
            Some(LoopDevice(PathBuf::from(name.trim())))
        }
        refused => {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI needs loop devices: {refused:?}"
            );
            println!("skipped: no loop device here ({refused:?})");
            None
        }
    }
}

fn real_backends() -> Vec<Arc<dyn Backend>> {
    let mut backends: Vec<Arc<dyn Backend>> = vec![Arc::new(ThreadBackend::new())];
    match UringBackend::probe() {
        Ok(backend) => backends.push(Arc::new(backend)),
        Err(reason) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI needs io_uring: {reason}"
            );
            println!("skipped: no io_uring here ({reason})");
        }
    }
    backends
}

fn on_files(test: impl Fn(&Subject)) {
    for backend in real_backends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("member.img");
        backend.create_file(&path, SIZE).unwrap();
        let _quiet = STARTING_PROCESSES.read();
        test(&Subject {
            backend,
            path,
            real_file: true,
            _cleanup: Box::new(directory),
        });
    }
}

fn on_loop_devices(test: impl Fn(&Subject)) {
    for backend in real_backends() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("member.img");
        backend.create_file(&file, SIZE).unwrap();
        let Some(device) = loop_device(&file) else {
            return;
        };
        let path = device.0.clone();
        let cleanup = Box::new((device, directory));
        let subject = Subject {
            backend,
            path,
            real_file: false,
            _cleanup: cleanup,
        };
        let quiet = STARTING_PROCESSES.read();
        test(&subject);
        drop(quiet);
    }
}

fn everywhere(test: impl Fn(&Subject)) {
    on_files(&test);
    on_loop_devices(&test);
    let world = SimWorld::new(1);
    world.add_device("member", SIZE);
    let (backend, path) = (world.backend(), PathBuf::from("member"));
    test(&Subject {
        backend,
        path,
        real_file: false,
        _cleanup: Box::new(world),
    });
}

fn pattern(seed: u64, length: usize) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(length);
    for (word, target) in (0_u64..).zip(buffer.as_chunks_mut().0) {
        *target = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes();
    }
    buffer
}

fn read(device: DeviceHandle, offset: u64, length: usize) -> Io {
    let mut buffer = AlignedBuf::zeroed(length);
    buffer.fill(0xaa);
    Io {
        device,
        offset,
        op: IoOp::Read(buffer),
        outcome: None,
    }
}

fn write(device: DeviceHandle, offset: u64, data: Vec<BufSlice>, durable: bool) -> Io {
    Io {
        device,
        offset,
        op: IoOp::Write { data, durable },
        outcome: None,
    }
}

fn other(device: DeviceHandle, offset: u64, op: IoOp) -> Io {
    Io {
        device,
        offset,
        op,
        outcome: None,
    }
}

fn run(backend: &dyn Backend, mut batch: Vec<Io>) -> Vec<Io> {
    backend.run(&mut batch, &Patient);
    batch
}

fn run_ok(backend: &dyn Backend, batch: Vec<Io>) -> Vec<Io> {
    let batch = run(backend, batch);
    for io in &batch {
        io.outcome.as_ref().unwrap().as_ref().unwrap();
    }
    batch
}

fn read_back(
    backend: &dyn Backend,
    device: DeviceHandle,
    offset: u64,
    length: usize,
) -> AlignedBuf {
    let mut batch = run_ok(backend, vec![read(device, offset, length)]);
    match batch.pop().unwrap().op {
        IoOp::Read(buffer) => buffer,
        op => panic!("a read came back as {op:?}"),
    }
}

fn failure(backend: &dyn Backend, io: Io) -> io::Error {
    run(backend, vec![io])
        .pop()
        .unwrap()
        .outcome
        .unwrap()
        .unwrap_err()
}

#[test]
fn what_was_written_is_read_back() {
    everywhere(|Subject { backend, path, .. }| {
        let device = backend.open(path, WRITE).unwrap();
        let facts = backend.facts(device);
        assert_eq!(facts.size_bytes, SIZE);
        // Twice as much as a ring holds, in pieces of different lengths.
        let mut batch = Vec::new();
        let mut offset = 0;
        for number in 0..600_u64 {
            let blocks = 1 + number % 3;
            let buffer = pattern(number, (blocks * BLOCK) as usize);
            batch.push(write(
                device,
                offset,
                vec![buffer.into()],
                number % 100 == 0,
            ));
            offset += blocks * BLOCK;
        }
        let batch = run_ok(&**backend, batch);
        // The buffers come back.
        for io in &batch {
            assert!(matches!(&io.op, IoOp::Write { data, .. } if data.len() == 1));
        }
        run_ok(&**backend, vec![other(device, 0, IoOp::Sync)]);
        let reads = batch.iter().map(|io| {
            let IoOp::Write { data, .. } = &io.op else {
                unreachable!()
            };
            read(device, io.offset, data[0].len())
        });
        let reads = run_ok(&**backend, reads.collect());
        for (wrote, got) in batch.iter().zip(&reads) {
            let (IoOp::Write { data, .. }, IoOp::Read(buffer)) = (&wrote.op, &got.op) else {
                unreachable!()
            };
            assert!(
                data[0].as_slice() == &**buffer,
                "{} at {}",
                backend.name(),
                wrote.offset
            );
        }
        let one = read_back(&**backend, device, 0, (16 * BLOCK) as usize);
        assert!(one[..BLOCK_BYTES] == *pattern(0, BLOCK_BYTES));
        backend.close(device);
    });
}

#[test]
fn a_write_of_many_slices_lands_in_one_piece() {
    everywhere(|Subject { backend, path, .. }| {
        let device = backend.open(path, WRITE).unwrap();
        // More slices than one system call takes, out of one shared buffer,
        // in reverse, some of them empty.
        let blocks = 1500;
        let shared = Arc::new(pattern(7, blocks * BLOCK_BYTES));
        for durable in [false, true] {
            let mut slices = vec![BufSlice::new(Arc::clone(&shared), 0..0)];
            for block in (0..blocks).rev() {
                let start = block * BLOCK_BYTES;
                slices.push(BufSlice::new(
                    Arc::clone(&shared),
                    start..start + BLOCK_BYTES,
                ));
            }
            let offset = if durable { 0 } else { BLOCK };
            run_ok(&**backend, vec![write(device, offset, slices, durable)]);
            let got = read_back(&**backend, device, offset, shared.len());
            for block in 0..blocks {
                let place = (blocks - 1 - block) * BLOCK_BYTES;
                let expected = &shared[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
                assert!(&got[place..place + BLOCK_BYTES] == expected);
            }
        }
        backend.close(device);
    });
}

#[test]
fn preallocated_space_reads_as_zeroes_and_takes_up_space() {
    everywhere(
        |Subject {
             backend,
             path,
             real_file,
             ..
         }| {
            let device = backend.open(path, WRITE).unwrap();
            let length = 3 << 20;
            run_ok(
                &**backend,
                vec![write(device, BLOCK, vec![pattern(3, 4096).into()], false)],
            );
            run_ok(
                &**backend,
                vec![other(device, 0, IoOp::Preallocate { length })],
            );
            let got = read_back(&**backend, device, 0, length as usize);
            assert!(got.iter().all(|byte| *byte == 0));
            if *real_file {
                use std::os::unix::fs::MetadataExt;
                assert!(fs::metadata(path).unwrap().blocks() * 512 >= length);
            }
            backend.close(device);
        },
    );
}

#[test]
fn discarding_gives_space_back() {
    on_files(|Subject { backend, path, .. }| {
        use std::os::unix::fs::MetadataExt;
        let device = backend.open(path, WRITE).unwrap();
        run_ok(
            &**backend,
            vec![write(device, 0, vec![pattern(3, 1 << 20).into()], true)],
        );
        let full = fs::metadata(path).unwrap().blocks();
        run_ok(
            &**backend,
            vec![other(device, 0, IoOp::Discard { length: 1 << 20 })],
        );
        assert!(fs::metadata(path).unwrap().blocks() + 2000 <= full);
        assert_eq!(fs::metadata(path).unwrap().len(), SIZE);
        backend.close(device);
    });
}

#[test]
fn discarding_works_or_fails_harmlessly_on_block_devices() {
    on_loop_devices(|Subject { backend, path, .. }| {
        let device = backend.open(path, WRITE).unwrap();
        assert!(!backend.facts(device).regular_file);
        run_ok(
            &**backend,
            vec![write(device, 0, vec![pattern(3, 1 << 20).into()], true)],
        );
        let batch = run(
            &**backend,
            vec![other(device, 0, IoOp::Discard { length: 1 << 19 })],
        );
        assert!(batch[0].outcome.is_some());
        let rest = read_back(&**backend, device, 1 << 19, 1 << 19);
        assert!(*rest == pattern(3, 1 << 20)[1 << 19..]);
        backend.close(device);
    });
}

#[test]
fn reading_past_the_end_is_an_error() {
    everywhere(|Subject { backend, path, .. }| {
        let device = backend.open(path, READ).unwrap();
        let error = failure(&**backend, read(device, SIZE - BLOCK, 2 * BLOCK_BYTES));
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // And the operations beside it are unharmed.
        let batch = vec![read(device, SIZE, 4096), read(device, 0, 4096)];
        let batch = run(&**backend, batch);
        assert!(batch[0].outcome.as_ref().unwrap().is_err());
        assert!(batch[1].outcome.as_ref().unwrap().is_ok());
        backend.close(device);
    });
}

#[test]
fn a_read_only_device_refuses_writes() {
    everywhere(|Subject { backend, path, .. }| {
        let device = backend.open(path, READ).unwrap();
        let error = failure(
            &**backend,
            write(device, 0, vec![pattern(1, 4096).into()], false),
        );
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        backend.close(device);
    });
}

#[test]
fn a_closed_device_does_nothing() {
    everywhere(|Subject { backend, path, .. }| {
        let device = backend.open(path, WRITE).unwrap();
        backend.close(device);
        let error = failure(&**backend, read(device, 0, 4096));
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        backend.close(device);
        // Handles are not reused.
        let again = backend.open(path, WRITE).unwrap();
        assert_ne!(again, device);
        backend.close(again);
    });
}

#[test]
fn writers_lock_out_everyone_and_readers_lock_out_writers() {
    everywhere(|Subject { backend, path, .. }| {
        let writer = backend.open(path, WRITE).unwrap();
        for mode in [WRITE, READ] {
            let busy = backend.open(path, mode).unwrap_err();
            assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
            assert!(busy.to_string().contains("in use"), "{busy}");
            assert!(busy.to_string().contains(path.to_str().unwrap()), "{busy}");
        }
        backend.close(writer);
        let first = backend.open(path, READ).unwrap();
        let second = backend.open(path, READ).unwrap();
        assert_eq!(
            backend.open(path, WRITE).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            backend.facts(first).identity,
            backend.facts(second).identity
        );
        backend.close(first);
        backend.close(second);
        backend.close(backend.open(path, WRITE).unwrap());
    });
}

#[test]
fn a_device_can_be_opened_as_soon_as_it_is_closed() {
    everywhere(|Subject { backend, path, .. }| {
        for round in 0..50 {
            let device = backend
                .open(path, WRITE)
                .unwrap_or_else(|busy| panic!("{} in round {round}: {busy}", backend.name()));
            let writes = (0..8).map(|block| {
                write(
                    device,
                    block * BLOCK,
                    vec![pattern(round, 4096).into()],
                    block == 0,
                )
            });
            run_ok(&**backend, writes.collect());
            backend.close(device);
        }
    });
}

#[test]
fn a_lock_is_waited_for_as_long_as_asked() {
    on_files(|Subject { backend, path, .. }| {
        let holder = backend.open(path, WRITE).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let patience = OpenMode {
                    lock_patience: Duration::from_secs(60),
                    ..WRITE
                };
                backend.open(path, patience).unwrap()
            });
            backend.close(holder);
            backend.close(waiter.join().unwrap());
        });
    });
}

#[test]
fn links_to_a_file_have_its_identity() {
    on_files(|Subject { backend, path, .. }| {
        let (hard, soft) = (path.with_extension("hard"), path.with_extension("soft"));
        fs::hard_link(path, &hard).unwrap();
        std::os::unix::fs::symlink(path, &soft).unwrap();
        let strange = path.with_extension("strange");
        backend.create_file(&strange, SIZE).unwrap();
        let identity = |path: &Path| {
            let device = backend.open(path, READ).unwrap();
            let identity = backend.facts(device).identity;
            backend.close(device);
            identity
        };
        assert_eq!(identity(path), identity(&hard));
        assert_eq!(identity(path), identity(&soft));
        assert_ne!(identity(path), identity(&strange));
    });
}

#[test]
fn what_is_no_disk_is_refused() {
    on_files(|Subject { backend, path, .. }| {
        let directory = path.parent().unwrap();
        let fifo = directory.join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        for (path, word) in [
            (directory, "directory"),
            (&fifo, "neither"),
            (Path::new("/dev/null"), "neither"),
        ] {
            let error = backend.open(path, WRITE).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let missing = backend.open(&directory.join("missing"), WRITE).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let taken = backend.create_file(path, SIZE).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    });
}

#[test]
fn sizes_are_rounded_down_to_blocks() {
    on_files(|Subject { backend, path, .. }| {
        let odd = path.with_extension("odd");
        File::create(&odd).unwrap().set_len(BLOCK + 100).unwrap();
        let device = backend.open(&odd, WRITE).unwrap();
        assert_eq!(backend.facts(device).size_bytes, BLOCK);
        backend.close(device);
    });
}

#[test]
fn many_threads_share_a_backend() {
    everywhere(|Subject { backend, path, .. }| {
        let device = backend.open(path, WRITE).unwrap();
        thread::scope(|scope| {
            for number in 0..8_u64 {
                scope.spawn(move || {
                    let base = number * (1 << 20);
                    for round in 0..20 {
                        let blocks = 0..16_u64;
                        let writes = blocks.clone().map(|block| {
                            let buffer = pattern(number * 1000 + round + block, 4096);
                            write(device, base + block * BLOCK, vec![buffer.into()], false)
                        });
                        run_ok(&**backend, writes.collect());
                        for block in blocks {
                            let got = read_back(&**backend, device, base + block * BLOCK, 4096);
                            assert!(*got == *pattern(number * 1000 + round + block, 4096));
                        }
                    }
                });
            }
        });
        backend.close(device);
    });
}

#[test]
fn threads_sync_after_durable_writes_where_these_do_not_sync_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old");
    let backend = ThreadBackend::new();
    backend.create_file(&path, SIZE).unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let mut file = file::OpenFile::open(&path, WRITE).unwrap();
    file.without_dsync = Some(Arc::clone(&syncs));
    let device = backend.add(file).unwrap();
    let buffers = |seed| vec![pattern(seed, 4096).into(), pattern(seed + 1, 4096).into()];
    run_ok(&backend, vec![write(device, 0, buffers(1), true)]);
    assert_eq!(syncs.load(Ordering::SeqCst), 1);
    run_ok(&backend, vec![write(device, 0, buffers(3), false)]);
    assert_eq!(syncs.load(Ordering::SeqCst), 1, "nobody asked");
    let got = read_back(&backend, device, 0, 8192);
    assert!(got[..4096] == *pattern(3, 4096) && got[4096..] == *pattern(4, 4096));
}
