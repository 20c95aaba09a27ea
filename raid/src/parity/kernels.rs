//! The loops over bytes, in as many versions as there are instruction sets.

mod scalar;

/// One implementation. All slices of a call have equal lengths.
pub(super) struct Kernels {
    /// What users see.
    pub(super) name: &'static str,
    /// `target += factor * source`.
    pub(super) multiply_add: fn(target: &mut [u8], source: &[u8], factor: u8),
    /// The XOR of at least one data unit.
    pub(super) generate_p: fn(data: &[&[u8]], p: &mut [u8]),
    /// P and Q of at least one data unit.
    pub(super) generate_pq: fn(data: &[&[u8]], p: &mut [u8], q: &mut [u8]),
    /// `target = sum of factor * source`; zeroes where there is no term.
    pub(super) combine: fn(terms: &[(u8, &[u8])], target: &mut [u8]),
}

/// The fastest implementation that this processor runs.
pub(super) fn best() -> &'static Kernels {
    &scalar::KERNELS
}
