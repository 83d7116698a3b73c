//! Pictures whose camera was not held upright.

/// The pixels as they are to be seen, and the size that they have then: mirrored where the orientation is even up to 4
/// and odd above, on their side above 4.
pub(super) fn upright(
    pixels: Vec<u8>,
    channels: usize,
    (w, h): (usize, usize),
    orientation: u16,
) -> (Vec<u8>, (usize, usize)) {
    if !(2..=8).contains(&orientation) {
        return (pixels, (w, h));
    }
    let size = if orientation > 4 { (h, w) } else { (w, h) };
    let mut turned = Vec::with_capacity(pixels.len());
    for y in 0..size.1 {
        for x in 0..size.0 {
            let (x, y) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            let at = (y * w + x) * channels;
            turned.extend_from_slice(&pixels[at..at + channels]);
        }
    }
    (turned, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `abc` over `def`, as each orientation stores it so that it shows so.
    #[test]
    fn every_orientation_is_set_upright() {
        let stored = [
            (1, 3, "abcdef"),
            (2, 3, "cbafed"),
            (3, 3, "fedcba"),
            (4, 3, "defabc"),
            (5, 2, "adbecf"),
            (6, 2, "cfbead"),
            (7, 2, "fcebda"),
            (8, 2, "daebfc"),
        ];
        for (orientation, width, text) in stored {
            let (shown, size) = upright(text.into(), 1, (width, 6 / width), orientation);
            assert_eq!(
                (String::from_utf8(shown).unwrap().as_str(), size),
                ("abcdef", (3, 2)),
                "{orientation}"
            );
        }
    }
}
