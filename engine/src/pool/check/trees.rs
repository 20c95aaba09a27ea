//! Walking the catalogue and the maps of volumes.

use std::collections::BTreeMap;

use tessera_dedup::{ENTRY_BYTES, Entry, EntryKind, PACK_BLOCK, segment::Stream};

use super::{
    Check,
    segments::{PAGES_PER_STEP, Segments},
    sentence,
    source::CheckedPages,
};
use crate::{
    catalogue::VolumeRecord,
    jobs::JobRecord,
    map::{PAGE_BYTES, PageOwner, StoreErrorKind, Tree, Visit, Walker},
    root::RootPage,
};

/// Volumes by id.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    by_id: BTreeMap<u64, VolumeRecord>,
}

impl Volumes {
    pub(super) fn iter(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.by_id.values()
    }

    pub(super) fn get(&self, id: u64) -> Option<&VolumeRecord> {
        self.by_id.get(&id)
    }

    /// A journalled record: the map stays as the checkpoint has it.
    pub(super) fn put(&mut self, record: VolumeRecord) {
        let (tree, stored_chunks) = match self.by_id.get(&record.id) {
            Some(known) => (known.tree, known.stored_chunks),
            None => (Tree::empty(record.id, record.tree.shape), 0),
        };
        self.by_id.insert(
            record.id,
            VolumeRecord {
                tree,
                stored_chunks,
                ..record
            },
        );
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.by_id.remove(&id);
    }
}

/// What is wrong with an entry's own numbers, as the end of a sentence.
pub(super) fn shape_of(entry: &Entry, chunk_bytes: u32) -> Result<(), String> {
    let aligned = entry.position.is_multiple_of(PACK_BLOCK);
    let straddles = entry.position % PACK_BLOCK + entry.stored > PACK_BLOCK;
    let possible = match entry.kind {
        EntryKind::Raw => entry.stored == chunk_bytes && aligned,
        EntryKind::Lz4 => entry.stored < chunk_bytes && (aligned || !straddles),
        EntryKind::Hole | EntryKind::Zero | EntryKind::Page | EntryKind::Lost => false,
    };
    if possible {
        Ok(())
    } else {
        Err(format!(
            "names {} bytes at {}, which cannot be",
            entry.stored, entry.position
        ))
    }
}

