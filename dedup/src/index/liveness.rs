//! Which locations are certainly dead, for the database's compaction.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use parking_lot::RwLock;
use tessera_raid::SegmentId;

use super::store::Location;
use crate::Generation;

/// For each segment the lowest generation (its low 32 bits) that may be live;
/// 0 where nothing is known. Grows as segments become known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Liveness {
    floors: Arc<RwLock<Vec<AtomicU32>>>,
}

impl Liveness {
    /// The segment's present generation is this one.
    pub(crate) fn live(&self, segment: SegmentId, generation: Generation) {
        self.raise(segment, generation.0 as u32); // the low 32 bits
    }

    /// This generation of the segment is over.
    pub(crate) fn freed(&self, segment: SegmentId, generation: Generation) {
        self.raise(segment, (generation.0 as u32).wrapping_add(1)); // the low 32 bits
    }

    fn raise(&self, segment: SegmentId, floor: u32) {
        let Ok(index) = usize::try_from(segment.0) else {
            return;
        };
        if self.floors.read().len() <= index {
            let mut floors = self.floors.write();
            let length = floors.len().max(index + 1).next_multiple_of(1024);
            floors.resize_with(length, Default::default);
        }
        self.floors.read()[index].store(floor, Ordering::Relaxed);
    }

    /// True when the location names a generation that is certainly over.
    pub(crate) fn is_dead(&self, location: &Location) -> bool {
        let floors = self.floors.read();
        let floor = usize::try_from(location.segment.0)
            .ok()
            .and_then(|index| floors.get(index))
            .map_or(0, |floor| floor.load(Ordering::Relaxed));
        // Compared as a ring: only the low bits are known, and generations of
        // one segment that are half a ring apart do not occur.
        floor != 0 && location.generation_low.wrapping_sub(floor) > u32::MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(segment: u32, generation: u64) -> Location {
        Location {
            segment: SegmentId(segment),
            record: 0,
            generation_low: generation as u32,
        }
    }

    #[test]
    fn only_generations_known_to_be_over_are_dead() {
        let liveness = Liveness::default();
        assert!(!liveness.is_dead(&location(5, 3)), "nothing is known");
        liveness.live(SegmentId(5), Generation(10));
        assert!(liveness.is_dead(&location(5, 9)));
        assert!(!liveness.is_dead(&location(5, 10)));
        assert!(!liveness.is_dead(&location(5, 11)));
        liveness.freed(SegmentId(5), Generation(10));
        assert!(liveness.is_dead(&location(5, 10)));
        assert!(!liveness.is_dead(&location(5, 11)));
        assert!(!liveness.is_dead(&location(5000, 1)));
    }

    #[test]
    fn the_low_half_may_wrap() {
        let liveness = Liveness::default();
        liveness.live(SegmentId(0), Generation((1 << 32) + 5));
        assert!(liveness.is_dead(&location(0, (1 << 32) - 1)));
        assert!(!liveness.is_dead(&location(0, (1 << 32) + 6)));
    }
}
