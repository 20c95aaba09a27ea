//! 32 bytes at a time, on x86-64 with AVX2.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi8, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_cmpgt_epi8, _mm256_loadu_si256, _mm256_set1_epi8,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_storeu_si256,
    _mm256_xor_si256,
};

use super::{
    super::field::{NibbleTables, REDUCTION},
    vector::{Register, kernels},
};

kernels!(
    "avx2",
    Vector,
    "avx2",
    std::is_x86_feature_detected!("avx2")
);

#[derive(Clone, Copy)]
struct Vector(__m256i);

// SAFETY: loads and stores are unaligned and of 32 bytes; everything else is
// plain AVX2.
unsafe impl Register for Vector {
    const BYTES: usize = 32;
    type Tables = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn load(pointer: *const u8) -> Self {
        // SAFETY: the caller vouches for 32 readable bytes and AVX2.
        Self(unsafe { _mm256_loadu_si256(pointer.cast::<__m256i>()) })
    }

    #[inline(always)]
    unsafe fn store(self, pointer: *mut u8) {
        // SAFETY: the caller vouches for 32 writable bytes and AVX2.
        unsafe { _mm256_storeu_si256(pointer.cast::<__m256i>(), self.0) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller vouches for AVX2.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn double(self) -> Self {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            // Signed: a byte with the high bit is below zero.
            let high = _mm256_cmpgt_epi8(_mm256_setzero_si256(), self.0);
            let reduction = _mm256_set1_epi8(REDUCTION.cast_signed());
            let shifted = _mm256_add_epi8(self.0, self.0);
            Self(_mm256_xor_si256(shifted, _mm256_and_si256(high, reduction)))
        }
    }

    #[inline(always)]
    unsafe fn tables(tables: &NibbleTables) -> Self::Tables {
        // SAFETY: both tables are 16 bytes; the caller vouches for AVX2.
        unsafe {
            let low = _mm_loadu_si128(tables.low.as_ptr().cast::<__m128i>());
            let high = _mm_loadu_si128(tables.high.as_ptr().cast::<__m128i>());
            (
                _mm256_broadcastsi128_si256(low),
                _mm256_broadcastsi128_si256(high),
            )
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, (low, high): Self::Tables) -> Self {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let nibble = _mm256_set1_epi8(15);
            let low_nibbles = _mm256_and_si256(self.0, nibble);
            let high_nibbles = _mm256_and_si256(_mm256_srli_epi16::<4>(self.0), nibble);
            Self(_mm256_xor_si256(
                _mm256_shuffle_epi8(low, low_nibbles),
                _mm256_shuffle_epi8(high, high_nibbles),
            ))
        }
    }
}
