//! The database behind the index, as a seam: RocksDB, or its twin in memory.
//!
//! A key is the first eight bytes of a fingerprint. Two chunks of one pool
//! share them once in some billions; then one of the two is not found, which
//! costs a duplicate and nothing else, because a hit is verified with all 32
//! bytes (R8). Eight bytes instead of 32 halve the database.
//!
//! A value is the number of the record in the segment's summary, not a
//! position: the record leads to the one summary block that verifies the hit,
//! and the position is in it.
//!
//! ```text
//!  key    prefix, 8 bytes, big-endian
//!  value  segment u32 | record, 24 bits | generation, low 32 bits   (LE, 11 bytes)
//! ```

use std::{collections::BTreeMap, ops::Bound};

use parking_lot::Mutex;
use tessera_raid::SegmentId;

/// Bytes of an encoded location.
pub(crate) const LOCATION_BYTES: usize = 11;
/// Records from here on are not indexed.
pub(crate) const RECORD_LIMIT: u32 = 1 << 24;

/// Where a chunk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: SegmentId,
    /// Number of the record in the segment's summary.
    pub(crate) record: u32,
    /// Low 32 bits of the segment's generation.
    pub(crate) generation_low: u32,
}

impl Location {
    pub(crate) fn encode(&self) -> [u8; LOCATION_BYTES] {
        let mut bytes = [0; LOCATION_BYTES];
        bytes[..4].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[4..7].copy_from_slice(&self.record.to_le_bytes()[..3]);
        bytes[7..].copy_from_slice(&self.generation_low.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LOCATION_BYTES] = bytes.try_into().ok()?;
        let [s0, s1, s2, s3, r0, r1, r2, g0, g1, g2, g3] = *bytes;
        Some(Self {
            segment: SegmentId(u32::from_le_bytes([s0, s1, s2, s3])),
            record: u32::from_le_bytes([r0, r1, r2, 0]),
            generation_low: u32::from_le_bytes([g0, g1, g2, g3]),
        })
    }
}

/// Why the database did not do it. Nothing is lost but deduplication.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("Index database failed")]
    Database(#[from] rocksdb::Error),
    #[error("Index directory cannot be used")]
    Directory(#[from] std::io::Error),
    #[error("Index database is in use by another process")]
    Locked,
    #[error("Index in memory is full")]
    Full,
}

/// A map from prefix to location, with one stamp.
pub(crate) trait KeyStore: Send + Sync {
    /// Looks up ascending distinct keys; `out` is as long as `keys`. What
    /// cannot be read counts as absent.
    fn lookup(&self, keys: &[u64], out: &mut [Option<Location>]);

    /// Puts ascending distinct keys and the stamp in, all or nothing, durable
    /// on return where the database is.
    fn ingest(&self, entries: &[(u64, Location)], stamp: &[u8]) -> Result<(), StoreError>;

    /// Visits up to `limit` keys from `from` on; the next key to go on from,
    /// or `None` at the end.
    fn scan(
        &self,
        from: u64,
        limit: usize,
        visit: &mut dyn FnMut(u64),
    ) -> Result<Option<u64>, StoreError>;

    /// True while more sorted runs would make lookups slow.
    fn crowded(&self) -> bool;

    /// Keys it is to hold at the most when its files may take `disk_bytes`
    /// (0: any number).
    fn keys_max(&self, disk_bytes: u64) -> u64;

    /// Forgets the keys above `last`. Some may stay until they are merged.
    fn thin(&self, last: u64);

    /// Makes one run of all, without what is forgotten or certainly dead. May
    /// take as long as writing all of it.
    fn compact(&self);

    /// What its files take, bytes.
    fn disk_bytes(&self) -> u64;

    /// Keys, about.
    fn entries(&self) -> u64;

    /// Memory in use, bytes, about.
    fn memory_bytes(&self) -> usize;
}

/// The twin in memory, for simulation and where no directory can be used.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    state: Mutex<BTreeMap<u64, Location>>,
    limit: usize,
}

/// Memory of an entry of the twin.
pub(crate) const MEMORY_ENTRY_BYTES: usize = 40;

impl MemoryStore {
    /// Holds at most `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            limit,
        }
    }

    /// What a dropped index has: nothing goes in.
    pub(crate) fn none() -> Self {
        Self::new(0)
    }
}

impl KeyStore for MemoryStore {
    fn lookup(&self, keys: &[u64], out: &mut [Option<Location>]) {
        let state = self.state.lock();
        for (key, out) in keys.iter().zip(out) {
            *out = state.get(key).copied();
        }
    }

    fn ingest(&self, entries: &[(u64, Location)], _stamp: &[u8]) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.len() + entries.len() > self.limit {
            return Err(StoreError::Full);
        }
        state.extend(entries.iter().copied());
        Ok(())
    }

    fn scan(
        &self,
        from: u64,
        limit: usize,
        visit: &mut dyn FnMut(u64),
    ) -> Result<Option<u64>, StoreError> {
        let state = self.state.lock();
        let mut keys = state.range((Bound::Included(from), Bound::Unbounded));
        for (key, _) in keys.by_ref().take(limit) {
            visit(*key);
        }
        Ok(keys.next().map(|(key, _)| *key))
    }

    fn crowded(&self) -> bool {
        false
    }

    fn keys_max(&self, _: u64) -> u64 {
        self.limit as u64 // usize is at most 64 bits
    }

    fn thin(&self, last: u64) {
        if let Some(first) = last.checked_add(1) {
            self.state.lock().split_off(&first);
        }
    }

    fn compact(&self) {}

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn entries(&self) -> u64 {
        self.state.lock().len() as u64 // usize is at most 64 bits
    }

    fn memory_bytes(&self) -> usize {
        self.state.lock().len() * MEMORY_ENTRY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn locations_round_trip(segment: u32, record in 0..RECORD_LIMIT, generation_low: u32) {
            let location = Location { segment: SegmentId(segment), record, generation_low };
            prop_assert_eq!(Location::decode(&location.encode()), Some(location));
        }
    }

    #[test]
    fn other_lengths_are_no_location() {
        assert_eq!(Location::decode(&[0; LOCATION_BYTES - 1]), None);
        assert_eq!(Location::decode(&[0; LOCATION_BYTES + 1]), None);
    }
}
