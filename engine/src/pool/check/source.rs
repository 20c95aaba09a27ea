//! Reading the members for a check: plain first, then every other way.
//!
//! Nothing is cached, mended or kept quiet: a range whose plain reading does
//! not verify is [`Found::Mended`] even where the redundancy gives it back.
//!
//! While the pool is in use, reclaim may free a segment that the root being
//! checked still names. Each read therefore holds an epoch guard and looks at
//! the segment's generation first (R9): what was freed is [`Found::Freed`] and
//! is not judged.

use std::{cell::RefCell, collections::BTreeSet, sync::Arc};

use tessera_dedup::{
    Entry, EntryKind, Generation,
    segment::{SegmentRecord, SegmentState},
};
use tessera_raid::{
    Array, MemberIndex, Placement, SegmentId, SegmentRead,
    device::{AlignedBuf, BLOCK_BYTES},
    layout::Slots,
};

use super::segments::Segments;
use crate::map::{PAGE_BYTES, PageBytes, PageSource, Pointer, StoreError, StoreErrorKind};
use crate::pool::engine::Engine;

const BLOCK: u32 = BLOCK_BYTES as u32; // 4096

/// Whole blocks of one segment.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) segment: SegmentId,
    pub(super) generation: Generation,
    pub(super) placement: Placement,
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Range {
    /// Where a page lies; `None` if no page can.
    pub(super) fn of_page(
        generation: Generation,
        placement: Placement,
        entry: &Entry,
    ) -> Option<Self> {
        let is_page = entry.kind == EntryKind::Page
            && entry.stored == BLOCK
            && entry.position.is_multiple_of(BLOCK);
        is_page.then_some(Self {
            segment: entry.segment,
            generation,
            placement,
            offset: entry.position,
            length: BLOCK,
        })
    }

    /// The blocks that hold `stored` bytes at `position`.
    pub(super) fn around(
        segment: SegmentId,
        record: &SegmentRecord,
        position: u32,
        stored: u32,
    ) -> Self {
        let offset = position / BLOCK * BLOCK;
        let end = (position + stored).next_multiple_of(BLOCK);
        Self {
            segment,
            generation: record.generation,
            placement: record.placement(),
            offset,
            length: end - offset,
        }
    }
}

/// What became of a range.
#[derive(Debug)]
pub(super) enum Found {
    /// The plain reading verifies.
    Whole(AlignedBuf),
    /// Another reading does; the members that hold something else.
    Mended(AlignedBuf, Vec<MemberIndex>),
    /// None does.
    Lost,
    /// Its segment was freed while the pool was in use.
    Freed,
}

/// The members, and who else uses them.
pub(super) struct Source<'a> {
    pub(super) array: &'a Array,
    /// The engine that has the pool open; `None` when nobody has.
    in_use: Option<&'a Engine>,
    freed: RefCell<BTreeSet<SegmentId>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(array: &'a Array, in_use: Option<&'a Engine>) -> Self {
        Self {
            array,
            in_use,
            freed: RefCell::default(),
        }
    }

    /// Segments in which something could not be looked at any more.
    pub(super) fn freed(&self) -> usize {
        self.freed.borrow().len()
    }

    /// Whether the range is still what it was in the root. Asked under a guard,
    /// the answer holds until the guard goes.
    fn is_there(&self, range: &Range) -> bool {
        let Some(engine) = self.in_use else {
            return true;
        };
        let there = engine.table.record(range.segment).is_some_and(|record| {
            record.generation == range.generation
                && matches!(record.state, SegmentState::Open | SegmentState::Sealed)
        });
        if !there {
            self.freed.borrow_mut().insert(range.segment);
        }
        there
    }

    /// Reads ranges with one submission; `accept` says whether the bytes of the
    /// n-th are right.
    pub(super) fn read_all(
        &self,
        ranges: &[Range],
        accept: &dyn Fn(usize, &[u8]) -> bool,
    ) -> Vec<Found> {
        let _guard = self.in_use.map(|engine| engine.epochs.enter());
        let there: Vec<usize> = (0..ranges.len())
            .filter(|number| self.is_there(&ranges[*number]))
            .collect();
        let read_of = |number: &usize| SegmentRead {
            placement: ranges[*number].placement.clone(),
            offset: ranges[*number].offset,
            buffer: AlignedBuf::zeroed(ranges[*number].length as usize),
            outcome: Ok(()),
        };
        let mut reads: Vec<SegmentRead> = there.iter().map(read_of).collect();
        self.array.read(&mut reads);
        let mut results: Vec<Found> = ranges.iter().map(|_| Found::Freed).collect();
        for (number, read) in there.into_iter().zip(reads) {
            results[number] = if read.outcome.is_ok() && accept(number, &read.buffer) {
                Found::Whole(read.buffer)
            } else {
                self.search(&ranges[number], &mut |bytes| accept(number, bytes))
            };
        }
        results
    }

    /// Tries every reading of a range that the redundancy allows.
    pub(super) fn another_way(
        &self,
        range: &Range,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Found {
        let _guard = self.in_use.map(|engine| engine.epochs.enter());
        match self.is_there(range) {
            true => self.search(range, accept),
            false => Found::Freed,
        }
    }

    fn search(&self, range: &Range, accept: &mut dyn FnMut(&[u8]) -> bool) -> Found {
        let Range {
            placement,
            offset,
            length,
            ..
        } = range;
        match self
            .array
            .read_alternatives(placement, *offset, *length, accept)
        {
            Ok(Some(found)) => Found::Mended(found.bytes, found.differing),
            Ok(None) | Err(_) => Found::Lost,
        }
    }
}

