//! A segment's summary: what every chunk in it is, in self-contained blocks.
//!
//! ```text
//!  offset  one block of 4096 bytes, little-endian
//!       0  magic "TSSUMRY1"
//!       8  version u16 | record bytes u16 | records here u16 | hash u16
//!      16  pool uuid, 16 bytes
//!      32  segment u32            | block number u32
//!      40  generation u64
//!      48  blocks in all u32      | records in all u32
//!      56  reserved, zero, 32 bytes
//!      88  50 records of 80 bytes; unused ones are zero
//!    4088  reserved, zero u32     | CRC32C of bytes 0..4092
//! ```
//!
//! A record:
//!
//! ```text
//!       0  fingerprint, 32 bytes; zero when not hashed
//!      32  entry, 16 bytes (segment and generation repeat the block's)
//!      48  logical length u32 | flags u8 | level u8 | domain, reserved, zero u16
//!      56  owner: tree u64
//!      64  owner: index u64
//!      72  tag, reserved, zero u64
//! ```
//!
//! Invariants: every block but the last holds 50 records, so a record's number
//! alone tells its block; records are in the order of appending, hence of
//! position, and keep their numbers when a summary grows; each block carries
//! all that is needed to tell whose it is, so one block can be read and
//! trusted alone (R8), and a bad block hides only its own records.

use tessera_raid::SegmentId;
use uuid::Uuid;

use crate::{ENTRY_BYTES, Entry, Fingerprint, Generation};

/// Bytes of a summary block.
pub const SUMMARY_BLOCK_BYTES: usize = 4096;
/// Records in every block but the last.
pub const RECORDS_PER_BLOCK: usize = 50;

const MAGIC: [u8; 8] = *b"TSSUMRY1";
const VERSION: u16 = 1;
const HASH_BLAKE3: u16 = 1;
const RECORD_BYTES: usize = 80;

const AT_VERSION: usize = 8;
const AT_RECORD_BYTES: usize = AT_VERSION + 2;
const AT_RECORDS_HERE: usize = AT_RECORD_BYTES + 2;
const AT_HASH: usize = AT_RECORDS_HERE + 2;
const AT_POOL: usize = AT_HASH + 2;
const AT_SEGMENT: usize = AT_POOL + 16;
const AT_BLOCK: usize = AT_SEGMENT + 4;
const AT_GENERATION: usize = AT_BLOCK + 4;
const AT_BLOCKS: usize = AT_GENERATION + 8;
const AT_RECORDS: usize = AT_BLOCKS + 4;
const AT_RESERVED: usize = AT_RECORDS + 4;
const AT_BODY: usize = AT_RESERVED + 32;
const AT_TAIL: usize = AT_BODY + RECORDS_PER_BLOCK * RECORD_BYTES;
const AT_CRC: usize = AT_TAIL + 4;
const _: () = assert!(AT_BODY == 88 && AT_CRC + 4 == SUMMARY_BLOCK_BYTES);

const IN_ENTRY: usize = 32;
const IN_LOGICAL: usize = IN_ENTRY + ENTRY_BYTES;
const IN_FLAGS: usize = IN_LOGICAL + 4;
const IN_LEVEL: usize = IN_FLAGS + 1;
const IN_DOMAIN: usize = IN_LEVEL + 1;
const IN_TREE: usize = IN_DOMAIN + 2;
const IN_INDEX: usize = IN_TREE + 8;
const IN_TAG: usize = IN_INDEX + 8;
const _: () = assert!(IN_TAG + 8 == RECORD_BYTES);

const FLAG_HASHED: u8 = 1;

/// What a chunk or page was first written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Owner {
    /// The tree: a volume's, or another.
    pub tree: u64,
    /// Chunk number, or the number of the page within its level.
    pub index: u64,
    /// 0 for chunks, above for pages.
    pub level: u8,
}

/// One chunk or page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryRecord {
    /// Hash of the logical bytes; `None` when it has not been computed.
    pub fingerprint: Option<Fingerprint>,
    /// The pointer to it.
    pub entry: Entry,
    /// Its length before compression, bytes.
    pub logical: u32,
    /// What it was first written for.
    pub owner: Owner,
}

