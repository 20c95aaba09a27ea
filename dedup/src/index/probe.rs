//! Looking a batch of fingerprints up.

use std::collections::HashMap;

use tessera_raid::{SegmentId, sabotage::broken};

use super::{
    FingerprintIndex, Hit,
    neighbours::{GROUP_BLOCKS, GROUP_RECORDS, NotCached},
    sampling::Rate,
    store::Location,
    tables::Tables,
};
use crate::{
    Fingerprint, Generation, SegmentDirectory, SegmentFacts,
    load::{SummaryRequest, load},
    segment::summary::{SummaryBlock, SummaryId},
};

/// Keys of the first and the second look into the database. Runs of
/// duplicates are found by a few keys; only what these leave is looked up one
/// by one.
const FIRST_LOOKS: [usize; 2] = [8, 32];
/// Groups one probe may load, 32 KiB each.
const LOADS_MAX: usize = 16;

/// R8 and R20: the generation is live, and not chosen for reclaim.
pub(super) fn usable(facts: Option<&SegmentFacts>, hit: &Hit) -> bool {
    facts.is_some_and(|facts| {
        (facts.generation == hit.generation || broken("R8.generation"))
            && (!facts.frozen || broken("R8.frozen"))
    })
}

/// The directory's answers, asked for once a batch and segment. A hit may be
/// frozen meanwhile: reclaim waits for the operations that began before (R20).
struct Facts<'a> {
    directory: &'a dyn SegmentDirectory,
    known: HashMap<SegmentId, Option<SegmentFacts>>,
}

impl Facts<'_> {
    fn of(&mut self, segment: SegmentId) -> Option<&SegmentFacts> {
        let facts = self
            .known
            .entry(segment)
            .or_insert_with(|| self.directory.facts(segment));
        facts.as_ref()
    }
}

/// A group that the database points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    segment: SegmentId,
    generation: Generation,
    group: u32,
}

impl FingerprintIndex {
    /// Before the append lock: looks the batch up. `found[i]` is set only
    /// where it was `None`, and only to a hit verified as R8 says.
    ///
    /// # Panics
    /// If the two slices differ in length.
    pub fn probe(
        &self,
        fingerprints: &[Fingerprint],
        directory: &dyn SegmentDirectory,
        found: &mut [Option<Hit>],
    ) {
        assert_eq!(
            fingerprints.len(),
            found.len(),
            "one place for each fingerprint"
        );
        let mut facts = Facts {
            directory,
            known: HashMap::new(),
        };
        let tables = self.tables();
        let mut pending: Vec<usize> = (0..found.len())
            .filter(|index| found[*index].is_none())
            .collect();
        self.probe_neighbours(&tables, fingerprints, &mut facts, &mut pending, found);
        pending.retain(|index| {
            let hit = tables.fresh.get(&fingerprints[*index]);
            found[*index] = hit.filter(|hit| usable(facts.of(hit.entry.segment), hit));
            found[*index].is_none()
        });
        let rate = tables.asked();
        let (asked, mut others): (Vec<usize>, Vec<usize>) =
            pending.into_iter().partition(|index| {
                let prefix = fingerprints[*index].prefix();
                rate.keeps(prefix) && tables.filter.may_contain(prefix)
            });
        if rate == Rate::ALL {
            // Every chunk had its chance.
            others.clear();
        }
        if !asked.is_empty() {
            self.probe_store(&tables, fingerprints, &mut facts, asked, &mut others, found);
        }
        if rate != Rate::ALL {
            self.read_ahead(&tables, fingerprints, &mut facts, &mut others, found);
        }
    }

    /// Where few fingerprints are known, a run of duplicates must not be lost
    /// at the end of every group: the next one is loaded before it is needed.
    fn read_ahead(
        &self,
        tables: &Tables,
        fingerprints: &[Fingerprint],
        facts: &mut Facts<'_>,
        others: &mut Vec<usize>,
        found: &mut [Option<Hit>],
    ) {
        let next = found
            .iter()
            .rposition(Option::is_some)
            .and_then(|last| tables.neighbours.group_after(&fingerprints[last]));
        let Some((segment, generation, group)) = next else {
            return;
        };
        let listed = facts.of(segment).is_some_and(|known| {
            known.generation == generation
                && !known.frozen
                && known
                    .summary
                    .as_ref()
                    .is_some_and(|place| group.checked_mul(GROUP_BLOCKS) < Some(place.blocks))
        });
        if listed {
            let wanted = [Wanted {
                segment,
                generation,
                group,
            }];
            self.load_groups(tables, &wanted, facts);
            self.probe_neighbours(tables, fingerprints, facts, others, found);
        }
    }

    /// Answers from cached groups; leaves in `pending` what is unanswered.
    fn probe_neighbours(
        &self,
        tables: &Tables,
        fingerprints: &[Fingerprint],
        facts: &mut Facts<'_>,
        pending: &mut Vec<usize>,
        found: &mut [Option<Hit>],
    ) {
        let mut unanswered = Vec::with_capacity(pending.len());
        let mut candidates = Vec::new();
        let asked = pending.iter().map(|index| (*index, &fingerprints[*index]));
        // The directory is asked later, without the cache's lock.
        tables.neighbours.find(asked, |index, hit| match hit {
            Some(hit) => candidates.push((index, hit)),
            None => unanswered.push(index),
        });
        let before = unanswered.len();
        for (index, hit) in candidates {
            if usable(facts.of(hit.entry.segment), &hit) {
                found[index] = Some(hit);
            } else {
                unanswered.push(index);
            }
        }
        if unanswered.len() > before {
            // The samples taken of it are to be spread over the batch.
            unanswered.sort_unstable();
        }
        *pending = unanswered;
    }

