//! The fingerprints below a threshold, each with the length of its chunk.

/// Bytes of memory for each slot at the most: twelve, and half as many again
/// while the table is made anew.
const SLOT_BYTES: usize = 18;
const SLOTS_AT_FIRST: usize = 1 << 12;
/// Of so many slots as many as the second number may be taken.
const LOAD: (usize, usize) = (4, 3);

/// What the table says of the chunks in it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) squares: f64,
}

/// Open addressing, because a map of the standard library may take twice the
/// memory it was meant to. A key of 0 is an empty slot; a fingerprint of 0 is
/// taken for 1, which is wrong once in 2^64.
#[derive(Debug)]
pub(super) struct Table {
    keys: Vec<u64>,
    lengths: Vec<u32>,
    slots_max: usize,
    halvings: u32,
    sample: Sample,
}

impl Table {
    pub(super) fn new(memory_bytes: usize) -> Self {
        let slots_max = (memory_bytes / SLOT_BYTES).max(SLOTS_AT_FIRST);
        Self {
            keys: vec![0; SLOTS_AT_FIRST],
            lengths: vec![0; SLOTS_AT_FIRST],
            slots_max,
            halvings: 0,
            sample: Sample::default(),
        }
    }

    /// The part of all distinct chunks that is kept.
    pub(super) fn share(&self) -> f64 {
        0.5_f64.powi(i32::try_from(self.halvings).unwrap_or(i32::MAX))
    }

    /// Bytes of slots, and of what is held besides while they are made anew.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        (self.keys.capacity() * SLOT_BYTES) as u64
    }

    pub(super) fn sample(&self) -> Sample {
        self.sample
    }

    fn is_kept(&self, prefix: u64) -> bool {
        prefix.leading_zeros() >= self.halvings
    }

    /// Whether a fingerprint is to be inserted: it is below the threshold and
    /// not there yet.
    pub(super) fn wants(&self, prefix: u64) -> bool {
        let key = prefix.max(1);
        self.is_kept(key) && self.keys[self.slot_of(key)] == 0
    }

    /// Inserts what [`Self::wants`] said yes to.
    pub(super) fn insert(&mut self, prefix: u64, length: u32) {
        let key = prefix.max(1);
        let (of, at_most) = LOAD;
        if (self.sample.count as usize + 1) * of > self.keys.len() * at_most {
            self.make_room();
            if !self.is_kept(key) {
                return;
            }
        }
        let slot = self.slot_of(key);
        (self.keys[slot], self.lengths[slot]) = (key, length);
        self.count(length);
    }

    fn count(&mut self, length: u32) {
        let length = f64::from(length);
        self.sample.count += 1;
        self.sample.sum += length;
        self.sample.squares += length * length;
    }

    /// Where the key is, or would be.
    fn slot_of(&self, key: u64) -> usize {
        // Keys are uniform below the threshold only: mix them.
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slots = self.keys.len();
        let scaled = (u128::from(mixed) * slots as u128) >> 64;
        let mut slot = usize::try_from(scaled).unwrap_or(0);
        while self.keys[slot] != 0 && self.keys[slot] != key {
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
        }
        slot
    }

    /// More slots while there may be; else half as many fingerprints.
    fn make_room(&mut self) {
        let slots = self.keys.len();
        if slots < self.slots_max {
            self.rebuild((2 * slots).min(self.slots_max));
            return;
        }
        let (of, at_most) = LOAD;
        let room = slots * at_most / of;
        // Once is enough unless all that is there is small by chance.
        while self.sample.count as usize >= room {
            self.halvings += 1;
            self.rebuild(slots);
        }
    }

    fn rebuild(&mut self, slots: usize) {
        let halvings = self.halvings;
        let kept: Vec<(u64, u32)> = self
            .keys
            .iter()
            .zip(&self.lengths)
            .filter(|(key, _)| **key != 0 && key.leading_zeros() >= halvings)
            .map(|(key, length)| (*key, *length))
            .collect();
        // Old slots go before the new ones come.
        (self.keys, self.lengths) = (Vec::new(), Vec::new());
        self.keys.resize(slots, 0);
        self.lengths.resize(slots, 0);
        self.sample = Sample::default();
        for (key, length) in kept {
            let slot = self.slot_of(key);
            (self.keys[slot], self.lengths[slot]) = (key, length);
            self.count(length);
        }
    }
}
