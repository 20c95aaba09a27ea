//! The changes of one volume since its pages were written, newest wins.
//!
//! Two maps: `points`, changed entries of single indices, and `fills`, ranges
//! that became holes or zeroes as a whole.
//!
//! * Fills are disjoint; neighbours of one kind are joined.
//! * A point lies above the fill that covers it: a fill removes the points in
//!   its range, so whatever point is there came later.
//! * A fill of any length costs its points' removal and a few steps in a tree:
//!   discarding 16 TiB that hold nothing is a matter of microseconds.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound::{Excluded, Included, Unbounded};

use tessera_dedup::{Entry, EntryKind};

use super::INDEX_LIMIT;
use super::merge::Edit;
use super::points::{self, BUCKET_POINTS, Packed, Points};
use super::tree::{to_u64, to_usize};

/// What a fill takes: a key and a value in a B-tree that is two thirds full.
const FILL_BYTES: usize = (size_of::<u64>() + size_of::<Fill>()) * 3 / 2;

#[derive(Debug, Clone, Copy)]
struct Fill {
    /// First index beyond it.
    end: u64,
    value: Packed,
}

/// In-memory changes of one volume. `Layer::default()` has none.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    points: Points,
    fills: BTreeMap<u64, Fill>,
}

/// One change. Changes come in order of index and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The entry of one index.
    Point {
        /// The index.
        index: u64,
        /// Its entry.
        entry: Entry,
    },
    /// A range that became all holes or all zeroes.
    Fill {
        /// First index.
        first: u64,
        /// Indices; at least one.
        count: u64,
        /// [`Entry::HOLE`] or [`Entry::ZERO`].
        entry: Entry,
    },
}

impl Change {
    /// The first index it changes.
    pub fn first(&self) -> u64 {
        match self {
            Self::Point { index, .. } => *index,
            Self::Fill { first, .. } => *first,
        }
    }

    /// The first index beyond it.
    pub fn end(&self) -> u64 {
        match self {
            Self::Point { index, .. } => index + 1,
            Self::Fill { first, count, .. } => first + count,
        }
    }

    /// What the indices in it become.
    pub fn entry(&self) -> Entry {
        match self {
            Self::Point { entry, .. } | Self::Fill { entry, .. } => *entry,
        }
    }
}

fn unpack(value: &Packed) -> Entry {
    Entry::decode(value).expect("a layer holds only entries it encoded")
}

/// The end of a range of indices.
fn range_end(first: u64, count: u64) -> u64 {
    let end = first
        .checked_add(count)
        .expect("a range of indices does not wrap");
    assert!(end <= INDEX_LIMIT, "index {end} is beyond every volume");
    end
}

