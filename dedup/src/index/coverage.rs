//! Which generations the database covers: the stamp that makes an old copy of
//! it usable (R8).
//!
//! ```text
//!  offset
//!       0  magic "TSCOVER1"
//!       8  pool uuid, 16 bytes
//!      24  intervals u32 | rate u8: zero bits of the prefixes kept | zero, 3 bytes
//!      32  first u64 | last u64, inclusive; ascending, with gaps between
//!     end  CRC32C of all before, u32
//! ```
//!
//! The stamp is a value in the database and reaches it in the same file as the
//! entries it speaks for, so it never claims more than there is. Generations
//! are issued in order and freed ones stay in the set, so it is few intervals.
//!
//! A generation is covered when all its fingerprints are in that the rate
//! keeps; so a set stays true when the rate becomes sparser.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::sampling::Rate;
use crate::Generation;

const MAGIC: [u8; 8] = *b"TSCOVER1";
const HEADER: usize = 32;
const INTERVAL: usize = 16;
/// Intervals kept; the oldest are forgotten beyond. What is forgotten is read
/// in once more, nothing else.
const INTERVALS_MAX: usize = 1 << 16;

/// A set of generations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// First to last, inclusive.
    intervals: BTreeMap<u64, u64>,
    /// Which of their fingerprints.
    pub(crate) rate: Rate,
}

impl Coverage {
    pub(crate) fn contains(&self, generation: Generation) -> bool {
        self.intervals
            .range(..=generation.0)
            .next_back()
            .is_some_and(|(_, last)| *last >= generation.0)
    }

    pub(crate) fn insert(&mut self, generation: Generation) {
        let Generation(at) = generation;
        if self.contains(generation) {
            return;
        }
        let mut first = at;
        let mut last = at;
        if let Some((before, end)) = self.intervals.range(..at).next_back()
            && end.checked_add(1) == Some(at)
        {
            first = *before;
        }
        if let Some(next) = at.checked_add(1)
            && let Some(end) = self.intervals.remove(&next)
        {
            last = end;
        }
        self.intervals.insert(first, last);
        if self.intervals.len() > INTERVALS_MAX {
            self.intervals.pop_first();
        }
    }

    pub(crate) fn encode(&self, pool: Uuid) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.intervals.len() * INTERVAL + 4);
        let count = u32::try_from(self.intervals.len()).expect("at most INTERVALS_MAX");
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(pool.as_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[self.rate.bits(), 0, 0, 0]);
        for (first, last) in &self.intervals {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&last.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The pool and the set; `None` when no encoder can have made the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Uuid, Self)> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (header, list) = body.split_at_checked(HEADER)?;
        let count = u32::from_le_bytes(header[24..28].try_into().ok()?);
        if header[..8] != MAGIC || header[29..] != [0; 3] || list.len() % INTERVAL != 0 {
            return None;
        }
        if list.len() / INTERVAL != usize::try_from(count).ok()? {
            return None;
        }
        let mut intervals = BTreeMap::new();
        let mut free_from = Some(0u64);
        for interval in list.chunks_exact(INTERVAL) {
            let (first, last) = interval.split_at(8);
            let first = u64::from_le_bytes(first.try_into().ok()?);
            let last = u64::from_le_bytes(last.try_into().ok()?);
            if first < free_from? || last < first {
                return None;
            }
            intervals.insert(first, last);
            free_from = last.checked_add(2);
        }
        let pool = Uuid::from_bytes(header[8..24].try_into().ok()?);
        let rate = Rate::from_bits(header[28])?;
        Some((pool, Self { intervals, rate }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn coverage_is_a_set_and_round_trips(
            inserted in prop::collection::vec(
                prop_oneof![0u64..60, u64::MAX - 30..=u64::MAX], 0..80),
            bits in 0..=Rate::SPARSEST.bits(),
        ) {
            let rate = Rate::from_bits(bits).unwrap();
            let mut coverage = Coverage { rate, ..Coverage::default() };
            let mut model = BTreeSet::new();
            for generation in inserted {
                coverage.insert(Generation(generation));
                model.insert(generation);
            }
            for generation in (0..64).chain(u64::MAX - 34..=u64::MAX) {
                prop_assert_eq!(coverage.contains(Generation(generation)), model.contains(&generation));
            }
            let pool = Uuid::from_u128(7);
            prop_assert_eq!(Coverage::decode(&coverage.encode(pool)), Some((pool, coverage)));
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Coverage::decode(&bytes), None);
        }
    }

    #[test]
    fn every_single_bit_damage_is_refused() {
        let mut coverage = Coverage::default();
        for generation in [1, 2, 5, 9, 1 << 40] {
            coverage.insert(Generation(generation));
        }
        let mut bytes = coverage.encode(Uuid::from_u128(3));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Coverage::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn the_set_stays_bounded() {
        let mut coverage = Coverage::default();
        for generation in 0..INTERVALS_MAX as u64 + 10 {
            coverage.insert(Generation(generation * 2));
        }
        assert_eq!(coverage.intervals.len(), INTERVALS_MAX);
        assert!(!coverage.contains(Generation(0)));
        assert!(coverage.contains(Generation(40)));
    }
}
