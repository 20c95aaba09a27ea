//! Reads the pages under a tree in order, in bounded memory, a batch at a time.
//!
//! A stack holds the pages still to come, the next one on top. When the top has
//! not been read, it is read together with the nearest unread pages below it;
//! an inner page that has been read is replaced by its children. So pages come
//! in order (parents before children, lower indices first) while reads go out
//! in batches. At most 256 pages wait per level.

use std::sync::Arc;

use super::page::{check_leaf, pointer_at};
use super::tree::to_u64;
use super::{MapError, PageBytes, PageOwner, PageSource, Pointer, Tree, TreeShape, read_pages};

/// Pages read together.
pub(super) const BATCH_PAGES: usize = 64;

/// What comes next in a scan.
pub(super) enum Next {
    /// A page. Its content has been checked; the children of an inner page
    /// come later by themselves.
    Page {
        pointer: Pointer,
        owner: PageOwner,
        page: Arc<PageBytes>,
    },
    /// A subtree without pages: lost ones, and others when asked for.
    Absent {
        first: u64,
        end: u64,
        pointer: Pointer,
    },
    /// The budget is used up; there is more.
    Paused,
    /// There is nothing more.
    Done,
}

enum State {
    Waiting,
    Refused,
    Read(Result<Arc<PageBytes>, MapError>),
}

struct Item {
    pointer: Pointer,
    level: u8,
    index: u64,
    state: State,
}

/// A scan under way.
pub(super) struct Scan {
    tree: u64,
    shape: TreeShape,
    stack: Vec<Item>,
    from: u64,
    to: u64,
    with_absent: bool,
    batch: usize,
    /// Pages read so far, failed ones included.
    pub(super) pages_read: u64,
}

impl Scan {
    /// Scans the records `from..to` of a tree.
    pub(super) fn new(tree: &Tree, from: u64, to: u64) -> Self {
        Self::begin(tree, from, to, false, BATCH_PAGES)
    }

    /// Scans `from..to` and reports subtrees without pages as well. Begins with
    /// small batches that grow, for callers that may stop soon.
    pub(super) fn with_absent(tree: &Tree, from: u64, to: u64) -> Self {
        Self::begin(tree, from, to, true, 2)
    }

    fn begin(tree: &Tree, from: u64, to: u64, with_absent: bool, batch: usize) -> Self {
        let mut scan = Self {
            tree: tree.id,
            shape: tree.shape,
            stack: Vec::new(),
            from,
            to,
            with_absent,
            batch,
            pages_read: 0,
        };
        if let Some(level) = tree.height.checked_sub(1) {
            scan.push(tree.root, level, 0);
        }
        scan
    }

    /// Scans what lies under pages of one level, which come in order with their
    /// numbers.
    pub(super) fn subtrees(tree: &Tree, pages: &[(Pointer, u64)], level: u8) -> Self {
        let mut scan = Self::new(tree, 0, u64::MAX);
        scan.stack.clear();
        for (pointer, index) in pages.iter().rev() {
            scan.push(*pointer, level, *index);
        }
        scan
    }

    /// Passes over everything below `from`.
    pub(super) fn seek(&mut self, from: u64) {
        self.from = self.from.max(from);
    }

    /// The lowest index not yet passed; `None` at the end.
    pub(super) fn position(&self) -> Option<u64> {
        let top = self.stack.iter().rev().find(|item| self.overlaps(item))?;
        Some(self.shape.page_range(top.level, top.index).0.max(self.from))
    }

    fn overlaps(&self, item: &Item) -> bool {
        let (first, end) = self.shape.page_range(item.level, item.index);
        first < self.to && end > self.from
    }

    fn push(&mut self, pointer: Pointer, level: u8, index: u64) {
        if pointer.is_page() || pointer.is_lost() || self.with_absent {
            self.stack.push(Item {
                pointer,
                level,
                index,
                state: State::Waiting,
            });
        }
    }

    /// The next page or absent subtree. Reads at most `budget` pages and takes
    /// them off it. Before a page is read, `enter` may refuse it, and with it
    /// all that lies under it. After an error the scan goes on behind the page
    /// that the error names.
    pub(super) fn next(
        &mut self,
        source: &dyn PageSource,
        budget: &mut usize,
        enter: &mut dyn FnMut(&Pointer, PageOwner) -> bool,
    ) -> Result<Next, MapError> {
        loop {
            let Some(item) = self.stack.pop() else {
                return Ok(Next::Done);
            };
            if !self.overlaps(&item) || matches!(item.state, State::Refused) {
                continue;
            }
            if !item.pointer.is_page() {
                let (first, end) = self.shape.page_range(item.level, item.index);
                return Ok(Next::Absent {
                    first,
                    end,
                    pointer: item.pointer,
                });
            }
            let owner = PageOwner {
                tree: self.tree,
                level: item.level,
                index: item.index,
            };
            match item.state {
                State::Read(page) => {
                    let page = page?;
                    if item.level == 0 {
                        check_leaf(self.shape, owner, &page)?;
                    } else {
                        self.expand(owner, &page)?;
                    }
                    return Ok(Next::Page {
                        pointer: item.pointer,
                        owner,
                        page,
                    });
                }
                State::Waiting | State::Refused => {
                    self.stack.push(item);
                    if *budget == 0 {
                        return Ok(Next::Paused);
                    }
                    self.read_batch(source, budget, enter);
                }
            }
        }
    }

    /// Puts the children of an inner page on the stack, the first on top.
    fn expand(&mut self, owner: PageOwner, page: &PageBytes) -> Result<(), MapError> {
        let fanout = self.shape.pointers_per_page();
        let below = self.stack.len();
        for slot in (0..fanout).rev() {
            match pointer_at(self.shape, owner, page, slot) {
                Ok(pointer) => {
                    let index = owner.index * to_u64(fanout) + to_u64(slot);
                    self.push(pointer, owner.level - 1, index);
                }
                Err(error) => {
                    self.stack.truncate(below);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn read_batch(
        &mut self,
        source: &dyn PageSource,
        budget: &mut usize,
        enter: &mut dyn FnMut(&Pointer, PageOwner) -> bool,
    ) {
        let most = self.batch.min(*budget);
        let mut places = Vec::with_capacity(most);
        for place in (0..self.stack.len()).rev() {
            if places.len() == most {
                break;
            }
            let item = &self.stack[place];
            let waits = matches!(item.state, State::Waiting) && item.pointer.is_page();
            if !waits || !self.overlaps(item) {
                continue;
            }
            let owner = PageOwner {
                tree: self.tree,
                level: item.level,
                index: item.index,
            };
            if enter(&item.pointer, owner) {
                places.push(place);
            } else {
                self.stack[place].state = State::Refused;
            }
        }
        let pointers: Vec<Pointer> = places.iter().map(|&at| self.stack[at].pointer).collect();
        let pages = read_pages(source, &pointers, |i| {
            let item = &self.stack[places[i]];
            PageOwner {
                tree: self.tree,
                level: item.level,
                index: item.index,
            }
        });
        *budget -= pages.len();
        self.pages_read += to_u64(pages.len());
        if pages.len() == self.batch {
            self.batch = (self.batch * 2).min(BATCH_PAGES);
        }
        for (place, page) in places.into_iter().zip(pages) {
            self.stack[place].state = State::Read(page);
        }
    }
}
