//! The index against its twin in memory, RocksDB, and a database that lies.

use std::collections::HashMap;

use proptest::prelude::*;
use tessera_raid::Level;

use super::{
    rocks::RocksStore,
    store::{KeyStore, MemoryStore, StoreError},
    *,
};
use crate::{
    fingerprint,
    testkit::{TestPool, noise, text},
};

pub(super) const MEMORY: usize = 4 << 20;

pub(super) fn options(pool: &TestPool, dir: Option<PathBuf>) -> IndexOptions {
    IndexOptions {
        dir,
        pool: pool.array.uuid(),
        memory_bytes: MEMORY,
        disk_bytes: 0,
        dropped: false,
    }
}

fn open(pool: &TestPool, dir: Option<PathBuf>) -> FingerprintIndex {
    FingerprintIndex::open(options(pool, dir), Arc::clone(&pool.array)).unwrap()
}

fn chunks(seed: u64, count: u64) -> Vec<Vec<u8>> {
    (seed..seed + count)
        .map(|n| {
            if n.is_multiple_of(3) {
                text(n, 4096)
            } else {
                noise(n, 4096)
            }
        })
        .collect()
}

pub(super) fn prints(chunks: &[Vec<u8>]) -> Vec<Fingerprint> {
    chunks.iter().map(|chunk| fingerprint(chunk)).collect()
}

pub(super) fn probe(
    index: &FingerprintIndex,
    pool: &TestPool,
    prints: &[Fingerprint],
) -> Vec<Option<Hit>> {
    let mut found = vec![None; prints.len()];
    index.probe(prints, pool.directory.as_ref(), &mut found);
    found
}

pub(super) fn hits(index: &FingerprintIndex, pool: &TestPool, prints: &[Fingerprint]) -> usize {
    probe(index, pool, prints).iter().flatten().count()
}

pub(super) fn settle(index: &FingerprintIndex) {
    index.flush();
    while index.step() {}
}

pub(super) fn rebuild(index: &FingerprintIndex, pool: &TestPool) {
    let facts = pool.directory.facts.lock().clone();
    index.rebuild_begin(
        &mut facts
            .iter()
            .map(|(segment, facts)| (*segment, facts.generation)),
    );
    while index.rebuild_step(pool.directory.as_ref()) {}
    settle(index);
}

#[test]
fn sealed_chunks_are_found_with_their_entries() {
    let pool = TestPool::new(Level::Raid5, 3);
    let index = open(&pool, None);
    let chunks = chunks(0, 40);
    let summary = pool.write_segment(1, 5, &chunks, true);
    let prints = prints(&chunks);
    assert_eq!(hits(&index, &pool, &prints), 0);
    index.segment_sealed(Arc::clone(&summary));
    for (hit, record) in probe(&index, &pool, &prints).iter().zip(&summary.records) {
        let expected = Hit {
            entry: record.entry,
            generation: Generation(5),
            logical: 4096,
        };
        assert_eq!(*hit, Some(expected));
    }
}

#[test]
fn answers_already_there_are_left_alone() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let chunks = chunks(0, 2);
    index.segment_sealed(pool.write_segment(1, 5, &chunks, true));
    let other = Hit {
        entry: Entry::HOLE,
        generation: Generation(77),
        logical: 1,
    };
    let mut found = [Some(other), None];
    index.probe(&prints(&chunks), pool.directory.as_ref(), &mut found);
    assert_eq!(found[0], Some(other));
    assert!(found[1].is_some());
}

#[test]
fn a_run_of_old_duplicates_costs_one_summary_read() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks = chunks(0, 56);
    let prints = prints(&chunks);
    let first = open(&pool, None);
    pool.write_segment(1, 5, &chunks, true);
    // Nothing cached: only the database knows.
    rebuild(&first, &pool);
    let before = pool.reads();
    assert_eq!(hits(&first, &pool, &prints), 56);
    assert_eq!(pool.reads() - before, 1);
    assert_eq!(hits(&first, &pool, &prints), 56);
    assert_eq!(pool.reads() - before, 1, "the second time from memory");
}

#[test]
fn a_rebuild_that_says_ready_can_be_found() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let chunks = chunks(0, 40);
    pool.write_segment(1, 5, &chunks, true);
    index.rebuild_begin(&mut [(SegmentId(1), Generation(5))].into_iter());
    while index.state() != IndexState::Ready {
        index.rebuild_step(pool.directory.as_ref());
    }
    assert_eq!(hits(&index, &pool, &prints(&chunks)), 40);
}

