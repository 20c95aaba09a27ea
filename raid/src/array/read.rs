//! Reading ranges of segments, in rounds.
//!
//! A request is cut at stripe units. Each round plans every piece that is not
//! there yet (from one member, or by solving for it from others), runs all
//! device reads as one batch, and puts the bytes in place. A piece that met
//! an error is planned again without the column that gave it (after it has
//! been read alone, if the operation was shared); when nothing is left, it is
//! cut into blocks once, because errors of several members rarely meet in the
//! same block.
//!
//! The common case, one piece on a healthy member, reads straight into the
//! caller's buffer; pieces that follow each other on a member are read at
//! once.

use std::{mem, sync::atomic::Ordering};

use super::{Array, SegmentRead, Unreadable, roster::Roster, stripe::solve};
use crate::{
    Column, ColumnSet, Kind, MemberIndex, MemberSet, RaidError,
    device::{AlignedBuf, BLOCK_BYTES, Io, IoOp},
    layout::{Layout, Piece, ReadPlan},
};

/// The most that adjacent pieces are merged to: larger reads gain nothing.
const MERGED_BYTES_MAX: u32 = 1 << 20;
/// From this length on a copy costs more than an operation of its own.
const UNMERGED_BYTES_MIN: u32 = 32 << 10;

/// A piece of a request that is still to be read.
#[derive(Clone, Copy)]
struct Job {
    read: usize,
    piece: Piece,
    /// Columns that did not give it.
    bad: ColumnSet,
    /// Spreads requests over mirrors, the pieces of one staying together.
    turn: u64,
    /// Not to be merged with others: it shared an operation that failed, so
    /// nobody knows yet whether this piece is to blame.
    alone: bool,
}

/// One device read to be.
struct Extent {
    member: MemberIndex,
    offset: u64,
    length: u32,
    /// The request whose buffer it fills as a whole.
    fills: Option<usize>,
    /// Pieces that follow it may join it.
    open: bool,
    /// More than one piece has.
    shared: bool,
}

/// Where a job's bytes come from in this round.
enum Source {
    /// From an extent, at this byte.
    Direct {
        column: Column,
        extent: usize,
        at: u32,
    },
    /// Solved from extents, the columns of `read` in order from `first`.
    Solve {
        erased: ColumnSet,
        read: ColumnSet,
        first: usize,
    },
}

impl Array {
    /// Reads ranges, reconstructing what missing or failing members hold.
    ///
    /// All requests become one batch of device reads. Each gets its own
    /// outcome; the bytes are not verified, only obtained.
    ///
    /// # Errors
    /// `Unrecoverable` where more members miss or fail on a block than the
    /// layout survives; `InvalidArgument` for a range that cannot be. The
    /// buffer's contents are arbitrary then.
    pub fn read(&self, reads: &mut [SegmentRead]) {
        let mut jobs = Vec::with_capacity(reads.len());
        for (n, read) in reads.iter_mut().enumerate() {
            read.outcome = self.plan_jobs(n, read, &mut jobs);
        }
        let roster = self.roster();
        while !jobs.is_empty() {
            jobs = self.read_round(&roster, reads, &jobs);
        }
    }

    fn plan_jobs(
        &self,
        n: usize,
        read: &SegmentRead,
        jobs: &mut Vec<Job>,
    ) -> Result<(), RaidError> {
        let layout = self.layout_of(&read.placement)?;
        let turn = self.rotor.fetch_add(1, Ordering::Relaxed);
        let pieces = self.pieces(layout, read.offset, read.buffer.len())?;
        jobs.extend(pieces.map(|piece| Job {
            read: n,
            piece,
            bad: ColumnSet::EMPTY,
            turn,
            alone: false,
        }));
        Ok(())
    }

    /// The pieces of a range of blocks of a segment.
    pub(super) fn pieces(
        &self,
        layout: &Layout,
        offset: u32,
        length: usize,
    ) -> Result<impl Iterator<Item = Piece> + Clone + use<>, RaidError> {
        let geometry = self.segment_geometry(layout);
        let limit = geometry.segment_data_bytes();
        let checked = u32::try_from(length).ok().filter(|length| {
            offset.checked_add(*length).is_some_and(|end| end <= limit)
                && length.is_multiple_of(BLOCK_BYTES as u32)
                && offset.is_multiple_of(BLOCK_BYTES as u32)
        });
        let length = checked.ok_or_else(|| {
            let message =
                format!("{length} bytes at {offset} are not blocks of a segment of {limit}");
            RaidError::new(Kind::InvalidArgument, message)
        })?;
        Ok(geometry.pieces(offset, length))
    }

