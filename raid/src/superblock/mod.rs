//! The superblock: what every member knows about the pool and itself.
//!
//! ```text
//! member:  | A | B | journal ring |..| slot 0 | slot 1 | ... |..| A' | B' |
//!          0   8K  16K                1 MiB-aligned               size - 16K
//! ```
//!
//! Invariants
//! - Superblock number N (its sequence) lies in A where N is even, in B where
//!   it is odd, and again in A' or B'. Writing it touches nothing of N - 1,
//!   so a torn write leaves the one before whole.
//! - All members' superblocks of one sequence differ only in which member
//!   they are.
//! - The journal ring is the same on every member; slots are equally large
//!   and start at the same offset everywhere; how many there are, and where
//!   the copies at the end lie, follows from the member's own size.
//!
//! `docs/format/superblock.md` draws the fields.

mod codec;

use uuid::Uuid;

use crate::{Layout, LayoutId, MemberIndex, MemberSet};
pub(crate) use codec::{Absence, decode, encode};

/// One superblock copy.
pub(crate) const SUPERBLOCK_BYTES: u64 = 8192;
/// A and B, and again A' and B'.
pub(crate) const SUPERBLOCK_AREA_BYTES: u64 = 2 * SUPERBLOCK_BYTES;
/// Segment slots start at a multiple of this, for the sake of device erase
/// blocks and of partition tools.
pub(crate) const SLOTS_ALIGNMENT: u64 = 1 << 20;
/// Membership changes remembered (R3).
pub(crate) const HISTORY_MAX: usize = 32;
/// Layouts a pool can have at a time.
pub(crate) const LAYOUTS_MAX: usize = 16;
/// A position in a segment's data has 24 bits (design section 6).
pub(crate) const SEGMENT_DATA_BYTES_END: u64 = 1 << 24;
/// BLAKE3-256, the only one so far.
pub(crate) const HASH_BLAKE3: u8 = 1;

/// Where things are on a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Length of the journal ring.
    pub(crate) journal_bytes: u64,
    /// Start of slot 0.
    pub(crate) slots_offset: u64,
    /// Length of a slot.
    pub(crate) slot_bytes: u64,
}

impl Geometry {
    /// Start of the journal ring.
    pub(crate) const JOURNAL_OFFSET: u64 = SUPERBLOCK_AREA_BYTES;

    pub(crate) fn new(journal_bytes: u64, slot_bytes: u64) -> Self {
        let slots_offset = (Self::JOURNAL_OFFSET + journal_bytes).next_multiple_of(SLOTS_ALIGNMENT);
        Self {
            journal_bytes,
            slots_offset,
            slot_bytes,
        }
    }

    /// Slots of a member of `size_bytes`.
    pub(crate) fn slot_count(&self, size_bytes: u64) -> u32 {
        let room = size_bytes.saturating_sub(self.slots_offset + SUPERBLOCK_AREA_BYTES);
        u32::try_from(room / self.slot_bytes).unwrap_or(u32::MAX)
    }

    /// The least size of a member with `slots` slots.
    pub(crate) fn size_for(&self, slots: u64) -> u64 {
        self.slots_offset + slots * self.slot_bytes + SUPERBLOCK_AREA_BYTES
    }
}

/// Where the two copies of superblock `sequence` lie on a member: the one at
/// the front, then the one at the end.
pub(crate) fn copy_offsets(sequence: u64, size_bytes: u64) -> [u64; 2] {
    let parity = (sequence % 2) * SUPERBLOCK_BYTES;
    [parity, size_bytes - SUPERBLOCK_AREA_BYTES + parity]
}

/// What the superblocks say about a row of the member table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A layout's member that holds everything it should.
    InSync,
    /// A layout's member; an operation on it failed.
    Failed,
    /// A layout's member that was not there when the pool was opened.
    Absent,
    /// A layout's member that came back without writes it should have had.
    Stale,
    /// Holds nothing and waits.
    Spare,
    /// Is being filled with what this layout's member holds or should hold.
    Target(MemberIndex),
    /// Nobody's row, to be used again.
    Vacant,
}

impl Standing {
    /// The bytes on disk: a code, and whom a target is for.
    pub(crate) const fn codes(self) -> [u8; 2] {
        match self {
            Standing::InSync => [1, 0],
            Standing::Failed => [2, 0],
            Standing::Absent => [3, 0],
            Standing::Stale => [4, 0],
            Standing::Spare => [5, 0],
            Standing::Target(of) => [6, of.0],
            Standing::Vacant => [7, 0],
        }
    }

    pub(crate) const fn from_codes(codes: [u8; 2]) -> Option<Self> {
        match codes[0] {
            1 => Some(Standing::InSync),
            2 => Some(Standing::Failed),
            3 => Some(Standing::Absent),
            4 => Some(Standing::Stale),
            5 => Some(Standing::Spare),
            6 => Some(Standing::Target(MemberIndex(codes[1]))),
            7 => Some(Standing::Vacant),
            _ => None,
        }
    }

