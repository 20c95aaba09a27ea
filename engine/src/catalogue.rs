//! The catalogue's record of a volume.
//!
//! ```text
//!   0  id u64                 |   8  size in bytes u64
//!  16  chunk bytes u32        |  20  dedup u8 | compression u8 | name length u8 | flags u8
//!  24  tree, 48 bytes
//!  72  stored chunks u64      |  80  reserved, zero
//! 128  name, 128 bytes, zero-padded
//! ```
//! Little-endian, 256 bytes. Flag 1: it may be made smaller through a mount. A record of zeroes is an absent volume. The
//! catalogue is a tree of these records, indexed by volume id.

use crate::{
    api::{Compression, DedupMode, SpaceUse, VolumeInfo},
    map::{TREE_BYTES, Tree, TreeShape},
};

/// Bytes of an encoded record.
pub const VOLUME_RECORD_BYTES: usize = 256;
/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The first id a volume gets; lower ones are the pool's own trees.
pub const FIRST_VOLUME_ID: u64 = 16;
/// The tree of volume records.
pub const CATALOGUE_TREE: u64 = 1;
/// The tree of segment records.
pub const SEGMENT_TREE: u64 = 2;
/// Owner of summaries kept in the map stream.
pub const SUMMARY_TREE: u64 = 3;
/// Owner of root pages.
pub const ROOT_TREE: u64 = 4;
/// The tree of job records.
pub const JOB_TREE: u64 = 5;
/// The tree of snapshot records.
pub const SNAPSHOT_TREE: u64 = 6;

const AT_SIZE: usize = 8;
const AT_CHUNK: usize = 16;
const AT_MODES: usize = 20;
const AT_TREE: usize = 24;
const AT_STORED: usize = AT_TREE + TREE_BYTES;
const AT_RESERVED: usize = AT_STORED + 8;
const AT_NAME: usize = 128;
/// The one flag there is.
const ALLOW_SHRINK: u8 = 1;
const _: () = assert!(AT_RESERVED <= AT_NAME && AT_NAME + NAME_BYTES_MAX == VOLUME_RECORD_BYTES);

/// A volume at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Never reused.
    pub id: u64,
    /// Unique among volumes.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Bytes per chunk.
    pub chunk_bytes: u32,
    /// Deduplication of new writes.
    pub dedup: DedupMode,
    /// Compression of new writes.
    pub compression: Compression,
    /// It may be made smaller through a mount.
    pub allow_shrink: bool,
    /// The checkpointed map.
    pub tree: Tree,
    /// Chunks the checkpointed map has stored entries for.
    pub stored_chunks: u64,
}

impl VolumeRecord {
    /// The 256 bytes as stored.
    pub fn encode(&self) -> [u8; VOLUME_RECORD_BYTES] {
        let mut bytes = [0; VOLUME_RECORD_BYTES];
        let name = self.name.as_bytes();
        let name_length = u8::try_from(name.len()).expect("names are checked when given");
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[AT_SIZE..AT_SIZE + 8].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[AT_CHUNK..AT_CHUNK + 4].copy_from_slice(&self.chunk_bytes.to_le_bytes());
        let modes = encode_modes(self.dedup, self.compression);
        bytes[AT_MODES..AT_MODES + 2].copy_from_slice(&modes);
        bytes[AT_MODES + 2] = name_length;
        bytes[AT_MODES + 3] = if self.allow_shrink { ALLOW_SHRINK } else { 0 };
        bytes[AT_TREE..AT_STORED].copy_from_slice(&self.tree.encode());
        bytes[AT_STORED..AT_STORED + 8].copy_from_slice(&self.stored_chunks.to_le_bytes());
        bytes[AT_NAME..AT_NAME + name.len()].copy_from_slice(name);
        bytes
    }

    /// Decodes a present record; `None` when no encoder can have made it.
    pub fn decode(bytes: &[u8; VOLUME_RECORD_BYTES]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let length = usize::from(bytes[AT_MODES + 2]);
        let name = bytes.get(AT_NAME..AT_NAME + length)?;
        let (dedup, compression) = decode_modes([bytes[AT_MODES], bytes[AT_MODES + 1]])?;
        let record = Self {
            id: u64_at(0)?,
            name: std::str::from_utf8(name).ok()?.to_owned(),
            size_bytes: u64_at(AT_SIZE)?,
            chunk_bytes: u32::from_le_bytes(bytes[AT_CHUNK..AT_CHUNK + 4].try_into().ok()?),
            dedup,
            compression,
            allow_shrink: bytes[AT_MODES + 3] & ALLOW_SHRINK != 0,
            tree: Tree::decode(bytes[AT_TREE..AT_STORED].try_into().ok()?)?,
            stored_chunks: u64_at(AT_STORED)?,
        };
        let sound = record.id >= FIRST_VOLUME_ID
            && record.tree.id == record.id
            && record.tree.shape == TreeShape::VOLUME
            && chunk_size_is_valid(record.chunk_bytes)
            && check_name(&record.name).is_ok()
            && record.encode() == *bytes;
        sound.then_some(record)
    }

