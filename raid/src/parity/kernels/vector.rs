//! The vector kernels, written once over an abstract register.
//!
//! A product with a constant is two table look-ups, one a nibble: a byte
//! shuffle is sixteen look-ups at once (Plank, Greenan, Miller: "Screaming
//! fast Galois field arithmetic using Intel SIMD instructions", 2013). Q needs
//! only doubling: shift left, and reduce those bytes whose high bit was set.
//!
//! The functions are `inline(always)`, so that each becomes part of a caller
//! compiled for its instruction set. No closure touches a register: closures
//! do not inherit the instruction set, and recovery of two units was ten times
//! slower with one. Tails shorter than a register are left to the scalar
//! version.
#![allow(unsafe_code)]

use super::{super::field::NibbleTables, scalar};

/// A register of an instruction set.
///
/// # Safety
/// Every function may only be called where the processor has the set.
/// `load` and `store` reach exactly `BYTES` bytes behind the pointer, of any
/// alignment.
pub(super) unsafe trait Register: Copy {
    /// Bytes it holds.
    const BYTES: usize;
    /// The tables of one factor, in registers.
    type Tables: Copy;

    unsafe fn load(pointer: *const u8) -> Self;
    unsafe fn store(self, pointer: *mut u8);
    unsafe fn xor(self, other: Self) -> Self;
    /// Every byte doubled in GF(256).
    unsafe fn double(self) -> Self;
    unsafe fn tables(tables: &NibbleTables) -> Self::Tables;
    /// Every byte multiplied in GF(256).
    unsafe fn multiply(self, tables: Self::Tables) -> Self;
}

/// # Safety
/// The processor has the instruction set of `R`; the slices are equally long.
#[inline(always)]
pub(super) unsafe fn multiply_add<R: Register>(target: &mut [u8], source: &[u8], factor: u8) {
    let whole = target.len() - target.len() % R::BYTES;
    // SAFETY: `at + R::BYTES <= whole <= len` for both slices.
    unsafe {
        if factor == 1 {
            for at in (0..whole).step_by(R::BYTES) {
                let place = target.as_mut_ptr().add(at);
                R::load(place)
                    .xor(R::load(source.as_ptr().add(at)))
                    .store(place);
            }
        } else {
            let tables = R::tables(&NibbleTables::new(factor));
            for at in (0..whole).step_by(R::BYTES) {
                let place = target.as_mut_ptr().add(at);
                let product = R::load(source.as_ptr().add(at)).multiply(tables);
                R::load(place).xor(product).store(place);
            }
        }
    }
    scalar::multiply_add(&mut target[whole..], &source[whole..], factor);
}

/// # Safety
/// As [`multiply_add`]; there is at least one data unit.
#[inline(always)]
pub(super) unsafe fn generate_p<R: Register>(data: &[&[u8]], p: &mut [u8]) {
    let step = 4 * R::BYTES;
    let whole = p.len() - p.len() % step;
    // SAFETY: `at + 4 * R::BYTES <= whole <= len` for all slices.
    unsafe {
        for at in (0..whole).step_by(step) {
            let unit = data[0].as_ptr().add(at);
            let mut sums = [
                R::load(unit),
                R::load(unit.add(R::BYTES)),
                R::load(unit.add(2 * R::BYTES)),
                R::load(unit.add(3 * R::BYTES)),
            ];
            for unit in &data[1..] {
                let unit = unit.as_ptr().add(at);
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.xor(R::load(unit.add(lane * R::BYTES)));
                }
            }
            let place = p.as_mut_ptr().add(at);
            for (lane, sum) in sums.into_iter().enumerate() {
                sum.store(place.add(lane * R::BYTES));
            }
        }
    }
    tails(data, whole, |data| {
        scalar::generate_p(data, &mut p[whole..])
    });
}

/// # Safety
/// As [`generate_p`].
#[inline(always)]
pub(super) unsafe fn generate_pq<R: Register>(data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
    let step = 2 * R::BYTES;
    let whole = p.len() - p.len() % step;
    let (last, others) = data.split_last().expect("at least one data unit");
    // SAFETY: `at + 2 * R::BYTES <= whole <= len` for all slices.
    unsafe {
        for at in (0..whole).step_by(step) {
            let unit = last.as_ptr().add(at);
            let (mut p0, mut p1) = (R::load(unit), R::load(unit.add(R::BYTES)));
            let (mut q0, mut q1) = (p0, p1);
            for unit in others.iter().rev() {
                let unit = unit.as_ptr().add(at);
                let (d0, d1) = (R::load(unit), R::load(unit.add(R::BYTES)));
                (p0, p1) = (p0.xor(d0), p1.xor(d1));
                (q0, q1) = (q0.double().xor(d0), q1.double().xor(d1));
            }
            let (p, q) = (p.as_mut_ptr().add(at), q.as_mut_ptr().add(at));
            p0.store(p);
            p1.store(p.add(R::BYTES));
            q0.store(q);
            q1.store(q.add(R::BYTES));
        }
    }
    tails(data, whole, |data| {
        scalar::generate_pq(data, &mut p[whole..], &mut q[whole..])
    });
}