/// Whose summary it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SummaryId {
    /// The pool.
    pub pool: Uuid,
    /// The segment.
    pub segment: SegmentId,
    /// Its incarnation.
    pub generation: Generation,
}

/// A whole summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The pool.
    pub pool: Uuid,
    /// The segment.
    pub segment: SegmentId,
    /// Its incarnation.
    pub generation: Generation,
    /// Its chunks in the order of appending.
    pub records: Vec<SummaryRecord>,
}

impl Summary {
    /// Whose it is.
    pub fn id(&self) -> SummaryId {
        SummaryId {
            pool: self.pool,
            segment: self.segment,
            generation: self.generation,
        }
    }
}

/// Why a block is not the one expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    /// The length is not a positive multiple of a block.
    #[error("Summary is {0} bytes long, not a positive number of blocks")]
    Length(usize),
    /// The checksum does not match.
    #[error("Summary block {block} is damaged")]
    Damaged {
        /// Position of the block in what was read.
        block: u32,
    },
    /// Written by a newer version.
    #[error("Summary block {block} has the unknown format version {version}")]
    Version {
        /// Position of the block in what was read.
        block: u32,
        /// The version found.
        version: u16,
    },
    /// Intact, but of another pool, segment, generation or place.
    #[error("Summary block {block} belongs elsewhere: {what}")]
    Foreign {
        /// Position of the block in what was read.
        block: u32,
        /// The field that differs.
        what: &'static str,
    },
    /// Intact, but no encoder makes it.
    #[error("Summary block {block} is malformed: {what}")]
    Malformed {
        /// Position of the block in what was read.
        block: u32,
        /// The field.
        what: &'static str,
    },
}

/// Blocks that a summary of so many records takes; at least one.
pub fn blocks_for(records: usize) -> usize {
    records.div_ceil(RECORDS_PER_BLOCK).max(1)
}

/// The summary as stored.
///
/// # Panics
/// If a record's entry is of another segment or generation, or there are more
/// than 2^32 records: broken invariants of whoever made it.
pub fn encode_blocks(summary: &Summary) -> Vec<u8> {
    let blocks = blocks_for(summary.records.len());
    let mut bytes = vec![0; blocks * SUMMARY_BLOCK_BYTES];
    let mut records = summary.records.chunks(RECORDS_PER_BLOCK);
    for (number, block) in bytes.chunks_exact_mut(SUMMARY_BLOCK_BYTES).enumerate() {
        let here = records.next().unwrap_or_default();
        let narrow = |value: usize| u32::try_from(value).expect("summaries are below 4 GiB");
        let count = u16::try_from(here.len()).expect("at most RECORDS_PER_BLOCK");
        put(block, 0, &MAGIC);
        put(block, AT_VERSION, &VERSION.to_le_bytes());
        put(block, AT_RECORD_BYTES, &(RECORD_BYTES as u16).to_le_bytes()); // 80
        put(block, AT_RECORDS_HERE, &count.to_le_bytes());
        put(block, AT_HASH, &HASH_BLAKE3.to_le_bytes());
        put(block, AT_POOL, summary.pool.as_bytes());
        put(block, AT_SEGMENT, &summary.segment.0.to_le_bytes());
        put(block, AT_BLOCK, &narrow(number).to_le_bytes());
        put(block, AT_GENERATION, &summary.generation.0.to_le_bytes());
        put(block, AT_BLOCKS, &narrow(blocks).to_le_bytes());
        put(
            block,
            AT_RECORDS,
            &narrow(summary.records.len()).to_le_bytes(),
        );
        for (slot, record) in block[AT_BODY..AT_TAIL]
            .chunks_exact_mut(RECORD_BYTES)
            .zip(here)
        {
            assert!(
                record.entry.segment == summary.segment
                    && record.entry.generation == summary.generation.low(),
                "a summary lists its own segment's chunks"
            );
            encode_record(record, slot);
        }
        let crc = crc32c::crc32c(&block[..AT_CRC]);
        put(block, AT_CRC, &crc.to_le_bytes());
    }
    bytes
}

