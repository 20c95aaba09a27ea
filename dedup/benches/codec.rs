//! Compression, decompression and summaries.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tessera_dedup::{
    Compressor, Entry, EntryKind, Fingerprint, Generation, Owner, Summary, SummaryRecord,
    decompress, summary,
};
use tessera_raid::SegmentId;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// About half compressible.
fn mixed(length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for line in 0u64.. {
        if out.len() >= length {
            break;
        }
        out.extend_from_slice(format!("member {line} is online; ").as_bytes());
        out.extend_from_slice(&noise(line, 24));
    }
    out.truncate(length);
    out
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes(1 << 20));
    for (name, data) in [("random", noise(1, 1 << 20)), ("mixed", mixed(1 << 20))] {
        group.bench_function(format!("compress_4096_{name}"), |b| {
            let mut compressor = Compressor::new();
            b.iter(|| {
                let chunks = black_box(&data).chunks(4096);
                chunks
                    .filter(|chunk| compressor.compress(chunk).is_some())
                    .count()
            });
        });
    }
    let mut compressor = Compressor::new();
    let data = mixed(4096);
    let stored = compressor.compress(&data).expect("compressible").to_vec();
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("decompress_4096", |b| {
        let mut target = vec![0; 4096];
        b.iter(|| decompress(black_box(&stored), EntryKind::Lz4, &mut target));
    });
    let records: Vec<SummaryRecord> = (0..2000)
        .map(|n| SummaryRecord {
            fingerprint: Some(Fingerprint(noise(n, 32).try_into().expect("32 bytes"))),
            entry: Entry {
                kind: EntryKind::Raw,
                segment: SegmentId(1),
                position: 4096 * n as u32,
                stored: 4096,
                generation: 1,
                checksum: 7,
            },
            logical: 4096,
            owner: Owner::default(),
        })
        .collect();
    let whole = Summary {
        pool: uuid::Uuid::nil(),
        segment: SegmentId(1),
        generation: Generation(1),
        records,
    };
    let encoded = summary::encode_blocks(&whole);
    group.throughput(Throughput::Elements(2000));
    group.bench_function("summary_encode_2000", |b| {
        b.iter(|| summary::encode_blocks(black_box(&whole)));
    });
    group.bench_function("summary_decode_2000", |b| {
        b.iter(|| summary::decode_blocks(black_box(&encoded), &whole.id()));
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
