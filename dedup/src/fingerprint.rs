//! A chunk's identity: the BLAKE3-256 of its bytes.
//!
//! BLAKE3 cuts its input into 1 KiB leaves and hashes as many of them side by
//! side as the processor has lanes. A 4 KiB chunk has only four leaves, so one
//! chunk alone leaves most of 8 (AVX2) or 16 (AVX-512) lanes empty. Since
//! hashing is the largest part of the work a write costs, [`fingerprint_many`]
//! fills the lanes with leaves of *different* chunks instead: leaf `k` of all
//! chunks in one call, then their parent nodes likewise.
//!
//! ```text
//!             lane 0        lane 1        lane 2   ...
//!  call 0     chunk 0 [0]   chunk 1 [0]   chunk 2 [0]
//!  call 1     chunk 0 [1]   chunk 1 [1]   chunk 2 [1]
//!  ...
//!  parents    (0,1) (2,3) of chunk 0, of chunk 1, ...
//!  roots      root of chunk 0, of chunk 1, ...
//! ```
//!
//! The lanes are reached through `blake3::platform`, which the crate exports
//! for benchmarks without a promise of stability: hence the exact version in
//! `Cargo.toml`, and the property test that compares every result with
//! `blake3::hash`.

use std::{fmt, sync::LazyLock};

use blake3::{IncrementCounter, platform::Platform};

/// The BLAKE3-256 of a chunk's logical (uncompressed) bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The first eight bytes, big-endian, so that number order is byte order.
    pub fn prefix(&self) -> u64 {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(prefix)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({:016x}..)", self.prefix())
    }
}

/// Bytes of a BLAKE3 leaf.
const LEAF: usize = 1024;
/// Chunks hashed in one go: enough for the widest lanes, small enough that
/// the chaining values stay in the first-level cache.
const GROUP: usize = 16;
/// Most leaves of a chunk that goes through the lanes. Longer chunks fill
/// them on their own.
const MAX_LEAVES: usize = 8;
const CV: usize = 32;
/// The BLAKE3 initial chaining value: that of SHA-256.
const IV: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;

static PLATFORM: LazyLock<Platform> = LazyLock::new(Platform::detect);

/// The fingerprint of one chunk.
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    Fingerprint(*blake3::hash(bytes).as_bytes())
}

/// The fingerprints of many chunks, in order; replaces what `out` held.
///
/// Fastest when neighbours have the same length, as the chunks of one volume
/// do. Any lengths are right.
pub fn fingerprint_many(chunks: &[&[u8]], out: &mut Vec<Fingerprint>) {
    out.clear();
    out.reserve(chunks.len());
    let mut rest = chunks;
    while let Some(first) = rest.first() {
        let length = first.len();
        let alike = rest
            .iter()
            .take(GROUP)
            .take_while(|chunk| chunk.len() == length)
            .count();
        let lanes = PLATFORM.simd_degree();
        let together = match length {
            // Measured: below eight chunks the lanes are no fuller than one
            // chunk's own leaves fill them, and a rest of one to three runs
            // without lanes at all.
            4096 if lanes >= 8 && alike >= 8 => alike - alike % 4,
            8192 if lanes >= 16 && alike == GROUP => alike,
            _ => 0,
        };
        let (group, tail) = rest.split_at(together.max(1));
        match (together, length) {
            (0, _) => out.push(fingerprint(first)),
            (_, 4096) => hash_group::<4>(group, out),
            _ => hash_group::<8>(group, out),
        }
        rest = tail;
    }
}