    /// What management shows of it.
    pub fn info(&self) -> VolumeInfo {
        VolumeInfo {
            name: self.name.clone(),
            id: self.id,
            size_bytes: self.size_bytes,
            logical_bytes: self.stored_chunks * u64::from(self.chunk_bytes),
            chunk_bytes: self.chunk_bytes,
            dedup: self.dedup,
            compression: self.compression,
            allow_shrink: self.allow_shrink,
            // What maps nothing need not be counted.
            space: match self.stored_chunks {
                0 => SpaceUse::known(0, 0, 0),
                _ => SpaceUse::default(),
            },
        }
    }
}

/// How new writes are treated, as two bytes.
pub(crate) fn encode_modes(dedup: DedupMode, compression: Compression) -> [u8; 2] {
    let dedup = match dedup {
        DedupMode::Off => 0,
        DedupMode::Inline => 1,
        DedupMode::Post => 2,
    };
    let compression = match compression {
        Compression::None => 0,
        Compression::Lz4 => 1,
    };
    [dedup, compression]
}

/// What [`encode_modes`] made; `None` for anything else.
pub(crate) fn decode_modes(bytes: [u8; 2]) -> Option<(DedupMode, Compression)> {
    let dedup = match bytes[0] {
        0 => DedupMode::Off,
        1 => DedupMode::Inline,
        2 => DedupMode::Post,
        _ => return None,
    };
    let compression = match bytes[1] {
        0 => Compression::None,
        1 => Compression::Lz4,
        _ => return None,
    };
    Some((dedup, compression))
}

/// Whether volumes may have chunks of this size.
pub fn chunk_size_is_valid(bytes: u32) -> bool {
    matches!(bytes, 4096 | 8192 | 16384 | 32768 | 65536)
}

/// Checks a volume's name.
///
/// # Errors
/// One sentence that says what a name may be.
pub fn check_name(name: &str) -> Result<(), String> {
    check_name_of("volume", name)
}

/// Checks the name of a volume or a snapshot.
///
/// # Errors
/// One sentence that says what a name may be.
pub fn check_name_of(what: &str, name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        Err(format!(
            "A {what} name has 1 to {NAME_BYTES_MAX} characters, not {}",
            name.len()
        ))
    } else if name.starts_with(['.', '-']) || !name.chars().all(allowed) {
        Err(format!(
            "The {what} name {name:?} is not valid: use letters, digits, '.', '_' and '-', \
             and begin with a letter, a digit or '_'"
        ))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> VolumeRecord {
        VolumeRecord {
            id: 17,
            name: "disk-1".to_owned(),
            size_bytes: 1 << 40,
            chunk_bytes: 4096,
            dedup: DedupMode::Inline,
            compression: Compression::Lz4,
            allow_shrink: false,
            tree: Tree::empty(17, TreeShape::VOLUME),
            stored_chunks: 5,
        }
    }

    #[test]
    fn the_stored_form_of_a_volume_does_not_change() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/format/volume-1.bin");
        let golden = std::fs::read(path).unwrap();
        let post = VolumeRecord {
            dedup: DedupMode::Post,
            allow_shrink: true,
            ..sample()
        };
        assert_eq!(post.encode()[..], golden[..]);
        let record = VolumeRecord::decode(golden[..].try_into().unwrap());
        assert_eq!(record, Some(post));
    }

    #[test]
    fn every_way_to_treat_writes_has_its_own_bytes() {
        let mut seen = std::collections::HashSet::new();
        for dedup in DedupMode::ALL {
            for compression in [Compression::Lz4, Compression::None] {
                let bytes = encode_modes(dedup, compression);
                assert!(seen.insert(bytes));
                assert_eq!(decode_modes(bytes), Some((dedup, compression)));
            }
        }
        for unknown in [[3, 0], [0, 2]] {
            assert_eq!(decode_modes(unknown), None);
        }
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(VolumeRecord::decode(&sample().encode()), Some(sample()));
        assert_eq!(VolumeRecord::decode(&[0; VOLUME_RECORD_BYTES]), None);
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "A.b_c-9", "_x"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "a@b", "é", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
