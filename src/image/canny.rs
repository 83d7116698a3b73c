//! Edges as OpenCV finds them.

/// tan 22.5°, and the bits behind its point.
const TANGENT: i64 = 13_573;
const BITS: u32 = 15;

/// What is known of a pixel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    No,
    /// On an edge, if one that is certain touches it.
    Maybe,
    Edge,
}

/// 255 where there is an edge, else 0, of a picture of three channels: `cv2.Canny(rgb, low, high)`.
///
/// Where the brightness changes most, along the gradient; strongest of the three channels. What is above `high` is an edge,
/// and what is above `low` where it is connected to one.
pub(super) fn canny(rgb: &[u8], (width, height): (u32, u32), low: i32, high: i32) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    let gradient = gradients(rgb, width, height);
    let magnitude = |x: isize, y: isize| {
        let inside = (0..width as isize).contains(&x) && (0..height as isize).contains(&y);
        if !inside {
            return 0;
        }
        let (dx, dy) = gradient[y as usize * width + x as usize];
        dx.abs() + dy.abs()
    };
    let mut places = vec![Place::No; width * height];
    let mut certain = Vec::new();
    for y in 0..height as isize {
        for x in 0..width as isize {
            let own = magnitude(x, y);
            if own <= low {
                continue;
            }
            let at = y as usize * width + x as usize;
            let (dx, dy) = gradient[at];
            let (across, down) = (i64::from(dx.abs()), i64::from(dy.abs()) << BITS);
            let (flat, steep) = (across * TANGENT, across * TANGENT + (across << (BITS + 1)));
            let beats = if down < flat {
                own > magnitude(x - 1, y) && own >= magnitude(x + 1, y)
            } else if down > steep {
                own > magnitude(x, y - 1) && own >= magnitude(x, y + 1)
            } else {
                let s = if (dx ^ dy) < 0 { -1 } else { 1 };
                own > magnitude(x - s, y - 1) && own > magnitude(x + s, y + 1)
            };
            if beats && own > high {
                places[at] = Place::Edge;
                certain.push(at);
            } else if beats {
                places[at] = Place::Maybe;
            }
        }
    }
    while let Some(at) = certain.pop() {
        let (x, y) = (at % width, at / width);
        for y in y.saturating_sub(1)..(y + 2).min(height) {
            for x in x.saturating_sub(1)..(x + 2).min(width) {
                let beside = &mut places[y * width + x];
                if *beside == Place::Maybe {
                    *beside = Place::Edge;
                    certain.push(y * width + x);
                }
            }
        }
    }
    places.into_iter().map(|place| if place == Place::Edge { 255 } else { 0 }).collect()
}

/// Sobel's of each pixel, of the channel where they are largest; the border is repeated.
fn gradients(rgb: &[u8], width: usize, height: usize) -> Vec<(i32, i32)> {
    let row = |y: usize| (y.saturating_sub(1), y, (y + 1).min(height - 1));
    let column = |x: usize| (x.saturating_sub(1), x, (x + 1).min(width - 1));
    let mut all = Vec::with_capacity(width * height);
    for y in 0..height {
        let (above, here, below) = row(y);
        for x in 0..width {
            let (left, middle, right) = column(x);
            let of = |channel: usize| {
                let at = |x: usize, y: usize| i32::from(rgb[3 * (y * width + x) + channel]);
                let dx = at(right, above) + 2 * at(right, here) + at(right, below)
                    - (at(left, above) + 2 * at(left, here) + at(left, below));
                let dy = at(left, below) + 2 * at(middle, below) + at(right, below)
                    - (at(left, above) + 2 * at(middle, above) + at(right, above));
                (dx, dy)
            };
            let mut most = of(0);
            for (dx, dy) in [of(1), of(2)] {
                if dx.abs() + dy.abs() > most.0.abs() + most.1.abs() {
                    most = (dx, dy);
                }
            }
            all.push(most);
        }
    }
    all
}
