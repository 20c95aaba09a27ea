//! P and Q parity as in Linux md's RAID 6: polynomial 0x11d, generator 2.
//!
//! `P = D0 + D1 + ...` and `Q = D0 + 2 D1 + 4 D2 + ...` over GF(256), byte by
//! byte, after H. P. Anvin, "The mathematics of RAID-6". The functions take
//! slices of equal length and any alignment; a sub-range of a stripe's units,
//! at equal offsets, is a stripe of its own.
//!
//! Every unit that can be recovered is a linear combination of those that are
//! there. So recovery is two steps: the coefficients (a few table look-ups),
//! then one pass over the bytes that multiplies and adds.

mod field;
mod kernels;
mod recover;
#[cfg(test)]
mod tests;

pub use recover::{ParityError, Unit, reconstruct};

/// The most data units of a stripe: 64 members less P and Q, and RAID 5 of 64.
pub const MAX_DATA_UNITS: usize = 63;

/// The name of the implementation in use: `"avx2"`, `"ssse3"`, `"neon"` or
/// `"scalar"`.
pub fn implementation() -> &'static str {
    kernels::best().name
}

/// Adds `source` to `target`: `target ^= source`.
///
/// # Panics
/// Where the lengths differ.
pub fn xor_into(target: &mut [u8], source: &[u8]) {
    assert_eq!(target.len(), source.len(), "units have equal lengths");
    (kernels::best().multiply_add)(target, source, 1);
}

/// Computes P of `data`.
///
/// # Panics
/// Where the lengths differ or there is no data.
pub fn generate_p(data: &[&[u8]], p: &mut [u8]) {
    check_lengths(data, p.len());
    (kernels::best().generate_p)(data, p);
}

/// Computes P and Q of `data`.
///
/// # Panics
/// Where the lengths differ or there is no data.
pub fn generate_pq(data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
    check_lengths(data, p.len());
    assert_eq!(p.len(), q.len(), "units have equal lengths");
    (kernels::best().generate_pq)(data, p, q);
}

fn check_lengths(data: &[&[u8]], length: usize) {
    assert!(
        (1..=MAX_DATA_UNITS).contains(&data.len()),
        "a stripe has 1 to 63 data units"
    );
    assert!(
        data.iter().all(|unit| unit.len() == length),
        "units have equal lengths"
    );
}
