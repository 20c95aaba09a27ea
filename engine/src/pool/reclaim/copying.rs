//! Copying chunks out of victims and giving their names the new place (R21).
//!
//! A name is changed under the append lock, if nobody has changed the chunk
//! since its entry was compared: the chunks of a step are watched the way those
//! of partial writes are.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use tessera_dedup::{
    Entry, Fingerprint, Hit, Owner, SummaryRecord, fingerprint,
    segment::{NewChunk, Stream},
};
use tessera_raid::{SegmentId, device::AlignedBuf, sabotage::broken};

use super::{
    mover::Name,
    survey::{leaves, runs_by},
};
use crate::{
    error::{EngineError, ErrorKind},
    pool::{
        engine::{AppendState, Engine},
        pages::Pages,
        space::pages_for,
        volume::Volume,
        write::GROUP_BYTES,
    },
};

/// What a chunk that snapshots name was, and is, by where it was.
pub(super) type Moved = HashMap<(SegmentId, u32), (Entry, Entry)>;

/// Names dealt with in one step.
const NAMES_PER_STEP: usize = 2048;
/// Leaves of a volume's map have this many entries.
const ENTRIES_PER_LEAF: u64 = 256;

impl Engine {
    /// Moves the chunks of the first names: about a megabyte; how many names
    /// that were, and how many bytes were copied.
    pub(super) fn move_some(
        &self,
        names: &[Name],
        moved: &mut Moved,
    ) -> Result<(usize, u64), EngineError> {
        let volumes: HashMap<u64, Arc<Volume>> = {
            let volumes = self.volumes.read();
            let of = |id: u64| Some((id, Arc::clone(volumes.by_id.get(&id)?)));
            names.iter().filter_map(|name| of(name.tree)).collect()
        };
        // At most one segment is opened for them.
        let bytes_max = GROUP_BYTES.min(self.geometry.segment_bytes as usize / 2);
        let mut logical = 0;
        let mut count = 0;
        for run in runs_by(names, |name| place(&name.entry)) {
            logical += names[run.start].chunk_bytes as usize;
            // A chunk with very many names is dealt with in several turns.
            if count > 0 && (logical > bytes_max || run.end > NAMES_PER_STEP) {
                break;
            }
            count = run.end.min(NAMES_PER_STEP);
        }
        let names = &names[..count];
        self.make_room_for_moving(logical as u64)?;
        let _guard = self.epochs.enter();
        let of_volumes = names.iter().filter(|name| !name.of_snapshot);
        let marks = Marks::new(self, of_volumes.map(|name| (name.tree, name.index)));
        let current = self.still_named(names, &volumes)?;
        let copied = self.copy_chunks(&current, &volumes, &marks, moved)?;
        drop(marks);
        if self.layer_bytes.load(Ordering::Relaxed) > self.budget.layers as u64 {
            self.signals.maintenance.ring();
        }
        Ok((count, copied))
    }

    /// Those names that are still what they were.
    fn still_named(
        &self,
        names: &[Name],
        volumes: &HashMap<u64, Arc<Volume>>,
    ) -> Result<Vec<Name>, EngineError> {
        let pages = Pages(&self.reader);
        let mut of_volume: BTreeMap<u64, Vec<Name>> = BTreeMap::new();
        let mut current = Vec::with_capacity(names.len());
        for name in names {
            if name.of_snapshot {
                // Snapshots do not change.
                current.push(*name);
            } else {
                of_volume.entry(name.tree).or_default().push(*name);
            }
        }
        for (id, mut names) in of_volume {
            let Some(volume) = volumes.get(&id).filter(|volume| !volume.is_deleted()) else {
                continue;
            };
            names.sort_unstable_by_key(|name| name.index);
            let indices: Vec<u64> = names.iter().map(|name| name.index).collect();
            let entries = volume.entries_at(&pages, indices.iter().copied())?;
            let pairs = names.into_iter().zip(entries);
            current.extend(
                pairs
                    .filter(|(name, now)| name.entry == *now)
                    .map(|(name, _)| name),
            );
        }
        current.sort_unstable_by_key(|name| (place(&name.entry), name.tree, name.index));
        Ok(current)
    }

