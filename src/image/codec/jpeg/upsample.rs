//! Chroma in the picture's size: smoothed where libjpeg smooths it, and else repeated.

use super::{Component, Frame};

/// How a component is made as large as the picture.
#[derive(Clone, Copy)]
enum Way {
    /// Each sample is so many pixels, across and down.
    Repeat(usize, usize),
    /// Each pixel is three parts of the nearest sample and one of the next, across, down or both.
    Across,
    Down,
    Both,
}

impl Way {
    fn of(component: &Component, frame: &Frame) -> Self {
        match (frame.most.0 / component.across, frame.most.1 / component.down) {
            // libjpeg repeats what is narrower than three samples.
            (2, 1) if component.width > 2 => Self::Across,
            (2, 2) if component.width > 2 => Self::Both,
            (1, 2) => Self::Down,
            (across, down) => Self::Repeat(across, down),
        }
    }
}

/// Writes a row of a component as pixels; `sums` is its working memory.
pub(super) fn row(component: &Component, frame: &Frame, y: usize, sums: &mut Vec<u16>, out: &mut [u8]) {
    let line = |y: usize| {
        let start = y.min(component.height - 1) * component.stride();
        &component.samples[start..start + component.width]
    };
    // The row that is nearest, and the next.
    let (near, next) = (y / 2, if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { y / 2 + 1 });
    let mix = |(near, next): (&u8, &u8)| 3 * u16::from(*near) + u16::from(*next);
    match Way::of(component, frame) {
        Way::Repeat(1, down) => out.copy_from_slice(&line(y / down)[..out.len()]),
        Way::Repeat(across, down) => {
            for (pixels, sample) in out.chunks_mut(across).zip(line(y / down)) {
                pixels.fill(*sample);
            }
        }
        Way::Down => {
            let bias = 1 + (y % 2) as u16;
            for (pixel, pair) in out.iter_mut().zip(line(near).iter().zip(line(next))) {
                *pixel = ((mix(pair) + bias) >> 2) as u8;
            }
        }
        Way::Across => {
            sums.clear();
            sums.extend(line(y).iter().map(|sample| u16::from(*sample)));
            across(sums, out, 2, [1, 2]);
        }
        Way::Both => {
            sums.clear();
            sums.extend(line(near).iter().zip(line(next)).map(mix));
            across(sums, out, 4, [8, 7]);
        }
    }
}

/// Twice as many pixels as sums, which are divided by two to the power of `bits`; `bias` rounds the left and the right one.
fn across(sums: &[u16], out: &mut [u8], bits: u32, bias: [u16; 2]) {
    let last = sums.len() - 1;
    for (i, (pixels, own)) in out.chunks_mut(2).zip(sums).enumerate() {
        let sides = [sums[i.saturating_sub(1)], sums[(i + 1).min(last)]];
        for ((pixel, side), bias) in pixels.iter_mut().zip(sides).zip(bias) {
            *pixel = ((3 * own + side + bias) >> bits) as u8;
        }
    }
}
