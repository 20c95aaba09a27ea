//! How fast stripes are protected and recovered, in bytes of data a second.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tessera_raid::parity::{Unit, generate_p, generate_pq, implementation, reconstruct};

const UNIT_BYTES: usize = 64 << 10;

fn unit(seed: u8) -> Vec<u8> {
    (0..UNIT_BYTES).map(|at| (at % 251) as u8 ^ seed).collect()
}

fn parity(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("parity/{}", implementation()));
    for count in [3_usize, 4, 8] {
        let data: Vec<Vec<u8>> = (0..count).map(|number| unit(number as u8 * 17)).collect();
        let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let (mut p, mut q) = (unit(0), unit(0));
        group.throughput(Throughput::Bytes((count * UNIT_BYTES) as u64));
        group.bench_function(BenchmarkId::new("p", count), |bencher| {
            bencher.iter(|| generate_p(black_box(&slices), &mut p));
        });
        group.bench_function(BenchmarkId::new("pq", count), |bencher| {
            bencher.iter(|| generate_pq(black_box(&slices), &mut p, &mut q));
        });
        let (mut first, mut second) = (unit(0), unit(0));
        group.bench_function(BenchmarkId::new("recover_one_by_p", count), |bencher| {
            bencher.iter(|| {
                let mut units: Vec<Unit<'_>> =
                    data.iter().map(|unit| Unit::Present(unit)).collect();
                units[0] = Unit::Wanted(&mut first);
                reconstruct(black_box(&mut units), Unit::Present(&p), Unit::Absent)
                    .expect("one unit is missing");
            });
        });
        group.bench_function(BenchmarkId::new("recover_two", count), |bencher| {
            bencher.iter(|| {
                let mut units: Vec<Unit<'_>> =
                    data.iter().map(|unit| Unit::Present(unit)).collect();
                units[0] = Unit::Wanted(&mut first);
                units[1] = Unit::Wanted(&mut second);
                reconstruct(black_box(&mut units), Unit::Present(&p), Unit::Present(&q))
                    .expect("two units are missing");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, parity);
criterion_main!(benches);