    /// Looks `pending` up; what is loaded for them may answer `others` too.
    fn probe_store(
        &self,
        tables: &Tables,
        fingerprints: &[Fingerprint],
        facts: &mut Facts<'_>,
        mut pending: Vec<usize>,
        others: &mut Vec<usize>,
        found: &mut [Option<Hit>],
    ) {
        let mut keys_left = tables.budget.keys();
        let mut loads_left = LOADS_MAX;
        let mut looks = FIRST_LOOKS.into_iter();
        while !pending.is_empty() && keys_left > 0 {
            let count = looks
                .next()
                .unwrap_or(usize::MAX)
                .min(pending.len())
                .min(keys_left);
            keys_left -= count;
            let sample = take_spread(&mut pending, count);
            let located = locate(tables, fingerprints, &sample);
            let wanted = wanted(tables, fingerprints, &located, facts, loads_left, found);
            if wanted.is_empty() {
                continue;
            }
            loads_left -= wanted.len();
            self.load_groups(tables, &wanted, facts);
            let mut sample: Vec<usize> = located
                .iter()
                .map(|(index, _)| *index)
                .filter(|index| found[*index].is_none())
                .collect();
            for unanswered in [&mut sample, &mut pending, &mut *others] {
                self.probe_neighbours(tables, fingerprints, facts, unanswered, found);
            }
        }
    }

    fn load_groups(&self, tables: &Tables, wanted: &[Wanted], facts: &mut Facts<'_>) {
        let requests: Vec<SummaryRequest> = wanted
            .iter()
            .filter_map(|wanted| {
                let place = facts.of(wanted.segment)?.summary.clone()?;
                let id = SummaryId {
                    pool: self.pool,
                    segment: wanted.segment,
                    generation: wanted.generation,
                };
                let first = wanted.group * GROUP_BLOCKS;
                Some(SummaryRequest {
                    id,
                    place,
                    first,
                    count: GROUP_BLOCKS,
                })
            })
            .collect();
        for (request, blocks) in requests.iter().zip(load(self.array.as_ref(), &requests)) {
            // Record numbers count from the group's start: up to the first
            // block that cannot be had.
            let records: Vec<_> = blocks
                .into_iter()
                .map_while(|block: Option<SummaryBlock>| block)
                .flat_map(|block| block.records)
                .collect();
            let SummaryId {
                segment,
                generation,
                ..
            } = request.id;
            let group = request.first / GROUP_BLOCKS;
            tables
                .neighbours
                .insert(segment, generation, group, &records);
        }
    }
}

/// Asks the database.
fn locate(
    tables: &Tables,
    fingerprints: &[Fingerprint],
    sample: &[usize],
) -> Vec<(usize, Location)> {
    let mut asked: Vec<(u64, usize)> = sample
        .iter()
        .map(|index| (fingerprints[*index].prefix(), *index))
        .collect();
    asked.sort_unstable();
    let mut keys: Vec<u64> = asked.iter().map(|(key, _)| *key).collect();
    keys.dedup();
    let mut locations = vec![None; keys.len()];
    tables
        .budget
        .measure(keys.len(), || tables.store.lookup(&keys, &mut locations));
    asked
        .into_iter()
        .filter_map(|(key, index)| {
            let at = keys.binary_search(&key).ok()?;
            Some((index, locations[at]?))
        })
        .collect()
}

/// Answers what cached groups can and returns the groups to load. The
/// database may say anything: what the directory does not confirm is
/// dropped here, and what the summary does not list is no hit.
fn wanted(
    tables: &Tables,
    fingerprints: &[Fingerprint],
    located: &[(usize, Location)],
    facts: &mut Facts<'_>,
    limit: usize,
    found: &mut [Option<Hit>],
) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for (index, location) in located {
        let segment = location.segment;
        let Some(known) = facts.of(segment) else {
            continue;
        };
        let generation = known.generation;
        let fits = generation.0 as u32 == location.generation_low; // the low 32 bits
        if !fits || known.frozen {
            continue;
        }
        let group = location.record / GROUP_RECORDS;
        let listed = known
            .summary
            .as_ref()
            .is_some_and(|place| group.checked_mul(GROUP_BLOCKS) < Some(place.blocks));
        let fingerprint = &fingerprints[*index];
        match tables
            .neighbours
            .check(segment, generation, location.record, fingerprint)
        {
            Ok(hit) => found[*index] = hit,
            Err(NotCached) if listed => {
                let group = Wanted {
                    segment,
                    generation,
                    group,
                };
                if wanted.len() < limit && !wanted.contains(&group) {
                    wanted.push(group);
                }
            }
            Err(NotCached) => {}
        }
    }
    wanted
}

/// Takes `count` items out, spread evenly.
fn take_spread(pending: &mut Vec<usize>, count: usize) -> Vec<usize> {
    if count >= pending.len() {
        return std::mem::take(pending);
    }
    let length = pending.len();
    let mut taken = Vec::with_capacity(count);
    let mut at = 0;
    // Bresenham: item `i` is taken where `i * count / length` steps up.
    pending.retain(|index| {
        let take = (at + 1) * count / length > at * count / length;
        at += 1;
        if take {
            taken.push(*index);
        }
        !take
    });
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_spread_sample_has_the_size_asked_for(length in 0usize..300, count in 0usize..300) {
            let mut pending: Vec<usize> = (0..length).collect();
            let taken = take_spread(&mut pending, count);
            prop_assert_eq!(taken.len(), count.min(length));
            let mut all = [taken, pending].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..length).collect::<Vec<_>>());
        }
    }
}
