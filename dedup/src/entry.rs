//! The 16-byte pointer that every map page, summary and journal record uses.
//!
//! ```text
//!  bits   0..32   segment number
//!  bits  32..56   position in the segment's data space, bytes
//!  bits  56..74   stored length, bytes (at most 256 KiB - 1)
//!  bits  74..80   kind
//!  bits  80..88   generation of the segment, low 8 bits
//!  bits  88..96   key epoch (0: not encrypted)
//!  bits  96..128  CRC32C of the stored bytes
//! ```
//! Stored little-endian. The all-zero entry is a hole. Whoever holds an entry
//! can verify the bytes it names; the bytes need not describe themselves.

use tessera_raid::SegmentId;

/// Bytes of an encoded entry.
pub const ENTRY_BYTES: usize = 16;
/// Positions are below this (24 bits).
pub const POSITION_LIMIT: u32 = 1 << 24;
/// Stored lengths are below this (18 bits).
pub const STORED_LIMIT: u32 = 1 << 18;

/// A segment's incarnation. Never repeats within a pool; 0 is never issued (R9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The part an entry carries.
    pub fn low(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Nothing stored; reads as zeroes. In an inner page: no subtree.
    Hole = 0,
    /// Reads as zeroes, asked to stay allocated. In an inner page: the whole
    /// subtree is of this kind.
    Zero = 1,
    /// A chunk stored as it is, at a 4 KiB-aligned position.
    Raw = 2,
    /// A chunk stored as one LZ4 block, within one 4 KiB-aligned block when it
    /// is no longer than that.
    Lz4 = 3,
    /// A page of a tree.
    Page = 4,
    /// What was here is lost: reads are errors until it is written again. In an
    /// inner page: the whole subtree is.
    Lost = 5,
}

impl EntryKind {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Hole,
            1 => Self::Zero,
            2 => Self::Raw,
            3 => Self::Lz4,
            4 => Self::Page,
            5 => Self::Lost,
            _ => return None,
        })
    }
}

/// A decoded pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// What it stands for.
    pub kind: EntryKind,
    /// The segment that holds the bytes.
    pub segment: SegmentId,
    /// First byte within the segment's data space.
    pub position: u32,
    /// Bytes stored.
    pub stored: u32,
    /// Low bits of the segment's generation.
    pub generation: u8,
    /// CRC32C of the stored bytes.
    pub checksum: u32,
}

impl Entry {
    /// Nothing stored.
    pub const HOLE: Self = Self {
        kind: EntryKind::Hole,
        segment: SegmentId(0),
        position: 0,
        stored: 0,
        generation: 0,
        checksum: 0,
    };
    /// Zeroes, asked to stay allocated.
    pub const ZERO: Self = Self {
        kind: EntryKind::Zero,
        ..Self::HOLE
    };

    /// Something that no copy of is left.
    pub const LOST: Self = Self {
        kind: EntryKind::Lost,
        ..Self::HOLE
    };

    /// True when the entry names stored bytes.
    pub fn is_stored(&self) -> bool {
        !matches!(
            self.kind,
            EntryKind::Hole | EntryKind::Zero | EntryKind::Lost
        )
    }

    /// The 16 bytes as stored.
    ///
    /// # Panics
    /// If position or stored length exceed their fields: a broken invariant of
    /// whoever made the entry.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        assert!(self.position < POSITION_LIMIT && self.stored < STORED_LIMIT);
        let low = u64::from(self.segment.0)
            | u64::from(self.position) << 32
            | u64::from(self.stored & 0xff) << 56;
        let high = u64::from(self.stored >> 8)
            | u64::from(self.kind as u8) << 10
            | u64::from(self.generation) << 16
            | u64::from(self.checksum) << 32;
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    /// Decodes 16 bytes; `None` when no encoder can have made them.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (low, high) = bytes.split_at(8);
        let low = u64::from_le_bytes(low.try_into().ok()?);
        let high = u64::from_le_bytes(high.try_into().ok()?);
        let field = |word: u64, shift: u32, bits: u32| (word >> shift) & ((1 << bits) - 1);
        let narrow = |value: u64| u32::try_from(value).ok();
        let byte = |value: u64| u8::try_from(value).ok();
        let entry = Self {
            kind: EntryKind::from_bits(byte(field(high, 10, 6))?)?,
            segment: SegmentId(narrow(field(low, 0, 32))?),
            position: narrow(field(low, 32, 24))?,
            stored: narrow(field(low, 56, 8) | field(high, 0, 10) << 8)?,
            generation: byte(field(high, 16, 8))?,
            checksum: narrow(field(high, 32, 32))?,
        };
        let key_epoch = field(high, 24, 8);
        let well_formed = if entry.is_stored() {
            entry.stored > 0
        } else {
            entry
                == Self {
                    kind: entry.kind,
                    ..Self::HOLE
                }
        };
        (key_epoch == 0 && well_formed).then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stored_entries_round_trip(
            segment: u32, position in 0..POSITION_LIMIT, stored in 1..STORED_LIMIT,
            generation: u8, checksum: u32, kind in 2u8..5,
        ) {
            let entry = Entry {
                kind: EntryKind::from_bits(kind).unwrap(),
                segment: SegmentId(segment), position, stored, generation, checksum,
            };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn decoding_is_total_and_inverse(bytes: [u8; ENTRY_BYTES]) {
            if let Some(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_all_zero_entry_is_a_hole() {
        assert_eq!(Entry::decode(&[0; ENTRY_BYTES]), Some(Entry::HOLE));
        assert_eq!(Entry::HOLE.encode(), [0; ENTRY_BYTES]);
        assert_eq!(Entry::decode(&Entry::ZERO.encode()), Some(Entry::ZERO));
    }
}
