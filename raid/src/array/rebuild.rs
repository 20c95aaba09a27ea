//! Filling a target with what its member holds, or should hold.
//!
//! A run of stripes is consecutive on every member, so the plain way is one
//! read a member and one write. Where a read fails the run is gone through
//! block by block, each with whoever can still give it.

use std::ops::Range;

use super::{Array, attach::lost, roster::Roster, stripe::recover, types::CopyCounts};
use crate::{
    Column, Kind, MemberIndex, MemberSet, Placement, RaidError,
    device::{AlignedBuf, BLOCK_BYTES, BufSlice, Io, IoOp},
    layout::Layout,
};

/// A range of bytes of the same units on all members.
struct Run<'a> {
    roster: &'a Roster,
    layout: &'a Layout,
    placement: &'a Placement,
    stripes: Range<u32>,
    /// Within each unit; all of it unless there is one stripe only.
    bytes: Range<u32>,
}

impl Run<'_> {
    fn length(&self) -> usize {
        let stripes = (self.stripes.end - self.stripes.start) as usize;
        stripes * (self.bytes.end - self.bytes.start) as usize
    }
}

impl Array {
    /// Puts the target's part of some stripes of a segment on it, copied from
    /// its member where that is in use and can read it, else reconstructed.
    /// Not durable before [`Array::sync`].
    ///
    /// The caller promises that the writing of these stripes is over (stripes
    /// begun since the attach are on the target already), and keeps the
    /// segment from being freed meanwhile (R9).
    ///
    /// # Errors
    /// `TargetLost` where it is no target any more; `Unrecoverable` where the
    /// members in use do not have what it is to get, as at levels without
    /// redundancy; `InvalidArgument` for stripes that the segment lacks.
    pub fn rebuild_stripes(
        &self,
        target: MemberIndex,
        placement: &Placement,
        stripes: Range<u32>,
    ) -> Result<CopyCounts, RaidError> {
        self.may_write()?;
        let roster = self.roster();
        let of = roster.target_of(target).ok_or_else(|| lost(target))?;
        let layout = self.check_range(placement, &stripes)?;
        let mut counts = CopyCounts::default();
        let Some(column) = layout.column_of(of).filter(|_| !stripes.is_empty()) else {
            return Ok(counts);
        };
        // A repair of what is being copied would be undone.
        let _repair = self.repairs.lock();
        let run = Run {
            roster: &roster,
            layout,
            placement,
            bytes: 0..layout.stripe_unit_bytes,
            stripes,
        };
        self.check_recoverable(&run, of)?;
        let data = match self.obtain(&run, column, &mut counts) {
            Some(data) => data,
            None => self.obtain_blocks(&run, column, &mut counts)?,
        };
        let offset = self.unit_offset(layout, placement, column, run.stripes.start);
        let length = data.len() as u64;
        let op = IoOp::Write {
            data: vec![BufSlice::from(data)],
            durable: false,
        };
        let mut batch = [roster.io(target, offset, op)];
        self.run(&roster, &mut batch);
        let outcome = std::iter::once((&batch[0].outcome, target));
        self.settle_writes(&roster, "a rebuilding write failed", outcome)?;
        if roster.live(target).is_none() {
            return Err(lost(target));
        }
        counts.written_bytes += length;
        Ok(counts)
    }

    /// The layout of a placement that has these stripes.
    pub(super) fn check_range(
        &self,
        placement: &Placement,
        stripes: &Range<u32>,
    ) -> Result<&Layout, RaidError> {
        let layout = self.layout_of(placement)?;
        let limit = self.segment_geometry(layout).stripes_per_segment;
        if stripes.start > stripes.end || stripes.end > limit {
            return Err(RaidError::new(
                Kind::InvalidArgument,
                format!("Segments have {limit} stripes, not {stripes:?}"),
            ));
        }
        Ok(layout)
    }

    fn check_recoverable(&self, run: &Run<'_>, of: MemberIndex) -> Result<(), RaidError> {
        let in_use = run.roster.in_use();
        if in_use.contains(of) || run.layout.survives(run.roster.all.difference(in_use)) {
            return Ok(());
        }
        let names = run.roster.names(MemberSet::of(of));
        let level = run.layout.level;
        Err(RaidError::new(
            Kind::Unrecoverable,
            format!("What {names} held cannot be rebuilt: {level} has no redundancy left for it"),
        ))
    }