fn encode_record(record: &SummaryRecord, slot: &mut [u8]) {
    if let Some(fingerprint) = &record.fingerprint {
        put(slot, 0, &fingerprint.0);
        slot[IN_FLAGS] = FLAG_HASHED;
    }
    put(slot, IN_ENTRY, &record.entry.encode());
    put(slot, IN_LOGICAL, &record.logical.to_le_bytes());
    slot[IN_LEVEL] = record.owner.level;
    put(slot, IN_TREE, &record.owner.tree.to_le_bytes());
    put(slot, IN_INDEX, &record.owner.index.to_le_bytes());
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

fn get<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    block[at..at + N]
        .try_into()
        .expect("a field lies within its block")
}

/// One decoded block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryBlock {
    /// Whose it is.
    pub id: SummaryId,
    /// Its number within the summary.
    pub number: u32,
    /// Blocks of the whole summary.
    pub blocks: u32,
    /// Records of the whole summary.
    pub total: u32,
    /// Its records; the first has the number `number * RECORDS_PER_BLOCK`.
    pub records: Vec<SummaryRecord>,
}

/// Decodes one block of whatever summary it belongs to. `at` is its position
/// in what was read, for the error.
pub fn decode_block(block: &[u8], at: u32) -> Result<SummaryBlock, SummaryError> {
    if block.len() != SUMMARY_BLOCK_BYTES {
        return Err(SummaryError::Length(block.len()));
    }
    if crc32c::crc32c(&block[..AT_CRC]) != u32::from_le_bytes(get(block, AT_CRC)) {
        return Err(SummaryError::Damaged { block: at });
    }
    let malformed = |what| SummaryError::Malformed { block: at, what };
    if get(block, 0) != MAGIC {
        return Err(malformed("magic"));
    }
    let version = u16::from_le_bytes(get(block, AT_VERSION));
    if version != VERSION {
        return Err(SummaryError::Version { block: at, version });
    }
    if usize::from(u16::from_le_bytes(get(block, AT_RECORD_BYTES))) != RECORD_BYTES {
        return Err(malformed("record size"));
    }
    if u16::from_le_bytes(get(block, AT_HASH)) != HASH_BLAKE3 {
        return Err(malformed("hash"));
    }
    let id = SummaryId {
        pool: Uuid::from_bytes(get(block, AT_POOL)),
        segment: SegmentId(u32::from_le_bytes(get(block, AT_SEGMENT))),
        generation: Generation(u64::from_le_bytes(get(block, AT_GENERATION))),
    };
    let number = u32::from_le_bytes(get(block, AT_BLOCK));
    let blocks = u32::from_le_bytes(get(block, AT_BLOCKS));
    let total = u32::from_le_bytes(get(block, AT_RECORDS));
    let here = usize::from(u16::from_le_bytes(get(block, AT_RECORDS_HERE)));
    let before = u64::from(number) * RECORDS_PER_BLOCK as u64;
    let expected = u64::from(total)
        .saturating_sub(before)
        .min(RECORDS_PER_BLOCK as u64);
    if blocks_for(total as usize) as u64 != u64::from(blocks)
        || number >= blocks
        || here as u64 != expected
    {
        return Err(malformed("counts"));
    }
    let (used, unused) = block[AT_BODY..AT_TAIL].split_at(here * RECORD_BYTES);
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if !zero(&block[AT_RESERVED..AT_BODY]) || !zero(unused) || !zero(&block[AT_TAIL..AT_CRC]) {
        return Err(malformed("reserved bytes"));
    }
    let records = used
        .chunks_exact(RECORD_BYTES)
        .map(|slot| decode_record(slot, &id).ok_or(malformed("record")))
        .collect::<Result<_, _>>()?;
    Ok(SummaryBlock {
        id,
        number,
        blocks,
        total,
        records,
    })
}

fn decode_record(slot: &[u8], id: &SummaryId) -> Option<SummaryRecord> {
    let hash: [u8; 32] = get(slot, 0);
    let fingerprint = match slot[IN_FLAGS] {
        0 if hash == [0; 32] => None,
        FLAG_HASHED => Some(Fingerprint(hash)),
        _ => return None,
    };
    let entry = Entry::decode(&get(slot, IN_ENTRY))?;
    let own = entry.segment == id.segment && entry.generation == id.generation.low();
    let reserved = get(slot, IN_DOMAIN) == [0; 2] && get(slot, IN_TAG) == [0; 8];
    (own && entry.is_stored() && reserved).then_some(SummaryRecord {
        fingerprint,
        entry,
        logical: u32::from_le_bytes(get(slot, IN_LOGICAL)),
        owner: Owner {
            tree: u64::from_le_bytes(get(slot, IN_TREE)),
            index: u64::from_le_bytes(get(slot, IN_INDEX)),
            level: slot[IN_LEVEL],
        },
    })
}

