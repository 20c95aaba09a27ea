//! Kernels against each other and against a naive model.

use proptest::prelude::*;

use super::{
    field::{generator_power, multiply},
    generate_pq,
    kernels::{Kernels, available},
    reconstruct,
    recover::{ParityError, Unit},
    xor_into,
};

/// Byte by byte from the definition.
fn naive_pq(data: &[Vec<u8>], length: usize) -> (Vec<u8>, Vec<u8>) {
    let byte = |at: usize| {
        data.iter()
            .enumerate()
            .fold((0, 0), |(p, q), (unit, bytes)| {
                (
                    p ^ bytes[at],
                    q ^ multiply(generator_power(unit), bytes[at]),
                )
            })
    };
    (0..length).map(byte).unzip()
}

fn slices(data: &[Vec<u8>]) -> Vec<&[u8]> {
    data.iter().map(Vec::as_slice).collect()
}

fn stripe(units: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Vec<u8>>> {
    (units, prop_oneof![0..80_usize, 4000..4200_usize]).prop_flat_map(|(units, length)| {
        prop::collection::vec(prop::collection::vec(any::<u8>(), length), units)
    })
}

fn for_each_kernel(mut check: impl FnMut(&Kernels)) {
    for kernels in available() {
        check(kernels);
    }
}

#[test]
fn the_processor_runs_a_vector_version_on_common_machines() {
    let names: Vec<_> = available().iter().map(|kernels| kernels.name).collect();
    assert_eq!(names.last(), Some(&"scalar"));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(
        names.contains(&"avx2"),
        std::is_x86_feature_detected!("avx2")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_kernel_computes_the_same_parity_as_the_definition(data in stripe(1..=12)) {
        let length = data[0].len();
        let (p, q) = naive_pq(&data, length);
        for_each_kernel(|kernels| {
            let (mut only_p, mut got_p, mut got_q) =
                (vec![0xaa; length], vec![0x55; length], vec![0x33; length]);
            (kernels.generate_p)(&slices(&data), &mut only_p);
            (kernels.generate_pq)(&slices(&data), &mut got_p, &mut got_q);
            assert_eq!(only_p, p, "{}", kernels.name);
            assert_eq!(got_p, p, "{}", kernels.name);
            assert_eq!(got_q, q, "{}", kernels.name);
        });
    }

    #[test]
    fn every_kernel_multiplies_and_combines_alike(
        data in stripe(1..=6),
        factors in prop::collection::vec(any::<u8>(), 6),
    ) {
        let length = data[0].len();
        let expected: Vec<u8> = (0..length)
            .map(|at| {
                let terms = data.iter().zip(&factors);
                terms.fold(0, |sum, (unit, factor)| sum ^ multiply(unit[at], *factor))
            })
            .collect();
        for_each_kernel(|kernels| {
            let terms: Vec<(u8, &[u8])> =
                factors.iter().copied().zip(slices(&data)).collect();
            let mut combined = vec![0x77; length];
            (kernels.combine)(&terms, &mut combined);
            assert_eq!(combined, expected, "{}", kernels.name);
            let mut added = vec![0; length];
            for (factor, source) in &terms {
                (kernels.multiply_add)(&mut added, source, *factor);
            }
            assert_eq!(added, expected, "{}", kernels.name);
            (kernels.combine)(&[], &mut combined);
            assert!(combined.iter().all(|byte| *byte == 0));
        });
    }

    #[test]
    fn kernels_work_at_any_alignment(
        data in stripe(3..=3),
        skip in 0..33_usize,
    ) {
        let length = data[0].len();
        let (skip, rest) = (skip.min(length), length - skip.min(length));
        let cut: Vec<Vec<u8>> = data.iter().map(|unit| unit[skip..].to_vec()).collect();
        let (p, q) = naive_pq(&cut, rest);
        for_each_kernel(|kernels| {
            let units: Vec<&[u8]> = data.iter().map(|unit| &unit[skip..]).collect();
            let (mut got_p, mut got_q) = (vec![0; length], vec![0; length]);
            (kernels.generate_pq)(&units, &mut got_p[skip..], &mut got_q[skip..]);
            assert_eq!(got_p[skip..], p);
            assert_eq!(got_q[skip..], q);
        });
    }
}

/// Random bytes that need no strategy.
fn filler(seed: usize, length: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_u32 ^ u32::try_from(seed).unwrap().wrapping_mul(0x85eb_ca6b);
    let next = || {
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        word.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A stripe of `count` data units with P and Q at the end.
fn full_stripe(count: usize, length: usize) -> Vec<Vec<u8>> {
    let mut units: Vec<Vec<u8>> = (0..count).map(|unit| filler(unit + 1, length)).collect();
    let (p, q) = naive_pq(&units, length);
    units.extend([p, q]);
    units
}

/// Recovers the units of `wanted` where those of `absent` are missing too.
fn recover(
    units: &[Vec<u8>],
    wanted: &[usize],
    absent: &[usize],
) -> Result<Vec<Vec<u8>>, ParityError> {
    let length = units[0].len();
    let mut targets = vec![vec![0xee; length]; units.len()];
    let mut places: Vec<Unit<'_>> = targets
        .iter_mut()
        .enumerate()
        .map(|(unit, target)| match unit {
            unit if wanted.contains(&unit) => Unit::Wanted(target),
            unit if absent.contains(&unit) => Unit::Absent,
            unit => Unit::Present(&units[unit]),
        })
        .collect();
    let q = places.pop().unwrap();
    let p = places.pop().unwrap();
    reconstruct(&mut places, p, q)?;
    Ok(targets)
}

#[test]
fn any_two_units_are_recovered_at_every_width() {
    for width in 3..=10 {
        let units = full_stripe(width - 2, 67);
        for first in 0..width {
            for second in 0..width {
                let both = recover(&units, &[first, second], &[]).unwrap();
                assert_eq!(both[first], units[first], "{first} and {second} of {width}");
                assert_eq!(
                    both[second], units[second],
                    "{first} and {second} of {width}"
                );
                if first != second {
                    // The second is missing, but nobody asks for it.
                    let one = recover(&units, &[first], &[second]).unwrap();
                    assert_eq!(
                        one[first], units[first],
                        "{first} without {second} of {width}"
                    );
                    assert!(one[second].iter().all(|byte| *byte == 0xee));
                }
            }
        }
    }
}

#[test]
fn raid_5_recovers_any_one_unit_without_q() {
    for width in 3..=10 {
        let units = full_stripe(width - 1, 100);
        for lost in 0..width {
            let got = recover(&units, &[lost], &[width]).unwrap();
            assert_eq!(got[lost], units[lost], "{lost} of {width}");
        }
    }
}

#[test]
fn the_widest_stripes_are_recovered() {
    for count in [62, 63] {
        let units = full_stripe(count, 33);
        for (x, y) in [(0, count - 1), (7, 8), (count - 1, count), (0, count + 1)] {
            let got = recover(&units, &[x, y], &[]).unwrap();
            assert_eq!((&got[x], &got[y]), (&units[x], &units[y]));
        }
    }
}

#[test]
fn three_missing_units_are_refused() {
    let units = full_stripe(4, 16);
    for absent in [[1, 2], [4, 5], [1, 5]] {
        let missing = recover(&units, &[0], &absent).unwrap_err();
        assert_eq!(missing, ParityError::TooManyMissing { missing: 3 });
    }
}

#[test]
fn a_part_of_a_stripe_is_a_stripe_of_its_own() {
    let units = full_stripe(5, 4096 * 3);
    let part: Vec<Vec<u8>> = units.iter().map(|unit| unit[4096..8192].to_vec()).collect();
    let got = recover(&part, &[1, 3], &[]).unwrap();
    assert_eq!(got[1], units[1][4096..8192]);
    assert_eq!(got[3], units[3][4096..8192]);
}

#[test]
#[should_panic(expected = "equal lengths")]
fn units_of_different_lengths_are_a_bug() {
    let (mut p, mut q) = (vec![0; 8], vec![0; 8]);
    generate_pq(&[&[1; 8], &[2; 7]], &mut p, &mut q);
}

#[test]
fn xor_undoes_itself() {
    let (first, second) = (filler(1, 1000), filler(2, 1000));
    let mut sum = first.clone();
    xor_into(&mut sum, &second);
    assert_ne!(sum, first);
    xor_into(&mut sum, &second);
    assert_eq!(sum, first);
}
