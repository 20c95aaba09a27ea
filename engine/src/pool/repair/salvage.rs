//! Finding out what of a damaged pool can be had, and how.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tessera_dedup::{
    ChunkReader, Entry, EntryKind, Generation, NothingUnwritten, ReaderOptions, SummaryRecord,
    segment::{SegmentRecord, SegmentState, SegmentTable},
};
use tessera_raid::{Array, SegmentId};

use super::scan::{RootFound, Scanned, scan};
use crate::{
    api::RepairReport,
    catalogue::{CATALOGUE_TREE, SNAPSHOT_TREE, VolumeRecord},
    error::EngineError,
    map::{PAGE_BYTES, PageSource, Pointer, Tree, Visit, Walker},
    pool::{
        CheckObserver, EngineOptions,
        checkpoint::GENERATIONS_AHEAD,
        open::{chain_start, load_records, load_roots, load_snapshots},
        pages::Pages,
        roots::Roots,
    },
    root::{EngineRecord, RootPage, RootPointer},
    snapshot::SnapshotRecord,
};

pub(super) const PAGES_PER_STEP: usize = 256;

/// What an engine is opened with in place of what the superblocks lead to.
#[derive(Debug)]
pub(crate) struct Salvage {
    pub(crate) record: EngineRecord,
    pub(crate) roots: Roots,
    /// Every segment that is to be in the table.
    pub(crate) segments: Vec<(SegmentId, SegmentRecord)>,
    pub(crate) volumes: Vec<VolumeRecord>,
    /// Those of volumes that are there.
    pub(crate) snapshots: Vec<SnapshotRecord>,
    /// Entries found in leaves, of volumes that have no map any more.
    pub(crate) leaves: HashMap<u64, BTreeMap<u64, Vec<Entry>>>,
}

/// How a pool can be opened.
pub(super) enum Way {
    /// It needs no help.
    AsItIs,
    /// With what was salvaged.
    With(Box<Salvage>),
    /// Not at all.
    None,
}

/// A reader over a table of its own.
pub(super) struct Reader {
    pub(super) table: Arc<SegmentTable>,
    pub(super) reader: ChunkReader,
}

impl Reader {
    pub(super) fn new(array: &Arc<Array>) -> Self {
        let table = Arc::new(SegmentTable::new(
            array.slot_count(),
            array.current_layout().id,
        ));
        let reader = ChunkReader::new(
            Arc::clone(array),
            Arc::clone(&table) as Arc<dyn tessera_dedup::SegmentDirectory>,
            Arc::new(NothingUnwritten),
            ReaderOptions {
                pool: array.uuid(),
                chunk_cache_bytes: 0,
                page_cache_bytes: 4 << 20,
                buffer_bytes: 4 << 20,
            },
        );
        Self { table, reader }
    }
}

/// Tries what is least trouble first.
pub(super) fn find_way(
    array: &Arc<Array>,
    options: &EngineOptions,
    observer: &dyn CheckObserver,
    report: &mut RepairReport,
) -> Result<Way, EngineError> {
    let record = EngineRecord::decode(&array.engine_record());
    if let Some(record) = &record {
        let plain = Reader::new(array);
        let loaded = load_roots(array, &plain.reader, &plain.table, record);
        let tables = |roots: Roots| {
            load_records(&plain.reader, &roots.page).is_ok()
                && load_snapshots(&plain.reader, &roots.page).is_ok()
        };
        if loaded.is_ok_and(tables) {
            return Ok(Way::AsItIs);
        }
    }
    let scanned = scan(array, observer);
    let finder = Finder {
        array,
        options,
        scanned: &scanned,
        record: record.as_ref(),
    };
    // The root that the superblocks name, with tables as far as they go.
    if let Some(record) = &record
        && let Some(pointer) = &record.root
        && let Some(page) = finder.read_root(pointer)
        && page.checkpoint == record.checkpoint
    {
        report.actions.push(
            "Make the segment table and the catalogue anew, from what can be read of them and \
             from summaries"
                .to_owned(),
        );
        let salvage = finder.with_root(page, pointer.clone(), record.clone());
        return Ok(Way::With(Box::new(salvage)));
    }
    report.problems.push(
        "The root page is lost: what was written since the checkpoint that can be found is not \
         found again"
            .to_owned(),
    );
    for found in &scanned.roots {
        if let Some(salvage) = finder.older_root(found) {
            report.actions.push(format!(
                "Use the root of checkpoint {}, with all writes up to {}",
                found.page.checkpoint, found.page.sequence
            ));
            return Ok(Way::With(Box::new(salvage)));
        }
    }
    Ok(match finder.without_root(report) {
        Some(salvage) => Way::With(Box::new(salvage)),
        None => Way::None,
    })
}

pub(super) struct Finder<'a> {
    pub(super) array: &'a Arc<Array>,
    pub(super) options: &'a EngineOptions,
    pub(super) scanned: &'a Scanned,
    pub(super) record: Option<&'a EngineRecord>,
}

