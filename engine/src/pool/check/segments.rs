//! The segment table as the root has it, and the summaries it points to.

use std::collections::{BTreeMap, HashMap};

use tessera_dedup::{
    Entry, Generation, Summary, SummaryId,
    segment::{SegmentRecord, SegmentState, Stream},
    summary::{self, SUMMARY_BLOCK_BYTES},
};
use tessera_raid::{Array, SegmentId, device::BLOCK_BYTES};

use super::{
    Check,
    source::{self, CheckedPages, Found, Range},
};
use crate::{
    map::{Pointer, StoreErrorKind, Visit, Walker},
    root::{EngineRecord, RootPage, RootPointer},
};

const BLOCK: u32 = BLOCK_BYTES as u32; // 4096
/// Pages a walk reads between two reports of progress.
pub(super) const PAGES_PER_STEP: usize = 256;
/// Summaries read with one submission.
const SUMMARIES_PER_READ: usize = 16;

/// Every segment, by number.
pub(super) struct Segments {
    records: Vec<SegmentRecord>,
    /// Something live lies there.
    named: Vec<bool>,
    segment_bytes: u32,
    /// False when a part of the table could not be read: what it would say of
    /// a segment is unknown then.
    complete: bool,
}

impl Segments {
    pub(super) fn new(array: &Array) -> Self {
        let count = usize::try_from(array.slot_count()).expect("a segment count fits");
        Self {
            records: vec![SegmentRecord::default(); count],
            named: vec![false; count],
            segment_bytes: array.segment_data_bytes(),
            complete: true,
        }
    }

    pub(super) fn record(&self, id: SegmentId) -> Option<&SegmentRecord> {
        self.records.get(index(id))
    }

    /// False when there is no such segment.
    pub(super) fn set(&mut self, id: SegmentId, record: SegmentRecord) -> bool {
        self.records
            .get_mut(index(id))
            .map(|kept| *kept = record)
            .is_some()
    }

    pub(super) fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    pub(super) fn name(&mut self, id: SegmentId) {
        if let Some(named) = self.named.get_mut(index(id)) {
            *named = true;
        }
    }

    /// Segments that hold data or pages.
    pub(super) fn live(&self) -> impl Iterator<Item = (SegmentId, &SegmentRecord)> {
        let numbered = (0..).map(SegmentId).zip(&self.records);
        numbered.filter(|(_, record)| is_live(record))
    }

    /// Full segments that nothing names; `None` when there are none.
    pub(super) fn unnamed_sealed(&self) -> Option<usize> {
        let unnamed = self
            .records
            .iter()
            .zip(&self.named)
            .filter(|(record, named)| record.state == SegmentState::Sealed && !**named);
        Some(unnamed.count()).filter(|count| *count > 0)
    }

    /// Bytes below which a segment's chunks and pages lie. A map segment that
    /// was open at a checkpoint has its closed bytes as of some moment before
    /// the last pages, so they bound nothing there.
    pub(super) fn limit(&self, id: SegmentId, record: &SegmentRecord) -> u32 {
        let closed = match record.stream() {
            Some(Stream::Data) => record.closed_bytes,
            _ => self.segment_bytes,
        };
        if self.ends_in_summary(id, record) {
            closed.min(record.summary.offset)
        } else {
            closed
        }
    }

    /// The segment was sealed with its summary at its end. (A map segment that
    /// was not full may have its summary so far among its own pages.)
    fn ends_in_summary(&self, id: SegmentId, record: &SegmentRecord) -> bool {
        let extent = record.summary;
        let end = extent.offset.checked_add(u32::from(extent.blocks) * BLOCK);
        extent.blocks > 0
            && extent.segment == id
            && record.state == SegmentState::Sealed
            && end == Some(self.segment_bytes)
    }

