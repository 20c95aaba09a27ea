//! Recovery: replaying the journal over the newest root (R18, R19).
//!
//! ```text
//!   1  read the chain of batches; stop if confirmed history is missing (R15)
//!   2  learn from all of it: which segments were opened and sealed, up to
//!      where each is closed and synced, which bytes the journal carries
//!   3  replay the changes in order; a location that lies beyond what is closed
//!      and synced has its bytes appended to a new segment, and is translated
//!   4  segments that were open are given up where they are
//! ```
//! Nothing is rewritten: the torn rest of an old segment holds nothing live, so
//! no stripe with live data ever has parity that does not match. The caller
//! ends recovery with a checkpoint under a new epoch; until its superblocks are
//! durable, a crash finds everything as this one did.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use tessera_dedup::{
    Entry, Generation, Hit, Summary, SummaryRecord,
    segment::{NewChunk, SegmentState, Stream},
};
use tessera_raid::{SegmentId, device::AlignedBuf, sabotage::broken};

use super::{engine::Engine, volume::Volume};
use crate::{
    error::{EngineError, ErrorKind},
    journal::{Batch, Record, Records, read_chain},
    root::EngineRecord,
};

/// What step 2 learns.
#[derive(Default)]
struct Learned<'a> {
    /// Bytes closed and synced of every segment that was open at the
    /// checkpoint or opened since.
    closed: HashMap<SegmentId, u32>,
    /// Journalled bytes by segment and position.
    bytes: HashMap<SegmentId, BTreeMap<u32, &'a [u8]>>,
    /// What summaries would say, by segment and position.
    appended: HashMap<SegmentId, BTreeMap<u32, SummaryRecord>>,
}

impl Engine {
    /// Steps 1 to 4. On a read-only pool everything stays in memory.
    pub(super) fn recover(&self, record: &EngineRecord) -> Result<(), EngineError> {
        let chain = read_chain(&self.array, record.journal)?;
        tracing::info!(batches = chain.batches.len(), "Recovering");
        self.state.lock().replaying = true;
        let learned = self.learn(&chain.batches)?;
        if broken("R18.fresh_segment") {
            self.go_on_in_the_torn_segment(&learned);
        }
        let mut replay = Replay {
            engine: self,
            learned: &learned,
            moved: HashMap::new(),
        };
        for batch in &chain.batches {
            for found in Records::new(&batch.payload) {
                let found = found.ok_or_else(|| malformed(batch))?;
                replay.apply(found)?;
            }
        }
        let mut state = self.state.lock();
        if let Some(last) = chain.batches.last() {
            state.sequence = last.header.last_sequence;
        }
        self.durable.store(state.sequence, Ordering::Release);
        let now_open: Vec<SegmentId> = state
            .appender
            .positions()
            .iter()
            .map(|position| position.segment)
            .collect();
        for (id, record) in self.table.live() {
            if record.state == SegmentState::Open && !now_open.contains(&id) {
                let closed = learned
                    .closed
                    .get(&id)
                    .copied()
                    .unwrap_or(record.closed_bytes);
                let summary = self.recovered_summary(&learned, id, closed);
                self.dead_end(&mut state, id, closed, summary);
            }
        }
        // What recovery opened is for the checkpoint's root to say, not for the
        // journal under the new epoch.
        Self::journal_segment_events(&mut state);
        state.replaying = false;
        Ok(())
    }

    /// What R18 forbids: chunks go where torn stripes may be.
    fn go_on_in_the_torn_segment(&self, learned: &Learned<'_>) {
        for (id, record) in self.table.live() {
            let open = record.state == SegmentState::Open;
            if let Some(closed_bytes) = learned.closed.get(&id).copied().filter(|_| open) {
                let record = tessera_dedup::segment::SegmentRecord {
                    closed_bytes,
                    ..record
                };
                let mut state = self.state.lock();
                state.appender.resume(Stream::Data, id, record, Vec::new());
            }
        }
    }