    /// Reads a run of one column, or everything it follows from; `None` where
    /// a read failed, or too little is there.
    fn obtain(&self, run: &Run<'_>, column: Column, counts: &mut CopyCounts) -> Option<AlignedBuf> {
        let in_use = run.roster.in_use();
        if in_use.contains(run.layout.member(column)) {
            let mut own = self.read_run(run, &[column], counts);
            return own.pop().flatten();
        }
        let others = run.layout.columns_of(in_use);
        // One copy is enough at the levels that have some.
        let copies = run
            .layout
            .locate(run.stripes.start, self.unit_in(run, column));
        let mirrored = run.layout.p_column(run.stripes.start).is_none();
        let sources: Vec<Column> = match mirrored {
            true => others.intersection(copies).iter().take(1).collect(),
            false => others.iter().collect(),
        };
        let read = self.read_run(run, &sources, counts);
        if read.iter().any(Option::is_none) {
            return None;
        }
        self.solve_run(run, column, &sources, &read)
    }

    /// At the levels with mirrors: the unit that a column holds in every
    /// stripe.
    fn unit_in(&self, run: &Run<'_>, column: Column) -> u32 {
        match run.layout.role(run.stripes.start, column) {
            crate::layout::Role::Data(k) | crate::layout::Role::Mirror(k) => k,
            _ => 0,
        }
    }

    fn solve_run(
        &self,
        run: &Run<'_>,
        column: Column,
        sources: &[Column],
        read: &[Option<AlignedBuf>],
    ) -> Option<AlignedBuf> {
        let unit = (run.bytes.end - run.bytes.start) as usize;
        let mut result = self.scratch(run.length());
        let stripes = run.stripes.clone().zip(result.chunks_mut(unit));
        for (n, (stripe, target)) in stripes.enumerate() {
            let present = |wanted: Column| {
                let place = sources.iter().position(|source| *source == wanted)?;
                let bytes = read[place].as_deref()?;
                Some(&bytes[n * unit..(n + 1) * unit])
            };
            if !recover(run.layout, stripe, column, &present, target) {
                return None;
            }
        }
        Some(result)
    }

    /// Reads the same run of several columns; `None` for those that fail.
    fn read_run(
        &self,
        run: &Run<'_>,
        columns: &[Column],
        counts: &mut CopyCounts,
    ) -> Vec<Option<AlignedBuf>> {
        let members = || columns.iter().map(|column| run.layout.member(*column));
        let mut batch: Vec<Io> = columns
            .iter()
            .map(|column| {
                let start = run.stripes.start;
                let offset = self.unit_offset(run.layout, run.placement, *column, start)
                    + u64::from(run.bytes.start);
                let buffer = self.scratch(run.length());
                run.roster
                    .io(run.layout.member(*column), offset, IoOp::Read(buffer))
            })
            .collect();
        self.run(run.roster, &mut batch);
        let outcomes = batch.iter().map(|io| &io.outcome).zip(members());
        self.note_failures_of_reads(run.roster, outcomes);
        let buffers = batch.into_iter().map(|io| match (io.outcome, io.op) {
            (Some(Ok(())), IoOp::Read(buffer)) => {
                counts.read_bytes += buffer.len() as u64;
                Some(buffer)
            }
            _ => {
                counts.read_errors += 1;
                None
            }
        });
        buffers.collect()
    }

    /// The same block by block; zeroes for blocks that nobody can give. Those
    /// were lost already, and their checksums say so.
    fn obtain_blocks(
        &self,
        run: &Run<'_>,
        column: Column,
        counts: &mut CopyCounts,
    ) -> Result<AlignedBuf, RaidError> {
        let block = BLOCK_BYTES as u32;
        let unit = run.layout.stripe_unit_bytes;
        let mut result = AlignedBuf::zeroed(run.length());
        let mut targets = result.chunks_mut(BLOCK_BYTES);
        for stripe in run.stripes.clone() {
            for start in (0..unit).step_by(BLOCK_BYTES) {
                let target = targets.next().expect("the result has every block");
                let one = Run {
                    stripes: stripe..stripe + 1,
                    bytes: start..start + block,
                    ..*run
                };
                // A member that went meanwhile makes it hopeless, not lost.
                self.check_recoverable(&one, run.layout.member(column))?;
                match self.obtain_block(&one, column, counts) {
                    Some(data) => target.copy_from_slice(&data),
                    None => {
                        self.check_stopped()?;
                        counts.lost_blocks += 1;
                    }
                }
            }
        }
        Ok(result)
    }

    fn obtain_block(
        &self,
        one: &Run<'_>,
        column: Column,
        counts: &mut CopyCounts,
    ) -> Option<AlignedBuf> {
        let in_use = one.roster.in_use();
        if in_use.contains(one.layout.member(column)) {
            let own = self.read_run(one, &[column], counts).pop().flatten();
            if own.is_some() {
                return own;
            }
        }
        let others = one.layout.columns_of(in_use).without(column);
        let sources: Vec<Column> = others.iter().collect();
        let read = self.read_run(one, &sources, counts);
        self.solve_run(one, column, &sources, &read)
    }
}
