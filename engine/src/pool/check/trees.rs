//! Walking the catalogue and the maps of volumes.

use std::collections::{BTreeMap, HashSet};

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
    map::{PAGE_BYTES, PageOwner, Pointer, StoreErrorKind, Tree, Visit, Walker},
    pool::roots::place,
    root::RootPage,
    snapshot::SnapshotRecord,
};

/// Volumes by id, and snapshots as if they were volumes.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    by_id: BTreeMap<u64, VolumeRecord>,
    /// With the id of their volume.
    snapshots: BTreeMap<u64, (u64, VolumeRecord)>,
}

impl Volumes {
    fn iter(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.by_id.values()
    }

    /// Volumes, then snapshots.
    pub(super) fn and_snapshots(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.iter()
            .chain(self.snapshots.values().map(|(_, record)| record))
    }

    /// What a volume or a snapshot is, for a sentence.
    pub(super) fn either(&self, id: u64) -> Option<&VolumeRecord> {
        let snapshot = || self.snapshots.get(&id).map(|(_, record)| record);
        self.by_id.get(&id).or_else(snapshot)
    }

    /// A journalled clone: its map is that of the snapshot.
    pub(super) fn put_clone(&mut self, record: VolumeRecord, snapshot: u64) {
        let known = self.snapshots.get(&snapshot).map(|(_, of)| of.clone());
        let (id, shape) = (record.id, record.tree.shape);
        let tree = known.as_ref().map_or(Tree::empty(id, shape), |of| of.tree);
        let record = VolumeRecord {
            tree: Tree { id, ..tree },
            stored_chunks: known.map_or(0, |of| of.stored_chunks),
            ..record
        };
        self.by_id.insert(id, record);
    }

    /// A journalled snapshot: what it holds is the volume's at the checkpoint,
    /// and what the journal has said since, which is checked by itself.
    pub(super) fn put_snapshot(&mut self, record: &SnapshotRecord) {
        let known = self.by_id.get(&record.volume);
        let tree = known.map_or(record.tree, |of| of.tree);
        let stored_chunks = known.map_or(0, |of| of.stored_chunks);
        let record = SnapshotRecord {
            tree,
            stored_chunks,
            ..record.clone()
        };
        self.insert_snapshot(&record);
    }

    fn insert_snapshot(&mut self, record: &SnapshotRecord) {
        let of = self.by_id.get(&record.volume);
        let of = of.map_or_else(|| record.volume.to_string(), |of| of.name.clone());
        let as_volume = VolumeRecord {
            id: record.id,
            name: format!("{of}@{}", record.name),
            size_bytes: record.size_bytes,
            chunk_bytes: record.chunk_bytes,
            dedup: record.dedup,
            compression: record.compression,
            allow_shrink: false,
            tree: record.tree,
            stored_chunks: record.stored_chunks,
        };
        self.snapshots.insert(record.id, (record.volume, as_volume));
    }

    pub(super) fn has_snapshot(&self, id: u64) -> bool {
        self.snapshots.contains_key(&id)
    }

