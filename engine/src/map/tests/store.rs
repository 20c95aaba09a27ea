//! A page store in memory that counts, and that fails when told to.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_dedup::{Entry, EntryKind, Generation};
use tessera_raid::{LayoutId, SegmentId, SlotIndex};

use crate::map::{
    MapError, PAGE_BYTES, PageBytes, PageOwner, PageSink, PageSource, Pointer, StoreError,
    StoreErrorKind, Tree, Wide,
};

#[derive(Default)]
pub(super) struct Store {
    pages: RefCell<Vec<(PageOwner, Arc<PageBytes>)>>,
    broken: RefCell<BTreeSet<u32>>,
    /// Pages that still fit; unlimited when `None`.
    pub(super) room: Cell<Option<usize>>,
    pub(super) batches: Cell<u64>,
    pub(super) reads: Cell<u64>,
    pub(super) widest_batch: Cell<usize>,
}

impl Store {
    pub(super) fn written(&self) -> u64 {
        u64::try_from(self.pages.borrow().len()).unwrap()
    }

    pub(super) fn forget_counts(&self) {
        self.batches.set(0);
        self.reads.set(0);
        self.widest_batch.set(0);
    }

    pub(super) fn sink(&self) -> Sink<'_> {
        Sink(self)
    }

    /// Reads of this page fail from now on.
    pub(super) fn break_page(&self, pointer: &Pointer) {
        self.broken.borrow_mut().insert(pointer.entry.segment.0);
    }

    /// Replaces bytes of a page, as if its checksum had been made for them.
    pub(super) fn overwrite(&self, pointer: &Pointer, at: usize, bytes: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        let page = &mut pages[Self::number(pointer)].1;
        Arc::make_mut(page)[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The content of a page, uncounted.
    pub(super) fn peek(&self, pointer: &Pointer) -> Arc<PageBytes> {
        Arc::clone(&self.pages.borrow()[Self::number(pointer)].1)
    }

    fn number(pointer: &Pointer) -> usize {
        assert_eq!(pointer.entry.kind, EntryKind::Page);
        usize::try_from(pointer.entry.segment.0).unwrap()
    }

    /// Every page of a tree, found by plain recursion.
    pub(super) fn pages_of(&self, tree: &Tree) -> BTreeMap<PageOwner, Pointer> {
        let mut pages = BTreeMap::new();
        if tree.height > 0 {
            self.collect(tree, tree.root, tree.height - 1, 0, &mut pages);
        }
        pages
    }

    fn collect(
        &self,
        tree: &Tree,
        pointer: Pointer,
        level: u8,
        index: u64,
        pages: &mut BTreeMap<PageOwner, Pointer>,
    ) {
        if !pointer.is_page() {
            return;
        }
        let owner = PageOwner {
            tree: tree.id,
            level,
            index,
        };
        assert_eq!(self.pages.borrow()[Self::number(&pointer)].0, owner);
        pages.insert(owner, pointer);
        if level > 0 {
            let page = self.peek(&pointer);
            for (slot, bytes) in page.chunks(tree.shape.pointer_bytes()).enumerate() {
                let pointer = Pointer::decode(bytes, tree.shape).unwrap();
                let fanout = u64::try_from(tree.shape.pointers_per_page()).unwrap();
                let index = index * fanout + u64::try_from(slot).unwrap();
                self.collect(tree, pointer, level - 1, index, pages);
            }
        }
    }
}

impl PageSource for Store {
    fn read(&self, pointers: &[Pointer]) -> Vec<Result<Arc<PageBytes>, StoreError>> {
        self.batches.set(self.batches.get() + 1);
        self.reads
            .set(self.reads.get() + u64::try_from(pointers.len()).unwrap());
        self.widest_batch
            .set(self.widest_batch.get().max(pointers.len()));
        let read = |pointer: &Pointer| {
            if self.broken.borrow().contains(&pointer.entry.segment.0) {
                return Err(StoreError::new(StoreErrorKind::Corrupt));
            }
            Ok(self.peek(pointer))
        };
        pointers.iter().map(read).collect()
    }
}

/// The writing half, so that one store can be read and written in one merge.
pub(super) struct Sink<'a>(&'a Store);

impl PageSink for Sink<'_> {
    fn write(&mut self, owner: PageOwner, page: &PageBytes) -> Result<Pointer, StoreError> {
        if let Some(room) = self.0.room.get() {
            let left = room
                .checked_sub(1)
                .ok_or(StoreError::new(StoreErrorKind::NoSpace))?;
            self.0.room.set(Some(left));
        }
        let mut pages = self.0.pages.borrow_mut();
        let number = u32::try_from(pages.len()).unwrap();
        pages.push((owner, Arc::new(*page)));
        let generation = Generation(u64::from(number) * 7 + 1);
        Ok(Pointer {
            entry: Entry {
                kind: EntryKind::Page,
                segment: SegmentId(number),
                position: 0,
                stored: u32::try_from(PAGE_BYTES).unwrap(),
                generation: generation.low(),
                checksum: crc32c::crc32c(page),
            },
            wide: Some(Wide {
                layout: LayoutId(3),
                slot: SlotIndex(number),
                generation,
            }),
        })
    }
}

/// The store error kind of a failed operation.
pub(super) fn kind(error: &MapError) -> Option<StoreErrorKind> {
    error.store_kind()
}
