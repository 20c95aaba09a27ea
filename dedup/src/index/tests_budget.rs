//! The index when it may not keep everything, and when it is dropped.

use std::path::Path;

use tessera_raid::Level;

use super::{
    filter::Filter,
    rocks::RocksStore,
    sampling::Rate,
    store::{KeyStore, Location, MemoryStore},
    tests::{MEMORY, hits, options, prints, rebuild, settle},
    *,
};
use crate::testkit::{TestPool, text};

const SEGMENTS: u32 = 6;
/// Small chunks, so that a segment has three groups of them.
const CHUNKS: u64 = 1200;
const ALL: usize = SEGMENTS as usize * CHUNKS as usize;

/// A pool with [`ALL`] chunks, and their fingerprints in the order written.
fn filled() -> (TestPool, Vec<Fingerprint>) {
    let pool = TestPool::new(Level::Single, 1);
    let mut all = Vec::new();
    for segment in 0..SEGMENTS {
        let first = u64::from(segment) * CHUNKS;
        let chunks: Vec<_> = (first..first + CHUNKS).map(|n| text(n, 512)).collect();
        pool.write_segment(segment, u64::from(segment) + 5, &chunks, true);
        all.extend(prints(&chunks));
    }
    (pool, all)
}

fn on(pool: &TestPool, tables: Tables) -> FingerprintIndex {
    let worker = Worker {
        scan_from: Some(0),
        ..Worker::default()
    };
    let array = Arc::<tessera_raid::Array>::clone(&pool.array);
    let furnished = (Arc::new(tables), worker);
    FingerprintIndex::with(options(pool, None), array, furnished, Liveness::default())
}

/// With a database that holds so many fingerprints.
fn holding(pool: &TestPool, keys: usize) -> FingerprintIndex {
    on(
        pool,
        Tables::new(MEMORY, Box::new(MemoryStore::new(keys)), false),
    )
}

fn on_disk(pool: &TestPool, dir: &Path, disk_bytes: u64) -> FingerprintIndex {
    let options = IndexOptions {
        disk_bytes,
        ..options(pool, Some(dir.to_path_buf()))
    };
    FingerprintIndex::open(options, Arc::clone(&pool.array)).unwrap()
}

/// Hits when all is written again, so many chunks at a time.
fn again(index: &FingerprintIndex, pool: &TestPool, all: &[Fingerprint], at_once: usize) -> usize {
    all.chunks(at_once)
        .map(|request| hits(index, pool, request))
        .sum()
}

#[test]
fn at_a_tenth_of_the_budget_runs_still_deduplicate_and_scattered_chunks_do_not() {
    let (pool, all) = filled();
    // One chunk of each group, each alone.
    let scattered: Vec<Fingerprint> = all.iter().copied().skip(150).step_by(400).collect();
    for at_once in [1, 16, 256] {
        let index = holding(&pool, ALL / 10);
        rebuild(&index, &pool);
        let facts = index.facts();
        assert_eq!((facts.kept_one_in, facts.asked_one_in), (16, 16));
        assert!(facts.entries <= ALL as u64 / 10, "{facts:?}");
        let found = again(&index, &pool, &all, at_once);
        assert!(found >= ALL * 9 / 10, "{found} of {ALL}, {at_once} at once");
        let index = holding(&pool, ALL / 10);
        rebuild(&index, &pool);
        let found = again(&index, &pool, &scattered, 1);
        assert!(
            found < scattered.len() / 2,
            "{found} of {}",
            scattered.len()
        );
    }
    let index = holding(&pool, ALL);
    rebuild(&index, &pool);
    assert_eq!(again(&index, &pool, &scattered, 1), scattered.len());
}

#[test]
fn a_full_filter_asks_for_a_sample_and_forgets_nothing() {
    let (pool, all) = filled();
    let mut tables = Tables::new(MEMORY, Box::new(MemoryStore::new(ALL)), false);
    tables.filter = Filter::new(ALL / 10 * 6 / 8);
    let index = on(&pool, tables);
    rebuild(&index, &pool);
    let facts = index.facts();
    assert_eq!(
        (facts.kept_one_in, facts.asked_one_in),
        (1, 16),
        "{facts:?}"
    );
    assert_eq!(facts.entries, ALL as u64);
    let filter = &index.tables().filter;
    assert!(filter.count() <= filter.capacity());
    assert!(again(&index, &pool, &all, 256) >= ALL * 9 / 10);
}