impl Finder<'_> {
    fn read_root(&self, pointer: &RootPointer) -> Option<RootPage> {
        let reader = Reader::new(self.array);
        let placed = tessera_dedup::PlacedPage {
            entry: pointer.entry,
            generation: pointer.generation,
            placement: pointer.placement.clone(),
        };
        let bytes = reader.reader.read_placed(&[placed]).pop()?.ok()?;
        RootPage::decode(&bytes).filter(|page| page.pool == self.array.uuid())
    }

    /// Above everything that was ever issued, as far as anybody can tell.
    pub(super) fn generation_limit(&self) -> u64 {
        let seen = self.scanned.newest_generation().0;
        let known = self.record.map_or(0, |record| record.generation_limit);
        seen.saturating_add(1).max(known) + GENERATIONS_AHEAD
    }

    /// Records of segments: what the table still says, then what summaries say
    /// of segments that it lacks or knows in an earlier incarnation.
    fn segments(&self, page: &RootPage, reader: &Reader) -> Vec<(SegmentId, SegmentRecord)> {
        let mut known: BTreeMap<SegmentId, SegmentRecord> = BTreeMap::new();
        let pages = Pages(&reader.reader);
        let mut walker = Walker::new(page.segments);
        loop {
            let step = walker.step(&pages, PAGES_PER_STEP, &mut |visit| match visit {
                Visit::Record { index, bytes } => {
                    let decoded = bytes.try_into().ok().and_then(SegmentRecord::decode);
                    let id = u32::try_from(index).ok().map(SegmentId);
                    if let Some((id, record)) = id.zip(decoded) {
                        known.insert(id, record);
                    }
                }
                // The table's own segments, should it not say anything of them.
                Visit::Page { pointer, .. } => {
                    self.note_wide(&pointer, &mut known);
                }
                _ => {}
            });
            if let Ok(true) = step {
                break;
            }
        }
        known.extend(page.overlay.iter().copied());
        for (id, found) in self.scanned.records(self.array) {
            let newer = |record: &SegmentRecord| record.generation < found.generation;
            if known.get(&id).is_none_or(newer) {
                known.insert(id, found);
            }
        }
        known.retain(|id, record| {
            id.0 < self.array.slot_count() && record.state != SegmentState::Free
        });
        known.into_iter().collect()
    }

    fn note_wide(&self, pointer: &Pointer, known: &mut BTreeMap<SegmentId, SegmentRecord>) {
        let Some(wide) = pointer.wide else { return };
        known
            .entry(pointer.entry.segment)
            .or_insert_with(|| self.bare_record(wide.generation, pointer.entry.segment));
    }

    /// Of a map segment of which only the generation is known.
    fn bare_record(&self, generation: Generation, id: SegmentId) -> SegmentRecord {
        SegmentRecord {
            generation,
            state: SegmentState::Sealed,
            stream: tessera_dedup::segment::Stream::Map as u8,
            layout: self.array.current_layout().id,
            slot: tessera_raid::SlotIndex(id.0),
            closed_bytes: self.array.segment_data_bytes(),
            ..SegmentRecord::default()
        }
    }

    fn with_root(&self, page: RootPage, pointer: RootPointer, record: EngineRecord) -> Salvage {
        let reader = Reader::new(self.array);
        let mut segments = self.segments(&page, &reader);
        let root_segment = pointer.entry.segment;
        if !segments.iter().any(|(id, _)| *id == root_segment) {
            segments.push((
                root_segment,
                self.bare_record(pointer.generation, root_segment),
            ));
        }
        for (id, record) in &segments {
            reader.table.load(*id, *record);
        }
        let (mut volumes, whole) = table(&reader, page.catalogue, VolumeRecord::decode);
        if !whole {
            for (id, record) in self.catalogue_leaves(&reader) {
                volumes.entry(id).or_insert(record);
            }
        }
        let (mut snapshots, whole) = table(&reader, page.snapshots, SnapshotRecord::decode);
        if !whole {
            for record in self.table_leaves(&reader, SNAPSHOT_TREE, SnapshotRecord::decode) {
                snapshots.entry(record.id).or_insert(record);
            }
        }
        snapshots.retain(|_, snapshot| volumes.contains_key(&snapshot.volume));
        let trees = volumes.values().map(|volume| (volume.id, volume.tree));
        let volume_trees = Arc::new(trees.collect());
        let trees = snapshots
            .values()
            .map(|snapshot| (snapshot.id, snapshot.tree));
        Salvage {
            record,
            roots: Roots {
                volumes: volume_trees,
                snapshots: Arc::new(trees.collect()),
                page,
                pointer: Some(pointer),
            },
            segments,
            volumes: volumes.into_values().collect(),
            snapshots: snapshots.into_values().collect(),
            leaves: HashMap::new(),
        }
    }

    /// An older root, if all that hangs on it but data can be read.
    fn older_root(&self, found: &RootFound) -> Option<Salvage> {
        let own = |(id, _): &&(SegmentId, SegmentRecord)| *id == found.segment;
        let generation = found
            .page
            .overlay
            .iter()
            .find(own)
            .map(|(_, record)| record.generation)
            .or_else(|| {
                let of = self.scanned.segments.get(&found.segment)?;
                of.last_key_value().map(|(generation, _)| *generation)
            })?;
        let record = EngineRecord {
            checkpoint: found.page.checkpoint,
            sequence: found.page.sequence,
            generation_limit: self.generation_limit(),
            journal: chain_start(&self.options.epochs),
            root: Some(RootPointer {
                entry: Entry {
                    kind: EntryKind::Page,
                    segment: found.segment,
                    position: found.position,
                    stored: u32::try_from(PAGE_BYTES).expect("a page is short"),
                    generation: generation.low(),
                    checksum: found.checksum,
                },
                generation,
                placement: self.bare_record(generation, found.segment).placement(),
            }),
            streams: Default::default(),
        };
        let reader = Reader::new(self.array);
        let roots = load_roots(self.array, &reader.reader, &reader.table, &record).ok()?;
        let volumes = load_records(&reader.reader, &roots.page).ok()?;
        let snapshots = load_snapshots(&reader.reader, &roots.page).ok()?;
        let pages = Pages(&reader.reader);
        let of_snapshots = snapshots.iter().map(|snapshot| snapshot.tree.root);
        let mut maps = volumes.iter().map(|of| of.tree.root).chain(of_snapshots);
        let whole = maps.all(|root| {
            !root.is_page() || pages.read(&[root]).pop().is_some_and(|page| page.is_ok())
        });
        if !whole {
            return None;
        }
        let pointer = record.root.clone()?;
        Some(self.with_root(found.page.clone(), pointer, record))
    }

    /// Volume records in the newest pages of the catalogue.
    pub(super) fn catalogue_leaves(&self, reader: &Reader) -> BTreeMap<u64, VolumeRecord> {
        let records = self.table_leaves(reader, CATALOGUE_TREE, VolumeRecord::decode);
        records.into_iter().map(|of| (of.id, of)).collect()
    }

    /// Records in the newest leaves of a table.
    pub(super) fn table_leaves<R>(
        &self,
        reader: &Reader,
        tree: u64,
        decode: fn(&[u8; 256]) -> Option<R>,
    ) -> Vec<R> {
        let mut records = Vec::new();
        for record in self.newest_pages(|record| record.owner.tree == tree) {
            let Some(page) = read_page(reader, &record) else {
                continue;
            };
            records.extend(page.as_chunks().0.iter().filter_map(decode));
        }
        records
    }

    /// The newest page for each leaf of some trees.
    pub(super) fn newest_pages(
        &self,
        wanted: impl Fn(&SummaryRecord) -> bool,
    ) -> Vec<SummaryRecord> {
        let mut newest: BTreeMap<(u64, u64), ((Generation, u32), SummaryRecord)> = BTreeMap::new();
        for incarnations in self.scanned.segments.values() {
            let Some((generation, described)) = incarnations.last_key_value() else {
                continue;
            };
            // Levels of pages begin at 1: 0 is for chunks.
            let leaves = described.records.values().filter(|record| {
                record.entry.kind == EntryKind::Page && record.owner.level == 1 && wanted(record)
            });
            for record in leaves {
                let age = (*generation, record.entry.position);
                let slot = newest
                    .entry((record.owner.tree, record.owner.index))
                    .or_insert((age, *record));
                if slot.0 < age {
                    *slot = (age, *record);
                }
            }
        }
        newest.into_values().map(|(_, record)| record).collect()
    }
}

/// The records of a table as far as it can be read, and whether that is all.
fn table<R>(
    reader: &Reader,
    tree: Tree,
    decode: fn(&[u8; 256]) -> Option<R>,
) -> (BTreeMap<u64, R>, bool) {
    let mut records = BTreeMap::new();
    let pages = Pages(&reader.reader);
    let mut walker = Walker::new(tree);
    let mut whole = true;
    loop {
        let step = walker.step(&pages, PAGES_PER_STEP, &mut |visit| {
            if let Visit::Record { index, bytes } = visit
                && let Some(record) = bytes.try_into().ok().and_then(decode)
            {
                records.insert(index, record);
            }
        });
        match step {
            Ok(true) => return (records, whole),
            Ok(false) => {}
            Err(_) => whole = false,
        }
    }
}

pub(super) fn read_page(reader: &Reader, record: &SummaryRecord) -> Option<Arc<[u8; PAGE_BYTES]>> {
    reader.reader.read_page(&[record.entry]).pop()?.ok()
}
