//! Reclaim: finding segments that hold nothing live, and freeing them (R20).
//!
//! ```text
//!   survey   walk the newest roots: which sealed segments does nothing name?
//!   freeze   no dedup hit may land in those any more
//!   wait     until every operation begun before the freeze has ended
//!   pin      take a checkpoint: its roots hold all that those operations did
//!   mark     walk its roots: what is still not named is dead, for good
//!   free     release; reusable two checkpoints later (R9, R12)
//! ```
//! Why the mark is proof: after the wait no operation can name a frozen segment
//! anew (a hit is refused, and nothing is appended to a sealed segment), every
//! name given before is in the layers that the pinning checkpoint merged, and
//! later checkpoints derive from its pages. There are no counts to drift.
//!
//! That frees what is wholly dead. [`mover`] makes segments so, by moving what
//! is live elsewhere; see docs/reclaim.md.

mod copying;
mod mover;
mod snapshots;
mod survey;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

pub(in crate::pool) use copying::{Marks, remap};
pub(crate) use mover::ReclaimWork;
pub(in crate::pool) use survey::leaves;

use tessera_dedup::{Generation, segment::SegmentState};
use tessera_raid::{SegmentId, sabotage::broken};

use super::{
    CheckpointKind,
    engine::Engine,
    roots::{Roots, Visited},
};
use crate::{
    api::{JobKind, JobState},
    error::{EngineError, ErrorKind},
    map::{MapError, Visit},
};

/// Pages a walk looks at between two looks at the clock.
const PAGES_PER_STEP: usize = 256;

/// Between the end of a reclaim and one that begins by itself.
const REST_MS: u64 = 60_000;

/// What reclaim remembers between passes.
#[derive(Debug, Default)]
pub(crate) struct ReclaimState {
    /// [`super::engine::AppendState::overwrites`] when the last pass that freed
    /// nothing began: until it grows, another pass would free nothing either.
    fruitless_at: Option<u64>,
    /// The same of emptying segments.
    nothing_to_move_at: Option<u64>,
}

/// A segment and its incarnation.
type Candidate = (SegmentId, Generation);

impl Engine {
    /// One pass over everything. True when it freed something, or gave earlier
    /// frees back to the allocator.
    ///
    /// Must be called without an epoch guard.
    pub(crate) fn reclaim_pass(&self) -> Result<bool, EngineError> {
        let mut reclaim = self.reclaim.lock();
        let free_before = self.table.counts().free;
        // Earlier frees may only lack their checkpoints, or the end of operations
        // that still read them: who waits for space waits for those, and is not
        // told that there is none because some reader was not scheduled.
        self.finish_releases()?;
        if self.table.counts().free == free_before {
            self.wait_for_releases()?;
        }
        if self.table.counts().free > free_before {
            return Ok(true);
        }
        let overwrites = self.state.lock().overwrites;
        if reclaim.fruitless_at == Some(overwrites) {
            return Ok(false);
        }
        let freed = self.reclaim_dead()?;
        if freed == 0 {
            reclaim.fruitless_at = Some(overwrites);
        } else {
            reclaim.fruitless_at = None;
            self.finish_releases()?;
            self.wait_for_releases()?;
        }
        Ok(self.table.counts().free > free_before)
    }

    /// True unless the last pass freed nothing and nothing changed since.
    pub(crate) fn reclaim_may_help(&self) -> bool {
        let fruitless_at = self.reclaim.lock().fruitless_at;
        fruitless_at != Some(self.state.lock().overwrites)
    }

    /// True unless the last round of emptying segments won nothing and nothing
    /// changed since.
    pub(crate) fn moving_may_help(&self) -> bool {
        let nothing_at = self.reclaim.lock().nothing_to_move_at;
        nothing_at != Some(self.state.lock().overwrites)
    }

    fn nothing_to_move(&self) {
        let mut reclaim = self.reclaim.lock();
        reclaim.nothing_to_move_at = Some(self.state.lock().overwrites);
    }

    /// Begins a reclaim job because space runs low, unless one has just ended:
    /// a nearly full pool under load would walk its maps without end. A writer
    /// that finds no room moves chunks itself.
    pub(crate) fn reclaim_when_low(&self) {
        let newest = self.newest_job(JobKind::Reclaim);
        let waiting = matches!(newest.state, JobState::Running | JobState::Paused);
        let rested = newest.ended_unix_ms.saturating_add(REST_MS);
        if !self.is_low_on_space()
            || !self.moving_may_help()
            || waiting
            || newest.id != 0 && (self.clock)() < rested
        {
            return;
        }
        if let Err(error) = self.start_job(JobKind::Reclaim) {
            tracing::warn!(%error, "Reclaim cannot begin");
        }
    }

