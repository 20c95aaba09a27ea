//! The stripe writer: takes closed stripes from the queue to the members.
//!
//! [`StripeWriter::step`] does one bounded piece of work and has no thread or
//! clock of its own (R24). Whoever needs progress calls it: the writer thread
//! all the time, a client that found no free stripe buffer, a flush that must
//! see its stripes written.
//!
//! ```text
//!  queue ─> line:  written │ under way │ under way │ waiting │ waiting
//!                  step 1      step 2       step 3
//! ```
//!
//! Up to [`STEPS_MAX`] steps are under way at once: while the devices write the
//! stripes of one, another computes its parity. Stripes are of disjoint places
//! and nothing depends on their order until a sync, but tickets do complete in
//! order: the line is only ever shortened from its front.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam::channel::Receiver;
use parking_lot::{Condvar, Mutex};
use tessera_raid::{
    Array, RaidError, StripeWrite, device::AlignedBuf, layout::Placement, sabotage::broken,
};

use super::{
    Stripe, Ticket, UnwrittenStripes,
    appender::{Closed, SealJob},
};
use crate::Summary;

/// Stripes given to the array at once; adjacent ones become one write.
const STRIPES_PER_STEP: usize = 8;

/// Steps that may be under way at once.
const STEPS_MAX: usize = 3;

#[derive(Debug)]
enum Progress {
    /// Nobody writes it.
    Waiting(StripeWrite),
    /// A step does.
    UnderWay,
    /// It is on the members, or on those that are left.
    Written,
}

/// One whole stripe on its way.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    progress: Progress,
    /// Known to readers until written.
    stripe: Option<Arc<Stripe>>,
    /// The ticket stands for this stripe and those before it.
    last: bool,
    /// The summary that is complete with this stripe.
    completes: Option<Arc<Summary>>,
}

/// Stripes taken from the queue and not yet written, in the order of tickets.
#[derive(Debug, Default)]
struct Line {
    items: VecDeque<Pending>,
    /// Items that have left the front: the number of the first one.
    left: u64,
    waiting: usize,
    steps: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct StripeWriter {
    array: Arc<Array>,
    unwritten: Arc<UnwrittenStripes>,
    queue: Receiver<Closed>,
    line: Mutex<Line>,
    /// A step has ended.
    ended: Condvar,
    written: AtomicU64,
    synced: AtomicU64,
    syncing: Mutex<()>,
    /// Summaries written, waiting for the sync that makes them durable.
    sealed: Mutex<Vec<(Ticket, Arc<Summary>)>>,
    stripe_bytes: u32,
}

impl StripeWriter {
    pub(super) fn new(
        array: Arc<Array>,
        unwritten: Arc<UnwrittenStripes>,
        queue: Receiver<Closed>,
        stripe_bytes: u32,
    ) -> Self {
        Self {
            array,
            unwritten,
            queue,
            line: Mutex::default(),
            ended: Condvar::new(),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncing: Mutex::new(()),
            sealed: Mutex::default(),
            stripe_bytes,
        }
    }

    /// Writes some of what is closed, or waits for the end of somebody else's
    /// step where there is nothing else to do. True when there was either.
    ///
    /// # Errors
    /// The array's. The stripes stay in memory, readable, and are tried again
    /// by the next step.
    pub fn step(&self) -> Result<bool, RaidError> {
        let Some(step) = self.begin() else {
            return Ok(false);
        };
        let Some(step) = step else {
            return Ok(true);
        };
        self.array.write_stripes(&step.writes)?;
        step.complete();
        Ok(true)
    }