    /// Reads all jobs once; those to be tried again.
    fn read_round(&self, roster: &Roster, reads: &mut [SegmentRead], jobs: &[Job]) -> Vec<Job> {
        let lacking = roster.all.difference(roster.in_use());
        let mut again = Vec::new();
        let mut extents: Vec<Extent> = Vec::with_capacity(jobs.len());
        let mut sources: Vec<(Job, Source)> = Vec::with_capacity(jobs.len());
        for &job in jobs {
            match self.source_of(&reads[job.read], &job, lacking, &mut extents) {
                Some(source) => sources.push((job, source)),
                None if job.piece.length > BLOCK_BYTES as u32 => again.extend(blocks_of(job)),
                None => reads[job.read].outcome = Err(self.lost(&reads[job.read], &job)),
            }
        }
        let mut batch: Vec<Io> = extents
            .iter()
            .map(|extent| {
                let buffer = match extent.fills {
                    Some(read) => mem::take(&mut reads[read].buffer),
                    None => self.scratch(extent.length as usize),
                };
                roster.io(extent.member, extent.offset, IoOp::Read(buffer))
            })
            .collect();
        self.run(roster, &mut batch);
        let members = extents.iter().map(|extent| extent.member);
        self.note_failures_of_reads(roster, batch.iter().map(|io| &io.outcome).zip(members));
        give_back(reads, &extents, &mut batch);
        for (mut job, source) in sources {
            let bad = place(self, reads, &job, &source, &batch, &extents);
            if bad.is_empty() {
                continue;
            }
            match source {
                Source::Direct { extent, .. } if extents[extent].shared => job.alone = true,
                Source::Direct { extent, .. } => {
                    job.bad = job.bad.union(bad);
                    self.note_unreadable(&reads[job.read], &job, extents[extent].member);
                }
                Source::Solve { .. } => job.bad = job.bad.union(bad),
            }
            again.push(job);
        }
        // A request that is lost need not be finished.
        again.retain(|job| reads[job.read].outcome.is_ok());
        again
    }

    /// Plans one job, adding the device reads it needs.
    fn source_of(
        &self,
        read: &SegmentRead,
        job: &Job,
        lacking: MemberSet,
        extents: &mut Vec<Extent>,
    ) -> Option<Source> {
        let layout = self
            .layout_of(&read.placement)
            .expect("checked when it was planned");
        let Piece {
            stripe,
            data_unit,
            offset_in_unit,
            length,
            ..
        } = job.piece;
        let offset = |column| {
            self.unit_offset(layout, &read.placement, column, stripe) + u64::from(offset_in_unit)
        };
        let failed = lacking.union(layout.members_of(job.bad));
        match layout.read_plan(stripe, data_unit, failed) {
            ReadPlan::Lost => None,
            ReadPlan::Direct(columns) => {
                let turn = job.turn % u64::try_from(columns.len()).expect("at most 64 columns");
                let column = columns
                    .iter()
                    .nth(usize::try_from(turn).expect("below 64"))
                    .expect("the turn is below the number of columns");
                let member = layout.member(column);
                let (extent, at) = add_extent(extents, member, offset(column), job, read);
                Some(Source::Direct { column, extent, at })
            }
            ReadPlan::Solve {
                erased,
                read: columns,
            } => {
                let first = extents.len();
                extents.extend(columns.iter().map(|column| Extent {
                    member: layout.member(column),
                    offset: offset(column),
                    length,
                    fills: None,
                    open: false,
                    shared: false,
                }));
                Some(Source::Solve {
                    erased,
                    read: columns,
                    first,
                })
            }
        }
    }

    /// Remembers a range that has to be reconstructed, for whoever can verify
    /// and rewrite it.
    fn note_unreadable(&self, read: &SegmentRead, job: &Job, member: MemberIndex) {
        /// More are found again, by reading or by a scrub.
        const KEPT: usize = 1024;
        let noted = Unreadable {
            placement: read.placement.clone(),
            offset: read.offset + job.piece.offset_in_range,
            length: job.piece.length,
            member,
        };
        let mut unreadable = self.unreadable.lock();
        if unreadable.len() < KEPT && !unreadable.contains(&noted) {
            unreadable.push_back(noted);
        }
    }

    fn lost(&self, read: &SegmentRead, job: &Job) -> RaidError {
        RaidError::new(
            Kind::Unrecoverable,
            format!(
                "Stripe {} of {:?} cannot be read: too many members are missing or failing",
                job.piece.stripe, read.placement
            ),
        )
    }
}

