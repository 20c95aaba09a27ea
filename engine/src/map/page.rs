//! Pointers, and how they and the records lie in a page.
//!
//! ```text
//! inner page, narrow:  256 pointers of 16 bytes     leaf: 4096 / record_bytes
//! inner page, wide:    128 pointers of 32 bytes           records, no header
//!
//! wide pointer:   0  entry                                   16 bytes
//!                16  layout u16 | form u16 (0) | slot u32
//!                24  generation u64
//! ```
//!
//! Pages have no header: the checksum is in the pointer, and what the page
//! was written for is in the segment's summary. Inner pages hold holes, zeroes
//! and losses (whole subtree; volumes only) and page pointers, nothing else.

use tessera_dedup::{ENTRY_BYTES, Entry, EntryKind, Generation};
use tessera_raid::{LayoutId, SlotIndex};

use super::{Damage, MapError, PageBytes, PageOwner, TreeShape};

/// Bytes of a pointer in an inner page.
pub const POINTER_BYTES: usize = ENTRY_BYTES;
/// Bytes of a pointer in an inner page of a tree with wide pointers.
pub const WIDE_POINTER_BYTES: usize = 32;

/// The only form of placement so far: the same slot number on every member.
const FORM_EQUAL_SLOTS: u16 = 0;

/// Where the segment of a page lies, for trees that are read before the segment
/// table is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wide {
    /// The segment's layout.
    pub layout: LayoutId,
    /// Its slot, the same on every member.
    pub slot: SlotIndex,
    /// The segment's whole generation; its low bits equal the entry's (R9).
    pub generation: Generation,
}

/// Names a page, or says that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pointer {
    /// Kind `Page`, `Hole`, `Zero` or `Lost`.
    pub entry: Entry,
    /// Present exactly for pages of trees with wide pointers.
    pub wide: Option<Wide>,
}

impl Pointer {
    /// No page: everything under it is a hole.
    pub const HOLE: Self = Self {
        entry: Entry::HOLE,
        wide: None,
    };
    /// No page: everything under it is zero.
    pub const ZERO: Self = Self {
        entry: Entry::ZERO,
        wide: None,
    };

    /// No page: what was under it is lost.
    pub const LOST: Self = Self {
        entry: Entry::LOST,
        wide: None,
    };

    /// True when it names a page.
    pub fn is_page(&self) -> bool {
        self.entry.kind == EntryKind::Page
    }

    /// True when everything under it is a hole.
    pub fn is_hole(&self) -> bool {
        self.entry.kind == EntryKind::Hole
    }

    /// True when everything under it is lost.
    pub fn is_lost(&self) -> bool {
        self.entry.kind == EntryKind::Lost
    }

    /// Writes the pointer over `bytes`, 16 or 32 of them.
    pub(super) fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        bytes[..ENTRY_BYTES].copy_from_slice(&self.entry.encode());
        if bytes.len() == WIDE_POINTER_BYTES && self.is_page() {
            let wide = self.wide.expect("pages of wide trees know their placement");
            bytes[16..18].copy_from_slice(&wide.layout.0.to_le_bytes());
            bytes[18..20].copy_from_slice(&FORM_EQUAL_SLOTS.to_le_bytes());
            bytes[20..24].copy_from_slice(&wide.slot.0.to_le_bytes());
            bytes[24..32].copy_from_slice(&wide.generation.0.to_le_bytes());
        }
    }

    /// Decodes a pointer of a tree of this shape; `None` when no encoder can
    /// have made it.
    pub(super) fn decode(bytes: &[u8], shape: TreeShape) -> Option<Self> {
        let entry = Entry::decode(bytes[..ENTRY_BYTES].try_into().ok()?)?;
        let allowed = match entry.kind {
            EntryKind::Hole | EntryKind::Page => true,
            EntryKind::Zero | EntryKind::Lost => shape.holds_entries(),
            EntryKind::Raw | EntryKind::Lz4 => false,
        };
        if !allowed {
            return None;
        }
        if !shape.wide_pointers {
            return Some(Self { entry, wide: None });
        }
        let rest = &bytes[ENTRY_BYTES..];
        if entry.kind != EntryKind::Page {
            return rest
                .iter()
                .all(|&byte| byte == 0)
                .then_some(Self { entry, wide: None });
        }
        let generation = Generation(u64::from_le_bytes(rest[8..16].try_into().ok()?));
        let form = u16::from_le_bytes(rest[2..4].try_into().ok()?);
        if form != FORM_EQUAL_SLOTS || generation.low() != entry.generation {
            return None;
        }
        let wide = Wide {
            layout: LayoutId(u16::from_le_bytes(rest[..2].try_into().ok()?)),
            slot: SlotIndex(u32::from_le_bytes(rest[4..8].try_into().ok()?)),
            generation,
        };
        Some(Self {
            entry,
            wide: Some(wide),
        })
    }
}

