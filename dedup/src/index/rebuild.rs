//! Reads sealed segments in again that the database does not cover: after it
//! was lost, replaced by an older copy, or had to drop what was queued.

use std::collections::VecDeque;

use tessera_raid::SegmentId;

use super::{FingerprintIndex, IndexState, queue::Pending};
use crate::{
    Generation, SegmentDirectory,
    load::{SummaryRequest, load},
    segment::summary::{RECORDS_PER_BLOCK, SummaryId},
};

/// Segments read in by one step, with one submission to the array.
const SEGMENTS_PER_STEP: usize = 2;

/// What is still to be read in.
#[derive(Debug, Default)]
pub(super) struct Rebuild {
    todo: VecDeque<(SegmentId, Generation)>,
    done: u64,
}

/// Held for a step: two that took the same segments would strike four off.
#[derive(Debug, Default)]
pub(super) struct Turn;

impl Rebuild {
    pub(super) fn add(&mut self, segment: SegmentId, generation: Generation) {
        if self.todo.is_empty() {
            self.done = 0;
        }
        self.todo.push_back((segment, generation));
    }

    pub(super) fn state(&self) -> IndexState {
        if self.todo.is_empty() {
            return IndexState::Ready;
        }
        let left = u64::try_from(self.todo.len()).unwrap_or(u64::MAX);
        IndexState::Rebuilding {
            done: self.done,
            total: self.done.saturating_add(left),
        }
    }
}

impl FingerprintIndex {
    /// At open: of all sealed segments, those whose generation is not covered
    /// are to be read in by [`Self::rebuild_step`].
    pub fn rebuild_begin(&self, sealed: &mut dyn Iterator<Item = (SegmentId, Generation)>) {
        let worker = self.worker.lock();
        let mut rebuild = self.rebuild.lock();
        let dropped = self.is_dropped();
        for (segment, generation) in sealed {
            self.liveness.live(segment, generation);
            if !dropped && !worker.coverage.contains(generation) {
                rebuild.add(segment, generation);
            }
        }
    }

    /// Reads in a few of them; true while there are more and they can go on.
    /// False with [`IndexState::Rebuilding`] means: later.
    pub fn rebuild_step(&self, directory: &dyn SegmentDirectory) -> bool {
        let _turn = self.rebuild_turn.lock();
        // Room for what comes, or the database cannot take more just now.
        while self.queue.lock().is_half_full() {
            if !self.ingest(&mut self.worker.lock()) {
                return false;
            }
        }
        let chosen: Vec<(SegmentId, Generation)> = {
            let rebuild = self.rebuild.lock();
            rebuild
                .todo
                .iter()
                .take(SEGMENTS_PER_STEP)
                .copied()
                .collect()
        };
        let requests: Vec<SummaryRequest> = chosen
            .iter()
            .filter_map(|(segment, generation)| {
                let facts = directory.facts(*segment)?;
                let id = SummaryId {
                    pool: self.pool,
                    segment: *segment,
                    generation: *generation,
                };
                let place = facts.summary.filter(|_| facts.generation == *generation)?;
                let count = place.blocks;
                Some(SummaryRequest {
                    id,
                    place,
                    first: 0,
                    count,
                })
            })
            .collect();
        let rate = self.worker.lock().coverage.rate;
        let loaded = load(self.array.as_ref(), &requests);
        for (request, blocks) in requests.iter().zip(&loaded) {
            let complete = blocks.iter().all(Option::is_some);
            let records = blocks.iter().flatten().flat_map(|block| {
                let first = block.number * RECORDS_PER_BLOCK as u32; // 50
                (first..).zip(&block.records)
            });
            let SummaryId {
                segment,
                generation,
                ..
            } = request.id;
            let mut pending = Pending::new(segment, generation, records, complete);
            pending.keys.retain(|(prefix, _)| rate.keeps(*prefix));
            self.push_patiently(pending);
        }
        // Ready means findable: what came in last must not wait for a batch to
        // fill.
        let last = !chosen.is_empty() && self.rebuild.lock().todo.len() == chosen.len();
        if last {
            self.flush();
        }
        let mut rebuild = self.rebuild.lock();
        for _ in 0..chosen.len() {
            // A drop has emptied the list meanwhile.
            if rebuild.todo.pop_front().is_some() {
                rebuild.done += 1;
            }
        }
        !rebuild.todo.is_empty()
    }
}
