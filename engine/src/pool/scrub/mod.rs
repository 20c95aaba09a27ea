//! Scrub: reading every copy of everything, and mending what is wrong.
//!
//! ```text
//!   0  superblock copies      compared with what they should be
//!   1  journal copies         every batch on every member that should have it
//!   2  segments               segment.rs: summaries, chunks, pages in every
//!                             direct copy; then parity and mirrors
//!   3  losses                 what the places that no copy verifies of are to
//!                             volumes (../losses.rs)
//! ```
//! A checksum or hash says which copy is right, so unlike a comparison of
//! copies this never has to guess: also on RAID 1 and 10. Only bytes that
//! verify are written (R7), and parity is computed anew only over data of which
//! every recorded piece verified.
//!
//! Data written after the scrub began, and stripes still in memory, are left
//! for the next one. Each step holds an epoch guard and looks at the segment's
//! generation again (R9).

mod copies;
mod records;
mod segment;

use std::collections::VecDeque;

use tessera_raid::MemberIndex;

use self::records::{Describing, Undescribed};
pub(crate) use self::segment::Current;
use super::{
    CheckpointKind, engine::Engine, losses::Naming, rebuild::Piece, walk::WALK_STEP_BYTES,
};
use crate::{
    api::JobState,
    error::EngineError,
    jobs::{Cursor, JobRecord},
    journal::read_chain,
};

/// The stages, as the cursor counts them.
const SUPERBLOCKS: u32 = 0;
const JOURNAL: u32 = 1;
const SEGMENTS: u32 = 2;
const LOSSES: u32 = 3;

/// With more than this in the journal a checkpoint comes first: writers wait
/// while the copies are compared.
const JOURNAL_BYTES_MAX: u64 = 4 << 20;

/// What a scrub remembers between steps.
#[derive(Debug)]
pub(crate) struct ScrubWork {
    job: u64,
    /// It is found out first which segments' summaries are missing.
    describing: Option<Describing>,
    pieces: VecDeque<Piece>,
    /// The segment that the last piece was of.
    current: Option<Current>,
    /// What is known of segments whose summary is missing.
    undescribed: Undescribed,
    naming: Option<Naming>,
}

impl Engine {
    /// One step of a scrub; how many bytes it read and wrote.
    pub(super) fn scrub_step(
        &self,
        work: &mut Option<ScrubWork>,
        job: &JobRecord,
    ) -> Result<u64, EngineError> {
        let work = match work {
            Some(work) if work.job == job.id => work,
            stale => stale.insert(self.begin_scrub(job)),
        };
        if let Some(describing) = &mut work.describing {
            let found = self.describing_step(describing)?;
            self.say(job, &describing.message());
            if let Some(undescribed) = found {
                self.list_pieces(work, job, undescribed)?;
            }
            return Ok(WALK_STEP_BYTES);
        }
        match job.cursor.phase {
            SUPERBLOCKS => {
                self.scrub_superblocks(job)?;
                self.enter_phase(job, JOURNAL);
            }
            JOURNAL => {
                self.scrub_journal(job)?;
                self.enter_phase(job, SEGMENTS);
            }
            SEGMENTS => {
                let Some(piece) = work.pieces.pop_front() else {
                    self.enter_phase(job, LOSSES);
                    return Ok(0);
                };
                return self.scrub_piece(work, job, &piece);
            }
            _ if job.lost == 0 => self.finish_scrub(job),
            _ => {
                let mut naming = match work.naming.take() {
                    Some(naming) => naming,
                    None => self.begin_naming(job)?,
                };
                if self.naming_step(&mut naming) {
                    self.finish_naming(job, naming);
                    self.finish_scrub(job);
                } else {
                    self.say(job, "Looks through all maps for what is lost");
                    work.naming = Some(naming);
                }
                return Ok(WALK_STEP_BYTES);
            }
        }
        Ok(0)
    }

    fn say(&self, job: &JobRecord, message: &str) {
        self.jobs.lock().update(job.id, |record| {
            message.clone_into(&mut record.message);
        });
    }

