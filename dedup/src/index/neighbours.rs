//! Parsed parts of summaries: what a hit is verified against, and where the
//! neighbours of a hit are found without asking the database (R8).
//!
//! Data that is written again comes in long runs in the order it came the
//! first time. So the unit of caching is a *group* of consecutive summary
//! blocks: one load verifies one hit and answers the next few hundred chunks.
//!
//! ```text
//!  prefix map:  prefix -> (slot, record)      groups by slot, a clock over them
//!                             \______________ [records of segment s, 400..800]
//! ```

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::RwLock;
use tessera_raid::{SegmentId, sabotage::broken};

use super::{Hit, keyed::PrefixMap};
use crate::{
    Entry, EntryKind, Fingerprint, Generation,
    segment::summary::{RECORDS_PER_BLOCK, SummaryRecord},
};

/// Blocks of a group: 32 KiB to load for one hit, and the neighbours within
/// 1.6 MiB of 4 KiB chunks with it.
pub(crate) const GROUP_BLOCKS: u32 = 8;
/// Records of a full group.
pub(crate) const GROUP_RECORDS: u32 = GROUP_BLOCKS * RECORDS_PER_BLOCK as u32; // 400
/// A hit on this or a later record of a group is reason to load the next one.
const READ_AHEAD_FROM: u32 = GROUP_RECORDS / 4 * 3;
/// Memory of a record: itself and its place in the prefix map.
const RECORD_MEMORY: usize = size_of::<GroupRecord>() + 32;

/// A record with what its group knows left out.
#[derive(Debug, Clone, Copy)]
struct GroupRecord {
    fingerprint: Fingerprint,
    hashed: bool,
    kind: EntryKind,
    position: u32,
    stored: u32,
    checksum: u32,
    logical: u32,
}

#[derive(Debug)]
struct Group {
    segment: SegmentId,
    generation: Generation,
    number: u32,
    records: Box<[GroupRecord]>,
    /// Used since the clock hand passed.
    used: AtomicBool,
}

impl Group {
    fn hit(&self, record: &GroupRecord) -> Hit {
        self.used.store(true, Ordering::Relaxed);
        Hit {
            entry: Entry {
                kind: record.kind,
                segment: self.segment,
                position: record.position,
                stored: record.stored,
                generation: self.generation.low(),
                checksum: record.checksum,
            },
            generation: self.generation,
            logical: record.logical,
        }
    }
}

#[derive(Debug)]
struct Inner {
    prefixes: PrefixMap<(u32, u32)>,
    groups: Vec<Option<Group>>,
    by_place: HashMap<(SegmentId, u32), u32>,
    free: Vec<u32>,
    records: usize,
    hand: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Neighbours {
    inner: RwLock<Inner>,
    records_max: usize,
}

impl Neighbours {
    /// Within so much memory.
    pub(crate) fn new(memory_bytes: usize) -> Self {
        let records_max = memory_bytes / RECORD_MEMORY;
        let inner = Inner {
            // All at once: growing would move every entry under the lock.
            prefixes: PrefixMap::with_capacity_and_hasher(records_max, Default::default()),
            groups: Vec::new(),
            by_place: HashMap::new(),
            free: Vec::new(),
            records: 0,
            hand: 0,
        };
        Self {
            inner: RwLock::new(inner),
            records_max,
        }
    }

    /// Looks up many at once: calls `candidate` for each fingerprint that is
    /// in a cached group. The caller checks the segment with the directory.
    pub(crate) fn find<'a>(
        &self,
        fingerprints: impl Iterator<Item = (usize, &'a Fingerprint)>,
        mut candidate: impl FnMut(usize, Option<Hit>),
    ) {
        let inner = self.inner.read();
        for (index, fingerprint) in fingerprints {
            candidate(index, inner.get(fingerprint));
        }
    }

    /// The group after the one that has this chunk among its last, unless it is
    /// cached: who comes so far will want the next.
    pub(crate) fn group_after(
        &self,
        fingerprint: &Fingerprint,
    ) -> Option<(SegmentId, Generation, u32)> {
        let inner = self.inner.read();
        let (slot, index) = inner.prefixes.get(&fingerprint.prefix())?;
        let group = inner.groups.get(*slot as usize)?.as_ref()?;
        let next = group.number + 1;
        let wanted =
            *index >= READ_AHEAD_FROM && !inner.by_place.contains_key(&(group.segment, next));
        wanted.then_some((group.segment, group.generation, next))
    }