    /// Whether rows of this standing can be columns of a layout.
    pub(crate) const fn is_of_layouts(self) -> bool {
        !matches!(
            self,
            Standing::Spare | Standing::Target(_) | Standing::Vacant
        )
    }

    /// Whether whoever stands like this gets every superblock.
    pub(crate) const fn is_written(self) -> bool {
        matches!(
            self,
            Standing::InSync | Standing::Target(_) | Standing::Spare
        )
    }
}

/// A row of the member table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberRecord {
    pub(crate) uuid: Uuid,
    pub(crate) size_bytes: u64,
    pub(crate) slot_count: u32,
    pub(crate) standing: Standing,
    /// The sequence whose superblock changed the standing.
    pub(crate) changed_at: u64,
}

impl MemberRecord {
    /// A row that nobody has.
    pub(crate) const VACANT: MemberRecord = MemberRecord {
        uuid: Uuid::nil(),
        size_bytes: 0,
        slot_count: 0,
        standing: Standing::Vacant,
        changed_at: 0,
    };
}

/// The membership changes, newest first: the ids of the last
/// [`HISTORY_MAX`], counted by `epoch` (R3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) epoch: u64,
    pub(crate) ids: Vec<Uuid>,
}

impl History {
    pub(crate) fn first(id: Uuid) -> Self {
        Self {
            epoch: 1,
            ids: vec![id],
        }
    }

    /// The last change.
    pub(crate) fn head(&self) -> Uuid {
        self.ids[0]
    }

    /// Whether the change `id` is the last or one before it: whoever has this
    /// history descends from whoever has `id` as head.
    pub(crate) fn descends_from(&self, id: Uuid) -> bool {
        self.ids.contains(&id)
    }

    /// Records a change.
    pub(crate) fn push(&mut self, id: Uuid) {
        self.epoch += 1;
        self.ids.insert(0, id);
        self.ids.truncate(HISTORY_MAX);
    }
}

/// What all members' superblocks of one sequence have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolRecord {
    pub(crate) pool: Uuid,
    /// The one counter (R1).
    pub(crate) sequence: u64,
    /// How many of those were engine commits.
    pub(crate) commits: u64,
    pub(crate) history: History,
    pub(crate) clean: bool,
    pub(crate) hash_algorithm: u8,
    pub(crate) geometry: Geometry,
    pub(crate) current_layout: LayoutId,
    pub(crate) layouts: Vec<Layout>,
    pub(crate) members: Vec<MemberRecord>,
    pub(crate) engine_record: Vec<u8>,
}

impl PoolRecord {
    /// The layouts' members that do not count as in sync.
    pub(crate) fn not_in_sync(&self) -> MemberSet {
        self.layout_members()
            .difference(self.standing(|standing| standing == Standing::InSync))
    }

    /// Rows by their standing.
    pub(crate) fn standing(&self, wanted: impl Fn(Standing) -> bool) -> MemberSet {
        self.indices()
            .filter(|index| wanted(self.members[index.index()].standing))
            .collect()
    }

    /// Every row's index, vacant ones included.
    pub(crate) fn indices(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        MemberSet::first(self.members.len()).iter()
    }

    /// The rows that are columns of a layout.
    pub(crate) fn layout_members(&self) -> MemberSet {
        self.layouts.iter().fold(MemberSet::EMPTY, |all, layout| {
            all.union(layout.member_set())
        })
    }

    /// The row of a device, by its identity.
    pub(crate) fn row_of(&self, uuid: Uuid) -> Option<MemberIndex> {
        self.indices().find(|index| {
            let row = &self.members[index.index()];
            row.uuid == uuid && row.standing != Standing::Vacant
        })
    }

    /// Segments that all the layouts' members have room for.
    pub(crate) fn slot_count(&self) -> u32 {
        let slots = self.layout_members().iter();
        let slots = slots.map(|index| self.members[index.index()].slot_count);
        slots.min().unwrap_or(0)
    }

    /// The layout for new segments.
    pub(crate) fn layout(&self) -> &Layout {
        self.layouts
            .iter()
            .find(|layout| layout.id == self.current_layout)
            .expect("a decoded or created record holds its current layout")
    }

    /// Whether every layout still gives all data back without `failed`.
    pub(crate) fn survives(&self, failed: MemberSet) -> bool {
        self.layouts.iter().all(|layout| layout.survives(failed))
    }
}

/// A superblock as one member carries it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Superblock {
    pub(crate) member: MemberIndex,
    pub(crate) record: PoolRecord,
}

impl Superblock {
    /// The member table's row of the member that carries it.
    pub(crate) fn own(&self) -> &MemberRecord {
        &self.record.members[self.member.index()]
    }
}