    /// Copies each chunk once and remaps all of its names that still hold.
    fn copy_chunks(
        &self,
        names: &[Name],
        volumes: &HashMap<u64, Arc<Volume>>,
        marks: &Marks<'_>,
        moved: &mut Moved,
    ) -> Result<u64, EngineError> {
        let runs: Vec<_> = runs_by(names, |name| name.entry).collect();
        let entries: Vec<Entry> = runs.iter().map(|run| names[run.start].entry).collect();
        let described = self.describe(&entries);
        let stored = self.reader.read_stored(&entries);
        let mut chunks = Vec::with_capacity(runs.len());
        for ((run, stored), record) in runs.into_iter().zip(stored).zip(described) {
            let first = &names[run.start];
            let bytes = match stored {
                Ok(bytes) => bytes,
                Err(error) => {
                    // A scrub says what it was; it stays where it is.
                    tracing::warn!(%error, "A damaged chunk is not moved");
                    continue;
                }
            };
            let logical = first.chunk_bytes;
            let record = record.filter(|record| record.logical == logical);
            let print = record.and_then(|record| record.fingerprint);
            if let Some(print) = print
                && !is_chunk(&first.entry, &bytes, &print, logical)
            {
                tracing::warn!(
                    segment = first.entry.segment.0,
                    position = first.entry.position,
                    "A chunk is not what its summary says, and is not moved"
                );
                continue;
            }
            let owner = record.map_or(
                Owner {
                    tree: first.tree,
                    index: first.index,
                    level: 0,
                },
                |record| record.owner,
            );
            chunks.push((run, bytes, print, owner));
        }
        let largest = chunks.iter().map(|(_, bytes, ..)| bytes.len()).max();
        let Some(largest) = largest else {
            return Ok(0);
        };
        let needed = self.geometry.stripes_for(chunks.len(), largest);
        let mut spare = self.take_stripe_buffers(needed)?;
        let mut copied = 0;
        let mut state = self.lock_with_room_to_record()?;
        let ticket = state.appender.last_ticket();
        for (run, bytes, print, owner) in chunks {
            let names: Vec<&Name> = names[run]
                .iter()
                .filter(|name| name.of_snapshot || marks.holds(&state, (name.tree, name.index)))
                .collect();
            let Some(first) = names.first() else { continue };
            let new = NewChunk {
                kind: first.entry.kind,
                bytes: &bytes,
                checksum: first.entry.checksum,
                logical_bytes: first.chunk_bytes,
                fingerprint: print,
                owner,
            };
            let entry = self.append_copy(&mut state, &new, &mut spare)?;
            copied += bytes.len() as u64;
            for name in names {
                if name.of_snapshot {
                    // With the copy, so before its segment can be sealed.
                    if !broken("R21.unnamed") {
                        self.unnamed_copies.lock().insert(entry.segment);
                    }
                    moved.insert(place(&name.entry), (name.entry, entry));
                } else {
                    remap(&volumes[&name.tree], name.index, entry);
                }
            }
        }
        Self::journal_segment_events(&mut state);
        let touched: u64 = runs_by(names, |name| name.tree)
            .map(|run| leaves(names[run].iter().map(|name| name.index), ENTRIES_PER_LEAF))
            .sum();
        state.active_pages += touched + pages_for(1);
        let layer_bytes = 40 * names.len() as u64;
        self.layer_bytes.fetch_add(layer_bytes, Ordering::Relaxed);
        let closed = state.appender.last_ticket() > ticket;
        drop(state);
        if closed {
            self.signals.writer.ring();
        }
        Ok(copied)
    }

