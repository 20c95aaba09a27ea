//! The index: probes of new and of known chunks, sealing, and reading.
#![allow(missing_docs)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tessera_dedup::{
    ChunkRead, ChunkReader, Entry, EntryKind, Fingerprint, FingerprintIndex, Generation, Hit,
    IndexOptions, NothingUnwritten, Owner, ReaderOptions, SegmentDirectory, SegmentFacts, Summary,
    SummaryRecord,
};
use tessera_raid::{
    Array, CreateSpec, LayoutId, Level, MemoryWitness, OpenOptions, Placement, SegmentId, Sizes,
    SlotIndex, device::sim::SimWorld,
};
use uuid::Uuid;

const SEGMENT_CHUNKS: u64 = 2000;

/// Every segment is live, in the generation after its number.
struct AllLive;

impl SegmentDirectory for AllLive {
    fn facts(&self, segment: SegmentId) -> Option<SegmentFacts> {
        Some(SegmentFacts {
            generation: Generation(u64::from(segment.0) + 1),
            placement: Placement::equal(LayoutId(0), SlotIndex(0)),
            frozen: false,
            summary: None,
        })
    }
}

fn array() -> Arc<Array> {
    let world = SimWorld::new(1);
    let paths = [PathBuf::from("disk0")];
    world.add_device(&paths[0], 64 << 20);
    let spec = CreateSpec {
        level: Level::Single,
        stripe_unit_bytes: 65536,
        members: paths.to_vec(),
        force: false,
        sizes: Sizes::default(),
        stall_limit: Duration::ZERO,
    };
    let witness = MemoryWitness::with_seed(1);
    let backend = world.backend();
    let created = Array::create(backend.clone(), &spec, b"", Box::new(witness.clone()));
    created.expect("created").close();
    let options = OpenOptions {
        lock_patience: Duration::ZERO,
        ..OpenOptions::default()
    };
    Arc::new(Array::open(backend, &paths, Box::new(witness), &options).expect("opened"))
}