    fn reclaim_dead(&self) -> Result<usize, EngineError> {
        // Survey. Only segments sealed before its checkpoint are considered:
        // younger ones may be named by layers alone.
        let sealed = self.sealed();
        self.checkpoint_now(CheckpointKind::Normal)?;
        let roots = self.roots();
        let candidates = self.unnamed(&roots, sealed)?;
        if candidates.is_empty() {
            return Ok(0);
        }
        // Freeze, wait, pin, mark.
        let segments: Vec<SegmentId> = candidates.iter().map(|(id, _)| *id).collect();
        self.table.freeze(&segments);
        let result = self.mark_frozen(candidates);
        self.table.thaw(&segments);
        result
    }

    fn mark_frozen(&self, candidates: Vec<Candidate>) -> Result<usize, EngineError> {
        if !broken("R20.wait") {
            self.wait_for_operations()?;
        }
        if !broken("R20.pin") {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        let roots = self.roots();
        let dead = match broken("R20.mark") {
            true => candidates,
            false => self.unnamed(&roots, candidates)?,
        };
        if !dead.is_empty() {
            self.frees.fetch_add(1, Ordering::AcqRel);
        }
        let epoch = self.epochs.advance();
        for (segment, generation) in &dead {
            self.table.release(*segment, epoch);
            self.index.segment_freed(*segment, *generation);
        }
        tracing::debug!(segments = dead.len(), "Reclaimed");
        Ok(dead.len())
    }

    /// Brings released segments back to the allocator: the checkpoint that says
    /// so, its follow-up, the end of operations begun before, the punch.
    pub(crate) fn finish_releases(&self) -> Result<(), EngineError> {
        while self.table.wants_checkpoint() {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        self.punch_cleared();
        Ok(())
    }

    /// Punches and frees what no operation can be reading any more.
    pub(crate) fn punch_cleared(&self) {
        for (segment, placement) in self
            .table
            .take_punchable(|epoch| self.epochs.quiesced(epoch))
        {
            self.array.discard_segment(&placement);
            self.table.make_free(segment);
        }
    }

    /// Waits until segments whose release is durable are free: for operations
    /// begun before, and for whoever is punching them.
    fn wait_for_releases(&self) -> Result<(), EngineError> {
        while self.table.awaits_readers() {
            self.check_usable()?;
            std::thread::yield_now();
            self.punch_cleared();
        }
        Ok(())
    }

    fn wait_for_operations(&self) -> Result<(), EngineError> {
        let epoch = self.epochs.advance();
        while !self.epochs.quiesced(epoch) {
            self.check_usable()?;
            // Operations end by themselves: they wait for I/O at most.
            std::thread::yield_now();
        }
        Ok(())
    }

    pub(crate) fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.checkpoint.lock().roots)
    }

    fn sealed(&self) -> Vec<Candidate> {
        let live = self.table.live().into_iter();
        live.filter(|(_, record)| record.state == SegmentState::Sealed)
            .map(|(id, record)| (id, record.generation))
            .collect()
    }

    /// Those of `candidates` that nothing under `roots` names.
    fn unnamed(
        &self,
        roots: &Roots,
        candidates: Vec<Candidate>,
    ) -> Result<Vec<Candidate>, EngineError> {
        let mut named = BTreeSet::new();
        named.extend(roots.pointer.iter().map(|root| root.entry.segment));
        named.extend(self.unnamed_copies.lock().iter());
        named.extend(self.unnamed_targets.lock().iter());
        // Pages that snapshots and clones share are walked once.
        let mut visited = Visited::default();
        for root in roots.all() {
            self.walk_names(root.tree, &mut visited, &mut |visit| match visit {
                Visit::Page { pointer, .. } => {
                    named.insert(pointer.entry.segment);
                }
                Visit::Entry { entry, .. } => {
                    named.insert(entry.segment);
                }
                _ => {}
            })?;
        }
        // Summaries of segments that are not full lie in the map stream.
        for (id, record) in self.table.live() {
            if record.summary.blocks > 0 && record.summary.segment != id {
                named.insert(record.summary.segment);
            }
        }
        Ok(candidates
            .into_iter()
            .filter(|(id, _)| !named.contains(id))
            .collect())
    }
}

/// What cannot be walked cannot be proved dead: nothing is freed.
fn unwalkable(error: &MapError) -> EngineError {
    let message = format!("Reclaim stops at a damaged page: {error}");
    EngineError::new(ErrorKind::NoSpace, message)
}