#[test]
fn a_database_that_says_it_is_full_is_thinned_out() {
    let (pool, all) = filled();
    // Orders in which half of what was known of is a little less than half.
    for order in [[4, 5, 0, 2, 3, 1], [1, 4, 0, 2, 3, 5], [2, 4, 0, 3, 5, 1]] {
        let index = holding(&pool, ALL / 10);
        let sealed = order.map(|n| (SegmentId(n), Generation(u64::from(n) + 5)));
        index.rebuild_begin(&mut sealed.into_iter());
        while index.rebuild_step(pool.directory.as_ref()) {}
        settle(&index);
        assert_eq!(index.facts().kept_one_in, 16, "{order:?}");
        assert!(again(&index, &pool, &all, 256) >= ALL * 9 / 10);
    }
}

#[test]
fn what_does_not_fit_at_the_sparsest_rate_is_dropped_and_nothing_fails() {
    let (pool, all) = filled();
    let index = holding(&pool, 2);
    rebuild(&index, &pool);
    assert_eq!(index.state(), IndexState::Ready);
    assert_eq!(index.facts().kept_one_in, Rate::SPARSEST.one_in());
    assert!(index.entries() <= 2);
    again(&index, &pool, &all, 256);
}

#[test]
fn one_disk_limit_holds_over_restarts_and_the_rate_with_it() {
    let (pool, all) = filled();
    let dir = tempfile::tempdir().unwrap();
    const LIMIT: u64 = 90 * ALL as u64 / 10;
    let index = on_disk(&pool, dir.path(), LIMIT);
    rebuild(&index, &pool);
    let facts = index.facts();
    assert!(facts.kept_one_in >= 16, "{facts:?}");
    assert!(facts.disk_bytes <= LIMIT, "{facts:?}");
    drop(index);

    let index = on_disk(&pool, dir.path(), LIMIT);
    let sealed = (0..SEGMENTS).map(|n| (SegmentId(n), Generation(u64::from(n) + 5)));
    index.rebuild_begin(&mut sealed.into_iter());
    assert_eq!(index.state(), IndexState::Ready, "covered, as a sample");
    settle(&index);
    let after = index.facts();
    assert_eq!(after.kept_one_in, facts.kept_one_in);
    assert!(after.asked_one_in >= after.kept_one_in);
    assert!(again(&index, &pool, &all, 256) >= ALL * 9 / 10);
}

#[test]
fn what_a_start_finds_thinned_out_but_not_compacted_does_not_count() {
    let (pool, all) = filled();
    let dir = tempfile::tempdir().unwrap();
    drop({
        let index = on_disk(&pool, dir.path(), 0);
        rebuild(&index, &pool);
        index.flush();
        index
    });
    // As if the power had failed when only the stamp was sparser.
    let liveness = Liveness::default();
    let uuid = options(&pool, None).pool;
    let (store, mut coverage) = RocksStore::open(dir.path(), uuid, 1 << 20, &liveness).unwrap();
    coverage.rate = Rate::from_bits(4).unwrap();
    store.ingest(&[], &coverage.encode(uuid)).unwrap();
    drop(store);

    let index = on_disk(&pool, dir.path(), 90 * ALL as u64 / 10);
    settle(&index);
    assert_eq!(index.facts().kept_one_in, 16);
    assert!(again(&index, &pool, &all, 256) >= ALL * 9 / 10);
}

#[test]
fn a_lower_disk_limit_takes_hold_at_once_and_a_higher_one_when_made_anew() {
    let (pool, all) = filled();
    let dir = tempfile::tempdir().unwrap();
    let index = on_disk(&pool, dir.path(), 0);
    rebuild(&index, &pool);
    assert_eq!(index.facts().kept_one_in, 1);
    assert_eq!(again(&index, &pool, &all, 256), ALL);
    const LIMIT: u64 = 90 * ALL as u64 / 4;
    index.set_disk_limit(LIMIT);
    while index.step() {}
    let facts = index.facts();
    assert!(facts.kept_one_in >= 4, "{facts:?}");
    assert!(facts.disk_bytes <= LIMIT, "{facts:?}");
    index.set_disk_limit(0);
    while index.step() {}
    assert_eq!(index.facts().kept_one_in, facts.kept_one_in);
    index.discard();
    assert!(index.reopen());
    rebuild(&index, &pool);
    assert_eq!(index.facts().kept_one_in, 1);
    assert_eq!(again(&index, &pool, &all, 256), ALL);
}

