//! Where two trees may differ: walking both at once, passing over what they
//! share.
//!
//! A subtree to which both have the same pointer holds the same, whatever it
//! holds, and is not looked into: so the cost is in pages that were written
//! since the trees were one, and not in the size of either. Entries are
//! compared by what they name. The same bytes stored twice are told as a
//! difference; holes and zeroes read alike and are none.
//!
//! Trees of different heights are compared as if the lower one had grown: its
//! root then is the first child of pages above it that have no other.

use std::{ops::Range, sync::Arc};

use tessera_dedup::{Entry, EntryKind};

use super::{
    INDEX_LIMIT, MapError, PageBytes, PageOwner, PageSource, Pointer, Tree, TreeShape,
    page::{entry_at, pointer_at},
    read_pages,
    tree::to_u64,
};

/// Pairs of leaves read together.
const BATCH_PAIRS: usize = 32;

/// What was found, and how far the search came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differences {
    /// In order, apart from each other, none empty.
    pub ranges: Vec<Range<u64>>,
    /// Everything below has been compared, from the start of the search on.
    pub end: u64,
}

/// Looks for differences in `first..end`, until there are `max_ranges` or about
/// `max_pages` pages have been read. Comes at least one leaf further with each
/// call.
///
/// # Errors
/// A page that cannot be read or makes no sense.
///
/// # Panics
/// If a tree is not one of entries.
pub fn differences(
    (one, two): (&Tree, &Tree),
    source: &dyn PageSource,
    range: Range<u64>,
    max_ranges: usize,
    max_pages: usize,
) -> Result<Differences, MapError> {
    assert!(one.shape.holds_entries() && two.shape.holds_entries());
    let mut search = Search {
        trees: [one.id, two.id],
        source,
        first: range.start,
        end: range.end,
        stack: stack_of(one, two),
        ranges: Vec::new(),
        max_ranges: max_ranges.max(1),
        pages_left: max_pages,
        see: None,
    };
    let end = search.run()?;
    Ok(Differences {
        ranges: search.ranges,
        end,
    })
}

/// What one of two trees has and the other has not, at least at that place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// A page. Some may be told twice.
    Page(Pointer),
    /// An entry that names stored bytes.
    Entry(Entry),
}

/// Tells what the first tree has otherwise than the second (`false`) and the
/// second otherwise than the first (`true`), from `first` on, until about
/// `max_pages` pages have been read. Says where to go on (`None` at the end), and
/// how many pages were read.
///
/// # Errors
/// A page that cannot be read or makes no sense; it cannot be gone on with.
///
/// # Panics
/// If a tree is not one of entries.
pub fn exchanges(
    (one, two): (&Tree, &Tree),
    source: &dyn PageSource,
    first: u64,
    max_pages: usize,
    see: &mut dyn FnMut(bool, Only),
) -> Result<(Option<u64>, usize), MapError> {
    assert!(one.shape.holds_entries() && two.shape.holds_entries());
    let mut search = Search {
        trees: [one.id, two.id],
        source,
        first,
        end: INDEX_LIMIT,
        stack: stack_of(one, two),
        ranges: Vec::new(),
        max_ranges: 0,
        pages_left: max_pages,
        see: Some(see),
    };
    let end = search.run()?;
    let read = max_pages - search.pages_left;
    Ok(((end < INDEX_LIMIT).then_some(end), read))
}

/// The pair of roots.
fn stack_of(one: &Tree, two: &Tree) -> Vec<Pair> {
    let height = one.height.max(two.height);
    let side = |tree: &Tree| Side {
        pointer: tree.root,
        level: tree.height.saturating_sub(1),
    };
    let roots = height.checked_sub(1).map(|level| Pair {
        sides: [side(one), side(two)],
        level,
        index: 0,
    });
    roots.into_iter().collect()
}

/// What one tree has at a place.
#[derive(Debug, Clone, Copy)]
struct Side {
    pointer: Pointer,
    /// Of the page that it names; below the pair's where the tree is lower.
    level: u8,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    sides: [Side; 2],
    level: u8,
    index: u64,
}

impl Pair {
    fn range(&self) -> (u64, u64) {
        TreeShape::VOLUME.page_range(self.level, self.index)
    }

    /// True when both are surely the same.
    fn is_same(&self) -> bool {
        let [one, two] = self.sides;
        match (one.pointer.is_page(), two.pointer.is_page()) {
            (true, true) => one.level == two.level && one.pointer == two.pointer,
            (false, false) => same(one.pointer.entry, two.pointer.entry),
            _ => false,
        }
    }

    fn has_page(&self, side: usize) -> bool {
        let Side { pointer, level } = self.sides[side];
        pointer.is_page() && level == self.level
    }
}

fn same(one: Entry, two: Entry) -> bool {
    let zero = |entry: Entry| matches!(entry.kind, EntryKind::Hole | EntryKind::Zero);
    one == two || zero(one) && zero(two)
}

struct Search<'a> {
    trees: [u64; 2],
    source: &'a dyn PageSource,
    first: u64,
    end: u64,
    /// What is left to compare, the next on top.
    stack: Vec<Pair>,
    ranges: Vec<Range<u64>>,
    max_ranges: usize,
    pages_left: usize,
    /// Is told of single pages and entries; then no ranges are made.
    see: Option<&'a mut dyn FnMut(bool, Only)>,
}

