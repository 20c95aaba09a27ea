//! What can go wrong with a map tree, always naming the page.

use thiserror::Error;

use super::PageOwner;

/// What the page store ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The bytes are there but no reconstruction of them verifies.
    Corrupt,
    /// The bytes cannot be read or written.
    Io,
    /// There is no room for another page.
    NoSpace,
    /// The store has stopped: the pool failed or is closing.
    Stopped,
    /// The segment that held it was freed since the pointer was read.
    Freed,
}

/// An error of a [`PageSource`](super::PageSource) or
/// [`PageSink`](super::PageSink).
#[derive(Debug, Error)]
#[error("{}", match .kind {
    StoreErrorKind::Corrupt => "No copy of the page matches its checksum",
    StoreErrorKind::Io => "Input/output error",
    StoreErrorKind::NoSpace => "The pool is full",
    StoreErrorKind::Stopped => "The pool has stopped",
    StoreErrorKind::Freed => "The page has been freed meanwhile",
})]
pub struct StoreError {
    /// What kind of failure it was.
    pub kind: StoreErrorKind,
    /// What lay beneath it, when something did.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error of its own, with nothing beneath it.
    pub fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// An error caused by another one.
    pub fn caused_by(
        kind: StoreErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }
}

/// What is wrong with the content of a page whose checksum matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Damage {
    /// A leaf of a volume holds something that is no chunk entry.
    #[error("slot {slot} holds no valid entry")]
    Entry {
        /// The record's place in the page.
        slot: usize,
    },
    /// An inner page holds something that is no pointer to a page.
    #[error("slot {slot} holds no valid page pointer")]
    Pointer {
        /// The pointer's place in the page.
        slot: usize,
    },
}

/// Why an operation on a map tree failed.
#[derive(Debug, Error)]
pub enum MapError {
    /// The page matches its checksum but does not make sense: it was written
    /// by a newer version or by a defect.
    #[error("The {page} is damaged: {damage}")]
    Damaged {
        /// Which page.
        page: PageOwner,
        /// What is wrong with it.
        damage: Damage,
    },
    /// The page cannot be read.
    #[error("The {page} cannot be read")]
    Read {
        /// Which page.
        page: PageOwner,
        /// Why.
        source: StoreError,
    },
    /// The page cannot be written.
    #[error("The {page} cannot be written")]
    Write {
        /// Which page.
        page: PageOwner,
        /// Why.
        source: StoreError,
    },
    /// A change lies beyond what a tree of this shape can hold.
    #[error("Index {index} lies beyond the limit of tree {tree}")]
    IndexTooLarge {
        /// The tree's id.
        tree: u64,
        /// The index asked for.
        index: u64,
    },
}

impl MapError {
    /// The page the error is about.
    pub fn page(&self) -> Option<PageOwner> {
        match self {
            Self::Damaged { page, .. } | Self::Read { page, .. } | Self::Write { page, .. } => {
                Some(*page)
            }
            Self::IndexTooLarge { .. } => None,
        }
    }

    /// What the page store said, if it was the store that failed.
    pub fn store_kind(&self) -> Option<StoreErrorKind> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source.kind),
            Self::Damaged { .. } | Self::IndexTooLarge { .. } => None,
        }
    }

    /// True when there was no room for a new page.
    pub fn is_no_space(&self) -> bool {
        self.store_kind() == Some(StoreErrorKind::NoSpace)
    }
}