#[test]
fn thinning_out_drops_the_keys_above_and_keeps_the_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let liveness = Liveness::default();
    let pool = Uuid::from_u128(3);
    let (store, mut coverage) = RocksStore::open(dir.path(), pool, 1 << 20, &liveness).unwrap();
    let entries: Vec<(u64, Location)> = (0..1000u64)
        .map(|n| {
            let at = Location {
                segment: SegmentId(0),
                record: 0,
                generation_low: 1,
            };
            (n * (u64::MAX / 1000), at)
        })
        .collect();
    store.ingest(&entries, &coverage.encode(pool)).unwrap();
    store.compact();
    coverage.rate = Rate::ALL.halved().and_then(Rate::halved).unwrap();
    store.ingest(&[], &coverage.encode(pool)).unwrap();
    store.thin(coverage.rate.last());
    let before = store.disk_bytes();
    store.compact();
    assert!(store.disk_bytes() < before / 2);
    let mut left = Vec::new();
    store.scan(0, 2000, &mut |key| left.push(key)).unwrap();
    let kept = |key: &u64| coverage.rate.keeps(*key);
    let expected: Vec<u64> = entries.iter().map(|(key, _)| *key).filter(kept).collect();
    assert_eq!(left, expected);
    drop(store);
    let (_, found) = RocksStore::open(dir.path(), pool, 1 << 20, &liveness).unwrap();
    assert_eq!(found, coverage);
}

#[test]
fn a_dropped_index_is_gone_takes_nothing_in_and_can_be_made_anew() {
    let (pool, all) = filled();
    let dir = tempfile::tempdir().unwrap();
    let index = on_disk(&pool, dir.path(), 0);
    rebuild(&index, &pool);
    let before = index.memory_bytes();
    index.discard();
    assert_eq!(index.state(), IndexState::Dropped);
    assert_eq!((index.entries(), again(&index, &pool, &all, 256)), (0, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(index.memory_bytes() < before / 100, "memory comes back");

    let more: Vec<_> = (0..20).map(|n| text(90_000 + n, 512)).collect();
    let summary = pool.write_segment(6, 50, &more, true);
    let fresh = Hit {
        entry: summary.records[0].entry,
        generation: Generation(50),
        logical: 512,
    };
    index.fresh_insert(summary.records[0].fingerprint.unwrap(), fresh);
    index.segment_sealed(summary);
    settle(&index);
    assert_eq!(hits(&index, &pool, &prints(&more)), 0);
    assert_eq!(index.entries(), 0);

    assert!(index.reopen());
    rebuild(&index, &pool);
    assert_eq!(index.state(), IndexState::Ready);
    assert_eq!(again(&index, &pool, &all, 256), ALL);
    assert_eq!(hits(&index, &pool, &prints(&more)), 20);
}

#[test]
fn a_lookup_under_way_delays_the_end_of_a_dropped_index_and_nothing_else() {
    let (pool, all) = filled();
    let dir = tempfile::tempdir().unwrap();
    let index = on_disk(&pool, dir.path(), 0);
    rebuild(&index, &pool);
    let looking = index.tables();
    index.discard();
    assert_eq!(hits(&index, &pool, &all[..100]), 0);
    assert!(!index.reopen(), "the old database is still open");
    assert!(std::fs::read_dir(dir.path()).unwrap().count() > 0);
    drop(looking);
    index.step();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(index.reopen());
}

#[test]
fn an_index_dropped_before_stays_so_and_leaves_no_files() {
    let (pool, all) = filled();
    let dir = tempfile::tempdir().unwrap();
    let index = on_disk(&pool, dir.path(), 0);
    rebuild(&index, &pool);
    drop(index);
    let options = IndexOptions {
        dropped: true,
        ..options(&pool, Some(dir.path().to_path_buf()))
    };
    let index = FingerprintIndex::open(options, Arc::clone(&pool.array)).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(index.state(), IndexState::Dropped);
    assert_eq!(hits(&index, &pool, &all[..100]), 0);
    let sealed = [(SegmentId(0), Generation(5))];
    index.rebuild_begin(&mut sealed.into_iter());
    assert_eq!(index.state(), IndexState::Dropped);
}
