//! Visits every page and every stored record of a tree, in steps.

use tessera_dedup::{Entry, EntryKind};

use super::page::{entry_at, is_stored, record_at};
use super::scan::{BATCH_PAGES, Next, Scan};
use super::tree::to_u64;
use super::{MapError, PageOwner, PageSource, Pointer, Tree};

/// What a walk comes across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit<'a> {
    /// A page that was read and makes sense. Parents come before children,
    /// and a leaf before the records in it.
    Page {
        /// The pointer to it.
        pointer: Pointer,
        /// 0 for leaves.
        level: u8,
        /// Number of the page within its level.
        index: u64,
    },
    /// An entry of a volume that names stored bytes. Holes and zeroes are
    /// passed over.
    Entry {
        /// The chunk's index.
        index: u64,
        /// Its entry.
        entry: Entry,
    },
    /// Entries of a volume that are lost: a page that held them was.
    Lost {
        /// The first of them.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A record of a table that is not all zero.
    Record {
        /// The record's ordinal.
        index: u64,
        /// Its bytes.
        bytes: &'a [u8],
    },
}

/// A walk through one tree, in bounded memory, that can rest between steps: the
/// mark pass and `check` are made of it. Trees are immutable, so a walk sees
/// one moment however long it takes, as long as the tree's segments are kept.
pub struct Walker {
    tree: Tree,
    scan: Scan,
}

impl Walker {
    /// A walk from the start.
    pub fn new(tree: Tree) -> Self {
        Self::starting_at(tree, 0)
    }

    /// A walk over what lies at or beyond `index`. Pages above it are visited
    /// again.
    pub fn starting_at(tree: Tree, index: u64) -> Self {
        Self {
            tree,
            scan: Scan::new(&tree, index, u64::MAX),
        }
    }

    /// The tree being walked.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Everything below has been visited; `None` at the end. A cursor to keep
    /// and to give to [`Walker::starting_at`] later. A short step may read
    /// inner pages only, and then it stays.
    pub fn position(&self) -> Option<u64> {
        self.scan.position()
    }

    /// Goes on, reading at most `max_pages` pages (at least one), and says
    /// whether the end was reached.
    ///
    /// An error names a page that cannot be read or makes no sense. Nothing of
    /// that page has been visited. The walk can go on behind it with the next
    /// step.
    pub fn step(
        &mut self,
        source: &dyn PageSource,
        max_pages: usize,
        visit: &mut dyn FnMut(Visit<'_>),
    ) -> Result<bool, MapError> {
        self.step_if(source, max_pages, &mut |_, _| true, visit)
    }

    /// Like [`Walker::step`], but asks before each page is read. A page that
    /// `enter` refuses is not visited, nor is anything under it: pages that
    /// snapshots share need to be walked only once.
    pub fn step_if(
        &mut self,
        source: &dyn PageSource,
        max_pages: usize,
        enter: &mut dyn FnMut(&Pointer, PageOwner) -> bool,
        visit: &mut dyn FnMut(Visit<'_>),
    ) -> Result<bool, MapError> {
        let shape = self.tree.shape;
        let mut budget = max_pages.max(1);
        loop {
            let (pointer, owner, page) = match self.scan.next(source, &mut budget, enter)? {
                Next::Page {
                    pointer,
                    owner,
                    page,
                } => (pointer, owner, page),
                Next::Absent {
                    first,
                    end,
                    pointer,
                } => {
                    if pointer.is_lost() {
                        let count = end - first;
                        visit(Visit::Lost { first, count });
                    }
                    continue;
                }
                Next::Paused => return Ok(false),
                Next::Done => return Ok(true),
            };
            visit(Visit::Page {
                pointer,
                level: owner.level,
                index: owner.index,
            });
            if owner.level > 0 {
                continue;
            }
            let (first, _) = shape.page_range(0, owner.index);
            for slot in 0..shape.records_per_leaf() {
                let index = first + to_u64(slot);
                if shape.holds_entries() {
                    let entry = entry_at(owner, &page, slot)?;
                    if entry.is_stored() {
                        visit(Visit::Entry { index, entry });
                    } else if entry.kind == EntryKind::Lost {
                        visit(Visit::Lost {
                            first: index,
                            count: 1,
                        });
                    }
                } else {
                    let bytes = record_at(shape, &page, slot);
                    if is_stored(shape, bytes) {
                        visit(Visit::Record { index, bytes });
                    }
                }
            }
        }
    }
}

/// Calls `visit` for every record of a table that is not all zero, in order.
/// Stops at the first error, its own or of the pages.
pub fn for_each_record<E: From<MapError>>(
    tree: &Tree,
    source: &dyn PageSource,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut walker = Walker::new(*tree);
    let mut outcome = Ok(());
    loop {
        let done = walker.step(source, BATCH_PAGES, &mut |found| {
            if let Visit::Record { index, bytes } = found
                && outcome.is_ok()
            {
                outcome = visit(index, bytes);
            }
        });
        // What was visited before the bad page comes first.
        std::mem::replace(&mut outcome, Ok(()))?;
        if done? {
            return Ok(());
        }
    }
}
