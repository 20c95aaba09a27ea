//! The record of a snapshot, in the snapshot table.
//!
//! ```text
//!   0  id u64                 |   8  size in bytes u64
//!  16  chunk bytes u32        |  20  dedup u8 | compression u8 | name length u8 | 0
//!  24  tree, 48 bytes
//!  72  stored chunks u64      |  80  volume u64
//!  88  taken, ms since 1970   |  96  sequence u64
//! 104  reserved, zero
//! 128  name, 128 bytes, zero-padded
//! ```
//! Little-endian, 256 bytes; a record of zeroes is absent. The table is a tree
//! of these records, indexed by the snapshot's id, which comes from the same
//! counter as those of volumes. So taking or deleting a snapshot among
//! thousands changes one leaf. The tree has the id of the volume: the pages are
//! those of the volume.

use crate::{
    api::{Compression, DedupMode},
    catalogue::{
        FIRST_VOLUME_ID, NAME_BYTES_MAX, check_name_of, chunk_size_is_valid, decode_modes,
        encode_modes,
    },
    map::{TREE_BYTES, Tree, TreeShape},
};

/// Bytes of an encoded record.
pub const SNAPSHOT_RECORD_BYTES: usize = 256;

const AT_SIZE: usize = 8;
const AT_CHUNK: usize = 16;
const AT_MODES: usize = 20;
const AT_TREE: usize = 24;
const AT_STORED: usize = AT_TREE + TREE_BYTES;
const AT_VOLUME: usize = AT_STORED + 8;
const AT_TAKEN: usize = AT_VOLUME + 8;
const AT_SEQUENCE: usize = AT_TAKEN + 8;
const AT_NAME: usize = 128;
const _: () = assert!(AT_SEQUENCE + 8 <= AT_NAME);
const _: () = assert!(AT_NAME + NAME_BYTES_MAX == SNAPSHOT_RECORD_BYTES);

/// A snapshot as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Never reused, by snapshots or volumes.
    pub id: u64,
    /// The volume it was taken of.
    pub volume: u64,
    /// Unique among the snapshots of its volume.
    pub name: String,
    /// Bytes that the volume had.
    pub size_bytes: u64,
    /// Bytes per chunk.
    pub chunk_bytes: u32,
    /// What the volume had; a clone begins with it.
    pub dedup: DedupMode,
    /// The same.
    pub compression: Compression,
    /// Milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// It holds every change up to this sequence and none after (R11).
    pub sequence: u64,
    /// The map.
    pub tree: Tree,
    /// Chunks the map has stored entries for.
    pub stored_chunks: u64,
}

impl SnapshotRecord {
    /// The 256 bytes as stored.
    pub fn encode(&self) -> [u8; SNAPSHOT_RECORD_BYTES] {
        let mut bytes = [0; SNAPSHOT_RECORD_BYTES];
        let name = self.name.as_bytes();
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.id.to_le_bytes());
        put(AT_SIZE, &self.size_bytes.to_le_bytes());
        put(AT_CHUNK, &self.chunk_bytes.to_le_bytes());
        put(AT_MODES, &encode_modes(self.dedup, self.compression));
        let length = u8::try_from(name.len()).expect("names are checked when given");
        put(AT_MODES + 2, &[length]);
        put(AT_TREE, &self.tree.encode());
        put(AT_STORED, &self.stored_chunks.to_le_bytes());
        put(AT_VOLUME, &self.volume.to_le_bytes());
        put(AT_TAKEN, &self.taken_unix_ms.to_le_bytes());
        put(AT_SEQUENCE, &self.sequence.to_le_bytes());
        put(AT_NAME, name);
        bytes
    }

    /// Decodes a present record; `None` when no encoder can have made it.
    pub fn decode(bytes: &[u8; SNAPSHOT_RECORD_BYTES]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let length = usize::from(bytes[AT_MODES + 2]);
        let name = bytes.get(AT_NAME..AT_NAME + length)?;
        let (dedup, compression) = decode_modes([bytes[AT_MODES], bytes[AT_MODES + 1]])?;
        let record = Self {
            id: u64_at(0)?,
            volume: u64_at(AT_VOLUME)?,
            name: std::str::from_utf8(name).ok()?.to_owned(),
            size_bytes: u64_at(AT_SIZE)?,
            chunk_bytes: u32::from_le_bytes(bytes[AT_CHUNK..AT_CHUNK + 4].try_into().ok()?),
            dedup,
            compression,
            taken_unix_ms: u64_at(AT_TAKEN)?,
            sequence: u64_at(AT_SEQUENCE)?,
            tree: Tree::decode(bytes[AT_TREE..AT_STORED].try_into().ok()?)?,
            stored_chunks: u64_at(AT_STORED)?,
        };
        let sound = record.id >= FIRST_VOLUME_ID
            && record.volume >= FIRST_VOLUME_ID
            && record.tree.id == record.volume
            && record.tree.shape == TreeShape::VOLUME
            && chunk_size_is_valid(record.chunk_bytes)
            && check_name_of("snapshot", &record.name).is_ok()
            && record.encode() == *bytes;
        sound.then_some(record)
    }
}

/// The two names in `VOLUME@SNAPSHOT`; `None` when it is not of that form.
pub fn split_name(name: &str) -> Option<(&str, &str)> {
    name.split_once('@')
        .filter(|(volume, snapshot)| !volume.is_empty() && !snapshot.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field differs from every other.
    fn sample() -> SnapshotRecord {
        SnapshotRecord {
            id: 0x1112,
            volume: 0x2122,
            name: "before-update.1".to_owned(),
            size_bytes: 0x3132_3334,
            chunk_bytes: 8192,
            dedup: DedupMode::Inline,
            compression: Compression::Lz4,
            taken_unix_ms: 0x4142_4344,
            sequence: 0x5152_5354,
            tree: Tree::empty(0x2122, TreeShape::VOLUME),
            stored_chunks: 0x6162,
        }
    }

    #[test]
    fn the_stored_form_of_a_snapshot_does_not_change() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/testdata/format/snapshot-1.bin"
        );
        let golden = std::fs::read(path).unwrap();
        assert_eq!(sample().encode()[..], golden[..]);
        let record = SnapshotRecord::decode(golden[..].try_into().unwrap());
        assert_eq!(record, Some(sample()));
    }

    #[test]
    fn what_no_snapshot_can_be_is_refused() {
        assert_eq!(SnapshotRecord::decode(&[0; SNAPSHOT_RECORD_BYTES]), None);
        for (at, value) in [(AT_MODES, 9), (AT_NAME, b'@'), (104, 1), (AT_VOLUME, 0x23)] {
            let mut bytes = sample().encode();
            bytes[at] = value;
            assert_eq!(SnapshotRecord::decode(&bytes), None, "byte {at}");
        }
    }

    #[test]
    fn names_are_split_at_the_at_sign() {
        assert_eq!(split_name("a@b"), Some(("a", "b")));
        for other in ["a", "a@", "@b", ""] {
            assert_eq!(split_name(other), None, "{other:?}");
        }
    }
}