#[test]
fn frozen_freed_and_reused_segments_are_never_hit() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks = chunks(0, 20);
    let prints = prints(&chunks);
    for cached in [true, false] {
        let summary = pool.write_segment(1, 5, &chunks, true);
        let index = open(&pool, None);
        if cached {
            index.segment_sealed(summary);
        } else {
            rebuild(&index, &pool);
        }
        let segment = SegmentId(1);
        pool.directory.change(segment, |facts| facts.frozen = true);
        assert_eq!(hits(&index, &pool, &prints), 0, "frozen (R20)");
        pool.directory.change(segment, |facts| facts.frozen = false);
        pool.directory
            .change(segment, |facts| facts.generation = Generation(6));
        assert_eq!(hits(&index, &pool, &prints), 0, "reused (R9)");
        // Same low 32 bits: the summary's generation still tells.
        pool.directory.change(segment, |facts| {
            facts.generation = Generation((1 << 32) + 5)
        });
        assert_eq!(hits(&index, &pool, &prints), 0, "reused, 2^32 later");
        pool.directory
            .change(segment, |facts| facts.generation = Generation(5));
        assert_eq!(hits(&index, &pool, &prints), 20);
        pool.directory.free(segment);
        assert_eq!(hits(&index, &pool, &prints), 0, "freed");
    }
}

#[test]
fn fresh_chunks_are_hit_while_live_and_not_frozen() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let chunks = chunks(0, 3);
    let summary = pool.write_segment(1, 5, &chunks, true);
    let prints = prints(&chunks);
    let hit = Hit {
        entry: summary.records[0].entry,
        generation: Generation(5),
        logical: 4096,
    };
    let directory = pool.directory.as_ref();
    assert_eq!(index.fresh_get(&prints[0], directory), None);
    index.fresh_insert(prints[0], hit);
    assert_eq!(index.fresh_get(&prints[0], directory), Some(hit));
    assert_eq!(probe(&index, &pool, &prints), [Some(hit), None, None]);
    pool.directory
        .change(SegmentId(1), |facts| facts.frozen = true);
    assert_eq!(index.fresh_get(&prints[0], directory), None);
    assert_eq!(probe(&index, &pool, &prints)[0], None);
    pool.directory
        .change(SegmentId(1), |facts| facts.frozen = false);
    index.segment_freed(SegmentId(1), Generation(5));
    assert_eq!(index.fresh_get(&prints[0], directory), None);
    assert_eq!(index.tables().fresh.len(), 0);
}

#[test]
fn fresh_entries_leave_when_their_segment_is_in_the_database() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let chunks = chunks(0, 30);
    let summary = pool.write_segment(1, 5, &chunks, true);
    for record in &summary.records {
        let hit = Hit {
            entry: record.entry,
            generation: Generation(5),
            logical: 4096,
        };
        index.fresh_insert(record.fingerprint.unwrap(), hit);
    }
    index.segment_sealed(summary);
    assert_eq!(index.tables().fresh.len(), 30, "still fresh while queued");
    settle(&index);
    assert_eq!(index.tables().fresh.len(), 0);
    assert_eq!(index.entries(), 30);
    assert_eq!(hits(&index, &pool, &prints(&chunks)), 30);
}

#[test]
fn a_queue_that_is_full_drops_and_the_segment_is_read_in_later() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    *index.queue.lock() = Queue::new(20, 20);
    let (one, two) = (chunks(0, 20), chunks(100, 20));
    index.segment_sealed(pool.write_segment(1, 5, &one, true));
    let summary = pool.write_segment(2, 6, &two, true);
    for record in &summary.records {
        let hit = Hit {
            entry: record.entry,
            generation: Generation(6),
            logical: 4096,
        };
        index.fresh_insert(record.fingerprint.unwrap(), hit);
    }
    index.segment_sealed(summary);
    assert_eq!(index.tables().fresh.len(), 0, "dropped with the segment");
    assert_eq!(index.state(), IndexState::Rebuilding { done: 0, total: 1 });
    while index.rebuild_step(pool.directory.as_ref()) {}
    settle(&index);
    assert_eq!(index.state(), IndexState::Ready);
    assert_eq!(index.entries(), 40);
}