/// A pair of pages, where there are any.
type Pages = [Option<Arc<PageBytes>>; 2];

impl Search<'_> {
    /// Returns up to where everything has been compared.
    fn run(&mut self) -> Result<u64, MapError> {
        while let Some(pair) = self.stack.pop() {
            let (first, end) = pair.range();
            if end <= self.first || pair.is_same() {
                continue;
            }
            if first >= self.end {
                break;
            }
            if self.pages_left == 0 && first > self.first {
                return Ok(first);
            }
            let absent = pair.sides.iter().all(|side| !side.pointer.is_page());
            if absent {
                // One of them is lost.
                if self.see.is_none()
                    && let Err(at) = self.found(first, end)
                {
                    return Ok(at);
                }
            } else if pair.level > 0 {
                let [pages] = &self.read(&[pair])?[..] else {
                    unreachable!("one answer for one pair");
                };
                self.expand(&pair, pages)?;
            } else {
                let mut pairs = vec![pair];
                while pairs.len() < BATCH_PAIRS
                    && let Some(next) = self.stack.pop_if(|next| next.level == 0)
                {
                    if next.range().0 < self.end && !next.is_same() {
                        pairs.push(next);
                    }
                }
                for (pair, pages) in pairs.iter().zip(self.read(&pairs)?) {
                    if let Err(at) = self.leaves(pair, &pages)? {
                        return Ok(at);
                    }
                }
            }
        }
        Ok(self.end)
    }

    fn owner(&self, pair: &Pair, side: usize) -> PageOwner {
        PageOwner {
            tree: self.trees[side],
            level: pair.level,
            index: pair.index,
        }
    }

    fn read(&mut self, pairs: &[Pair]) -> Result<Vec<Pages>, MapError> {
        let wanted: Vec<(usize, usize)> = (0..pairs.len())
            .flat_map(|at| [(at, 0), (at, 1)])
            .filter(|(at, side)| pairs[*at].has_page(*side))
            .collect();
        let pointer = |(at, side): &(usize, usize)| pairs[*at].sides[*side].pointer;
        let pointers: Vec<Pointer> = wanted.iter().map(pointer).collect();
        let read = read_pages(self.source, &pointers, |i| {
            let (at, side) = wanted[i];
            self.owner(&pairs[at], side)
        });
        self.pages_left = self.pages_left.saturating_sub(pointers.len());
        let mut pages: Vec<Pages> = vec![[None, None]; pairs.len()];
        for ((at, side), page) in wanted.into_iter().zip(read) {
            pages[at][side] = Some(page?);
            // Those that begin before were told of by the search before.
            if let Some(see) = &mut self.see
                && pairs[at].range().0 >= self.first
            {
                see(side == 1, Only::Page(pairs[at].sides[side].pointer));
            }
        }
        Ok(pages)
    }

    /// Puts the pairs under a pair of inner pages on the stack, the first on
    /// top.
    fn expand(&mut self, pair: &Pair, pages: &Pages) -> Result<(), MapError> {
        let shape = TreeShape::VOLUME;
        let fanout = shape.pointers_per_page();
        let level = pair.level - 1;
        for slot in (0..fanout).rev() {
            let child = |side: usize| match &pages[side] {
                Some(page) => {
                    let pointer = pointer_at(shape, self.owner(pair, side), page, slot)?;
                    Ok(Side { pointer, level })
                }
                None => {
                    let own = pair.sides[side];
                    let under_it = !own.pointer.is_page() || slot == 0;
                    Ok(match under_it {
                        true => own,
                        false => Side {
                            pointer: Pointer::HOLE,
                            level,
                        },
                    })
                }
            };
            let below = Pair {
                sides: [child(0)?, child(1)?],
                level,
                index: pair.index * to_u64(fanout) + to_u64(slot),
            };
            if !below.is_same() {
                self.stack.push(below);
            }
        }
        Ok(())
    }

    /// `Ok(Err(at))` when there is no room for what begins at `at`.
    fn leaves(&mut self, pair: &Pair, pages: &Pages) -> Result<Result<(), u64>, MapError> {
        let (first, _) = pair.range();
        for slot in 0..TreeShape::VOLUME.records_per_leaf() {
            let entry = |side: usize| match &pages[side] {
                Some(page) => entry_at(self.owner(pair, side), page, slot),
                None => Ok(pair.sides[side].pointer.entry),
            };
            let index = first + to_u64(slot);
            let (one, two) = (entry(0)?, entry(1)?);
            if same(one, two) {
                continue;
            }
            if let Some(see) = &mut self.see {
                for (is_second, entry) in [(false, one), (true, two)] {
                    if entry.is_stored() {
                        see(is_second, Only::Entry(entry));
                    }
                }
            } else if let Err(at) = self.found(index, index + 1) {
                return Ok(Err(at));
            }
        }
        Ok(Ok(()))
    }

    /// `Err` with where it begins when there is no room for it.
    fn found(&mut self, first: u64, end: u64) -> Result<(), u64> {
        let (first, end) = (first.max(self.first), end.min(self.end));
        if first >= end {
            return Ok(());
        }
        let full = self.ranges.len() >= self.max_ranges;
        match self.ranges.last_mut() {
            Some(last) if last.end == first => last.end = end,
            _ if full => return Err(first),
            _ => self.ranges.push(first..end),
        }
        Ok(())
    }
}
