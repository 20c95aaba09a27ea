//! How much of each sealed segment is live, and which are worth emptying.
//!
//! A walk over the checkpointed roots counts every stored chunk and every page
//! once. To bound memory it looks at a window of segments at a time; what lies
//! outside is passed over, and the next survey goes on behind it.

use std::{collections::HashMap, ops::Range};

use roaring::RoaringTreemap;
use tessera_dedup::{
    Entry, Generation,
    segment::{SegmentState, Stream},
    summary,
};
use tessera_raid::{SegmentId, device::BLOCK_BYTES};

use super::{PAGES_PER_STEP, unwalkable};
use crate::{
    error::EngineError,
    map::{PageOwner, Pointer, Tree, Visit, Walker},
    pool::{
        engine::Engine,
        pages::Pages,
        roots::{Roots, Visited},
    },
};

/// Memory that remembering one chunk takes in a survey, about.
const BYTES_PER_CHUNK: u64 = 8;
/// A segment that has less than this part of its space to give is left alone.
const WASTE_PART_MIN: u64 = 32;
/// So has the pool, of the space of all its sealed segments.
const TOLERATED_PART: u64 = 128;

/// What is live in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Liveness {
    pub(super) generation: Generation,
    pub(super) stream: Stream,
    /// Stored bytes that something names.
    pub(super) bytes: u64,
    /// Distinct chunks or pages.
    chunks: u64,
    /// How often they are named.
    pub(super) names: u64,
}

impl Liveness {
    /// What emptying the segment would give.
    fn waste(&self, segment_bytes: u64) -> u64 {
        let chunks = usize::try_from(self.chunks).expect("a segment has few chunks");
        let summary = (summary::blocks_for(chunks) * BLOCK_BYTES) as u64;
        segment_bytes
            .saturating_sub(summary)
            .saturating_sub(self.bytes)
    }
}

/// The sealed segments of a window, and where the next window begins; `None`
/// behind the last one.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) segments: HashMap<SegmentId, Liveness>,
    pub(super) next: Option<u32>,
}

/// A segment to be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) segment: SegmentId,
    pub(super) generation: Generation,
    /// What has to be moved.
    pub(super) bytes: u64,
}

/// What may be spent on emptying segments at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means {
    /// Bytes that can be moved before anything is freed.
    pub(super) room: u64,
    /// Names that can be remembered.
    pub(super) names: u64,
}

impl Survey {
    /// The cheapest victims, until what is left is not worth moving for. Empty
    /// when no stream would win a whole segment.
    pub(super) fn victims(&self, segment_bytes: u64, means: Means) -> Vec<Victim> {
        let mut chosen = Vec::new();
        let mut left = means;
        for stream in Stream::ALL {
            let mut candidates: Vec<(&SegmentId, &Liveness)> = self
                .segments
                .iter()
                .filter(|(_, live)| live.stream == stream)
                .collect();
            candidates.sort_unstable_by_key(|(id, live)| (live.bytes, id.0));
            let mut wasted: u64 = candidates
                .iter()
                .map(|(_, live)| live.waste(segment_bytes))
                .sum();
            let tolerated = candidates.len() as u64 * segment_bytes / TOLERATED_PART;
            let mut won = 0;
            let mut victims = Vec::new();
            for (segment, live) in candidates {
                let waste = live.waste(segment_bytes);
                if wasted <= tolerated || waste < segment_bytes / WASTE_PART_MIN {
                    break;
                }
                // A chunk that everything names makes its segment stay.
                if live.names > left.names {
                    continue;
                }
                if live.bytes > left.room {
                    break;
                }
                left.room -= live.bytes;
                left.names -= live.names;
                wasted -= waste;
                won += waste;
                victims.push(Victim {
                    segment: *segment,
                    generation: live.generation,
                    bytes: live.bytes,
                });
            }
            if won >= segment_bytes {
                chosen.extend(victims);
            }
        }
        chosen
    }
}

impl Engine {
    /// Surveys the sealed segments from `first` on, as far as memory allows,
    /// under `roots`. The caller holds the reclaim lock, and took `sealed`
    /// before the checkpoint that made the roots.
    pub(super) fn survey(
        &self,
        roots: &Roots,
        sealed: &[(SegmentId, Generation)],
        first: u32,
    ) -> Result<Survey, EngineError> {
        let chunks_max = self.budget.layers as u64 / BYTES_PER_CHUNK;
        let mut segments = HashMap::new();
        let (mut chunks, mut next) = (0, None);
        for (id, generation) in sealed.iter().filter(|(id, _)| id.0 >= first) {
            let Some(record) = self.still_live(*id, *generation) else {
                continue;
            };
            let Some(stream) = record
                .stream()
                .filter(|_| record.state == SegmentState::Sealed)
            else {
                continue;
            };
            chunks += u64::from(record.chunks);
            if chunks > chunks_max && !segments.is_empty() {
                next = Some(id.0);
                break;
            }
            let none = Liveness {
                generation: *generation,
                stream,
                bytes: 0,
                chunks: 0,
                names: 0,
            };
            segments.insert(*id, none);
        }
        let mut seen = RoaringTreemap::new();
        let mut note = |entry: &Entry| {
            let Some(live) = segments.get_mut(&entry.segment) else {
                return;
            };
            live.names += 1;
            if seen.insert(u64::from(entry.segment.0) << 32 | u64::from(entry.position)) {
                live.chunks += 1;
                live.bytes += u64::from(entry.stored);
            }
        };
        let mut visited = Visited::default();
        for root in roots.all() {
            self.walk_names(root.tree, &mut visited, &mut |visit| match visit {
                Visit::Page { pointer, .. } => note(&pointer.entry),
                Visit::Entry { entry, .. } => note(&entry),
                _ => {}
            })?;
        }
        for (id, record) in self.table.live() {
            let extent = record.summary;
            if extent.blocks > 0
                && extent.segment != id
                && let Some(live) = segments.get_mut(&extent.segment)
            {
                live.names += 1;
                live.chunks += u64::from(extent.blocks);
                live.bytes += u64::from(extent.blocks) * BLOCK_BYTES as u64;
            }
        }
        Ok(Survey { segments, next })
    }

    /// Visits everything under one root that has not been visited under
    /// another. What cannot be walked ends it.
    pub(super) fn walk_names(
        &self,
        tree: Tree,
        visited: &mut Visited,
        visit: &mut dyn FnMut(Visit<'_>),
    ) -> Result<(), EngineError> {
        let pages = Pages(&self.reader);
        let mut walker = Walker::new(tree);
        let mut enter = |pointer: &Pointer, _: PageOwner| visited.enter(pointer);
        loop {
            self.check_usable()?;
            match walker.step_if(&pages, PAGES_PER_STEP, &mut enter, visit) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(unwalkable(&error)),
            }
        }
    }
}

/// The page indices of a batch of chunk indices, for an estimate of the pages
/// that changing them takes.
pub(in crate::pool) fn leaves(indices: impl Iterator<Item = u64>, per_leaf: u64) -> u64 {
    let mut leaves: Vec<u64> = indices.map(|index| index / per_leaf).collect();
    leaves.sort_unstable();
    leaves.dedup();
    leaves.len() as u64
}

/// Splits what is sorted by a key into its runs of equal keys.
pub(super) fn runs_by<T, K: PartialEq>(
    items: &[T],
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = items.get(at)?;
        let length = items[at..]
            .iter()
            .take_while(|item| key(item) == key(first))
            .count();
        let run = at..at + length;
        at = run.end;
        Some(run)
    })
}
