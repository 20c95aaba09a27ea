//! Chunks appended lately: findable at once, before any database knows them.
//!
//! An entry is put in only once the chunk's bytes are in the stripe buffer
//! (R8), and by the writer that was elected under the append lock: whoever
//! comes second with the same bytes finds it here. It stays until its segment
//! is in the database or was dropped from the queue to it.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tessera_raid::SegmentId;

use super::{Hit, keyed::PrefixMap};
use crate::{Fingerprint, Generation};

/// Locks, so that connections rarely meet.
const SHARDS: usize = 16;
/// Memory an entry takes with its share of the table's empty places.
pub(crate) const FRESH_ENTRY_BYTES: usize = 128;

/// See the module.
#[derive(Debug)]
pub(crate) struct FreshTable {
    shards: Vec<Mutex<PrefixMap<(Fingerprint, Hit)>>>,
    count: AtomicUsize,
    limit: usize,
}

impl FreshTable {
    /// Holds at most `limit` entries; more are dropped (R10).
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            count: AtomicUsize::new(0),
            limit,
        }
    }

    fn shard(&self, prefix: u64) -> &Mutex<PrefixMap<(Fingerprint, Hit)>> {
        // The high bits: the map places by a mix of all.
        &self.shards[usize::try_from(prefix >> 60).expect("four bits")]
    }

    pub(crate) fn get(&self, fingerprint: &Fingerprint) -> Option<Hit> {
        let prefix = fingerprint.prefix();
        let shard = self.shard(prefix).lock();
        shard
            .get(&prefix)
            .filter(|(whole, _)| whole == fingerprint)
            .map(|(_, hit)| *hit)
    }

    pub(crate) fn insert(&self, fingerprint: Fingerprint, hit: Hit) {
        let prefix = fingerprint.prefix();
        let mut shard = self.shard(prefix).lock();
        if self.count.load(Ordering::Relaxed) >= self.limit && !shard.contains_key(&prefix) {
            return;
        }
        if shard.insert(prefix, (fingerprint, hit)).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes the entry with this prefix if it is of this segment.
    pub(crate) fn remove(&self, prefix: u64, segment: SegmentId, generation: Generation) {
        let mut shard = self.shard(prefix).lock();
        let own = shard
            .get(&prefix)
            .is_some_and(|(_, hit)| hit.entry.segment == segment && hit.generation == generation);
        if own {
            shard.remove(&prefix);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Removes every entry of a segment that nobody has a list of.
    pub(crate) fn remove_segment(&self, segment: SegmentId, generation: Generation) {
        if self.len() == 0 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard
                .retain(|_, (_, hit)| hit.entry.segment != segment || hit.generation != generation);
            self.count
                .fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.len() * FRESH_ENTRY_BYTES
    }
}