    fn learn<'a>(&self, batches: &'a [Batch]) -> Result<Learned<'a>, EngineError> {
        let mut learned = Learned::default();
        for (id, record) in self.table.live() {
            if record.state == SegmentState::Open && record.stream() == Some(Stream::Data) {
                learned.closed.insert(id, record.closed_bytes);
            }
        }
        for batch in batches {
            for found in Records::new(&batch.payload) {
                match found.ok_or_else(|| malformed(batch))? {
                    Record::SegmentOpened(id, record) => {
                        self.load_segment(id, record)?;
                        learned.closed.insert(id, 0);
                    }
                    Record::SegmentSealed(id, record) => {
                        // A seal is journalled after its stripes are synced.
                        self.load_segment(id, record)?;
                        learned.closed.insert(id, self.geometry.segment_bytes);
                    }
                    Record::Bytes {
                        segment,
                        position,
                        bytes,
                        ..
                    } => {
                        learned
                            .bytes
                            .entry(segment)
                            .or_default()
                            .insert(position, bytes);
                    }
                    Record::Appended(record) => {
                        let of_segment = learned.appended.entry(record.entry.segment).or_default();
                        of_segment.insert(record.entry.position, record);
                    }
                    _ => {}
                }
            }
            for position in &batch.header.positions {
                if let Some(closed) = learned.closed.get_mut(&position.segment) {
                    *closed = (*closed).max(position.closed_bytes);
                }
            }
        }
        Ok(learned)
    }

    fn load_segment(
        &self,
        id: SegmentId,
        record: tessera_dedup::segment::SegmentRecord,
    ) -> Result<(), EngineError> {
        if !self.table.load(id, record) {
            let message = format!("The journal names segment {}, which does not exist", id.0);
            return Err(EngineError::damaged(message));
        }
        self.table.mark_dirty(&[id]);
        Ok(())
    }

    /// What is known of the chunks of a segment that is given up.
    fn recovered_summary(
        &self,
        learned: &Learned<'_>,
        id: SegmentId,
        closed_bytes: u32,
    ) -> Option<Summary> {
        let record = self.table.record(id)?;
        if record.stream() != Some(Stream::Data) {
            return None;
        }
        let mut records: BTreeMap<u32, SummaryRecord> = BTreeMap::new();
        if let Some(summary) = self.read_summary(id, &record) {
            records.extend(summary.records.iter().map(|r| (r.entry.position, *r)));
        }
        if let Some(appended) = learned.appended.get(&id) {
            records.extend(
                appended
                    .iter()
                    .map(|(position, record)| (*position, *record)),
            );
        }
        records.retain(|position, record| position + record.entry.stored <= closed_bytes);
        (!records.is_empty()).then(|| Summary {
            pool: self.array.uuid(),
            segment: id,
            generation: record.generation,
            records: records.into_values().collect(),
        })
    }
}

/// Step 3.
struct Replay<'a, 'b> {
    engine: &'a Engine,
    learned: &'a Learned<'b>,
    /// Chunks appended afresh, by where they were.
    moved: HashMap<(SegmentId, u32), Entry>,
}

impl Replay<'_, '_> {
    fn apply(&mut self, record: Record<'_>) -> Result<(), EngineError> {
        let volumes = &self.engine.volumes;
        match record {
            Record::Map {
                volume,
                first,
                entries,
            } => {
                let Some(volume) = volumes.read().by_id.get(&volume).cloned() else {
                    return Err(unknown_volume(volume));
                };
                let translated: Vec<Entry> = entries
                    .into_iter()
                    .map(|entry| self.translate(&volume, entry))
                    .collect::<Result<_, _>>()?;
                volume.state.write().active.set_run(first, &translated);
                self.engine.state.lock().active_pages +=
                    super::space::pages_for(translated.len() as u64);
            }
            Record::Fill {
                volume,
                first,
                count,
                entry,
            } => {
                let Some(volume) = volumes.read().by_id.get(&volume).cloned() else {
                    return Err(unknown_volume(volume));
                };
                volume.state.write().active.fill(first, count, entry);
            }
            Record::VolumePut(record) => {
                let mut state = self.engine.state.lock();
                state.next_volume_id = state.next_volume_id.max(record.id + 1);
                drop(state);
                let mut volumes = volumes.write();
                if let Some(volume) = volumes.remove(record.id) {
                    let mut inner = volume.state.write();
                    inner.name = record.name.clone();
                    inner.size_bytes = record.size_bytes;
                    inner.dedup = record.dedup;
                    inner.compression = record.compression;
                    inner.allow_shrink = record.allow_shrink;
                    inner.record_changed = true;
                    drop(inner);
                    volumes.insert(volume);
                } else {
                    let volume = Volume::new(&record);
                    volume.state.write().record_changed = true;
                    volumes.insert(Arc::new(volume));
                }
            }
            Record::VolumeDeleted(id) => {
                let mut state = self.engine.state.lock();
                let mut volumes = volumes.write();
                self.engine.forget_volume(&mut state, &mut volumes, id);
            }
            Record::SnapshotTaken(record) => {
                let mut state = self.engine.state.lock();
                let mut volumes = volumes.write();
                let of = volumes.by_id.get(&record.volume).cloned();
                let of = of.ok_or_else(|| unknown_volume(record.volume))?;
                self.engine.take(&mut state, &mut volumes, &of, &record);
            }
            Record::SnapshotDeleted(id) => {
                let mut state = self.engine.state.lock();
                self.engine.forget(&mut state, &mut volumes.write(), id);
            }
            Record::RolledBack { volume, snapshot } => {
                let mut state = self.engine.state.lock();
                let volumes = volumes.read();
                let of = volumes.by_id.get(&volume);
                let of = of.ok_or_else(|| unknown_volume(volume))?;
                let to = volumes.snapshots.get(&snapshot);
                let to = to.ok_or_else(|| unknown_snapshot(snapshot))?;
                self.engine.revert(&mut state, of, to);
            }
            Record::Cloned { record, snapshot } => {
                let mut state = self.engine.state.lock();
                let mut volumes = volumes.write();
                let from = volumes.snapshots.get(&snapshot).cloned();
                let from = from.ok_or_else(|| unknown_snapshot(snapshot))?;
                self.engine.branch(&mut state, &mut volumes, &record, &from);
            }
            Record::Bytes { .. }
            | Record::Appended(_)
            | Record::SegmentOpened(..)
            | Record::SegmentSealed(..) => {}
        }
        Ok(())
    }

