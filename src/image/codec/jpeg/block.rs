//! From coefficients to samples: libjpeg's inverse transform in whole numbers ("islow"), after Loeffler, Ligtenberg and
//! Moschytz.

use std::num::Wrapping;

use super::{BLOCK, SIDE};

type Number = Wrapping<i32>;

/// Bits behind the point of the constants, and that the first pass leaves.
const BITS: usize = 13;
const LEFT: usize = 2;

const fn fixed(x: f64) -> Number {
    Wrapping((x * (1 << BITS) as f64 + 0.5) as i32)
}

const F_0_298: Number = fixed(0.298_631_336);
const F_0_390: Number = fixed(0.390_180_644);
const F_0_541: Number = fixed(0.541_196_100);
const F_0_765: Number = fixed(0.765_366_865);
const F_0_899: Number = fixed(0.899_976_223);
const F_1_175: Number = fixed(1.175_875_602);
const F_1_501: Number = fixed(1.501_321_110);
const F_1_847: Number = fixed(1.847_759_065);
const F_1_961: Number = fixed(1.961_570_560);
const F_2_053: Number = fixed(2.053_119_869);
const F_2_562: Number = fixed(2.562_915_447);
const F_3_072: Number = fixed(3.072_711_026);

/// The inverse transform, with its working memory.
pub(super) struct Idct {
    between: [Number; BLOCK],
    samples: [u8; BLOCK],
}

impl Default for Idct {
    fn default() -> Self {
        Self { between: [Wrapping(0); BLOCK], samples: [0; BLOCK] }
    }
}

impl Idct {
    /// The samples of a block, rows from the top.
    pub(super) fn samples(
        &mut self,
        coefficients: &[i16; BLOCK],
        quantization: &[u16; BLOCK],
    ) -> &[u8; BLOCK] {
        let at = |i: usize| Wrapping(i32::from(coefficients[i])) * Wrapping(i32::from(quantization[i]));
        if coefficients[1..].iter().all(|value| *value == 0) {
            let grey = descale(at(0) << LEFT, LEFT + 3);
            self.samples.fill(sample(grey));
            return &self.samples;
        }
        for x in 0..SIDE {
            let column = transform(std::array::from_fn(|y| at(y * SIDE + x)));
            for (y, value) in column.into_iter().enumerate() {
                self.between[y * SIDE + x] = descale(value, BITS - LEFT);
            }
        }
        for (row, samples) in self.between.as_chunks().0.iter().zip(self.samples.chunks_exact_mut(SIDE)) {
            for (value, to) in transform(*row).into_iter().zip(samples) {
                *to = sample(descale(value, BITS + LEFT + 3));
            }
        }
        &self.samples
    }
}

fn descale(value: Number, bits: usize) -> Number {
    (value + (Wrapping(1) << (bits - 1))) >> bits
}

fn sample(value: Number) -> u8 {
    (value.0.clamp(-128, 127) + 128) as u8
}

/// One row or column, with [`BITS`] more bits behind the point.
fn transform(x: [Number; SIDE]) -> [Number; SIDE] {
    let z1 = (x[2] + x[6]) * F_0_541;
    let (even2, even3) = (z1 - x[6] * F_1_847, z1 + x[2] * F_0_765);
    let (even0, even1) = ((x[0] + x[4]) << BITS, (x[0] - x[4]) << BITS);
    let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];

    let (z1, z2, z3, z4) = (x[7] + x[1], x[5] + x[3], x[7] + x[3], x[5] + x[1]);
    let z5 = (z3 + z4) * F_1_175;
    let (z1, z2) = (-z1 * F_0_899, -z2 * F_2_562);
    let (z3, z4) = (z5 - z3 * F_1_961, z5 - z4 * F_0_390);
    let odd = [
        x[1] * F_1_501 + z1 + z4,
        x[3] * F_3_072 + z2 + z3,
        x[5] * F_2_053 + z2 + z4,
        x[7] * F_0_298 + z1 + z3,
    ];
    let mut all = [Wrapping(0); SIDE];
    for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
        (all[i], all[SIDE - 1 - i]) = (even + odd, even - odd);
    }
    all
}
