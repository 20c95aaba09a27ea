//! The chunks of one pass: those of a window of segments that have no hash.

use std::collections::BTreeSet;

use tessera_dedup::{
    Entry, Fingerprint, Generation, Hit,
    segment::{SegmentRecord, SegmentState, Stream},
};
use tessera_raid::{SegmentId, device::BLOCK_BYTES};

use super::{BYTES_PER_CHUNK, CHUNKS_MIN, DedupWork, Found, Progress, Stage};
use crate::{
    error::EngineError,
    pool::{CheckpointKind, engine::Engine},
};

/// Summaries read in one step.
pub(super) const SUMMARIES_PER_STEP: usize = 16;

/// A chunk without a hash.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) entry: Entry,
    pub(super) generation: Generation,
    /// Bytes before compression.
    pub(super) logical: u32,
    /// Set by hashing.
    pub(super) print: Option<Fingerprint>,
    /// What it is a duplicate of.
    pub(super) target: Option<Hit>,
    pub(super) by_volume: bool,
    pub(super) by_snapshot: bool,
    /// A volume of mode `off`, or a snapshot of one, names it: it stays.
    pub(super) by_off: bool,
    /// A name of it has been changed.
    pub(super) merged: bool,
}

impl Chunk {
    /// No later run can do more for it: it has a hash now, or nobody named it.
    fn is_settled(&self) -> bool {
        let named = self.by_volume || self.by_snapshot || self.by_off;
        !named || self.print.is_some() && self.target.is_none()
    }

    /// Somebody wants it, and everybody would have it merged.
    pub(super) fn is_wanted(&self) -> bool {
        (self.by_volume || self.by_snapshot) && !self.by_off
    }
}

/// A volume's name of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) tree: u64,
    pub(super) index: u64,
    /// In [`Window::chunks`].
    pub(super) chunk: u32,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) segments: Vec<(SegmentId, Generation)>,
    /// In the order of their places.
    pub(super) chunks: Vec<Chunk>,
    pub(super) names: Vec<Name>,
    /// Hashed chunks, those that are equal together.
    pub(super) sorted: Vec<u32>,
    /// Segments that the index named, with the low half of their generation.
    pub(super) suspects: Vec<(SegmentId, u32)>,
    pub(super) found: Found,
}

impl Window {
    pub(super) fn chunk(&self, index: u32) -> &Chunk {
        &self.chunks[index as usize]
    }

    /// The chunk that an entry names, if it is one of these.
    pub(super) fn find(&self, entry: &Entry) -> Option<u32> {
        let key = (entry.segment, entry.position);
        let at = self
            .chunks
            .binary_search_by_key(&key, |chunk| (chunk.entry.segment, chunk.entry.position))
            .ok()?;
        (self.chunks[at].entry == *entry).then(|| u32::try_from(at).expect("bounded by memory"))
    }

    /// By volume and place in it, as merging goes through them.
    pub(super) fn sort_names(&mut self) {
        self.names.sort_unstable();
        self.names.dedup();
    }

    /// Equal chunks together; of these the one that snapshots name first, then
    /// the one that lies first: the fewer other pages.
    pub(super) fn sort_hashed(&mut self) {
        let chunks = &self.chunks;
        let hashed = (0u32..).zip(chunks).filter(|(_, c)| c.print.is_some());
        self.sorted = hashed.map(|(index, _)| index).collect();
        self.sorted.sort_unstable_by_key(|index| {
            let chunk = &chunks[*index as usize];
            (chunk.print, chunk.logical, !chunk.by_snapshot, *index)
        });
    }

    /// A chunk of the segment has been hashed and stays.
    pub(super) fn has_new_hashes(&self, segment: SegmentId) -> bool {
        let begin = |segment: SegmentId| {
            self.chunks
                .partition_point(|chunk| chunk.entry.segment < segment)
        };
        let of_segment = &self.chunks[begin(segment)..begin(SegmentId(segment.0 + 1))];
        of_segment
            .iter()
            .any(|chunk| chunk.print.is_some() && chunk.target.is_none())
    }

