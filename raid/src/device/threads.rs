//! The fallback backend: blocking `pread` and `pwrite` on worker threads.
//!
//! Every device has workers of its own, so a device that stalls holds up
//! nobody else. An operation travels to a worker with its buffers and comes
//! back with them; when it is given up meanwhile (R5), the worker keeps both
//! until the kernel is done and then drops them.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use super::{
    Backend, DeviceFacts, DeviceHandle, Io, IoOp, OpenMode, VERDICT_INTERVAL, Verdict,
    file::{OpenFile, Table, buffer_bytes, create_file, timed_out, without_buffers},
    tell_failures,
};

/// Blocking operations a device performs at a time.
const WORKERS_PER_DEVICE: usize = 8;

/// Workers are little more than system calls.
const WORKER_STACK_BYTES: usize = 128 << 10;

/// Runs operations with blocking calls on worker threads.
#[derive(Debug)]
pub struct ThreadBackend {
    devices: Table<ThreadDevice>,
    verdict_interval: Duration,
}

#[derive(Debug)]
struct ThreadDevice {
    file: Arc<OpenFile>,
    jobs: Sender<Job>,
}

/// Where an operation of a batch is, shared with its worker.
const WAITING: u8 = 0;
const ABANDONED: u8 = 1;
const DONE: u8 = 2;

#[derive(Debug)]
struct Job {
    /// Dropped before the reply, so that after the reply nothing but the
    /// table of devices keeps the file open and locked.
    file: Arc<OpenFile>,
    position: usize,
    offset: u64,
    op: IoOp,
    states: Arc<[AtomicU8]>,
    reply: Sender<Reply>,
}

#[derive(Debug)]
struct Reply {
    position: usize,
    op: IoOp,
    outcome: io::Result<()>,
}

impl Default for ThreadBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl ThreadBackend {
    /// A backend without devices.
    pub fn new() -> Self {
        Self {
            devices: Table::default(),
            verdict_interval: VERDICT_INTERVAL,
        }
    }

    /// Asks the verdict at another interval than a second.
    #[must_use]
    pub fn with_verdict_interval(mut self, interval: Duration) -> Self {
        self.verdict_interval = interval;
        self
    }

    pub(super) fn add(&self, file: OpenFile) -> io::Result<DeviceHandle> {
        let (jobs, queue) = channel::unbounded();
        for _ in 0..WORKERS_PER_DEVICE {
            let queue = queue.clone();
            let builder = thread::Builder::new().name("member-io".into());
            builder
                .stack_size(WORKER_STACK_BYTES)
                .spawn(move || work(&queue))?;
        }
        Ok(self.devices.add(ThreadDevice {
            file: Arc::new(file),
            jobs,
        }))
    }
}

/// A worker's life: until the device is closed and the queue is empty.
fn work(queue: &Receiver<Job>) {
    for Job {
        file,
        position,
        offset,
        mut op,
        states,
        reply,
    } in queue
    {
        let state = &states[position];
        let bytes = buffer_bytes(&op);
        if state.load(Ordering::Acquire) == ABANDONED {
            file.orphan_done(bytes);
            continue;
        }
        let outcome = file.perform(offset, &mut op);
        if state.swap(DONE, Ordering::AcqRel) == ABANDONED {
            file.orphan_done(bytes);
            continue;
        }
        drop(file);
        // The batch waits for every operation it has not abandoned.
        let _ = reply.send(Reply {
            position,
            op,
            outcome,
        });
    }
}

/// An operation that a worker has.
struct Pending {
    file: Arc<OpenFile>,
    bytes: u64,
}

impl Backend for ThreadBackend {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle> {
        self.add(OpenFile::open(path, mode)?)
    }

    fn create_file(&self, path: &Path, size_bytes: u64) -> io::Result<()> {
        create_file(path, size_bytes)
    }

    fn facts(&self, device: DeviceHandle) -> DeviceFacts {
        self.devices
            .get(device)
            .expect("facts are asked of open devices")
            .file
            .facts
            .clone()
    }

    fn close(&self, device: DeviceHandle) {
        self.devices.close(device);
    }

    fn run(&self, batch: &mut [Io], verdict: &dyn Verdict) {
        // One operation that is never to be abandoned needs no other thread.
        if let [io] = batch
            && !verdict.may_abandon()
        {
            let outcome = self.devices.get(io.device).and_then(|device| {
                device.file.check_quota()?;
                device.file.perform(io.offset, &mut io.op)
            });
            io.outcome = Some(outcome);
            return;
        }
        let states: Arc<[AtomicU8]> = batch.iter().map(|_| AtomicU8::new(WAITING)).collect();
        let (reply, replies) = channel::unbounded();
        let mut waiting = 0;
        let mut pending = Vec::with_capacity(batch.len());
        for (position, io) in batch.iter_mut().enumerate() {
            io.outcome = None;
            let sent = self.devices.get(io.device).and_then(|device| {
                let file = Arc::clone(&device.file);
                file.check_quota()?;
                let bytes = buffer_bytes(&io.op);
                let left_behind = without_buffers(&io.op);
                let op = std::mem::replace(&mut io.op, left_behind);
                let (states, reply) = (Arc::clone(&states), reply.clone());
                let job = Job {
                    file: Arc::clone(&file),
                    position,
                    offset: io.offset,
                    op,
                    states,
                    reply,
                };
                device
                    .jobs
                    .send(job)
                    .expect("workers live as long as their device is open");
                Ok(Pending { file, bytes })
            });
            match sent {
                Ok(job) => {
                    waiting += 1;
                    pending.push(Some(job));
                }
                Err(refused) => {
                    io.outcome = Some(Err(refused));
                    pending.push(None);
                }
            }
        }
        drop(reply);
        let mut next_verdict = Instant::now() + self.verdict_interval;
        while waiting > 0 {
            match replies.recv_deadline(next_verdict) {
                Ok(Reply {
                    position,
                    op,
                    outcome,
                }) => {
                    batch[position].op = op;
                    batch[position].outcome = Some(outcome);
                    pending[position] = None;
                    waiting -= 1;
                }
                Err(RecvTimeoutError::Timeout) => {
                    waiting -= give_up(batch, &mut pending, &states, verdict);
                    next_verdict = Instant::now() + self.verdict_interval;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("a job replies or is abandoned")
                }
            }
        }
    }
}

/// Asks about every device with unfinished operations; returns how many
/// operations were abandoned.
fn give_up(
    batch: &mut [Io],
    pending: &mut [Option<Pending>],
    states: &[AtomicU8],
    verdict: &dyn Verdict,
) -> usize {
    let mut devices: Vec<DeviceHandle> = batch
        .iter()
        .filter(|io| io.outcome.is_none())
        .map(|io| io.device)
        .collect();
    devices.sort_unstable();
    devices.dedup();
    tell_failures(batch, verdict);
    devices.retain(|device| verdict.abandon(*device));
    let mut abandoned = 0;
    for ((io, slot), state) in batch.iter_mut().zip(pending).zip(states) {
        if !devices.contains(&io.device) {
            continue;
        }
        let Some(Pending { file, bytes }) = slot else {
            continue;
        };
        // Counted before it is abandoned, because the worker takes it off.
        file.orphan(*bytes);
        let exchange =
            state.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
        if exchange.is_err() {
            // It has just completed; the reply is on its way.
            file.orphan_done(*bytes);
            continue;
        }
        io.outcome = Some(Err(timed_out(&file.path)));
        *slot = None;
        abandoned += 1;
    }
    abandoned
}
