//! Reading every chunk that something names, each stored one once.
//!
//! ```text
//!   window    consecutive segments that hold at most some million chunks
//!     walk    all maps: which chunks of the window are named, and by whom
//!     sort    by place; one entry for each stored chunk
//!     read    segment by segment, in long runs; verify each chunk
//! ```
//! So memory is bounded, the members are read once and in order, and the maps
//! once for every window (they are a 256th of the data).

use tessera_dedup::{Entry, EntryKind, SummaryRecord, decompress, fingerprint, segment::Stream};
use tessera_raid::SegmentId;

use super::{
    Check,
    segments::{PAGES_PER_STEP, Segments},
    source::{self, CheckedPages, Found, Range},
    trees::{Seen, Volumes, shape_of},
};
use crate::map::{PageOwner, Pointer, Visit, Walker};

/// Chunks that are sorted together: 40 bytes each.
const CHUNKS_PER_WINDOW: usize = 2 << 20;
/// Bytes of one read, and of the reads of one submission.
const RUN_BYTES: u32 = 1 << 20;
const READ_BYTES: u32 = 8 << 20;

/// A chunk to verify and one place that names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) entry: Entry,
    pub(super) volume: u64,
    pub(super) index: u64,
}

impl Wanted {
    /// Equal for the same stored chunk, ascending by place.
    fn key(&self) -> (u32, u32, u32, u32, u8, u8) {
        let Entry {
            segment,
            position,
            stored,
            checksum,
            kind,
            generation,
        } = self.entry;
        (
            segment.0, position, stored, checksum, kind as u8, generation,
        )
    }
}

fn sort(wanted: &mut Vec<Wanted>) {
    wanted.sort_unstable_by_key(|one| (one.key(), one.volume, one.index));
    wanted.dedup_by_key(|one| one.key());
}

