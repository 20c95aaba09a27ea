//! Giving snapshots other pages: ones that name where moved chunks are now.
//!
//! A snapshot's pages change no more, so they are made anew without any lock,
//! with one memo for all snapshots: what they shared they share again. Then the
//! root is exchanged, and the next checkpoint stores it (R21). Until that is
//! durable the old pages stay, like everything that the previous root names.

use std::sync::Arc;

use tessera_dedup::Entry;

use crate::{
    error::{EngineError, ErrorKind},
    map::{
        MapError, PageBytes, PageOwner, PageSink, Pointer, Rewrite, StoreError, StoreErrorKind,
        Tree,
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
        self.inner.write(owner, page)
    }
}

impl Engine {
    /// Has every snapshot name the new places, which `now` tells. One that cannot be read through,
    /// or for which there is no room, stays as it is, and so does what it names.
    pub(in crate::pool) fn rewrite_snapshots(
        &self,
        now: &dyn Fn(&Entry) -> Option<Entry>,
    ) -> Result<(), EngineError> {
        let snapshots: Vec<Arc<Snapshot>> =
            self.volumes.read().snapshots.values().cloned().collect();
        if snapshots.is_empty() {
            return Ok(());
        }
        let pages = Pages(&self.reader);
        let mut sink = Careful {
            engine: self,
            inner: MapAppender::new(self),
        };
        let mut rewrite = Rewrite::new(&pages, &mut sink, now);
        let mut exchanged = 0;
        for snapshot in snapshots {
            let _guard = self.epochs.enter();
            self.check_usable()?;
            // One with layers is younger than the pass, and names no victim
            // that its volume did not name: the next pass sees it.
            let view = snapshot.view();
            if !view.layers.is_empty() {
                continue;
            }
            match rewrite.tree(&view.tree) {
                Ok(tree) if tree == view.tree => {}
                Ok(tree) => exchanged += usize::from(self.exchange(&snapshot, view.tree, tree)),
                Err(MapError::Write { source, .. }) if source.kind == StoreErrorKind::NoSpace => {
                    return Ok(());
                }
                Err(error @ MapError::Write { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "A snapshot keeps its damaged pages"),
            }
            if exchanged >= UNFOLDED_MAX / 2 {
                exchanged = 0;
                self.checkpoint_now(CheckpointKind::Normal)?;
            }
        }
        Ok(())
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
