//! Which ranges to read for a set of chunks: neighbours become one range.

use tessera_raid::{Placement, SegmentId, device::BLOCK_BYTES};

use crate::{Entry, Generation};

/// Chunks that are so close are read together with what is between: one more
/// operation costs more than two more blocks.
const GAP_BYTES: u32 = 2 * BLOCK;
/// No range is longer, unless one chunk is: it has to be one buffer.
const RUN_BYTES_MAX: u32 = 1 << 20;
const BLOCK: u32 = BLOCK_BYTES as u32; // 4096

/// A chunk to read from the members.
#[derive(Debug, Clone)]
pub(super) struct Want {
    /// Which of the caller's reads it is.
    pub(super) index: usize,
    pub(super) entry: Entry,
    pub(super) generation: Generation,
    pub(super) placement: Placement,
}

/// A block-aligned range of a segment and the chunks in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) segment: SegmentId,
    /// First and end byte in the segment, block-aligned.
    pub(super) start: u32,
    pub(super) end: u32,
    /// Of the sorted chunks: first and end.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Length of the range it was cut from, bytes.
    pub(super) joined: usize,
}

impl Run {
    pub(super) fn bytes(&self) -> usize {
        (self.end - self.start) as usize
    }
}

/// The blocks a chunk lies in.
pub(super) fn blocks_of(entry: &Entry) -> (u32, u32) {
    let start = entry.position - entry.position % BLOCK;
    (
        start,
        (entry.position + entry.stored).next_multiple_of(BLOCK),
    )
}

/// Sorts the chunks by place and joins them into runs.
pub(super) fn plan(wants: &mut [Want]) -> Vec<Run> {
    wants.sort_unstable_by_key(|want| (want.entry.segment, want.entry.position));
    let mut runs: Vec<Run> = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        let segment = want.entry.segment;
        let (start, end) = blocks_of(&want.entry);
        match runs.last_mut() {
            Some(run)
                if run.segment == segment
                    && start <= run.end + GAP_BYTES
                    && end.max(run.end) - run.start <= RUN_BYTES_MAX =>
            {
                run.end = run.end.max(end);
                run.last = index + 1;
            }
            _ => runs.push(Run {
                segment,
                start,
                end,
                first: index,
                last: index + 1,
                joined: 0,
            }),
        }
    }
    runs
}

/// Cuts runs where a stripe unit ends and no chunk lies across: each part is
/// one operation on one member, read straight into its buffer, and its chunks
/// can be checked one buffer after the other.
pub(super) fn cut_at_units(runs: &[Run], wants: &[Want], unit: u32) -> Vec<Run> {
    let mut parts: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        let joined = run.bytes();
        let mut part = Run {
            end: run.start,
            last: run.first,
            joined,
            ..*run
        };
        for (index, want) in wants[run.first..run.last].iter().enumerate() {
            let (start, end) = blocks_of(&want.entry);
            let begins_a_unit = start / unit > part.start / unit;
            if begins_a_unit && start >= part.end && part.last > part.first {
                parts.push(part);
                part = Run {
                    start,
                    first: part.last,
                    ..part
                };
            }
            part.end = part.end.max(end);
            part.last = run.first + index + 1;
        }
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_raid::{LayoutId, SlotIndex};

    use super::*;
    use crate::EntryKind;

    fn want(index: usize, segment: u32, position: u32, stored: u32) -> Want {
        let entry = Entry {
            kind: EntryKind::Lz4,
            segment: SegmentId(segment),
            position,
            stored,
            generation: 1,
            checksum: 0,
        };
        let placement = Placement::equal(LayoutId(0), SlotIndex(segment));
        Want {
            index,
            entry,
            generation: Generation(1),
            placement,
        }
    }

    proptest! {
        #[test]
        fn every_chunk_is_in_its_run_and_runs_do_not_touch(
            chunks in prop::collection::vec(
                (0u32..3, 0u32..3_000_000, 1u32..70_000), 0..60),
            unit in 0u32..20,
        ) {
            let mut wants: Vec<Want> = chunks
                .iter()
                .enumerate()
                .map(|(index, (segment, position, stored))| want(index, *segment, *position, *stored))
                .collect();
            let whole = plan(&mut wants);
            let runs = if unit == 0 { whole } else { cut_at_units(&whole, &wants, unit * BLOCK) };
            let mut covered = 0;
            for run in &runs {
                prop_assert_eq!(run.first, covered);
                covered = run.last;
                prop_assert!(run.start % BLOCK == 0 && run.end % BLOCK == 0);
                prop_assert!(run.bytes() <= RUN_BYTES_MAX as usize);
                for want in &wants[run.first..run.last] {
                    let (start, end) = blocks_of(&want.entry);
                    prop_assert_eq!(want.entry.segment, run.segment);
                    prop_assert!(run.start <= start && end <= run.end);
                }
            }
            prop_assert_eq!(covered, wants.len());
        }
    }

    #[test]
    fn neighbours_join_and_strangers_do_not() {
        let mut wants = vec![
            want(0, 1, 8192, 4096),
            want(1, 1, 0, 4096),
            want(2, 1, 4096, 4096),
            want(3, 1, 100 * 4096, 100),
            want(4, 2, 101 * 4096, 100),
        ];
        let ranges: Vec<_> = plan(&mut wants)
            .iter()
            .map(|run| (run.segment.0, run.start, run.end))
            .collect();
        assert_eq!(
            ranges,
            [(1, 0, 12288), (1, 409_600, 413_696), (2, 413_696, 417_792)]
        );
    }
}
