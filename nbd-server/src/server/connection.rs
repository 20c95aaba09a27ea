//! One connection, served by one thread: everything that has arrived is
//! executed as one batch and answered with one write.
//!
//! ```text
//!       ┌──────────────────────────────────────────────────────┐
//!       v                                                      │
//!   receive ──> plan ──> Disk::execute ──> Disk::flush ──> send ┘
//!   (all that               (one batch)    (FLUSH, FUA:
//!    is there)                              answered later by
//!                                           the committer)
//! ```
//!
//! Where a long answer is followed by further reads, a helper executes them
//! meanwhile (see [`super::helpers`]): the disk and the client both work.
//!
//! A flush covers the writes of its own batch too, which is more than the
//! protocol asks for.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use tessera_engine::disk::{Disk, DiskError};

use super::batch::{Batch, Entry, StatusQuery, Work};
use super::exports::{CatalogExports, Client};
use super::handshake::{self, Outcome};
use super::helpers::{Job, Ticket};
use super::inbox::{Inbox, Received};
use super::outbox::{MAX_IN_FLIGHT, Outbox, Wake};
use super::plan::{End, MAX_REQUESTS, Plan};
use super::shared::Shared;
use super::stats::add;
use crate::protocol::reply::{self, Addressee, Run};
use crate::protocol::{Contexts, ErrorCode, HeaderStyle, Terms};

/// After this long without traffic a connection makes do with a small buffer,
/// and works off what is there of a payload instead of waiting for more.
const IDLE: Duration = Duration::from_millis(100);
/// Batches worked off after the server has begun to shut down: what had arrived
/// by then, even from a client that never stops sending.
const DRAIN_BATCHES: u32 = 256;
/// Answers shorter than this are sent before anything else is begun: most of
/// one fits the socket, and handing work over costs more than it gains.
const AHEAD_BYTES: usize = 256 << 10;
/// Batches executed while one is being sent: enough that the disk has work
/// while one of them is checked and another waits to be sent.
const AHEAD_MAX: usize = 3;
/// How long to wait for the client to close after the last reply.
const LINGER: Duration = Duration::from_millis(500);

/// Serves a client from greeting to end. Returns when its socket can be closed.
pub(crate) fn serve(shared: &Shared, outbox: &Arc<Outbox>, client: Client) {
    match handshake::negotiate(shared, outbox, client) {
        Ok(Outcome::Agreed(agreement, rest, client)) => {
            let exports = CatalogExports::new(shared, client);
            // It may have been deleted since it was described.
            let Some(disk) = exports.open(&agreement.export.name) else {
                return;
            };
            let terms = Terms {
                style: agreement.style,
                contexts: agreement.contexts.set,
                read_only: agreement.export.read_only,
                size: agreement.export.size,
            };
            tracing::debug!(export = agreement.export.name, ?terms, "connected");
            let result = Connection {
                shared,
                outbox,
                disk,
                terms,
                contexts: agreement.contexts,
                inbox: Inbox::new(&shared.pool, &rest),
                plan: Plan::new(&shared.pool),
                extra: Vec::new(),
                waiting: Vec::new(),
                wrote: false,
                drain_batches: DRAIN_BATCHES,
            }
            .run();
            match result {
                Ok(reason) => {
                    tracing::debug!(export = agreement.export.name, ?reason, "disconnected");
                }
                Err(error) => {
                    tracing::debug!(export = agreement.export.name, %error, "connection lost");
                }
            }
        }
        Ok(Outcome::Closed(reason)) => {
            add(&shared.stats.handshakes_failed, 1);
            tracing::debug!(?reason, "negotiation ended");
            outbox.linger(LINGER);
        }
        Ok(outcome @ (Outcome::Gone | Outcome::TimedOut)) => {
            add(&shared.stats.handshakes_failed, 1);
            tracing::debug!(?outcome, "the client did not finish negotiation");
        }
        Err(error) => {
            add(&shared.stats.handshakes_failed, 1);
            tracing::debug!(%error, "connection lost during negotiation");
        }
    }
}