/// Adds a job's bytes to the last extent where they follow it, or makes a new
/// one; its number, and where the job's bytes lie in it.
fn add_extent(
    extents: &mut Vec<Extent>,
    member: MemberIndex,
    offset: u64,
    job: &Job,
    read: &SegmentRead,
) -> (usize, u32) {
    let length = job.piece.length;
    let whole = length as usize == read.buffer.len();
    // A long read that one operation fills needs no copy: it stays alone.
    let alone = job.alone || whole && length >= UNMERGED_BYTES_MIN;
    // The last one of the same member is at most a stripe's width back.
    let recent = extents
        .iter_mut()
        .enumerate()
        .rev()
        .take(crate::MAX_MEMBERS);
    let follows = recent
        .filter(|(_, extent)| extent.member == member)
        .take(1)
        .find(|(_, extent)| {
            extent.open
                && !alone
                && extent.offset + u64::from(extent.length) == offset
                && extent.length + length <= MERGED_BYTES_MAX
        });
    if let Some((n, extent)) = follows {
        let at = extent.length;
        extent.length += length;
        // A copy costs less than another operation.
        extent.fills = None;
        extent.shared = true;
        return (n, at);
    }
    let fills = whole.then_some(job.read);
    let open = !alone;
    extents.push(Extent {
        member,
        offset,
        length,
        fills,
        open,
        shared: false,
    });
    (extents.len() - 1, 0)
}

/// Callers get back the buffers that device reads filled; after an operation
/// was abandoned the buffer is gone with it (R5), so they get another.
fn give_back(reads: &mut [SegmentRead], extents: &[Extent], batch: &mut [Io]) {
    for (extent, io) in extents.iter().zip(batch) {
        let Some(read) = extent.fills else { continue };
        let IoOp::Read(buffer) = &mut io.op else {
            continue;
        };
        let mut buffer = mem::take(buffer);
        if buffer.len() != extent.length as usize {
            buffer = AlignedBuf::zeroed(extent.length as usize);
        }
        reads[read].buffer = buffer;
    }
}

/// Puts a job's bytes into its request; the columns that did not give them.
fn place(
    array: &Array,
    reads: &mut [SegmentRead],
    job: &Job,
    source: &Source,
    batch: &[Io],
    extents: &[Extent],
) -> ColumnSet {
    let start = job.piece.offset_in_range as usize;
    let range = start..start + job.piece.length as usize;
    match *source {
        Source::Direct { column, extent, at } => {
            if !matches!(batch[extent].outcome, Some(Ok(()))) {
                return ColumnSet::of(column);
            }
            if extents[extent].fills.is_none() {
                let at = at as usize;
                let bytes = &bytes_of(&batch[extent])[at..at + range.len()];
                reads[job.read].buffer[range].copy_from_slice(bytes);
            }
            ColumnSet::EMPTY
        }
        Source::Solve {
            erased,
            read: columns,
            first,
        } => {
            let bad: ColumnSet = columns
                .iter()
                .zip(&batch[first..])
                .filter(|(_, io)| !matches!(io.outcome, Some(Ok(()))))
                .map(|(column, _)| column)
                .collect();
            if !bad.is_empty() {
                return bad;
            }
            let read = &mut reads[job.read];
            let layout = array
                .layout_of(&read.placement)
                .expect("checked when it was planned");
            let present = |wanted: Column| {
                let n = columns.iter().position(|column| column == wanted);
                bytes_of(&batch[first + n.expect("all columns that are not erased were read")])
            };
            let Piece {
                stripe, data_unit, ..
            } = job.piece;
            solve(
                layout,
                stripe,
                data_unit,
                erased,
                present,
                &mut read.buffer[range],
            );
            ColumnSet::EMPTY
        }
    }
}

fn bytes_of(io: &Io) -> &[u8] {
    match &io.op {
        IoOp::Read(buffer) => buffer,
        _ => unreachable!("a read stays a read"),
    }
}

/// A job cut into blocks, with all columns to be tried again.
fn blocks_of(job: Job) -> impl Iterator<Item = Job> {
    let block = BLOCK_BYTES as u32;
    (0..job.piece.length / block).map(move |n| {
        let piece = Piece {
            offset_in_unit: job.piece.offset_in_unit + n * block,
            offset_in_range: job.piece.offset_in_range + n * block,
            length: block,
            ..job.piece
        };
        Job {
            piece,
            bad: ColumnSet::EMPTY,
            alone: true,
            ..job
        }
    })
}
