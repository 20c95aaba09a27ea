//! The roots: every tree that a checkpoint leaves, so everything that is live.
//!
//! Whatever has to see all that is named (reclaim, scrub, a mover) goes through
//! [`Roots::all`]. A tree under it is immutable, and its segments stay for as
//! long as the reclaim lock is held or a pass is under way. Snapshots and
//! clones share pages with their volumes: a [`Visited`] keeps each from being
//! read more than once.

use std::{collections::BTreeMap, sync::Arc};

use roaring::RoaringTreemap;
use tessera_raid::sabotage::broken;

use crate::{
    map::{Pointer, Tree},
    root::{RootPage, RootPointer},
};

/// What the newest durable checkpoint consists of.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    pub(crate) page: RootPage,
    pub(crate) pointer: Option<RootPointer>,
    /// The maps of volumes, by id.
    pub(crate) volumes: Arc<BTreeMap<u64, Tree>>,
    /// The maps of snapshots, by id.
    pub(crate) snapshots: Arc<BTreeMap<u64, Tree>>,
}

/// What a root belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RootKind {
    /// A table of the root page: catalogue, segments, jobs or snapshots.
    Table,
    /// The map of the volume with this id.
    Volume(u64),
    /// The map of the snapshot with this id. Its tree has the volume's id.
    Snapshot(u64),
}

/// One tree, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root {
    pub(crate) kind: RootKind,
    pub(crate) tree: Tree,
}

impl Roots {
    /// Every tree of the checkpoint: tables, then volumes, then snapshots.
    pub(crate) fn all(&self) -> impl Iterator<Item = Root> {
        let page = &self.page;
        let tables = [page.catalogue, page.segments, page.jobs, page.snapshots];
        let tables = tables.map(|tree| Root {
            kind: RootKind::Table,
            tree,
        });
        let snapshots = (!broken("R20.snapshots")).then(|| self.of_snapshots());
        let maps = self.of_volumes().chain(snapshots.into_iter().flatten());
        tables.into_iter().chain(maps)
    }

    /// The maps of volumes.
    pub(crate) fn of_volumes(&self) -> impl Iterator<Item = Root> {
        self.volumes.iter().map(|(id, tree)| Root {
            kind: RootKind::Volume(*id),
            tree: *tree,
        })
    }

    /// The maps of snapshots.
    pub(crate) fn of_snapshots(&self) -> impl Iterator<Item = Root> {
        self.snapshots.iter().map(|(id, tree)| Root {
            kind: RootKind::Snapshot(*id),
            tree: *tree,
        })
    }
}

/// Pages that a walk over several trees has come to.
#[derive(Debug, Default)]
pub(crate) struct Visited(RoaringTreemap);

impl Visited {
    /// True the first time. A page says the same wherever it hangs, and it
    /// hangs at one level and number wherever it is shared.
    pub(crate) fn enter(&mut self, pointer: &Pointer) -> bool {
        self.0.insert(place(pointer))
    }
}

/// Names a page for as long as its segment is not freed.
pub(crate) fn place(pointer: &Pointer) -> u64 {
    u64::from(pointer.entry.segment.0) << 24 | u64::from(pointer.entry.position)
}
