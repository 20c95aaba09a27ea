//! Walking everything that the newest roots name, in bounded steps.
//!
//! A walk holds nothing between its steps, so it neither keeps segments from
//! being freed nor holds anybody up: each step enters an epoch, takes the roots
//! of the newest checkpoint, and goes on in the tree where the last one ended.
//! What a step sees is true at its moment; what moves behind the walk's back
//! was seen where it was or is new since.
//!
//! Leaves that snapshots and clones share are read once: a walk remembers those
//! it has come to, with the low bits of their segment's generation, because a
//! segment may be freed and used again under way.

use roaring::RoaringTreemap;
use tessera_raid::device::BLOCK_BYTES;

use super::{
    engine::Engine,
    pages::Pages,
    roots::{Root, RootKind, place},
};
use crate::map::{MapError, PageOwner, Pointer, Visit, Walker};

/// Pages of one step.
const PAGES_PER_STEP: usize = 256;

/// What a step of a walk costs at the most, in bytes, for pacing.
pub(super) const WALK_STEP_BYTES: u64 = (PAGES_PER_STEP * BLOCK_BYTES) as u64;

/// A root's place in the order of a walk.
type Place = (u8, u64);

/// How far a walk has come.
#[derive(Debug, Default)]
pub(crate) struct TreesWalk {
    /// The root it is in.
    root: Place,
    /// The index in it to go on with.
    index: u64,
    /// Leaves that need not be seen again.
    leaves: RoaringTreemap,
}

/// What a walk comes by.
pub(crate) enum Found<'a> {
    /// As in a walk through one tree.
    Visit(Visit<'a>),
    /// A page that cannot be read, with what lies under it.
    Damaged(&'a MapError),
}

fn place_of(root: &Root) -> Place {
    match root.kind {
        RootKind::Table => (0, root.tree.id),
        RootKind::Volume(id) => (1, id),
        RootKind::Snapshot(id) => (2, id),
    }
}

fn leaf_of(pointer: &Pointer) -> u64 {
    // 56 bits of place.
    place(pointer) | u64::from(pointer.entry.generation) << 56
}

impl Engine {
    /// One step; true at the end. `see` answers whether the leaf that it has
    /// been shown something of is to be shown again under other roots.
    pub(super) fn walk_trees(
        &self,
        walk: &mut TreesWalk,
        see: &mut dyn FnMut(&Root, Found<'_>) -> bool,
    ) -> bool {
        let _guard = self.epochs.enter();
        let roots = self.roots();
        let next = roots.all().map(|root| (place_of(&root), root));
        let next = next.filter(|(at, _)| *at >= walk.root);
        let Some((at, root)) = next.min_by_key(|(at, _)| *at) else {
            return true;
        };
        if at > walk.root {
            (walk.root, walk.index) = (at, 0);
        }
        let mut walker = Walker::starting_at(root.tree, walk.index);
        // Leaves of this step; one goes when it is to be seen again.
        let mut seen = RoaringTreemap::new();
        let mut leaf = None;
        let leaves = &walk.leaves;
        let mut enter = |pointer: &Pointer, owner: PageOwner| {
            owner.level > 0 || !leaves.contains(leaf_of(pointer))
        };
        let step = walker.step_if(
            &Pages(&self.reader),
            PAGES_PER_STEP,
            &mut enter,
            &mut |visit| {
                if let Visit::Page { pointer, level, .. } = &visit {
                    leaf = (*level == 0).then(|| leaf_of(pointer));
                    seen.extend(leaf);
                }
                if see(&root, Found::Visit(visit))
                    && let Some(leaf) = leaf
                {
                    seen.remove(leaf);
                }
            },
        );
        walk.leaves |= seen;
        let goes_on = match step {
            Ok(true) => None,
            Ok(false) => walker.position(),
            Err(error) => {
                see(&root, Found::Damaged(&error));
                walker.position()
            }
        };
        match goes_on {
            Some(index) => walk.index = index,
            None => (walk.root, walk.index) = ((at.0, at.1 + 1), 0),
        }
        false
    }
}
