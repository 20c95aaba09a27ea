//! The reader on simulated pools: what it reads, how often, and whom it
//! believes.

use parking_lot::Mutex;
use proptest::prelude::*;
use tessera_raid::{Level, device::sim::Fault};

use super::*;
use crate::{
    summary::Summary,
    testkit::{TestPool, noise, placement, text},
};

const SHAPES: [(Level, usize); 7] = [
    (Level::Single, 1),
    (Level::Raid0, 2),
    (Level::Raid1, 2),
    (Level::Raid5, 3),
    (Level::Raid5, 4),
    (Level::Raid6, 4),
    (Level::Raid10, 4),
];

fn reader(pool: &TestPool, cache: usize) -> ChunkReader {
    reader_with(pool, cache, Arc::new(NothingUnwritten))
}

fn reader_with(pool: &TestPool, cache: usize, unwritten: Arc<dyn UnwrittenSource>) -> ChunkReader {
    let options = ReaderOptions {
        pool: pool.array.uuid(),
        chunk_cache_bytes: cache,
        page_cache_bytes: cache,
        buffer_bytes: 1 << 20,
    };
    let directory: Arc<dyn SegmentDirectory> = pool.directory.clone();
    ChunkReader::new(Arc::clone(&pool.array), directory, unwritten, options)
}

/// Chunks of mixed kinds and sizes.
fn mixed(seed: u64) -> Vec<Vec<u8>> {
    let sizes = [4096, 4096, 8192, 16384, 4096, 32768, 4096];
    (0..14u64)
        .map(|n| {
            let length = sizes[usize::try_from(n).unwrap() % sizes.len()];
            if n.is_multiple_of(2) {
                text(seed + n, length)
            } else {
                noise(seed + n, length)
            }
        })
        .collect()
}

fn read_all(reader: &ChunkReader, entries: &[(Entry, u32)]) -> Vec<Result<Vec<u8>, ReadError>> {
    let mut targets: Vec<Vec<u8>> = entries
        .iter()
        .map(|(_, logical)| vec![0xee; *logical as usize])
        .collect();
    let mut reads: Vec<ChunkRead<'_>> = entries
        .iter()
        .zip(&mut targets)
        .map(|((entry, logical), target)| ChunkRead::new(*entry, *logical, 0, target))
        .collect();
    reader.read(&mut reads);
    let outcomes: Vec<_> = reads.into_iter().map(|read| read.outcome).collect();
    outcomes
        .into_iter()
        .zip(targets)
        .map(|(outcome, target)| outcome.map(|()| target))
        .collect()
}

fn entries(summary: &Summary) -> Vec<(Entry, u32)> {
    summary
        .records
        .iter()
        .map(|record| (record.entry, record.logical))
        .collect()
}

