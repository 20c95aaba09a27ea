//! Which fingerprints the index keeps when it cannot keep them all.
//!
//! ```text
//!   prefix   0000 01101..   kept down to 1 in 16
//!            0010 11010..   kept down to 1 in 4
//!            1011 00101..   kept only where all are kept
//! ```
//!
//! A rate of 1 in 2^n keeps the prefixes that begin with n zero bits. So what
//! a sparser rate keeps is the beginning of the key space: thinning out cuts
//! off its end, in whole files of the database, and filling the filter stops
//! early. Fingerprints are uniform, so it is a fair sample of the chunks; and
//! because summaries hold every fingerprint, one sampled chunk of a run of
//! duplicates finds the others (`neighbours.rs`).

/// One of so many fingerprints is kept; a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Rate(u8);

impl Rate {
    /// Every fingerprint.
    pub(crate) const ALL: Self = Self(0);
    /// 1 in 256: a group of 400 records, which is what a hit loads, has hardly
    /// more than one sample left.
    pub(crate) const SPARSEST: Self = Self(8);

    /// From its stored form.
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        Some(Self(bits)).filter(|rate| *rate <= Self::SPARSEST)
    }

    /// The stored form: the number of zero bits.
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    /// Half as many; `None` when no sparser rate is of use.
    pub(crate) fn halved(self) -> Option<Self> {
        Self::from_bits(self.0 + 1)
    }

    pub(crate) fn one_in(self) -> u64 {
        1 << self.0
    }

    /// The last prefix that is kept.
    pub(crate) fn last(self) -> u64 {
        u64::MAX >> self.0
    }

    pub(crate) fn keeps(self, prefix: u64) -> bool {
        prefix <= self.last()
    }

    /// Of `count` fingerprints at rate `of`, about so many are kept at this one.
    pub(crate) fn share(self, count: u64, of: Self) -> u64 {
        count >> self.0.saturating_sub(of.0)
    }

    /// The densest rate, no denser than this one, at which `count` fingerprints
    /// kept at this one become at most `limit`.
    pub(crate) fn fitting(self, count: u64, limit: u64) -> Self {
        let mut rate = self;
        while rate.share(count, self) > limit
            && let Some(next) = rate.halved()
        {
            rate = next;
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rate_keeps_half_of_the_one_before_and_nothing_else() {
        let mut rate = Rate::ALL;
        assert!(rate.keeps(u64::MAX));
        while let Some(next) = rate.halved() {
            assert_eq!(next.one_in(), 2 * rate.one_in());
            assert!(rate.keeps(next.last()) && next.keeps(next.last()));
            assert!(rate.keeps(next.last() + 1) && !next.keeps(next.last() + 1));
            rate = next;
        }
        assert_eq!(rate, Rate::SPARSEST);
        assert_eq!(Rate::from_bits(rate.bits()), Some(rate));
        assert_eq!(Rate::from_bits(rate.bits() + 1), None);
    }

    #[test]
    fn the_densest_rate_that_fits_is_chosen() {
        assert_eq!(Rate::ALL.fitting(1000, 1000), Rate::ALL);
        assert_eq!(Rate::ALL.fitting(1001, 500).one_in(), 2);
        assert_eq!(Rate::ALL.fitting(1000, 100).one_in(), 16);
        let half = Rate::ALL.halved().unwrap();
        assert_eq!(half.fitting(1000, 500).one_in(), 4);
        assert_eq!(half.fitting(1000, 5000), half);
        assert_eq!(Rate::ALL.fitting(u64::MAX, 0), Rate::SPARSEST);
    }
}