    /// The record of the segment that an entry names, or what is wrong with
    /// the entry, as the end of a sentence (R9, R17).
    pub(super) fn place(&self, entry: &Entry) -> Result<&SegmentRecord, String> {
        let id = entry.segment;
        let record = self.generation_of(entry)?;
        let end = entry.position + entry.stored;
        let limit = self.limit(id, record);
        if end > limit {
            return Err(format!(
                "reaches {end} in segment {}, which ends at {limit}",
                id.0
            ));
        }
        Ok(record)
    }

    /// As [`Self::place`] without a look at how far the segment is closed.
    pub(super) fn generation_of(&self, entry: &Entry) -> Result<&SegmentRecord, String> {
        let number = entry.segment.0;
        let record = self
            .record(entry.segment)
            .ok_or_else(|| format!("names segment {number}, which does not exist"))?;
        if !is_live(record) {
            let unknown = if self.complete {
                ""
            } else {
                " or has lost its record"
            };
            return Err(format!("names segment {number}, which is free{unknown}"));
        }
        if record.generation.low() != entry.generation {
            return Err(format!("names an earlier use of segment {number}"));
        }
        Ok(record)
    }
}

fn is_live(record: &SegmentRecord) -> bool {
    matches!(record.state, SegmentState::Open | SegmentState::Sealed)
}

fn index(id: SegmentId) -> usize {
    usize::try_from(id.0).expect("a segment number fits")
}