/// Why a connection ended in good order.
#[derive(Debug)]
enum Reason {
    Client(End),
    EndOfStream,
    Draining,
}

struct Connection<'a> {
    shared: &'a Shared,
    outbox: &'a Arc<Outbox>,
    disk: Arc<dyn Disk>,
    terms: Terms,
    /// What the numbers in [`Terms::contexts`] mean.
    contexts: Contexts,
    inbox: Inbox,
    plan: Plan,
    /// Replies of unforeseen length: errors and extents.
    extra: Vec<u8>,
    /// Whom to answer when the flush of this batch is complete.
    waiting: Vec<Addressee>,
    /// Something has been written since the disk could last work ahead.
    wrote: bool,
    drain_batches: u32,
}

/// What comes after the batch that is being answered.
enum Ahead {
    /// A helper executes it.
    Given(Ticket),
    /// It has not been executed.
    Planned(Batch),
}

/// Where a stretch of the answer lies.
#[derive(Debug, Clone, Copy)]
enum Part {
    Reply { at: usize, length: usize },
    Extra { at: usize, length: usize },
}

impl Connection<'_> {
    fn run(mut self) -> io::Result<Reason> {
        let reason = self.serve_requests()?;
        // Everything taken in is answered before the socket closes.
        self.outbox.settle(0, self.shared.options.reply_timeout);
        if !matches!(
            reason,
            Reason::Client(End::Disconnect) | Reason::EndOfStream
        ) {
            self.outbox.linger(LINGER);
        }
        Ok(reason)
    }

    fn serve_requests(&mut self) -> io::Result<Reason> {
        let mut stalled = false;
        loop {
            while self.work_off(stalled)? {
                stalled = false;
                if self.plan.is_midway() {
                    self.take_in()?;
                }
            }
            if let Some(end) = self.plan.end() {
                return Ok(Reason::Client(end));
            }
            let draining = self.shared.is_draining();
            if draining {
                let Some(left) = self.drain_batches.checked_sub(1) else {
                    return Ok(Reason::Draining);
                };
                self.drain_batches = left;
            }
            match self.inbox.receive(self.outbox)? {
                Received::Bytes => stalled = false,
                Received::End => return Ok(Reason::EndOfStream),
                Received::Nothing => {
                    if draining && self.inbox.bytes().is_empty() && !self.plan.is_midway() {
                        return Ok(Reason::Draining);
                    }
                    stalled = self.wait(stalled)?;
                }
            }
        }
    }

    /// Waits for the client or a wake-up. `true` if the client has been silent
    /// for a while.
    fn wait(&mut self, stalled: bool) -> io::Result<bool> {
        self.inbox.pause();
        self.plan.pause();
        let may_change = !stalled && self.plan.is_midway() || self.inbox.can_shrink();
        let timeout = if may_change { Some(IDLE) } else { None };
        match self.outbox.wait(timeout)? {
            Wake::Readable => Ok(false),
            Wake::Woken => {
                if self.outbox.has_pending() {
                    self.outbox
                        .send(&mut [], self.shared.options.reply_timeout)?;
                }
                Ok(false)
            }
            Wake::TimedOut => {
                self.inbox.shrink();
                Ok(true)
            }
        }
    }

    /// Executes and answers one batch of what has arrived; `false` if there was
    /// none.
    fn work_off(&mut self, stalled: bool) -> io::Result<bool> {
        if self.inbox.bytes().is_empty() && !self.plan.is_midway() {
            return Ok(false);
        }
        // Sizes change while clients are connected.
        self.terms.size = self.disk.size();
        let progress = self.plan.fill(&mut self.inbox, &self.terms, stalled);
        if self.plan.batch().entries().is_empty() {
            return Ok(progress);
        }
        self.execute();
        let mut ahead = VecDeque::with_capacity(AHEAD_MAX);
        loop {
            self.look_ahead(&mut ahead)?;
            let answered = self.answer();
            match ahead.pop_front() {
                None => {
                    answered?;
                    self.plan.clear();
                    // Without a look at what has arrived meanwhile: on a busy
                    // machine a client's flush is there as soon as it has its
                    // answer, and would find a commit that has not begun.
                    if std::mem::take(&mut self.wrote) && self.inbox.bytes().is_empty() {
                        self.disk.work_ahead();
                    }
                    return Ok(true);
                }
                Some(Ahead::Planned(batch)) => {
                    answered?;
                    self.plan.advance(batch);
                    self.execute();
                }
                Some(Ahead::Given(ticket)) => {
                    let batch = ticket.wait();
                    answered?;
                    let batch = batch.ok_or_else(|| io::Error::other("The disk has panicked"))?;
                    self.plan.advance(batch);
                    self.plan.note_failed_pieces();
                }
            }
        }
    }

    /// Executes the present batch.
    fn execute(&mut self) {
        self.plan
            .batch_mut()
            .execute(&*self.disk, self.inbox.received(), self.terms.style);
        self.plan.note_failed_pieces();
    }

    /// While a long answer is being sent, has helpers execute the reads that
    /// come next. Only when the present batch has been executed.
    fn look_ahead(&mut self, ahead: &mut VecDeque<Ahead>) -> io::Result<()> {
        if ahead.is_empty() && self.plan.batch().reply_bytes() < AHEAD_BYTES {
            return Ok(());
        }
        self.take_in()?;
        self.terms.size = self.disk.size();
        // Behind a batch that nobody executes yet there is no hurry, and behind
        // a piece of a long read nobody knows yet whether there is a next one.
        while ahead.len() < AHEAD_MAX
            && !matches!(ahead.back(), Some(Ahead::Planned(_)))
            && (ahead.is_empty() || !self.plan.is_midway())
            && let Some(batch) = self.plan.look_ahead(&mut self.inbox, &self.terms)
        {
            if batch.reply_bytes() < AHEAD_BYTES {
                ahead.push_back(Ahead::Planned(batch));
                break;
            }
            let job = Job {
                disk: Arc::clone(&self.disk),
                batch,
                style: self.terms.style,
            };
            ahead.push_back(match self.shared.helpers.give(job) {
                Ok(ticket) => Ahead::Given(ticket),
                Err(batch) => Ahead::Planned(batch),
            });
        }
        Ok(())
    }

    /// Receives what is there, between two batches.
    fn take_in(&mut self) -> io::Result<()> {
        // While draining, what is taken in is counted: see `serve_requests`.
        if !self.shared.is_draining() && !self.inbox.is_full() {
            // The end, if it is there, is found again when all is answered.
            self.inbox.receive(self.outbox)?;
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        let style = self.terms.style;
        let mut parts = Parts::default();
        let mut counts = Counts::default();
        self.extra.clear();
        let (entries, reply) = self.plan.batch_mut().parts_mut();
        for entry in entries.iter() {
            counts.see(entry);
            self.wrote |= matches!(entry.work, Work::Write { .. });
            let begin = self.extra.len();
            let code = match &entry.result {
                Ok(()) => write_success(entry, style, reply, &mut parts, &mut self.waiting),
                Err(_) if is_inner_piece(entry) => continue,
                Err(error) => Err(Failure::Disk(error)),
            };
            let failure = match code {
                Ok(Answered::Done) => continue,
                Ok(Answered::EmptyRead) => {
                    reply::empty_read(&mut self.extra, style, entry.to);
                    None
                }
                Ok(Answered::Status(query)) => {
                    let out = &mut self.extra;
                    status(&*self.disk, &self.contexts, out, style, entry.to, query).err()
                }
                Err(Failure::Disk(error)) => Some(error.clone()),
                Err(Failure::Refused(code)) => {
                    counts.errors += 1;
                    let message = refusal_text(code);
                    reply::error(&mut self.extra, style, entry.to, code, message);
                    None
                }
            };
            if let Some(error) = failure {
                counts.errors += 1;
                let code = ErrorCode::from_disk(&error, entry.is_writing());
                reply::error(&mut self.extra, style, entry.to, code, &error.to_string());
            }
            parts.push(Part::Extra {
                at: begin,
                length: self.extra.len() - begin,
            });
        }
        counts.add_to(&self.shared.stats);
        // Before sending, so that the commit starts a moment earlier.
        self.flush();
        let slices = |part: &Part| match *part {
            Part::Reply { at, length } => IoSlice::new(&self.plan.batch().reply()[at..at + length]),
            Part::Extra { at, length } => IoSlice::new(&self.extra[at..at + length]),
        };
        let deadline = self.shared.options.reply_timeout;
        match parts.0.as_slice() {
            [] => {}
            [one] => self.outbox.send(&mut [slices(one)], deadline)?,
            many => {
                let mut many: Vec<_> = many.iter().map(slices).collect();
                self.outbox.send(&mut many, deadline)?;
            }
        }
        if self.extra.capacity() > EXTRA_KEPT_BYTES {
            self.extra = Vec::new();
        }
        let room_for_batch = MAX_IN_FLIGHT - MAX_REQUESTS;
        if self.outbox.in_flight() > room_for_batch
            && !self
                .outbox
                .settle(room_for_batch, self.shared.options.reply_timeout)
        {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "Flushes take too long",
            ));
        }
        Ok(())
    }

    /// Asks the disk for one flush on behalf of everybody who waits for one.
    fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let style = self.terms.style;
        let outbox = Arc::clone(self.outbox);
        let stats = Arc::clone(&self.shared.stats);
        add(&stats.flushes, 1);
        outbox.begin(waiting.len());
        self.disk.flush(Box::new(move |result| {
            let each = reply::success_bytes(style);
            match result {
                Ok(()) => {
                    let mut few = [0; 4 * reply::EXTENDED_BYTES];
                    let mut many = Vec::new();
                    let replies = match few.get_mut(..each * waiting.len()) {
                        Some(few) => few,
                        None => {
                            many.resize(each * waiting.len(), 0);
                            &mut many[..]
                        }
                    };
                    for (to, out) in waiting.iter().zip(replies.chunks_exact_mut(each)) {
                        reply::success(out, style, *to);
                    }
                    outbox.complete(replies, waiting.len());
                }
                Err(error) => {
                    add(&stats.errors, waiting.len() as u64);
                    let code = ErrorCode::from_disk(&error, true);
                    let text = error.to_string();
                    let mut replies = Vec::new();
                    for to in &waiting {
                        reply::error(&mut replies, style, *to, code, &text);
                    }
                    outbox.complete(&replies, waiting.len());
                }
            }
        }));
    }
}

