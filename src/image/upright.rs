//! Pictures whose camera was not held upright.

/// How a camera was held, 1 to 8: the tag 0x0112 of the first folder of EXIF's bytes. `None` where they do not say it.
pub fn orientation(exif: &[u8]) -> Option<u16> {
    let big = exif.starts_with(b"MM");
    let short = |at: usize| {
        let bytes = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let long = |at: usize| {
        let bytes = exif.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) } as usize)
    };
    let folder = long(4)?;
    let entries = usize::from(short(folder)?);
    let entry = (0..entries).map(|i| folder + 2 + 12 * i).find(|at| short(*at) == Some(0x0112))?;
    short(entry + 8).filter(|orientation| (1..=8).contains(orientation))
}

/// The pixels as they are to be seen, and the size that they have then: mirrored where the orientation is even up to 4
/// and odd above, on their side above 4.
pub(crate) fn upright(
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

    #[test]
    fn the_orientation_is_read_in_both_byte_orders() {
        let little =
            b"II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\x01\0\0\0\0\0\0\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        let big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0";
        assert_eq!(orientation(little), Some(6));
        assert_eq!(orientation(big), Some(8));
        assert_eq!(orientation(&big[..12]), None);
        assert_eq!(orientation(b"II*\0\xff\xff\xff\xff"), None);
    }
}