    /// The entry under which a replayed location can be read from now on.
    fn translate(&mut self, volume: &Volume, entry: Entry) -> Result<Entry, EngineError> {
        if !entry.is_stored() {
            return Ok(entry);
        }
        let record = self.engine.table.record(entry.segment);
        let generation = record.map_or(Generation(0), |record| record.generation);
        if generation.0 == 0 || generation.low() != entry.generation {
            return Err(EngineError::damaged(format!(
                "The journal names segment {} in a generation that is not there",
                entry.segment.0
            )));
        }
        match self.learned.closed.get(&entry.segment) {
            // Opened or open since the checkpoint, and not on the members.
            Some(closed) if entry.position + entry.stored > *closed => {}
            _ => return Ok(entry),
        }
        let key = (entry.segment, entry.position);
        if let Some(moved) = self.moved.get(&key) {
            return Ok(*moved);
        }
        let bytes = self.journalled(&entry).ok_or_else(|| {
            EngineError::damaged(format!(
                "The journal names bytes {}+{} of segment {} but does not hold them",
                entry.position, entry.stored, entry.segment.0
            ))
        })?;
        let described = self
            .learned
            .appended
            .get(&entry.segment)
            .and_then(|of| of.get(&entry.position));
        let moved = self.append(volume, &entry, bytes, described)?;
        self.moved.insert(key, moved);
        Ok(moved)
    }

    /// The journalled bytes of an entry, verified.
    fn journalled(&self, entry: &Entry) -> Option<Vec<u8>> {
        let pieces = self.learned.bytes.get(&entry.segment)?;
        let (start, piece) = pieces.range(..=entry.position).next_back()?;
        let from = usize::try_from(entry.position - start).ok()?;
        let length = usize::try_from(entry.stored).ok()?;
        let bytes = piece.get(from..from + length)?;
        (crc32c::crc32c(bytes) == entry.checksum).then(|| bytes.to_vec())
    }

    fn append(
        &self,
        volume: &Volume,
        entry: &Entry,
        bytes: Vec<u8>,
        described: Option<&SummaryRecord>,
    ) -> Result<Entry, EngineError> {
        let stripe_bytes = self.engine.geometry.stripe_bytes as usize;
        // A read-only pool keeps its stripes in memory for good, bounded by
        // the journal's size.
        let mut spare = if self.engine.read_only {
            vec![
                AlignedBuf::zeroed(stripe_bytes),
                AlignedBuf::zeroed(stripe_bytes),
            ]
        } else {
            self.engine.take_stripe_buffers(2)?
        };
        let chunk = NewChunk {
            kind: entry.kind,
            bytes: &bytes,
            checksum: entry.checksum,
            logical_bytes: volume.chunk_bytes,
            fingerprint: described.and_then(|record| record.fingerprint),
            owner: described.map(|record| record.owner).unwrap_or_default(),
        };
        let mut state = self.engine.state.lock();
        let sequence = state.sequence;
        let appended = state
            .appender
            .append(Stream::Data, &chunk, &mut spare, sequence)
            .map_err(|full| {
                EngineError::new(ErrorKind::NoSpace, "No segment is free for recovery")
                    .caused_by(full)
            })?;
        drop(state);
        if let Some(fingerprint) = chunk.fingerprint {
            let hit = Hit {
                entry: appended.entry,
                generation: appended.generation,
                logical: volume.chunk_bytes,
            };
            self.engine.index.fresh_insert(fingerprint, hit);
        }
        Ok(appended.entry)
    }
}

fn malformed(batch: &Batch) -> EngineError {
    EngineError::damaged(format!(
        "Journal batch {} holds a malformed record",
        batch.header.number
    ))
}

fn unknown_snapshot(id: u64) -> EngineError {
    EngineError::damaged(format!(
        "The journal names snapshot {id}, which does not exist"
    ))
}

fn unknown_volume(id: u64) -> EngineError {
    EngineError::damaged(format!(
        "The journal names volume {id}, which does not exist"
    ))
}
