//! Post-process deduplication: finding duplicates of what is stored already.
//!
//! ```text
//!   survey   summaries of sealed segments: which chunks have no hash yet?
//!   names    a walk over all roots: who names them
//!   hash     read and hash those that may be merged, in the order of places
//!   look up  ask the index in the order of hashes; verify by the summaries of
//!            the segments that it names, each read once (R8)
//!   merge    give duplicates' names the one place that stays (R21)
//!   finish   other pages for snapshots; hashes into new summaries; checkpoint
//! ```
//! One pass goes over a *window* of segments, as many as memory allows, and the
//! job over all windows. A pass holds nothing between its steps: nothing is
//! frozen, so reclaim may free or move what it looks at, and each step looks
//! again. Why that is safe, and what a crash leaves: docs/post-process.md.

mod hashing;
mod merging;
mod names;
mod summaries;
mod targets;
mod window;

use std::collections::BTreeMap;

use tessera_dedup::{Generation, Hit, IndexState, segment::Stream};
use tessera_raid::SegmentId;

use self::window::Window;
use super::{CheckpointKind, engine::Engine, walk::TreesWalk};
use crate::{
    api::JobState,
    error::{EngineError, ErrorKind},
    jobs::JobRecord,
};

/// Memory that a chunk of a window takes with its names, about.
const BYTES_PER_CHUNK: usize = 256;
/// Windows of fewer chunks would walk the maps for too little.
const CHUNKS_MIN: usize = 4096;

/// A job's first phase: it has not begun, and deals with everything written so
/// far.
const PHASE_NEW: u32 = 0;
/// It has begun.
const PHASE_BEGUN: u32 = 1;
/// As [`PHASE_NEW`] of a job that was begun by the schedule: it leaves an open
/// segment open, or one of them would be used up for a few chunks each time.
pub(in crate::pool) const PHASE_SCHEDULED: u32 = 2;

/// What reading some summaries in for the index costs, about, for pacing.
const INDEX_STEP_BYTES: u64 = 1 << 20;

/// What the job remembers between steps. After a crash the window begins anew.
#[derive(Debug, Default)]
pub(crate) struct DedupWork {
    job: u64,
    /// The segment to survey next.
    next: u32,
    window: Window,
    stage: Stage,
}

/// Where a pass over a window stands.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Survey,
    Names(TreesWalk),
    /// Up to which chunk.
    Hash(usize),
    /// Up to which of the sorted chunks.
    LookUp(usize),
    /// Segments that may hold some of them, and what was found for which hash.
    Verify(Vec<(SegmentId, u32)>),
    /// Up to which name.
    Merge(usize),
    Snapshots,
    /// Up to which segment.
    Summaries(usize),
}

/// The chunks that stay, by the first of the sorted chunks that are equal.
type Found = BTreeMap<usize, Hit>;

/// How a step ended.
enum Progress {
    /// Bytes read and hashed, for pacing; there is more.
    Did(u64),
    /// Somebody else has to get on first.
    Waits,
    Over,
}

impl Engine {
    /// One step of a deduplication job; how many bytes it went through, or
    /// `None` when it cannot go on now.
    pub(in crate::pool) fn dedup_step(
        &self,
        work: &mut Option<DedupWork>,
        job: &JobRecord,
    ) -> Result<Option<u64>, EngineError> {
        let result = match work.as_mut().filter(|work| work.job == job.id) {
            Some(work) => self.pass_step(work),
            None => {
                *work = Some(DedupWork {
                    job: job.id,
                    next: job.cursor.segment,
                    ..DedupWork::default()
                });
                self.begin_dedup(job).map(|()| Progress::Did(0))
            }
        };
        match result {
            Ok(Progress::Did(bytes)) => Ok(Some(bytes.max(1))),
            Ok(Progress::Waits) => Ok(None),
            Ok(Progress::Over) => {
                *work = None;
                self.end_job(job.id, JobState::Done, "");
                Ok(Some(1))
            }
            Err(error) => {
                *work = None;
                if error.kind() != ErrorKind::NoSpace {
                    return Err(error);
                }
                self.end_job(job.id, JobState::Failed, &error.to_string());
                Ok(Some(1))
            }
        }
    }

