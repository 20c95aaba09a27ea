//! The committer: makes everything up to now durable, for all who wait.
//!
//! ```text
//!   1  cut at S: take the records and the bytes of open stripes     (append lock)
//!   2  write and sync every closed stripe that holds a location <= S
//!   3  one batch: records, and bytes of stripes that are not closed  (journal)
//!   4  S is durable; answer the flushes that were waiting at the cut
//! ```
//! Step 2 before step 3: bytes before the pointer that names them (R17). Step 3
//! carries the bytes of every location whose stripe step 2 did not sync,
//! whoever appended it (R14). A failure in step 3 poisons the pool, because the
//! batch may or may not be found by recovery and no successor may be written.

use std::sync::atomic::Ordering;

use tessera_dedup::segment::{Stream, StreamPosition, Ticket};
use tessera_raid::sabotage::broken;

use super::engine::{AppendState, Engine};
use crate::{
    disk::{DiskError, FlushDone},
    error::EngineError,
    journal::{RecordBuffer, Ring, SyncedPosition},
};

/// The committer's state.
#[derive(Debug)]
pub(crate) struct CommitState {
    pub(crate) ring: Ring,
    /// Records that were cut and are not durable yet: normally empty, kept
    /// when a cut could not be completed for lack of space on a member.
    carried: RecordBuffer,
    /// The newest batch has no successor that confirms it (R15).
    unconfirmed: bool,
}

impl CommitState {
    pub(crate) fn new(ring: Ring) -> Self {
        Self {
            ring,
            carried: RecordBuffer::default(),
            unconfirmed: false,
        }
    }
}

/// What a cut found.
pub(crate) struct Cut {
    pub(crate) sequence: u64,
    pub(crate) ticket: Ticket,
    pub(crate) positions: Vec<StreamPosition>,
}

impl Engine {
    /// Makes every change up to now durable. No I/O if it already is.
    pub(crate) fn commit_now(&self) -> Result<(), EngineError> {
        loop {
            self.check_usable()?;
            let mut commit = self.commit.lock();
            // The rest is for the batch of the checkpoint that trims (R22).
            let mut reserve =
                usize::try_from(commit.ring.capacity_bytes() / 4).unwrap_or(usize::MAX);
            if broken("R22.journal") {
                reserve = 0;
            }
            // One hold of the append lock for the measure and the cut: the cut
            // is never larger than what there was room for.
            let mut state = self.state.lock();
            let payload = commit.carried.len() + self.payload_bound(&mut state);
            if commit.ring.has_room_for(payload + reserve) {
                let cut = self.cut(&mut commit, &mut state);
                drop(state);
                return self.complete(&mut commit, cut);
            }
            drop(state);
            drop(commit);
            // Trims the journal: a checkpoint holds what its batches say.
            self.checkpoint_now(super::CheckpointKind::Normal)?;
        }
    }

    /// Step 1. The caller holds the append lock.
    pub(crate) fn cut(&self, commit: &mut CommitState, state: &mut AppendState) -> Cut {
        Self::journal_segment_events(state);
        if let Some(tail) = state.appender.take_tail(Stream::Data)
            && !state.replaying
        {
            commit
                .carried
                .bytes(tail.segment, tail.generation, tail.position, &tail.bytes);
        }
        commit.carried.append(&mut state.pending);
        self.pending_bytes.store(0, Ordering::Relaxed);
        Cut {
            sequence: state.sequence,
            ticket: state.appender.last_ticket(),
            positions: state.appender.positions(),
        }
    }

    /// Steps 2 to 4.
    pub(crate) fn complete(&self, commit: &mut CommitState, cut: Cut) -> Result<(), EngineError> {
        let synced = match broken("R14.stripes") {
            true => self.writer.write_up_to(cut.ticket),
            false => self.writer.sync_up_to(cut.ticket),
        };
        let synced = synced.map_err(EngineError::from);
        self.poison_unless_full(synced)?;
        self.hand_over_summaries();
        if !commit.carried.is_empty() {
            let written = self.write_batch(commit, &cut);
            if let Err(error) = written {
                self.poison(&error);
                return Err(error);
            }
        }
        self.durable.fetch_max(cut.sequence, Ordering::Release);
        Ok(())
    }

