//! Sealed segments on their way into the database.

use std::collections::VecDeque;

use tessera_raid::SegmentId;

use super::{
    sampling::Rate,
    store::{Location, RECORD_LIMIT},
};
use crate::{Generation, segment::summary::SummaryRecord};

/// Calls of [`Queue::ripe`] without a new segment after which a batch that is
/// not full is taken all the same.
const PATIENCE: u32 = 32;

/// The hashed records of one segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) segment: SegmentId,
    pub(super) generation: Generation,
    /// Prefix and record number.
    pub(super) keys: Vec<(u64, u32)>,
    /// All records are here, so the generation will be covered.
    pub(super) complete: bool,
}

impl Pending {
    pub(super) fn new<'a>(
        segment: SegmentId,
        generation: Generation,
        records: impl Iterator<Item = (u32, &'a SummaryRecord)>,
        complete: bool,
    ) -> Self {
        let keys = records
            .take_while(|(number, _)| *number < RECORD_LIMIT)
            .filter_map(|(number, record)| Some((record.fingerprint?.prefix(), number)))
            .collect();
        Self {
            segment,
            generation,
            keys,
            complete,
        }
    }
}

/// The database entries of a batch that the rate keeps: ascending, one for each
/// prefix. Of two the later one stays: the segment it is in is younger.
pub(super) fn sorted_entries(batch: &[Pending], rate: Rate) -> Vec<(u64, Location)> {
    let mut entries: Vec<(u64, Location)> = batch
        .iter()
        .flat_map(|pending| {
            let kept = pending.keys.iter().filter(move |(key, _)| rate.keeps(*key));
            kept.map(|(prefix, record)| {
                let location = Location {
                    segment: pending.segment,
                    record: *record,
                    generation_low: pending.generation.0 as u32, // the low 32 bits
                };
                (*prefix, location)
            })
        })
        .rev()
        .collect();
    entries.sort_by_key(|(prefix, _)| *prefix);
    entries.dedup_by_key(|(prefix, _)| *prefix);
    entries
}

/// Bounded; what does not fit is refused.
#[derive(Debug)]
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    records: usize,
    batch: usize,
    limit: usize,
    idle: u32,
}

impl Queue {
    pub(super) fn new(batch: usize, limit: usize) -> Self {
        Self {
            pending: VecDeque::new(),
            records: 0,
            batch,
            limit,
            idle: 0,
        }
    }

    /// Puts a segment in, or gives it back. An empty queue takes any.
    pub(super) fn push(&mut self, pending: Pending) -> Option<Pending> {
        let room = self.pending.is_empty() || self.records + pending.keys.len() <= self.limit;
        if !room {
            return Some(pending);
        }
        self.idle = 0;
        self.records += pending.keys.len();
        self.pending.push_back(pending);
        None
    }

    pub(super) fn is_half_full(&self) -> bool {
        self.records > self.limit / 2
    }

    /// True when a batch is full or has waited long enough.
    pub(super) fn ripe(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        self.idle = self.idle.saturating_add(1);
        self.records >= self.batch || self.idle > PATIENCE
    }

    pub(super) fn take_batch(&mut self) -> Vec<Pending> {
        let mut taken = Vec::new();
        let mut records = 0;
        while let Some(next) = self.pending.front() {
            if !taken.is_empty() && records + next.keys.len() > self.batch {
                break;
            }
            records += next.keys.len();
            taken.extend(self.pending.pop_front());
        }
        self.records -= records;
        taken
    }

    pub(super) fn remove(&mut self, segment: SegmentId, generation: Generation) {
        self.pending
            .retain(|pending| pending.segment != segment || pending.generation != generation);
        self.records = self.pending.iter().map(|pending| pending.keys.len()).sum();
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.records = 0;
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.records * size_of::<(u64, u32)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(segment: u32, keys: &[(u64, u32)]) -> Pending {
        Pending {
            segment: SegmentId(segment),
            generation: Generation(u64::from(segment) + 1),
            keys: keys.to_vec(),
            complete: true,
        }
    }

    #[test]
    fn a_full_queue_refuses_and_an_empty_one_takes_anything() {
        let mut queue = Queue::new(2, 4);
        assert_eq!(queue.push(pending(0, &[(1, 0); 9])), None);
        assert_eq!(
            queue.push(pending(1, &[(1, 0)])),
            Some(pending(1, &[(1, 0)]))
        );
        assert_eq!(queue.take_batch().len(), 1);
        assert_eq!(queue.push(pending(1, &[(1, 0)])), None);
        assert_eq!(queue.memory_bytes(), size_of::<(u64, u32)>());
    }

    #[test]
    fn a_batch_waits_to_be_full_but_not_for_ever() {
        let mut queue = Queue::new(2, 4);
        assert!(!queue.ripe());
        queue.push(pending(0, &[(1, 0)]));
        assert!((0..PATIENCE).all(|_| !queue.ripe()));
        assert!(queue.ripe());
        queue.push(pending(1, &[(2, 0)]));
        assert!(queue.ripe(), "full");
        assert_eq!(queue.take_batch().len(), 2);
        assert!(!queue.ripe());
    }

    #[test]
    fn of_equal_prefixes_the_later_segment_stays_and_only_what_the_rate_keeps() {
        let batch = [
            pending(0, &[(5, 1), (u64::MAX, 4), (3, 2)]),
            pending(1, &[(5, 7)]),
        ];
        assert_eq!(sorted_entries(&batch, Rate::ALL).len(), 3);
        let entries = sorted_entries(&batch, Rate::SPARSEST);
        let found: Vec<_> = entries
            .iter()
            .map(|(key, at)| (*key, at.segment.0, at.record))
            .collect();
        assert_eq!(found, [(3, 0, 2), (5, 1, 7)]);
    }

    #[test]
    fn freed_segments_leave_the_queue() {
        let mut queue = Queue::new(2, 8);
        queue.push(pending(0, &[(1, 0)]));
        queue.push(pending(1, &[(2, 0), (3, 1)]));
        queue.remove(SegmentId(1), Generation(9));
        assert_eq!(queue.records, 3);
        queue.remove(SegmentId(1), Generation(2));
        assert_eq!((queue.records, queue.pending.len()), (1, 1));
    }
}