impl Check<'_> {
    /// Reads the segment table and checks each record by itself and against
    /// the others.
    pub(super) fn segment_table(
        &mut self,
        record: &EngineRecord,
        root: &RootPointer,
        page: &RootPage,
        segments: &mut Segments,
    ) {
        let pages = CheckedPages::new(self.source, None);
        let mut pointers: Vec<Pointer> = Vec::new();
        let mut walker = Walker::new(page.segments);
        let mut bad = Vec::new();
        let mut complete = true;
        let total = u64::from(self.array.slot_count());
        loop {
            let mut seen = 0;
            let done = walker.step(&pages, PAGES_PER_STEP, &mut |visit| match visit {
                Visit::Page { pointer, .. } => pointers.push(pointer),
                Visit::Record { index, bytes } => {
                    seen = index + 1;
                    let decoded = bytes.try_into().ok().and_then(SegmentRecord::decode);
                    let id = u32::try_from(index).ok().map(SegmentId);
                    match (id, decoded) {
                        (Some(id), Some(record)) if segments.set(id, record) => {}
                        (_, None) => {
                            bad.push(format!("The record of segment {index} is malformed"))
                        }
                        _ => bad.push(format!("Segment {index} does not exist on the members")),
                    }
                }
                Visit::Entry { .. } | Visit::Lost { .. } => {}
            });
            self.progress("segment table", seen, total);
            match done {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.store_kind() == Some(StoreErrorKind::Freed) => complete = false,
                Err(error) => {
                    complete = false;
                    self.problem(format!("{} (segment table)", super::sentence(&error)));
                }
            }
        }
        segments.complete = complete && bad.is_empty();
        for mended in pages.take_mended() {
            self.problem(format!("The segment table's {mended}"));
        }
        for problem in bad {
            self.problem(problem);
        }
        for (id, record) in &page.overlay {
            if !segments.set(*id, *record) {
                self.problem(format!(
                    "The root page names segment {}, which does not exist",
                    id.0
                ));
            }
        }
        self.findings.report.pages_checked += pointers.len() as u64;
        self.segment_records(record, segments);

        // What wide pointers and the bootstrap say agrees with the table.
        segments.name(root.entry.segment);
        let told = segments.record(root.entry.segment);
        let agrees = told.is_some_and(|told| {
            told.generation == root.generation && told.placement() == root.placement
        });
        if let Err(why) = segments.place(&root.entry) {
            self.problem(format!("The superblock's pointer to the root page {why}"));
        } else if !agrees {
            self.problem("The superblock and the segment table place the root page differently");
        }
        for pointer in pointers {
            let Pointer { entry, wide } = pointer;
            segments.name(entry.segment);
            self.findings.report.pointers_checked += 1;
            let told = segments.record(entry.segment);
            let agrees = wide.zip(told).is_some_and(|(wide, told)| {
                (wide.generation, wide.layout, wide.slot)
                    == (told.generation, told.layout, told.slot)
            });
            if let Err(why) = segments.place(&entry) {
                self.problem(format!("A pointer of the segment table {why}"));
            } else if !agrees {
                self.problem(format!(
                    "A pointer of the segment table places segment {} elsewhere than its record",
                    entry.segment.0
                ));
            }
        }
    }

    fn segment_records(&mut self, record: &EngineRecord, segments: &Segments) {
        let mut slots: HashMap<(u16, u32), u32> = HashMap::new();
        let mut generations: HashMap<Generation, u32> = HashMap::new();
        let used = (0..).map(SegmentId).zip(&segments.records);
        for (id, found) in used.filter(|(_, found)| found.state != SegmentState::Free) {
            for wrong in self.wrong_with(id, found, record, segments) {
                self.problem(format!("Segment {}: {wrong}", id.0));
            }
            if let Some(other) = slots.insert((found.layout.0, found.slot.0), id.0) {
                self.problem(format!(
                    "Segments {other} and {} have one and the same slot",
                    id.0
                ));
            }
            if let Some(other) = generations.insert(found.generation, id.0) {
                self.problem(format!("Segments {other} and {} have one generation", id.0));
            }
        }
    }

    /// What is wrong with a record, as sentences about its segment.
    fn wrong_with(
        &self,
        id: SegmentId,
        found: &SegmentRecord,
        record: &EngineRecord,
        segments: &Segments,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if found.generation.0 >= record.generation_limit {
            wrong.push(format!(
                "its generation {} was never issued: the limit is {}",
                found.generation.0, record.generation_limit
            ));
        }
        if self.array.layout(found.layout).is_none() {
            wrong.push(format!("the pool has no layout {}", found.layout));
        }
        if found.slot.0 >= self.array.slot_count() {
            wrong.push(format!(
                "its slot {} is beyond the members' end",
                found.slot
            ));
        }
        let stripe = self.array.stripe_data_bytes();
        if found.closed_bytes > segments.segment_bytes || !found.closed_bytes.is_multiple_of(stripe)
        {
            wrong.push(format!(
                "its closed bytes, {}, cannot be",
                found.closed_bytes
            ));
        }
        if let Err(why) = summary_range(id, found, segments) {
            wrong.push(why);
        }
        wrong
    }

    /// Reads every summary; a bad one costs deduplication and no data.
    pub(super) fn summaries(&mut self, segments: &mut Segments) {
        let mut holders = Vec::new();
        let wanted: Vec<(SegmentId, SegmentRecord, Range)> = segments
            .live()
            .filter_map(|(id, record)| {
                let range = summary_range(id, record, segments).ok().flatten()?;
                holders.push((id, record.summary.segment));
                Some((id, *record, range))
            })
            .collect();
        for (_, holder) in holders.into_iter().filter(|(id, holder)| id != holder) {
            segments.name(holder);
        }
        let total = wanted.len() as u64;
        let mut done = 0;
        for group in wanted.chunks(SUMMARIES_PER_READ) {
            let ranges: Vec<Range> = group.iter().map(|(.., range)| range.clone()).collect();
            // Anything is accepted: the blocks are judged one by one below.
            let found = self.source.read_all(&ranges, &|_, _| true);
            for ((id, record, range), found) in group.iter().zip(found) {
                let bytes = match &found {
                    Found::Whole(bytes) | Found::Mended(bytes, _) => &bytes[..],
                    Found::Lost => &[],
                    Found::Freed => continue,
                };
                self.summary(*id, record, range, bytes, segments);
            }
            done += group.len() as u64;
            self.progress("summaries", done, total);
            if self.observer.cancelled() {
                return;
            }
        }
    }

    fn summary(
        &mut self,
        id: SegmentId,
        record: &SegmentRecord,
        range: &Range,
        bytes: &[u8],
        segments: &Segments,
    ) {
        let expected = self.summary_id(id, record);
        let mut beyond = 0_usize;
        let limit = segments.limit(id, record);
        for number in 0..range.length / BLOCK {
            let at = (number * BLOCK) as usize;
            let plain = bytes.get(at..at + SUMMARY_BLOCK_BYTES);
            let decoded = plain.and_then(|b| summary::decode_expected(b, &expected, number).ok());
            let records = match decoded {
                Some(block) => block.records,
                None => {
                    let one = Range {
                        offset: range.offset + number * BLOCK,
                        length: BLOCK,
                        ..range.clone()
                    };
                    let mut block = None;
                    let found = self.source.another_way(&one, &mut |bytes| {
                        block = summary::decode_expected(bytes, &expected, number).ok();
                        block.is_some()
                    });
                    let name = format!("Block {number} of the summary of segment {}", id.0);
                    match found {
                        Found::Whole(_) | Found::Lost => {
                            self.problem(format!(
                                "{name} is damaged: its chunks can be read, but not found as duplicates"
                            ));
                            continue;
                        }
                        Found::Freed => continue,
                        // The whole failed for the sake of another block.
                        Found::Mended(_, members) if plain.is_none() && members.is_empty() => {}
                        Found::Mended(_, members) => {
                            self.problem(format!("{name} {}", source::mended(&members)));
                        }
                    }
                    block.map(|block| block.records).unwrap_or_default()
                }
            };
            beyond += records
                .iter()
                .filter(|r| r.entry.position + r.entry.stored > limit)
                .count();
        }
        if beyond > 0 {
            self.problem(format!(
                "The summary of segment {} lists {beyond} chunks beyond what the segment holds",
                id.0
            ));
        }
    }

    fn summary_id(&self, segment: SegmentId, record: &SegmentRecord) -> SummaryId {
        SummaryId {
            pool: self.array.uuid(),
            segment,
            generation: record.generation,
        }
    }

    /// What the summary of a segment says, by position, as far as it can be
    /// read.
    pub(super) fn described(
        &self,
        id: SegmentId,
        segments: &Segments,
    ) -> BTreeMap<u32, tessera_dedup::SummaryRecord> {
        let mut described = BTreeMap::new();
        let Some(record) = segments.record(id) else {
            return described;
        };
        let Ok(Some(range)) = summary_range(id, record, segments) else {
            return described;
        };
        let expected = self.summary_id(id, record);
        let whole = |_: usize, bytes: &[u8]| summary::decode_blocks(bytes, &expected).is_ok();
        let decoded = match self
            .source
            .read_all(std::slice::from_ref(&range), &whole)
            .pop()
        {
            Some(Found::Whole(bytes) | Found::Mended(bytes, _)) => {
                summary::decode_blocks(&bytes, &expected)
                    .ok()
                    .map(|Summary { records, .. }| records)
            }
            _ => None,
        };
        // Not whole in any one reading: block by block.
        let records = decoded.unwrap_or_else(|| {
            let mut records = Vec::new();
            for number in 0..range.length / BLOCK {
                let one = Range {
                    offset: range.offset + number * BLOCK,
                    length: BLOCK,
                    ..range.clone()
                };
                self.source.another_way(&one, &mut |bytes| {
                    let block = summary::decode_expected(bytes, &expected, number).ok();
                    let accepted = block.is_some();
                    records.extend(block.map(|block| block.records).unwrap_or_default());
                    accepted
                });
            }
            records
        });
        described.extend(
            records
                .into_iter()
                .map(|record| (record.entry.position, record)),
        );
        described
    }
}

