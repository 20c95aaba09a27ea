//! An estimate is what a pool then makes of the same data.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    noise,
    pools::request,
    world::{Scale, World},
};
use tessera_engine::{
    api::{Compression, DedupMode, VolumeSpec},
    disk::Operation,
    estimate::{ESTIMATE_MEMORY_MIN, Estimator},
};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 65536,
    segment_bytes: 1 << 20,
    segments: 64,
    journal_bytes: 4 << 20,
};
const IMAGE_BYTES: usize = 6 << 20;

/// Something like a disk image: text, binaries, free space, copies.
fn image(seed: u64) -> Vec<u8> {
    let mut rng = common::Rng::new(seed);
    let mut data = Vec::with_capacity(IMAGE_BYTES + (1 << 18));
    while data.len() < IMAGE_BYTES {
        let length = usize::try_from(4096 * (1 + rng.below(24))).unwrap();
        let piece = match rng.below(6) {
            0 => vec![0; length],
            // The same in every image.
            1 => noise(rng.below(20), length),
            2 if data.len() > length => {
                let at = usize::try_from(rng.below((data.len() - length) as u64)).unwrap() / 4096;
                data[at * 4096..at * 4096 + length].to_vec()
            }
            3 => (0..length / 16)
                .flat_map(|line| format!("line {:<10}\n", seed + line as u64 * 7).into_bytes())
                .collect(),
            _ => {
                let mut half = noise(rng.next(), length / 2);
                half.resize(length, 0x20);
                half
            }
        };
        data.extend(piece);
        data.truncate(data.len() / 4096 * 4096);
    }
    data.truncate(IMAGE_BYTES);
    data
}

#[test]
fn an_estimate_is_what_a_pool_makes_of_the_data() {
    for chunk_bytes in [4096, 16384, 65536] {
        // A compressor belongs to a thread and remembers what it saw.
        let compared = std::thread::spawn(move || compare(chunk_bytes));
        compared.join().unwrap();
    }
}

fn compare(chunk_bytes: u32) {
    let images = [image(1), image(2), image(1)];
    let mut estimator = Estimator::new(chunk_bytes, ESTIMATE_MEMORY_MIN).unwrap();
    let world = World::create(Level::Single, 1, SCALE, 1);
    let pool = world.open().unwrap();
    for (number, data) in images.iter().enumerate() {
        let name = format!("vm{number}");
        let spec = VolumeSpec {
            name: name.clone(),
            size_bytes: IMAGE_BYTES as u64,
            chunk_bytes,
            dedup: DedupMode::Inline,
            compression: Compression::Lz4,
        };
        pool.create_volume(&spec).unwrap();
        for (part, data) in (0..).step_by(1 << 20).zip(data.chunks(1 << 20)) {
            estimator.feed(data);
            let operation = Operation::Write { offset: part, data };
            request(&pool, &name, operation).unwrap();
        }
    }
    pool.flush().unwrap();
    pool.checkpoint().unwrap();
    let (status, found) = (pool.status(), estimator.estimate());
    let context = format!("{chunk_bytes}: {found:?} {status:?}");
    assert_eq!(found.sampled_one_in, 1, "{context}");
    assert_eq!(found.logical_bytes, status.logical_bytes, "{context}");
    assert_eq!(found.unique_bytes, status.unique_bytes, "{context}");
    assert!(found.dedup_ratio > 1.4, "{context}");
    let near = |estimate: f64, truth: f64| (estimate / truth - 1.0).abs() < 0.01;
    assert!(near(found.dedup_ratio, status.dedup_ratio), "{context}");
    assert!(
        near(found.compression_ratio, status.compression_ratio),
        "{context}"
    );
    let segments = status.segments;
    let taken = (segments.open + segments.sealed) * segments.segment_bytes;
    // Segments are taken whole, two are open, and checkpoints have pages.
    assert!(found.used_bytes <= taken, "{context}");
    assert!(found.used_bytes + (5 << 20) > taken, "{context}");
}