    /// Segments in which nothing is left to be looked at.
    pub(super) fn settled(&self) -> impl Iterator<Item = (u32, u64)> {
        let unsettled: BTreeSet<SegmentId> = self
            .chunks
            .iter()
            .filter(|chunk| !chunk.is_settled())
            .map(|chunk| chunk.entry.segment)
            .collect();
        let all = self.segments.iter();
        all.filter(move |(id, _)| !unsettled.contains(id))
            .map(|(id, generation)| (id.0, generation.0))
    }

    /// The hash of one of the sorted chunks.
    pub(super) fn print(&self, at: usize) -> Fingerprint {
        let print = self.chunk(self.sorted[at]).print;
        print.expect("only hashed chunks are sorted")
    }

    pub(super) fn take_suspects(&mut self) -> Vec<(SegmentId, u32)> {
        let mut suspects = std::mem::take(&mut self.suspects);
        suspects.sort_unstable();
        suspects.dedup();
        suspects
    }

    /// Gives every duplicate what takes its place; how many there are.
    pub(super) fn choose_targets(&mut self) -> u64 {
        let mut count = 0;
        let mut at = 0;
        while at < self.sorted.len() {
            let key = |index: u32| (self.chunk(index).print, self.chunk(index).logical);
            let first = self.sorted[at];
            let equal = self.sorted[at..].iter();
            let end = at + equal.take_while(|index| key(**index) == key(first)).count();
            let (target, from) = match self.found.get(&at) {
                Some(hit) => (*hit, at),
                None => {
                    let chunk = self.chunk(first);
                    let hit = Hit {
                        entry: chunk.entry,
                        generation: chunk.generation,
                        logical: chunk.logical,
                    };
                    (hit, at + 1)
                }
            };
            for index in &self.sorted[from..end] {
                self.chunks[*index as usize].target = Some(target);
                count += 1;
            }
            at = end;
        }
        let chunks = &self.chunks;
        self.names
            .retain(|name| chunks[name.chunk as usize].target.is_some());
        count
    }
}

impl Engine {
    /// Sealed segments of chunks, from this one on.
    pub(super) fn sealed_data(&self, from: u32) -> Vec<(SegmentId, SegmentRecord)> {
        let mut live = self.table.live();
        live.retain(|(id, record)| {
            id.0 >= from
                && record.state == SegmentState::Sealed
                && record.stream() == Some(Stream::Data)
        });
        live
    }

    /// True while the segment is what it was.
    pub(super) fn is_still(&self, segment: SegmentId, generation: Generation) -> bool {
        self.table.record(segment).is_some_and(|record| {
            record.generation == generation && record.state == SegmentState::Sealed
        })
    }