/// Decodes one block and checks that it is block `number` of the summary
/// expected.
pub fn decode_expected(
    block: &[u8],
    expected: &SummaryId,
    number: u32,
) -> Result<SummaryBlock, SummaryError> {
    let decoded = decode_block(block, number)?;
    let foreign = |what| {
        Err(SummaryError::Foreign {
            block: number,
            what,
        })
    };
    if decoded.id.pool != expected.pool {
        foreign("pool")
    } else if decoded.id.segment != expected.segment {
        foreign("segment")
    } else if decoded.id.generation != expected.generation {
        foreign("generation")
    } else if decoded.number != number {
        foreign("block number")
    } else {
        Ok(decoded)
    }
}

/// Decodes a whole summary; `bytes` is all of its blocks.
pub fn decode_blocks(bytes: &[u8], expected: &SummaryId) -> Result<Summary, SummaryError> {
    let tolerant = decode_tolerant(bytes, expected)?;
    match tolerant.damaged.first() {
        Some((_, error)) => Err(*error),
        None => Ok(Summary {
            pool: expected.pool,
            segment: expected.segment,
            generation: expected.generation,
            records: tolerant
                .records
                .into_iter()
                .map(|(_, record)| record)
                .collect(),
        }),
    }
}

/// What can be had of a damaged summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TolerantSummary {
    /// Record number and record, in order, of every good block.
    pub records: Vec<(u32, SummaryRecord)>,
    /// The bad blocks and what is wrong with them.
    pub damaged: Vec<(u32, SummaryError)>,
    /// Records in all; `None` when no block is good.
    pub total: Option<u32>,
}

