//! Resizing as Pillow does it: separable windows, rows first, eight bits between the two passes.

use std::f64::consts::PI;

/// How far the window reaches from its middle: a sinc of three lobes.
const REACH: f64 = 3.0;

fn weight(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-REACH..REACH).contains(&x) { sinc(x) * sinc(x / REACH) } else { 0.0 }
}

/// Bits behind the point of a weight: a sum of products with bytes fits 32 bits.
const BITS: u32 = 32 - 8 - 2;

/// One output pixel: the first input pixel of its window, and the weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let reach = REACH * stretch;
    (0..to)
        .map(|i| {
            let middle = (i as f64 + 0.5) * scale;
            let first = (middle - reach + 0.5).max(0.0) as usize;
            let end = ((middle + reach + 0.5) as usize).min(from);
            let place = |x: usize| (x as f64 - middle + 0.5) / stretch;
            let weights: Vec<f64> = (first..end).map(|x| weight(place(x))).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| (w / sum * f64::from(1 << BITS)).round() as i32;
            Window { first, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

/// Rows of pixels of `channels` bytes each, from a width and height to others, with `LANCZOS`. No side is 0.
pub(super) fn lanczos(bytes: &[u8], channels: usize, from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
    let [width, height, to_width, to_height] = [from.0, from.1, to.0, to.1].map(|side| side as usize);
    let wide = if to_width == width {
        bytes.to_vec()
    } else {
        // Pixels of a row are next to each other, and rows are many.
        pass(bytes, (height, width * channels), channels, &windows(width, to_width))
    };
    if to_height == height {
        return wide;
    }
    // The rows of a picture are the pixels of its only row.
    pass(&wide, (1, height * to_width * channels), to_width * channels, &windows(height, to_height))
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