    /// Takes the next stripes that wait. `None` when there is nothing to be
    /// written, `Some(None)` when others were at it and one of them has ended.
    pub(super) fn begin(&self) -> Option<Option<Step<'_>>> {
        let mut line = self.line.lock();
        while line.waiting < STRIPES_PER_STEP
            && let Ok(closed) = self.queue.try_recv()
        {
            let before = line.items.len();
            match closed {
                Closed::Stripe {
                    ticket,
                    placement,
                    stripe,
                } => {
                    let write = StripeWrite {
                        placement,
                        stripe: stripe.index,
                        data: stripe.close(),
                    };
                    line.items.push_back(Pending {
                        ticket,
                        progress: Progress::Waiting(write),
                        stripe: Some(stripe),
                        last: true,
                        completes: None,
                    });
                }
                Closed::Summary(job) => self.lay_out_summary(job, &mut line.items),
            }
            line.waiting += line.items.len() - before;
        }
        if line.items.is_empty() {
            return None;
        }
        if line.waiting == 0 || line.steps == STEPS_MAX {
            self.ended.wait(&mut line);
            return Some(None);
        }
        let mut count = line.waiting.min(STRIPES_PER_STEP);
        if broken("R24.no_clock") {
            let now = std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |age| age.subsec_nanos());
            count = count.min(1 + (now / 1000 % 2) as usize);
        }
        let mut step = Step {
            writer: self,
            numbers: Vec::with_capacity(count),
            writes: Vec::with_capacity(count),
        };
        for (number, item) in (line.left..).zip(&mut line.items) {
            if step.numbers.len() == count {
                break;
            }
            if let Progress::Waiting(write) = &item.progress {
                step.writes.push(write.clone());
                step.numbers.push(number);
                item.progress = Progress::UnderWay;
            }
        }
        line.waiting -= count;
        line.steps += 1;
        Some(Some(step))
    }

    /// Everything up to this ticket is on the members, not necessarily durable.
    pub fn written(&self) -> Ticket {
        Ticket(self.written.load(Ordering::Acquire))
    }

    /// Everything up to this ticket is durable.
    pub fn durable(&self) -> Ticket {
        Ticket(self.synced.load(Ordering::Acquire))
    }

    /// Writes everything up to `ticket`.
    ///
    /// # Errors
    /// The array's.
    pub fn write_up_to(&self, ticket: Ticket) -> Result<(), RaidError> {
        while self.written() < ticket {
            let worked = self.step()?;
            assert!(
                worked || self.written() >= ticket,
                "a ticket is in the queue before its use"
            );
        }
        Ok(())
    }

    /// Makes everything up to `ticket` durable; no I/O if it already is.
    ///
    /// # Errors
    /// The array's.
    pub fn sync_up_to(&self, ticket: Ticket) -> Result<(), RaidError> {
        if self.durable() >= ticket {
            return Ok(());
        }
        self.write_up_to(ticket)?;
        let _one_at_a_time = self.syncing.lock();
        if self.durable() < ticket {
            let written = self.written();
            self.array.sync()?;
            self.synced.store(written.0, Ordering::Release);
        }
        Ok(())
    }

    /// Summaries that have become durable at the end of their segments.
    pub fn take_sealed(&self) -> Vec<Arc<Summary>> {
        let durable = self.durable();
        let mut sealed = self.sealed.lock();
        let (ready, waiting) = std::mem::take(&mut *sealed)
            .into_iter()
            .partition(|(ticket, _)| *ticket <= durable);
        *sealed = waiting;
        let ready: Vec<(Ticket, Arc<Summary>)> = ready;
        ready.into_iter().map(|(_, summary)| summary).collect()
    }

    fn lay_out_summary(&self, job: SealJob, line: &mut VecDeque<Pending>) {
        let blocks = crate::summary::encode_blocks(&job.summary);
        assert_eq!(
            blocks.len(),
            usize::from(job.extent.blocks) * 4096,
            "as reserved at seal"
        );
        let stripe_bytes = self.stripe_bytes as usize;
        let first = job.extent.offset / self.stripe_bytes;
        let mut offset = (job.extent.offset % self.stripe_bytes) as usize;
        let mut rest = blocks.as_slice();
        let mut index = first;
        let mut shared = job.shared;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(stripe_bytes - offset));
            rest = after;
            let stripe = shared.take();
            let data = match &stripe {
                Some(stripe) => {
                    stripe.fill(offset, piece);
                    stripe.close()
                }
                None => {
                    let mut buffer = AlignedBuf::zeroed(stripe_bytes);
                    buffer[offset..offset + piece.len()].copy_from_slice(piece);
                    Arc::new(buffer)
                }
            };
            let placement: Placement = job.placement.clone();
            line.push_back(Pending {
                ticket: job.ticket,
                progress: Progress::Waiting(StripeWrite {
                    placement,
                    stripe: index,
                    data,
                }),
                stripe,
                last: rest.is_empty(),
                completes: rest.is_empty().then(|| Arc::clone(&job.summary)),
            });
            index += 1;
            offset = 0;
        }
    }
}

/// Stripes that one caller writes. What it has not completed waits again.
pub(super) struct Step<'a> {
    writer: &'a StripeWriter,
    numbers: Vec<u64>,
    writes: Vec<StripeWrite>,
}

impl Step<'_> {
    pub(super) fn complete(mut self) {
        // Before the line moves on: their buffers are free as soon as a ticket
        // says so.
        self.writes.clear();
        let mut line = self.writer.line.lock();
        for number in self.numbers.drain(..) {
            let item = line.item(number);
            item.progress = Progress::Written;
            if let Some(stripe) = item.stripe.take() {
                self.writer.unwritten.remove(&stripe);
            }
        }
        while let Some(item) = line.pop_written() {
            if let Some(summary) = item.completes {
                self.writer.sealed.lock().push((item.ticket, summary));
            }
            if item.last {
                self.writer.written.store(item.ticket.0, Ordering::Release);
            }
        }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let mut line = self.writer.line.lock();
        line.steps -= 1;
        for (number, write) in self.numbers.drain(..).zip(self.writes.drain(..)) {
            line.item(number).progress = Progress::Waiting(write);
            line.waiting += 1;
        }
        self.writer.ended.notify_all();
    }
}

impl Line {
    fn item(&mut self, number: u64) -> &mut Pending {
        usize::try_from(number - self.left)
            .ok()
            .and_then(|index| self.items.get_mut(index))
            .expect("only written items leave the line")
    }

    fn pop_written(&mut self) -> Option<Pending> {
        let written = matches!(self.items.front()?.progress, Progress::Written);
        let item = written.then(|| self.items.pop_front())??;
        self.left += 1;
        Some(item)
    }
}
