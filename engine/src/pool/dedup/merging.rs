//! Giving the names of duplicates the place that stays (R21).
//!
//! A name is changed under the append lock, if nobody has changed the chunk
//! since its entry was compared; and only to a chunk whose segment is, at that
//! moment, live in the generation that was looked at and not frozen, because a
//! target counts as a hit (R20): who frees or empties segments waits for the
//! operations that began before the freeze, and sees what they have named.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use tessera_dedup::{Entry, Hit};
use tessera_raid::{SegmentId, device::BLOCK_BYTES, sabotage::broken};

use super::window::{Chunk, Name, Window};
use crate::{
    api::DedupMode,
    error::EngineError,
    pool::{
        CheckpointKind,
        engine::Engine,
        pages::Pages,
        reclaim::{Marks, leaves, remap},
        space::pages_for,
        volume::Volume,
    },
};

/// Names dealt with in one step.
const NAMES_PER_STEP: usize = 2048;
/// Leaves of a volume's map have this many entries.
const ENTRIES_PER_LEAF: u64 = 256;

/// What a step came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Merged {
    pub(super) names: u64,
    /// Chunks that had a name changed for the first time.
    pub(super) chunks: u64,
    /// Their stored bytes.
    pub(super) bytes: u64,
}

impl Engine {
    /// A hit may land there: checked by an operation under way, so nobody who
    /// frees or empties the segment overlooks what it names there (R20).
    fn may_take(&self, target: &Hit) -> bool {
        let accepts = || {
            self.table
                .accepts_hits(target.entry.segment, target.generation)
        };
        broken("R20.post_target") || accepts()
    }

    /// Changes some names of duplicates, from `at` on, and moves it behind
    /// them.
    pub(super) fn merge_some(
        &self,
        window: &mut Window,
        at: &mut usize,
    ) -> Result<Merged, EngineError> {
        let mut end = (*at + NAMES_PER_STEP).min(window.names.len());
        // Of one volume, so that its map is looked into once.
        if let Some(first) = window.names.get(*at) {
            let of_volume = window.names[*at..end].iter();
            end = *at + of_volume.take_while(|name| name.tree == first.tree).count();
        }
        let names = window.names[*at..end].to_vec();
        *at = end;
        let Some(volume) = names
            .first()
            .and_then(|name| self.volumes.read().by_id.get(&name.tree).cloned())
        else {
            return Ok(Merged::default());
        };
        let touched = leaves(names.iter().map(|name| name.index), ENTRIES_PER_LEAF) + pages_for(1);
        self.make_room_for_moving(touched * BLOCK_BYTES as u64)?;
        let _guard = self.epochs.enter();
        let marks = Marks::new(self, names.iter().map(|name| (name.tree, name.index)));
        let names = self.named_as_before(window, &volume, names);
        let mut merged = Merged {
            names: names.len() as u64,
            ..Merged::default()
        };
        let mut state = self.state.lock();
        self.check_usable()?;
        if volume.is_deleted() || volume.state.read().dedup == DedupMode::Off {
            return Ok(merged);
        }
        for name in names {
            let chunk = &mut window.chunks[name.chunk as usize];
            let Some(target) = chunk.target.filter(|target| self.may_take(target)) else {
                continue;
            };
            if !marks.holds(&state, (name.tree, name.index)) && !broken("R21.post_unchanged") {
                continue;
            }
            remap(&volume, name.index, target.entry);
            if !chunk.merged {
                chunk.merged = true;
                merged.chunks += 1;
                merged.bytes += u64::from(chunk.entry.stored);
            }
        }
        state.active_pages += touched;
        // Chunks may have lost their last name: reclaim may find something.
        state.overwrites += u64::from(merged.chunks > 0);
        drop(state);
        drop(marks);
        let layer_bytes = 40 * merged.names;
        let layers = self.layer_bytes.fetch_add(layer_bytes, Ordering::Relaxed) + layer_bytes;
        if layers > self.budget.layers as u64 {
            self.signals.maintenance.ring();
        }
        Ok(merged)
    }

    /// Those of a volume's names that are what they were when they were
    /// collected, of chunks that are still there.
    fn named_as_before(
        &self,
        window: &Window,
        volume: &Arc<Volume>,
        names: Vec<Name>,
    ) -> Vec<Name> {
        if broken("R21.post_unchanged") {
            return names;
        }
        let indices = names.iter().map(|name| name.index);
        let entries = match volume.entries_at(&Pages(&self.reader), indices) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, "Duplicates under a damaged page are not merged");
                return Vec::new();
            }
        };
        let pairs = names.into_iter().zip(entries);
        let same = |(name, now): &(Name, Entry)| {
            let chunk = window.chunk(name.chunk);
            chunk.entry == *now && self.is_still(chunk.entry.segment, chunk.generation)
        };
        pairs.filter(same).map(|(name, _)| name).collect()
    }

    /// Has snapshots name what stays.
    ///
    /// Until the checkpoint that stores their new pages nobody may name a
    /// target, so its segment is held for that long.
    pub(super) fn merge_in_snapshots(&self, window: &mut Window) -> Result<Merged, EngineError> {
        let named_so = |chunk: &Chunk| chunk.by_snapshot && chunk.target.is_some();
        if !window.chunks.iter().any(named_so) {
            return Ok(Merged::default());
        }
        // Snapshots that have been taken lately have pages then.
        self.checkpoint_now(CheckpointKind::Normal)?;
        let mut merged = Merged::default();
        let mut moved: BTreeMap<(SegmentId, u32), (u32, Entry)> = BTreeMap::new();
        {
            let _guard = self.epochs.enter();
            let mut held = BTreeSet::new();
            for (index, chunk) in (0u32..).zip(&mut window.chunks) {
                let Some(target) = chunk.target.filter(|_| chunk.is_wanted()) else {
                    continue;
                };
                let segment = target.entry.segment;
                if held.insert(segment) {
                    // Before the question: a mark that comes after a freeze
                    // sees either the answer's no or the segment here.
                    self.unnamed_targets.lock().insert(segment);
                }
                if self.may_take(&target) {
                    let place = (chunk.entry.segment, chunk.entry.position);
                    moved.insert(place, (index, target.entry));
                    if chunk.by_snapshot && !chunk.merged {
                        chunk.merged = true;
                        merged.chunks += 1;
                        merged.bytes += u64::from(chunk.entry.stored);
                    }
                }
            }
        }
        let now = |entry: &Entry| {
            let (index, target) = moved.get(&(entry.segment, entry.position))?;
            let chunk = window.chunk(*index);
            let same = chunk.entry == *entry && self.is_still(entry.segment, chunk.generation);
            same.then_some(*target)
        };
        let rewritten = self.rewrite_snapshots(&now);
        let result = rewritten.and_then(|()| self.checkpoint_now(CheckpointKind::Normal));
        self.unnamed_targets.lock().clear();
        result.map(|()| merged)
    }
}
