//! Map trees: from a chunk's index in a volume to the place of its bytes.
//!
//! ```text
//!   reads ask, newest first            checkpoint
//!   +--------------+
//!   | active layer |  <- writes
//!   +--------------+
//!   | frozen layer |  ----------- merge -----------+
//!   +--------------+                               v
//!   | pages of the last checkpoint |   new pages, sharing the old
//!   +------------------------------+
//! ```
//!
//! * Pages are immutable. [`merge`] writes new ones beside the old, children
//!   before parents, and returns a new [`Tree`] value; the old value stays
//!   readable for as long as somebody keeps its segments.
//! * A [`Layer`] holds changes in memory. It never needs a page, so a write
//!   never waits for one.
//! * Everything here is data structure: no threads, no clocks, no devices.
//!   Pages come from a [`PageSource`] and go to a [`PageSink`] (R24).
//! * A tree read from disk is never trusted for its depth or its kinds: the
//!   height is bounded by [`MAX_HEIGHT`] and every entry is decoded strictly.
//!   What does not decode is [`MapError::Damaged`], naming the page.
//!
//! The same pages and the same code carry volumes (16-byte entries) and tables
//! of fixed records (segment table, catalogue). The layout of a page is drawn
//! in `docs/format/map.md`.

mod diff;
mod error;
mod layer;
mod lookup;
mod merge;
mod page;
mod points;
mod prefetch;
mod rewrite;
mod runs;
mod scan;
mod tree;
mod walker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use diff::{Differences, Only, differences, exchanges};
pub use error::{Damage, MapError, StoreError, StoreErrorKind};
pub use layer::{Change, Changes, Layer};
pub use lookup::{lookup, lookup_many, lookup_record};
pub use merge::{MergeStats, merge, merge_dropping, merge_records};
pub use page::{POINTER_BYTES, Pointer, WIDE_POINTER_BYTES, Wide};
pub use rewrite::{Rewrite, Rewritten};
pub use runs::{Run, RunKind, runs};
pub use tree::{INDEX_LIMIT, MAX_HEIGHT, PageOwner, TREE_BYTES, Tree, TreeShape};
pub use walker::{Visit, Walker, for_each_record};

/// Bytes of a map page.
pub const PAGE_BYTES: usize = 4096;

/// The bytes of one map page.
pub type PageBytes = [u8; PAGE_BYTES];

/// Where the pages of a checkpoint are read.
pub trait PageSource {
    /// Reads the pages that `pointers` name, as one batch: the implementer
    /// submits them together. The answer has one result per pointer, in the
    /// same order. Bytes that do not match the pointer's checksum are never
    /// returned; they are an error of kind [`StoreErrorKind::Corrupt`] once
    /// every reconstruction has been tried.
    fn read(&self, pointers: &[Pointer]) -> Vec<Result<Arc<PageBytes>, StoreError>>;
}

/// Where new pages go.
pub trait PageSink {
    /// True for pages that are to be written anew although nothing in them
    /// changes, when a merge comes across them.
    fn leaves(&self, _page: &Pointer) -> bool {
        false
    }

    /// Appends a page and returns the pointer to it. The page need not be
    /// durable when this returns; the caller of a merge syncs before it
    /// publishes the new root (R12). For trees with wide pointers the answer
    /// carries the placement, and its generation agrees with the entry's.
    fn write(&mut self, owner: PageOwner, page: &PageBytes) -> Result<Pointer, StoreError>;
}

/// Reads pages for `owners` and names the owner in each error.
fn read_pages(
    source: &dyn PageSource,
    pointers: &[Pointer],
    owner: impl Fn(usize) -> PageOwner,
) -> Vec<Result<Arc<PageBytes>, MapError>> {
    if pointers.is_empty() {
        return Vec::new();
    }
    let pages = source.read(pointers);
    assert_eq!(
        pages.len(),
        pointers.len(),
        "a page source answers every pointer"
    );
    pages
        .into_iter()
        .enumerate()
        .map(|(i, page)| {
            page.map_err(|source| MapError::Read {
                page: owner(i),
                source,
            })
        })
        .collect()
}