impl Layer {
    /// A layer without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.points.len() == 0 && self.fills.is_empty()
    }

    /// Single entries held.
    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// Ranges held.
    pub fn fills(&self) -> usize {
        self.fills.len()
    }

    /// Memory that the changes take, closely enough to trigger checkpoints.
    pub fn memory_bytes(&self) -> usize {
        self.points.memory_bytes() + self.fills.len() * FILL_BYTES
    }

    /// Changes the entry of one index.
    pub fn set(&mut self, index: u64, entry: Entry) {
        range_end(index, 1);
        self.points.insert(index, &[entry.encode()]);
    }

    /// Changes the entries of consecutive indices.
    pub fn set_run(&mut self, first: u64, entries: &[Entry]) {
        range_end(first, to_u64(entries.len()));
        let mut packed = [[0; _]; BUCKET_POINTS];
        let mut at = first;
        for run in entries.chunks(BUCKET_POINTS) {
            for (packed, entry) in packed.iter_mut().zip(run) {
                *packed = entry.encode();
            }
            self.points.insert(at, &packed[..run.len()]);
            at += to_u64(run.len());
        }
    }

    /// Makes a range all holes or all zeroes.
    ///
    /// # Panics
    /// If the entry is neither [`Entry::HOLE`] nor [`Entry::ZERO`].
    pub fn fill(&mut self, first: u64, count: u64, entry: Entry) {
        assert!(!entry.is_stored(), "a fill stores nothing");
        let end = range_end(first, count);
        if count == 0 {
            return;
        }
        self.points.remove_range(first, end);
        self.carve(first, end);
        let value = entry.encode();
        let mut joined = (first, end);
        if let Some((&start, fill)) = self.fills.range(..first).next_back()
            && fill.end == first
            && fill.value == value
        {
            joined.0 = start;
        }
        if let Some(fill) = self.fills.get(&end)
            && fill.value == value
        {
            joined.1 = fill.end;
            self.fills.remove(&end);
        }
        self.fills.insert(
            joined.0,
            Fill {
                end: joined.1,
                value,
            },
        );
    }

    /// Cuts `first..end` out of the fills.
    fn carve(&mut self, first: u64, end: u64) {
        if let Some((_, fill)) = self.fills.range_mut(..first).next_back()
            && fill.end > first
        {
            let old = *fill;
            fill.end = first;
            if old.end > end {
                self.fills.insert(end, old);
            }
        }
        while let Some((&start, &fill)) = self.fills.range(first..end).next() {
            self.fills.remove(&start);
            if fill.end > end {
                self.fills.insert(end, fill);
            }
        }
    }

    /// What the layer says about an index; `None` when it says nothing.
    pub fn get(&self, index: u64) -> Option<Entry> {
        if let Some(value) = self.points.get(index) {
            return Some(unpack(value));
        }
        let (_, fill) = self.fills.range(..=index).next_back()?;
        (index < fill.end).then(|| unpack(&fill.value))
    }

    /// Fills those of the slots for `first..` that are still `None` and that
    /// the layer says something about. Asking the newest layer first, then the
    /// older ones with the same slots, then the pages, gives the current state.
    pub fn lookup(&self, first: u64, out: &mut [Option<Entry>]) {
        if let [slot] = out {
            *slot = slot.or_else(|| self.get(first));
            return;
        }
        self.points.for_range(first, out.len(), |slot, value| {
            out[slot].get_or_insert_with(|| unpack(value));
        });
        if self.fills.is_empty() {
            return;
        }
        let last = first + to_u64(out.len());
        for (&start, fill) in self.fills_from(first) {
            if start >= last {
                break;
            }
            let entry = unpack(&fill.value);
            let from = to_usize(start.max(first) - first);
            let to = to_usize(fill.end.min(last) - first);
            for slot in &mut out[from..to] {
                slot.get_or_insert(entry);
            }
        }
    }

    /// The fills that end beyond `from`.
    fn fills_from(&self, from: u64) -> btree_map::Range<'_, u64, Fill> {
        let start = match self.fills.range(..=from).next_back() {
            Some((&start, fill)) if fill.end > from => Included(start),
            _ => Excluded(from),
        };
        self.fills.range((start, Unbounded))
    }

    /// The first change at or beyond `from`; a fill that began earlier is cut.
    pub fn next_change(&self, from: u64) -> Option<Change> {
        self.changes_from(from).next()
    }

    /// All changes at or beyond `from`, in order. Fills are cut where points lie
    /// above them.
    pub fn changes_from(&self, from: u64) -> Changes<'_> {
        Changes {
            edits: self.edits_from(from),
        }
    }

    /// Puts the changes of a newer layer on top of these.
    pub fn absorb(&mut self, newer: &Self) {
        // A fill that is cut at points arrives in pieces; the points between
        // them are changes as well, so nothing older shows through.
        for change in newer.changes_from(0) {
            match change {
                Change::Point { index, entry } => self.set(index, entry),
                Change::Fill {
                    first,
                    count,
                    entry,
                } => self.fill(first, count, entry),
            }
        }
    }

    pub(super) fn edits_from(&self, from: u64) -> Edits<'_> {
        Edits {
            points: self.points.iter_from(from).peekable(),
            fills: self.fills_from(from).peekable(),
            at: from,
        }
    }
}

/// The changes of a layer in order.
#[derive(Debug, Clone)]
pub struct Changes<'a> {
    edits: Edits<'a>,
}

impl Iterator for Changes<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let edit = self.edits.next()?;
        let entry = unpack(
            edit.record
                .try_into()
                .expect("a layer's records are entries"),
        );
        Some(if edit.is_fill {
            Change::Fill {
                first: edit.first,
                count: edit.count,
                entry,
            }
        } else {
            Change::Point {
                index: edit.first,
                entry,
            }
        })
    }
}

/// The changes of a layer in order, still encoded.
#[derive(Debug, Clone)]
pub(super) struct Edits<'a> {
    points: Peekable<points::Iter<'a>>,
    fills: Peekable<btree_map::Range<'a, u64, Fill>>,
    /// Everything below has been given.
    at: u64,
}

impl<'a> Iterator for Edits<'a> {
    type Item = Edit<'a>;

    fn next(&mut self) -> Option<Edit<'a>> {
        while self
            .fills
            .next_if(|(_, fill)| fill.end <= self.at)
            .is_some()
        {}
        let point = self.points.peek().map(|&(index, _)| index);
        if let Some(&(&start, fill)) = self.fills.peek() {
            let first = start.max(self.at);
            if point.is_none_or(|index| index > first) {
                let end = point.map_or(fill.end, |index| index.min(fill.end));
                self.at = end;
                let count = end - first;
                return Some(Edit {
                    first,
                    count,
                    record: &fill.value,
                    is_fill: true,
                });
            }
        }
        let (index, value) = self.points.next()?;
        self.at = index + 1;
        Some(Edit {
            first: index,
            count: 1,
            record: value,
            is_fill: false,
        })
    }
}

impl Edit<'_> {
    /// True when it makes everything in it a hole or an absent record.
    pub(super) fn is_hole(&self) -> bool {
        self.record.iter().all(|&byte| byte == 0)
    }

    /// The pointer to a subtree that this fill covers.
    pub(super) fn covering_pointer(&self) -> super::Pointer {
        let record: Result<&Packed, _> = self.record.try_into();
        let entry = unpack(record.expect("only volumes are filled"));
        debug_assert!(matches!(entry.kind, EntryKind::Hole | EntryKind::Zero));
        super::Pointer { entry, wide: None }
    }
}
