//! The journal: its chain, its copies, and what its records name.

use std::collections::{BTreeMap, HashMap};

use tessera_dedup::{
    Entry,
    segment::{SegmentState, Stream},
};
use tessera_raid::{ArrayState, MemberIndex, MemberSet, SegmentId};

use super::{
    Check,
    chunks::Wanted,
    segments::Segments,
    sentence,
    trees::{Volumes, shape_of},
};
use crate::{
    journal::{Batch, Record, Records, has_copy, read_chain},
    root::EngineRecord,
};

/// Up to where segments are closed and synced, and the bytes that the journal
/// carries: what recovery would learn.
#[derive(Default)]
struct Learned<'a> {
    closed: HashMap<SegmentId, u32>,
    bytes: HashMap<SegmentId, BTreeMap<u32, &'a [u8]>>,
}

impl Check<'_> {
    /// Reads the chain from the checkpoint on, and each batch's copies.
    pub(super) fn journal_chain(&mut self, record: &EngineRecord) -> Vec<Batch> {
        let batches = match read_chain(self.array, record.journal) {
            Ok(chain) => chain.batches,
            Err(error) => {
                self.problem(sentence(&error));
                Vec::new()
            }
        };
        self.findings.report.journal_batches_checked = batches.len() as u64;
        self.journal_copies(record, &batches);
        batches
    }

    /// R16: every batch is on as many members as are to hold the journal.
    fn journal_copies(&mut self, record: &EngineRecord, batches: &[Batch]) {
        let ring = self.array.journal_bytes();
        let in_use = self.array.journal_members();
        let set: MemberSet = in_use.iter().copied().collect();
        let holders = self.array.current_layout().journal_members(set);
        let degraded = self.array.status().state != ArrayState::Online;
        let mut offset = record.journal.offset;
        for (number, found) in batches.iter().enumerate() {
            let has = |member: &MemberIndex| has_copy(self.array, *member, offset % ring, found);
            let mut copies = holders.iter().filter(|member| has(member)).count();
            if copies < holders.len() {
                let others = in_use.iter().filter(|member| !holders.contains(member));
                copies += others.filter(|member| has(member)).count();
            }
            if copies < holders.len() {
                let told = format!(
                    "Journal batch {} is whole on {copies} members instead of {}",
                    found.header.number,
                    holders.len()
                );
                // The newest batch may have been cut short by the crash; of
                // older ones a member that is gone may have held a copy.
                if number + 1 == batches.len() || degraded {
                    self.note(told);
                } else {
                    self.problem(told);
                }
            }
            offset += found.length;
            if found.header.wrap {
                offset = offset.next_multiple_of(ring);
            }
        }
    }

    /// Checks the records as recovery would apply them. Returns the chunks
    /// that they name on the members.
    pub(super) fn journal_records(
        &mut self,
        record: &EngineRecord,
        batches: &[Batch],
        segments: &mut Segments,
        volumes: &mut Volumes,
    ) -> Vec<Wanted> {
        let learned = self.learn(record, batches, segments);
        let mut wanted = Vec::new();
        for found in batches {
            let number = found.header.number;
            for item in Records::new(&found.payload).flatten() {
                match item {
                    Record::VolumePut(record) => volumes.put(*record),
                    Record::VolumeDeleted(id) => volumes.remove(id),
                    Record::SnapshotTaken(record) if volumes.get(record.volume).is_some() => {
                        volumes.put_snapshot(&record);
                    }
                    Record::SnapshotTaken(record) => {
                        self.problem(unknown_volume(number, record.volume));
                    }
                    Record::SnapshotDeleted(id) => volumes.remove_snapshot(id),
                    Record::Cloned { record, snapshot } if volumes.has_snapshot(snapshot) => {
                        volumes.put_clone(*record, snapshot);
                    }
                    Record::RolledBack { volume, snapshot }
                        if volumes.get(volume).is_some() && volumes.has_snapshot(snapshot) => {}
                    Record::Cloned { snapshot, .. } | Record::RolledBack { snapshot, .. } => {
                        self.problem(format!(
                            "Journal batch {number} names snapshot {snapshot}, which does not \
                             exist, or its volume"
                        ));
                    }
                    Record::Fill { volume, .. } if volumes.get(volume).is_none() => {
                        self.problem(unknown_volume(number, volume));
                    }
                    Record::Map {
                        volume,
                        first,
                        entries,
                    } => {
                        let Some(chunk_bytes) = volumes.get(volume).map(|v| v.chunk_bytes) else {
                            self.problem(unknown_volume(number, volume));
                            continue;
                        };
                        let stored = (first..).zip(entries).filter(|(_, e)| e.is_stored());
                        for (index, entry) in stored {
                            self.findings.report.pointers_checked += 1;
                            segments.name(entry.segment);
                            match locate(&entry, chunk_bytes, &learned, segments) {
                                Ok(true) => wanted.push(Wanted {
                                    entry,
                                    volume,
                                    index,
                                }),
                                Ok(false) => {}
                                Err(why) => self.problem(format!(
                                    "Journal batch {number}: chunk {index} of volume {volume} {why}"
                                )),
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        wanted
    }

    fn learn<'a>(
        &mut self,
        record: &EngineRecord,
        batches: &'a [Batch],
        segments: &mut Segments,
    ) -> Learned<'a> {
        let mut learned = Learned::default();
        let open = segments.live().filter(|(_, record)| {
            record.state == SegmentState::Open && record.stream() == Some(Stream::Data)
        });
        learned
            .closed
            .extend(open.map(|(id, record)| (id, record.closed_bytes)));
        let whole = segments.segment_bytes();
        for found in batches {
            let number = found.header.number;
            for item in Records::new(&found.payload) {
                match item {
                    None => {
                        self.problem(format!("Journal batch {number} holds a malformed record"));
                    }
                    Some(Record::SegmentOpened(id, opened)) => {
                        learned.closed.insert(id, 0);
                        self.journalled_segment(record, number, id, opened, segments);
                    }
                    Some(Record::SegmentSealed(id, sealed)) => {
                        learned.closed.insert(id, whole);
                        self.journalled_segment(record, number, id, sealed, segments);
                    }
                    Some(Record::Bytes {
                        segment,
                        position,
                        bytes,
                        ..
                    }) => {
                        learned
                            .bytes
                            .entry(segment)
                            .or_default()
                            .insert(position, bytes);
                    }
                    Some(_) => {}
                }
            }
            for position in &found.header.positions {
                if let Some(closed) = learned.closed.get_mut(&position.segment) {
                    *closed = (*closed).max(position.closed_bytes);
                }
            }
        }
        // Open segments have grown since the checkpoint.
        for (id, closed) in &learned.closed {
            let known = segments.record(*id).copied();
            if let Some(known) = known.filter(|known| known.state == SegmentState::Open) {
                let closed_bytes = known.closed_bytes.max(*closed);
                segments.set(
                    *id,
                    tessera_dedup::segment::SegmentRecord {
                        closed_bytes,
                        ..known
                    },
                );
            }
        }
        learned
    }

    fn journalled_segment(
        &mut self,
        record: &EngineRecord,
        batch: u64,
        id: SegmentId,
        found: tessera_dedup::segment::SegmentRecord,
        segments: &mut Segments,
    ) {
        if !segments.set(id, found) {
            let what = format!("names segment {}, which does not exist", id.0);
            self.problem(format!("Journal batch {batch} {what}"));
        } else if found.generation.0 >= record.generation_limit {
            let what = format!("gives segment {} a generation that was never issued", id.0);
            self.problem(format!("Journal batch {batch} {what}"));
        }
    }
}

fn unknown_volume(batch: u64, volume: u64) -> String {
    format!("Journal batch {batch} names volume {volume}, which does not exist")
}

/// `Ok(true)` where the entry's bytes are on the members, `Ok(false)` where the
/// journal has them, verified (R14).
fn locate(
    entry: &Entry,
    chunk_bytes: u32,
    learned: &Learned<'_>,
    segments: &Segments,
) -> Result<bool, String> {
    shape_of(entry, chunk_bytes)?;
    segments.generation_of(entry)?;
    let open = learned.closed.get(&entry.segment);
    if open.is_none_or(|closed| entry.position + entry.stored <= *closed) {
        return segments.place(entry).map(|_| true);
    }
    let carried = || {
        let (start, piece) = learned
            .bytes
            .get(&entry.segment)?
            .range(..=entry.position)
            .next_back()?;
        let from = usize::try_from(entry.position - start).ok()?;
        piece.get(from..from + usize::try_from(entry.stored).ok()?)
    };
    match carried() {
        Some(bytes) if crc32c::crc32c(bytes) == entry.checksum => Ok(false),
        Some(_) => Err("has other bytes in the journal than its checksum says".to_owned()),
        None => Err(format!(
            "lies at {} of segment {}, which is neither closed there nor in the journal",
            entry.position, entry.segment.0
        )),
    }
}
