//! Reading all blocks of all segments for what tells of itself: summary blocks,
//! which carry pool, segment, generation and checksum, and root pages.

use std::collections::{BTreeMap, HashMap};

use tessera_dedup::{
    EntryKind, Generation, SummaryRecord,
    segment::{SegmentRecord, SegmentState, Stream, SummaryExtent},
    summary::{SUMMARY_BLOCK_BYTES, SummaryBlock, decode_block},
};
use tessera_raid::{
    Array, SegmentId, SegmentRead, SlotIndex,
    device::{AlignedBuf, BLOCK_BYTES},
    layout::Placement,
};

use crate::{catalogue::SUMMARY_TREE, pool::CheckObserver, root::RootPage};

/// What summaries say of one incarnation of a segment.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// By position.
    pub(super) records: BTreeMap<u32, SummaryRecord>,
    /// The largest summary that was found whole or in part.
    extent: SummaryExtent,
}

/// A page that says it is a root.
#[derive(Debug)]
pub(super) struct RootFound {
    pub(super) page: RootPage,
    pub(super) segment: SegmentId,
    pub(super) position: u32,
    pub(super) checksum: u32,
}

/// Everything that told of itself.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) segments: HashMap<SegmentId, BTreeMap<Generation, Described>>,
    /// Newest checkpoint first.
    pub(super) roots: Vec<RootFound>,
}

/// Reads everything there is.
pub(super) fn scan(array: &Array, observer: &dyn CheckObserver) -> Scanned {
    let mut scanned = Scanned::default();
    let total = u64::from(array.slot_count());
    for number in 0..array.slot_count() {
        observer.progress("scan", u64::from(number), total);
        let placement = Placement::equal(array.current_layout().id, SlotIndex(number));
        scanned.segment(array, SegmentId(number), &placement);
    }
    observer.progress("scan", total, total);
    scanned
        .roots
        .sort_by_key(|root| std::cmp::Reverse(root.page.checkpoint));
    scanned
}

impl Scanned {
    fn segment(&mut self, array: &Array, id: SegmentId, placement: &Placement) {
        let stripe = array.stripe_data_bytes();
        for first in (0..array.segment_data_bytes()).step_by(stripe as usize) {
            let mut reads = [SegmentRead {
                placement: placement.clone(),
                offset: first,
                buffer: AlignedBuf::zeroed(stripe as usize),
                outcome: Ok(()),
            }];
            array.read(&mut reads);
            let [read] = reads;
            if read.outcome.is_err() {
                continue;
            }
            for (at, block) in (first..)
                .step_by(BLOCK_BYTES)
                .zip(read.buffer.chunks(BLOCK_BYTES))
            {
                self.block(array, id, at, block);
            }
        }
    }

    fn block(&mut self, array: &Array, holder: SegmentId, at: u32, bytes: &[u8]) {
        if let Ok(block) = decode_block(bytes, 0)
            && block.id.pool == array.uuid()
        {
            return self.summary(holder, at, block);
        }
        let page = bytes.try_into().ok().and_then(RootPage::decode);
        if let Some(page) = page.filter(|page| page.pool == array.uuid()) {
            self.roots.push(RootFound {
                page,
                segment: holder,
                position: at,
                checksum: crc32c::crc32c(bytes),
            });
        }
    }

    fn summary(&mut self, holder: SegmentId, at: u32, block: SummaryBlock) {
        let Some(offset) = at.checked_sub(block.number * SUMMARY_BLOCK_BYTES as u32) else {
            return;
        };
        let incarnations = self.segments.entry(block.id.segment).or_default();
        let described = incarnations.entry(block.id.generation).or_default();
        for record in block.records {
            described.records.insert(record.entry.position, record);
        }
        let blocks = u16::try_from(block.blocks).unwrap_or(u16::MAX);
        // One at the segment's own end is whole; of others the longest is.
        let own = described.extent.blocks > 0 && described.extent.segment == block.id.segment;
        if holder == block.id.segment || !own && blocks >= described.extent.blocks {
            described.extent = SummaryExtent {
                segment: holder,
                offset,
                blocks,
            };
        }
    }

    /// The newest incarnation of every segment, as the table should have it:
    /// full, so that nothing is ever written over it.
    pub(super) fn records(&self, array: &Array) -> Vec<(SegmentId, SegmentRecord)> {
        let of = self.segments.iter().filter_map(|(id, incarnations)| {
            let (generation, described) = incarnations.last_key_value()?;
            let inside = id.0 < array.slot_count();
            inside.then(|| (*id, described.record(array, *id, *generation)))
        });
        let mut records: Vec<_> = of.collect();
        records.sort_unstable_by_key(|(id, _)| *id);
        records
    }

    /// The highest generation that was ever seen.
    pub(super) fn newest_generation(&self) -> Generation {
        let of_summaries = self.segments.values().filter_map(|of| of.keys().last());
        let of_roots = self.roots.iter().flat_map(|root| &root.page.overlay);
        let newest = of_summaries
            .copied()
            .chain(of_roots.map(|(_, record)| record.generation));
        newest.max().unwrap_or_default()
    }
}

impl Described {
    fn record(&self, array: &Array, id: SegmentId, generation: Generation) -> SegmentRecord {
        let of_map = self.records.values().any(|record| {
            record.entry.kind == EntryKind::Page || record.owner.tree == SUMMARY_TREE
        });
        let stream = if of_map { Stream::Map } else { Stream::Data };
        let end = self
            .records
            .values()
            .map(|record| record.entry.position + record.entry.stored)
            .max()
            .unwrap_or(0);
        SegmentRecord {
            generation,
            state: SegmentState::Sealed,
            stream: stream as u8,
            layout: array.current_layout().id,
            slot: SlotIndex(id.0),
            closed_bytes: end
                .next_multiple_of(array.stripe_data_bytes())
                .min(array.segment_data_bytes()),
            summary: self.extent,
            chunks: u32::try_from(self.records.len()).unwrap_or(u32::MAX),
            stored_bytes: self
                .records
                .values()
                .map(|record| record.entry.stored)
                .sum(),
            logical_bytes: self
                .records
                .values()
                .map(|record| u64::from(record.logical))
                .sum(),
            ..SegmentRecord::default()
        }
    }
}
