//! Putting verified bytes back where they belong (R7).
//!
//! Only the verified bytes change. A packed block holds chunks that were
//! written together but rot apart: two half-rotted copies must not destroy
//! each other's good chunk, so the rest of each copy's block stays what that
//! copy holds. At the parity levels the stripe's parity still agrees with the
//! right data, so the data alone is rewritten.

use std::sync::atomic::Ordering;

use super::{Array, roster::Roster, stripe::solve};
use crate::{
    Column, ColumnSet, Kind, MemberIndex, MemberSet, Placement, RaidError,
    device::{AlignedBuf, BLOCK_BYTES, BufSlice, IoOp},
    layout::{Layout, Piece, ReadPlan},
    sabotage::broken,
};

/// A block of a segment.
struct Block<'a> {
    roster: &'a Roster,
    layout: &'a Layout,
    placement: &'a Placement,
    piece: Piece,
}

impl Array {
    /// Puts verified bytes (any byte range of a segment) back on the members
    /// that hold them; no other byte changes (R7).
    ///
    /// Members that hold them already are not written to. Of a block that
    /// cannot be read, the bytes not verified are reconstructed as a read
    /// would, so that it can be read again.
    ///
    /// The caller keeps the segment from being freed meanwhile (R9) and calls
    /// this only for stripes whose writing is over.
    pub fn rewrite_verified(
        &self,
        placement: &Placement,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), RaidError> {
        self.may_write()?;
        let layout = self.layout_of(placement)?;
        let block = BLOCK_BYTES as u32;
        let end = u32::try_from(bytes.len())
            .ok()
            .and_then(|length| offset.checked_add(length));
        let end = end
            .ok_or_else(|| RaidError::new(Kind::InvalidArgument, "The range leaves its segment"))?;
        let first = offset / block * block;
        let length = end.div_ceil(block) * block - first;
        let pieces = self.pieces(layout, first, length as usize)?;
        // Two repairs of one block would undo each other.
        let _repair = self.repairs.lock();
        let roster = self.roster();
        let mut repaired = MemberSet::EMPTY;
        for piece in pieces.flat_map(super::alternatives::blocks_of) {
            let start = first + piece.offset_in_range;
            let verified = start.max(offset)..(start + block).min(end);
            let source =
                &bytes[(verified.start - offset) as usize..(verified.end - offset) as usize];
            let at = (verified.start - start) as usize;
            let block = Block {
                roster: &roster,
                layout,
                placement,
                piece,
            };
            repaired = repaired.union(self.rewrite_block(&block, at, source)?);
        }
        self.count_repairs(&roster, repaired);
        Ok(())
    }

    /// Counts what was put right, except on targets: those are being filled.
    pub(super) fn count_repairs(&self, roster: &Roster, repaired: MemberSet) {
        for member in repaired.intersection(roster.all).iter() {
            let counters = &roster.rows[member.index()].counters;
            counters.repaired.fetch_add(1, Ordering::Relaxed);
            tracing::info!(pool = %self.pool, %member, "rewrote damaged data");
        }
    }

    /// Puts `source` at byte `at` of one block on everybody who holds the
    /// block, targets included; who had something else.
    fn rewrite_block(
        &self,
        place: &Block<'_>,
        at: usize,
        source: &[u8],
    ) -> Result<MemberSet, RaidError> {
        let (roster, layout, piece) = (place.roster, place.layout, &place.piece);
        let used = roster.written();
        let mut targets = Vec::new();
        let mut batch = Vec::new();
        let columns = layout.locate(piece.stripe, piece.data_unit);
        let holders = columns.iter().flat_map(|column| {
            let holders = roster.holders(layout.member(column), used);
            holders.map(move |holder| (column, holder))
        });
        for (column, holder) in holders {
            let own = self.read_block_of(place, column, holder);
            let mut block = match own {
                Some(own) if own[at..at + source.len()] == *source => continue,
                Some(own) if !broken("R7.verified_only") => own,
                _ => {
                    let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
                    let whole = source.len() == BLOCK_BYTES;
                    if !whole && !self.rebuild_block(place, column, &mut block) {
                        continue;
                    }
                    block
                }
            };
            block[at..at + source.len()].copy_from_slice(source);
            let op = IoOp::Write {
                data: vec![BufSlice::from(block)],
                durable: false,
            };
            batch.push(roster.io(holder, self.block_offset(place, column), op));
            targets.push(holder);
        }
        // Not synced: if the write is lost, the damage is found once more.
        self.run(roster, &mut batch);
        let outcomes = batch
            .iter()
            .map(|io| &io.outcome)
            .zip(targets.iter().copied());
        let full = self.settle_writes(roster, "a repairing write failed", outcomes)?;
        match full {
            Some(full) => Err(full),
            None => Ok(targets.into_iter().collect()),
        }
    }

    fn block_offset(&self, place: &Block<'_>, column: Column) -> u64 {
        self.unit_offset(place.layout, place.placement, column, place.piece.stripe)
            + u64::from(place.piece.offset_in_unit)
    }

    /// A column's block as `holder` has it.
    fn read_block_of(
        &self,
        place: &Block<'_>,
        column: Column,
        holder: MemberIndex,
    ) -> Option<AlignedBuf> {
        let roster = place.roster;
        roster.live(holder)?;
        let offset = self.block_offset(place, column);
        let read = IoOp::Read(AlignedBuf::zeroed(BLOCK_BYTES));
        let mut batch = [roster.io(holder, offset, read)];
        self.run(roster, &mut batch);
        self.note_failures_of_reads(roster, std::iter::once((&batch[0].outcome, holder)));
        let [io] = batch;
        match (io.outcome, io.op) {
            (Some(Ok(())), IoOp::Read(buffer)) => Some(buffer),
            _ => None,
        }
    }

    /// Obtains a block without `column`; false where that cannot be done.
    fn rebuild_block(&self, place: &Block<'_>, column: Column, target: &mut [u8]) -> bool {
        let (roster, layout, piece) = (place.roster, place.layout, &place.piece);
        let mut bad = ColumnSet::of(column);
        loop {
            let lacking = roster.all.difference(roster.in_use());
            let failed = lacking.union(layout.members_of(bad));
            let columns = match layout.read_plan(piece.stripe, piece.data_unit, failed) {
                ReadPlan::Lost => return false,
                ReadPlan::Direct(copies) => copies.iter().take(1).collect(),
                ReadPlan::Solve { read, .. } => read,
            };
            let read: Vec<(Column, Option<AlignedBuf>)> = columns
                .iter()
                .map(|c| (c, self.read_block_of(place, c, layout.member(c))))
                .collect();
            let failed_now: ColumnSet = read
                .iter()
                .filter(|(_, bytes)| bytes.is_none())
                .map(|(c, _)| *c)
                .collect();
            if !failed_now.is_empty() {
                bad = bad.union(failed_now);
                continue;
            }
            let bytes = |wanted: Column| {
                let found = read.iter().find(|(column, _)| *column == wanted);
                found
                    .and_then(|(_, bytes)| bytes.as_deref())
                    .expect("all were read")
            };
            let copies = layout.locate(piece.stripe, piece.data_unit);
            match columns.iter().find(|column| copies.contains(*column)) {
                Some(copy) => target.copy_from_slice(bytes(copy)),
                None => {
                    let erased = layout.columns().difference(columns);
                    solve(layout, piece.stripe, piece.data_unit, erased, bytes, target);
                }
            }
            return true;
        }
    }
}