    fn begin_scrub(&self, job: &JobRecord) -> ScrubWork {
        ScrubWork {
            job: job.id,
            describing: Some(self.begin_describing()),
            pieces: VecDeque::new(),
            current: None,
            undescribed: Undescribed::default(),
            naming: None,
        }
    }

    /// Lists what is to be verified, once it is known how.
    fn list_pieces(
        &self,
        work: &mut ScrubWork,
        job: &JobRecord,
        undescribed: Undescribed,
    ) -> Result<(), EngineError> {
        let (pieces, bytes) = self.live_pieces(job.cursor, &|_| true)?;
        self.jobs.lock().update(job.id, |record| {
            record.total_bytes = record.done_bytes + bytes;
            record.message.clear();
        });
        work.describing = None;
        (work.pieces, work.undescribed) = (pieces, undescribed);
        Ok(())
    }

    fn enter_phase(&self, job: &JobRecord, phase: u32) {
        self.jobs.lock().update(job.id, |record| {
            record.cursor = Cursor {
                phase,
                ..Cursor::default()
            };
        });
    }

    fn finish_scrub(&self, job: &JobRecord) {
        let lost = self.jobs.lock().get(job.id).map_or(0, |record| record.lost);
        let message = match lost {
            0 => String::new(),
            _ => format!("{lost} pieces of data are lost: no copy verifies"),
        };
        let now = (self.clock)();
        {
            let mut settings = self.settings.lock();
            let interval = settings.kept.scrub_interval_seconds.saturating_mul(1000);
            settings.scrub_due_ms = match now {
                0 => 0,
                _ => now.saturating_add(interval),
            };
        }
        self.end_job(job.id, JobState::Done, &message);
    }

    fn scrub_superblocks(&self, job: &JobRecord) -> Result<(), EngineError> {
        let scrubbed = self.array.scrub_superblocks()?;
        self.jobs.lock().update(job.id, |record| {
            for one in scrubbed {
                let found = one.wrong.len() as u64;
                record.checked += one.checked;
                record.found += found;
                record.repaired += one.rewritten;
                let counts = record.of(one.member);
                counts.checked += one.checked;
                counts.found += found;
                counts.repaired += one.rewritten;
                for wrong in one.wrong {
                    tracing::warn!(wrong, "Found by a scrub");
                }
            }
        });
        Ok(())
    }

    /// R16: every batch since the checkpoint is whole on every member that
    /// holds the journal. A copy that is not is made up for by a checkpoint,
    /// after which nobody needs it.
    fn scrub_journal(&self, job: &JobRecord) -> Result<(), EngineError> {
        if self.commit.lock().ring.used_bytes() > JOURNAL_BYTES_MAX {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        let found = {
            let checkpoint = self.checkpoint.lock();
            // No batch is written meanwhile.
            let _commit = self.commit.lock();
            self.journal_copies(checkpoint.record.journal)?
        };
        let bad = found.iter().filter(|(_, whole)| !whole).count();
        if bad > 0 {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        self.jobs.lock().update(job.id, |record| {
            for (member, whole) in found {
                let wrong = u64::from(!whole);
                record.checked += 1;
                record.found += wrong;
                record.repaired += wrong;
                let counts = record.of(member);
                counts.checked += 1;
                counts.found += wrong;
                counts.repaired += wrong;
            }
        });
        Ok(())
    }

    /// Every copy of every batch from `start` on, and whether it is whole.
    fn journal_copies(
        &self,
        start: crate::journal::ChainPoint,
    ) -> Result<Vec<(MemberIndex, bool)>, EngineError> {
        let chain = read_chain(&self.array, start)?;
        let ring = self.array.journal_bytes();
        let in_use = self.array.journal_members().into_iter().collect();
        let holders = self.array.current_layout().journal_members(in_use);
        let mut found = Vec::new();
        let mut offset = start.offset;
        for batch in &chain.batches {
            for member in &holders {
                let whole = crate::journal::has_copy(&self.array, *member, offset % ring, batch);
                found.push((*member, whole));
            }
            offset += batch.length;
            if batch.header.wrap {
                offset = offset.next_multiple_of(ring);
            }
        }
        Ok(found)
    }
}