/// Decodes the good blocks of a summary; `bytes` is all of its blocks.
pub fn decode_tolerant(
    bytes: &[u8],
    expected: &SummaryId,
) -> Result<TolerantSummary, SummaryError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(SUMMARY_BLOCK_BYTES) {
        return Err(SummaryError::Length(bytes.len()));
    }
    let mut out = TolerantSummary {
        records: Vec::new(),
        damaged: Vec::new(),
        total: None,
    };
    let blocks = bytes.len() / SUMMARY_BLOCK_BYTES;
    for (number, block) in (0u32..).zip(bytes.chunks_exact(SUMMARY_BLOCK_BYTES)) {
        let decoded = decode_expected(block, expected, number).and_then(|decoded| {
            // All blocks must be of one and the same writing.
            let same = decoded.blocks as usize == blocks
                && out.total.is_none_or(|total| total == decoded.total);
            let what = "counts";
            if same {
                Ok(decoded)
            } else {
                Err(SummaryError::Foreign {
                    block: number,
                    what,
                })
            }
        });
        match decoded {
            Ok(decoded) => {
                out.total = Some(decoded.total);
                let first = number * RECORDS_PER_BLOCK as u32;
                out.records.extend((first..).zip(decoded.records));
            }
            Err(error) => out.damaged.push((number, error)),
        }
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::EntryKind;

    pub(crate) fn summary_of(id: SummaryId, count: usize, seed: u64) -> Summary {
        let records = (0..count as u64)
            .map(|n| {
                let hash =
                    *blake3::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat()).as_bytes();
                SummaryRecord {
                    fingerprint: (!(n + seed).is_multiple_of(5)).then_some(Fingerprint(hash)),
                    entry: Entry {
                        kind: EntryKind::Raw,
                        segment: id.segment,
                        position: (n * 4096) as u32 & 0xff_ffff,
                        stored: 4096,
                        generation: id.generation.low(),
                        checksum: (n ^ seed) as u32,
                    },
                    logical: 4096,
                    owner: Owner {
                        tree: seed,
                        index: n,
                        level: (n % 3) as u8,
                    },
                }
            })
            .collect();
        Summary {
            pool: id.pool,
            segment: id.segment,
            generation: id.generation,
            records,
        }
    }

    fn id(generation: u64) -> SummaryId {
        SummaryId {
            pool: Uuid::from_u128(0x1234_5678),
            segment: SegmentId(77),
            generation: Generation(generation),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn summaries_round_trip(count in 0usize..260, generation: u64, seed: u64) {
            let summary = summary_of(id(generation), count, seed);
            let bytes = encode_blocks(&summary);
            prop_assert_eq!(bytes.len(), blocks_for(count) * SUMMARY_BLOCK_BYTES);
            prop_assert_eq!(decode_blocks(&bytes, &summary.id()), Ok(summary));
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..3 * 4096)) {
            prop_assert!(decode_blocks(&bytes, &id(1)).is_err());
        }

        #[test]
        fn arbitrary_fields_under_a_right_checksum_never_panic(
            changes in prop::collection::vec((0usize..AT_CRC, any::<u8>()), 1..6),
        ) {
            let mut bytes = encode_blocks(&summary_of(id(3), 30, 1));
            for (at, value) in changes {
                bytes[at] = value;
            }
            let crc = crc32c::crc32c(&bytes[..AT_CRC]);
            put(&mut bytes, AT_CRC, &crc.to_le_bytes());
            if let Ok(block) = decode_block(&bytes, 0) {
                prop_assert!(block.records.len() <= RECORDS_PER_BLOCK);
            }
        }
    }

    #[test]
    fn every_single_bit_damage_is_refused() {
        let summary = summary_of(id(9), 60, 4);
        let good = encode_blocks(&summary);
        let mut bytes = good.clone();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_blocks(&bytes, &summary.id()).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(bytes, good);
    }

    #[test]
    fn a_bad_block_hides_only_its_own_records() {
        let summary = summary_of(id(9), 160, 4);
        let mut bytes = encode_blocks(&summary);
        bytes[SUMMARY_BLOCK_BYTES + 100] ^= 4;
        let found = decode_tolerant(&bytes, &summary.id()).unwrap();
        assert_eq!(found.damaged, [(1, SummaryError::Damaged { block: 1 })]);
        assert_eq!(found.total, Some(160));
        let expected: Vec<_> = (0u32..)
            .zip(summary.records)
            .filter(|(number, _)| !(50..100).contains(number))
            .collect();
        assert_eq!(found.records, expected);
    }

    #[test]
    fn intact_blocks_of_others_are_refused() {
        let mine = summary_of(id(9), 120, 4);
        let bytes = encode_blocks(&mine);
        let foreign = |expected: SummaryId| {
            matches!(
                decode_blocks(&bytes, &expected),
                Err(SummaryError::Foreign { .. })
            )
        };
        assert!(foreign(id(10)));
        assert!(foreign(SummaryId {
            segment: SegmentId(78),
            ..mine.id()
        }));
        assert!(foreign(SummaryId {
            pool: Uuid::from_u128(1),
            ..mine.id()
        }));
        // Blocks that changed places, and a shorter, older state of the same.
        let (first, rest) = bytes.split_at(SUMMARY_BLOCK_BYTES);
        let (second, third) = rest.split_at(SUMMARY_BLOCK_BYTES);
        assert!(decode_blocks(&[second, first, third].concat(), &mine.id()).is_err());
        assert!(decode_blocks(&[first, second].concat(), &mine.id()).is_err());
        let older = encode_blocks(&summary_of(id(9), 101, 4));
        assert!(
            decode_blocks(
                &[first, second, &older[2 * SUMMARY_BLOCK_BYTES..]].concat(),
                &mine.id()
            )
            .is_err()
        );
    }

    #[test]
    fn the_golden_image_of_version_1_stays_readable_and_is_still_what_is_written() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/testdata/format/summary-v1.bin"
        );
        let summary = summary_of(id(0x0102_0304_0506_0708), 51, 11);
        let golden = std::fs::read(path).unwrap();
        assert_eq!(decode_blocks(&golden, &summary.id()), Ok(summary.clone()));
        // A difference here is a new version of the format: never edit the
        // image, add one.
        assert!(encode_blocks(&summary) == golden);
    }
}
