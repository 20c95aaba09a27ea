//! The stored form of a chunk: zero test, LZ4 when it pays, packing.
//!
//! A chunk is stored raw, or as one LZ4 block when that saves at least an
//! eighth. Packing within a segment's data space:
//!
//! ```text
//!  4 KiB block   |         |         |         |         |
//!  raw 4 KiB     |rrrrrrrrr|                                aligned
//!  lz4 <= 4 KiB             aaa bbbb  ccccc                 never straddles
//!  lz4 >  4 KiB                       |dddddddddddd         starts aligned
//! ```
//!
//! So one block read serves any short chunk, and a raw chunk can be read
//! straight into an aligned buffer.

use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into,
    get_maximum_output_size,
};

use crate::EntryKind;

/// The unit of packing, in bytes.
pub const PACK_BLOCK: u32 = 4096;
/// The longest logical chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// True when every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Data that is not zero nearly always shows it at once.
    let (head, _) = bytes.as_chunks::<8>();
    if let Some(first) = head.first()
        && u64::from_ne_bytes(*first) != 0
    {
        return false;
    }
    let (blocks, tail) = bytes.as_chunks::<256>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words
            .iter()
            .fold(0, |all, word| all | u64::from_ne_bytes(*word))
            == 0
    }) && tail.iter().all(|byte| *byte == 0)
}

/// The first position at or after `position` where a stored chunk may start.
pub fn place(position: u32, kind: EntryKind, stored: u32) -> u32 {
    let aligned = position.next_multiple_of(PACK_BLOCK);
    match kind {
        EntryKind::Lz4 if stored <= PACK_BLOCK => {
            let room = PACK_BLOCK - position % PACK_BLOCK;
            if stored <= room { position } else { aligned }
        }
        _ => aligned,
    }
}

/// Bytes at the start of sampled pieces of a chunk that [`looks_random`] reads.
const SAMPLE: usize = 256;
/// Distinct byte values above which a sample of [`SAMPLE`] bytes counts as
/// random. Uniform bytes give 162 with a deviation of 6; text, code and tables
/// stay below 110.
const DISTINCT_RANDOM: u32 = 138;
/// Chunks that look random of which one is tried all the same.
const RETRY_RANDOM: u32 = 32;
/// Longest run of chunks skipped after LZ4 kept failing.
const MAX_SKIP: u32 = 16;

