//! The rule that judges the small model's pictures, and the ideal pictures that it judges by: what
//! `scripts/tiny_language.py` has, in Rust. No network has a part in it.

use tch_flux::image::Image;

pub const SIZE: usize = 64;
pub const SHAPES: [&str; 5] = ["circle", "square", "triangle", "ring", "cross"];
pub const COLOURS: [(&str, [u8; 3]); 8] = [
    ("red", [220, 30, 30]),
    ("green", [30, 160, 50]),
    ("blue", [40, 70, 220]),
    ("yellow", [245, 215, 50]),
    ("purple", [130, 40, 160]),
    ("orange", [245, 130, 30]),
    ("white", [250, 250, 250]),
    ("black", [15, 15, 15]),
];

/// Indices into [`SHAPES`] and [`COLOURS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub shape: usize,
    pub colour: usize,
    pub background: usize,
}

impl Wanted {
    pub fn prompt(self) -> String {
        let (colour, background) = (COLOURS[self.colour].0, COLOURS[self.background].0);
        format!("a {colour} {} on a {background} background", SHAPES[self.shape])
    }
}

/// Every shape in every two different colours.
pub fn all() -> Vec<Wanted> {
    let mut all = Vec::new();
    for shape in 0..SHAPES.len() {
        for colour in 0..COLOURS.len() {
            for background in (0..COLOURS.len()).filter(|&b| b != colour) {
                all.push(Wanted { shape, colour, background });
            }
        }
    }
    all
}

/// The distance of a point from a shape's edge, negative inside; `(dx, dy)` from its centre, `r` its radius.
pub fn distance(shape: usize, dx: f32, dy: f32, r: f32) -> f32 {
    let (ax, ay, radius) = (dx.abs(), dy.abs(), dx.hypot(dy));
    match shape {
        0 => radius - r,
        1 => ax.max(ay) - 0.85 * r,
        2 => (dy - 0.7 * r).max((1.7 * ax - dy - r) / 1.972),
        3 => (radius - r).max(0.55 * r - radius),
        _ => (ax - r).max(ay - 0.33 * r).min((ay - r).max(ax - 0.33 * r)),
    }
}

/// How much of each pixel the shape covers, row by row.
fn coverage(shape: usize, x: f32, y: f32, r: f32) -> impl Iterator<Item = f32> {
    (0..SIZE * SIZE).map(move |i| {
        let (column, row) = ((i % SIZE) as f32 + 0.5, (i / SIZE) as f32 + 0.5);
        (0.5 - distance(shape, column - x, row - y, r)).clamp(0.0, 1.0)
    })
}

/// The ideal picture with the shape at `(x, y)`.
pub fn ideal(wanted: Wanted, x: f32, y: f32, r: f32) -> Image {
    let (front, back) = (COLOURS[wanted.colour].1, COLOURS[wanted.background].1);
    let mix = |a: f32, c: usize| (a * f32::from(front[c]) + (1.0 - a) * f32::from(back[c])).round() as u8;
    let rgb = coverage(wanted.shape, x, y, r).flat_map(|a| [0, 1, 2].map(|c| mix(a, c))).collect();
    Image { width: SIZE as u32, height: SIZE as u32, rgb }
}

/// Whether a picture shows that shape in those colours.
///
/// Every pixel is given to the nearest of the colours. The frame must be of the background's, the two colours must hold
/// all but 6 % of the pixels, and of all ideal shapes near the place of the coloured pixels, the one that overlaps them
/// best must be the one asked for, with an overlap (intersection over union) of at least 0.85.
pub fn is_right(picture: &Image, wanted: Wanted) -> bool {
    if (picture.width as usize, picture.height as usize) != (SIZE, SIZE) {
        return false;
    }
    let nearest: Vec<usize> = picture.rgb.chunks_exact(3).map(nearest_colour).collect();
    let mask: Vec<bool> = nearest.iter().map(|&c| c == wanted.colour).collect();
    let in_frame = |i: usize| [i % SIZE, i / SIZE].iter().any(|&k| !(3..SIZE - 3).contains(&k));
    let frame: Vec<usize> = (0..SIZE * SIZE).filter(|&i| in_frame(i)).collect();
    let wrong_frame = frame.iter().filter(|&&i| nearest[i] != wanted.background).count();
    let others = nearest.iter().filter(|&&c| c != wanted.colour && c != wanted.background).count();
    let covered = mask.iter().filter(|&&m| m).count();
    if wrong_frame * 50 > frame.len() || others * 100 > 6 * SIZE * SIZE || covered < 100 {
        return false;
    }
    let columns: Vec<usize> = (0..SIZE).filter(|&x| (0..SIZE).any(|y| mask[y * SIZE + x])).collect();
    let rows: Vec<usize> = (0..SIZE).filter(|&y| (0..SIZE).any(|x| mask[y * SIZE + x])).collect();
    let span = |of: &[usize]| (of[0] as f32, of[of.len() - 1] as f32 + 1.0);
    let ((left, right), (top, bottom)) = (span(&columns), span(&rows));
    let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
    let half = (right - left).max(bottom - top) / 2.0;

    let mut best = (0.0, usize::MAX);
    for shape in 0..SHAPES.len() {
        // Where a shape's centre and radius lie in its bounding box.
        let radius = if shape == 1 { half / 0.85 } else { half };
        for (i, j, k) in (-1..=1).flat_map(|i| (-3..=4).flat_map(move |j| (-2..=2).map(move |k| (i, j, k)))) {
            let ideal = coverage(shape, x + i as f32, y + j as f32, radius + 0.5 * k as f32);
            let (mut both, mut either) = (0, 0);
            for (inside, &drawn) in ideal.map(|a| a > 0.5).zip(&mask) {
                both += usize::from(inside && drawn);
                either += usize::from(inside || drawn);
            }
            let overlap = both as f32 / either.max(1) as f32;
            if overlap > best.0 {
                best = (overlap, shape);
            }
        }
    }
    best.1 == wanted.shape && best.0 >= 0.85
}

/// The colour that a pixel is nearest to: an index into [`COLOURS`].
pub fn nearest_colour(pixel: &[u8]) -> usize {
    let far = |c: &[u8; 3]| (0..3).map(|i| (i32::from(c[i]) - i32::from(pixel[i])).pow(2)).sum::<i32>();
    (0..COLOURS.len()).min_by_key(|&i| far(&COLOURS[i].1)).unwrap_or(0)
}