#[test]
fn every_kind_of_chunk_reads_back_at_every_level() {
    for (level, width) in SHAPES {
        let pool = TestPool::new(level, width);
        let chunks = mixed(3);
        let summary = pool.write_segment(1, 5, &chunks, true);
        for cache in [0, 1 << 20] {
            let reader = reader(&pool, cache);
            for _ in 0..2 {
                for (found, chunk) in read_all(&reader, &entries(&summary)).iter().zip(&chunks) {
                    assert!(found.as_ref().unwrap() == chunk, "{level:?}");
                }
            }
            assert_eq!(reader.counters().mismatches, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_part_of_any_chunk_reads_back(
        parts in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            1..20),
        cache in prop_oneof![Just(0usize), Just(1 << 20)],
    ) {
        thread_local!(static POOL: (TestPool, Vec<Vec<u8>>, Arc<Summary>) = {
            let pool = TestPool::new(Level::Raid5, 3);
            let chunks = mixed(9);
            let summary = pool.write_segment(1, 5, &chunks, true);
            (pool, chunks, summary)
        });
        POOL.with(|(pool, chunks, summary)| {
            let reader = reader(pool, cache);
            let parts: Vec<(usize, usize, usize)> = parts
                .iter()
                .map(|(chunk, from, length)| {
                    let chunk = chunk.index(chunks.len());
                    let from = from.index(chunks[chunk].len());
                    (chunk, from, length.index(chunks[chunk].len() - from + 1))
                })
                .collect();
            for _ in 0..2 {
                let mut targets: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.2]).collect();
                let mut reads: Vec<ChunkRead<'_>> = parts
                    .iter()
                    .zip(&mut targets)
                    .map(|((chunk, from, _), target)| {
                        let record = &summary.records[*chunk];
                        let from = u32::try_from(*from).unwrap();
                        ChunkRead::new(record.entry, record.logical, from, target)
                    })
                    .collect();
                reader.read(&mut reads);
                prop_assert!(reads.iter().all(|read| read.outcome.is_ok()));
                for ((chunk, from, length), target) in parts.iter().zip(&targets) {
                    prop_assert_eq!(target.as_slice(), &chunks[*chunk][*from..from + length]);
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn holes_and_zeroes_need_no_segment() {
    let pool = TestPool::new(Level::Single, 1);
    let reader = reader(&pool, 0);
    let before = pool.reads();
    for found in read_all(&reader, &[(Entry::HOLE, 4096), (Entry::ZERO, 65536)]) {
        assert!(found.unwrap().iter().all(|byte| *byte == 0));
    }
    assert_eq!(pool.reads(), before);
}

#[test]
fn neighbours_are_read_with_one_operation_and_cached_ones_with_none() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks: Vec<_> = (0..8).map(|n| noise(n, 4096)).collect();
    let entries = entries(&pool.write_segment(1, 5, &chunks, true));
    let reader = reader(&pool, 1 << 20);
    let before = pool.reads();
    read_all(&reader, &entries);
    // 32 KiB over stripe units of 16 KiB on one member.
    assert_eq!(pool.reads() - before, 1);
    read_all(&reader, &entries);
    assert_eq!(pool.reads() - before, 1);
    let ReaderCounters {
        cache_hits,
        cache_misses,
        ..
    } = reader.counters();
    assert_eq!((cache_hits, cache_misses), (8, 8));
}

#[test]
fn long_runs_are_not_cached() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks: Vec<_> = (0..32).map(|n| noise(n, 4096)).collect();
    let entries = entries(&pool.write_segment(1, 5, &chunks, true));
    let reader = reader(&pool, 1 << 20);
    read_all(&reader, &entries);
    read_all(&reader, &entries);
    assert_eq!(reader.counters().cache_hits, 0);
}

#[test]
fn pointers_to_other_generations_are_stale() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks = vec![noise(1, 4096)];
    let entries = entries(&pool.write_segment(1, 5, &chunks, true));
    let reader = reader(&pool, 1 << 20);
    let stale = |reader: &ChunkReader| {
        matches!(read_all(reader, &entries)[0], Err(ReadError::Stale { .. }))
    };
    assert!(!stale(&reader), "and cached from here on");
    pool.directory
        .change(SegmentId(1), |facts| facts.generation = Generation(6));
    assert!(stale(&reader));
    pool.directory.free(SegmentId(1));
    assert!(stale(&reader));
    // Low bits come round: what was cached for generation 5 is no answer.
    let other = noise(2, 4096);
    pool.write_segment(1, 5 + 256, std::slice::from_ref(&other), true);
    let found = read_all(&reader, &entries);
    assert!(
        matches!(found[0], Err(ReadError::Damaged { .. })),
        "{found:?}"
    );
}

#[test]
fn malformed_pointers_and_ranges_are_refused() {
    let pool = TestPool::new(Level::Single, 1);
    let entry = pool.write_segment(1, 5, &[noise(1, 4096)], true).records[0].entry;
    let reader = reader(&pool, 0);
    let refused = |entry: Entry, logical: u32, from: u32, length: usize| {
        let mut target = vec![0; length];
        let mut reads = [ChunkRead::new(entry, logical, from, &mut target)];
        reader.read(&mut reads);
        matches!(reads[0].outcome, Err(ReadError::Invalid { .. }))
    };
    assert!(!refused(entry, 4096, 0, 4096));
    assert!(
        refused(entry, 8192, 0, 4096),
        "raw chunks are as long as they are stored"
    );
    assert!(refused(entry, 4096, 1, 4096));
    assert!(refused(entry, 4096, u32::MAX, 4096));
    assert!(refused(
        Entry {
            position: POSITION_LIMIT - 4095,
            ..entry
        },
        4096,
        0,
        4096
    ));
    let lz4 = Entry {
        kind: EntryKind::Lz4,
        stored: 4097,
        ..entry
    };
    assert!(refused(lz4, 4096, 0, 4096));
    assert!(refused(
        Entry {
            stored: 128 << 10,
            ..entry
        },
        128 << 10,
        0,
        4096
    ));
}

#[test]
fn one_rotten_member_is_outvoted_and_mended() {
    for (level, width) in SHAPES {
        let redundant = !matches!(level, Level::Single | Level::Raid0);
        let pool = TestPool::new(level, width);
        let chunks = mixed(20);
        let summary = pool.write_segment(1, 5, &chunks, true);
        for (record, chunk) in summary.records.iter().zip(&chunks) {
            let reader = reader(&pool, 0);
            let stored = stored_bytes(&pool, &record.entry);
            // All copies of a mirror but one; the data member elsewhere.
            let mut places = pool.find(&stored[..stored.len().min(4096)]);
            match level {
                Level::Raid1 | Level::Raid10 => drop(places.pop()),
                // Parity of a stripe with nothing else in it is a copy.
                Level::Raid5 | Level::Raid6 if places.len() > 1 => continue,
                _ => {}
            }
            for (path, offset) in &places {
                pool.rot(path, *offset + 7);
            }
            // Mirrors take turns: ask both.
            for _ in 0..2 {
                let found = read_all(&reader, &[(record.entry, record.logical)]).remove(0);
                if redundant {
                    assert!(found.unwrap() == *chunk, "{level:?}");
                } else {
                    assert!(matches!(found, Err(ReadError::Damaged { .. })), "{level:?}");
                }
            }
            let counters = reader.counters();
            if redundant {
                assert!(
                    counters.mismatches >= 1,
                    "{level:?} {record:?} {counters:?}"
                );
                assert_eq!(counters.mended, counters.mismatches);
                let again = self::reader(&pool, 0);
                for _ in 0..2 {
                    read_all(&again, &[(record.entry, record.logical)]);
                }
                assert_eq!(again.counters().mismatches, 0, "{level:?}: it was mended");
            } else {
                assert_eq!((counters.mismatches, counters.mended), (2, 0));
            }
        }
    }
}

fn stored_bytes(pool: &TestPool, entry: &Entry) -> Vec<u8> {
    let start = entry.position / 4096 * 4096;
    let end = (entry.position + entry.stored).next_multiple_of(4096);
    let mut reads = [tessera_raid::SegmentRead {
        placement: placement(entry.segment),
        offset: start,
        buffer: tessera_raid::device::AlignedBuf::zeroed((end - start) as usize),
        outcome: Ok(()),
    }];
    pool.array.read(&mut reads);
    let from = (entry.position - start) as usize;
    reads[0].buffer[from..from + entry.stored as usize].to_vec()
}

/// R7: each copy of a packed block has one rotten chunk, and not the same one.
/// Mending one must not spread the other's rot.
#[test]
fn two_half_rotten_copies_of_a_packed_block_mend_each_other() {
    let pool = TestPool::new(Level::Raid1, 2);
    let chunks = vec![text(1, 4096), text(2, 4096)];
    let summary = pool.write_segment(1, 5, &chunks, true);
    let [one, two] = [summary.records[0].entry, summary.records[1].entry];
    assert_eq!(
        one.position / 4096,
        two.position / 4096,
        "packed in one block"
    );
    for (entry, member) in [(one, 0), (two, 1)] {
        let places = pool.find(&stored_bytes(&pool, &entry));
        pool.rot(&places[member].0, places[member].1);
    }
    let reader = reader(&pool, 0);
    for _ in 0..4 {
        for (found, chunk) in read_all(&reader, &entries(&summary))
            .into_iter()
            .zip(&chunks)
        {
            assert!(found.unwrap() == *chunk);
        }
    }
    let mended = reader.counters().mended;
    assert!((1..=2).contains(&mended), "{mended}");
    for _ in 0..4 {
        read_all(&reader, &entries(&summary));
    }
    assert_eq!(reader.counters().mended, mended, "nothing is left to mend");
}

#[test]
fn rot_beyond_the_redundancy_is_an_error_for_that_chunk_only() {
    for (level, width) in SHAPES {
        let pool = TestPool::new(level, width);
        let chunks: Vec<_> = (0..12).map(|n| noise(n, 4096)).collect();
        let summary = pool.write_segment(1, 5, &chunks, true);
        // The same offset of every member's slot, so copies and parity too.
        let (_, offset) = pool.find(&chunks[5])[0];
        for (member, path) in pool.paths.iter().enumerate() {
            // Different errors: equal ones would cancel out in the parity.
            let mask = [0x10, 0x21, 0x42, 0x84][member];
            pool.world.inject(
                path,
                Fault::BitRot {
                    offset: offset + 99,
                    mask,
                },
            );
        }
        let reader = reader(&pool, 1 << 20);
        for _ in 0..2 {
            let found = read_all(&reader, &entries(&summary));
            assert!(
                matches!(found[5], Err(ReadError::Damaged { position, .. })
                if position == summary.records[5].entry.position),
                "{level:?}"
            );
            for (number, (found, chunk)) in found.iter().zip(&chunks).enumerate() {
                // Other members' data at that offset rotted as well.
                if let Ok(found) = found {
                    assert!(found == chunk, "{level:?} chunk {number}");
                }
            }
            let good = found.iter().filter(|found| found.is_ok()).count();
            assert!(good >= chunks.len() - width, "{level:?}: {good}");
        }
    }
}

#[test]
fn an_unreadable_sector_does_not_take_its_neighbours_along() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks: Vec<_> = (0..6).map(|n| noise(n, 4096)).collect();
    let summary = pool.write_segment(1, 5, &chunks, true);
    let (path, offset) = pool.find(&chunks[2]).remove(0);
    pool.world.inject(
        path,
        Fault::ReadErrors {
            offset,
            length: 4096,
        },
    );
    let found = read_all(&reader(&pool, 0), &entries(&summary));
    for (number, (found, chunk)) in found.iter().zip(&chunks).enumerate() {
        match found {
            Ok(found) => assert!(number != 2 && found == chunk),
            Err(error) => assert!(number == 2 && matches!(error, ReadError::Damaged { .. })),
        }
    }
}

/// A reading whose checksum happens to match but whose hash does not is not
/// believed, where the summary has the hash.
#[test]
fn arbitration_also_asks_the_hash() {
    let pool = TestPool::new(Level::Raid1, 2);
    let chunks = vec![noise(1, 4096)];
    let summary = pool.write_segment(1, 5, &chunks, true);
    let good = summary.records[0].entry;
    let places = pool.find(&chunks[0]);
    // One copy becomes another chunk altogether, with its own checksum in the
    // pointer: as a collision would look. The other copy is no match at all.
    let forged = noise(2, 4096);
    pool.world.poke(&places[0].0, places[0].1, &forged);
    pool.rot(&places[1].0, places[1].1);
    let collision = crc32c::crc32c(&forged);
    let id = summary.id();
    let mut record = summary.records[0];
    record.entry.checksum = collision;
    let place = pool.directory.facts(SegmentId(1)).unwrap().summary.unwrap();
    let bytes = crate::summary::encode_blocks(&Summary {
        pool: id.pool,
        segment: id.segment,
        generation: id.generation,
        records: vec![record],
    });
    let block = pool.find(&crate::summary::encode_blocks(&summary));
    for (path, offset) in block {
        pool.world.poke(path, offset, &bytes);
    }
    assert_eq!(place.blocks, 1);
    let reader = reader(&pool, 0);
    let want = Want {
        index: 0,
        entry: Entry {
            checksum: collision,
            ..good
        },
        generation: Generation(5),
        placement: placement(SegmentId(1)),
    };
    let offered = reader.recover_for_test(&want);
    assert!(matches!(offered, Err(ReadError::Damaged { .. })));
}

/// Bytes in memory that the members do not have.
struct Memory(Mutex<Vec<(Entry, Vec<u8>)>>);

impl UnwrittenSource for Memory {
    fn copy(&self, segment: SegmentId, low: u8, position: u32, target: &mut [u8]) -> bool {
        let held = self.0.lock();
        let found = held.iter().find(|(entry, _)| {
            (entry.segment, entry.generation, entry.position) == (segment, low, position)
        });
        if let Some((_, bytes)) = found {
            target.copy_from_slice(bytes);
        }
        found.is_some()
    }
}

#[test]
fn unwritten_bytes_come_from_memory_and_are_verified_too() {
    let pool = TestPool::new(Level::Single, 1);
    let chunks = [noise(1, 4096), text(2, 4096)];
    let summary = pool.write_segment(1, 5, &chunks, true);
    let held: Vec<(Entry, Vec<u8>)> = summary
        .records
        .iter()
        .map(|record| (record.entry, stored_bytes(&pool, &record.entry)))
        .collect();
    let memory = Arc::new(Memory(Mutex::new(held)));
    let reader = reader_with(&pool, 0, memory.clone());
    let before = pool.reads();
    for (found, chunk) in read_all(&reader, &entries(&summary))
        .into_iter()
        .zip(&chunks)
    {
        assert!(found.unwrap() == *chunk);
    }
    let mut part = [0; 10];
    let record = &summary.records[1];
    let mut reads = [ChunkRead::new(record.entry, record.logical, 100, &mut part)];
    reader.read(&mut reads);
    assert!(reads[0].outcome.is_ok());
    assert_eq!(part, chunks[1][100..110]);
    assert_eq!(pool.reads(), before);
    for (_, bytes) in memory.0.lock().iter_mut() {
        bytes[0] ^= 1;
    }
    for found in read_all(&reader, &entries(&summary)) {
        assert!(matches!(found, Err(ReadError::Damaged { .. })));
    }
}

#[test]
fn pages_are_read_verified_and_cached() {
    let pool = TestPool::new(Level::Raid5, 3);
    let chunks: Vec<_> = (0..4).map(|n| noise(n, 4096)).collect();
    let summary = pool.write_segment(1, 5, &chunks, false);
    let pages: Vec<Entry> = summary
        .records
        .iter()
        .map(|record| Entry {
            kind: EntryKind::Page,
            ..record.entry
        })
        .collect();
    let reader = reader(&pool, 1 << 20);
    let before = pool.reads();
    for round in 0..2 {
        for (page, chunk) in reader.read_page(&pages).into_iter().zip(&chunks) {
            assert!(page.unwrap()[..] == chunk[..]);
        }
        assert!(pool.reads() - before <= 1, "round {round}");
    }
    let bad = Entry {
        checksum: pages[0].checksum ^ 1,
        ..pages[0]
    };
    let raw = summary.records[0].entry;
    let stale = Entry {
        generation: 9,
        ..pages[1]
    };
    let found = reader.read_page(&[bad, raw, stale, pages[3]]);
    assert!(matches!(found[0], Err(ReadError::Damaged { .. })));
    assert!(matches!(found[1], Err(ReadError::Invalid { .. })));
    assert!(matches!(found[2], Err(ReadError::Stale { .. })));
    assert!(found[3].is_ok());
    // Without a directory.
    pool.directory.free(SegmentId(1));
    let placed = PlacedPage {
        entry: pages[2],
        generation: Generation(5),
        placement: placement(SegmentId(1)),
    };
    let fresh = self::reader(&pool, 0);
    assert!(fresh.read_placed(&[placed])[0].as_ref().unwrap()[..] == chunks[2][..]);
    assert!(matches!(
        fresh.read_page(&pages)[0],
        Err(ReadError::Stale { .. })
    ));
}

#[test]
fn a_batch_larger_than_the_buffers_is_read_in_pieces() {
    let pool = TestPool::new(Level::Raid5, 3);
    let chunks: Vec<_> = (0..50).map(|n| noise(n, 4096)).collect();
    let summary = pool.write_segment(1, 5, &chunks, true);
    let options = ReaderOptions {
        pool: pool.array.uuid(),
        chunk_cache_bytes: 0,
        page_cache_bytes: 0,
        buffer_bytes: 64 << 10,
    };
    let directory: Arc<dyn SegmentDirectory> = pool.directory.clone();
    let reader = ChunkReader::new(
        Arc::clone(&pool.array),
        directory,
        Arc::new(NothingUnwritten),
        options,
    );
    for (found, chunk) in read_all(&reader, &entries(&summary))
        .into_iter()
        .zip(&chunks)
    {
        assert!(found.unwrap() == *chunk);
    }
    assert_eq!(reader.buffers.lent_bytes(), 0);
}
