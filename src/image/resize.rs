//! Resizing as Pillow 13.0.0 does it: separable windows, one axis after the other, eight bits between the two passes.

use std::f64::consts::PI;

/// What a window is shaped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// A sinc of three lobes: Pillow's `LANCZOS`.
    Lanczos,
    /// Cubic pieces, with a slope of −1/2 at the first zero: Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    /// How far the window reaches from its middle.
    fn reach(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Lanczos => {
                let reach = self.reach();
                let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
                if (-reach..reach).contains(&x) { sinc(x) * sinc(x / reach) } else { 0.0 }
            }
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
                _ => 0.0,
            },
        }
    }
}

/// Bits behind the point of a weight: a sum of products with bytes fits 32 bits.
const BITS: u32 = 32 - 8 - 2;

/// One output pixel: the first input pixel of its window, and the weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    (0..to)
        .map(|i| {
            let middle = (i as f64 + 0.5) * scale;
            let first = (middle - reach + 0.5).max(0.0) as usize;
            let end = ((middle + reach + 0.5) as usize).min(from);
            let place = |x: usize| (x as f64 - middle + 0.5) / stretch;
            let weights: Vec<f64> = (first..end).map(|x| filter.weight(place(x))).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| (w / sum * f64::from(1 << BITS)).round() as i32;
            Window { first, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

/// Rows of pixels of `channels` bytes each, from a width and height to others. No side is 0.
pub(super) fn resize(
    bytes: &[u8],
    channels: usize,
    from: (u32, u32),
    to: (u32, u32),
    filter: Filter,
) -> Vec<u8> {
    let [width, height, to_width, to_height] = [from.0, from.1, to.0, to.1].map(|side| side as usize);
    // Pixels of a row are next to each other, and rows are many.
    let across = |bytes: &[u8], height: usize| match to_width == width {
        true => bytes.to_vec(),
        false => pass(bytes, (height, width * channels), channels, &windows(width, to_width, filter)),
    };
    // The rows of a picture are the pixels of its only row.
    let down = |bytes: &[u8], width: usize| match to_height == height {
        true => bytes.to_vec(),
        false => {
            let unit = width * channels;
            pass(bytes, (1, height * unit), unit, &windows(height, to_height, filter))
        }
    };
    match down_first((width, height), (to_width, to_height)) {
        true => across(&down(bytes, width), to_height),
        false => down(&across(bytes, height), to_width),
    }
}

/// Whether Pillow 13.0.0 shrinks the height before it changes the width, which leaves other last bits: where more than
/// twice as many rows go as columns. Found by trying pictures of random sizes; up to 12 the width always comes first.
fn down_first((width, height): (usize, usize), (to_width, to_height): (usize, usize)) -> bool {
    to_height < height && height + 2 * to_width > to_height + 2 * width
}

/// `rows` rows of `len` bytes, of which every `unit` are one pixel.
fn pass(bytes: &[u8], (rows, len): (usize, usize), unit: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows * windows.len() * unit);
    for row in bytes.chunks_exact(len) {
        for Window { first, weights } in windows {
            for byte in 0..unit {
                let products =
                    weights.iter().enumerate().map(|(i, w)| i32::from(row[(first + i) * unit + byte]) * w);
                let sum: i32 = products.sum::<i32>() + (1 << (BITS - 1));
                out.push((sum >> BITS).clamp(0, 255) as u8);
            }
        }
    }
    debug_assert_eq!(out.len(), rows * windows.len() * unit);
    out
}