/// Where a segment's summary lies; `Ok(None)` when it has none, an error when
/// it cannot be where the record says.
fn summary_range(
    id: SegmentId,
    record: &SegmentRecord,
    segments: &Segments,
) -> Result<Option<Range>, String> {
    let extent = record.summary;
    if extent.blocks == 0 || !is_live(record) {
        return Ok(None);
    }
    let length = u32::from(extent.blocks) * BLOCK;
    let end = extent.offset.checked_add(length);
    let fits =
        extent.offset.is_multiple_of(BLOCK) && end.is_some_and(|end| end <= segments.segment_bytes);
    let holder = segments
        .record(extent.segment)
        .filter(|holder| is_live(holder))
        .ok_or_else(|| {
            format!(
                "its summary lies in segment {}, which is free",
                extent.segment.0
            )
        })?;
    let plausible = segments.ends_in_summary(id, record) || holder.stream() == Some(Stream::Map);
    if !fits || !plausible {
        return Err(format!(
            "its summary cannot lie at {} in segment {}",
            extent.offset, extent.segment.0
        ));
    }
    Ok(Some(Range {
        segment: extent.segment,
        generation: holder.generation,
        placement: holder.placement(),
        offset: extent.offset,
        length,
    }))
}

#[cfg(test)]
mod tests {
    use tessera_dedup::EntryKind;

