//! A volume as the plain list of what was done to it, and random doings.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tessera_dedup::{Entry, EntryKind};
use tessera_raid::SegmentId;

use crate::map::{Layer, RunKind};

/// One change of a volume.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    /// Entries made from the seed, by `set` or `set_run`.
    Run { first: u64, count: u64, seed: u32 },
    /// A fill with holes or zeroes.
    Fill { first: u64, count: u64, zero: bool },
}

/// The entry a run with this seed gives an index: mostly stored ones.
pub(super) fn entry_for(seed: u32, index: u64) -> Entry {
    let mixed = (index ^ u64::from(seed) << 17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match mixed >> 58 {
        0 | 1 => Entry::HOLE,
        2 | 3 => Entry::ZERO,
        n => Entry {
            kind: if n % 2 == 0 {
                EntryKind::Raw
            } else {
                EntryKind::Lz4
            },
            segment: SegmentId(seed),
            position: u32::try_from(index & 0xfff).unwrap() << 12,
            stored: 1 + u32::try_from(mixed >> 20 & 0xfff).unwrap(),
            generation: 9,
            checksum: u32::try_from(mixed >> 32).unwrap(),
        },
    }
}

impl Op {
    fn range(&self) -> (u64, u64) {
        match *self {
            Self::Run { first, count, .. } | Self::Fill { first, count, .. } => {
                (first, first + count)
            }
        }
    }

    pub(super) fn apply(&self, layer: &mut Layer) {
        match *self {
            Self::Run {
                first,
                count: 1,
                seed,
            } => layer.set(first, entry_for(seed, first)),
            Self::Run { first, count, seed } => {
                let entries: Vec<Entry> = (first..first + count)
                    .map(|index| entry_for(seed, index))
                    .collect();
                layer.set_run(first, &entries);
            }
            Self::Fill { first, count, zero } => {
                layer.fill(first, count, if zero { Entry::ZERO } else { Entry::HOLE });
            }
        }
    }
}

/// A stored entry, another one for every seed.
pub(super) fn stored_entry(seed: u32) -> Entry {
    let entry = (0..)
        .map(|index| entry_for(seed, index))
        .find(Entry::is_stored);
    entry.unwrap()
}

/// What a volume looks like after everything was done.
pub(super) struct Known {
    /// What was last said, by the first index it holds for.
    said: BTreeMap<u64, Option<Entry>>,
}

impl Known {
    pub(super) fn get(&self, index: u64) -> Option<Entry> {
        *self.said.range(..=index).next_back().unwrap().1
    }

    pub(super) fn entry(&self, index: u64) -> Entry {
        self.get(index).unwrap_or(Entry::HOLE)
    }

    /// Every index at which the content may differ from the one before: with
    /// them, all that can be seen of the volume.
    pub(super) fn edges(&self, from: u64, to: u64) -> impl Iterator<Item = u64> {
        self.said.range(from..to).map(|(&index, _)| index)
    }

    /// Every index at which something could be wrong without another showing it.
    pub(super) fn telling(&self) -> Vec<u64> {
        let around = |index: u64| [index.saturating_sub(1), index, index + 1];
        let indices: BTreeSet<u64> = self.edges(0, u64::MAX).flat_map(around).collect();
        indices.into_iter().collect()
    }

    /// Every stored entry, in order.
    pub(super) fn stored(&self) -> Vec<(u64, Entry)> {
        let entries = self
            .said
            .iter()
            .filter_map(|(&index, said)| Some((index, (*said)?)));
        entries.filter(|(_, entry)| entry.is_stored()).collect()
    }

    /// The runs of `first..end`, at most `most`.
    pub(super) fn runs(&self, first: u64, end: u64, most: usize) -> Vec<(u64, RunKind)> {
        let mut edges: BTreeSet<u64> = self.edges(first, end).collect();
        edges.extend([first, end]);
        let edges: Vec<u64> = edges.into_iter().collect();
        let mut runs: Vec<(u64, RunKind)> = Vec::new();
        for pair in edges.windows(2) {
            let (count, kind) = (pair[1] - pair[0], RunKind::from(self.entry(pair[0])));
            match runs.last_mut() {
                Some(last) if last.1 == kind => last.0 += count,
                _ => runs.push((count, kind)),
            }
        }
        runs.truncate(most);
        runs
    }
}

/// Everything that was done, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) ops: Vec<Op>,
}

impl Model {
    /// What was said last about an index.
    fn get(&self, index: u64) -> Option<Entry> {
        self.ops.iter().rev().find_map(|op| {
            let (first, end) = op.range();
            if !(first..end).contains(&index) {
                return None;
            }
            Some(match *op {
                Op::Run { seed, .. } => entry_for(seed, index),
                Op::Fill { zero: true, .. } => Entry::ZERO,
                Op::Fill { zero: false, .. } => Entry::HOLE,
            })
        })
    }

    pub(super) fn known(&self) -> Known {
        let mut edges = BTreeSet::from([0]);
        for op in &self.ops {
            let (first, end) = op.range();
            edges.extend([first, end]);
            if matches!(op, Op::Run { .. }) {
                edges.extend(first..end);
            }
        }
        Known {
            said: edges
                .into_iter()
                .map(|index| (index, self.get(index)))
                .collect(),
        }
    }
}

/// Places where pages of every level begin and end, and two far out.
fn places() -> impl Strategy<Value = u64> {
    let base = prop_oneof![
        4 => Just(0u64),
        2 => Just(65_536 - 512),
        1 => Just((1 << 24) - 600),
        1 => Just(1 << 40),
        1 => Just((1 << 51) - 1000),
    ];
    let offset = prop_oneof![0u64..1200, (0u64..5).prop_map(|page| page * 256)];
    (base, offset).prop_map(|(base, offset)| base + offset)
}

fn ops() -> impl Strategy<Value = Op> {
    let run_length = prop_oneof![4 => Just(1u64), 4 => 2u64..40, 1 => 100u64..700];
    let fill_length = prop_oneof![
        4 => 1u64..600,
        2 => (1u64..5).prop_map(|pages| pages * 256),
        1 => Just(65_536u64),
        1 => 1u64 << 17..1 << 25,
        1 => Just(1u64 << 41),
    ];
    prop_oneof![
        3 => (places(), run_length, any::<u32>())
            .prop_map(|(first, count, seed)| Op::Run { first, count, seed }),
        1 => (places(), fill_length, any::<bool>())
            .prop_map(|(first, count, zero)| Op::Fill { first, count, zero }),
    ]
}

/// Some layers' worth of changes.
pub(super) fn histories(layers: usize, most: usize) -> impl Strategy<Value = Vec<Vec<Op>>> {
    proptest::collection::vec(proptest::collection::vec(ops(), 0..most), 1..=layers)
}
