//! Reads the old pages that a merge is about to change, a batch ahead.
//!
//! A merge works depth first, one page at a time. When it misses a page, this
//! looks ahead in the changes for the next leaves they touch and reads those
//! and the pages above them, level by level, each level in one batch. Pages
//! that a fill covers whole are not among them. A page is read once: inner
//! ones stay until the merge has left them, leaves until it has taken them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::merge::{Cursor, Edit};
use super::page::{check_inner, pointer_at};
use super::tree::{to_u64, to_usize};
use super::{MapError, PageBytes, PageSource, Pointer, Tree, read_pages};

/// Leaves read together: half a megabyte, and enough to keep a pool of disks
/// busy.
pub(super) const PREFETCH_LEAVES: usize = 128;

/// Old pages in memory, by level and number.
pub(super) struct Prefetch<'a> {
    tree: Tree,
    source: &'a dyn PageSource,
    pages: BTreeMap<(u8, u64), Arc<PageBytes>>,
    pub(super) pages_read: u64,
}

/// An index that the changes touch, and the lowest level on which its page is
/// not wholly covered by a fill.
struct Probe {
    index: u64,
    level: u8,
}

/// A page on the way down, and the probes under it.
struct Step {
    pointer: Pointer,
    index: u64,
    from: usize,
    to: usize,
}

impl<'a> Prefetch<'a> {
    pub(super) fn new(tree: Tree, source: &'a dyn PageSource) -> Self {
        Self {
            tree,
            source,
            pages: BTreeMap::new(),
            pages_read: 0,
        }
    }

    /// The page that `pointer` names. `ahead` stands at the first change that
    /// touches it.
    pub(super) fn get<'e, I>(
        &mut self,
        pointer: &Pointer,
        level: u8,
        index: u64,
        ahead: &Cursor<'e, I>,
    ) -> Result<Arc<PageBytes>, MapError>
    where
        I: Iterator<Item = Edit<'e>> + Clone,
    {
        if !self.pages.contains_key(&(level, index)) {
            let probes = self.probes(ahead.clone());
            self.read_ahead(&probes)?;
        }
        let page = match level {
            0 => self.pages.remove(&(level, index)),
            _ => self.pages.get(&(level, index)).cloned(),
        };
        match page {
            Some(page) => Ok(page),
            // It failed ahead of time, or was not foreseen.
            None => self.read_one(pointer, level, index),
        }
    }

    /// The merge has left this page.
    pub(super) fn release(&mut self, level: u8, index: u64) {
        self.pages.remove(&(level, index));
    }

    fn read_one(
        &mut self,
        pointer: &Pointer,
        level: u8,
        index: u64,
    ) -> Result<Arc<PageBytes>, MapError> {
        let owner = self.tree.owner(level, index);
        self.pages_read += 1;
        let mut pages = read_pages(self.source, &[*pointer], |_| owner);
        let page = pages.pop().expect("a page source answers every pointer")?;
        if level > 0 {
            check_inner(self.tree.shape, owner, &page)?;
        }
        Ok(page)
    }

    /// Where the next changes touch the tree, in order.
    fn probes<'e, I>(&self, mut ahead: Cursor<'e, I>) -> Vec<Probe>
    where
        I: Iterator<Item = Edit<'e>> + Clone,
    {
        let capacity = self.tree.capacity();
        let per_leaf = to_u64(self.tree.shape.records_per_leaf());
        let mut probes: Vec<Probe> = Vec::new();
        let mut last_leaf = None;
        while let Some(edit) = ahead.peek() {
            if edit.first >= capacity || probes.len() >= PREFETCH_LEAVES {
                break;
            }
            let last = (edit.first + (edit.count - 1)).min(capacity - 1);
            for index in [edit.first, last] {
                let leaf = Some(index / per_leaf);
                if last_leaf == leaf {
                    continue;
                }
                if let Some(level) = self.lowest_touched(edit, index) {
                    probes.push(Probe { index, level });
                    if level == 0 {
                        last_leaf = leaf;
                    }
                }
            }
            ahead.advance_to(last + 1);
        }
        probes
    }

    /// The lowest level on which the page over `index` is not covered whole.
    fn lowest_touched(&self, edit: &Edit<'_>, index: u64) -> Option<u8> {
        (0..self.tree.height).find(|&level| {
            let page = index / self.tree.shape.span(level);
            let (first, end) = self.tree.shape.page_range(level, page);
            !edit.covers(first, end)
        })
    }

    fn read_ahead(&mut self, probes: &[Probe]) -> Result<(), MapError> {
        let shape = self.tree.shape;
        let mut level = self.tree.height;
        let mut steps = vec![Step {
            pointer: self.tree.root,
            index: 0,
            from: 0,
            to: probes.len(),
        }];
        while level > 0 {
            level -= 1;
            steps.retain(|step| {
                let touched = probes[step.from..step.to]
                    .iter()
                    .any(|probe| probe.level <= level);
                step.pointer.is_page() && touched
            });
            self.read_level(level, &steps)?;
            if level == 0 {
                break;
            }
            let span = shape.span(level - 1);
            let mut below = Vec::new();
            for step in &steps {
                let Some(page) = self.pages.get(&(level, step.index)) else {
                    continue;
                };
                let owner = self.tree.owner(level, step.index);
                let (first, _) = shape.page_range(level, step.index);
                let mut from = step.from;
                while from < step.to {
                    let slot = (probes[from].index - first) / span;
                    let same = |probe: &Probe| (probe.index - first) / span == slot;
                    let to = from + probes[from..step.to].partition_point(same);
                    let pointer = pointer_at(shape, owner, page, to_usize(slot))?;
                    let index = step.index * to_u64(shape.pointers_per_page()) + slot;
                    below.push(Step {
                        pointer,
                        index,
                        from,
                        to,
                    });
                    from = to;
                }
            }
            steps = below;
        }
        Ok(())
    }

    fn read_level(&mut self, level: u8, steps: &[Step]) -> Result<(), MapError> {
        let missing: Vec<&Step> = steps
            .iter()
            .filter(|step| !self.pages.contains_key(&(level, step.index)))
            .collect();
        let pointers: Vec<Pointer> = missing.iter().map(|step| step.pointer).collect();
        let owner = |i: usize| self.tree.owner(level, missing[i].index);
        let pages = read_pages(self.source, &pointers, owner);
        self.pages_read += to_u64(pages.len());
        for (step, page) in missing.iter().zip(pages) {
            // A page that fails may turn out not to be needed: it is read again,
            // and reported, when the merge comes to it.
            let Ok(page) = page else { continue };
            if level > 0 {
                check_inner(self.tree.shape, self.tree.owner(level, step.index), &page)?;
            }
            self.pages.insert((level, step.index), page);
        }
        Ok(())
    }
}
