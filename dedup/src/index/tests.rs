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

mod liar;
mod on_disk;

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