/// One record of a leaf.
pub(super) fn record_at(shape: TreeShape, page: &PageBytes, slot: usize) -> &[u8] {
    &page[slot * shape.record_bytes..][..shape.record_bytes]
}

/// One entry of a volume's leaf.
pub(super) fn entry_at(owner: PageOwner, page: &PageBytes, slot: usize) -> Result<Entry, MapError> {
    leaf_entry(record_at(TreeShape::VOLUME, page, slot)).ok_or(MapError::Damaged {
        page: owner,
        damage: Damage::Entry { slot },
    })
}

/// Decodes the record of a volume's leaf: leaves never point to pages.
fn leaf_entry(record: &[u8]) -> Option<Entry> {
    let entry = Entry::decode(record.try_into().ok()?)?;
    (entry.kind != EntryKind::Page).then_some(entry)
}

/// One pointer of an inner page.
pub(super) fn pointer_at(
    shape: TreeShape,
    owner: PageOwner,
    page: &PageBytes,
    slot: usize,
) -> Result<Pointer, MapError> {
    let bytes = &page[slot * shape.pointer_bytes()..][..shape.pointer_bytes()];
    Pointer::decode(bytes, shape).ok_or(MapError::Damaged {
        page: owner,
        damage: Damage::Pointer { slot },
    })
}

/// Replaces one pointer of an inner page.
pub(super) fn put_pointer(shape: TreeShape, page: &mut PageBytes, slot: usize, pointer: &Pointer) {
    let bytes = &mut page[slot * shape.pointer_bytes()..][..shape.pointer_bytes()];
    pointer.encode(bytes);
}

/// True when a record counts as stored: in a volume, when it names bytes; in a
/// table, when it is not all zero.
pub(super) fn is_stored(shape: TreeShape, record: &[u8]) -> bool {
    if shape.holds_entries() {
        leaf_entry(record).is_some_and(|entry| entry.is_stored())
    } else {
        record.iter().any(|&byte| byte != 0)
    }
}

/// Checks every record of a leaf and counts the stored ones.
pub(super) fn check_leaf(
    shape: TreeShape,
    owner: PageOwner,
    page: &PageBytes,
) -> Result<u64, MapError> {
    let mut stored = 0;
    for slot in 0..shape.records_per_leaf() {
        let counts = if shape.holds_entries() {
            entry_at(owner, page, slot)?.is_stored()
        } else {
            is_stored(shape, record_at(shape, page, slot))
        };
        stored += u64::from(counts);
    }
    Ok(stored)
}

/// Checks every pointer of an inner page.
pub(super) fn check_inner(
    shape: TreeShape,
    owner: PageOwner,
    page: &PageBytes,
) -> Result<(), MapError> {
    (0..shape.pointers_per_page())
        .try_for_each(|slot| pointer_at(shape, owner, page, slot).map(|_| ()))
}

/// The content that a hole, zero or lost pointer stands for, spelled out.
pub(super) fn implied_page(shape: TreeShape, level: u8, pointer: &Pointer) -> PageBytes {
    let mut page = [0; super::PAGE_BYTES];
    if matches!(pointer.entry.kind, EntryKind::Zero | EntryKind::Lost) {
        // On both levels an entry comes first, and what follows it is zero.
        let bytes = if level == 0 {
            shape.record_bytes
        } else {
            shape.pointer_bytes()
        };
        for slot in page.chunks_exact_mut(bytes) {
            slot[..ENTRY_BYTES].copy_from_slice(&pointer.entry.encode());
        }
    }
    page
}

/// The pointer that says the same without a page, if there is one.
pub(super) fn implied_pointer(shape: TreeShape, level: u8, page: &PageBytes) -> Option<Pointer> {
    if page.iter().all(|&byte| byte == 0) {
        return Some(Pointer::HOLE);
    }
    [Pointer::ZERO, Pointer::LOST].into_iter().find(|pointer| {
        shape.holds_entries()
            && page[..ENTRY_BYTES] == pointer.entry.encode()
            && *page == implied_page(shape, level, pointer)
    })
}