    /// Reads some summaries, until the window is full.
    pub(super) fn survey_some(&self, work: &mut DedupWork) -> Result<Progress, EngineError> {
        let chunks_max = (self.budget.layers / BYTES_PER_CHUNK).max(CHUNKS_MIN);
        let window = &mut work.window;
        let (mut bytes, mut passed, mut full) = (0, 0, false);
        let sealed = self.sealed_data(work.next);
        let (mut more, mut read) = (false, 0);
        let mut hashed = self.hashed_segments.lock();
        let guard = self.epochs.enter();
        for (id, record) in sealed {
            if hashed.contains(&(id.0, record.generation.0)) {
                work.next = id.0 + 1;
                passed += u64::from(record.stored_bytes);
                continue;
            }
            if read == SUMMARIES_PER_STEP {
                more = true;
                break;
            }
            read += 1;
            if !window.chunks.is_empty()
                && window.chunks.len() + record.chunks as usize > chunks_max
            {
                full = true;
                break;
            }
            work.next = id.0 + 1;
            bytes += u64::from(record.summary.blocks) * BLOCK_BYTES as u64;
            let before = window.chunks.len();
            // One that cannot be read is for a scrub to tell of.
            let Some(summary) = self.read_summary(id, &record) else {
                passed += u64::from(record.stored_bytes);
                continue;
            };
            let records = summary.records.into_iter();
            let unhashed = records.filter(|record| record.fingerprint.is_none());
            window.chunks.extend(unhashed.map(|unhashed| Chunk {
                entry: unhashed.entry,
                generation: record.generation,
                logical: unhashed.logical,
                print: None,
                target: None,
                by_volume: false,
                by_snapshot: false,
                by_off: false,
                merged: false,
            }));
            let of_window: u64 = window.chunks[before..]
                .iter()
                .map(|chunk| u64::from(chunk.entry.stored))
                .sum();
            passed += u64::from(record.stored_bytes).saturating_sub(of_window);
            if window.chunks.len() > before {
                window.segments.push((id, record.generation));
            } else {
                hashed.insert((id.0, record.generation.0));
            }
        }
        drop((guard, hashed));
        self.jobs.lock().update(work.job, |record| {
            record.done_bytes += passed;
        });
        if full || !more {
            if window.chunks.is_empty() {
                return Ok(Progress::Over);
            }
            // Whatever lies in these segments has its names in pages then.
            self.checkpoint_now(CheckpointKind::Normal)?;
            work.stage = Stage::Names(Default::default());
        }
        Ok(Progress::Did(bytes))
    }
}

#[cfg(test)]
mod tests {
    use tessera_dedup::EntryKind;

    use super::*;

    fn chunk(position: u32, print: u8, by_snapshot: bool) -> Chunk {
        Chunk {
            entry: Entry {
                kind: EntryKind::Raw,
                segment: SegmentId(1),
                position,
                stored: 4096,
                generation: 7,
                checksum: position,
            },
            generation: Generation(7),
            logical: 4096,
            print: Some(Fingerprint([print; 32])),
            target: None,
            by_volume: true,
            by_snapshot,
            by_off: false,
            merged: false,
        }
    }

    fn window(chunks: Vec<Chunk>) -> Window {
        let mut window = Window {
            chunks,
            ..Window::default()
        };
        window.sort_hashed();
        window
    }

    #[test]
    fn of_equal_chunks_the_one_that_snapshots_name_stays() {
        let mut window = window(vec![
            chunk(0, 1, false),
            chunk(4096, 2, false),
            chunk(8192, 1, true),
            chunk(12288, 1, false),
        ]);
        assert_eq!(window.choose_targets(), 2);
        let to: Vec<_> = window
            .chunks
            .iter()
            .map(|chunk| chunk.target.map(|hit| hit.entry.position))
            .collect();
        assert_eq!(to, [Some(8192), None, None, Some(8192)]);
    }

    #[test]
    fn a_chunk_of_another_length_is_none_that_is_equal() {
        let mut chunks = vec![chunk(0, 1, false), chunk(4096, 1, false)];
        chunks[1].logical = 8192;
        assert_eq!(window(chunks).choose_targets(), 0);
    }

    #[test]
    fn what_has_been_found_elsewhere_takes_all_places() {
        let mut window = window(vec![chunk(0, 1, false), chunk(4096, 1, false)]);
        let elsewhere = Hit {
            entry: Entry {
                segment: SegmentId(9),
                ..window.chunks[0].entry
            },
            generation: Generation(3),
            logical: 4096,
        };
        window.found.insert(0, elsewhere);
        assert_eq!(window.choose_targets(), 2);
        assert!(window.chunks.iter().all(|c| c.target == Some(elsewhere)));
    }

    #[test]
    fn an_entry_finds_its_chunk_and_no_other_of_the_place() {
        let window = window(vec![chunk(0, 1, false), chunk(4096, 2, false)]);
        let entry = window.chunks[1].entry;
        assert_eq!(window.find(&entry), Some(1));
        let other = Entry {
            checksum: 5,
            ..entry
        };
        assert_eq!(window.find(&other), None);
    }
}
