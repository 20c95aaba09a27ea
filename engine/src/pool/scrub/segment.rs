//! Scrubbing the stripes of one segment, a piece at a time.

use std::{collections::BTreeSet, ops::Range};

use tessera_dedup::{
    Generation, SummaryId, SummaryRecord,
    segment::SegmentRecord,
    summary::{SUMMARY_BLOCK_BYTES, decode_expected},
};
use tessera_raid::{Column, Placement, SegmentId, StripeState, Unreadable};

use super::{
    ScrubWork,
    copies::{Tally, Wanted, is_record},
};
use crate::{
    error::EngineError,
    jobs::{Cursor, JobRecord},
    pool::{engine::Engine, rebuild::Piece},
};

const SUMMARY_BLOCK: u32 = SUMMARY_BLOCK_BYTES as u32; // 4096

/// The segment being scrubbed.
#[derive(Debug)]
pub(crate) struct Current {
    segment: SegmentId,
    generation: Generation,
    /// In the order of their positions.
    records: Vec<SummaryRecord>,
    /// False where stripes without records may never have been written.
    all_written: bool,
    /// Every block of its summary could be read.
    summarised: bool,
}

impl Engine {
    /// Verifies and mends what lies in a few stripes of one segment.
    pub(super) fn scrub_piece(
        &self,
        work: &mut ScrubWork,
        job: &JobRecord,
        piece: &Piece,
    ) -> Result<u64, EngineError> {
        let stripe = self.geometry.stripe_bytes;
        let bytes = u64::from(piece.stripes.end - piece.stripes.start) * u64::from(stripe);
        let mut tally = Tally::default();
        let mut moved = 1;
        let guard = self.epochs.enter();
        // Freed meanwhile: nothing names it any more.
        if let Some(record) = self.still_live(piece.segment, piece.generation) {
            let same = work.current.as_ref().is_some_and(|current| {
                current.segment == piece.segment && current.generation == piece.generation
            });
            if !same {
                work.current = Some(self.look_into(work, piece, &record, &mut tally));
            }
            let current = work.current.as_ref().expect("set above");
            moved += self.scrub_stripes(current, &record, &piece.stripes, &mut tally)?;
        }
        drop(guard);
        self.jobs.lock().update(job.id, |record| {
            tally.add_to(record);
            record.done_bytes += bytes;
            record.cursor = Cursor {
                phase: record.cursor.phase,
                segment: piece.segment.0,
                stripe: piece.stripes.end,
            };
        });
        Ok(moved)
    }

    /// Finds out what a segment holds, and verifies its summary in every copy.
    fn look_into(
        &self,
        work: &ScrubWork,
        piece: &Piece,
        record: &SegmentRecord,
        tally: &mut Tally,
    ) -> Current {
        let id = piece.segment;
        let summarised = self.scrub_summary(id, record, tally);
        let known = self
            .open_records(id, record)
            .or_else(|| self.read_summary(id, record).map(|summary| summary.records));
        let all_written = known.is_some();
        let mut records = known.unwrap_or_else(|| work.undescribed.records(id));
        records.sort_unstable_by_key(|one| one.entry.position);
        Current {
            segment: id,
            generation: piece.generation,
            records,
            all_written,
            summarised,
        }
    }

    /// False where some of it is lost, or where there is none.
    fn scrub_summary(&self, id: SegmentId, record: &SegmentRecord, tally: &mut Tally) -> bool {
        let extent = record.summary;
        let Some(holder) = self.table.record(extent.segment) else {
            return false;
        };
        let length = u32::from(extent.blocks) * SUMMARY_BLOCK;
        if length == 0 {
            return false;
        }
        let placement = holder.placement();
        let Ok(copies) = self.array.read_copies(&placement, extent.offset, length) else {
            return false;
        };
        let mut whole = true;
        let expected = SummaryId {
            pool: self.array.uuid(),
            segment: id,
            generation: record.generation,
        };
        for number in 0..u32::from(extent.blocks) {
            let wanted = Wanted {
                placement: &placement,
                position: extent.offset + number * SUMMARY_BLOCK,
                length: SUMMARY_BLOCK,
                is_right: &|bytes| decode_expected(bytes, &expected, number).is_ok(),
            };
            // Losing it costs deduplication and no data.
            if !self.scrub_wanted(&wanted, &copies, extent.offset, tally) {
                tracing::warn!(segment = id.0, number, "A summary block is lost");
                whole = false;
            }
        }
        whole
    }

