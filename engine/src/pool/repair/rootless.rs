//! What can be had of a pool without any root page.
//!
//! Summaries say which pages are leaves of the catalogue, of the snapshot table
//! and of the volumes' maps. The records in the newest leaves of the two tables
//! name maps, each with the checksum of its first page, so a map is either as it
//! was at the last checkpoint or known not to be. Only volumes whose map is not
//! whole are made anew, from the newest leaf for each of its ranges.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tessera_dedup::Entry;

use super::salvage::{Finder, PAGES_PER_STEP, Reader, Salvage, read_page};
use crate::{
    api::{Compression, DedupMode, RepairReport},
    catalogue::{FIRST_VOLUME_ID, SNAPSHOT_TREE, VolumeRecord},
    map::{PAGE_BYTES, PageSource, Tree, TreeShape, Walker},
    pool::{open::chain_start, pages::Pages, roots::Roots},
    root::{EngineRecord, RootPage},
    snapshot::SnapshotRecord,
};

/// Entries in a leaf of a map.
const ENTRIES: usize = PAGE_BYTES / 16;

/// By volume, then by first index.
type Leaves = HashMap<u64, BTreeMap<u64, Vec<Entry>>>;

impl Finder<'_> {
    /// Volumes and snapshots without a root; says in the report what becomes of
    /// each.
    pub(super) fn without_root(&self, report: &mut RepairReport) -> Option<Salvage> {
        let reader = Reader::new(self.array);
        let segments = self.scanned.records(self.array);
        for (id, record) in &segments {
            reader.table.load(*id, *record);
        }
        let known = self.catalogue_leaves(&reader);
        let mut leaves = self.leaves(&reader);
        if leaves.is_empty() && known.is_empty() {
            return None;
        }
        let mut volumes = BTreeMap::new();
        for (id, record) in &known {
            if is_whole(&reader, record.tree) {
                let action = format!(
                    "Use the map of volume {} that the catalogue names",
                    record.name
                );
                report.actions.push(action);
                leaves.remove(id);
                volumes.insert(*id, record.clone());
            }
        }
        let chunk_bytes = self.chunk_bytes();
        for (id, of) in &leaves {
            let guessed = guessed(*id, of, chunk_bytes.get(id).copied());
            let record = match known.get(id) {
                Some(known) => VolumeRecord {
                    tree: guessed.tree,
                    stored_chunks: 0,
                    ..known.clone()
                },
                None => guessed,
            };
            report.actions.push(format!(
                "Make volume {} anew from {} leaves of its map",
                record.name,
                of.len()
            ));
            volumes.insert(*id, record);
        }
        for (id, record) in &known {
            if !volumes.contains_key(id) {
                let problem = format!("Nothing is found of the map of volume {}", record.name);
                report.problems.push(problem);
                let tree = Tree::empty(*id, TreeShape::VOLUME);
                volumes.insert(
                    *id,
                    VolumeRecord {
                        tree,
                        stored_chunks: 0,
                        ..record.clone()
                    },
                );
            }
        }

        let found = self.table_leaves(&reader, SNAPSHOT_TREE, SnapshotRecord::decode);
        let mut page = RootPage::empty(self.array.uuid());
        // No id is given twice, not even one of what is lost.
        let ids = found.iter().map(|snapshot| snapshot.id);
        let newest = volumes.keys().copied().chain(ids).max();
        page.next_volume_id = newest.unwrap_or(FIRST_VOLUME_ID) + 1;
        page.checkpoint = self.record.map_or(0, |record| record.checkpoint);
        let snapshots = kept_snapshots(&reader, found, &volumes, report);
        let record = EngineRecord {
            checkpoint: page.checkpoint,
            sequence: self.record.map_or(0, |record| record.sequence),
            generation_limit: self.generation_limit(),
            journal: chain_start(&self.options.epochs),
            root: None,
            streams: Default::default(),
        };
        Some(Salvage {
            record,
            roots: Roots {
                page,
                pointer: None,
                volumes: Arc::default(),
                snapshots: Arc::default(),
            },
            segments,
            volumes: volumes.into_values().collect(),
            snapshots,
            leaves,
        })
    }

    /// What the newest leaves of maps hold.
    fn leaves(&self, reader: &Reader) -> Leaves {
        let mut leaves = Leaves::new();
        for record in self.newest_pages(|record| record.owner.tree >= FIRST_VOLUME_ID) {
            let Some(page) = read_page(reader, &record) else {
                continue;
            };
            let entries: Option<Vec<Entry>> =
                page.as_chunks().0.iter().map(Entry::decode).collect();
            let Some(entries) = entries else { continue };
            let first = record.owner.index * ENTRIES as u64;
            leaves
                .entry(record.owner.tree)
                .or_default()
                .insert(first, entries);
        }
        leaves
    }

    /// The chunk size of each volume that has a chunk anywhere.
    fn chunk_bytes(&self) -> HashMap<u64, u32> {
        let mut sizes = HashMap::new();
        for incarnations in self.scanned.segments.values() {
            let newest = incarnations.values().next_back();
            let records = newest
                .iter()
                .flat_map(|described| described.records.values());
            for chunk in records.filter(|record| record.owner.level == 0) {
                sizes.entry(chunk.owner.tree).or_insert(chunk.logical);
            }
        }
        sizes
    }
}

/// A volume of which only leaves are known.
fn guessed(id: u64, leaves: &BTreeMap<u64, Vec<Entry>>, chunk_bytes: Option<u32>) -> VolumeRecord {
    let chunk_bytes = chunk_bytes.unwrap_or(4096);
    let end = leaves
        .keys()
        .last()
        .map_or(0, |first| first + ENTRIES as u64);
    VolumeRecord {
        id,
        name: format!("salvaged-{id}"),
        size_bytes: end * u64::from(chunk_bytes),
        chunk_bytes,
        dedup: DedupMode::Inline,
        compression: Compression::Lz4,
        allow_shrink: false,
        tree: Tree::empty(id, TreeShape::VOLUME),
        stored_chunks: 0,
    }
}

/// Whether every page of a map can be read.
fn is_whole(reader: &Reader, tree: Tree) -> bool {
    let pages = Pages(&reader.reader);
    let mut walker = Walker::new(tree);
    loop {
        match walker.step(&pages, PAGES_PER_STEP, &mut |_| {}) {
            Ok(true) => return true,
            Ok(false) => {}
            Err(_) => return false,
        }
    }
}

/// Snapshots whose maps begin with a page that verifies. What of the rest of a
/// map does not is an error where it is read.
fn kept_snapshots(
    reader: &Reader,
    found: Vec<SnapshotRecord>,
    volumes: &BTreeMap<u64, VolumeRecord>,
    report: &mut RepairReport,
) -> Vec<SnapshotRecord> {
    let pages = Pages(&reader.reader);
    let mut kept = BTreeMap::new();
    for snapshot in found {
        let root = snapshot.tree.root;
        let readable = || pages.read(&[root]).pop().is_some_and(|page| page.is_ok());
        let Some(volume) = volumes.get(&snapshot.volume) else {
            let of = format!(
                "Snapshot {} is of a volume that is not found",
                snapshot.name
            );
            report.problems.push(of);
            continue;
        };
        let name = format!("{}@{}", volume.name, snapshot.name);
        if root.is_page() && !readable() {
            let problem = format!("The map of snapshot {name} is lost, and the snapshot with it");
            report.problems.push(problem);
            continue;
        }
        report.actions.push(format!(
            "Use the map of snapshot {name} that the snapshot table names"
        ));
        kept.insert(snapshot.id, snapshot);
    }
    kept.into_values().collect()
}
