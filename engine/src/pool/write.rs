//! The write path: from bytes to an acknowledged change in memory.
//!
//! ```text
//!   without a lock:  admit -> zero test -> BLAKE3 -> probe -> LZ4 -> CRC32C
//!   append lock:     hit | append to the open stripe -> journal record
//!                    -> sequence and map change, together (R13)
//! ```
//! Nothing blocks under the append lock: buffers and space are in hand before.
//! Copying a chunk into the stripe happens under it, so an entry that others
//! can find always has its bytes in memory (R8), a stripe is never closed under
//! a copy (R14), and of two concurrent writers of one new block the second
//! finds the first's.

use std::{cell::RefCell, sync::atomic::Ordering};

use tessera_dedup::{
    Compressor, Entry, EntryKind, Fingerprint, Hit, Owner, fingerprint_many, is_zero,
    segment::{NewChunk, Stream},
};
use tessera_raid::sabotage::broken;

use super::{
    engine::{AppendState, Engine},
    space::pages_for,
    volume::Volume,
};
use crate::{
    api::{Compression, DedupMode},
    error::{EngineError, ErrorKind},
};

/// Bytes of a request that take one sequence together.
pub(crate) const GROUP_BYTES: usize = 1 << 20;

/// Memory that a thread reuses from group to group.
#[derive(Default)]
struct Scratch {
    compressor: Compressor,
    fingerprints: Vec<Fingerprint>,
    hits: Vec<Option<Hit>>,
    /// LZ4 output of the group, back to back.
    packed: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One chunk of a group on its way.
struct Prepared<'a> {
    fingerprint: Option<Fingerprint>,
    plan: Plan<'a>,
}

enum Plan<'a> {
    Hole,
    Hit(Hit),
    Raw {
        bytes: &'a [u8],
        checksum: u32,
    },
    /// A range of the scratch's LZ4 output.
    Packed {
        range: std::ops::Range<usize>,
        checksum: u32,
    },
}

/// A partial write that must not be overtaken between its read and its change.
pub(crate) struct PartialToken {
    pub(crate) version: u64,
}

/// What became of a group.
pub(crate) enum Outcome {
    /// The change is made.
    Done,
    /// The chunk changed since the token was taken: read it again.
    Overtaken,
}

impl Engine {
    /// Writes whole chunks from `first` on. The caller holds an epoch guard and
    /// an admission that covers the bytes.
    pub(crate) fn write_chunks(
        &self,
        volume: &Volume,
        first: u64,
        data: &[u8],
        token: Option<&PartialToken>,
    ) -> Result<Outcome, EngineError> {
        self.throttle()?;
        SCRATCH.with_borrow_mut(|scratch| {
            let (dedup, compression) = {
                let state = volume.state.read();
                (state.dedup, state.compression)
            };
            let prepared = self.prepare(volume, data, dedup, compression, scratch);
            self.append_group(volume, first, &prepared, &scratch.packed, token)
        })
    }

