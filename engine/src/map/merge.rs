//! The checkpoint's work on a tree: changes in, new pages out (R12, step 3).
//!
//! Depth first and in order of index, so children are written before parents
//! and no page twice. Only pages that a change touches are read, and only pages
//! whose content changes are written; everything else is shared with the old
//! tree. In memory: one page per level, plus the batch read ahead.
//!
//! * A fill that covers a subtree replaces its pointer. The subtree's leaves
//!   are read all the same, to count what they stored; nothing else is.
//! * A page of nothing but holes becomes a hole in its parent, a page of
//!   nothing but zeroes a zero pointer, on every level up to the root.
//! * The tree grows when a change other than a hole lies beyond its capacity:
//!   the old root becomes the first child of the new one.
//!
//! A page of a volume that no copy verifies of any more and that has to change
//! is replaced by one that says "lost" for all that is not changed: reads of
//! that are errors, as they were before, and checkpoints go on.
//!
//! When a page cannot be written, or one that is needed cannot be read, the
//! merge fails as a whole. The old tree and the changes are untouched; pages
//! already written are orphans. A leaf is not needed when every record in it
//! changes.

use std::collections::BTreeMap;

use super::page::{
    check_leaf, implied_page, implied_pointer, is_stored, pointer_at, put_pointer, record_at,
};
use super::prefetch::Prefetch;
use super::scan::{Next, Scan};
use super::tree::{to_u64, to_usize};
use super::{
    INDEX_LIMIT, Layer, MAX_HEIGHT, MapError, PAGE_BYTES, PageBytes, PageSink, PageSource, Pointer,
    StoreErrorKind, Tree,
};

/// What merges did; adds up over several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeStats {
    /// Stored records added less those removed. Holes and zeroes do not count.
    pub logical_delta: i64,
    /// Pages given to the sink.
    pub pages_written: u64,
    /// Pages asked of the source.
    pub pages_read: u64,
    /// False when a page that was dropped or replaced whole could not be read,
    /// so that `logical_delta` lacks what it stored.
    pub exact: bool,
    /// Pages that no copy verifies of and that could not stay as they were:
    /// what they held and no change replaced is lost from now on.
    pub pages_lost: u64,
}

impl Default for MergeStats {
    fn default() -> Self {
        Self {
            logical_delta: 0,
            pages_written: 0,
            pages_read: 0,
            exact: true,
            pages_lost: 0,
        }
    }
}

/// Merges a layer into new pages and returns the new tree.
///
/// # Panics
/// If the tree is not one of entries.
pub fn merge(
    tree: &Tree,
    layer: &Layer,
    source: &dyn PageSource,
    sink: &mut dyn PageSink,
    stats: &mut MergeStats,
) -> Result<Tree, MapError> {
    assert!(tree.shape.holds_entries(), "layers belong to volumes");
    Merge::run(tree, layer.edits_from(0), source, sink, stats)
}

/// Drops everything a tree holds without looking at it: the end of a deleted
/// volume. Reads and writes nothing; the caller knows how much was stored.
pub fn merge_dropping(tree: &Tree) -> Tree {
    Tree::empty(tree.id, tree.shape)
}

/// Merges changed records of a table, by ordinal. A record of zeroes becomes
/// absent.
///
/// # Panics
/// If the tree is one of entries, or a record is not `record_bytes` long.
pub fn merge_records(
    tree: &Tree,
    changes: &BTreeMap<u64, Vec<u8>>,
    source: &dyn PageSource,
    sink: &mut dyn PageSink,
    stats: &mut MergeStats,
) -> Result<Tree, MapError> {
    assert!(
        !tree.shape.holds_entries(),
        "volumes are merged from layers"
    );
    let record_bytes = tree.shape.record_bytes;
    let edits = changes.iter().map(|(&first, record)| {
        assert_eq!(
            record.len(),
            record_bytes,
            "a table's records are of one length"
        );
        Edit {
            first,
            count: 1,
            record,
            is_fill: false,
        }
    });
    Merge::run(tree, edits, source, sink, stats)
}

/// A change of one record, or of a range to holes or zeroes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit<'e> {
    pub(super) first: u64,
    pub(super) count: u64,
    /// What every record in it becomes.
    pub(super) record: &'e [u8],
    pub(super) is_fill: bool,
}

impl Edit<'_> {
    pub(super) fn covers(&self, first: u64, end: u64) -> bool {
        self.is_fill && self.first <= first && end - self.first <= self.count
    }

    /// How many subtrees of `span` records, the first at `first`, it covers.
    fn subtrees_covered(&self, first: u64, span: u64) -> u64 {
        if self.is_fill && self.first == first {
            self.count / span
        } else {
            0
        }
    }
}

/// Edits in order, consumed from the front, fills also in part.
#[derive(Clone)]
pub(super) struct Cursor<'e, I> {
    current: Option<Edit<'e>>,
    rest: I,
}

