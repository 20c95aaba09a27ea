//! Finding records in the pages of a tree, level by level.
//!
//! All indices of one call descend together, so that a level costs one batch
//! of page reads however many indices there are.

use std::sync::Arc;

use tessera_dedup::Entry;

use super::page::{entry_at, pointer_at, record_at};
use super::tree::{to_u64, to_usize};
use super::{MapError, PageBytes, PageSource, Pointer, Tree, read_pages};

/// Indices that descend together in [`lookup`]: bounds its pages in memory to
/// those of 64 MiB of 4 KiB chunks, twice the longest request.
const LOOKUP_INDICES: usize = 1 << 14;

/// Looks up consecutive entries of a volume. Only slots that are `None` are
/// looked up, and all of them are set; layers that were asked before have
/// filled the others.
///
/// # Panics
/// If the tree is not one of entries.
pub fn lookup(
    tree: &Tree,
    source: &dyn PageSource,
    first: u64,
    out: &mut [Option<Entry>],
) -> Result<(), MapError> {
    assert!(tree.shape.holds_entries(), "only volumes hold entries");
    let mut base = first;
    for out in out.chunks_mut(LOOKUP_INDICES) {
        let indices: Vec<u64> = (base..)
            .zip(out.iter())
            .filter_map(|(index, slot)| slot.is_none().then_some(index))
            .collect();
        descend(tree, source, &indices, |at, found| {
            out[to_usize(indices[at] - base)] = Some(found.entry()?);
            Ok(())
        })?;
        base += to_u64(out.len());
    }
    Ok(())
}

/// Looks up scattered entries of a volume; `out[i]` becomes the entry of
/// `indices[i]`. The indices need no order and may repeat. One batch of reads
/// per level; takes a page of memory for every leaf touched.
///
/// # Panics
/// If the tree is not one of entries or the lengths differ.
pub fn lookup_many(
    tree: &Tree,
    source: &dyn PageSource,
    indices: &[u64],
    out: &mut [Entry],
) -> Result<(), MapError> {
    assert!(tree.shape.holds_entries(), "only volumes hold entries");
    assert_eq!(indices.len(), out.len(), "every index has its slot");
    let mut order: Vec<(u64, usize)> = indices.iter().copied().zip(0..).collect();
    order.sort_unstable();
    let sorted: Vec<u64> = order.iter().map(|&(index, _)| index).collect();
    descend(tree, source, &sorted, |at, found| {
        out[order[at].1] = found.entry()?;
        Ok(())
    })
}

/// Reads one record of a table; `None` when it is absent (all zero).
pub fn lookup_record(
    tree: &Tree,
    source: &dyn PageSource,
    index: u64,
) -> Result<Option<Vec<u8>>, MapError> {
    let mut record = None;
    descend(tree, source, &[index], |_, found| {
        if let Found::Record { work, page, slot } = found {
            let bytes = record_at(work.tree.shape, page, slot);
            record = bytes.iter().any(|&byte| byte != 0).then(|| bytes.to_vec());
        }
        Ok(())
    })?;
    Ok(record)
}

/// A page to look into, and which of the indices lie under it.
struct Work<'a> {
    tree: &'a Tree,
    pointer: Pointer,
    level: u8,
    index: u64,
    from: usize,
    to: usize,
}

/// What a descent ended at.
enum Found<'a> {
    /// No page: the whole subtree is of one kind.
    Absent(Entry),
    /// A slot of a leaf.
    Record {
        work: &'a Work<'a>,
        page: &'a PageBytes,
        slot: usize,
    },
}

impl Found<'_> {
    fn entry(&self) -> Result<Entry, MapError> {
        match self {
            Self::Absent(entry) => Ok(*entry),
            Self::Record { work, page, slot } => {
                entry_at(work.tree.owner(work.level, work.index), page, *slot)
            }
        }
    }
}

/// Calls `found` once for every index, with its place in `indices`, which are
/// in order.
fn descend(
    tree: &Tree,
    source: &dyn PageSource,
    indices: &[u64],
    mut found: impl FnMut(usize, Found<'_>) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let shape = tree.shape;
    let inside = indices.partition_point(|&index| index < tree.capacity());
    for at in inside..indices.len() {
        found(at, Found::Absent(Entry::HOLE))?;
    }
    if inside == 0 {
        return Ok(());
    }
    let root = Work {
        tree,
        pointer: tree.root,
        level: tree.height - 1,
        index: 0,
        from: 0,
        to: inside,
    };
    let mut works = vec![root];
    while let Some(level) = works.first().map(|work| work.level) {
        let mut below = Vec::new();
        // Whatever has no page is known; the rest is read together.
        for work in works.extract_if(.., |work| !work.pointer.is_page()) {
            for at in work.from..work.to {
                found(at, Found::Absent(work.pointer.entry))?;
            }
        }
        for (work, page) in works.iter().zip(read_works(source, &works)) {
            let page = page?;
            let (first, _) = shape.page_range(level, work.index);
            if level == 0 {
                for (at, index) in (work.from..).zip(&indices[work.from..work.to]) {
                    let slot = to_usize(index - first);
                    found(
                        at,
                        Found::Record {
                            work,
                            page: &page,
                            slot,
                        },
                    )?;
                }
                continue;
            }
            let span = shape.span(level - 1);
            let mut from = work.from;
            while from < work.to {
                let slot = (indices[from] - first) / span;
                // Cannot pass the end of the page: saturates only at the top.
                let end = first.saturating_add((slot + 1).saturating_mul(span));
                let to = from + indices[from..work.to].partition_point(|&index| index < end);
                let owner = tree.owner(level, work.index);
                let pointer = pointer_at(shape, owner, &page, to_usize(slot))?;
                let index = work.index * to_u64(shape.pointers_per_page()) + slot;
                below.push(Work {
                    tree,
                    pointer,
                    level: level - 1,
                    index,
                    from,
                    to,
                });
                from = to;
            }
        }
        works = below;
    }
    Ok(())
}

fn read_works(
    source: &dyn PageSource,
    works: &[Work<'_>],
) -> Vec<Result<Arc<PageBytes>, MapError>> {
    let pointers: Vec<Pointer> = works.iter().map(|work| work.pointer).collect();
    read_pages(source, &pointers, |i| {
        works[i].tree.owner(works[i].level, works[i].index)
    })
}