/// Hashes up to [`GROUP`] chunks of `LEAVES` KiB, a power of two.
fn hash_group<const LEAVES: usize>(group: &[&[u8]], out: &mut Vec<Fingerprint>) {
    const { assert!(LEAVES.is_power_of_two() && LEAVES > 1 && LEAVES <= MAX_LEAVES) };
    let count = group.len();
    debug_assert!(count <= GROUP);
    // Chaining values as `[leaf][chunk]`, later turned to `[chunk][leaf]`.
    let mut lanes = [0u8; MAX_LEAVES * GROUP * CV];
    let mut empty: [&[u8; LEAF]; GROUP] = [&[0; LEAF]; GROUP];
    for leaf in 0..LEAVES {
        for (lane, chunk) in empty.iter_mut().zip(group) {
            *lane = chunk[leaf * LEAF..][..LEAF]
                .try_into()
                .expect("a leaf is LEAF bytes");
        }
        PLATFORM.hash_many(
            &empty[..count],
            &IV,
            leaf as u64, // leaf < 8
            IncrementCounter::No,
            0,
            CHUNK_START,
            CHUNK_END,
            &mut lanes[leaf * count * CV..][..count * CV],
        );
    }
    let mut values = [0u8; MAX_LEAVES * GROUP * CV];
    for leaf in 0..LEAVES {
        for chunk in 0..count {
            values[(chunk * LEAVES + leaf) * CV..][..CV]
                .copy_from_slice(&lanes[(leaf * count + chunk) * CV..][..CV]);
        }
    }
    // Pairs of one level become the next; with a power of two of leaves no
    // pair spans two chunks.
    let mut width = LEAVES;
    while width > 1 {
        let flags = if width == 2 { PARENT | ROOT } else { PARENT };
        let nodes = count * width / 2;
        let (pairs, _) = values[..nodes * 2 * CV].as_chunks::<{ 2 * CV }>();
        // Up to 64 nodes: in calls of GROUP, to keep the list on the stack.
        for (index, pairs) in pairs.chunks(GROUP).enumerate() {
            let mut inputs: [&[u8; 2 * CV]; GROUP] = [&[0; 2 * CV]; GROUP];
            for (input, pair) in inputs.iter_mut().zip(pairs) {
                *input = pair;
            }
            PLATFORM.hash_many(
                &inputs[..pairs.len()],
                &IV,
                0,
                IncrementCounter::No,
                flags,
                0,
                0,
                &mut lanes[index * GROUP * CV..][..pairs.len() * CV],
            );
        }
        std::mem::swap(&mut lanes, &mut values);
        width /= 2;
    }
    let (roots, _) = values[..count * CV].as_chunks::<CV>();
    out.extend(roots.iter().map(|root| Fingerprint(*root)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut out);
        out
    }

    fn check(lengths: &[usize], seed: u64) {
        let chunks: Vec<Vec<u8>> = lengths
            .iter()
            .zip(seed..)
            .map(|(length, seed)| bytes(seed, *length))
            .collect();
        let views: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let mut out = vec![Fingerprint([9; 32])];
        fingerprint_many(&views, &mut out);
        assert_eq!(out.len(), views.len());
        for (chunk, found) in views.iter().zip(&out) {
            assert_eq!(
                found.0,
                *blake3::hash(chunk).as_bytes(),
                "length {}",
                chunk.len()
            );
        }
    }

    #[test]
    fn every_group_size_agrees_with_blake3() {
        for length in [4096, 8192, 16384, 32768] {
            for count in 0..=2 * GROUP + 1 {
                check(&vec![length; count], 7);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn mixed_lengths_agree_with_blake3(
            lengths in prop::collection::vec(
                prop_oneof![
                    4 => Just(4096usize), 2 => Just(8192), 1 => Just(16384), 1 => Just(65536),
                    1 => Just(0), 2 => 1usize..9000,
                ],
                0..50,
            ),
            seed in 0u64..1 << 40,
        ) {
            check(&lengths, seed);
        }
    }

    #[test]
    fn prefix_keeps_byte_order() {
        let low = Fingerprint([[0, 1].repeat(16)].concat().try_into().unwrap());
        let high = Fingerprint([[1, 0].repeat(16)].concat().try_into().unwrap());
        assert!(low < high && low.prefix() < high.prefix());
    }
}
