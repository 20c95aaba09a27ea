//! Rebuild: filling a target, segment by segment, while the pool is in use.
//!
//! ```text
//!   attach (raid)  every write begun later goes to the target too
//!   list           what is live now, up to where it is written now
//!   copy           stripe by stripe; each under an epoch guard (R9)
//!   sync, promote  one checkpoint, whose superblock says so (R16)
//! ```
//! Why nothing is missed: a stripe is on the target because it was begun after
//! the attach, or it is on the list, because it was closed before. A closed
//! stripe is never written again (R14), and the list's are written before they
//! are copied, so no copy runs against a write.
//!
//! After a crash the list is made anew from the cursor on: what it then holds
//! too much is only copied twice. Copies below a durable cursor are synced: the
//! checkpoint that stores the cursor syncs the members first.
//!
//! A member that comes back has all of the segments whose seal was recorded by
//! a commit that it knew; they are left out.

use std::{collections::VecDeque, ops::Range};

use tessera_dedup::{
    Generation,
    segment::{SegmentRecord, SegmentState, Stream},
};
use tessera_raid::{Kind, MemberIndex, SegmentId, device::BLOCK_BYTES};

use super::{CheckpointKind, engine::Engine};
use crate::{
    api::JobState,
    error::EngineError,
    jobs::{Cursor, JobRecord},
};

/// What one step copies, about.
const STEP_BYTES: u32 = 1 << 20;

/// Stripes of one segment, still to be dealt with.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    pub(crate) stripes: Range<u32>,
}

/// What a rebuild remembers between steps.
#[derive(Debug)]
pub(crate) struct RebuildWork {
    job: u64,
    pieces: VecDeque<Piece>,
}

impl Engine {
    /// The stripes of a segment that have been closed: its data so far, and the
    /// summary at its end. What lies between was never written. (Of a map
    /// segment that was given up nobody knows: all of them.)
    pub(crate) fn written_stripes(&self, id: SegmentId, record: &SegmentRecord) -> Vec<Range<u32>> {
        let stripe = self.geometry.stripe_bytes;
        let extent = record.summary;
        let end = extent
            .offset
            .saturating_add(u32::from(extent.blocks) * BLOCK_BYTES as u32);
        let at_end = record.state == SegmentState::Sealed
            && extent.blocks > 0
            && extent.segment == id
            && end == self.geometry.segment_bytes;
        let given_up = record.state == SegmentState::Sealed && !at_end;
        let data = if given_up && record.stream() == Some(Stream::Map) {
            // Its record dates from before its last pages.
            self.geometry.segment_bytes / stripe
        } else {
            record.closed_bytes.div_ceil(stripe)
        };
        let mut ranges = Vec::with_capacity(2);
        ranges.push(0..data);
        if at_end {
            let first = (extent.offset / stripe).max(data);
            ranges.push(first..self.geometry.segment_bytes / stripe);
        }
        ranges.retain(|range| !range.is_empty());
        ranges
    }

    /// Everything live from the cursor on, up to where it is written on return,
    /// in pieces of about [`STEP_BYTES`]; and its bytes.
    pub(crate) fn live_pieces(
        &self,
        cursor: Cursor,
        wanted: &dyn Fn(&SegmentRecord) -> bool,
    ) -> Result<(VecDeque<Piece>, u64), EngineError> {
        let (live, ticket) = {
            let state = self.state.lock();
            (self.table.live(), state.appender.last_ticket())
        };
        // What is on the list is on the members before anybody looks.
        self.writer.write_up_to(ticket)?;
        let per_piece = (STEP_BYTES / self.geometry.stripe_bytes).max(1);
        let mut pieces = VecDeque::new();
        let mut stripes = 0;
        for (segment, record) in live {
            if segment.0 < cursor.segment || !wanted(&record) {
                continue;
            }
            for range in self.written_stripes(segment, &record) {
                let mut first = match segment.0 == cursor.segment {
                    true => range.start.max(cursor.stripe),
                    false => range.start,
                };
                while first < range.end {
                    let end = range.end.min(first + per_piece);
                    pieces.push_back(Piece {
                        segment,
                        generation: record.generation,
                        stripes: first..end,
                    });
                    stripes += u64::from(end - first);
                    first = end;
                }
            }
        }
        Ok((pieces, stripes * u64::from(self.geometry.stripe_bytes)))
    }

