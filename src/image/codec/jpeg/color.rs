//! From a JPEG's channels to grey or to red, green and blue, with libjpeg's rounding and Pillow's way from CMYK.

use super::{Frame, Result, unsupported, upsample};

/// Bits behind the point of the factors.
const BITS: u32 = 16;

const fn fixed(x: f64) -> i32 {
    (x * (1 << BITS) as f64 + 0.5) as i32
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

impl Space {
    /// As libjpeg finds it.
    fn of(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Option<Self> {
        let ids: Vec<_> = frame.components.iter().map(|one| one.id).collect();
        Some(match (ids.len(), jfif, adobe) {
            (1, ..) => Self::Grey,
            (3, true, _) => Self::YCbCr,
            (3, false, Some(0)) => Self::Rgb,
            (3, false, None) if ids == *b"RGB" => Self::Rgb,
            (3, ..) => Self::YCbCr,
            (4, _, None | Some(0)) => Self::Cmyk,
            (4, ..) => Self::Ycck,
            _ => return None,
        })
    }
}

/// Channels, and their samples.
pub(super) fn convert(frame: Frame, jfif: bool, adobe: Option<u8>) -> Result<(usize, Vec<u8>)> {
    let space = Space::of(&frame, jfif, adobe).ok_or_else(|| unsupported("these channels"))?;
    let channels = if space == Space::Grey { 1 } else { 3 };
    let mut samples = vec![0; frame.width * frame.height * channels];
    let mut lines: Vec<_> = frame.components.iter().map(|_| vec![0; frame.width]).collect();
    let mut sums = Vec::new();
    for (y, row) in samples.chunks_exact_mut(frame.width * channels).enumerate() {
        for (component, line) in frame.components.iter().zip(&mut lines) {
            upsample::row(component, &frame, y, &mut sums, line);
        }
        let pixels = row.chunks_exact_mut(3);
        match (&lines[..], space) {
            ([grey], _) => row.copy_from_slice(grey),
            ([r, g, b], Space::Rgb) => {
                pixels.zip(r).zip(g).zip(b).for_each(|(((to, r), g), b)| to.copy_from_slice(&[*r, *g, *b]));
            }
            ([y, cb, cr], _) => {
                pixels
                    .zip(y)
                    .zip(cb)
                    .zip(cr)
                    .for_each(|(((to, y), cb), cr)| to.copy_from_slice(&rgb(*y, *cb, *cr)));
            }
            ([a, b, c, black], _) => {
                for ((((to, a), b), c), black) in pixels.zip(a).zip(b).zip(c).zip(black) {
                    let inks = match space {
                        Space::Ycck => rgb(*a, *b, *c).map(|ink| 255 - ink),
                        _ => [*a, *b, *c],
                    };
                    to.copy_from_slice(&without_black(inks, *black));
                }
            }
            _ => return Err(unsupported("these channels")),
        }
    }
    Ok((channels, samples))
}

fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << (BITS - 1);
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = (fixed(1.402) * cr + HALF) >> BITS;
    let green = (-fixed(0.344_14) * cb - fixed(0.714_14) * cr + HALF) >> BITS;
    let blue = (fixed(1.772) * cb + HALF) >> BITS;
    [y + red, y + green, y + blue].map(|value| value.clamp(0, 255) as u8)
}

/// Of inks as Adobe's programs store them, where 255 is none: as Pillow converts them.
fn without_black(inks: [u8; 3], black: u8) -> [u8; 3] {
    inks.map(|ink| {
        let product = u32::from(255 - ink) * u32::from(black) + 128;
        (u32::from(black) - (((product >> 8) + product) >> 8).min(u32::from(black))) as u8
    })
}