    /// Has everything that was written so far lie in sealed segments, and says
    /// how much there is to look at.
    fn begin_dedup(&self, job: &JobRecord) -> Result<(), EngineError> {
        if job.cursor.phase != PHASE_BEGUN {
            let may_seal = job.cursor.phase == PHASE_NEW
                && self.room_for_moving() >= u64::from(self.geometry.segment_bytes);
            let mut state = self.state.lock();
            let lacks_hashes = |summary: tessera_dedup::Summary| {
                let mut records = summary.records.iter();
                records.any(|record| record.fingerprint.is_none())
            };
            let open = state.appender.partial_summary(Stream::Data);
            if may_seal && open.is_some_and(lacks_hashes) {
                state.appender.seal(Stream::Data);
                Self::journal_segment_events(&mut state);
            }
            drop(state);
            self.signals.writer.ring();
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        let sealed = self.sealed_data(0);
        let is_live = |known: &(u32, u64)| self.is_still(SegmentId(known.0), Generation(known.1));
        self.hashed_segments.lock().retain(is_live);
        let total = sealed
            .iter()
            .map(|(_, record)| u64::from(record.stored_bytes))
            .sum();
        let done = sealed
            .iter()
            .filter(|(id, _)| id.0 < job.cursor.segment)
            .map(|(_, record)| u64::from(record.stored_bytes))
            .sum();
        self.jobs.lock().update(job.id, |record| {
            record.cursor.phase = PHASE_BEGUN;
            record.total_bytes = total;
            record.done_bytes = done;
        });
        Ok(())
    }

    fn pass_step(&self, work: &mut DedupWork) -> Result<Progress, EngineError> {
        let window = &mut work.window;
        match &mut work.stage {
            Stage::Survey => self.survey_some(work),
            Stage::Names(walk) => {
                if self.collect_names(window, walk) {
                    window.sort_names();
                    work.stage = Stage::Hash(0);
                }
                Ok(Progress::Did(super::walk::WALK_STEP_BYTES))
            }
            Stage::Hash(at) => {
                let hashed = self.hash_some(window, at)?;
                self.jobs.lock().update(work.job, |record| {
                    record.checked += hashed.chunks;
                    record.done_bytes += hashed.passed_bytes;
                });
                if *at == window.chunks.len() {
                    window.sort_hashed();
                    work.stage = Stage::LookUp(0);
                }
                Ok(Progress::Did(hashed.read_bytes))
            }
            Stage::LookUp(at) => {
                if *at == 0
                    && let Some(progress) = self.await_index()?
                {
                    return Ok(progress);
                }
                if self.look_up_some(window, at) {
                    work.stage = Stage::Verify(window.take_suspects());
                }
                Ok(Progress::Did(0))
            }
            Stage::Verify(suspects) => match self.verify_some(window, suspects) {
                bytes if suspects.is_empty() => {
                    let found = window.choose_targets();
                    self.jobs.lock().update(work.job, |record| {
                        record.found += found;
                    });
                    work.stage = Stage::Merge(0);
                    Ok(Progress::Did(bytes))
                }
                bytes => Ok(Progress::Did(bytes)),
            },
            Stage::Merge(at) => {
                let merged = self.merge_some(window, at)?;
                self.count_merged(work.job, merged);
                if *at == window.names.len() {
                    work.stage = Stage::Snapshots;
                }
                Ok(Progress::Did(merged.names * 4096))
            }
            Stage::Snapshots => {
                let merged = self.merge_in_snapshots(window)?;
                self.count_merged(work.job, merged);
                work.stage = Stage::Summaries(0);
                Ok(Progress::Did(0))
            }
            Stage::Summaries(at) => {
                let bytes = self.rewrite_summaries(window, at)?;
                if *at == window.segments.len() {
                    let next = work.next;
                    self.jobs.lock().update(work.job, |record| {
                        record.cursor.segment = next;
                    });
                    self.checkpoint_now(CheckpointKind::Normal)?;
                    let mut hashed = self.hashed_segments.lock();
                    hashed.extend(std::mem::take(window).settled());
                    work.stage = Stage::Survey;
                }
                Ok(Progress::Did(bytes))
            }
        }
    }

    fn count_merged(&self, job: u64, merged: merging::Merged) {
        if merged.chunks > 0 {
            self.jobs.lock().update(job, |record| {
                record.repaired += merged.chunks;
                record.merged_bytes += merged.bytes;
            });
        }
    }

    /// Every chunk whose hash is known somewhere must be findable: one that is
    /// hashed is not looked up again. While old segments are read in again the
    /// job helps, and waits where that waits.
    fn await_index(&self) -> Result<Option<Progress>, EngineError> {
        let state = self.index.state();
        if state == IndexState::Ready {
            self.index.flush();
            return Ok(None);
        }
        if !matches!(state, IndexState::Rebuilding { .. }) {
            let message =
                "There is no fingerprint index to look duplicates up in: rebuild it first";
            return Err(EngineError::new(ErrorKind::InvalidArgument, message));
        }
        if self.index.rebuild_step(&*self.table) || self.index.state() == IndexState::Ready {
            return Ok(Some(Progress::Did(INDEX_STEP_BYTES)));
        }
        Ok(Some(Progress::Waits))
    }
}
