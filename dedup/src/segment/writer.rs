//! The stripe writer: takes closed stripes from the queue to the members.
//!
//! [`StripeWriter::step`] does one bounded piece of work and has no thread or
//! clock of its own (R24). Whoever needs progress calls it: the writer thread
//! all the time, a client that found no free stripe buffer, a flush that must
//! see its stripes written. Tickets complete in order, because one step runs
//! at a time.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam::channel::Receiver;
use parking_lot::Mutex;
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

/// One whole stripe on its way.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    write: StripeWrite,
    /// Known to readers until written.
    stripe: Option<Arc<Stripe>>,
    /// The ticket stands for this stripe and those before it.
    last: bool,
    /// The summary that is complete with this stripe.
    completes: Option<Arc<Summary>>,
}

/// See the module's text.
#[derive(Debug)]
pub struct StripeWriter {
    array: Arc<Array>,
    unwritten: Arc<UnwrittenStripes>,
    queue: Receiver<Closed>,
    /// Stripes taken from the queue and not yet written. The lock is held for
    /// the whole of a step.
    pending: Mutex<VecDeque<Pending>>,
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
            pending: Mutex::default(),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncing: Mutex::new(()),
            sealed: Mutex::default(),
            stripe_bytes,
        }
    }

    /// Writes some of what is closed. True when there was something to do.
    ///
    /// # Errors
    /// The array's. The stripes stay in memory, readable, and are tried again
    /// by the next step.
    pub fn step(&self) -> Result<bool, RaidError> {
        let mut pending = self.pending.lock();
        while pending.len() < STRIPES_PER_STEP
            && let Ok(closed) = self.queue.try_recv()
        {
            match closed {
                Closed::Stripe {
                    ticket,
                    placement,
                    stripe,
                } => {
                    pending.push_back(Pending {
                        ticket,
                        write: StripeWrite {
                            placement,
                            stripe: stripe.index,
                            data: stripe.close(),
                        },
                        stripe: Some(stripe),
                        last: true,
                        completes: None,
                    });
                }
                Closed::Summary(job) => self.lay_out_summary(job, &mut pending),
            }
        }
        if pending.is_empty() {
            return Ok(false);
        }
        let mut count = pending.len().min(STRIPES_PER_STEP);
        if broken("R24.no_clock") {
            let now = std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |age| age.subsec_nanos());
            count = count.min(1 + (now / 1000 % 2) as usize);
        }
        let writes: Vec<StripeWrite> = pending
            .iter()
            .take(count)
            .map(|item| item.write.clone())
            .collect();
        self.array.write_stripes(&writes)?;
        for item in pending.drain(..count) {
            if let Some(stripe) = &item.stripe {
                self.unwritten.remove(stripe);
            }
            if let Some(summary) = item.completes {
                self.sealed.lock().push((item.ticket, summary));
            }
            if item.last {
                self.written.store(item.ticket.0, Ordering::Release);
            }
        }
        Ok(true)
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

    fn lay_out_summary(&self, job: SealJob, pending: &mut VecDeque<Pending>) {
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
            pending.push_back(Pending {
                ticket: job.ticket,
                write: StripeWrite {
                    placement,
                    stripe: index,
                    data,
                },
                stripe,
                last: rest.is_empty(),
                completes: rest.is_empty().then(|| Arc::clone(&job.summary)),
            });
            index += 1;
            offset = 0;
        }
    }
}
