//! Arithmetic of GF(256) with the polynomial x^8 + x^4 + x^3 + x^2 + 1.

/// `x^8` reduced: the low byte of 0x11d.
pub(super) const REDUCTION: u8 = 0x1d;

/// Powers of the generator 2, twice over so that sums of two logarithms need
/// no reduction.
static EXP: [u8; 510] = exp_table();
static LOG: [u8; 256] = log_table();

/// Multiplies by 2.
pub(super) const fn double(value: u8) -> u8 {
    (value << 1) ^ (REDUCTION & (value >> 7).wrapping_neg())
}

const fn exp_table() -> [u8; 510] {
    let mut table = [0; 510];
    let mut value = 1;
    let mut power = 0;
    while power < 255 {
        table[power] = value;
        table[power + 255] = value;
        value = double(value);
        power += 1;
    }
    table
}

const fn log_table() -> [u8; 256] {
    let mut table = [0; 256];
    let exp = exp_table();
    let mut power = 0;
    while power < 255 {
        // The power is below 255.
        table[exp[power] as usize] = power as u8;
        power += 1;
    }
    table
}

/// The generator to a power below 255.
pub(super) fn generator_power(power: usize) -> u8 {
    EXP[power]
}

/// The product.
pub(super) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)])]
}

/// The inverse of a value that is not zero.
pub(super) fn inverse(value: u8) -> u8 {
    assert_ne!(value, 0, "zero has no inverse");
    EXP[255 - usize::from(LOG[usize::from(value)])]
}

/// Products of one factor with every low and every high nibble: any product
/// is the sum of one of each.
#[derive(Clone, Copy)]
pub(super) struct NibbleTables {
    pub(super) low: [u8; 16],
    pub(super) high: [u8; 16],
}

impl NibbleTables {
    /// The tables of `factor`.
    pub(super) fn new(factor: u8) -> Self {
        let (mut low, mut high) = ([0; 16], [0; 16]);
        for (nibble, value) in (0u8..16).enumerate() {
            low[nibble] = multiply(factor, value);
            high[nibble] = multiply(factor, value << 4);
        }
        Self { low, high }
    }

    /// The factor times `value`.
    pub(super) fn product(&self, value: u8) -> u8 {
        self.low[usize::from(value & 15)] ^ self.high[usize::from(value >> 4)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by the book: shift and add, then reduce.
    fn naive(a: u8, b: u8) -> u8 {
        let mut product = 0u16;
        for bit in 0..8 {
            if b >> bit & 1 == 1 {
                product ^= u16::from(a) << bit;
            }
        }
        for bit in (8..15).rev() {
            if product >> bit & 1 == 1 {
                product ^= 0x11d << (bit - 8);
            }
        }
        u8::try_from(product).unwrap()
    }

    #[test]
    fn products_and_inverses_match_polynomial_arithmetic() {
        for a in 0..=255 {
            let tables = NibbleTables::new(a);
            for b in 0..=255 {
                assert_eq!(multiply(a, b), naive(a, b));
                assert_eq!(tables.product(b), naive(a, b));
            }
            assert_eq!(double(a), naive(a, 2));
            if a != 0 {
                assert_eq!(naive(a, inverse(a)), 1);
            }
        }
    }
}
