//! A batch: the unit in which the journal becomes durable.
//!
//! ```text
//!   0  magic "TSRBATCH"                     |   8  epoch, 16 bytes
//!  24  number u64                           |  32  checksum of the previous batch, 16 bytes
//!  48  checksum of this batch, 16 bytes (computed with these bytes zero)
//!  64  length u32 | payload bytes u32       |  72  last sequence u64
//!  80  flags u32  | positions u32           |  88  positions, 24 bytes each, at most 6
//! 256  payload: records
//! ```
//! Little-endian; `length` is a multiple of 4 KiB and covers header, payload
//! and zero padding, as does the checksum (BLAKE3 cut to 128 bits). The chain
//! of checksums and the random epoch tie a batch to its predecessor and to one
//! opening of the pool, so that nothing left over from an earlier lap of the
//! ring can be taken for its successor. A torn batch fails its checksum.
//!
//! A position says of one open data segment up to where its stripes are closed
//! and synced; it was true before the batch was written (R14).

use tessera_dedup::Generation;
use tessera_raid::{
    SegmentId,
    device::{AlignedBuf, BLOCK_BYTES},
};

/// Bytes before the payload.
pub const BATCH_HEADER_BYTES: usize = 256;
/// Most positions of a batch.
pub const POSITIONS_MAX: usize = 6;
/// A batch is shorter than this; a length beyond it is damage.
pub const BATCH_BYTES_MAX: u32 = 256 << 20;

const MAGIC: &[u8; 8] = b"TSRBATCH";
const AT_EPOCH: usize = 8;
const AT_NUMBER: usize = AT_EPOCH + 16;
const AT_PREVIOUS: usize = AT_NUMBER + 8;
const AT_CHECKSUM: usize = AT_PREVIOUS + 16;
const AT_LENGTH: usize = AT_CHECKSUM + 16;
const AT_PAYLOAD: usize = AT_LENGTH + 4;
const AT_SEQUENCE: usize = AT_PAYLOAD + 4;
const AT_FLAGS: usize = AT_SEQUENCE + 8;
const AT_COUNT: usize = AT_FLAGS + 4;
const AT_POSITIONS: usize = AT_COUNT + 4;
const POSITION_BYTES: usize = 24;
const _: () = assert!(AT_POSITIONS == 88);
const _: () = assert!(AT_POSITIONS + POSITIONS_MAX * POSITION_BYTES <= BATCH_HEADER_BYTES);

const FLAG_WRAP: u32 = 1;

/// Identifies one opening of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch(pub [u8; 16]);

/// The checksum that chains batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChainChecksum(pub [u8; 16]);

/// Up to where the stripes of an open data segment are closed and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncedPosition {
    /// The segment.
    pub segment: SegmentId,
    /// Its generation.
    pub generation: Generation,
    /// Bytes of its data space in closed and synced stripes.
    pub closed_bytes: u32,
}

/// The fields of a batch besides its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeader {
    /// The opening of the pool it belongs to.
    pub epoch: Epoch,
    /// Counts from 0 within the epoch.
    pub number: u64,
    /// The checksum of batch `number - 1`.
    pub previous: ChainChecksum,
    /// The newest write sequence it makes durable.
    pub last_sequence: u64,
    /// The next batch is at the start of the ring.
    pub wrap: bool,
    /// Of every open data segment.
    pub positions: Vec<SyncedPosition>,
}

/// A batch that passed every check.
#[derive(Debug)]
pub struct Batch {
    /// Its fields.
    pub header: BatchHeader,
    /// Its own checksum.
    pub checksum: ChainChecksum,
    /// The records.
    pub payload: Vec<u8>,
    /// Bytes it takes in the ring.
    pub length: u64,
}

/// What a block that may begin a batch claims, before its checksum is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub number: u64,
    /// Its length in bytes, a multiple of the block, at most [`BATCH_BYTES_MAX`].
    pub length: usize,
}

/// Bytes that a payload of this length takes in the ring.
pub fn batch_bytes(payload: usize) -> usize {
    (BATCH_HEADER_BYTES + payload).next_multiple_of(BLOCK_BYTES)
}