impl<'e, I: Iterator<Item = Edit<'e>>> Cursor<'e, I> {
    fn new(mut rest: I) -> Self {
        Self {
            current: rest.next(),
            rest,
        }
    }

    pub(super) fn peek(&self) -> Option<&Edit<'e>> {
        self.current.as_ref()
    }

    /// The next edit if it begins below `end`, cut there.
    fn peek_below(&self, end: u64) -> Option<Edit<'e>> {
        let edit = self.current.filter(|edit| edit.first < end)?;
        Some(Edit {
            count: edit.count.min(end - edit.first),
            ..edit
        })
    }

    /// True when the next edits change every record of a range.
    fn cover(&self, first: u64, end: u64) -> bool
    where
        I: Clone,
    {
        let mut ahead = self.clone();
        let mut at = first;
        while at < end {
            match ahead.peek() {
                Some(edit) if edit.first == at => at += edit.count,
                Some(_) | None => return false,
            }
            ahead.advance_to(at);
        }
        true
    }

    /// Passes over everything below `index`.
    pub(super) fn advance_to(&mut self, index: u64) {
        while let Some(edit) = &mut self.current {
            if edit.first >= index {
                return;
            }
            let passed = index - edit.first;
            if passed < edit.count {
                edit.first = index;
                edit.count -= passed;
                return;
            }
            self.current = self.rest.next();
        }
    }
}

struct Merge<'a, 'e, I> {
    tree: &'a Tree,
    old: Prefetch<'a>,
    source: &'a dyn PageSource,
    sink: &'a mut dyn PageSink,
    stats: &'a mut MergeStats,
    edits: Cursor<'e, I>,
}