#[test]
fn the_filter_spares_the_database_once_it_is_complete() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    assert!(index.tables().filter.may_contain(1));
    settle(&index);
    assert!(!index.tables().filter.may_contain(1));
    index.segment_sealed(pool.write_segment(1, 5, &chunks(0, 10), true));
    settle(&index);
    assert!(
        prints(&chunks(0, 10))
            .iter()
            .all(|print| index.tables().filter.may_contain(print.prefix()))
    );
}

#[test]
fn unhashed_records_are_no_hits() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let chunks = chunks(0, 10);
    index.segment_sealed(pool.write_segment(1, 5, &chunks, false));
    settle(&index);
    assert_eq!(hits(&index, &pool, &prints(&chunks)), 0);
    assert_eq!(index.state(), IndexState::Ready);
}

#[test]
fn a_damaged_summary_block_costs_only_its_records_and_is_mended_where_possible() {
    for (level, width) in [(Level::Single, 1), (Level::Raid1, 2)] {
        let pool = TestPool::new(level, width);
        let chunks = chunks(0, 56);
        let summary = pool.write_segment(1, 5, &chunks, true);
        // The first block has 50 records; in the second one, with 6, one byte
        // of one copy rots.
        let last = summary.records[53].fingerprint.unwrap();
        let places = pool.find(&last.0);
        assert_eq!(places.len(), width);
        pool.rot(&places[0].0, places[0].1);
        let index = open(&pool, None);
        rebuild(&index, &pool);
        let mendable = width > 1;
        let found = hits(&index, &pool, &prints(&chunks));
        assert_eq!(found, if mendable { 56 } else { 50 });
        let covered = index.worker.lock().coverage.contains(Generation(5));
        assert_eq!(covered, mendable, "what could not be read is not covered");
        assert_eq!(pool.find(&last.0).len(), if mendable { 2 } else { 0 });
    }
}

mod on_disk {
    use super::*;

    fn filled(pool: &TestPool, dir: &std::path::Path) -> Vec<Fingerprint> {
        let chunks = chunks(0, 40);
        let index = open(pool, Some(dir.to_path_buf()));
        index.segment_sealed(pool.write_segment(1, 5, &chunks, true));
        index.flush();
        prints(&chunks)
    }