/// Whether the bytes look as if no compressor could shorten them.
fn looks_random(chunk: &[u8]) -> bool {
    const PIECE: usize = 16;
    if chunk.len() < 4 * SAMPLE {
        return false;
    }
    let stride = chunk.len() / (SAMPLE / PIECE);
    let mut seen = [0u64; 4];
    for piece in chunk.chunks(stride).take(SAMPLE / PIECE) {
        for byte in &piece[..PIECE] {
            seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
    }
    seen.iter().map(|word| word.count_ones()).sum::<u32>() > DISTINCT_RANDOM
}

/// Compresses chunks of one stream of writes.
///
/// It holds scratch memory and remembers how the last chunks went: it gives up
/// on a chunk that looks random without running LZ4, and on a stream whose
/// chunks keep failing it tries only now and then.
pub struct Compressor {
    table: CompressTable,
    scratch: Vec<u8>,
    /// Chunks that looked random since one was tried.
    random: u32,
    /// The sample was wrong lately: this many more are tried.
    distrust: u32,
    /// Failures of LZ4 in a row.
    failures: u32,
    /// Chunks still to be skipped.
    skip: u32,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor")
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Compressor {
    /// With an empty memory.
    pub fn new() -> Self {
        Self {
            table: CompressTable::small(),
            scratch: Vec::new(),
            random: 0,
            distrust: 0,
            failures: 0,
            skip: 0,
        }
    }

    /// The LZ4 form of the chunk if it saves at least an eighth and was worth
    /// trying.
    pub fn compress(&mut self, chunk: &[u8]) -> Option<&[u8]> {
        let random = looks_random(chunk);
        if random && self.distrust == 0 {
            self.random += 1;
            if self.random < RETRY_RANDOM {
                return None;
            }
            self.random = 0;
        } else if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let room = get_maximum_output_size(chunk.len());
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let limit = chunk.len() - chunk.len() / 8;
        match compress_into_with_table(chunk, &mut self.scratch, &mut self.table) {
            Ok(length) if length <= limit && length > 0 => {
                self.failures = 0;
                self.skip = 0;
                if random {
                    self.distrust = RETRY_RANDOM;
                }
                Some(&self.scratch[..length])
            }
            _ => {
                self.failures = self.failures.saturating_add(1);
                // The first few failures are the stream's variety.
                self.skip = self.failures.saturating_sub(2).min(MAX_SKIP);
                self.distrust = self.distrust.saturating_sub(1);
                None
            }
        }
    }
}

/// Why stored bytes do not give a chunk.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not a well-formed LZ4 block, or longer than a chunk.
    #[error("Compressed chunk is malformed")]
    Malformed(#[source] DecompressError),
    /// The chunk is shorter or longer than expected.
    #[error("Chunk has {actual} bytes where {expected} were expected")]
    Length {
        /// Bytes wanted.
        expected: usize,
        /// Bytes found.
        actual: usize,
    },
    /// An entry kind that stores nothing.
    #[error("A chunk of kind {0:?} has no stored bytes")]
    NotStored(EntryKind),
}

/// Turns stored bytes into the chunk; `target` is exactly the chunk's length.
pub fn decompress(stored: &[u8], kind: EntryKind, target: &mut [u8]) -> Result<(), CodecError> {
    let expected = target.len();
    let actual = match kind {
        EntryKind::Raw | EntryKind::Page => {
            if stored.len() == expected {
                target.copy_from_slice(stored);
            }
            stored.len()
        }
        EntryKind::Lz4 => decompress_into(stored, target).map_err(CodecError::Malformed)?,
        EntryKind::Hole | EntryKind::Zero | EntryKind::Lost => {
            return Err(CodecError::NotStored(kind));
        }
    };
    if actual == expected {
        Ok(())
    } else {
        Err(CodecError::Length { expected, actual })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn random(seed: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut out);
        out
    }

    fn text(seed: usize, length: usize) -> Vec<u8> {
        let words = [
            "stripe", "member", "pool", " ", "\n", "segment=", "0x1f", "journal",
        ];
        let mut out = Vec::new();
        let mut state = seed;
        while out.len() < length {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            out.extend_from_slice(words[(state >> 33) % words.len()].as_bytes());
        }
        out.truncate(length);
        out
    }

    proptest! {
        #[test]
        fn one_set_byte_anywhere_is_not_zero(length in 0usize..5000, at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = vec![0; length];
            prop_assert!(is_zero(&bytes));
            if length > 0 {
                bytes[at.index(length)] = 1 << bit;
                prop_assert!(!is_zero(&bytes));
            }
        }

        #[test]
        fn placed_chunks_keep_the_packing_rule(
            position in 0u32..1 << 20, stored in 1u32..65536, lz4: bool,
        ) {
            let kind = if lz4 { EntryKind::Lz4 } else { EntryKind::Raw };
            let start = place(position, kind, stored);
            prop_assert!(start >= position && start - position < PACK_BLOCK);
            if lz4 && stored <= PACK_BLOCK {
                prop_assert_eq!(start / PACK_BLOCK, (start + stored - 1) / PACK_BLOCK);
                // No room is wasted when the chunk fits where it is.
                if position / PACK_BLOCK == (position + stored - 1) / PACK_BLOCK {
                    prop_assert_eq!(start, position);
                }
            } else {
                prop_assert_eq!(start % PACK_BLOCK, 0);
            }
        }

        #[test]
        fn compressed_chunks_round_trip_and_pay(
            seeds in prop::collection::vec((any::<u16>(), 0u8..3), 1..40), size in 0u32..5,
        ) {
            let length = 4096usize << size;
            let mut compressor = Compressor::new();
            for (seed, class) in seeds {
                let seed = usize::from(seed);
                let chunk = match class {
                    0 => text(seed, length),
                    1 => random(seed as u64, length),
                    _ => [text(seed, length / 2), random(seed as u64, length / 2)].concat(),
                };
                if let Some(stored) = compressor.compress(&chunk) {
                    prop_assert!(stored.len() <= length - length / 8);
                    let stored = stored.to_vec();
                    let mut back = vec![0; length];
                    decompress(&stored, EntryKind::Lz4, &mut back).unwrap();
                    prop_assert_eq!(back, chunk);
                }
            }
        }

        #[test]
        fn garbage_never_panics(
            stored in prop::collection::vec(any::<u8>(), 0..300), length in 0usize..5000,
        ) {
            let mut target = vec![0; length];
            let _ = decompress(&stored, EntryKind::Lz4, &mut target);
        }
    }

    #[test]
    fn text_is_compressed_even_after_much_random_data() {
        let mut compressor = Compressor::new();
        for seed in 0..1000 {
            assert!(compressor.compress(&random(seed, 4096)).is_none());
        }
        let compressed = (0..100)
            .filter(|seed| compressor.compress(&text(*seed, 4096)).is_some())
            .count();
        assert!(compressed >= 100 - 2 * MAX_SKIP as usize, "{compressed}");
    }

    #[test]
    fn random_data_is_given_up_without_trying() {
        let skipped = (0..1000)
            .filter(|seed| looks_random(&random(*seed, 4096)))
            .count();
        assert!(skipped > 980, "{skipped}");
        assert!(!(0..1000).any(|seed| looks_random(&text(seed, 4096))));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let mut target = [0; 100];
        assert!(decompress(&[0; 99], EntryKind::Raw, &mut target).is_err());
        assert!(decompress(&[0; 101], EntryKind::Raw, &mut target).is_err());
        assert!(decompress(&[], EntryKind::Hole, &mut target).is_err());
        let mut compressor = Compressor::new();
        let stored = compressor.compress(&[7; 4096]).unwrap().to_vec();
        assert!(decompress(&stored, EntryKind::Lz4, &mut [0; 4095]).is_err());
        assert!(decompress(&stored, EntryKind::Lz4, &mut [0; 4097]).is_err());
        assert!(decompress(&stored, EntryKind::Lz4, &mut [0; 4096]).is_ok());
    }
}
