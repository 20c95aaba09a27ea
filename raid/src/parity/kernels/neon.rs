//! 16 bytes at a time, on 64-bit ARM.
#![allow(unsafe_code)]

use std::arch::aarch64::{
    uint8x16_t, vandq_u8, vcltzq_s8, vdupq_n_u8, veorq_u8, vld1q_u8, vqtbl1q_u8,
    vreinterpretq_s8_u8, vshlq_n_u8, vshrq_n_u8, vst1q_u8,
};

use super::{
    super::field::{NibbleTables, REDUCTION},
    vector::{Register, kernels},
};

kernels!(
    "neon",
    Vector,
    "neon",
    std::arch::is_aarch64_feature_detected!("neon")
);

#[derive(Clone, Copy)]
struct Vector(uint8x16_t);

// SAFETY: loads and stores are unaligned and of 16 bytes; everything else is
// plain NEON.
unsafe impl Register for Vector {
    const BYTES: usize = 16;
    type Tables = (uint8x16_t, uint8x16_t);

    #[inline(always)]
    unsafe fn load(pointer: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes and NEON.
        Self(unsafe { vld1q_u8(pointer) })
    }

    #[inline(always)]
    unsafe fn store(self, pointer: *mut u8) {
        // SAFETY: the caller vouches for 16 writable bytes and NEON.
        unsafe { vst1q_u8(pointer, self.0) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: the caller vouches for NEON.
        Self(unsafe { veorq_u8(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn double(self) -> Self {
        // SAFETY: the caller vouches for NEON.
        unsafe {
            let high = vcltzq_s8(vreinterpretq_s8_u8(self.0));
            let reduction = vandq_u8(high, vdupq_n_u8(REDUCTION));
            Self(veorq_u8(vshlq_n_u8::<1>(self.0), reduction))
        }
    }

    #[inline(always)]
    unsafe fn tables(tables: &NibbleTables) -> Self::Tables {
        // SAFETY: both tables are 16 bytes; the caller vouches for NEON.
        unsafe {
            (
                vld1q_u8(tables.low.as_ptr()),
                vld1q_u8(tables.high.as_ptr()),
            )
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, (low, high): Self::Tables) -> Self {
        // SAFETY: the caller vouches for NEON.
        unsafe {
            let low_nibbles = vandq_u8(self.0, vdupq_n_u8(15));
            let high_nibbles = vshrq_n_u8::<4>(self.0);
            Self(veorq_u8(
                vqtbl1q_u8(low, low_nibbles),
                vqtbl1q_u8(high, high_nibbles),
            ))
        }
    }
}
