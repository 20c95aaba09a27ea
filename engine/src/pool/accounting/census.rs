//! The walk behind an account: all maps of one checkpoint, in bounded steps.
//!
//! Volumes and snapshots are gone through in an order in which neighbours share
//! most: by volume, its snapshots by age, then the volume itself. Each is walked
//! together with the one before, passing over what they share
//! ([`crate::map::exchanges`]), so a thousand snapshots cost what was written
//! between them.
//!
//! A step needs the segments of its checkpoint kept: it runs under the reclaim
//! lock, and when anything was freed between two steps the walk is given up.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use tessera_dedup::{segment::SegmentState, summary};
use tessera_raid::{SegmentId, device::BLOCK_BYTES};

use super::{
    Account,
    tally::{BYTES_PER_PLACE, Item, Tally},
};
use crate::{
    error::EngineError,
    map::{self, Only, PAGE_BYTES, Tree, TreeShape, Visit, Walker},
    pool::{
        engine::Engine,
        pages::Pages,
        roots::{Root, RootKind, Roots, place},
    },
};

/// A volume or a snapshot.
#[derive(Debug, Clone, Copy)]
struct Owner {
    id: u64,
    is_volume: bool,
    tree: Tree,
    chunk_bytes: u32,
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Census {
    roots: Arc<Roots>,
    /// [`Engine::frees`] when it began.
    frees: u64,
    owners: Vec<Owner>,
    /// How many owners are complete.
    done: usize,
    /// Where to go on in the next one.
    index: u64,
    tally: Tally,
    /// Full segments with what the checkpoint names.
    sealed: BTreeSet<SegmentId>,
    began_ms: u64,
}

/// How a step ended.
pub(super) enum Step {
    /// There is more.
    More,
    /// The result.
    Done(Account),
    /// Something was freed: what is left of the walk says nothing any more.
    Overtaken,
}

impl Census {
    /// Begins with the newest checkpoint.
    pub(super) fn begin(engine: &Engine) -> Self {
        let frees = engine.frees.load(Ordering::Acquire);
        let roots = engine.roots();
        let live = engine.table.live().into_iter();
        let sealed = live.filter(|(_, record)| {
            record.state == SegmentState::Sealed && record.opened_sequence <= roots.page.sequence
        });
        Self {
            frees,
            owners: owners(engine, &roots),
            done: 0,
            index: 0,
            tally: Tally::new(engine.budget.layers / BYTES_PER_PLACE),
            sealed: sealed.map(|(id, _)| id).collect(),
            began_ms: (engine.clock)(),
            roots,
        }
    }

    /// Reads about `pages` pages. The caller holds the reclaim lock.
    pub(super) fn step(
        mut self,
        engine: &Engine,
        mut pages: usize,
    ) -> Result<(Option<Self>, Step), EngineError> {
        if engine.frees.load(Ordering::Acquire) != self.frees {
            return Ok((None, Step::Overtaken));
        }
        while let Some(owner) = self.owners.get(self.done).copied() {
            if pages == 0 {
                return Ok((Some(self), Step::More));
            }
            if self.index == 0 {
                self.tally.next_owner(owner.is_volume);
            }
            let before = match self.done.checked_sub(1) {
                Some(at) => self.owners[at].tree,
                None => Tree::empty(owner.tree.id, TreeShape::VOLUME),
            };
            let tally = &mut self.tally;
            let some = pages.min(PAGES_PER_LOOK);
            let (next, read) = map::exchanges(
                (&before, &owner.tree),
                &Pages(&engine.reader),
                self.index,
                some,
                &mut |comes, only| {
                    let (place, stored, logical) = match only {
                        Only::Page(pointer) => (place(&pointer), PAGE_BYTES as u32, 0),
                        Only::Entry(entry) => {
                            let place =
                                u64::from(entry.segment.0) << 24 | u64::from(entry.position);
                            (place, entry.stored, owner.chunk_bytes)
                        }
                    };
                    match comes {
                        true => tally.comes(Item {
                            place,
                            stored,
                            logical,
                        }),
                        false => tally.goes(place),
                    }
                },
            )?;
            engine.check_usable()?;
            // Also where the two were the same: a step comes to an end.
            pages = pages.saturating_sub(read.max(1));
            match next {
                Some(index) => self.index = index,
                None => (self.done, self.index) = (self.done + 1, 0),
            }
        }
        let account = self.finish(engine)?;
        Ok((None, Step::Done(account)))
    }