fn print(n: u64) -> Fingerprint {
    Fingerprint(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn summary(pool: Uuid, segment: u32) -> Arc<Summary> {
    let generation = Generation(u64::from(segment) + 1);
    let first = u64::from(segment) * SEGMENT_CHUNKS;
    let records = (0..SEGMENT_CHUNKS)
        .map(|n| SummaryRecord {
            fingerprint: Some(print(first + n)),
            entry: Entry {
                kind: EntryKind::Raw,
                segment: SegmentId(segment),
                position: 4096 * n as u32,
                stored: 4096,
                generation: generation.low(),
                checksum: 7,
            },
            logical: 4096,
            owner: Owner::default(),
        })
        .collect();
    Arc::new(Summary {
        pool,
        segment: SegmentId(segment),
        generation,
        records,
    })
}

fn index(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let array = array();
    let pool = array.uuid();
    let options = IndexOptions {
        dir: Some(dir.path().into()),
        pool,
        memory_bytes: 64 << 20,
        disk_bytes: 0,
        dropped: false,
    };
    let index = FingerprintIndex::open(options, Arc::clone(&array)).expect("opened");
    const SEGMENTS: u32 = 500;
    let began = std::time::Instant::now();
    for segment in 0..SEGMENTS {
        index.segment_sealed(summary(pool, segment));
        index.step();
    }
    index.flush();
    while index.step() {}
    let keys = u64::from(SEGMENTS) * SEGMENT_CHUNKS;
    println!(
        "sealing {keys} chunks, hashes made as well: {:?}",
        began.elapsed()
    );
    println!(
        "memory {} KiB, entries {}",
        index.memory_bytes() >> 10,
        index.entries()
    );

    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(256));
    let mut from = 1 << 40;
    group.bench_function("probe_256_new", |b| {
        b.iter_batched(
            || {
                from += 256;
                (from..from + 256).map(print).collect::<Vec<_>>()
            },
            |prints| index.probe(&prints, &AllLive, &mut [None; 256]),
            BatchSize::SmallInput,
        );
    });
    let late = keys - SEGMENT_CHUNKS;
    let known: Vec<Fingerprint> = (late..late + 256).map(print).collect();
    group.bench_function("probe_256_known_cached", |b| {
        b.iter(|| {
            let mut found = [None; 256];
            index.probe(&known, &AllLive, &mut found);
            assert!(found.iter().all(Option::is_some));
        });
    });
    // Spread over old segments; no summary can be loaded, so this is the
    // database alone.
    let mut at = 0;
    group.bench_function("probe_256_in_database", |b| {
        b.iter_batched(
            || {
                at = (at + 7919) % (keys / 2);
                (0..256)
                    .map(|n| print((at + n * 1009) % (keys / 2)))
                    .collect::<Vec<_>>()
            },
            |prints| index.probe(&prints, &AllLive, &mut [None; 256]),
            BatchSize::SmallInput,
        );
    });
    group.throughput(Throughput::Elements(1));
    let mut n = 0;
    group.bench_function("fresh_insert_and_get", |b| {
        b.iter_batched(
            || {
                n += 1;
                print((1 << 50) + n % 1000)
            },
            |print| {
                let entry = Entry {
                    segment: SegmentId(9),
                    ..Entry::HOLE
                };
                let hit = Hit {
                    entry,
                    generation: Generation(10),
                    logical: 4096,
                };
                index.fresh_insert(print, hit);
                index.fresh_get(&print, &AllLive)
            },
            BatchSize::SmallInput,
        );
    });
    let mut segment = SEGMENTS;
    group.bench_function("seal_2000_chunks", |b| {
        b.iter_batched(
            || {
                segment += 1;
                summary(pool, segment)
            },
            |summary| {
                index.segment_sealed(summary);
                index.step()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn reader(criterion: &mut Criterion) {
    let array = array();
    let options = ReaderOptions {
        pool: array.uuid(),
        chunk_cache_bytes: 64 << 20,
        page_cache_bytes: 1 << 20,
        buffer_bytes: 8 << 20,
    };
    let reader = ChunkReader::new(
        Arc::clone(&array),
        Arc::new(AllLive),
        Arc::new(NothingUnwritten),
        options,
    );
    // Zeroes are what a new pool holds; the checksum is that of 4 KiB of them.
    let checksum = crc32c::crc32c(&[0; 4096]);
    let entry = |n: u32| Entry {
        kind: EntryKind::Raw,
        segment: SegmentId(0),
        position: n % 1000 * 4096,
        stored: 4096,
        generation: 1,
        checksum,
    };
    let mut target = vec![1; 4096];
    for n in 0..1000 {
        let mut reads = [ChunkRead::new(entry(n), 4096, 0, &mut target)];
        reader.read(&mut reads);
        assert!(reads[0].outcome.is_ok());
    }
    let mut group = criterion.benchmark_group("reader");
    group.throughput(Throughput::Elements(1));
    let mut n = 0;
    group.bench_function("cached_4096", |b| {
        b.iter(|| {
            n += 7;
            reader.read(&mut [ChunkRead::new(entry(n), 4096, 0, &mut target)]);
        });
    });
    let mut large = vec![0; 1 << 20];
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("simulated_1m_of_4096", |b| {
        b.iter(|| {
            let mut reads: Vec<_> = (0u32..)
                .zip(large.chunks_mut(4096))
                .map(|(n, target)| {
                    // Cached ones are elsewhere.
                    let entry = Entry {
                        position: (n + 1200) * 4096,
                        ..entry(0)
                    };
                    ChunkRead::new(entry, 4096, 0, target)
                })
                .collect();
            reader.read(&mut reads);
            assert!(reads[0].outcome.is_ok());
        });
    });
    group.finish();
}

criterion_group!(benches, index, reader);
criterion_main!(benches);
