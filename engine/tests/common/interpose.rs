//! Does something in the middle of what the engine does: before the n-th
//! device operation that changes something, or the next read. There the engine holds the locks
//! that it holds over I/O, and whatever else may go on then can be tried.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tessera_raid::device::{
    Backend, DeviceFacts, DeviceHandle, Io, IoOp, OpenMode, Verdict, sim::SimBackend,
};

type Act = Box<dyn FnOnce() + Send>;

pub struct Interposed {
    inner: Arc<SimBackend>,
    /// Batches that change something, so far.
    batches: AtomicU64,
    /// What to do, and before which of them.
    planned: Mutex<Option<(u64, Act)>>,
    /// What to do before a read, and how many come before that.
    planned_read: Mutex<Option<(u64, Act)>>,
}

impl Interposed {
    pub fn new(inner: Arc<SimBackend>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            batches: AtomicU64::new(0),
            planned: Mutex::default(),
            planned_read: Mutex::default(),
        })
    }

    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::SeqCst)
    }

    /// `act` before the `after`-th batch from now, 0 being the next.
    pub fn plan(&self, after: u64, act: impl FnOnce() + Send + 'static) {
        *self.planned.lock() = Some((self.batches() + after, Box::new(act)));
    }

    /// `act` before the next batch of reads.
    pub fn plan_read(&self, act: impl FnOnce() + Send + 'static) {
        self.plan_nth_read(0, act);
    }

    /// `act` before the `after`-th batch of reads from now.
    pub fn plan_nth_read(&self, after: u64, act: impl FnOnce() + Send + 'static) {
        *self.planned_read.lock() = Some((after, Box::new(act)));
    }

    /// True when what was planned has not been done; it will not be.
    pub fn cancel(&self) -> bool {
        self.planned.lock().take().is_some() | self.planned_read.lock().take().is_some()
    }
}

impl Backend for Interposed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle> {
        self.inner.open(path, mode)
    }

    fn create_file(&self, path: &Path, size_bytes: u64) -> io::Result<()> {
        self.inner.create_file(path, size_bytes)
    }

    fn facts(&self, device: DeviceHandle) -> DeviceFacts {
        self.inner.facts(device)
    }

    fn close(&self, device: DeviceHandle) {
        self.inner.close(device);
    }

    fn run(&self, batch: &mut [Io], verdict: &dyn Verdict) {
        if batch.iter().any(|io| !matches!(io.op, IoOp::Read(_))) {
            let number = self.batches.fetch_add(1, Ordering::SeqCst);
            let due = {
                let mut planned = self.planned.lock();
                planned.take_if(|(at, _)| *at <= number)
            };
            if let Some((_, act)) = due {
                act();
            }
        } else {
            let due = {
                let mut planned = self.planned_read.lock();
                match planned.as_mut() {
                    Some((after, _)) if *after > 0 => {
                        *after -= 1;
                        None
                    }
                    _ => planned.take(),
                }
            };
            if let Some((_, act)) = due {
                act();
            }
        }
        self.inner.run(batch, verdict);
    }
}