    fn scrub_stripes(
        &self,
        current: &Current,
        record: &SegmentRecord,
        stripes: &Range<u32>,
        tally: &mut Tally,
    ) -> Result<u64, EngineError> {
        let stripe = self.geometry.stripe_bytes;
        let (start, end) = (stripes.start * stripe, stripes.end * stripe);
        let placement = record.placement();
        let copies = self.array.read_copies(&placement, start, end - start)?;
        let mut moved = copies.len() as u64 * u64::from(end - start);
        let of = |position: u32| {
            current
                .records
                .partition_point(|one| one.entry.position < position)
        };
        let here = &current.records[of(start)..of(end)];
        let mut lost_in = BTreeSet::new();
        for one in here {
            let wanted = Wanted {
                placement: &placement,
                position: one.entry.position,
                length: one.entry.stored,
                is_right: &|bytes| is_record(one, bytes),
            };
            if !self.scrub_wanted(&wanted, &copies, start, tally) {
                tally.lost.push((current.segment, one.entry.position));
                lost_in.insert(one.entry.position / stripe);
            }
        }
        drop(copies);
        for check in self.array.check_stripes(&placement, stripes.clone())? {
            let described = || {
                here.iter()
                    .any(|one| one.entry.position / stripe == check.stripe)
            };
            if !current.all_written && !described() {
                continue;
            }
            tally.checked += 1;
            let wrong = match check.state {
                StripeState::Consistent | StripeState::Unchecked => continue,
                StripeState::Mismatch(members) | StripeState::Unreadable(members) => members,
            };
            tally.found(wrong);
            // With data lost in it the parity may be all that is right.
            if lost_in.contains(&check.stripe) {
                continue;
            }
            moved += u64::from(stripe);
            let is_right = |data: &[u8]| {
                let first = check.stripe * stripe;
                let mut recorded = here
                    .iter()
                    .filter(|one| one.entry.position / stripe == check.stripe);
                let verifies = |one: &SummaryRecord| {
                    let at = (one.entry.position - first) as usize;
                    let stored = data.get(at..at + one.entry.stored as usize);
                    stored.is_some_and(|stored| is_record(one, stored))
                };
                recorded.all(verifies)
                    && (!current.summarised
                        || self.own_summary_verifies(current.segment, record, first, data))
            };
            match self
                .array
                .mend_redundancy(&placement, check.stripe, &is_right)
            {
                Ok(mended) => tally.repaired(mended),
                Err(error) => tracing::warn!(%error, "A scrub cannot mend a stripe"),
            }
        }
        Ok(moved)
    }

    /// Whether the blocks of a segment's own summary verify that lie in `data`,
    /// which is at `first` of the segment.
    fn own_summary_verifies(
        &self,
        id: SegmentId,
        record: &SegmentRecord,
        first: u32,
        data: &[u8],
    ) -> bool {
        let extent = record.summary;
        let expected = SummaryId {
            pool: self.array.uuid(),
            segment: id,
            generation: record.generation,
        };
        let blocks = match extent.segment == id {
            true => 0..u32::from(extent.blocks),
            false => 0..0,
        };
        blocks.into_iter().all(|number| {
            let Some(at) = (extent.offset + number * SUMMARY_BLOCK).checked_sub(first) else {
                return true;
            };
            data.get(at as usize..(at + SUMMARY_BLOCK) as usize)
                .is_none_or(|block| decode_expected(block, &expected, number).is_ok())
        })
    }

    /// Puts right what plain reads of clients could not read directly (the
    /// redundancy gave it): each recorded piece of the range is verified and
    /// written back.
    pub(crate) fn heal_unreadable(&self) {
        for range in self.array.take_unreadable() {
            let _guard = self.epochs.enter();
            self.heal(&range);
        }
    }

    fn heal(&self, range: &Unreadable) {
        // New segments have the slot of their number.
        let id = SegmentId(range.placement.slot(Column(0)).0);
        let same = |record: &SegmentRecord| record.placement() == range.placement;
        let live = self.table.record(id).filter(same);
        let Some(record) = live.and_then(|record| self.still_live(id, record.generation)) else {
            return;
        };
        let known = self.open_records(id, &record).or_else(|| {
            self.read_summary(id, &record)
                .map(|summary| summary.records)
        });
        let placement: Placement = record.placement();
        let end = range.offset + range.length;
        let inside = known.iter().flatten().filter(|one| {
            one.entry.position < end && one.entry.position + one.entry.stored > range.offset
        });
        let mut tally = Tally::default();
        for one in inside {
            let wanted = Wanted {
                placement: &placement,
                position: one.entry.position,
                length: one.entry.stored,
                is_right: &|bytes| is_record(one, bytes),
            };
            self.mend(&wanted, &BTreeSet::from([range.member]), &mut tally);
        }
        if tally.repaired > 0 {
            tracing::info!(
                segment = id.0,
                offset = range.offset,
                "Healed an unreadable range"
            );
        }
    }
}