    /// The segment's record, if it still is what a list says (R9). The caller
    /// holds an epoch guard: what it was then stays until the guard goes.
    pub(crate) fn still_live(
        &self,
        segment: SegmentId,
        generation: Generation,
    ) -> Option<SegmentRecord> {
        let live = |record: &SegmentRecord| {
            record.generation == generation
                && matches!(record.state, SegmentState::Open | SegmentState::Sealed)
        };
        self.table.record(segment).filter(live)
    }

    /// One step of a rebuild; how many bytes it moved.
    pub(super) fn rebuild_step(
        &self,
        work: &mut Option<RebuildWork>,
        job: &JobRecord,
    ) -> Result<u64, EngineError> {
        let Some(target) = self.target_of(job) else {
            let message = "The device it was rebuilt on has failed or was removed";
            self.end_job(job.id, JobState::Failed, message);
            return Ok(0);
        };
        let work = match work {
            Some(work) if work.job == job.id => work,
            stale => stale.insert(self.begin_rebuild(job)?),
        };
        let Some(piece) = work.pieces.front() else {
            return self.finish_rebuild(job, target);
        };
        let moved = self.copy_piece(job, target, piece)?;
        work.pieces.pop_front();
        Ok(moved)
    }

    fn begin_rebuild(&self, job: &JobRecord) -> Result<RebuildWork, EngineError> {
        let since = job.since;
        let wanted = |record: &SegmentRecord| {
            since.is_none_or(|since| record.sealed_at == 0 || record.sealed_at > since)
        };
        let (pieces, bytes) = self.live_pieces(job.cursor, &wanted)?;
        self.jobs.lock().update(job.id, |record| {
            record.total_bytes = record.done_bytes + bytes;
        });
        Ok(RebuildWork {
            job: job.id,
            pieces,
        })
    }

    fn copy_piece(
        &self,
        job: &JobRecord,
        target: MemberIndex,
        piece: &Piece,
    ) -> Result<u64, EngineError> {
        let guard = self.epochs.enter();
        let record = self.still_live(piece.segment, piece.generation);
        let counts = match record {
            Some(record) => {
                let placement = record.placement();
                let copied = self
                    .array
                    .rebuild_stripes(target, &placement, piece.stripes.clone());
                match copied {
                    Ok(counts) => counts,
                    // The next step finds it gone, and says so.
                    Err(error) if error.kind() == Kind::TargetLost => return Ok(0),
                    Err(error) => return Err(error.into()),
                }
            }
            // Freed meanwhile: nothing names it any more.
            None => tessera_raid::CopyCounts::default(),
        };
        drop(guard);
        let bytes = u64::from(piece.stripes.end - piece.stripes.start)
            * u64::from(self.geometry.stripe_bytes);
        self.jobs.lock().update(job.id, |record| {
            record.done_bytes += bytes;
            record.checked += u64::from(piece.stripes.end - piece.stripes.start);
            record.found += counts.read_errors;
            record.repaired += counts.read_errors.saturating_sub(counts.lost_blocks);
            record.lost += counts.lost_blocks;
            record.cursor = Cursor {
                phase: 0,
                segment: piece.segment.0,
                stripe: piece.stripes.end,
            };
        });
        Ok((counts.read_bytes + counts.written_bytes).max(1))
    }

    fn finish_rebuild(&self, job: &JobRecord, target: MemberIndex) -> Result<u64, EngineError> {
        let promoted = self.checkpoint_promoting(CheckpointKind::Normal, target)?;
        if !promoted {
            let message = "The device it was rebuilt on failed at the end";
            self.end_job(job.id, JobState::Failed, message);
        } else if job.lost > 0 {
            let message = format!(
                "{} blocks could not be read from any member; a scrub says what they were",
                job.lost
            );
            self.end_job(job.id, JobState::Done, &message);
        } else {
            self.end_job(job.id, JobState::Done, "");
        }
        Ok(0)
    }
}