    fn append_copy(
        &self,
        state: &mut AppendState,
        new: &NewChunk<'_>,
        spare: &mut Vec<AlignedBuf>,
    ) -> Result<Entry, EngineError> {
        let sequence = state.sequence;
        let appended = state
            .appender
            .append(Stream::Data, new, spare, sequence)
            .map_err(|full| {
                let message = "No segment is free to move chunks to";
                EngineError::new(ErrorKind::NoSpace, message).caused_by(full)
            })?;
        state.pending.appended(&SummaryRecord {
            fingerprint: new.fingerprint,
            entry: appended.entry,
            logical: new.logical_bytes,
            owner: new.owner,
        });
        if let Some(print) = new.fingerprint {
            let hit = Hit {
                entry: appended.entry,
                generation: appended.generation,
                logical: new.logical_bytes,
            };
            self.index.fresh_insert(print, hit);
        }
        Ok(appended.entry)
    }

    /// What the summaries say of these chunks, which are in order.
    fn describe(&self, entries: &[Entry]) -> Vec<Option<SummaryRecord>> {
        let mut described = Vec::with_capacity(entries.len());
        for run in runs_by(entries, |entry| entry.segment) {
            let id = entries[run.start].segment;
            let summary = self
                .table
                .record(id)
                .and_then(|record| self.read_summary(id, &record));
            let records: HashMap<u32, SummaryRecord> = summary
                .into_iter()
                .flat_map(|summary| summary.records)
                .map(|record| (record.entry.position, record))
                .collect();
            described.extend(entries[run].iter().map(|entry| {
                let record = records.get(&entry.position)?;
                (record.entry == *entry).then_some(*record)
            }));
        }
        described
    }

    /// The append lock, taken when the journal has room for more records.
    fn lock_with_room_to_record(
        &self,
    ) -> Result<parking_lot::MutexGuard<'_, AppendState>, EngineError> {
        let mut state = self.state.lock();
        while state.pending.len() as u64 > 2 * self.pending_bytes_max() {
            drop(state);
            self.commit_now()?;
            state = self.state.lock();
        }
        self.check_usable()?;
        Ok(state)
    }
}

pub(super) fn place(entry: &Entry) -> (SegmentId, u32) {
    (entry.segment, entry.position)
}

/// The one place where a chunk gets another entry of the same content (R21).
pub(in crate::pool) fn remap(volume: &Volume, index: u64, entry: Entry) {
    let mut inner = volume.state.write();
    let chunks = inner.size_bytes.div_ceil(u64::from(volume.chunk_bytes));
    if index < chunks {
        inner.active.set(index, entry);
    }
}

fn is_chunk(entry: &Entry, stored: &[u8], print: &Fingerprint, logical: u32) -> bool {
    let mut chunk = vec![0; logical as usize];
    tessera_dedup::decompress(stored, entry.kind, &mut chunk).is_ok()
        && fingerprint(&chunk) == *print
}

/// Chunks that are watched for changes by others, as those of partial writes
/// are.
pub(in crate::pool) struct Marks<'a> {
    engine: &'a Engine,
    versions: HashMap<(u64, u64), u64>,
}

impl<'a> Marks<'a> {
    pub(in crate::pool) fn new(engine: &'a Engine, keys: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut versions = HashMap::new();
        let mut state = engine.state.lock();
        for key in keys {
            versions.entry(key).or_insert_with(|| {
                let mark = state.partial.entry(key).or_default();
                mark.writers += 1;
                mark.version
            });
        }
        drop(state);
        Self { engine, versions }
    }

    /// True while nobody has changed the chunk.
    pub(in crate::pool) fn holds(&self, state: &AppendState, key: (u64, u64)) -> bool {
        let now = state.partial.get(&key).map(|mark| mark.version);
        now == self.versions.get(&key).copied() || broken("R21.unchanged")
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        let mut state = self.engine.state.lock();
        for key in self.versions.keys() {
            let mark = state.partial.get_mut(key).expect("marked until dropped");
            mark.writers -= 1;
            if mark.writers == 0 {
                state.partial.remove(key);
            }
        }
    }
}