    fn finish(self, engine: &Engine) -> Result<Account, EngineError> {
        let sealed = &self.sealed;
        let totals = self.tally.finish(|place| {
            u32::try_from(place >> 24).is_ok_and(|id| sealed.contains(&SegmentId(id)))
        });
        let tables = live_of_tables(engine, &self.roots, sealed)?;
        let items = usize::try_from(totals.live_items).unwrap_or(usize::MAX);
        let summaries = summary::blocks_for(items) * BLOCK_BYTES;
        let live = totals.live_bytes + tables + summaries as u64;
        let segment = u64::from(engine.geometry.segment_bytes);
        let full = sealed.len() as u64 * segment;
        let releasing = u64::from(engine.table.counts().releasing) * segment;
        let ids = self.owners.iter().map(|owner| owner.id);
        let now = (engine.clock)();
        Ok(Account {
            checkpoint: self.roots.page.checkpoint,
            taken_unix_ms: self.began_ms,
            took_ms: now.saturating_sub(self.began_ms),
            exact: totals.exact,
            unique_bytes: totals.volumes_unique,
            stored_bytes: totals.volumes_stored,
            snapshot_bytes: totals.snapshots_stored,
            reclaimable_bytes: full.saturating_sub(live) + releasing,
            owners: ids.zip(totals.owners).collect(),
        })
    }
}

/// Most pages between two looks at whether the pool is still in use.
const PAGES_PER_LOOK: usize = 256;

/// In the order of the walk. What has been deleted since the checkpoint has no
/// part any more.
fn owners(engine: &Engine, roots: &Roots) -> Vec<Owner> {
    let volumes = engine.volumes.read();
    let owner = |root: Root| match root.kind {
        RootKind::Volume(id) => volumes.by_id.get(&id).map(|volume| {
            let owner = Owner {
                id,
                is_volume: true,
                tree: root.tree,
                chunk_bytes: volume.chunk_bytes,
            };
            ((id, 1, id), owner)
        }),
        RootKind::Snapshot(id) => volumes.snapshots.get(&id).map(|snapshot| {
            let owner = Owner {
                id,
                is_volume: false,
                tree: root.tree,
                chunk_bytes: snapshot.disk.chunk_bytes,
            };
            ((snapshot.volume, 0, id), owner)
        }),
        RootKind::Table => None,
    };
    let maps = roots.of_volumes().chain(roots.of_snapshots());
    let mut found: Vec<_> = maps.filter_map(owner).collect();
    found.sort_unstable_by_key(|(order, _)| *order);
    found.into_iter().map(|(_, owner)| owner).collect()
}

/// Bytes in full segments that the pool's own tables take.
fn live_of_tables(
    engine: &Engine,
    roots: &Roots,
    sealed: &BTreeSet<SegmentId>,
) -> Result<u64, EngineError> {
    let mut live = 0;
    let mut note = |segment: SegmentId, blocks: u32| {
        if sealed.contains(&segment) {
            live += u64::from(blocks) * BLOCK_BYTES as u64;
        }
    };
    if let Some(root) = &roots.pointer {
        note(root.entry.segment, 1);
    }
    for root in roots.all().filter(|root| root.kind == RootKind::Table) {
        let mut walker = Walker::new(root.tree);
        while !walker.step(&Pages(&engine.reader), PAGES_PER_LOOK, &mut |visit| {
            if let Visit::Page { pointer, .. } = visit {
                note(pointer.entry.segment, 1);
            }
        })? {}
    }
    for (id, record) in engine.table.live() {
        let summary = record.summary;
        if summary.blocks > 0 && summary.segment != id {
            note(summary.segment, u32::from(summary.blocks));
        }
    }
    Ok(live)
}