    /// What a record of a segment says, if its group is cached: `Err` when it
    /// is not, `Ok(None)` when the record is another chunk's.
    pub(crate) fn check(
        &self,
        segment: SegmentId,
        generation: Generation,
        record: u32,
        fingerprint: &Fingerprint,
    ) -> Result<Option<Hit>, NotCached> {
        let inner = self.inner.read();
        let slot = inner
            .by_place
            .get(&(segment, record / GROUP_RECORDS))
            .ok_or(NotCached)?;
        let group = inner.groups[*slot as usize].as_ref().ok_or(NotCached)?;
        if group.generation != generation {
            return Err(NotCached);
        }
        let record = group.records.get((record % GROUP_RECORDS) as usize);
        Ok(record
            .filter(|record| {
                let equal = record.fingerprint == *fingerprint || broken("R8.whole_hash");
                record.hashed && equal
            })
            .map(|record| group.hit(record)))
    }

    /// Puts in one group; the records are those from `number * GROUP_RECORDS`.
    pub(crate) fn insert(
        &self,
        segment: SegmentId,
        generation: Generation,
        number: u32,
        records: &[SummaryRecord],
    ) {
        let records: Box<[GroupRecord]> = records
            .iter()
            .map(|record| GroupRecord {
                fingerprint: record.fingerprint.unwrap_or(Fingerprint([0; 32])),
                hashed: record.fingerprint.is_some(),
                kind: record.entry.kind,
                position: record.entry.position,
                stored: record.entry.stored,
                checksum: record.entry.checksum,
                logical: record.logical,
            })
            .collect();
        if records.is_empty() || records.len() > self.records_max {
            return;
        }
        let mut inner = self.inner.write();
        if let Some(slot) = inner.by_place.get(&(segment, number)).copied() {
            inner.evict(slot);
        }
        while inner.records + records.len() > self.records_max {
            inner.evict_one();
        }
        let slot = inner.free.pop().unwrap_or_else(|| {
            inner.groups.push(None);
            u32::try_from(inner.groups.len() - 1).expect("groups are bounded by memory")
        });
        for (index, record) in (0u32..).zip(&records) {
            if record.hashed {
                inner
                    .prefixes
                    .insert(record.fingerprint.prefix(), (slot, index));
            }
        }
        inner.records += records.len();
        inner.by_place.insert((segment, number), slot);
        inner.groups[slot as usize] = Some(Group {
            segment,
            generation,
            number,
            records,
            used: AtomicBool::new(true),
        });
    }

    /// Forgets a segment.
    pub(crate) fn remove_segment(&self, segment: SegmentId) {
        let mut inner = self.inner.write();
        let slots: Vec<u32> = (0u32..)
            .zip(&inner.groups)
            .filter(|(_, group)| group.as_ref().is_some_and(|group| group.segment == segment))
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            inner.evict(slot);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.inner.read().records * RECORD_MEMORY
    }
}

/// The group is not in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotCached;

impl Inner {
    fn get(&self, fingerprint: &Fingerprint) -> Option<Hit> {
        let (slot, index) = self.prefixes.get(&fingerprint.prefix())?;
        let group = self.groups.get(*slot as usize)?.as_ref()?;
        let record = group.records.get(*index as usize)?;
        let equal = record.fingerprint == *fingerprint || broken("R8.whole_hash");
        (record.hashed && equal).then(|| group.hit(record))
    }

    fn evict_one(&mut self) {
        // Two rounds at most: the first clears every mark.
        loop {
            let slot = self.hand % self.groups.len();
            self.hand = slot + 1;
            match &self.groups[slot] {
                Some(group) if !group.used.swap(false, Ordering::Relaxed) => {
                    self.evict(u32::try_from(slot).expect("groups are bounded by memory"));
                    return;
                }
                _ => {}
            }
        }
    }

    fn evict(&mut self, slot: u32) {
        let Some(group) = self.groups[slot as usize].take() else {
            return;
        };
        for (index, record) in (0u32..).zip(&group.records) {
            let prefix = record.fingerprint.prefix();
            // A later group may have taken the prefix over.
            if record.hashed && self.prefixes.get(&prefix) == Some(&(slot, index)) {
                self.prefixes.remove(&prefix);
            }
        }
        self.records -= group.records.len();
        self.by_place.remove(&(group.segment, group.number));
        self.free.push(slot);
    }
}