    /// Everything that needs no lock.
    fn prepare<'a>(
        &self,
        volume: &Volume,
        data: &'a [u8],
        dedup: DedupMode,
        compression: Compression,
        scratch: &mut Scratch,
    ) -> Vec<Prepared<'a>> {
        let chunk_bytes = volume.chunk_bytes as usize;
        let Scratch {
            compressor,
            fingerprints,
            hits,
            packed,
        } = scratch;
        packed.clear();
        fingerprints.clear();
        hits.clear();
        let chunks: Vec<&[u8]> = data.chunks_exact(chunk_bytes).collect();
        let stored: Vec<&[u8]> = chunks
            .iter()
            .copied()
            .filter(|chunk| !is_zero(chunk))
            .collect();
        if dedup == DedupMode::Inline {
            fingerprint_many(&stored, fingerprints);
            hits.resize(stored.len(), None);
            self.index.probe(fingerprints, &*self.table, hits);
        }
        let all_stored = stored.len() == chunks.len();
        let mut next = 0;
        let prepare_one = |chunk: &'a [u8]| {
            if !all_stored && is_zero(chunk) {
                return Prepared {
                    fingerprint: None,
                    plan: Plan::Hole,
                };
            }
            let fingerprint = fingerprints.get(next).copied();
            let hit = hits.get(next).copied().flatten();
            next += 1;
            if let Some(hit) = hit.filter(|hit| hit.logical as usize == chunk_bytes) {
                return Prepared {
                    fingerprint,
                    plan: Plan::Hit(hit),
                };
            }
            if compression == Compression::Lz4
                && let Some(smaller) = compressor.compress(chunk)
            {
                let start = packed.len();
                packed.extend_from_slice(smaller);
                let checksum = crc32c::crc32c(smaller);
                let range = start..packed.len();
                return Prepared {
                    fingerprint,
                    plan: Plan::Packed { range, checksum },
                };
            }
            let checksum = crc32c::crc32c(chunk);
            Prepared {
                fingerprint,
                plan: Plan::Raw {
                    bytes: chunk,
                    checksum,
                },
            }
        };
        chunks.iter().copied().map(prepare_one).collect()
    }

    fn append_group(
        &self,
        volume: &Volume,
        first: u64,
        chunks: &[Prepared<'_>],
        packed: &[u8],
        token: Option<&PartialToken>,
    ) -> Result<Outcome, EngineError> {
        let new = chunks
            .iter()
            .filter(|chunk| matches!(chunk.plan, Plan::Raw { .. } | Plan::Packed { .. }));
        let needed = match new.count() {
            0 => 0,
            count => self
                .geometry
                .stripes_for(count, volume.chunk_bytes as usize),
        };
        let mut spare = self.take_stripe_buffers(needed)?;
        let mut entries = Vec::with_capacity(chunks.len());

        let mut state = self.state.lock();
        // However many writers there are, what is pending fits the journal.
        while state.pending.len() as u64 > 2 * self.pending_bytes_max() {
            drop(state);
            self.commit_now()?;
            state = self.state.lock();
        }
        self.check_usable()?;
        if let Some(token) = token
            && state
                .partial
                .get(&(volume.id, first))
                .is_some_and(|m| m.version != token.version)
            && !broken("R13.overtaken")
        {
            return Ok(Outcome::Overtaken);
        }
        let ticket = state.appender.last_ticket();
        for (index, chunk) in (first..).zip(chunks) {
            let stored = match &chunk.plan {
                Plan::Hole => {
                    entries.push(Entry::HOLE);
                    continue;
                }
                Plan::Hit(hit) => {
                    entries.push(hit.entry);
                    continue;
                }
                Plan::Raw { bytes, checksum } => (EntryKind::Raw, *bytes, *checksum),
                Plan::Packed { range, checksum } => {
                    (EntryKind::Lz4, &packed[range.clone()], *checksum)
                }
            };
            let fresh = |print| self.index.fresh_get(&print, &*self.table);
            if let Some(hit) = chunk.fingerprint.and_then(fresh)
                && hit.logical == volume.chunk_bytes
            {
                entries.push(hit.entry);
                continue;
            }
            let owner = Owner {
                tree: volume.id,
                index,
                level: 0,
            };
            let entry = self.append_chunk(
                &mut state,
                volume,
                stored,
                chunk.fingerprint,
                owner,
                &mut spare,
            )?;
            entries.push(entry);
        }
        self.change_map(&mut state, volume, first, &entries)?;
        let closed = state.appender.last_ticket() > ticket;
        drop(state);
        if closed {
            self.signals.writer.ring();
        }
        Ok(Outcome::Done)
    }

    fn append_chunk(
        &self,
        state: &mut AppendState,
        volume: &Volume,
        (kind, bytes, checksum): (EntryKind, &[u8], u32),
        fingerprint: Option<Fingerprint>,
        owner: Owner,
        spare: &mut Vec<tessera_raid::device::AlignedBuf>,
    ) -> Result<Entry, EngineError> {
        let new = NewChunk {
            kind,
            bytes,
            checksum,
            logical_bytes: volume.chunk_bytes,
            fingerprint,
            owner,
        };
        let sequence = state.sequence + 1;
        let appended = state
            .appender
            .append(Stream::Data, &new, spare, sequence)
            .map_err(|full| {
                EngineError::new(ErrorKind::NoSpace, "The pool is full").caused_by(full)
            })?;
        let record = tessera_dedup::SummaryRecord {
            fingerprint,
            entry: appended.entry,
            logical: volume.chunk_bytes,
            owner,
        };
        if !state.replaying {
            state.pending.appended(&record);
        }
        if let Some(fingerprint) = fingerprint {
            let hit = Hit {
                entry: appended.entry,
                generation: appended.generation,
                logical: volume.chunk_bytes,
            };
            self.index.fresh_insert(fingerprint, hit);
        }
        Ok(appended.entry)
    }

    /// The one place where chunks get new entries: sequence, journal record
    /// and map change happen together (R13).
    pub(crate) fn change_map(
        &self,
        state: &mut AppendState,
        volume: &Volume,
        first: u64,
        entries: &[Entry],
    ) -> Result<(), EngineError> {
        let count = entries.len() as u64;
        Self::journal_segment_events(state);
        let mut inner = volume.state.write();
        check_range(volume, inner.size_bytes, first, count)?;
        state.sequence += u64::from(!broken("R13.sequence"));
        if !broken("R13.record") {
            state.pending.map(volume.id, first, entries);
        }
        inner.active.set_run(first, entries);
        drop(inner);
        self.after_change(state, volume, (first, count), 40 * count, pages_for(count));
        Ok(())
    }

    /// As [`Self::change_map`] for a range that becomes all holes or zeroes.
    pub(crate) fn fill_map(
        &self,
        volume: &Volume,
        first: u64,
        count: u64,
        entry: Entry,
    ) -> Result<(), EngineError> {
        self.throttle()?;
        self.make_room_for_fill(count.saturating_mul(u64::from(volume.chunk_bytes)))?;
        let mut state = self.state.lock();
        self.check_usable()?;
        self.fill_locked(&mut state, volume, first, count, entry)
    }

    /// As [`Self::fill_map`] for a caller that holds the append lock.
    pub(crate) fn fill_locked(
        &self,
        state: &mut AppendState,
        volume: &Volume,
        first: u64,
        count: u64,
        entry: Entry,
    ) -> Result<(), EngineError> {
        let mut inner = volume.state.write();
        check_range(volume, inner.size_bytes, first, count)?;
        state.sequence += 1;
        state.pending.fill(volume.id, first, count, entry);
        inner.active.fill(first, count, entry);
        drop(inner);
        // A fill touches at most the leaves at its two ends.
        self.after_change(state, volume, (first, count), 128, super::space::FILL_PAGES);
        Ok(())
    }

    fn after_change(
        &self,
        state: &mut AppendState,
        volume: &Volume,
        (first, count): (u64, u64),
        layer_bytes: u64,
        pages: u64,
    ) {
        state.overwrites += 1;
        state.active_pages += pages;
        if !state.partial.is_empty() {
            for ((id, chunk), mark) in &mut state.partial {
                if *id == volume.id && (first..first + count).contains(chunk) {
                    mark.version += 1;
                }
            }
        }
        let pending = state.pending.len() as u64;
        self.pending_bytes.store(pending, Ordering::Relaxed);
        if pending > PENDING_BYTES_NUDGE {
            self.signals.committer.ring();
        }
        let layers = self.layer_bytes.fetch_add(layer_bytes, Ordering::Relaxed) + layer_bytes;
        if layers > self.budget.layers as u64 {
            self.signals.maintenance.ring();
        }
    }

    /// Holds a writer back while memory or the journal are behind, by doing
    /// some of the work.
    fn throttle(&self) -> Result<(), EngineError> {
        self.check_usable()?;
        if self.pending_bytes.load(Ordering::Relaxed) > self.pending_bytes_max() {
            self.commit_now()?;
        }
        if self.layer_bytes.load(Ordering::Relaxed) > 2 * self.budget.layers as u64 {
            self.checkpoint_now(super::CheckpointKind::Normal)?;
        }
        Ok(())
    }

    pub(crate) fn pending_bytes_max(&self) -> u64 {
        (self.array.journal_bytes() / 16).min(8 << 20)
    }
}

/// Records beyond this are worth a commit before the timer.
const PENDING_BYTES_NUDGE: u64 = 1 << 20;

fn check_range(volume: &Volume, size: u64, first: u64, count: u64) -> Result<(), EngineError> {
    if volume.is_deleted() {
        return Err(EngineError::new(
            ErrorKind::NotFound,
            "The volume has been deleted",
        ));
    }
    let chunks = size.div_ceil(u64::from(volume.chunk_bytes));
    if first.checked_add(count).is_none_or(|end| end > chunks) {
        let message = "The volume has been made smaller under the request";
        return Err(EngineError::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}