    #[test]
    fn survives_a_restart_without_reading_anything_in() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        let prints = filled(&pool, dir.path());
        let index = open(&pool, Some(dir.path().to_path_buf()));
        index.rebuild_begin(&mut [(SegmentId(1), Generation(5))].into_iter());
        assert_eq!(index.state(), IndexState::Ready, "covered by the stamp");
        assert_eq!(hits(&index, &pool, &prints), 40);
        while index.step() {}
        assert_eq!(hits(&index, &pool, &prints), 40);
        assert_eq!(index.entries(), 41, "and the stamp");
    }

    #[test]
    fn deleting_the_directory_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        let prints = filled(&pool, dir.path());
        std::fs::remove_dir_all(dir.path()).unwrap();
        let index = open(&pool, Some(dir.path().to_path_buf()));
        assert_eq!(hits(&index, &pool, &prints), 0);
        rebuild(&index, &pool);
        assert_eq!(hits(&index, &pool, &prints), 40);
    }

    #[test]
    fn an_older_copy_is_brought_up_to_date_and_never_lies() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        let old = filled(&pool, dir.path());
        // The copy knows segment 1 as generation 5. Meanwhile it was reused,
        // and segment 2 filled.
        let (one, two) = (chunks(500, 40), chunks(700, 40));
        pool.write_segment(1, 9, &one, true);
        pool.write_segment(2, 8, &two, true);
        let index = open(&pool, Some(dir.path().to_path_buf()));
        assert_eq!(hits(&index, &pool, &old), 0);
        rebuild(&index, &pool);
        assert_eq!(hits(&index, &pool, &old), 0);
        assert_eq!(hits(&index, &pool, &prints(&one)), 40);
        assert_eq!(hits(&index, &pool, &prints(&two)), 40);
    }

    #[test]
    fn another_pools_database_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        filled(&pool, dir.path());
        let stranger = IndexOptions {
            pool: Uuid::from_u128(9),
            ..options(&pool, None)
        };
        let stranger = IndexOptions {
            dir: Some(dir.path().to_path_buf()),
            ..stranger
        };
        let index = FingerprintIndex::open(stranger, Arc::clone(&pool.array)).unwrap();
        assert_eq!(index.entries(), 0);
    }

    #[test]
    fn damage_to_any_file_never_stops_the_pool_nor_lies() {
        let pool = TestPool::new(Level::Single, 1);
        let origin = tempfile::tempdir().unwrap();
        let prints = filled(&pool, origin.path());
        let names: Vec<_> = std::fs::read_dir(origin.path())
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        assert!(names.len() > 4);
        for name in names {
            for action in ["remove", "empty", "flip", "garbage", "directory"] {
                let dir = tempfile::tempdir().unwrap();
                for file in std::fs::read_dir(origin.path()).unwrap() {
                    let file = file.unwrap();
                    std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
                }
                let path = dir.path().join(&name);
                let mut bytes = std::fs::read(&path).unwrap();
                match action {
                    "remove" => std::fs::remove_file(&path).unwrap(),
                    "empty" => std::fs::write(&path, b"").unwrap(),
                    "flip" => {
                        let middle = bytes.len() / 2;
                        if let Some(byte) = bytes.get_mut(middle) {
                            *byte ^= 1;
                        }
                        std::fs::write(&path, bytes).unwrap();
                    }
                    "garbage" => std::fs::write(&path, noise(1, bytes.len().max(100))).unwrap(),
                    _ => {
                        std::fs::remove_file(&path).unwrap();
                        std::fs::create_dir(&path).unwrap();
                    }
                }
                let index = open(&pool, Some(dir.path().to_path_buf()));
                let found = hits(&index, &pool, &prints);
                rebuild(&index, &pool);
                let after = hits(&index, &pool, &prints);
                assert!(after >= found, "{name:?} {action}: {found} {after}");
                drop(index);
                // The start after that is whole again at the latest.
                let index = open(&pool, Some(dir.path().to_path_buf()));
                rebuild(&index, &pool);
                assert_eq!(hits(&index, &pool, &prints), 40, "{name:?} {action}");
            }
        }
    }

    #[test]
    fn a_database_in_use_elsewhere_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        let prints = filled(&pool, dir.path());
        let holder = open(&pool, Some(dir.path().to_path_buf()));
        let second = open(&pool, Some(dir.path().to_path_buf()));
        assert_eq!(hits(&second, &pool, &prints), 0, "in memory");
        rebuild(&second, &pool);
        assert_eq!(hits(&second, &pool, &prints), 40);
        drop(second);
        drop(holder);
        let index = open(&pool, Some(dir.path().to_path_buf()));
        assert_eq!(hits(&index, &pool, &prints), 40);
    }

    #[test]
    fn a_file_in_place_of_the_directory_means_memory_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        let chunks = chunks(0, 5);
        let index = open(&pool, Some(file.path().to_path_buf()));
        index.segment_sealed(pool.write_segment(1, 5, &chunks, true));
        settle(&index);
        assert_eq!(hits(&index, &pool, &prints(&chunks)), 5);
        assert!(file.path().is_file());
    }

    #[test]
    fn other_peoples_files_in_the_directory_stay() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        filled(&pool, dir.path());
        std::fs::write(dir.path().join("holiday.jpg"), b"x").unwrap();
        std::fs::write(dir.path().join("CURRENT"), b"garbage").unwrap();
        let index = open(&pool, Some(dir.path().to_path_buf()));
        assert_eq!(index.entries(), 0);
        assert!(dir.path().join("holiday.jpg").exists());
    }

    #[test]
    fn compaction_drops_what_is_certainly_dead_and_keeps_the_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let pool = TestPool::new(Level::Single, 1);
        let liveness = Liveness::default();
        let id = pool.array.uuid();
        let (store, mut coverage) = RocksStore::open(dir.path(), id, 1 << 20, &liveness).unwrap();
        let entries: Vec<(u64, store::Location)> = (0..100)
            .map(|n| {
                let segment = SegmentId(u32::try_from(n % 2).unwrap());
                (
                    n,
                    store::Location {
                        segment,
                        record: 0,
                        generation_low: 5,
                    },
                )
            })
            .collect();
        coverage.insert(Generation(5));
        store.ingest(&entries, &coverage.encode(id)).unwrap();
        liveness.freed(SegmentId(1), Generation(5));
        store.compact();
        let mut left = Vec::new();
        assert_eq!(
            store.scan(0, 1000, &mut |key| left.push(key)).unwrap(),
            None
        );
        assert_eq!(left, (0..100).step_by(2).collect::<Vec<u64>>());
        drop(store);
        let (_, kept) = RocksStore::open(dir.path(), id, 1 << 20, &liveness).unwrap();
        assert_eq!(kept, coverage);
    }

    #[test]
    fn rocksdb_agrees_with_its_twin() {
        let dir = tempfile::tempdir().unwrap();
        let rocks = RocksStore::open(dir.path(), Uuid::nil(), 1 << 20, &Liveness::default());
        let (rocks, _) = rocks.unwrap();
        let twin = MemoryStore::new(1 << 20);
        let stamp = Coverage::default().encode(Uuid::nil());
        for round in 0u32..5 {
            let mut entries: Vec<(u64, store::Location)> = (0..2000u64)
                .map(|n| {
                    let key = fingerprint(&[n * u64::from(round + 1) % 3000].map(|n| n as u8));
                    let at = store::Location {
                        segment: SegmentId(round),
                        record: u32::try_from(n).unwrap(),
                        generation_low: round,
                    };
                    (key.prefix() ^ n, at)
                })
                .collect();
            entries.sort_by_key(|(key, _)| *key);
            entries.dedup_by_key(|(key, _)| *key);
            rocks.ingest(&entries, &stamp).unwrap();
            twin.ingest(&entries, &stamp).unwrap();
            let mut keys: Vec<u64> = entries
                .iter()
                .flat_map(|(key, _)| [*key, key.wrapping_add(1)])
                .collect();
            keys.sort_unstable();
            keys.dedup();
            let (mut one, mut two) = (vec![None; keys.len()], vec![None; keys.len()]);
            rocks.lookup(&keys, &mut one);
            twin.lookup(&keys, &mut two);
            assert_eq!(one, two);
        }
        let scan = |store: &dyn KeyStore| {
            let (mut seen, mut from) = (Vec::new(), Some(0));
            while let Some(at) = from {
                from = store.scan(at, 777, &mut |key| seen.push(key)).unwrap();
            }
            seen
        };
        assert_eq!(scan(&rocks), scan(&twin));
    }
}

