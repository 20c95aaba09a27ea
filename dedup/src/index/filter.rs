//! A filter over every prefix in the database: most new chunks are answered
//! "not there" from memory.
//!
//! A split-block Bloom filter (Putze, Sanders, Singler 2007, in the form
//! Parquet uses): one prefix touches one cache line of eight words and sets a
//! bit in each. At ten bits a prefix about 1 % of answers are false alarms;
//! beyond, they grow, and the database's own filters and the lookup budget
//! (R10) carry the rest. Prefixes are never taken out; stale ones cost a false
//! alarm until the filter is filled anew at the next start.

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
        // The high half scaled to the number of blocks: no division.
        let blocks = self.blocks.len() as u64; // usize is at most 64 bits
        let index = ((prefix >> 32) * (blocks & 0xffff_ffff)) >> 32;
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

    #[test]
    fn false_alarms_are_rare_at_ten_bits() {
        let filter = Filter::new(100_000 * 10 / 8);
        for n in 0..100_000 {
            filter.insert(prefix(n));
        }
        filter.set_complete();
        let alarms = (100_000..200_000)
            .filter(|n| filter.may_contain(prefix(*n)))
            .count();
        assert!(alarms < 2_000, "{alarms}");
    }
}