/// # Safety
/// As [`multiply_add`], for every source.
#[inline(always)]
pub(super) unsafe fn combine<R: Register>(terms: &[(u8, &[u8])], target: &mut [u8]) {
    let step = 4 * R::BYTES;
    let whole = target.len() - target.len() % step;
    let plain = terms.iter().all(|(factor, _)| *factor == 1);
    if plain && !terms.is_empty() {
        let units: Vec<&[u8]> = terms.iter().map(|(_, source)| *source).collect();
        // SAFETY: the caller's promise.
        return unsafe { generate_p::<R>(&units, target) };
    }
    // SAFETY: `at + 4 * R::BYTES <= whole <= len` for all slices.
    unsafe {
        let mut prepared: Vec<(R::Tables, *const u8)> = Vec::with_capacity(terms.len());
        for (factor, source) in terms {
            prepared.push((R::tables(&NibbleTables::new(*factor)), source.as_ptr()));
        }
        let Some(((first_tables, first), others)) = prepared.split_first() else {
            return target.fill(0);
        };
        for at in (0..whole).step_by(step) {
            let unit = first.add(at);
            let mut sums = [
                R::load(unit).multiply(*first_tables),
                R::load(unit.add(R::BYTES)).multiply(*first_tables),
                R::load(unit.add(2 * R::BYTES)).multiply(*first_tables),
                R::load(unit.add(3 * R::BYTES)).multiply(*first_tables),
            ];
            for (tables, source) in others {
                let unit = source.add(at);
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.xor(R::load(unit.add(lane * R::BYTES)).multiply(*tables));
                }
            }
            let place = target.as_mut_ptr().add(at);
            for (lane, sum) in sums.into_iter().enumerate() {
                sum.store(place.add(lane * R::BYTES));
            }
        }
    }
    if whole < target.len() {
        let rest: Vec<(u8, &[u8])> = terms
            .iter()
            .map(|(factor, source)| (*factor, &source[whole..]))
            .collect();
        scalar::combine(&rest, &mut target[whole..]);
    }
}

/// Calls `finish` with what is left of each unit from `whole` on, if any.
#[inline(always)]
fn tails(data: &[&[u8]], whole: usize, finish: impl FnOnce(&[&[u8]])) {
    if data.first().is_some_and(|unit| unit.len() > whole) {
        let rest: Vec<&[u8]> = data.iter().map(|unit| &unit[whole..]).collect();
        finish(&rest);
    }
}

/// The kernels of one instruction set: each function of this module compiled
/// with its target features, behind a detection at run time.
macro_rules! kernels {
    ($name:literal, $register:ty, $features:literal, $detected:expr) => {
        use super::Kernels;

        /// The kernels, where the processor runs them.
        pub(super) fn detect() -> Option<&'static Kernels> {
            // All that may hand out the functions below.
            ($detected).then_some(&KERNELS)
        }

        static KERNELS: Kernels = Kernels {
            name: $name,
            multiply_add: |target, source, factor| {
                // SAFETY: `detect` saw the instruction set.
                unsafe { multiply_add(target, source, factor) }
            },
            generate_p: |data, p| {
                // SAFETY: `detect` saw the instruction set.
                unsafe { generate_p(data, p) }
            },
            generate_pq: |data, p, q| {
                // SAFETY: `detect` saw the instruction set.
                unsafe { generate_pq(data, p, q) }
            },
            combine: |terms, target| {
                // SAFETY: `detect` saw the instruction set.
                unsafe { combine(terms, target) }
            },
        };

        #[target_feature(enable = $features)]
        fn multiply_add(target: &mut [u8], source: &[u8], factor: u8) {
            // SAFETY: compiled for the set, called where it exists.
            unsafe { super::vector::multiply_add::<$register>(target, source, factor) }
        }

        #[target_feature(enable = $features)]
        fn generate_p(data: &[&[u8]], p: &mut [u8]) {
            // SAFETY: as above.
            unsafe { super::vector::generate_p::<$register>(data, p) }
        }

        #[target_feature(enable = $features)]
        fn generate_pq(data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
            // SAFETY: as above.
            unsafe { super::vector::generate_pq::<$register>(data, p, q) }
        }

        #[target_feature(enable = $features)]
        fn combine(terms: &[(u8, &[u8])], target: &mut [u8]) {
            // SAFETY: as above.
            unsafe { super::vector::combine::<$register>(terms, target) }
        }
    };
}
pub(super) use kernels;