    pub(super) fn remove_snapshot(&mut self, id: u64) {
        self.snapshots.remove(&id);
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

    /// A volume, and all its snapshots.
    pub(super) fn remove(&mut self, id: u64) {
        self.by_id.remove(&id);
        self.snapshots.retain(|_, (volume, _)| *volume != id);
    }
}

/// Pages that were walked under one root or another. Of a damaged pool nothing
/// is taken for granted: two pointers to one place with different checksums are
/// two pages.
#[derive(Debug, Default)]
pub(super) struct Seen(HashSet<(u64, u32)>);

impl Seen {
    pub(super) fn enter(&mut self, pointer: &Pointer) -> bool {
        self.0.insert((place(pointer), pointer.entry.checksum))
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

    /// Reads the snapshot table.
    pub(super) fn snapshot_table(
        &mut self,
        page: &RootPage,
        segments: &mut Segments,
        volumes: &mut Volumes,
    ) {
        let mut bad = Vec::new();
        let mut records = Vec::new();
        self.walk(
            page.snapshots,
            "snapshots",
            (0, 0),
            segments,
            &mut |visit, _| {
                let Visit::Record { index, bytes } = visit else {
                    return;
                };
                let decoded = bytes.try_into().ok().and_then(SnapshotRecord::decode);
                let sound =
                    |record: &SnapshotRecord| record.id == index && index < page.next_volume_id;
                match decoded.filter(sound) {
                    Some(record) => records.push(record),
                    None => bad.push(format!("The record of snapshot {index} is malformed")),
                }
            },
        );
        let mut names: BTreeMap<(u64, &str), u64> = BTreeMap::new();
        for record in &records {
            if volumes.get(record.volume).is_none() {
                bad.push(format!(
                    "Snapshot {:?} is of volume {}, which does not exist",
                    record.name, record.volume
                ));
            }
            if let Some(other) = names.insert((record.volume, &record.name), record.id) {
                bad.push(format!(
                    "Snapshots {other} and {} have one name, {:?}",
                    record.id, record.name
                ));
            }
            volumes.insert_snapshot(record);
        }
        for problem in bad {
            self.problem(problem);
        }
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

    /// Walks the map of a volume or a snapshot and checks every pointer in it,
    /// but for pages that were `visited` under another one.
    pub(super) fn volume(
        &mut self,
        volume: &VolumeRecord,
        segments: &mut Segments,
        visited: &mut Seen,
    ) {
        let label = format!("volume {}", volume.name);
        let chunks = volume.size_bytes.div_ceil(u64::from(volume.chunk_bytes));
        let (mut stored, mut beyond) = (0, 0);
        let mut wrong = Vec::new();
        let mut lost: Vec<(u64, u64)> = Vec::new();
        let total = volume.stored_chunks;
        let mut shares = false;
        let whole = self.walk_if(
            volume.tree,
            &label,
            (0, total),
            segments,
            &mut |pointer, _| {
                let first = visited.enter(pointer);
                shares |= !first;
                first
            },
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
        if whole && !shares && stored != volume.stored_chunks {
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
        done_of: (u64, u64),
        segments: &mut Segments,
        visit: &mut dyn FnMut(Visit<'_>, &mut Segments),
    ) -> bool {
        self.walk_if(tree, label, done_of, segments, &mut |_, _| true, visit)
    }

    /// The same without the pages that `enter` refuses.
    fn walk_if(
        &mut self,
        tree: Tree,
        label: &str,
        (from, total): (u64, u64),
        segments: &mut Segments,
        enter: &mut dyn FnMut(&Pointer, PageOwner) -> bool,
        visit: &mut dyn FnMut(Visit<'_>, &mut Segments),
    ) -> bool {
        let mut walker = Walker::new(tree);
        let mut whole = true;
        let mut done = from;
        loop {
            let pages = CheckedPages::new(self.source, Some(segments));
            // Visits change `segments`, which the page source is reading.
            let mut found: Vec<Copied> = Vec::new();
            let step = walker.step_if(&pages, PAGES_PER_STEP, enter, &mut |visit| {
                found.push(visit.into())
            });
            for mended in pages.take_mended() {
                self.problem(format!("The map {mended} ({label})"));
            }
            for seen in found {
                match seen {
                    Copied::Page(segment, entry) => {
                        self.findings.report.pages_checked += 1;
                        self.findings.report.pointers_checked += 1;
                        segments.name(segment);
                        if let Err(why) = data_stream_is_not(segments, &entry) {
                            self.problem(format!("A page pointer of {label} {why}"));
                        }
                    }
                    Copied::Entry(index, entry) => {
                        done += 1;
                        visit(Visit::Entry { index, entry }, segments);
                    }
                    Copied::Lost(first, count) => {
                        whole = false;
                        visit(Visit::Lost { first, count }, segments);
                    }
                    Copied::Record(index, bytes) => {
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
enum Copied {
    Page(tessera_raid::SegmentId, Entry),
    Entry(u64, Entry),
    Lost(u64, u64),
    Record(u64, Vec<u8>),
}

impl From<Visit<'_>> for Copied {
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
const _: () = assert!(PAGES_PER_STEP * (PAGE_BYTES / ENTRY_BYTES) * size_of::<Copied>() <= 4 << 20);