/// The end of a sentence about something that is damaged and not lost.
pub(super) fn mended(members: &[MemberIndex]) -> String {
    let names: Vec<String> = members.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [] => "could not be read at once, but the redundancy still has it".to_owned(),
        [one] => format!("is damaged on member {one}; the redundancy still has it"),
        several => {
            format!(
                "is damaged on members {}; the redundancy still has it",
                several.join(", ")
            )
        }
    }
}

/// Pages for walks. Damage that the redundancy made good is kept in `mended`
/// until [`CheckedPages::take_mended`].
pub(super) struct CheckedPages<'a> {
    source: &'a Source<'a>,
    /// `None` while the segment table itself is read, whose pointers are wide.
    segments: Option<&'a Segments>,
    mended: RefCell<Vec<String>>,
}

impl<'a> CheckedPages<'a> {
    pub(super) fn new(source: &'a Source<'a>, segments: Option<&'a Segments>) -> Self {
        Self {
            source,
            segments,
            mended: RefCell::default(),
        }
    }

    pub(super) fn take_mended(&self) -> Vec<String> {
        self.mended.take()
    }

    fn range(&self, pointer: &Pointer) -> Result<Range, StoreError> {
        let refuse = |why: String| StoreError::caused_by(StoreErrorKind::Corrupt, why);
        let (generation, placement) = match (pointer.wide, self.segments) {
            (Some(wide), _) => (
                wide.generation,
                Placement {
                    layout: wide.layout,
                    slots: Slots::Equal(wide.slot),
                },
            ),
            (None, Some(segments)) => {
                let record = segments
                    .place(&pointer.entry)
                    .map_err(|why| refuse(format!("Its pointer {why}")))?;
                (record.generation, record.placement())
            }
            (None, None) => return Err(refuse("Its pointer carries no placement".to_owned())),
        };
        Range::of_page(generation, placement, &pointer.entry)
            .ok_or_else(|| refuse("Its pointer cannot be one to a page".to_owned()))
    }
}

impl PageSource for CheckedPages<'_> {
    fn read(&self, pointers: &[Pointer]) -> Vec<Result<Arc<PageBytes>, StoreError>> {
        let mut results = Vec::with_capacity(pointers.len());
        let mut ranges = Vec::new();
        let mut places = Vec::new();
        for (place, pointer) in pointers.iter().enumerate() {
            match self.range(pointer) {
                Ok(range) => {
                    ranges.push(range);
                    places.push(place);
                    // Replaced below.
                    results.push(Err(StoreError::new(StoreErrorKind::Corrupt)));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        let accept = |number: usize, bytes: &[u8]| {
            let checksum = pointers[places[number]].entry.checksum;
            bytes.len() == PAGE_BYTES && crc32c::crc32c(bytes) == checksum
        };
        let found = self.source.read_all(&ranges, &accept);
        for ((place, range), found) in places.iter().zip(&ranges).zip(found) {
            let bytes = match found {
                Found::Whole(bytes) => bytes,
                Found::Mended(bytes, members) => {
                    self.mended.borrow_mut().push(format!(
                        "page at {} of segment {} {}",
                        range.offset,
                        pointers[*place].entry.segment.0,
                        mended(&members)
                    ));
                    bytes
                }
                Found::Lost => continue,
                Found::Freed => {
                    results[*place] = Err(StoreError::new(StoreErrorKind::Freed));
                    continue;
                }
            };
            let page: PageBytes = bytes[..].try_into().expect("a page was asked for");
            results[*place] = Ok(Arc::new(page));
        }
        results
    }
}
