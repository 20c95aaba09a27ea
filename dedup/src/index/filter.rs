//! A filter over every prefix in the database: most new chunks are answered
//! "not there" from memory.
//!
//! A split-block Bloom filter (Putze, Sanders, Singler 2007, in the form
//! Parquet uses): one prefix touches one cache line of eight words and sets a
//! bit in each. At ten bits a prefix about 1 % of answers are false alarms;
//! beyond, they grow, and the database's own filters and the lookup budget
//! (R10) carry the rest; from half of that on a filter is full, and
//! `sampling.rs` leaves out every other prefix. They are never taken out one by
//! one: stale ones cost a false alarm until the filter is filled anew.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const WORDS: usize = 8;
/// Odd multipliers, one for each word, as in the Parquet specification.
const SALTS: [u32; WORDS] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

/// 2^64 divided by the golden ratio, as in Fibonacci hashing; odd.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bits a prefix has at least: about one in nine answers is a false alarm then.
const BITS_LEAST: u64 = 6;

/// See the module.
pub(crate) struct Filter {
    blocks: Vec<[AtomicU64; WORDS]>,
    /// Until every prefix of the database is in, the answer is "maybe".
    complete: AtomicBool,
    count: AtomicU64,
}

impl Filter {
    /// Uses `bytes` of memory, rounded down to whole blocks, at least one.
    pub(crate) fn new(bytes: usize) -> Self {
        let blocks = (bytes / size_of::<[AtomicU64; WORDS]>()).max(1);
        Self {
            blocks: (0..blocks).map(|_| Default::default()).collect(),
            complete: AtomicBool::new(false),
            count: AtomicU64::new(0),
        }
    }

    fn block(&self, prefix: u64) -> &[AtomicU64; WORDS] {
        // A sample of prefixes begins with zeros: all bits have a say in the
        // block. Scaled to the number of blocks: no division.
        let mixed = prefix.wrapping_mul(MIX) >> 32;
        let blocks = self.blocks.len() as u64; // usize is at most 64 bits
        let index = (mixed * (blocks & 0xffff_ffff)) >> 32;
        &self.blocks[usize::try_from(index).expect("below the number of blocks")]
    }

    fn bits(prefix: u64) -> impl Iterator<Item = u64> {
        let low = prefix as u32; // the low half, on purpose
        SALTS
            .iter()
            .map(move |salt| 1 << (low.wrapping_mul(*salt) >> 26))
    }

    pub(crate) fn insert(&self, prefix: u64) {
        for (word, bit) in self.block(prefix).iter().zip(Self::bits(prefix)) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// False only when the prefix is certainly not in the database.
    pub(crate) fn may_contain(&self, prefix: u64) -> bool {
        !self.complete.load(Ordering::Acquire)
            || self
                .block(prefix)
                .iter()
                .zip(Self::bits(prefix))
                .all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Prefixes put in since it was empty.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Prefixes it is to take at the most.
    pub(crate) fn capacity(&self) -> u64 {
        self.memory_bytes() as u64 * 8 / BITS_LEAST // usize is at most 64 bits
    }

    /// Empties it, to be filled anew; denies nothing until then. Who looks
    /// something up meanwhile may be told that it is not there, once.
    pub(crate) fn clear(&self) {
        self.complete.store(false, Ordering::Release);
        for word in self.blocks.iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
        self.count.store(0, Ordering::Relaxed);
    }

    /// Every prefix of the database is in.
    pub(crate) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice())
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("blocks", &self.blocks.len())
            .field("complete", &self.complete)
            .field("count", &self.count)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(n: u64) -> u64 {
        crate::fingerprint(&n.to_le_bytes()).prefix()
    }

    proptest! {
        #[test]
        fn nothing_inserted_is_ever_denied(
            prefixes in prop::collection::vec(any::<u64>(), 0..200), bytes in 0usize..5000,
        ) {
            let filter = Filter::new(bytes);
            for prefix in &prefixes {
                filter.insert(*prefix);
            }
            filter.set_complete();
            prop_assert!(prefixes.iter().all(|prefix| filter.may_contain(*prefix)));
        }
    }

    #[test]
    fn an_incomplete_filter_denies_nothing() {
        let filter = Filter::new(1 << 16);
        assert!((0..1000).all(|n| filter.may_contain(prefix(n))));
    }

    /// Of 100,000 prefixes with so many leading zeros that are not there.
    fn alarms(filter: &Filter, zeros: u32) -> usize {
        for n in 0..100_000 {
            filter.insert(prefix(n) >> zeros);
        }
        filter.set_complete();
        (100_000..200_000)
            .filter(|n| filter.may_contain(prefix(*n) >> zeros))
            .count()
    }

    #[test]
    fn false_alarms_are_rare_at_ten_bits_whatever_the_sample() {
        for zeros in [0, 1, 8] {
            let alarms = alarms(&Filter::new(100_000 * 10 / 8), zeros);
            assert!(alarms < 2_000, "{alarms}");
        }
    }

    #[test]
    fn a_full_filter_still_denies_most() {
        let filter = Filter::new(100_000 * 6 / 8);
        assert!((99_000..=100_000).contains(&filter.capacity()));
        let alarms = alarms(&filter, 0);
        assert!(alarms < 15_000, "{alarms}");
    }

    #[test]
    fn a_cleared_filter_denies_nothing_until_it_is_complete() {
        let filter = Filter::new(1 << 16);
        filter.insert(prefix(1));
        filter.set_complete();
        assert!(!filter.may_contain(prefix(2)));
        filter.clear();
        assert!(filter.may_contain(prefix(2)));
        assert_eq!(filter.count(), 0);
        filter.set_complete();
        assert!(!filter.may_contain(prefix(1)));
    }
}