impl Check<'_> {
    pub(super) fn chunks(
        &mut self,
        volumes: &Volumes,
        segments: &Segments,
        journalled: Vec<Wanted>,
    ) {
        let total = segments
            .live()
            .filter(|(_, record)| record.stream() == Some(Stream::Data))
            .map(|(_, record)| u64::from(record.stored_bytes))
            .sum();
        for (first, end) in windows(segments) {
            let inside = |entry: &Entry| (first..end).contains(&entry.segment.0);
            let of_journal = journalled.iter().filter(|one| inside(&one.entry)).copied();
            let mut wanted: Vec<Wanted> = of_journal.collect();
            self.collect(volumes, segments, &inside, &mut wanted);
            sort(&mut wanted);
            for group in wanted.chunk_by(|a, b| a.entry.segment == b.entry.segment) {
                self.segment_chunks(group, volumes, segments);
                self.progress("chunks", self.findings.report.bytes_checked, total);
                if self.observer.cancelled() {
                    return;
                }
            }
        }
    }

    /// The chunks that maps name in the window. Damaged pages have been
    /// reported by the walk before.
    fn collect(
        &self,
        volumes: &Volumes,
        segments: &Segments,
        inside: &dyn Fn(&Entry) -> bool,
        wanted: &mut Vec<Wanted>,
    ) {
        let pages = CheckedPages::new(self.source, Some(segments));
        let mut visited = Seen::default();
        for volume in volumes.and_snapshots() {
            let mut walker = Walker::new(volume.tree);
            let mut compact_at = 2 * CHUNKS_PER_WINDOW;
            loop {
                let mut enter = |pointer: &Pointer, _: PageOwner| visited.enter(pointer);
                let step = walker.step_if(&pages, PAGES_PER_STEP, &mut enter, &mut |visit| {
                    if let Visit::Entry { index, entry } = visit
                        && inside(&entry)
                        && shape_of(&entry, volume.chunk_bytes).is_ok()
                        && segments.place(&entry).is_ok()
                    {
                        wanted.push(Wanted {
                            entry,
                            volume: volume.id,
                            index,
                        });
                    }
                });
                if wanted.len() > compact_at {
                    sort(wanted);
                    compact_at = wanted.len() + CHUNKS_PER_WINDOW;
                }
                if matches!(step, Ok(true)) || self.observer.cancelled() {
                    break;
                }
            }
        }
        pages.take_mended();
    }

    fn segment_chunks(&mut self, wanted: &[Wanted], volumes: &Volumes, segments: &Segments) {
        let id: SegmentId = wanted[0].entry.segment;
        let Some(segment) = segments.record(id) else {
            return;
        };
        let described = self.described(id, segments);
        let mut rest = wanted;
        while !rest.is_empty() {
            let mut runs: Vec<(Range, &[Wanted])> = Vec::new();
            let mut bytes = 0;
            while !rest.is_empty() && bytes < READ_BYTES {
                let start = Range::around(id, segment, rest[0].entry.position, 1).offset;
                let end_of = |one: &Wanted| one.entry.position + one.entry.stored;
                let count = rest
                    .iter()
                    .take_while(|one| end_of(one) - start <= RUN_BYTES)
                    .count()
                    .max(1);
                let (run, after) = rest.split_at(count);
                let end = run.iter().map(end_of).max().unwrap_or(start);
                let range = Range::around(id, segment, start, end - start);
                bytes += range.length;
                runs.push((range, run));
                rest = after;
            }
            let ranges: Vec<Range> = runs.iter().map(|(range, _)| range.clone()).collect();
            // Anything is accepted: the chunks are judged one by one below.
            let found = self.source.read_all(&ranges, &|_, _| true);
            for ((range, run), found) in runs.iter().zip(found) {
                // Bytes that had to be looked for are for each chunk to find.
                let bytes = match &found {
                    Found::Whole(bytes) => &bytes[..],
                    Found::Mended(..) | Found::Lost => &[],
                    Found::Freed => continue,
                };
                for one in *run {
                    let at = (one.entry.position - range.offset) as usize;
                    let stored = bytes.get(at..at + one.entry.stored as usize);
                    let record = described.get(&one.entry.position);
                    self.chunk(one, stored, record, volumes, segments);
                }
            }
        }
    }

    fn chunk(
        &mut self,
        one: &Wanted,
        plain: Option<&[u8]>,
        record: Option<&SummaryRecord>,
        volumes: &Volumes,
        segments: &Segments,
    ) {
        let Wanted {
            entry,
            volume,
            index,
        } = one;
        self.findings.report.chunks_checked += 1;
        self.findings.report.bytes_checked += u64::from(entry.stored);
        let Some(volume) = volumes.either(*volume) else {
            return;
        };
        let record = record.filter(|record| record.entry == *entry);
        let right = |stored: &[u8]| judge(entry, stored, volume.chunk_bytes, record);
        if plain.is_some_and(|stored| right(stored) == Verdict::Right) {
            return;
        }
        let name = format!(
            "Chunk {index} of volume {} (segment {}, at {})",
            volume.name, entry.segment.0, entry.position
        );
        let Some(segment) = segments.record(entry.segment) else {
            return;
        };
        let range = Range::around(entry.segment, segment, entry.position, entry.stored);
        let at = (entry.position - range.offset) as usize;
        let within = at..at + entry.stored as usize;
        let mut seen = plain.map(right);
        let found = self.source.another_way(&range, &mut |bytes| {
            let verdict = right(&bytes[within.clone()]);
            seen = seen.max(Some(verdict));
            verdict == Verdict::Right
        });
        match (found, seen) {
            (Found::Freed, _) => {}
            // The run failed for the sake of a neighbour.
            (Found::Mended(_, members), _) if plain.is_none() && members.is_empty() => {}
            (Found::Mended(_, members), _) => {
                self.problem(format!("{name} {}", source::mended(&members)));
            }
            (_, Some(Verdict::OtherHash)) => {
                self.problem(format!("{name} matches its checksum, but not its hash"));
            }
            _ => self.problem(format!("{name} is damaged: no copy verifies")),
        }
    }
}

/// How stored bytes compare with what is known of a chunk, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Damaged,
    OtherHash,
    Right,
}

fn judge(
    entry: &Entry,
    stored: &[u8],
    chunk_bytes: u32,
    record: Option<&SummaryRecord>,
) -> Verdict {
    if crc32c::crc32c(stored) != entry.checksum {
        return Verdict::Damaged;
    }
    let hash = record.and_then(|record| record.fingerprint);
    if entry.kind == EntryKind::Raw {
        let same = hash.is_none_or(|hash| fingerprint(stored) == hash);
        return if same {
            Verdict::Right
        } else {
            Verdict::OtherHash
        };
    }
    let mut chunk = vec![0; chunk_bytes as usize];
    if decompress(stored, entry.kind, &mut chunk).is_err() {
        return Verdict::Damaged;
    }
    let same = hash.is_none_or(|hash| fingerprint(&chunk) == hash);
    if same {
        Verdict::Right
    } else {
        Verdict::OtherHash
    }
}

/// Ranges of segment numbers, each with about [`CHUNKS_PER_WINDOW`] chunks.
fn windows(segments: &Segments) -> Vec<(u32, u32)> {
    let mut windows = Vec::new();
    let (mut first, mut chunks) = (0, 0);
    let mut end = 0;
    let least = segments.segment_bytes() / tessera_dedup::PACK_BLOCK;
    for (id, record) in segments.live() {
        if record.stream() != Some(Stream::Data) {
            continue;
        }
        chunks += record.chunks.max(least) as usize;
        end = id.0 + 1;
        if chunks >= CHUNKS_PER_WINDOW {
            windows.push((first, end));
            (first, chunks) = (end, 0);
        }
    }
    if end > first {
        windows.push((first, end));
    }
    windows
}
