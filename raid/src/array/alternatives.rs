//! Every reading of a range that the redundancy allows, for a checksum to
//! choose from.
//!
//! Rot is local: each block of the range has its own list of different
//! readings (usually one), and the caller is offered their combinations. So
//! two copies that have each rotted in another block still give the whole.
//! Before that the caller is offered the range without one or two members, all
//! blocks alike: a member that has lost or misdirected whole writes is wrong in
//! all of them, and the combinations of many blocks would never come to an end.

use super::{Alternative, Array, roster::Roster, stripe::solve};
use crate::{
    Column, ColumnSet, MemberIndex, MemberSet, Placement, RaidError,
    device::{AlignedBuf, BLOCK_BYTES, Io, IoOp},
    layout::{Layout, Piece, Recipe},
};

/// Combinations offered at most: each costs the caller a checksum or a hash.
/// Damage that needs more is beyond what redundancy promises.
const COMBINATIONS_MAX: u64 = 4096;

/// What the columns hold in one block of the range.
struct Block {
    piece: Piece,
    /// By column; `None` where it cannot be read.
    columns: Vec<Option<AlignedBuf>>,
    /// Different readings, the plain one first.
    readings: Vec<Vec<u8>>,
    /// The columns that each way of reading uses, and what it reads.
    ways: Vec<(ColumnSet, usize)>,
}

impl Array {
    /// Offers every reading of the range that the redundancy allows until one
    /// is accepted, the plain one included (it may have been transient).
    ///
    /// `Ok(None)` where none is. Nothing is written: see
    /// [`Array::rewrite_verified`].
    pub fn read_alternatives(
        &self,
        placement: &Placement,
        offset: u32,
        length: u32,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<Alternative>, RaidError> {
        let layout = self.layout_of(placement)?;
        let pieces = self.pieces(layout, offset, length as usize)?;
        let mut blocks: Vec<Block> = pieces
            .flat_map(blocks_of)
            .map(|piece| Block {
                piece,
                columns: Vec::new(),
                readings: Vec::new(),
                ways: Vec::new(),
            })
            .collect();
        let roster = self.roster();
        let in_use = roster.in_use();
        self.read_columns(&roster, layout, placement, in_use, &mut blocks);
        for block in &mut blocks {
            (block.readings, block.ways) = readings_of(layout, block);
            if block.readings.is_empty() {
                return Ok(None);
            }
        }
        let found = without_some(layout, &blocks, length as usize, accept)
            .or_else(|| first_accepted(&blocks, length as usize, accept));
        let Some(bytes) = found else {
            return Ok(None);
        };
        let differing = differing(layout, in_use, &blocks, &bytes);
        Ok(Some(Alternative { bytes, differing }))
    }

    /// Reads every column in use of every block, as one batch.
    fn read_columns(
        &self,
        roster: &Roster,
        layout: &Layout,
        placement: &Placement,
        in_use: MemberSet,
        blocks: &mut [Block],
    ) {
        let columns = layout.columns_of(in_use);
        let mut batch: Vec<Io> = Vec::with_capacity(blocks.len() * columns.len());
        for block in blocks.iter() {
            for column in columns.iter() {
                let offset = self.unit_offset(layout, placement, column, block.piece.stripe)
                    + u64::from(block.piece.offset_in_unit);
                let buffer = self.scratch(BLOCK_BYTES);
                batch.push(roster.io(layout.member(column), offset, IoOp::Read(buffer)));
            }
        }
        let members: Vec<MemberIndex> = blocks
            .iter()
            .flat_map(|_| columns.iter().map(|column| layout.member(column)))
            .collect();
        self.run(roster, &mut batch);
        self.note_failures_of_reads(
            roster,
            batch
                .iter()
                .map(|io| &io.outcome)
                .zip(members.iter().copied()),
        );
        let mut results = batch.into_iter();
        for block in blocks {
            block.columns = layout.columns().iter().map(|_| None).collect();
            for column in columns.iter() {
                let io = results.next().expect("one read a block and column");
                if let (Some(Ok(())), IoOp::Read(buffer)) = (io.outcome, io.op) {
                    block.columns[column.index()] = Some(buffer);
                }
            }
        }
    }
}

/// A piece cut into blocks.
pub(super) fn blocks_of(piece: Piece) -> impl Iterator<Item = Piece> {
    let block = BLOCK_BYTES as u32;
    (0..piece.length / block).map(move |n| Piece {
        offset_in_unit: piece.offset_in_unit + n * block,
        offset_in_range: piece.offset_in_range + n * block,
        length: block,
        ..piece
    })
}

/// All different readings of one block, and the ways to them.
fn readings_of(layout: &Layout, block: &Block) -> (Vec<Vec<u8>>, Vec<(ColumnSet, usize)>) {
    let missing: ColumnSet = layout
        .columns()
        .iter()
        .filter(|column| block.columns[column.index()].is_none())
        .collect();
    let bytes = |column: Column| {
        block.columns[column.index()]
            .as_deref()
            .expect("recipes use columns that were read")
    };
    let Piece {
        stripe, data_unit, ..
    } = block.piece;
    let failed = layout.members_of(missing);
    let mut readings: Vec<Vec<u8>> = Vec::new();
    let mut ways = Vec::new();
    for recipe in layout.reconstructions(stripe, data_unit, failed) {
        let (used, reading) = match recipe {
            Recipe::Copy(column) => (ColumnSet::of(column), bytes(column).to_vec()),
            Recipe::Solve { erased, read } => {
                let mut target = vec![0; BLOCK_BYTES];
                solve(layout, stripe, data_unit, erased, bytes, &mut target);
                (read, target)
            }
        };
        let known = readings.iter().position(|known| *known == reading);
        ways.push((used, known.unwrap_or(readings.len())));
        if known.is_none() {
            readings.push(reading);
        }
    }
    (readings, ways)
}

/// The range as it is without one column, or without two, if it can be had.
fn without_some(
    layout: &Layout,
    blocks: &[Block],
    length: usize,
    accept: &mut dyn FnMut(&[u8]) -> bool,
) -> Option<AlignedBuf> {
    if blocks.iter().all(|block| block.readings.len() == 1) {
        return None;
    }
    let columns: Vec<Column> = layout.columns().iter().collect();
    let single = columns.iter().map(|column| ColumnSet::of(*column));
    let pairs = columns.iter().enumerate().flat_map(|(at, one)| {
        let others = columns[at + 1..].iter();
        others.map(|other| ColumnSet::of(*one).with(*other))
    });
    let mut bytes = AlignedBuf::zeroed(length);
    'suspects: for suspects in single.chain(pairs) {
        for block in blocks {
            let mut ways = block.ways.iter();
            let Some((_, reading)) = ways.find(|(used, _)| used.intersection(suspects).is_empty())
            else {
                continue 'suspects;
            };
            let start = block.piece.offset_in_range as usize;
            bytes[start..start + BLOCK_BYTES].copy_from_slice(&block.readings[*reading]);
        }
        if accept(&bytes) {
            return Some(bytes);
        }
    }
    None
}