impl<'a, 'e, I: Iterator<Item = Edit<'e>> + Clone> Merge<'a, 'e, I> {
    fn run(
        tree: &'a Tree,
        edits: I,
        source: &'a dyn PageSource,
        sink: &'a mut dyn PageSink,
        stats: &'a mut MergeStats,
    ) -> Result<Tree, MapError> {
        let old = Prefetch::new(*tree, source);
        let edits = Cursor::new(edits);
        let mut merge = Self {
            tree,
            old,
            source,
            sink,
            stats,
            edits,
        };
        let merged = merge.grow();
        merge.stats.pages_read += merge.old.pages_read;
        merged
    }

    /// Merges at the height the tree has, then higher, until no change is left.
    fn grow(&mut self) -> Result<Tree, MapError> {
        let shape = self.tree.shape;
        let mut height = self.tree.height;
        let mut root = self.tree.root;
        loop {
            let capacity = shape.capacity(height);
            // Beyond the capacity everything is a hole already.
            while let Some(edit) = self.edits.peek()
                && edit.first >= capacity
                && edit.is_hole()
            {
                let end = edit.first + edit.count;
                self.edits.advance_to(end);
            }
            let Some(edit) = self.edits.peek() else { break };
            let first = edit.first;
            if first >= INDEX_LIMIT || (first >= capacity && height == MAX_HEIGHT) {
                return Err(MapError::IndexTooLarge {
                    tree: self.tree.id,
                    index: first,
                });
            }
            if first < capacity {
                root = self.node(root, height - 1, 0)?;
                continue;
            }
            height += 1;
            if !root.is_hole() {
                let mut page = implied_page(shape, height - 1, &Pointer::HOLE);
                put_pointer(shape, &mut page, 0, &root);
                root = self.inner(page, height - 1, 0)?;
            }
        }
        let height = if root.is_hole() { 0 } else { height };
        Ok(Tree {
            height,
            root,
            ..*self.tree
        })
    }

    /// Merges the edits that lie under one page, at least one, and returns the
    /// pointer to what became of it.
    fn node(&mut self, old: Pointer, level: u8, index: u64) -> Result<Pointer, MapError> {
        let shape = self.tree.shape;
        let (first, end) = shape.page_range(level, index);
        if let Some(edit) = self.edits.peek()
            && edit.covers(first, end)
        {
            let pointer = edit.covering_pointer();
            self.edits.advance_to(end);
            self.count_dropped(&[(old, index)], level);
            return Ok(pointer);
        }
        if !old.is_page() {
            let page = implied_page(shape, level, &old);
            return match level {
                0 => self.leaf(page, index),
                _ => self.inner(page, level, index),
            };
        }
        let page = match self.old.get(&old, level, index, &self.edits) {
            Ok(page) => page,
            Err(_) if level == 0 && self.edits.cover(first, end) => {
                self.stats.exact = false;
                return self.leaf([0; PAGE_BYTES], index);
            }
            Err(error) if self.is_lost(&error) => {
                // It cannot stay as it is, because some of what is under it
                // changes, and nobody can say what the rest was. To fail here
                // would fail every checkpoint from now on.
                tracing::error!(%error, first, end, "a part of a volume's map is lost");
                self.stats.exact = false;
                self.stats.pages_lost += 1;
                let page = implied_page(shape, level, &Pointer::LOST);
                return match level {
                    0 => self.leaf(page, index),
                    _ => self.inner(page, level, index),
                };
            }
            Err(error) => return Err(error),
        };
        let new = match level {
            0 => {
                check_leaf(shape, self.tree.owner(0, index), &page)?;
                self.edit_leaf(*page, index)
            }
            _ => self.edit_inner(*page, level, index)?,
        };
        self.old.release(level, index);
        if new == *page && !self.sink.leaves(&old) {
            return Ok(old);
        }
        self.finish(&new, level, index)
    }

    /// Tables are not given up: nothing in them can be done without.
    fn is_lost(&self, error: &MapError) -> bool {
        self.tree.shape.holds_entries() && error.store_kind() == Some(StoreErrorKind::Corrupt)
    }

    fn leaf(&mut self, page: PageBytes, index: u64) -> Result<Pointer, MapError> {
        let new = self.edit_leaf(page, index);
        self.finish(&new, 0, index)
    }

    fn inner(&mut self, page: PageBytes, level: u8, index: u64) -> Result<Pointer, MapError> {
        let new = self.edit_inner(page, level, index)?;
        self.finish(&new, level, index)
    }

    fn edit_leaf(&mut self, mut page: PageBytes, index: u64) -> PageBytes {
        let shape = self.tree.shape;
        let (first, end) = shape.page_range(0, index);
        while let Some(edit) = self.edits.peek_below(end) {
            let stored = is_stored(shape, edit.record);
            for at in edit.first..edit.first + edit.count {
                let slot = to_usize(at - first);
                let was_stored = is_stored(shape, record_at(shape, &page, slot));
                self.stats.logical_delta += i64::from(stored) - i64::from(was_stored);
                page[slot * shape.record_bytes..][..shape.record_bytes]
                    .copy_from_slice(edit.record);
            }
            self.edits.advance_to(edit.first + edit.count);
        }
        page
    }

    fn edit_inner(
        &mut self,
        mut page: PageBytes,
        level: u8,
        index: u64,
    ) -> Result<PageBytes, MapError> {
        let shape = self.tree.shape;
        let owner = self.tree.owner(level, index);
        let (first, end) = shape.page_range(level, index);
        let span = shape.span(level - 1);
        while let Some(edit) = self.edits.peek_below(end) {
            let slot = (edit.first - first) / span;
            let child_index = index * to_u64(shape.pointers_per_page()) + slot;
            let covered = edit.subtrees_covered(first + slot * span, span);
            if covered == 0 {
                let child = pointer_at(shape, owner, &page, to_usize(slot))?;
                let new = self.node(child, level - 1, child_index)?;
                put_pointer(shape, &mut page, to_usize(slot), &new);
                continue;
            }
            let mut dropped = Vec::new();
            for i in 0..covered {
                let slot = to_usize(slot + i);
                let child = pointer_at(shape, owner, &page, slot)?;
                dropped.push((child, child_index + i));
                put_pointer(shape, &mut page, slot, &edit.covering_pointer());
            }
            self.edits.advance_to(edit.first + covered * span);
            self.count_dropped(&dropped, level - 1);
        }
        Ok(page)
    }

    /// Writes a page, unless a pointer without a page says the same.
    fn finish(&mut self, page: &PageBytes, level: u8, index: u64) -> Result<Pointer, MapError> {
        if let Some(pointer) = implied_pointer(self.tree.shape, level, page) {
            return Ok(pointer);
        }
        let owner = self.tree.owner(level, index);
        let mut pointer = self
            .sink
            .write(owner, page)
            .map_err(|source| MapError::Write {
                page: owner,
                source,
            })?;
        self.stats.pages_written += 1;
        assert!(pointer.is_page(), "a page sink returns pointers to pages");
        if self.tree.shape.wide_pointers {
            let wide = pointer
                .wide
                .expect("the sink of a wide tree tells the placement");
            assert_eq!(
                wide.generation.low(),
                pointer.entry.generation,
                "generations agree (R9)"
            );
        } else {
            pointer.wide = None;
        }
        Ok(pointer)
    }

    /// Takes what dropped subtrees stored off the count. What is dropped need
    /// not be readable: nobody will miss it.
    fn count_dropped(&mut self, dropped: &[(Pointer, u64)], level: u8) {
        let mut scan = Scan::subtrees(self.tree, dropped, level);
        let mut budget = usize::MAX;
        loop {
            match scan.next(self.source, &mut budget, &mut |_, _| true) {
                Ok(Next::Page { owner, page, .. }) if owner.level == 0 => {
                    let stored = check_leaf(self.tree.shape, owner, &page).unwrap_or(0);
                    let stored = i64::try_from(stored).expect("a leaf has few records");
                    self.stats.logical_delta -= stored;
                }
                Ok(Next::Page { .. } | Next::Absent { .. }) => {}
                Ok(Next::Paused | Next::Done) => break,
                Err(_) => self.stats.exact = false,
            }
        }
        self.stats.pages_read += scan.pages_read;
    }
}
