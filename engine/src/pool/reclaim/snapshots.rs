//! Giving snapshots other pages: ones that name where moved chunks are now.
//!
//! A snapshot's pages change no more, so they are made anew without any lock,
//! with one memo for all snapshots: what they shared they share again. Then the
//! root is exchanged, and the next checkpoint stores it (R21). Until that is
//! durable the old pages stay, like everything that the previous root names.
//!
//! That is done in steps of a bounded number of pages. In between nothing names
//! the new pages, so their segments are held like those of copies.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use tessera_dedup::Entry;
use tessera_raid::SegmentId;

use crate::{
    error::{EngineError, ErrorKind},
    map::{
        MapError, PageBytes, PageOwner, PageSink, Pointer, Rewrite, Rewritten, StoreError,
        StoreErrorKind, Tree,
    },
    pool::{
        CheckpointKind,
        engine::Engine,
        pages::{MapAppender, Pages},
        snapshots::{Snapshot, UNFOLDED_MAX},
    },
};

/// A map stream that leaves alone what checkpoints need (R22).
struct Careful<'a> {
    engine: &'a Engine,
    /// Segments that are not freed meanwhile.
    held: &'a Mutex<BTreeSet<SegmentId>>,
    inner: MapAppender<'a>,
}

impl PageSink for Careful<'_> {
    fn leaves(&self, page: &Pointer) -> bool {
        self.inner.leaves(page)
    }

    fn write(&mut self, owner: PageOwner, page: &PageBytes) -> Result<Pointer, StoreError> {
        if self.engine.room_for_moving() == 0 {
            let full = EngineError::new(ErrorKind::NoSpace, "No segment is free for map pages");
            return Err(StoreError::caused_by(StoreErrorKind::NoSpace, full));
        }
        let pointer = self.inner.write(owner, page)?;
        self.held.lock().insert(pointer.entry.segment);
        Ok(pointer)
    }
}

/// Pages of one step.
const PAGES_PER_STEP: usize = 1024;

/// How far it has come with the snapshots.
#[derive(Debug, Default)]
pub(super) struct Rewriting {
    /// Those with lower ids are done.
    next: u64,
    made: Rewritten,
    /// Since the last checkpoint.
    exchanged: usize,
}

impl Engine {
    /// Has every snapshot name the new places, which `now` tells. One that
    /// cannot be read through, or for which there is no room, stays as it is,
    /// and so does what it names. New pages are in `unnamed_targets` until the
    /// caller has had a checkpoint taken.
    pub(in crate::pool) fn rewrite_snapshots(
        &self,
        now: &dyn Fn(&Entry) -> Option<Entry>,
    ) -> Result<(), EngineError> {
        let mut rewriting = Rewriting::default();
        while !self.rewrite_some(&mut rewriting, now, &self.unnamed_targets)? {}
        Ok(())
    }

    /// One step of that; true at the end. The segments of new pages are `held`.
    pub(super) fn rewrite_some(
        &self,
        rewriting: &mut Rewriting,
        now: &dyn Fn(&Entry) -> Option<Entry>,
        held: &Mutex<BTreeSet<SegmentId>>,
    ) -> Result<bool, EngineError> {
        let guard = self.epochs.enter();
        let pages = Pages(&self.reader);
        let mut sink = Careful {
            engine: self,
            held,
            inner: MapAppender::new(self),
        };
        let made = &mut rewriting.made;
        let mut rewrite = Rewrite::new(&pages, &mut sink, now, made, PAGES_PER_STEP);
        while let Some(snapshot) = self.snapshot_from(rewriting.next) {
            self.check_usable()?;
            // One with layers is younger than the pass, and names no victim
            // that its volume did not name: the next pass sees it.
            let view = snapshot.view();
            if view.layers.is_empty() {
                match rewrite.tree(&view.tree) {
                    Ok(None) => return Ok(false),
                    Ok(Some(tree)) if tree == view.tree => {}
                    Ok(Some(tree)) => {
                        let exchanged = self.exchange(&snapshot, view.tree, tree);
                        rewriting.exchanged += usize::from(exchanged);
                    }
                    Err(MapError::Write { source, .. })
                        if source.kind == StoreErrorKind::NoSpace =>
                    {
                        return Ok(true);
                    }
                    Err(error @ MapError::Write { .. }) => return Err(error.into()),
                    Err(error) => tracing::warn!(%error, "A snapshot keeps its damaged pages"),
                }
            }
            rewriting.next = snapshot.id + 1;
            if rewriting.exchanged >= UNFOLDED_MAX / 2 {
                rewriting.exchanged = 0;
                drop(guard);
                self.checkpoint_now(CheckpointKind::Normal)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first snapshot with that id or a higher one.
    fn snapshot_from(&self, id: u64) -> Option<Arc<Snapshot>> {
        let volumes = self.volumes.read();
        let (_, snapshot) = volumes.snapshots.range(id..).next()?;
        Some(Arc::clone(snapshot))
    }

    /// False where the snapshot has gone, or has other pages by now.
    fn exchange(&self, snapshot: &Arc<Snapshot>, old: Tree, new: Tree) -> bool {
        let mut state = self.state.lock();
        if !self.volumes.read().snapshots.contains_key(&snapshot.id) {
            return false;
        }
        let mut disk = snapshot.disk.state.write();
        if disk.view.tree != old || !disk.view.layers.is_empty() {
            return false;
        }
        disk.view.tree = new;
        drop(disk);
        state.new_snapshots.push(Arc::clone(snapshot));
        state.active_pages += 2;
        true
    }
}