/// Encodes a batch whose payload is the concatenation of `parts`.
pub fn encode(header: &BatchHeader, parts: &[&[u8]]) -> (AlignedBuf, ChainChecksum) {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let mut buffer = AlignedBuf::zeroed(batch_bytes(payload));
    let length = u32::try_from(buffer.len()).expect("a batch is smaller than 4 GiB");
    assert!(length <= BATCH_BYTES_MAX && header.positions.len() <= POSITIONS_MAX);
    let mut put = |at: usize, field: &[u8]| buffer[at..at + field.len()].copy_from_slice(field);
    put(0, MAGIC);
    put(AT_EPOCH, &header.epoch.0);
    put(AT_NUMBER, &header.number.to_le_bytes());
    put(AT_PREVIOUS, &header.previous.0);
    put(AT_LENGTH, &length.to_le_bytes());
    put(
        AT_PAYLOAD,
        &u32::try_from(payload)
            .expect("less than the length")
            .to_le_bytes(),
    );
    put(AT_SEQUENCE, &header.last_sequence.to_le_bytes());
    put(
        AT_FLAGS,
        &(if header.wrap { FLAG_WRAP } else { 0 }).to_le_bytes(),
    );
    put(
        AT_COUNT,
        &u32::try_from(header.positions.len())
            .expect("at most six")
            .to_le_bytes(),
    );
    for (at, position) in (AT_POSITIONS..)
        .step_by(POSITION_BYTES)
        .zip(&header.positions)
    {
        put(at, &position.segment.0.to_le_bytes());
        put(at + 4, &position.closed_bytes.to_le_bytes());
        put(at + 8, &position.generation.0.to_le_bytes());
    }
    let mut at = BATCH_HEADER_BYTES;
    for part in parts {
        put(at, part);
        at += part.len();
    }
    let checksum = checksum_of(&buffer);
    buffer[AT_CHECKSUM..AT_CHECKSUM + 16].copy_from_slice(&checksum.0);
    (buffer, checksum)
}

/// What the first block at a position claims to begin; `None` if no batch.
pub fn claim(block: &[u8]) -> Option<Claim> {
    if block.len() < BATCH_HEADER_BYTES || block[..8] != MAGIC[..] {
        return None;
    }
    let length = u32_at(block, AT_LENGTH)?;
    let whole = length > 0
        && length <= BATCH_BYTES_MAX
        && usize::try_from(length).ok()?.is_multiple_of(BLOCK_BYTES);
    whole.then_some(Claim {
        epoch: Epoch(block[AT_EPOCH..AT_NUMBER].try_into().ok()?),
        number: u64_at(block, AT_NUMBER)?,
        length: usize::try_from(length).ok()?,
    })
}

/// Verifies and decodes a whole batch.
pub fn decode(bytes: &[u8]) -> Option<Batch> {
    let claim = claim(bytes)?;
    if bytes.len() != claim.length {
        return None;
    }
    let checksum = ChainChecksum(bytes[AT_CHECKSUM..AT_CHECKSUM + 16].try_into().ok()?);
    if checksum != checksum_of(bytes) {
        return None;
    }
    let payload = usize::try_from(u32_at(bytes, AT_PAYLOAD)?).ok()?;
    let count = usize::try_from(u32_at(bytes, AT_COUNT)?).ok()?;
    let flags = u32_at(bytes, AT_FLAGS)?;
    if count > POSITIONS_MAX || flags & !FLAG_WRAP != 0 {
        return None;
    }
    let position = |at: usize| {
        Some(SyncedPosition {
            segment: SegmentId(u32_at(bytes, at)?),
            closed_bytes: u32_at(bytes, at + 4)?,
            generation: Generation(u64_at(bytes, at + 8)?),
        })
    };
    Some(Batch {
        header: BatchHeader {
            epoch: claim.epoch,
            number: claim.number,
            previous: ChainChecksum(bytes[AT_PREVIOUS..AT_PREVIOUS + 16].try_into().ok()?),
            last_sequence: u64_at(bytes, AT_SEQUENCE)?,
            wrap: flags & FLAG_WRAP != 0,
            positions: (AT_POSITIONS..)
                .step_by(POSITION_BYTES)
                .take(count)
                .map(position)
                .collect::<Option<_>>()?,
        },
        checksum,
        payload: bytes
            .get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + payload)?
            .to_vec(),
        length: u64::try_from(claim.length).ok()?,
    })
}

fn checksum_of(bytes: &[u8]) -> ChainChecksum {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..AT_CHECKSUM]);
    hasher.update(&[0; 16]);
    hasher.update(&bytes[AT_CHECKSUM + 16..]);
    let mut cut = [0; 16];
    cut.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    ChainChecksum(cut)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(payload: &[u8]) -> (BatchHeader, AlignedBuf) {
        let header = BatchHeader {
            epoch: Epoch([7; 16]),
            number: 3,
            previous: ChainChecksum([9; 16]),
            last_sequence: 99,
            wrap: false,
            positions: vec![SyncedPosition {
                segment: SegmentId(5),
                generation: Generation(6),
                closed_bytes: 8192,
            }],
        };
        let (buffer, _) = encode(&header, &[payload]);
        (header, buffer)
    }

    proptest! {
        #[test]
        fn batches_round_trip(payload in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let (header, buffer) = sample(&payload);
            let batch = decode(&buffer).unwrap();
            prop_assert_eq!(batch.header, header);
            prop_assert_eq!(batch.payload, payload);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn every_single_bit_damage_is_refused() {
        let (_, mut buffer) = sample(&[1, 2, 3]);
        for bit in 0..buffer.len() * 8 {
            buffer[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&buffer).is_none(), "bit {bit}");
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(decode(&buffer).is_some());
    }
}
