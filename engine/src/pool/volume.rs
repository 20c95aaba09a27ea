//! A volume in memory: its record, its active layer and the view under it.
//!
//! Readers ask the active layer, the layers of the view, newest first, and the
//! pages, in that order. Only a checkpoint replaces pages; a write only ever
//! touches the active layer, so it never waits for a page.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::RwLock;
use tessera_dedup::Entry;

use super::view::View;
use crate::{
    api::{Compression, DedupMode},
    catalogue::VolumeRecord,
    error::EngineError,
    map::{self, Layer, PageSource, Run, Tree},
};

/// A volume of an open pool.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: u64,
    pub(crate) chunk_bytes: u32,
    pub(crate) state: RwLock<VolumeState>,
    deleted: AtomicBool,
    /// Front ends that hold the volume open.
    pub(crate) users: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct VolumeState {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) dedup: DedupMode,
    pub(crate) compression: Compression,
    pub(crate) allow_shrink: bool,
    /// Changes since the last rotation.
    pub(crate) active: Layer,
    /// What they lie upon.
    pub(crate) view: View,
    /// The record changed since the last freeze.
    pub(crate) record_changed: bool,
}

impl Volume {
    pub(crate) fn new(record: &VolumeRecord) -> Self {
        Self {
            id: record.id,
            chunk_bytes: record.chunk_bytes,
            state: RwLock::new(VolumeState {
                name: record.name.clone(),
                size_bytes: record.size_bytes,
                dedup: record.dedup,
                compression: record.compression,
                allow_shrink: record.allow_shrink,
                active: Layer::new(),
                view: View::of_pages(record.tree, record.stored_chunks),
                record_changed: false,
            }),
            deleted: AtomicBool::new(false),
            users: AtomicUsize::new(0),
        }
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub(crate) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// The record as of now, with the checkpointed tree.
    pub(crate) fn record(&self) -> VolumeRecord {
        self.record_of(&self.state.read())
    }

    pub(crate) fn record_of(&self, state: &VolumeState) -> VolumeRecord {
        VolumeRecord {
            id: self.id,
            name: state.name.clone(),
            size_bytes: state.size_bytes,
            chunk_bytes: self.chunk_bytes,
            dedup: state.dedup,
            compression: state.compression,
            allow_shrink: state.allow_shrink,
            tree: state.view.tree,
            stored_chunks: state.view.stored_chunks,
        }
    }

    /// The entries of consecutive chunks as far as layers know them, and the
    /// tree to ask for the others.
    pub(crate) fn layered(&self, first: u64, out: &mut [Option<Entry>]) -> Tree {
        let state = self.state.read();
        state.active.lookup(first, out);
        state.view.lookup(first, out);
        state.view.tree
    }

    /// The entries of consecutive chunks.
    pub(crate) fn entries(
        &self,
        source: &dyn PageSource,
        first: u64,
        count: usize,
    ) -> Result<Vec<Entry>, EngineError> {
        let mut found = vec![None; count];
        let tree = self.layered(first, &mut found);
        if found.iter().any(Option::is_none) {
            map::lookup(&tree, source, first, &mut found)?;
        }
        Ok(found
            .into_iter()
            .map(|entry| entry.unwrap_or(Entry::HOLE))
            .collect())
    }

    /// The entries of some chunks.
    pub(crate) fn entries_at(
        &self,
        source: &dyn PageSource,
        indices: impl Iterator<Item = u64> + Clone,
    ) -> Result<Vec<Entry>, EngineError> {
        let ranges: Vec<(u64, usize)> = indices.map(|index| (index, 1)).collect();
        self.entries_in(source, &ranges)
    }

    /// The entries of several ranges of chunks, one after the other.
    pub(crate) fn entries_in(
        &self,
        source: &dyn PageSource,
        ranges: &[(u64, usize)],
    ) -> Result<Vec<Entry>, EngineError> {
        let total = ranges.iter().map(|(_, count)| count).sum();
        let mut found = vec![None; total];
        let state = self.state.read();
        let mut rest = found.as_mut_slice();
        for (first, count) in ranges {
            let (out, after) = rest.split_at_mut(*count);
            state.active.lookup(*first, out);
            state.view.lookup(*first, out);
            rest = after;
        }
        let tree = state.view.tree;
        drop(state);
        let mut entries: Vec<Entry> = found
            .iter()
            .map(|entry| entry.unwrap_or(Entry::HOLE))
            .collect();
        let indices = ranges
            .iter()
            .flat_map(|(first, count)| *first..*first + *count as u64);
        let (missing, places): (Vec<u64>, Vec<usize>) = indices
            .zip(0..total)
            .filter(|(_, place)| found[*place].is_none())
            .unzip();
        if !missing.is_empty() {
            let mut out = vec![Entry::HOLE; missing.len()];
            map::lookup_many(&tree, source, &missing, &mut out)?;
            for (place, entry) in places.into_iter().zip(out) {
                entries[place] = entry;
            }
        }
        Ok(entries)
    }

    /// What a range of chunks is made of.
    pub(crate) fn runs(
        &self,
        source: &dyn PageSource,
        first: u64,
        count: u64,
        max: usize,
    ) -> Result<Vec<Run>, EngineError> {
        let state = self.state.read();
        let mut layers = vec![&state.active];
        layers.extend(state.view.newest_first());
        Ok(map::runs(
            &state.view.tree,
            &layers,
            source,
            first,
            count,
            max,
        )?)
    }
}

impl VolumeState {
    /// Makes the active layer part of the view, which then holds everything.
    pub(crate) fn rotate(&mut self) -> &View {
        if !self.active.is_empty() {
            let layer = std::mem::take(&mut self.active);
            self.view.layers.push(Arc::new(layer));
        }
        &self.view
    }

    /// True when the catalogue lacks something of it.
    pub(crate) fn is_dirty(&self) -> bool {
        self.record_changed || !self.active.is_empty() || !self.view.layers.is_empty()
    }

    /// After a checkpoint that could not be completed: the newest layers go on
    /// taking writes, so that one more does not come with each attempt.
    pub(crate) fn thaw(&mut self) {
        self.record_changed = true;
        while let Some(layer) = self.view.layers.pop() {
            match Arc::try_unwrap(layer) {
                Ok(mut older) => {
                    older.absorb(&self.active);
                    self.active = older;
                }
                Err(shared) => {
                    self.view.layers.push(shared);
                    return;
                }
            }
        }
    }
}
