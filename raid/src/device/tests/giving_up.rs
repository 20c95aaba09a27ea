//! Devices that stall, and are given up.

use super::*;

/// Holds up blocking operations while it is closed, and counts them.
#[derive(Debug, Default)]
pub(in crate::device) struct Gate {
    closed: parking_lot::Mutex<()>,
    arrived: AtomicUsize,
}

impl Gate {
    pub(in crate::device) fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        drop(self.closed.lock());
    }

    /// So many operations are in the hands of workers: given up before, they
    /// would never be in flight, and count as nobody's.
    fn holds(&self, operations: usize) -> bool {
        self.arrived.load(Ordering::SeqCst) >= operations
    }
}

/// Says give up on one device, once that is `ready`, and counts how often it is
/// asked.
struct GiveUp<'a> {
    on: DeviceHandle,
    ready: &'a (dyn Fn() -> bool + Sync),
    asked: AtomicUsize,
}

impl Verdict for GiveUp<'_> {
    fn abandon(&self, device: DeviceHandle) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        device == self.on && (self.ready)()
    }
}

/// The common part of giving up: `stalled` never answers, `healthy` does.
fn gives_up(
    backend: &dyn Backend,
    stalled: DeviceHandle,
    healthy: DeviceHandle,
    ready: &(dyn Fn() -> bool + Sync),
) {
    let verdict = GiveUp {
        on: stalled,
        ready,
        asked: AtomicUsize::new(0),
    };
    let mut batch = vec![
        read(stalled, 0, 4096),
        write(healthy, 0, vec![pattern(5, 4096).into()], false),
        read(stalled, BLOCK, 4096),
        read(healthy, BLOCK, 4096),
    ];
    backend.run(&mut batch, &verdict);
    assert!(verdict.asked.load(Ordering::Relaxed) > 0);
    for (io, timed_out) in batch.iter().zip([true, false, true, false]) {
        let outcome = io.outcome.as_ref().unwrap();
        match timed_out {
            true => {
                assert_eq!(
                    outcome.as_ref().unwrap_err().kind(),
                    io::ErrorKind::TimedOut
                );
                assert!(matches!(&io.op, IoOp::Read(buffer) if buffer.is_empty()));
            }
            false => assert!(outcome.is_ok(), "{outcome:?}"),
        }
    }
    // The healthy device is not held up.
    let got = read_back(backend, healthy, 0, 4096);
    assert!(*got == *pattern(5, 4096));
}

#[test]
fn threads_give_up_on_a_stalled_device_without_harming_others() {
    let directory = tempfile::tempdir().unwrap();
    let (slow, healthy) = (
        directory.path().join("slow"),
        directory.path().join("healthy"),
    );
    let backend = ThreadBackend::new().with_verdict_interval(Duration::from_millis(5));
    backend.create_file(&slow, SIZE).unwrap();
    backend.create_file(&healthy, SIZE).unwrap();
    let gate = Arc::new(Gate::default());
    let closed = gate.closed.lock();
    let mut file = file::OpenFile::open(&slow, WRITE).unwrap();
    file.gate = Some(Arc::clone(&gate));
    let stalled = backend.add(file).unwrap();
    let healthy = backend.open(&healthy, WRITE).unwrap();
    gives_up(&backend, stalled, healthy, &|| gate.holds(2));
    // R5: no re-add while the operations are in flight.
    backend.close(stalled);
    assert_eq!(
        backend.open(&slow, WRITE).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    drop(closed);
    let patience = OpenMode {
        lock_patience: Duration::from_secs(60),
        ..WRITE
    };
    backend.open(&slow, patience).unwrap();
}

#[test]
fn io_uring_gives_up_on_a_stalled_device_without_harming_others() {
    use std::{io::Write as _, os::fd::OwnedFd};

    let Ok(backend) = UringBackend::probe() else {
        return;
    };
    let backend = backend.with_verdict_interval(Duration::from_millis(5));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("healthy");
    backend.create_file(&path, SIZE).unwrap();
    let healthy = backend.open(&path, WRITE).unwrap();
    // Reading an empty pipe takes as long as nobody writes.
    let (reader, mut writer) = io::pipe().unwrap();
    let facts = DeviceFacts {
        size_bytes: SIZE,
        identity: (0, 0),
        direct: false,
        regular_file: true,
    };
    let file = File::from(OwnedFd::from(reader));
    let stalled = backend.add(file::OpenFile::new(file, Path::new("pipe"), facts));
    gives_up(&backend, stalled, healthy, &|| true);
    // More than a ring holds, so that the orphans fill it.
    let verdict = GiveUp {
        on: stalled,
        ready: &|| true,
        asked: AtomicUsize::new(0),
    };
    let mut batch: Vec<Io> = (0..700).map(|_| read(stalled, 0, 4096)).collect();
    batch.push(read(healthy, 0, 4096));
    backend.run(&mut batch, &verdict);
    assert!(batch.pop().unwrap().outcome.unwrap().is_ok());
    for io in batch {
        let kind = io.outcome.unwrap().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::TimedOut);
    }
    backend.close(stalled);
    // Late bytes meet nobody's memory, and the rings are freed in the end.
    let _ = writer.write_all(&[0xcc; 8192]);
    drop(writer);
    backend.open(&path, READ).unwrap_err();
    let got = read_back(&backend, healthy, 0, 4096);
    assert!(*got == *pattern(5, 4096));
}

#[test]
fn a_device_with_too_many_abandoned_operations_takes_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("slow");
    let backend = ThreadBackend::new().with_verdict_interval(Duration::from_millis(5));
    backend.create_file(&path, SIZE).unwrap();
    let gate = Arc::new(Gate::default());
    let closed = gate.closed.lock();
    let mut file = file::OpenFile::open(&path, WRITE).unwrap();
    file.gate = Some(Arc::clone(&gate));
    let stalled = backend.add(file).unwrap();
    let verdict = GiveUp {
        on: stalled,
        ready: &|| gate.holds(8),
        asked: AtomicUsize::new(0),
    };
    let attempt = || {
        let mut batch: Vec<Io> = (0..8).map(|_| read(stalled, 0, 4 << 20)).collect();
        backend.run(&mut batch, &verdict);
        batch.pop().unwrap().outcome.unwrap().unwrap_err().kind()
    };
    assert_eq!(attempt(), io::ErrorKind::TimedOut);
    assert_eq!(attempt(), io::ErrorKind::TimedOut);
    assert_eq!(attempt(), io::ErrorKind::ResourceBusy);
    // When they have completed there is room again.
    drop(closed);
    while attempt_is_refused(&backend, stalled) {
        thread::yield_now();
    }
}

fn attempt_is_refused(backend: &ThreadBackend, device: DeviceHandle) -> bool {
    run(backend, vec![read(device, 0, 4096)])
        .pop()
        .unwrap()
        .outcome
        .unwrap()
        .is_err()
}
