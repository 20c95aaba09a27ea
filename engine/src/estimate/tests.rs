//! Estimates against counts.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn of(chunk_bytes: u32, data: &[u8]) -> Estimate {
    let mut estimator = Estimator::new(chunk_bytes, ESTIMATE_MEMORY_MIN).unwrap();
    estimator.feed(data);
    estimator.estimate()
}

#[test]
fn zeroes_cost_nothing_and_duplicates_are_counted_once() {
    let unique = noise(1, 10 * 4096);
    let data = [&unique[..], &[0; 64 << 10], &unique[..], &[7; 4096]].concat();
    let found = of(4096, &data);
    assert_eq!(found.logical_bytes, 21 * 4096);
    assert_eq!(found.unique_chunks, 11);
    assert!((found.dedup_ratio - 21.0 / 11.0).abs() < 1e-9);
    assert_eq!(found.sampled_one_in, 1);
    assert_eq!((found.dedup_error, found.compression_error), (0.0, 0.0));
    // Noise is stored as it is, the last chunk in a few bytes.
    assert!((40_960..41_060).contains(&found.stored_bytes), "{found:?}");
    assert!(found.used_bytes > found.stored_bytes);
}

#[test]
fn nothing_has_ratios_of_one() {
    for data in [vec![], vec![0; 1 << 20]] {
        let found = of(8192, &data);
        assert_eq!((found.logical_bytes, found.unique_chunks), (0, 0));
        assert_eq!((found.dedup_ratio, found.compression_ratio), (1.0, 1.0));
    }
}

#[test]
fn an_odd_end_is_a_chunk_with_zeroes_behind_it() {
    let data = noise(3, 5000);
    let mut padded = data.clone();
    padded.resize(8192, 0);
    assert_eq!(of(4096, &data), of(4096, &padded));
    assert_eq!(of(4096, &data).unique_chunks, 2);
}

#[test]
fn unknown_chunk_sizes_and_too_little_memory_are_refused() {
    assert!(Estimator::new(5000, ESTIMATE_MEMORY_MIN).is_none());
    assert!(Estimator::new(4096, ESTIMATE_MEMORY_MIN - 1).is_none());
}

/// Fingerprints as BLAKE3 would give them, without its cost.
fn prefix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn a_sample_is_within_the_stated_bound_of_the_truth() {
    for distinct in [60_000_u64, 400_000, 2_000_000] {
        let mut estimator = Estimator::new(4096, ESTIMATE_MEMORY_MIN).unwrap();
        let mut true_stored = 0;
        // The first quarter comes four times, and short chunks more often.
        for round in 0..4 {
            let end = if round == 0 { distinct } else { distinct / 4 };
            for number in 0..end {
                let key = prefix(number);
                let length = 1000 + u32::try_from(number % 3000).unwrap();
                if round == 0 {
                    true_stored += u64::from(length);
                }
                estimator.chunks += 1;
                if estimator.table.wants(key) {
                    estimator.table.insert(key, length);
                }
            }
        }
        let found = estimator.estimate();
        assert!(found.sampled_one_in >= 2, "{found:?}");
        let off = |estimate: f64, truth: f64| (estimate / truth - 1.0).abs();
        let of_dedup = off(found.dedup_ratio, 1.75);
        assert!(of_dedup <= found.dedup_error, "{of_dedup}: {found:?}");
        let truth = distinct as f64 * 4096.0 / true_stored as f64;
        let of_compression = off(found.compression_ratio, truth);
        assert!(
            of_compression <= found.compression_error,
            "{of_compression}: {found:?}"
        );
        assert!(found.dedup_error < 0.03, "{found:?}");
        let bytes = estimator.table_bytes();
        assert!(bytes <= ESTIMATE_MEMORY_MIN, "{bytes}");
    }
}

impl Estimator {
    fn table_bytes(&self) -> u64 {
        self.table.bytes()
    }
}

#[test]
fn larger_chunks_are_preferred_where_smaller_ones_gain_little() {
    let one = |chunk_bytes, used_bytes| Estimate {
        used_bytes,
        ..of(chunk_bytes, &[])
    };
    let best = |estimates: &[Estimate]| best_chunk_size(estimates);
    assert_eq!(best(&[]), None);
    assert_eq!(best(&[one(4096, 100), one(16384, 101)]), Some(16384));
    assert_eq!(best(&[one(16384, 101), one(4096, 80)]), Some(4096));
    let all = [one(4096, 90), one(8192, 95), one(16384, 100)];
    assert_eq!(best(&all), Some(4096));
}

proptest! {
    #[test]
    fn small_data_is_counted_exactly(picks in proptest::collection::vec(0u8..12, 0..80)) {
        let mut data = Vec::new();
        let mut seen: HashMap<u8, ()> = HashMap::new();
        let mut mapped = 0;
        for pick in &picks {
            if *pick == 0 {
                data.extend_from_slice(&[0; 4096]);
            } else {
                seen.insert(*pick, ());
                mapped += 1;
                data.extend(noise(u64::from(*pick), 4096));
            }
        }
        let found = of(4096, &data);
        prop_assert_eq!(found.unique_chunks, seen.len() as u64);
        prop_assert_eq!(found.logical_bytes, mapped * 4096);
    }
}
