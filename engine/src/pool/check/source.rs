//! Reading the members for a check: plain first, then every other way.
//!
//! Nothing is cached, mended or kept quiet: a range whose plain reading does
//! not verify is [`Found::Mended`] even where the redundancy gives it back.

use std::{cell::RefCell, sync::Arc};

use tessera_dedup::{Entry, EntryKind};
use tessera_raid::{
    Array, MemberIndex, Placement, SegmentRead,
    device::{AlignedBuf, BLOCK_BYTES},
    layout::Slots,
};

use super::segments::Segments;
use crate::map::{PAGE_BYTES, PageBytes, PageSource, Pointer, StoreError, StoreErrorKind};

const BLOCK: u32 = BLOCK_BYTES as u32; // 4096

/// Whole blocks of one segment.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) placement: Placement,
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Range {
    /// Where a page lies; `None` if no page can.
    pub(super) fn of_page(placement: Placement, entry: &Entry) -> Option<Self> {
        let is_page = entry.kind == EntryKind::Page
            && entry.stored == BLOCK
            && entry.position.is_multiple_of(BLOCK);
        is_page.then_some(Self {
            placement,
            offset: entry.position,
            length: BLOCK,
        })
    }

    /// The blocks that hold `stored` bytes at `position`.
    pub(super) fn around(placement: Placement, position: u32, stored: u32) -> Self {
        let offset = position / BLOCK * BLOCK;
        let end = (position + stored).next_multiple_of(BLOCK);
        Self {
            placement,
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
}

/// Reads ranges with one submission; `accept` says whether the bytes of the
/// n-th are right.
pub(super) fn read_all(
    array: &Array,
    ranges: &[Range],
    accept: &dyn Fn(usize, &[u8]) -> bool,
) -> Vec<Found> {
    let mut reads: Vec<SegmentRead> = ranges
        .iter()
        .map(|range| SegmentRead {
            placement: range.placement.clone(),
            offset: range.offset,
            buffer: AlignedBuf::zeroed(range.length as usize),
            outcome: Ok(()),
        })
        .collect();
    array.read(&mut reads);
    let results = reads
        .into_iter()
        .zip(ranges)
        .enumerate()
        .map(|(number, (read, range))| {
            if read.outcome.is_ok() && accept(number, &read.buffer) {
                return Found::Whole(read.buffer);
            }
            another_way(array, range, &mut |bytes| accept(number, bytes))
        });
    results.collect()
}

/// Tries every reading of a range that the redundancy allows.
pub(super) fn another_way(
    array: &Array,
    range: &Range,
    accept: &mut dyn FnMut(&[u8]) -> bool,
) -> Found {
    match array.read_alternatives(&range.placement, range.offset, range.length, accept) {
        Ok(Some(found)) => Found::Mended(found.bytes, found.differing),
        Ok(None) | Err(_) => Found::Lost,
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
    array: &'a Array,
    /// `None` while the segment table itself is read, whose pointers are wide.
    segments: Option<&'a Segments>,
    mended: RefCell<Vec<String>>,
}

impl<'a> CheckedPages<'a> {
    pub(super) fn new(array: &'a Array, segments: Option<&'a Segments>) -> Self {
        Self {
            array,
            segments,
            mended: RefCell::default(),
        }
    }

    pub(super) fn take_mended(&self) -> Vec<String> {
        self.mended.take()
    }

    fn range(&self, pointer: &Pointer) -> Result<Range, StoreError> {
        let refuse = |why: String| StoreError::caused_by(StoreErrorKind::Corrupt, why);
        let placement = match (pointer.wide, self.segments) {
            (Some(wide), _) => Placement {
                layout: wide.layout,
                slots: Slots::Equal(wide.slot),
            },
            (None, Some(segments)) => segments
                .place(&pointer.entry)
                .map_err(|why| refuse(format!("Its pointer {why}")))?
                .placement(),
            (None, None) => return Err(refuse("Its pointer carries no placement".to_owned())),
        };
        Range::of_page(placement, &pointer.entry)
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
        let found = read_all(self.array, &ranges, &accept);
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
            };
            let page: PageBytes = bytes[..].try_into().expect("a page was asked for");
            results[*place] = Ok(Arc::new(page));
        }
        results
    }
}
