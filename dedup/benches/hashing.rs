//! Fingerprints: one chunk at a time against several side by side.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tessera_dedup::{fingerprint, fingerprint_many, is_zero};

fn bytes(length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

fn hashing(criterion: &mut Criterion) {
    let data = bytes(1 << 20);
    let mut group = criterion.benchmark_group("hashing");
    group.throughput(Throughput::Bytes(data.len() as u64));
    for chunk in [4096, 8192, 16384, 65536] {
        let chunks: Vec<&[u8]> = data.chunks(chunk).collect();
        group.bench_with_input(
            BenchmarkId::new("one_by_one", chunk),
            &chunks,
            |b, chunks| {
                b.iter(|| {
                    chunks.iter().for_each(|chunk| {
                        black_box(fingerprint(chunk));
                    })
                });
            },
        );
        group.bench_with_input(
            BenchmarkId::new("side_by_side", chunk),
            &chunks,
            |b, chunks| {
                let mut out = Vec::new();
                b.iter(|| fingerprint_many(black_box(chunks), &mut out));
            },
        );
    }
    for count in [2, 4, 8] {
        let chunks: Vec<&[u8]> = data.chunks(4096).take(count).collect();
        group.throughput(Throughput::Bytes(count as u64 * 4096));
        group.bench_with_input(BenchmarkId::new("batch_of", count), &chunks, |b, chunks| {
            let mut out = Vec::new();
            b.iter(|| fingerprint_many(black_box(chunks), &mut out));
        });
    }
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("crc32c_4096", |b| {
        b.iter(|| {
            data.chunks(4096).for_each(|chunk| {
                black_box(crc32c::crc32c(chunk));
            })
        });
    });
    let zeroes = vec![0; 1 << 20];
    group.bench_function("is_zero_4096_of_zeroes", |b| {
        b.iter(|| zeroes.chunks(4096).all(|chunk| is_zero(black_box(chunk))));
    });
    group.finish();
}

criterion_group!(benches, hashing);
criterion_main!(benches);
