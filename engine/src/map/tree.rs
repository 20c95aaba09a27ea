//! A tree as a plain value: its shape, its height and its root pointer.

use std::fmt;

use tessera_dedup::ENTRY_BYTES;

use super::page::{POINTER_BYTES, WIDE_POINTER_BYTES};
use super::{PAGE_BYTES, Pointer};

/// No tree is higher: 256^8 entries are more than an index can number. Bounds
/// every descent into pages that came from disk.
pub const MAX_HEIGHT: u8 = 8;

/// Indices are below this. A volume of 8 EiB in 4 KiB chunks needs 2^51; the
/// distance to 2^64 keeps all sums of index and count from wrapping.
pub const INDEX_LIMIT: u64 = 1 << 56;

/// Bytes of an encoded [`Tree`].
pub const TREE_BYTES: usize = 48;

/// What the pages of a tree look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TreeShape {
    /// Bytes of a leaf's record: a power of two from 16 to 2048. 16 means that
    /// the records are entries, as in a volume.
    pub record_bytes: usize,
    /// Pointers carry the placement of the page's segment, so that the tree can
    /// be read before any segment table is known.
    pub wide_pointers: bool,
}

impl TreeShape {
    /// Volumes: entries.
    pub const VOLUME: Self = Self {
        record_bytes: ENTRY_BYTES,
        wide_pointers: false,
    };
    /// The segment table, which must be readable without itself.
    pub const SEGMENT_TABLE: Self = Self {
        record_bytes: 64,
        wide_pointers: true,
    };
    /// The catalogue of volumes.
    pub const CATALOGUE: Self = Self {
        record_bytes: 256,
        wide_pointers: false,
    };

    /// The table of snapshots.
    pub const SNAPSHOTS: Self = Self {
        record_bytes: 256,
        wide_pointers: false,
    };

    /// The table of jobs.
    pub const JOBS: Self = Self {
        record_bytes: 2048,
        wide_pointers: false,
    };

    /// True for the shapes that the code can handle.
    pub fn is_valid(self) -> bool {
        self.record_bytes.is_power_of_two() && (ENTRY_BYTES..=2048).contains(&self.record_bytes)
    }

    /// True when leaves hold entries (volumes), false for tables of records.
    pub fn holds_entries(self) -> bool {
        self.record_bytes == ENTRY_BYTES
    }

    /// Records in a leaf.
    pub fn records_per_leaf(self) -> usize {
        PAGE_BYTES / self.record_bytes
    }

    /// Bytes of a pointer in an inner page.
    pub fn pointer_bytes(self) -> usize {
        if self.wide_pointers {
            WIDE_POINTER_BYTES
        } else {
            POINTER_BYTES
        }
    }

    /// Pointers in an inner page.
    pub fn pointers_per_page(self) -> usize {
        PAGE_BYTES / self.pointer_bytes()
    }

    /// Records that a tree of this height can hold; `u64::MAX` for more.
    pub fn capacity(self, height: u8) -> u64 {
        if height == 0 {
            return 0;
        }
        let fanout = to_u64(self.pointers_per_page());
        (1..height).fold(to_u64(self.records_per_leaf()), |span, _| {
            span.saturating_mul(fanout)
        })
    }

    /// Records under one page of this level (0: leaves).
    pub(super) fn span(self, level: u8) -> u64 {
        self.capacity(level + 1)
    }

    /// First record under a page.
    pub fn first_record(self, level: u8, index: u64) -> u64 {
        self.page_range(level, index).0
    }

    /// First record under a page, and the first one beyond it.
    pub(super) fn page_range(self, level: u8, index: u64) -> (u64, u64) {
        let span = self.span(level);
        let first = index.saturating_mul(span);
        (first, first.saturating_add(span))
    }
}

/// Which page of which tree: what it was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageOwner {
    /// The tree's id.
    pub tree: u64,
    /// 0 for leaves.
    pub level: u8,
    /// Number of the page within its level.
    pub index: u64,
}

impl fmt::Display for PageOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "map page {} on level {} of tree {}",
            self.index, self.level, self.tree
        )
    }
}

/// A tree at one moment. Copying it is taking a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    /// Never reused within a pool.
    pub id: u64,
    /// What its pages look like.
    pub shape: TreeShape,
    /// 0: empty; 1: the root is a leaf; at most [`MAX_HEIGHT`].
    pub height: u8,
    /// Points to the page on level `height - 1`. A hole exactly when the
    /// height is 0; a zero pointer when everything within the height is zero.
    pub root: Pointer,
}

impl Tree {
    /// A tree without records.
    ///
    /// # Panics
    /// If the shape is not valid.
    pub fn empty(id: u64, shape: TreeShape) -> Self {
        assert!(shape.is_valid(), "a tree has a valid shape");
        Self {
            id,
            shape,
            height: 0,
            root: Pointer::HOLE,
        }
    }

    /// True when there is no record in it.
    pub fn is_empty(&self) -> bool {
        self.height == 0
    }

    /// Records that fit without growing; everything beyond is a hole.
    pub fn capacity(&self) -> u64 {
        self.shape.capacity(self.height)
    }

    pub(super) fn owner(&self, level: u8, index: u64) -> PageOwner {
        PageOwner {
            tree: self.id,
            level,
            index,
        }
    }

    /// The bytes as they are stored in the catalogue and in the root page. No
    /// checksum: they are part of a record that has one.
    pub fn encode(&self) -> [u8; TREE_BYTES] {
        let mut bytes = [0; TREE_BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        let record_bytes =
            u16::try_from(self.shape.record_bytes).expect("a valid shape's records are short");
        bytes[8..10].copy_from_slice(&record_bytes.to_le_bytes());
        bytes[10] = u8::from(self.shape.wide_pointers);
        bytes[11] = self.height;
        self.root
            .encode(&mut bytes[16..16 + self.shape.pointer_bytes()]);
        bytes
    }

    /// Decodes what [`Tree::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8; TREE_BYTES]) -> Option<Self> {
        let record_bytes = u16::from_le_bytes(bytes[8..10].try_into().ok()?);
        let shape = TreeShape {
            record_bytes: usize::from(record_bytes),
            wide_pointers: match bytes[10] {
                0 => false,
                1 => true,
                _ => return None,
            },
        };
        let height = bytes[11];
        let unused = bytes[12..16]
            .iter()
            .chain(&bytes[16 + shape.pointer_bytes()..]);
        if !shape.is_valid() || height > MAX_HEIGHT || unused.into_iter().any(|&byte| byte != 0) {
            return None;
        }
        let root = Pointer::decode(&bytes[16..16 + shape.pointer_bytes()], shape)?;
        let id = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        ((height == 0) == root.is_hole()).then_some(Self {
            id,
            shape,
            height,
            root,
        })
    }
}

/// A size in memory as a count of records or pages.
pub(super) fn to_u64(n: usize) -> u64 {
    // Lossless: no supported target has addresses wider than 64 bits.
    n as u64
}

/// A distance within a buffer as an index into it.
pub(super) fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("distances within a buffer fit memory")
}