    fn write_batch(&self, commit: &mut CommitState, cut: &Cut) -> Result<(), EngineError> {
        let positions = cut.positions.iter().filter(|at| at.stream == Stream::Data);
        let positions = positions.map(|at| SyncedPosition {
            segment: at.segment,
            generation: at.generation,
            closed_bytes: at.closed_bytes,
        });
        let CommitState {
            ring,
            carried,
            unconfirmed,
        } = commit;
        ring.append(cut.sequence, positions.collect(), &[carried.as_slice()])?;
        carried.clear();
        *unconfirmed = true;
        Ok(())
    }

    /// One turn of the committer: answers every waiting flush.
    pub(crate) fn committer_step(&self) {
        let waiting: Vec<FlushDone> = std::mem::take(&mut *self.flushes.lock());
        if waiting.is_empty() {
            return;
        }
        if broken("R17.acknowledge") {
            waiting.into_iter().for_each(|done| done(Ok(())));
            return;
        }
        let result = self.commit_now().map_err(|error| error.to_disk_error());
        for done in waiting {
            done(result.clone());
        }
    }

    /// What the timer does about once a second: commits what there is, else
    /// confirms the newest batch with an empty one, which itself never is.
    pub(crate) fn timer_step(&self) -> Result<(), EngineError> {
        if self.read_only {
            return Ok(());
        }
        if self.is_durable() {
            self.confirm()
        } else {
            self.commit_now()
        }
    }

    /// Confirms the newest batch if it has no successor (R15).
    pub(crate) fn confirm(&self) -> Result<(), EngineError> {
        self.check_usable()?;
        let mut commit = self.commit.lock();
        if broken("R15.confirm")
            || !commit.unconfirmed
            || !commit.carried.is_empty()
            || !commit.ring.has_room_for(0)
        {
            return Ok(());
        }
        let sequence = self.durable.load(Ordering::Acquire);
        let written = commit
            .ring
            .append(sequence, Vec::new(), &[])
            .map_err(EngineError::from);
        if let Err(error) = &written {
            self.poison(error);
        }
        commit.unconfirmed = false;
        written
    }

    /// Gives the index the summaries that have become durable (R10: entries
    /// reach it only after their chunks are).
    pub(crate) fn hand_over_summaries(&self) {
        let sealed = self.writer.take_sealed();
        if sealed.is_empty() {
            return;
        }
        for summary in sealed {
            self.table
                .summary_is_readable(summary.segment, summary.generation);
            self.index.segment_sealed(summary);
        }
        self.signals.index.ring();
    }

    /// Commits because a flush is to be expected. Whatever goes wrong, the
    /// flush will meet it.
    pub(crate) fn commit_ahead(&self) {
        if self.read_only || self.is_durable() {
            return;
        }
        if let Err(error) = self.commit_now() {
            tracing::debug!(%error, "cannot commit ahead of a flush");
        }
    }

    /// Whether every acknowledged change is durable.
    fn is_durable(&self) -> bool {
        let state = self.state.lock();
        state.pending.is_empty() && state.sequence <= self.durable.load(Ordering::Acquire)
    }

    /// Queues a flush for the committer; answers it if there is nothing to do.
    pub(crate) fn queue_flush(&self, done: FlushDone) {
        if self.read_only {
            return done(Ok(()));
        }
        if let Err(error) = self.check_usable() {
            let error = match error.to_disk_error() {
                DiskError::Gone => DiskError::Io(error.to_string()),
                other => other,
            };
            return done(Err(error));
        }
        if self.is_durable() {
            return done(Ok(()));
        }
        self.flushes.lock().push(done);
        if self.threads {
            self.signals.committer.ring();
        } else {
            self.committer_step();
        }
    }

    /// At most this many bytes of payload a cut yields in this state: its
    /// records, and the bytes of the open stripe with their record's header.
    fn payload_bound(&self, state: &mut AppendState) -> usize {
        Self::journal_segment_events(state);
        state.pending.len() + self.geometry.stripe_bytes as usize + BYTES_HEADER_MAX
    }
}

/// More than a record of bytes takes besides them.
const BYTES_HEADER_MAX: usize = 64;
