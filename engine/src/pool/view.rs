//! What a volume or a snapshot holds at one moment, apart from changes that
//! are still being made: pages, and layers over them.
//!
//! ```text
//!   volume      active layer          takes writes
//!   - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
//!   view        layer n               the newest that was rotated
//!               ...                   shared with snapshots and clones
//!               layer 1
//!               pages                 of the last checkpoint that folded
//! ```
//! * A view never changes its content. A checkpoint replaces the layers that it
//!   has folded and the pages under them by new pages that say the same.
//! * A layer lies upon one view for as long as it lives, whoever shares it: so
//!   what it comes to is known by the layer alone ([`Folds`]).
//! * Copying a view copies one tree and a few pointers. That is all that a
//!   snapshot, a clone or a rollback does to maps.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tessera_dedup::Entry;

use crate::map::{self, Layer, MapError, MergeStats, PageSink, PageSource, Tree};

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The pages.
    pub(crate) tree: Tree,
    /// Stored entries of `tree`.
    pub(crate) stored_chunks: u64,
    /// Oldest first.
    pub(crate) layers: Vec<Arc<Layer>>,
}

impl View {
    /// Pages alone.
    pub(crate) fn of_pages(tree: Tree, stored_chunks: u64) -> Self {
        Self {
            tree,
            stored_chunks,
            layers: Vec::new(),
        }
    }

    /// The same content under another owner.
    pub(crate) fn for_owner(&self, id: u64) -> Self {
        Self {
            tree: Tree { id, ..self.tree },
            ..self.clone()
        }
    }

    /// The layers, newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().rev().map(|layer| &**layer)
    }

    /// Fills the slots that are still `None` as far as layers know them.
    pub(crate) fn lookup(&self, first: u64, out: &mut [Option<Entry>]) {
        for layer in self.newest_first() {
            layer.lookup(first, out);
        }
    }

    /// Puts pages in the place of layers that have been folded; what is not
    /// needed any more goes to `dropped`, to be freed outside of locks.
    pub(crate) fn settle(&mut self, folds: &Folds, dropped: &mut Vec<Arc<Layer>>) {
        let known = |layer: &Arc<Layer>| folds.done.get(&key(layer)).copied();
        let newest = (0..self.layers.len())
            .rev()
            .find_map(|at| Some((at, known(&self.layers[at])?)));
        if let Some((at, (tree, stored_chunks))) = newest {
            self.tree = Tree {
                id: self.tree.id,
                ..tree
            };
            self.stored_chunks = stored_chunks;
            dropped.extend(self.layers.drain(..=at));
        }
    }
}

/// Names a layer for as long as somebody holds it: its address.
type Key = usize;

fn key(layer: &Arc<Layer>) -> Key {
    Arc::as_ptr(layer).addr()
}

/// What a checkpoint has made of layers: each is merged once, however many
/// views lie over it.
#[derive(Debug, Default)]
pub(crate) struct Folds {
    /// Pages that hold a layer and everything under it, and what they store.
    done: HashMap<Key, (Tree, u64)>,
    /// Layers at which a view ends. Others are merged together with the ones
    /// above: nobody asks for the state between.
    ends: HashSet<Key>,
}

impl Folds {
    /// For these views, which the caller keeps until it has settled them.
    pub(crate) fn of<'a>(views: impl Iterator<Item = &'a View>) -> Self {
        let ends = views.filter_map(|view| view.layers.last()).map(key);
        Self {
            done: HashMap::new(),
            ends: ends.collect(),
        }
    }

    /// Merges a view's layers into pages, as far as that has not been done.
    pub(crate) fn fold(
        &mut self,
        view: &View,
        source: &dyn PageSource,
        sink: &mut dyn PageSink,
    ) -> Result<(Tree, u64), MapError> {
        let mut base = (view.tree, view.stored_chunks);
        let mut waiting: Option<Arc<Layer>> = None;
        for layer in &view.layers {
            if let Some((tree, stored)) = self.done.get(&key(layer)) {
                base = (*tree, *stored);
                waiting = None;
                continue;
            }
            let merged = match waiting.take() {
                None => Arc::clone(layer),
                Some(older) => {
                    let mut both = Arc::try_unwrap(older).unwrap_or_else(|layer| (*layer).clone());
                    both.absorb(layer);
                    Arc::new(both)
                }
            };
            if !self.ends.contains(&key(layer)) {
                waiting = Some(merged);
                continue;
            }
            base = merge(base, view.tree.id, &merged, source, sink)?;
            self.done.insert(key(layer), base);
        }
        if let Some(rest) = waiting {
            base = merge(base, view.tree.id, &rest, source, sink)?;
        }
        let (tree, stored) = base;
        let id = view.tree.id;
        Ok((Tree { id, ..tree }, stored))
    }
}

fn merge(
    (tree, stored): (Tree, u64),
    id: u64,
    layer: &Layer,
    source: &dyn PageSource,
    sink: &mut dyn PageSink,
) -> Result<(Tree, u64), MapError> {
    let mut stats = MergeStats::default();
    let tree = Tree { id, ..tree };
    let tree = map::merge(&tree, layer, source, sink, &mut stats)?;
    Ok((tree, stored.saturating_add_signed(stats.logical_delta)))
}
