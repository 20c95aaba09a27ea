//! What a job asks that looks for duplicates when nobody waits for it.
//!
//! A writer's probe is bounded and may skip (R10). A job asks for all it wants
//! to know, in the order of the keys, and verifies the answers itself: it reads
//! the summaries of the segments named here, each of them once.

use tessera_raid::SegmentId;

use super::{FingerprintIndex, queue::Pending};
use crate::{Fingerprint, segment::summary::Summary};

/// Keys looked up at a time.
const KEYS_PER_LOOKUP: usize = 256;

impl FingerprintIndex {
    /// For each of these ascending fingerprints the segment that may hold the
    /// chunk, and the low half of its generation then. A hint like every other:
    /// what it says has to be verified against the segment's summary (R8).
    pub fn locate_all(&self, fingerprints: &[Fingerprint]) -> Vec<Option<(SegmentId, u32)>> {
        let tables = self.tables();
        let mut found = vec![None; fingerprints.len()];
        let mut asked: Vec<(u64, usize)> = fingerprints
            .iter()
            .map(Fingerprint::prefix)
            .zip(0..)
            .filter(|(prefix, _)| tables.filter.may_contain(*prefix))
            .collect();
        asked.sort_unstable();
        let mut keys: Vec<u64> = asked.iter().map(|(prefix, _)| *prefix).collect();
        keys.dedup();
        let mut locations = vec![None; keys.len()];
        for (keys, locations) in keys
            .chunks(KEYS_PER_LOOKUP)
            .zip(locations.chunks_mut(KEYS_PER_LOOKUP))
        {
            tables.store.lookup(keys, locations);
        }
        for (prefix, index) in asked {
            let at = keys.binary_search(&prefix).expect("every key was asked");
            found[index] = locations[at].map(|at| (at.segment, at.generation_low));
        }
        found
    }

    /// Takes in the records of a segment that `wanted` accepts by their number:
    /// their hashes have become known after the segment was sealed. The hints
    /// are of no use before its new summary is durable, and of no harm.
    pub fn learn(&self, summary: &Summary, wanted: &dyn Fn(u32) -> bool) {
        let records = (0..).zip(&summary.records);
        let records = records.filter(|(number, _)| wanted(*number));
        let pending = Pending::new(summary.segment, summary.generation, records, false);
        self.push_patiently(pending);
    }

    /// A segment has another summary: what is cached of the old one goes.
    pub fn summary_replaced(&self, segment: SegmentId) {
        self.tables().neighbours.remove_segment(segment);
    }
}