/// Extra replies longer than this are not kept in memory for the next batch.
const EXTRA_KEPT_BYTES: usize = 16 << 10;

enum Answered {
    Done,
    EmptyRead,
    Status(StatusQuery),
}

enum Failure<'a> {
    Disk(&'a DiskError),
    Refused(ErrorCode),
}

/// Not the last piece of a long write: its request is answered at the end.
fn is_inner_piece(entry: &Entry) -> bool {
    matches!(entry.work, Work::Write { last: false, .. })
}

fn write_success<'a>(
    entry: &'a Entry,
    style: HeaderStyle,
    reply: &mut [u8],
    parts: &mut Parts,
    waiting: &mut Vec<Addressee>,
) -> Result<Answered, Failure<'a>> {
    match entry.work {
        Work::Read {
            offset,
            length,
            last,
        } => {
            let header = reply::data_header_bytes(style);
            let out = &mut reply[entry.at..entry.at + header];
            reply::data_header(out, style, entry.to, offset, length, last);
            parts.push(Part::Reply {
                at: entry.at,
                length: header + length,
            });
        }
        Work::Write { last: false, .. } => {}
        Work::Flush => waiting.push(entry.to),
        Work::Write { .. }
        | Work::Trim { .. }
        | Work::Zero { .. }
        | Work::Cache { .. }
        | Work::Nothing => {
            if entry.fua {
                waiting.push(entry.to);
            } else {
                let length = reply::success_bytes(style);
                reply::success(&mut reply[entry.at..entry.at + length], style, entry.to);
                parts.push(Part::Reply {
                    at: entry.at,
                    length,
                });
            }
        }
        Work::ReadNothing => return Ok(Answered::EmptyRead),
        Work::Status(query) => return Ok(Answered::Status(query)),
        Work::Refuse(code) => return Err(Failure::Refused(code)),
    }
    Ok(Answered::Done)
}

