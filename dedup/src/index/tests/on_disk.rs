//! With a database on disk.

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
