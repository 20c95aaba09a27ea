//! A thread's ring, and who owns a buffer when.
//!
//! An operation moves, buffers included, from its batch into a [`Flight`] of
//! the ring before anything is submitted, and back when its last completion
//! has arrived. In between the kernel owns the memory.
//!
//! An abandoned operation (R5) stays in the kernel for an unknown time. The
//! ring that holds one at the end of its run is therefore buried, flights and
//! all, and its thread makes itself another; so is a ring whose thread panics
//! in the middle of a run. The graveyard is looked through whenever a ring is
//! made or a device opened, and what has completed is freed there. So no
//! thread waits for another's orphans, and none that sleeps or ends keeps a
//! member from being reopened.
#![allow(unsafe_code)]

use std::{
    io,
    time::{Duration, Instant},
};

use io_uring::{IoUring, opcode, squeue, types};
use parking_lot::Mutex;

use super::flight::{Flight, Progress};
use crate::device::{
    DeviceHandle, Io, Verdict,
    file::{OpenFile, Table, timed_out, without_buffers},
    tell_failures,
};

/// Entries in flight per thread; larger batches go in rounds. Twice as many
/// completions fit, so orphans do not overflow the queue.
const ENTRIES: u32 = 256;

/// Marks completions that nobody waits for (of cancellations).
const NOBODY: u64 = u64::MAX;

/// Rings whose last operations the kernel has not finished.
static GRAVEYARD: Mutex<Vec<Inner>> = Mutex::new(Vec::new());

/// A thread's ring. Between runs it has nothing in flight.
pub(super) struct Ring {
    /// `None` once it is buried.
    inner: Option<Inner>,
}

struct Inner {
    uring: IoUring,
    /// Flights by slot; an occupied one has exactly one entry in the kernel
    /// or in the submission queue.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            inner.bury();
        }
    }
}

/// Frees what the kernel has finished with in buried rings.
pub(super) fn reap_graveyard() {
    GRAVEYARD.lock().retain_mut(|inner| {
        inner.collect_orphans();
        inner.in_flight() > 0
    });
}

/// What a run keeps track of.
struct Run<'a> {
    devices: &'a Table<OpenFile>,
    batch: &'a mut [Io],
    /// The first operation not yet submitted.
    next: usize,
    /// Operations in the kernel that the run waits for.
    open: usize,
    given_up: Vec<DeviceHandle>,
}

impl Ring {
    pub(super) fn new() -> io::Result<Self> {
        reap_graveyard();
        Ok(Self {
            inner: Some(Inner::new()?),
        })
    }

    /// Whether it can be used again.
    pub(super) fn is_alive(&self) -> bool {
        self.inner.is_some()
    }

    /// Runs a batch; see [`crate::device::Backend::run`].
    pub(super) fn run(
        &mut self,
        devices: &Table<OpenFile>,
        batch: &mut [Io],
        verdict: &dyn Verdict,
        verdict_interval: Duration,
    ) {
        let mut run = Run {
            devices,
            batch,
            next: 0,
            open: 0,
            given_up: Vec::new(),
        };
        let mut next_verdict: Option<Instant> = None;
        loop {
            let inner = self.inner.as_mut().expect("a ring in use is whole");
            inner.fill(&mut run);
            if run.open == 0 {
                if inner.in_flight() > 0 && !self.replace(&mut run) {
                    return;
                }
                if run.next == run.batch.len() {
                    return;
                }
                continue;
            }
            inner.wait(&run, verdict_interval);
            inner.collect(&mut run);
            if run.open == 0 {
                continue;
            }
            let now = Instant::now();
            let due = *next_verdict.get_or_insert(now + verdict_interval);
            if now >= due {
                inner.give_up(&mut run, verdict);
                next_verdict = Some(now + verdict_interval);
            }
        }
    }

    /// Buries the ring, in which only orphans are left, and makes another if
    /// the run needs one. False where there is none.
    fn replace(&mut self, run: &mut Run<'_>) -> bool {
        if let Some(inner) = self.inner.take() {
            inner.bury();
        }
        if run.next == run.batch.len() {
            return false;
        }
        match Inner::new() {
            Ok(inner) => {
                self.inner = Some(inner);
                true
            }
            Err(reason) => {
                for io in &mut run.batch[run.next..] {
                    io.outcome = Some(Err(io::Error::new(reason.kind(), reason.to_string())));
                }
                false
            }
        }
    }
}

impl Inner {
    fn new() -> io::Result<Self> {
        // Completions are handled when the thread enters the kernel anyway,
        // without interrupting it. Deferring them further (DEFER_TASKRUN)
        // measured no faster, and would leave the orphans of a buried ring
        // without anyone to complete them. Files are not registered: a 4 KiB
        // read in a batch of 32 costs 2.4 us of CPU in all, of which that
        // could save little. Before Linux 6.0 the flags do not exist.
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(ENTRIES);
        let uring = modern.or_else(|_| IoUring::new(ENTRIES))?;
        let slots = usize::try_from(uring.params().cq_entries()).expect("a few hundred");
        let flights = std::iter::repeat_with(|| None).take(slots).collect();
        Ok(Self {
            uring,
            flights,
            free: (0..slots).rev().collect(),
        })
    }

