//! Where a segment lies: explicit, never computed from its number.
//!
//! ```text
//!  0       2      3       4
//! +-------+------+-------+----------------- - -
//! |layout | kind | count | count slots of 4 bytes
//! +-------+------+-------+----------------- - -
//! ```
//!
//! Little-endian. Kind 0: one slot, the same on every member. Kind 1: one
//! slot per column of the layout.

use crate::units::{Column, LayoutId, MAX_MEMBERS, SlotIndex};

/// A segment's layout and slots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Placement {
    /// How it is spread.
    pub layout: LayoutId,
    /// Where on each member.
    pub slots: Slots,
}

/// Slot numbers, per column of the layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Slots {
    /// The same on every member.
    Equal(SlotIndex),
    /// One for each column.
    PerMember(Vec<SlotIndex>),
}

/// Bytes that are no placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The bytes end too early.
    #[error("Placement is cut short")]
    Short,
    /// The kind or the count is not one that exists.
    #[error("Placement of kind {kind} with {count} slots does not exist")]
    Unknown {
        /// The kind.
        kind: u8,
        /// The number of slots.
        count: u8,
    },
}

const HEADER_BYTES: usize = 4;
const KIND_EQUAL: u8 = 0;
const KIND_PER_MEMBER: u8 = 1;

impl Placement {
    /// The most bytes a placement takes.
    pub const MAX_ENCODED_BYTES: usize = HEADER_BYTES + 4 * MAX_MEMBERS;

    /// Equal slots.
    pub fn equal(layout: LayoutId, slot: SlotIndex) -> Self {
        Self {
            layout,
            slots: Slots::Equal(slot),
        }
    }

    /// The slot of a column.
    ///
    /// # Panics
    /// Where per-member slots have no such column.
    pub fn slot(&self, column: Column) -> SlotIndex {
        match &self.slots {
            Slots::Equal(slot) => *slot,
            Slots::PerMember(slots) => slots[column.index()],
        }
    }

    /// Bytes that [`Placement::encode`] appends.
    pub fn encoded_bytes(&self) -> usize {
        HEADER_BYTES + 4 * self.slot_list().len()
    }

    fn slot_list(&self) -> &[SlotIndex] {
        match &self.slots {
            Slots::Equal(slot) => std::slice::from_ref(slot),
            Slots::PerMember(slots) => slots,
        }
    }

    /// Appends the placement.
    ///
    /// # Panics
    /// Where it has no slot or more than 64.
    pub fn encode(&self, target: &mut Vec<u8>) {
        let kind = match self.slots {
            Slots::Equal(_) => KIND_EQUAL,
            Slots::PerMember(_) => KIND_PER_MEMBER,
        };
        let slots = self.slot_list();
        assert!(
            (1..=MAX_MEMBERS).contains(&slots.len()),
            "a placement has 1 to 64 slots"
        );
        let count = u8::try_from(slots.len()).expect("at most 64");
        target.extend_from_slice(&self.layout.0.to_le_bytes());
        target.extend_from_slice(&[kind, count]);
        for slot in slots {
            target.extend_from_slice(&slot.0.to_le_bytes());
        }
    }

    /// Reads a placement at the start of `source`; also the bytes it took.
    pub fn decode(source: &[u8]) -> Result<(Self, usize), PlacementError> {
        let (header, rest) = source
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(PlacementError::Short)?;
        let [layout_low, layout_high, kind, count] = *header;
        let known = match kind {
            KIND_EQUAL => count == 1,
            KIND_PER_MEMBER => (1..=MAX_MEMBERS).contains(&usize::from(count)),
            _ => false,
        };
        if !known {
            return Err(PlacementError::Unknown { kind, count });
        }
        let bytes = rest
            .get(..4 * usize::from(count))
            .ok_or(PlacementError::Short)?;
        let (words, _) = bytes.as_chunks::<4>();
        let mut slots = words
            .iter()
            .map(|word| SlotIndex(u32::from_le_bytes(*word)));
        let slots = match kind {
            KIND_EQUAL => Slots::Equal(slots.next().expect("the count was checked to be 1")),
            _ => Slots::PerMember(slots.collect()),
        };
        let layout = LayoutId(u16::from_le_bytes([layout_low, layout_high]));
        Ok((Self { layout, slots }, HEADER_BYTES + bytes.len()))
    }
}
