//! The loops over bytes, in as many versions as there are instruction sets.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod ssse3;
mod vector;

use std::sync::LazyLock;

/// A factor and what it multiplies.
pub(super) type Term<'a> = (u8, &'a [u8]);

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
    pub(super) combine: fn(terms: &[Term<'_>], target: &mut [u8]),
}

/// Every implementation that this processor runs, the fastest first.
pub(super) fn available() -> Vec<&'static Kernels> {
    let mut all: Vec<&'static Kernels> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(avx2::detect());
        all.extend(ssse3::detect());
    }
    #[cfg(target_arch = "aarch64")]
    all.extend(neon::detect());
    all.push(&scalar::KERNELS);
    all
}

/// The fastest implementation that this processor runs.
pub(super) fn best() -> &'static Kernels {
    static BEST: LazyLock<&'static Kernels> = LazyLock::new(|| available()[0]);
    &BEST
}