/// Counts through the combinations like an odometer, the plain one first.
fn first_accepted(
    blocks: &[Block],
    length: usize,
    accept: &mut dyn FnMut(&[u8]) -> bool,
) -> Option<AlignedBuf> {
    let mut bytes = AlignedBuf::zeroed(length);
    let put = |bytes: &mut AlignedBuf, block: &Block, reading: usize| {
        let start = block.piece.offset_in_range as usize;
        bytes[start..start + BLOCK_BYTES].copy_from_slice(&block.readings[reading]);
    };
    for block in blocks {
        put(&mut bytes, block, 0);
    }
    let mut chosen = vec![0; blocks.len()];
    for _ in 0..COMBINATIONS_MAX {
        if accept(&bytes) {
            return Some(bytes);
        }
        let turned = (0..blocks.len()).find(|n| {
            chosen[*n] = (chosen[*n] + 1) % blocks[*n].readings.len();
            put(&mut bytes, &blocks[*n], chosen[*n]);
            chosen[*n] != 0
        });
        turned?;
    }
    None
}

/// The members whose own copy is not what was accepted.
fn differing(
    layout: &Layout,
    in_use: MemberSet,
    blocks: &[Block],
    accepted: &[u8],
) -> Vec<MemberIndex> {
    let mut members = MemberSet::EMPTY;
    for block in blocks {
        let start = block.piece.offset_in_range as usize;
        let right = &accepted[start..start + BLOCK_BYTES];
        let holders = layout.locate(block.piece.stripe, block.piece.data_unit);
        for column in holders.iter() {
            if block.columns[column.index()].as_deref() != Some(right) {
                members.insert(layout.member(column));
            }
        }
    }
    members.intersection(in_use).iter().collect()
}
