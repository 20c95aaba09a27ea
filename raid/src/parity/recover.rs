//! Recovery of any two units of a stripe.

use super::{
    MAX_DATA_UNITS,
    field::{generator_power, inverse, multiply},
    kernels,
};

/// A unit of a stripe, as recovery sees it.
#[derive(Debug)]
pub enum Unit<'a> {
    /// It is there and right.
    Present(&'a [u8]),
    /// It is missing and to be computed into this slice.
    Wanted(&'a mut [u8]),
    /// It is missing, or not trusted, or the level has none.
    Absent,
}

/// Why nothing was recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParityError {
    /// More is missing than two parities can give back.
    #[error("{missing} units of the stripe are missing and at most 2 can be recovered")]
    TooManyMissing {
        /// How many are missing, absent parities included.
        missing: usize,
    },
}

/// Places of a stripe: data units count from 0, then come P and Q.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Data(usize),
    P,
    Q,
}

/// The units of a stripe by what is to be done with them.
struct Stripe<'s> {
    wanted: Vec<(Place, &'s mut [u8])>,
    present: Vec<(Place, &'s [u8])>,
}

impl<'s> Stripe<'s> {
    fn add(&mut self, place: Place, unit: &'s mut Unit<'_>) {
        match unit {
            Unit::Present(bytes) => self.present.push((place, bytes)),
            Unit::Wanted(bytes) => self.wanted.push((place, bytes)),
            Unit::Absent => {}
        }
    }
}

/// The coefficients of one unit as a combination of the present ones.
struct Combination {
    data: [u8; MAX_DATA_UNITS],
    p: u8,
    q: u8,
}

impl Combination {
    const ZERO: Self = Self {
        data: [0; MAX_DATA_UNITS],
        p: 0,
        q: 0,
    };

    fn add_data(&mut self, unit: usize, coefficient: u8) {
        self.data[unit] ^= coefficient;
    }

    /// Adds `factor` times another combination.
    fn add_scaled(&mut self, other: &Self, factor: u8) {
        for (target, source) in self.data.iter_mut().zip(other.data) {
            *target ^= multiply(source, factor);
        }
        self.p ^= multiply(other.p, factor);
        self.q ^= multiply(other.q, factor);
    }
}

/// Computes every wanted unit of a stripe from those present.
///
/// `data` holds the stripe's data units in order. RAID 5 passes
/// [`Unit::Absent`] for `q`. All slices have equal lengths, which may be any
/// part of the units at equal offsets. Works for every combination of at most
/// two units that are not present, an absent parity counting as one.
///
/// # Panics
/// Where the slices' lengths differ or there are no or over 63 data units.
pub fn reconstruct(
    data: &mut [Unit<'_>],
    mut p: Unit<'_>,
    mut q: Unit<'_>,
) -> Result<(), ParityError> {
    assert!(
        (1..=MAX_DATA_UNITS).contains(&data.len()),
        "a stripe has 1 to 63 data units"
    );
    let is_missing = |unit: &Unit<'_>| !matches!(unit, Unit::Present(_));
    let lost: Vec<usize> = (0..data.len())
        .filter(|unit| is_missing(&data[*unit]))
        .collect();
    let missing = lost.len() + usize::from(is_missing(&p)) + usize::from(is_missing(&q));
    if missing > 2 {
        return Err(ParityError::TooManyMissing { missing });
    }
    let (p_missing, q_missing) = (is_missing(&p), is_missing(&q));
    let count = data.len();

    let mut stripe = Stripe {
        wanted: Vec::with_capacity(2),
        present: Vec::with_capacity(count + 2),
    };
    for (unit, bytes) in data.iter_mut().enumerate() {
        stripe.add(Place::Data(unit), bytes);
    }
    stripe.add(Place::P, &mut p);
    stripe.add(Place::Q, &mut q);
    let Stripe {
        wanted,
        present: sources,
    } = stripe;
    for (place, target) in wanted {
        let combination = combine(place, count, &lost, p_missing, q_missing);
        let terms: Vec<(u8, &[u8])> = sources
            .iter()
            .map(|(place, bytes)| {
                let coefficient = match place {
                    Place::Data(unit) => combination.data[*unit],
                    Place::P => combination.p,
                    Place::Q => combination.q,
                };
                assert_eq!(bytes.len(), target.len(), "units have equal lengths");
                (coefficient, *bytes)
            })
            .filter(|(coefficient, _)| *coefficient != 0)
            .collect();
        (kernels::best().combine)(&terms, target);
    }
    Ok(())
}

/// The unit at `place` in terms of what is present. At most two units are
/// missing, `place` among them.
fn combine(
    place: Place,
    count: usize,
    lost: &[usize],
    p_missing: bool,
    q_missing: bool,
) -> Combination {
    let mut result = Combination::ZERO;
    let present = (0..count).filter(|unit| !lost.contains(unit));
    match place {
        // P is the sum of all data, a lost unit replaced by what Q says.
        Place::P => {
            present.for_each(|unit| result.add_data(unit, 1));
            for &unit in lost {
                let value = combine(Place::Data(unit), count, lost, true, q_missing);
                result.add_scaled(&value, 1);
            }
        }
        // Q is the weighted sum, a lost unit replaced by what P says.
        Place::Q => {
            present.for_each(|unit| result.add_data(unit, generator_power(unit)));
            for &unit in lost {
                let value = combine(Place::Data(unit), count, lost, p_missing, true);
                result.add_scaled(&value, generator_power(unit));
            }
        }
        Place::Data(x) => match lost.iter().copied().find(|unit| *unit != x) {
            // Dx = P + the other data.
            None if !p_missing => {
                present.for_each(|unit| result.add_data(unit, 1));
                result.p = 1;
            }
            // g^x Dx = Q + the others' weighted sum.
            None => {
                assert!(!q_missing, "two units at most are missing");
                let scale = inverse(generator_power(x));
                present.for_each(|unit| {
                    result.add_data(unit, multiply(scale, generator_power(unit)));
                });
                result.q = scale;
            }
            // With P' = Dx + Dy and Q' = g^x Dx + g^y Dy, the sums without
            // the present data: Dx = (g^y P' + Q') / (g^x + g^y). The powers
            // differ because the generator's order is 255.
            Some(y) => {
                assert!(!p_missing && !q_missing, "two units at most are missing");
                let (gx, gy) = (generator_power(x), generator_power(y));
                let scale = inverse(gx ^ gy);
                let (a, b) = (multiply(scale, gy), scale);
                present.for_each(|unit| {
                    result.add_data(unit, a ^ multiply(b, generator_power(unit)));
                });
                result.p = a;
                result.q = b;
            }
        },
    }
    result
}
