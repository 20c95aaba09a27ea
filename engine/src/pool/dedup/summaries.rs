//! Making the hashes of what stays durable.
//!
//! A sealed segment is never written again, so a summary with the hashes goes
//! into the map stream, as those of segments do that are not full, and the
//! checkpoint that stores it points the segment's record there. Duplicates stay
//! without a hash: nothing is to hit them, and should some name of one be left,
//! the next run looks at it again.

use std::collections::BTreeSet;

use tessera_dedup::summary;
use tessera_raid::device::BLOCK_BYTES;

use super::window::{SUMMARIES_PER_STEP, Window};
use crate::{
    error::EngineError,
    pool::{CheckpointKind, engine::Engine},
};

impl Engine {
    /// Hands new summaries of some segments to the next checkpoint, from `at`
    /// on, and moves it behind them; how many bytes were read.
    pub(super) fn rewrite_summaries(
        &self,
        window: &mut Window,
        at: &mut usize,
    ) -> Result<u64, EngineError> {
        let end = (*at + SUMMARIES_PER_STEP).min(window.segments.len());
        let (mut bytes, mut left_out) = (0, BTreeSet::new());
        for (id, generation) in &window.segments[*at..end] {
            let _guard = self.epochs.enter();
            let Some(record) = self.table.record(*id) else {
                continue;
            };
            if !window.has_new_hashes(*id) || !self.is_still(*id, *generation) {
                continue;
            }
            bytes += u64::from(record.summary.blocks) * BLOCK_BYTES as u64;
            let Some(mut summary) = self.read_summary(*id, &record) else {
                continue;
            };
            let mut learned = Vec::new();
            for (number, record) in (0u32..).zip(&mut summary.records) {
                if record.fingerprint.is_some() {
                    continue;
                }
                let chunk = window.find(&record.entry).map(|at| window.chunk(at));
                record.fingerprint = chunk
                    .filter(|chunk| chunk.target.is_none())
                    .and_then(|chunk| chunk.print);
                if record.fingerprint.is_some() {
                    learned.push(number);
                }
            }
            if learned.is_empty() {
                continue;
            }
            let blocks = summary::blocks_for(summary.records.len());
            let needed = 2 * (blocks * BLOCK_BYTES) as u64;
            if self.room_for_moving() < needed {
                // What has been merged is: the rest is hashed again another time.
                left_out.insert(*id);
                continue;
            }
            // Before the checkpoint: of no use until then, and of no harm.
            self.index
                .learn(&summary, &|number| learned.binary_search(&number).is_ok());
            let mut state = self.state.lock();
            state.active_pages += blocks as u64;
            state.rehashed.push(summary);
        }
        for chunk in &mut window.chunks {
            if left_out.contains(&chunk.entry.segment) {
                chunk.print = None;
            }
        }
        *at = end;
        if bytes > 0 {
            self.index.flush();
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        Ok(bytes)
    }
}
