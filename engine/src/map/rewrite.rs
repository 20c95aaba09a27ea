//! Making trees anew in which what some entries name has moved.
//!
//! Nothing that the trees say of content changes, so a page that several of
//! them share is made anew once, and they share the new one: a memo goes from
//! tree to tree. Pages that nothing in concerns stay as they are, and so do
//! those above them.
//!
//! It is done in bounded steps. What has been made is remembered from step to
//! step ([`Rewritten`]), so a step goes down from the root past what is done.

use std::collections::HashMap;

use tessera_dedup::{ENTRY_BYTES, Entry};

use super::page::{entry_at, pointer_at, put_pointer};
use super::tree::to_u64;
use super::{
    MAX_HEIGHT, MapError, PageBytes, PageOwner, PageSink, PageSource, Pointer, Tree, TreeShape,
    read_pages,
};

/// What has been made anew so far, by what it was. The new pages have to be kept
/// by whoever keeps this: nothing names them yet.
#[derive(Debug, Default)]
pub struct Rewritten {
    memo: HashMap<Entry, Pointer>,
}

/// Pages of leaves read together. Inner ones are read one by one, so that a step
/// always comes down to a leaf.
const BATCH_PAGES: usize = 64;

/// Why it does not go on.
enum Stop {
    Paused,
    Failed(MapError),
}

impl From<MapError> for Stop {
    fn from(error: MapError) -> Self {
        Self::Failed(error)
    }
}

/// One step; see the module's text.
pub struct Rewrite<'a> {
    source: &'a dyn PageSource,
    sink: &'a mut dyn PageSink,
    /// Where the bytes of an entry are now, if they have moved.
    moved: &'a dyn Fn(&Entry) -> Option<Entry>,
    memo: &'a mut HashMap<Entry, Pointer>,
    pages_left: usize,
}

impl<'a> Rewrite<'a> {
    /// For trees of volumes and snapshots. Reads at most `max_pages` pages, and
    /// at least as many as a tree may be high.
    pub fn new(
        source: &'a dyn PageSource,
        sink: &'a mut dyn PageSink,
        moved: &'a dyn Fn(&Entry) -> Option<Entry>,
        made: &'a mut Rewritten,
        max_pages: usize,
    ) -> Self {
        Self {
            source,
            sink,
            moved,
            memo: &mut made.memo,
            pages_left: max_pages.max(usize::from(MAX_HEIGHT) + 1),
        }
    }

    /// The tree as it is to be; the same one where nothing in it has moved.
    /// `None` when the step is over and there is more to do in it.
    ///
    /// # Errors
    /// A page that cannot be read or written. The old tree stays whole.
    ///
    /// # Panics
    /// If the tree is not one of entries.
    pub fn tree(&mut self, tree: &Tree) -> Result<Option<Tree>, MapError> {
        assert!(tree.shape.holds_entries(), "tables name nothing that moves");
        if !tree.root.is_page() {
            return Ok(Some(*tree));
        }
        let top = [(tree.root, tree.height - 1, 0)];
        match self.pages(tree.id, &top) {
            Ok(roots) => Ok(Some(Tree {
                root: roots[0],
                ..*tree
            })),
            Err(Stop::Paused) => Ok(None),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// The pointers to what these pages, given by level and index, become.
    fn pages(&mut self, tree: u64, old: &[(Pointer, u8, u64)]) -> Result<Vec<Pointer>, Stop> {
        let unknown: Vec<(Pointer, u8, u64)> = old
            .iter()
            .filter(|(pointer, ..)| !self.memo.contains_key(&pointer.entry))
            .copied()
            .collect();
        let owner = |(_, level, index): (Pointer, u8, u64)| PageOwner { tree, level, index };
        let mut rest = &unknown[..];
        while let Some((_, level, _)) = rest.first() {
            let most = match level {
                0 => BATCH_PAGES.min(self.pages_left),
                _ => self.pages_left.min(1),
            };
            if most == 0 {
                return Err(Stop::Paused);
            }
            let (part, after) = rest.split_at(most.min(rest.len()));
            rest = after;
            let pointers: Vec<Pointer> = part.iter().map(|(pointer, ..)| *pointer).collect();
            let read = read_pages(self.source, &pointers, |at| owner(part[at]));
            self.pages_left -= part.len();
            for (page, one) in read.into_iter().zip(part) {
                let new = self.page(&*page?, one.0, owner(*one))?;
                self.memo.insert(one.0.entry, new);
            }
        }
        Ok(old
            .iter()
            .map(|(pointer, ..)| self.memo[&pointer.entry])
            .collect())
    }

    fn page(&mut self, page: &PageBytes, old: Pointer, owner: PageOwner) -> Result<Pointer, Stop> {
        let shape = TreeShape::VOLUME;
        let mut new = *page;
        if owner.level == 0 {
            for slot in 0..shape.records_per_leaf() {
                if let Some(entry) = (self.moved)(&entry_at(owner, page, slot)?) {
                    new[slot * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(&entry.encode());
                }
            }
        } else {
            let fanout = shape.pointers_per_page();
            let mut slots = Vec::new();
            let mut below = Vec::new();
            for slot in 0..fanout {
                let child = pointer_at(shape, owner, page, slot)?;
                if child.is_page() {
                    let index = owner.index * to_u64(fanout) + to_u64(slot);
                    slots.push(slot);
                    below.push((child, owner.level - 1, index));
                }
            }
            for (slot, child) in slots.into_iter().zip(self.pages(owner.tree, &below)?) {
                put_pointer(shape, &mut new, slot, &child);
            }
        }
        if new == *page && !self.sink.leaves(&old) {
            return Ok(old);
        }
        let written = self.sink.write(owner, &new);
        let pointer = written.map_err(|source| MapError::Write {
            page: owner,
            source,
        })?;
        Ok(Pointer {
            wide: None,
            ..pointer
        })
    }
}