/// Answers whatever the test wants.
#[derive(Debug, Default)]
struct Liar {
    answers: HashMap<u64, store::Location>,
}

impl KeyStore for Liar {
    fn lookup(&self, keys: &[u64], out: &mut [Option<store::Location>]) {
        for (key, out) in keys.iter().zip(out) {
            *out = self.answers.get(key).copied();
        }
    }
    fn ingest(&self, _: &[(u64, store::Location)], _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Full)
    }
    fn scan(&self, _: u64, _: usize, _: &mut dyn FnMut(u64)) -> Result<Option<u64>, StoreError> {
        Err(StoreError::Full)
    }
    fn crowded(&self) -> bool {
        false
    }
    fn keys_max(&self, _: u64) -> u64 {
        u64::MAX
    }
    fn thin(&self, _: u64) {}
    fn compact(&self) {}
    fn disk_bytes(&self) -> u64 {
        0
    }
    fn entries(&self) -> u64 {
        0
    }
    fn memory_bytes(&self) -> usize {
        0
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// R8: no state of the database makes a wrong hit.
    #[test]
    fn a_database_that_lies_makes_no_wrong_hit(
        answers in prop::collection::vec(
            (0usize..150, prop_oneof![0u32..4, any::<u32>()],
             prop_oneof![0u32..60, any::<u32>()], prop_oneof![4u32..9, any::<u32>()]),
            0..200),
        states in prop::collection::vec((0u32..4, 0u8..5), 0..4),
    ) {
        // Segment s has generation s + 5. Chunks 120..150 are stored nowhere.
        thread_local!(static POOL: (TestPool, Vec<Vec<Vec<u8>>>) = {
            let pool = TestPool::new(Level::Single, 1);
            let segments: Vec<_> = (0..3).map(|s| chunks(s * 40, 40)).collect();
            for (segment, chunks) in (0..).zip(&segments) {
                pool.write_segment(segment, u64::from(segment) + 5, chunks, true);
            }
            (pool, segments)
        });
        POOL.with(|(pool, segments)| {
            let everything: Vec<Vec<u8>> =
                segments.iter().flatten().cloned().chain(chunks(1000, 30)).collect();
            let prints = prints(&everything);
            let mut liar = Liar::default();
            for (key, segment, record, generation_low) in answers {
                let location = store::Location {
                    segment: SegmentId(segment), record, generation_low,
                };
                liar.answers.insert(prints[key].prefix(), location);
            }
            let opened = lifecycle::Opened {
                store: Box::new(liar), coverage: Coverage::default(), on_disk: false,
            };
            let options = options(pool, None);
            let furnished = furnish(&options, opened);
            let index = FingerprintIndex::with(
                options, Arc::<Array>::clone(&pool.array), furnished, Liveness::default(),
            );
            let saved = pool.directory.facts.lock().clone();
            for (segment, state) in states {
                let mut facts = pool.directory.facts.lock();
                let Some(known) = facts.get_mut(&SegmentId(segment)) else { continue };
                match state {
                    0 => known.frozen = true,
                    1 => known.generation.0 += 1,
                    2 => known.generation.0 += 1 << 32,
                    3 => known.summary = None,
                    _ => { facts.remove(&SegmentId(segment)); }
                }
            }
            let found = probe(&index, pool, &prints);
            let now = std::mem::replace(&mut *pool.directory.facts.lock(), saved);
            for (number, hit) in found.iter().enumerate() {
                let Some(hit) = hit else { continue };
                let segment = hit.entry.segment;
                let facts = &now[&segment];
                prop_assert!(!facts.frozen && facts.generation == hit.generation);
                prop_assert_eq!(hit.generation.0, u64::from(segment.0) + 5);
                // The chunk at that place is the one asked for.
                let mut target = vec![0; 4096];
                let mut read = [tessera_raid::SegmentRead {
                    placement: facts.placement.clone(),
                    offset: hit.entry.position / 4096 * 4096,
                    buffer: tessera_raid::device::AlignedBuf::zeroed(8192),
                    outcome: Ok(()),
                }];
                pool.array.read(&mut read);
                let from = (hit.entry.position % 4096) as usize;
                let stored = &read[0].buffer[from..from + hit.entry.stored as usize];
                crate::decompress(stored, hit.entry.kind, &mut target).unwrap();
                prop_assert_eq!(&target, &everything[number]);
            }
            Ok(())
        })?;
    }
}

