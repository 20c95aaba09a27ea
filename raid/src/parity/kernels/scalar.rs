//! The reference: portable, eight bytes at a time where that is simple.
//!
//! The vector versions call it for their tails, and the tests compare them
//! with it.

use super::{super::field::NibbleTables, Kernels};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    multiply_add,
    generate_p,
    generate_pq,
    combine,
};

/// Bytes handled at a time, so that targets stay in the first-level cache.
const STEP_BYTES: usize = 2048;

pub(super) fn xor(target: &mut [u8], source: &[u8]) {
    let (target_words, target_tail) = target.as_chunks_mut::<8>();
    let (source_words, source_tail) = source.as_chunks::<8>();
    for (target, source) in target_words.iter_mut().zip(source_words) {
        *target = (u64::from_ne_bytes(*target) ^ u64::from_ne_bytes(*source)).to_ne_bytes();
    }
    for (target, source) in target_tail.iter_mut().zip(source_tail) {
        *target ^= source;
    }
}

pub(super) fn multiply_add(target: &mut [u8], source: &[u8], factor: u8) {
    match factor {
        0 => {}
        1 => xor(target, source),
        _ => {
            let tables = NibbleTables::new(factor);
            for (target, source) in target.iter_mut().zip(source) {
                *target ^= tables.product(*source);
            }
        }
    }
}

/// Doubles eight field elements at once: shifts each byte and reduces those
/// whose high bit falls out.
fn double_word(word: u64) -> u64 {
    const LOW_SEVEN: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    const ONES: u64 = 0x0101_0101_0101_0101;
    let high_bits = word >> 7 & ONES;
    // Each byte of the product is 0 or 0x1d: nothing carries over.
    ((word & LOW_SEVEN) << 1) ^ (high_bits * 0x1d)
}

fn double_in_place(target: &mut [u8]) {
    let (words, tail) = target.as_chunks_mut::<8>();
    for word in words {
        *word = double_word(u64::from_ne_bytes(*word)).to_ne_bytes();
    }
    for byte in tail {
        *byte = super::super::field::double(*byte);
    }
}

pub(super) fn generate_p(data: &[&[u8]], p: &mut [u8]) {
    for (step, p) in p.chunks_mut(STEP_BYTES).enumerate() {
        let range = step * STEP_BYTES..step * STEP_BYTES + p.len();
        p.copy_from_slice(&data[0][range.clone()]);
        for unit in &data[1..] {
            xor(p, &unit[range.clone()]);
        }
    }
}

/// Horner's rule from the last unit down: `q = 2 q + d`.
pub(super) fn generate_pq(data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
    let (last, others) = data.split_last().expect("at least one data unit");
    for (step, (p, q)) in p
        .chunks_mut(STEP_BYTES)
        .zip(q.chunks_mut(STEP_BYTES))
        .enumerate()
    {
        let range = step * STEP_BYTES..step * STEP_BYTES + p.len();
        p.copy_from_slice(&last[range.clone()]);
        q.copy_from_slice(&last[range.clone()]);
        for unit in others.iter().rev() {
            double_in_place(q);
            xor(p, &unit[range.clone()]);
            xor(q, &unit[range.clone()]);
        }
    }
}

pub(super) fn combine(terms: &[(u8, &[u8])], target: &mut [u8]) {
    target.fill(0);
    for (factor, source) in terms {
        multiply_add(target, source, *factor);
    }
}