    /// Frees the ring, or keeps it in the graveyard while the kernel uses its
    /// flights' buffers.
    fn bury(mut self) {
        self.collect_orphans();
        if self.in_flight() > 0 {
            // An entry that is queued but never submitted never completes.
            let _ = self.uring.submit();
            GRAVEYARD.lock().push(self);
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Submits (queues) as much of the batch as there is room for.
    fn fill(&mut self, run: &mut Run<'_>) {
        while run.next < run.batch.len() && !self.free.is_empty() && !self.queue_is_full() {
            let position = run.next;
            run.next += 1;
            let io = &mut run.batch[position];
            io.outcome = None;
            let file = run.devices.get(io.device).and_then(|file| {
                if run.given_up.contains(&io.device) {
                    return Err(timed_out(&file.path));
                }
                file.check_quota()?;
                Ok(file)
            });
            let file = match file {
                Ok(file) => file,
                Err(refused) => {
                    if refused.kind() == io::ErrorKind::TimedOut {
                        io.op = without_buffers(&io.op);
                    }
                    io.outcome = Some(Err(refused));
                    continue;
                }
            };
            let left_behind = without_buffers(&io.op);
            let op = std::mem::replace(&mut io.op, left_behind);
            let flight = Flight::new(file, op, io.offset, position);
            if flight.is_trivial() {
                io.op = flight.op;
                io.outcome = Some(Ok(()));
                continue;
            }
            let slot = self.free.pop().expect("a free slot was seen");
            self.flights[slot] = Some(flight);
            self.queue(slot);
            run.open += 1;
        }
    }

    fn queue_is_full(&mut self) -> bool {
        self.uring.submission().is_full()
    }

    /// Queues the next entry of a flight.
    fn queue(&mut self, slot: usize) {
        let flight = self.flights[slot].as_mut().expect("the slot is occupied");
        let entry = flight.entry().user_data(slot as u64);
        self.push(&entry);
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to belongs to a flight, which
            // stays in its slot, unmoved on the heap, until the entry's
            // completion was seen; a cancellation points to nothing.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Hands the queued entries to the kernel.
    fn submit(&mut self) {
        if let Err(error) = self.uring.submit() {
            Self::check_enter(&error);
        }
    }

    /// Errors of `io_uring_enter` that pass; the caller collects and repeats.
    fn check_enter(error: &io::Error) {
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY) => {}
            // Out of memory for requests for the moment.
            Some(libc::EAGAIN) => std::thread::yield_now(),
            _ => panic!("io_uring_enter failed: {error}"),
        }
    }

    /// Submits what is queued and waits for completions: all that are open
    /// where nothing else is to be submitted, else about half, to keep the
    /// devices busy.
    fn wait(&mut self, run: &Run<'_>, timeout: Duration) {
        let want = if run.next == run.batch.len() {
            run.open
        } else {
            run.open.div_ceil(2)
        };
        let timespec = types::Timespec::from(timeout);
        let args = types::SubmitArgs::new().timespec(&timespec);
        if let Err(error) = self.uring.submitter().submit_with_args(want, &args) {
            Self::check_enter(&error);
        }
    }

    /// Takes in all completions that have arrived.
    fn collect(&mut self, run: &mut Run<'_>) {
        while let Some((slot, progress)) = self.next_completion() {
            match progress {
                Progress::Again => self.queue(slot),
                Progress::Done(outcome) => {
                    let flight = self.vacate(slot);
                    if !flight.abandoned {
                        let io = &mut run.batch[flight.position];
                        io.op = flight.op;
                        io.outcome = Some(outcome);
                        run.open -= 1;
                    }
                }
            }
        }
    }

    /// As [`Inner::collect`] when no run is under way: nothing is continued.
    fn collect_orphans(&mut self) {
        while let Some((slot, _)) = self.next_completion() {
            drop(self.vacate(slot));
        }
    }

    fn next_completion(&mut self) -> Option<(usize, Progress)> {
        loop {
            let completion = self.uring.completion().next()?;
            if completion.user_data() == NOBODY {
                continue;
            }
            let slot = usize::try_from(completion.user_data()).expect("slots are indices");
            let flight = self.flights[slot]
                .as_mut()
                .expect("a completion has its flight");
            if flight.abandoned {
                // Never continued: its member has failed.
                return Some((slot, Progress::Done(Ok(()))));
            }
            return Some((slot, flight.complete(completion.result())));
        }
    }

    fn vacate(&mut self, slot: usize) -> Flight {
        let flight = self.flights[slot].take().expect("the slot is occupied");
        self.free.push(slot);
        if flight.abandoned {
            flight.file.orphan_done(flight.bytes);
        }
        flight
    }

    /// Asks about every device with open operations and abandons those whose
    /// time is up.
    fn give_up(&mut self, run: &mut Run<'_>, verdict: &dyn Verdict) {
        let open = self
            .flights
            .iter()
            .flatten()
            .filter(|flight| !flight.abandoned);
        let mut devices: Vec<_> = open
            .map(|flight| run.batch[flight.position].device)
            .collect();
        devices.sort_unstable();
        devices.dedup();
        tell_failures(run.batch, verdict);
        devices.retain(|device| verdict.abandon(*device));
        if devices.is_empty() {
            return;
        }
        for slot in 0..self.flights.len() {
            let Some(flight) = &mut self.flights[slot] else {
                continue;
            };
            if flight.abandoned || !devices.contains(&run.batch[flight.position].device) {
                continue;
            }
            flight.abandoned = true;
            flight.file.orphan(flight.bytes);
            run.batch[flight.position].outcome = Some(Err(timed_out(&flight.file.path)));
            run.open -= 1;
            // Those that only wait for a worker can be taken back at once.
            let cancel = opcode::AsyncCancel::new(slot as u64)
                .build()
                .user_data(NOBODY);
            self.push(&cancel);
        }
        run.given_up.extend(devices);
        self.submit();
    }
}
