//! 16 bytes at a time, on x86-64 with SSSE3.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi8, _mm_and_si128, _mm_cmpgt_epi8, _mm_loadu_si128, _mm_set1_epi8,
    _mm_setzero_si128, _mm_shuffle_epi8, _mm_srli_epi16, _mm_storeu_si128, _mm_xor_si128,
};

use super::{
    super::field::{NibbleTables, REDUCTION},
    vector::{Register, kernels},
};

kernels!(
    "ssse3",
    Vector,
    "ssse3",
    std::is_x86_feature_detected!("ssse3")
);

#[derive(Clone, Copy)]
struct Vector(__m128i);

// SAFETY: loads and stores are unaligned and of 16 bytes; everything else is
// plain SSSE3.
unsafe impl Register for Vector {
    const BYTES: usize = 16;
    type Tables = (__m128i, __m128i);

    #[inline(always)]
    unsafe fn load(pointer: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes and SSSE3.
        Self(unsafe { _mm_loadu_si128(pointer.cast::<__m128i>()) })
    }

    #[inline(always)]
    unsafe fn store(self, pointer: *mut u8) {
        // SAFETY: the caller vouches for 16 writable bytes and SSSE3.
        unsafe { _mm_storeu_si128(pointer.cast::<__m128i>(), self.0) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller vouches for SSSE3.
        Self(unsafe { _mm_xor_si128(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn double(self) -> Self {
        // SAFETY: the caller vouches for SSSE3.
        unsafe {
            // Signed: a byte with the high bit is below zero.
            let high = _mm_cmpgt_epi8(_mm_setzero_si128(), self.0);
            let reduction = _mm_set1_epi8(REDUCTION.cast_signed());
            let shifted = _mm_add_epi8(self.0, self.0);
            Self(_mm_xor_si128(shifted, _mm_and_si128(high, reduction)))
        }
    }

    #[inline(always)]
    unsafe fn tables(tables: &NibbleTables) -> Self::Tables {
        // SAFETY: both tables are 16 bytes; the caller vouches for SSSE3.
        unsafe {
            let low = _mm_loadu_si128(tables.low.as_ptr().cast::<__m128i>());
            let high = _mm_loadu_si128(tables.high.as_ptr().cast::<__m128i>());
            (low, high)
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, (low, high): Self::Tables) -> Self {
        // SAFETY: the caller vouches for SSSE3.
        unsafe {
            let nibble = _mm_set1_epi8(15);
            let low_nibbles = _mm_and_si128(self.0, nibble);
            let high_nibbles = _mm_and_si128(_mm_srli_epi16::<4>(self.0), nibble);
            Self(_mm_xor_si128(
                _mm_shuffle_epi8(low, low_nibbles),
                _mm_shuffle_epi8(high, high_nibbles),
            ))
        }
    }
}