impl Check<'_> {
    /// Reads the catalogue.
    pub(super) fn catalogue(&mut self, page: &RootPage, segments: &mut Segments) -> Volumes {
        let mut volumes = Volumes::default();
        let mut bad = Vec::new();
        let mut records = |id: u64, bytes: &[u8]| {
            let decoded = bytes.try_into().ok().and_then(VolumeRecord::decode);
            match decoded.filter(|record| record.id == id && id < page.next_volume_id) {
                Some(record) => {
                    volumes.by_id.insert(id, record);
                }
                None => bad.push(format!("The record of volume {id} is malformed")),
            }
        };
        self.walk(
            page.catalogue,
            "catalogue",
            (0, 0),
            segments,
            &mut |visit, _| {
                if let Visit::Record { index, bytes } = visit {
                    records(index, bytes);
                }
            },
        );
        for problem in bad {
            self.problem(problem);
        }
        let mut names: BTreeMap<&str, u64> = BTreeMap::new();
        let mut twice = Vec::new();
        for record in volumes.iter() {
            if let Some(other) = names.insert(&record.name, record.id) {
                twice.push(format!(
                    "Volumes {other} and {} have one name, {:?}",
                    record.id, record.name
                ));
            }
        }
        for problem in twice {
            self.problem(problem);
        }
        volumes
    }

    /// Reads the job table.
    pub(super) fn job_table(&mut self, page: &RootPage, segments: &mut Segments) {
        let mut bad = Vec::new();
        self.walk(page.jobs, "jobs", (0, 0), segments, &mut |visit, _| {
            if let Visit::Record { index, bytes } = visit
                && JobRecord::decode(bytes).is_none_or(|job| job.id >= page.next_job_id)
            {
                bad.push(format!("The record of job {index} is malformed"));
            }
        });
        for problem in bad {
            self.problem(problem);
        }
    }

    /// Walks a volume's map and checks every pointer in it.
    pub(super) fn volume(&mut self, volume: &VolumeRecord, segments: &mut Segments) {
        let label = format!("volume {}", volume.name);
        let chunks = volume.size_bytes.div_ceil(u64::from(volume.chunk_bytes));
        let (mut stored, mut beyond) = (0, 0);
        let mut wrong = Vec::new();
        let mut lost: Vec<(u64, u64)> = Vec::new();
        let total = volume.stored_chunks;
        let whole = self.walk(
            volume.tree,
            &label,
            (0, total),
            segments,
            &mut |visit, segments| {
                if let Visit::Lost { first, count } = visit {
                    match lost.last_mut() {
                        Some((_, end)) if *end == first => *end += count,
                        _ => lost.push((first, first + count)),
                    }
                }
                let Visit::Entry { index, entry } = visit else {
                    return;
                };
                stored += 1;
                beyond += u64::from(index >= chunks);
                let placed = shape_of(&entry, volume.chunk_bytes)
                    .and_then(|()| segments.place(&entry).copied())
                    .and_then(|record| match record.stream() {
                        Some(Stream::Data) => Ok(()),
                        _ => Err(format!("names map segment {}", entry.segment.0)),
                    });
                segments.name(entry.segment);
                if let Err(why) = placed {
                    wrong.push(format!("Chunk {index} of volume {} {why}", volume.name));
                }
            },
        );
        self.findings.report.pointers_checked += stored;
        for problem in wrong {
            self.problem(problem);
        }
        // Beyond the end nobody can have lost anything.
        for (first, end) in lost.into_iter().filter(|(first, _)| *first < chunks) {
            let last = end.min(chunks) - 1;
            self.problem(format!(
                "The map of chunks {first} to {last} of volume {} is lost",
                volume.name
            ));
        }
        if beyond > 0 {
            self.note(format!(
                "Volume {} has {beyond} chunks beyond its end",
                volume.name
            ));
        }
        if whole && stored != volume.stored_chunks {
            self.note(format!(
                "Volume {} counts {} chunks, its map has {stored}",
                volume.name, volume.stored_chunks
            ));
        }
    }

    /// Walks a tree, says what is damaged and goes on behind it. True when all
    /// of it could be read.
    fn walk(
        &mut self,
        tree: Tree,
        label: &str,
        (from, total): (u64, u64),
        segments: &mut Segments,
        visit: &mut dyn FnMut(Visit<'_>, &mut Segments),
    ) -> bool {
        let mut walker = Walker::new(tree);
        let mut whole = true;
        let mut done = from;
        loop {
            let pages = CheckedPages::new(self.source, Some(segments));
            // Visits change `segments`, which the page source is reading.
            let mut found: Vec<Seen> = Vec::new();
            let step = walker.step(&pages, PAGES_PER_STEP, &mut |visit| {
                found.push(visit.into())
            });
            for mended in pages.take_mended() {
                self.problem(format!("The map {mended} ({label})"));
            }
            for seen in found {
                match seen {
                    Seen::Page(segment, entry) => {
                        self.findings.report.pages_checked += 1;
                        self.findings.report.pointers_checked += 1;
                        segments.name(segment);
                        if let Err(why) = data_stream_is_not(segments, &entry) {
                            self.problem(format!("A page pointer of {label} {why}"));
                        }
                    }
                    Seen::Entry(index, entry) => {
                        done += 1;
                        visit(Visit::Entry { index, entry }, segments);
                    }
                    Seen::Lost(first, count) => {
                        whole = false;
                        visit(Visit::Lost { first, count }, segments);
                    }
                    Seen::Record(index, bytes) => {
                        done += 1;
                        visit(
                            Visit::Record {
                                index,
                                bytes: &bytes,
                            },
                            segments,
                        );
                    }
                }
            }
            self.progress(label, done, total);
            match step {
                Ok(true) => return whole,
                _ if self.observer.cancelled() => return false,
                Ok(false) => {}
                Err(error) if error.store_kind() == Some(StoreErrorKind::Freed) => whole = false,
                Err(error) => {
                    whole = false;
                    self.problem(format!(
                        "{} ({label}{})",
                        sentence(&error),
                        lost(&tree, &error)
                    ));
                }
            }
        }
    }
}

/// Which part of a volume an unreadable page stands for.
fn lost(tree: &Tree, error: &crate::map::MapError) -> String {
    let Some(PageOwner { level, index, .. }) = error.page() else {
        return String::new();
    };
    if !tree.shape.holds_entries() {
        return String::new();
    }
    let span = tree.shape.capacity(level.saturating_add(1));
    let first = index.saturating_mul(span);
    format!(", chunks {first} to {}", first.saturating_add(span - 1))
}

fn data_stream_is_not(segments: &Segments, entry: &Entry) -> Result<(), String> {
    match segments.place(entry)?.stream() {
        Some(Stream::Map) => Ok(()),
        _ => Err(format!("names data segment {}", entry.segment.0)),
    }
}

/// A visit that has been copied out of its page.
enum Seen {
    Page(tessera_raid::SegmentId, Entry),
    Entry(u64, Entry),
    Lost(u64, u64),
    Record(u64, Vec<u8>),
}

impl From<Visit<'_>> for Seen {
    fn from(visit: Visit<'_>) -> Self {
        match visit {
            Visit::Page { pointer, .. } => Self::Page(pointer.entry.segment, pointer.entry),
            Visit::Entry { index, entry } => Self::Entry(index, entry),
            Visit::Lost { first, count } => Self::Lost(first, count),
            Visit::Record { index, bytes } => Self::Record(index, bytes.to_vec()),
        }
    }
}

/// What a step keeps in memory at most: a few MiB.
const _: () = assert!(PAGES_PER_STEP * (PAGE_BYTES / ENTRY_BYTES) * size_of::<Seen>() <= 4 << 20);