    use super::*;

    const SEGMENT_BYTES: u32 = 1 << 20;

    fn segments() -> Segments {
        let open = SegmentRecord {
            generation: Generation(0x105),
            state: SegmentState::Open,
            stream: Stream::Data as u8,
            closed_bytes: 65536,
            ..SegmentRecord::default()
        };
        let map = SegmentRecord {
            stream: Stream::Map as u8,
            ..open
        };
        let released = SegmentRecord {
            state: SegmentState::Released,
            ..open
        };
        let own = tessera_dedup::segment::SummaryExtent {
            segment: SegmentId(4),
            offset: SEGMENT_BYTES - 8192,
            blocks: 2,
        };
        let sealed = SegmentRecord {
            state: SegmentState::Sealed,
            closed_bytes: SEGMENT_BYTES,
            summary: own,
            ..open
        };
        let records = vec![SegmentRecord::default(), open, map, released, sealed];
        let named = vec![false; records.len()];
        Segments {
            records,
            named,
            segment_bytes: SEGMENT_BYTES,
            complete: true,
        }
    }

    fn entry(segment: u32, position: u32) -> Entry {
        Entry {
            kind: EntryKind::Raw,
            segment: SegmentId(segment),
            position,
            stored: 4096,
            generation: 5,
            checksum: 0,
        }
    }

    #[test]
    fn a_pointer_is_good_within_the_closed_part_of_a_live_segment() {
        let segments = segments();
        for good in [
            entry(1, 0),
            entry(1, 61440),
            entry(2, SEGMENT_BYTES - 4096),
            entry(4, 65536),
        ] {
            assert!(segments.place(&good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_dangling_pointer_is_named() {
        let segments = segments();
        let cases = [
            (entry(0, 0), "is free"),
            (entry(3, 0), "is free"),
            (entry(5, 0), "does not exist"),
            (entry(1, 61441), "ends at 65536"),
            (entry(4, SEGMENT_BYTES - 8192), "ends at 1040384"),
            (
                Entry {
                    generation: 4,
                    ..entry(1, 0)
                },
                "earlier use",
            ),
        ];
        for (entry, why) in cases {
            let said = segments.place(&entry).unwrap_err();
            assert!(said.contains(why), "{entry:?}: {said}");
        }
    }

    #[test]
    fn a_summary_is_where_one_can_be() {
        let segments = segments();
        let sealed = *segments.record(SegmentId(4)).unwrap();
        assert!(
            summary_range(SegmentId(4), &sealed, &segments)
                .unwrap()
                .is_some()
        );
        let mut record = sealed;
        record.summary.blocks = 1;
        assert!(summary_range(SegmentId(4), &record, &segments).is_err());
        for (holder, good) in [(2, true), (1, false), (0, false)] {
            record.summary.segment = SegmentId(holder);
            let found = summary_range(SegmentId(4), &record, &segments);
            assert_eq!(found.is_ok(), good, "{holder}");
        }
    }
}