/// Appends a chunk for each context, or nothing if one of them fails.
fn status(
    disk: &dyn Disk,
    chosen: &Contexts,
    out: &mut Vec<u8>,
    style: HeaderStyle,
    to: Addressee,
    query: StatusQuery,
) -> Result<(), DiskError> {
    let StatusQuery {
        offset,
        length,
        most,
        contexts,
    } = query;
    let mut answers: Vec<(u32, Vec<Run>)> = Vec::new();
    for id in contexts.iter() {
        let runs: Vec<Run> = match chosen.snapshot(id) {
            None => {
                let extents = disk.extents(offset, length, most)?;
                extents.iter().map(Run::from).collect()
            }
            Some(snapshot) => {
                let extents = disk.changed_since(snapshot, offset, length, most)?;
                extents.iter().map(Run::from).collect()
            }
        };
        if runs.is_empty() {
            return Err(DiskError::Io(
                "The disk names no extents for the range".into(),
            ));
        }
        answers.push((id, runs));
    }
    let count = answers.len();
    for (number, (id, runs)) in (1..).zip(answers) {
        reply::block_status(out, style, to, id, &runs, number == count);
    }
    Ok(())
}

fn refusal_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Perm => "The export is read-only",
        ErrorCode::NoSpace => "The range lies beyond the end of the export",
        ErrorCode::Overflow => "The read is longer than 32 MiB",
        ErrorCode::Invalid => {
            "The command, its flags, its range or its length is not valid for this export"
        }
        ErrorCode::Io | ErrorCode::NotSupported | ErrorCode::Shutdown => "The request failed",
    }
}

/// The answer in order; stretches that touch are one.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn push(&mut self, part: Part) {
        match (self.0.last_mut(), part) {
            (
                Some(Part::Reply { at, length }),
                Part::Reply {
                    at: next,
                    length: more,
                },
            )
            | (
                Some(Part::Extra { at, length }),
                Part::Extra {
                    at: next,
                    length: more,
                },
            ) if *at + *length == next => *length += more,
            _ => self.0.push(part),
        }
    }
}

#[derive(Default)]
struct Counts {
    requests: u64,
    read: u64,
    written: u64,
    errors: u64,
}

impl Counts {
    fn see(&mut self, entry: &Entry) {
        match entry.work {
            Work::Read { length, last, .. } => {
                self.requests += u64::from(last);
                self.read += length as u64;
            }
            Work::Write { length, last, .. } => {
                self.requests += u64::from(last);
                self.written += length as u64;
            }
            _ => self.requests += 1,
        }
    }

    fn add_to(&self, stats: &super::stats::Stats) {
        add(&stats.batches, 1);
        add(&stats.requests, self.requests);
        add(&stats.bytes_read, self.read);
        add(&stats.bytes_written, self.written);
        add(&stats.errors, self.errors);
    }
}
