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

/// What the superblocks say about a member's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Holds everything it should.
    InSync,
    /// An operation on it failed.
    Failed,
    /// It was not there when the pool was opened.
    Absent,
    /// It came back without writes it should have had.
    Stale,
}

impl Standing {
    pub(crate) const ALL: [Standing; 4] = [
        Standing::InSync,
        Standing::Failed,
        Standing::Absent,
        Standing::Stale,
    ];

    pub(crate) const fn code(self) -> u8 {
        match self {
            Standing::InSync => 1,
            Standing::Failed => 2,
            Standing::Absent => 3,
            Standing::Stale => 4,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|standing| standing.code() == code)
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
    /// The members that do not count as in sync.
    pub(crate) fn not_in_sync(&self) -> MemberSet {
        self.indices()
            .filter(|index| self.members[index.index()].standing != Standing::InSync)
            .collect()
    }

    /// Every member's index.
    pub(crate) fn indices(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        MemberSet::first(self.members.len()).iter()
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