#[test]
fn one_writer_is_elected_when_the_same_chunks_arrive_at_once() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let chunks = chunks(0, 50);
    let summary = pool.write_segment(1, 5, &chunks, true);
    let append = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for record in &summary.records {
                    let print = record.fingerprint.unwrap();
                    // As the engine does: the append lock from here.
                    let mut appended = append.lock();
                    if index.fresh_get(&print, pool.directory.as_ref()).is_none() {
                        let generation = Generation(5);
                        let hit = Hit {
                            entry: record.entry,
                            generation,
                            logical: 4096,
                        };
                        index.fresh_insert(print, hit);
                        *appended += 1;
                    }
                }
            });
        }
    });
    assert_eq!(*append.lock(), 50);
}

#[test]
fn memory_stays_within_the_budget() {
    let pool = TestPool::new(Level::Single, 1);
    let index = open(&pool, None);
    let id = crate::summary::SummaryId {
        pool: pool.array.uuid(),
        segment: SegmentId(0),
        generation: Generation(1),
    };
    for n in 0..200u32 {
        let id = crate::summary::SummaryId {
            segment: SegmentId(n),
            generation: Generation(u64::from(n) + 1),
            ..id
        };
        let summary = crate::segment::summary::tests::summary_of(id, 1500, u64::from(n));
        for record in &summary.records {
            let hit = Hit {
                entry: record.entry,
                generation: id.generation,
                logical: 4096,
            };
            if let Some(print) = record.fingerprint {
                index.fresh_insert(print, hit);
            }
        }
        index.segment_sealed(Arc::new(summary));
        index.step();
        assert!(
            index.memory_bytes() <= MEMORY,
            "{} at {n}",
            index.memory_bytes()
        );
    }
}

#[test]
fn too_little_memory_is_refused() {
    let pool = TestPool::new(Level::Single, 1);
    let options = IndexOptions {
        memory_bytes: 1000,
        ..options(&pool, None)
    };
    assert!(FingerprintIndex::open(options, Arc::clone(&pool.array)).is_err());
}
