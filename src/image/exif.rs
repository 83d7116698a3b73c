//! EXIF: how a camera was held, and texts of how a picture was made.

use std::collections::BTreeMap;

/// The tags that are read or written here.
const MAKE: u16 = 0x010f;
const ORIENTATION: u16 = 0x0112;
const EXIF_FOLDER: u16 = 0x8769;
const MAKER_NOTE: u16 = 0x927c;
const USER_COMMENT: u16 = 0x9286;
const DNG_VERSION: u16 = 0xc612;

/// The text of a picture's file that other programs read, too, and its key in a PNG.
const PARAMETERS: &str = "parameters";
/// What our maker note begins with: a JSON object with all other texts follows.
const NOTE: &[u8] = b"tch-flux\0";
/// How a comment in UTF-16 begins.
const UNICODE: &[u8; 8] = b"UNICODE\0";

/// How a camera was held, 1 to 8: the tag 0x0112 of the first folder of EXIF's bytes, stored as a number of whatever width.
/// `None` where they do not say it.
pub fn orientation(exif: &[u8]) -> Option<u16> {
    let number = Tiff::new(exif)?.orientation()??;
    u16::try_from(number).ok().filter(|orientation| (1..=8).contains(orientation))
}

/// The orientation that a file's EXIF or, where that has none, its XMP says; 1 where nothing is said that makes sense.
pub(super) fn orientation_of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> u16 {
    match exif.and_then(Tiff::new).and_then(|tiff| tiff.orientation()) {
        Some(_) => exif.and_then(orientation),
        None => xmp.and_then(in_xmp),
    }
    .unwrap_or(1)
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn in_xmp(xmp: &[u8]) -> Option<u16> {
    let name = b"tiff:Orientation";
    let after = xmp.windows(name.len()).enumerate().filter(|(_, window)| window == name).map(|(at, _)| at);
    after.filter_map(|at| xmp.get(at + name.len()..)).find_map(|rest| match rest {
        [b'=', b'"', digit @ b'1'..=b'8', ..] | [b'>', digit @ b'1'..=b'8', ..] => {
            Some(u16::from(digit - b'0'))
        }
        _ => None,
    })
}

/// The texts of a picture's EXIF: `parameters` from the comment, as A1111 and its relatives write it, and ours.
pub(super) fn texts(exif: &[u8]) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    let Some(tiff) = Tiff::new(exif) else { return texts };
    let pointer = tiff.entry(tiff.first, EXIF_FOLDER).and_then(|entry| tiff.number(&entry));
    let Some(folder) = pointer.map(|at| at as usize) else { return texts };
    if let Some(note) = tiff.bytes(folder, MAKER_NOTE)
        && let Some(json) = note.strip_prefix(NOTE)
        && let Ok(ours) = serde_json::from_slice::<BTreeMap<String, String>>(json)
    {
        texts.extend(ours);
    }
    if let Some(comment) = tiff.bytes(folder, USER_COMMENT) {
        let text = match comment.split_first_chunk() {
            Some((UNICODE, text)) => utf16(text, tiff.big),
            Some((b"ASCII\0\0\0", text)) => std::str::from_utf8(text).ok().map(str::to_string),
            _ => None,
        };
        if let Some(text) =
            text.map(|text| text.trim_end_matches('\0').to_string()).filter(|text| !text.is_empty())
        {
            texts.insert(PARAMETERS.into(), text);
        }
    }
    texts
}

/// Some programs write a comment in the byte order of their machine, and not of the EXIF: prompts are mostly Latin letters,
/// whose high bytes are 0.
fn utf16(text: &[u8], big: bool) -> Option<String> {
    let pairs = text.as_chunks::<2>().0;
    let zeros = |place: usize| pairs.iter().filter(|pair| pair[place] == 0).count();
    let big = match zeros(0).cmp(&zeros(1)) {
        std::cmp::Ordering::Equal => big,
        more => more.is_gt(),
    };
    let unit = |pair: &[u8; 2]| if big { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) };
    String::from_utf16(&pairs.iter().map(unit).collect::<Vec<_>>()).ok()
}

/// EXIF with these texts; the picture stands upright in it.
pub(super) fn with_texts(texts: &BTreeMap<String, String>) -> Vec<u8> {
    let others: BTreeMap<_, _> = texts.iter().filter(|(key, _)| *key != PARAMETERS).collect();
    let mut entries: Vec<(u16, Vec<u8>)> = Vec::new();
    // Texts by texts can always be written.
    if let (false, Ok(json)) = (others.is_empty(), serde_json::to_vec(&others)) {
        entries.push((MAKER_NOTE, [NOTE, &json].concat()));
    }
    if let Some(text) = texts.get(PARAMETERS) {
        let units = text.encode_utf16().flat_map(u16::to_be_bytes);
        entries.push((USER_COMMENT, UNICODE.iter().copied().chain(units).collect()));
    }
    const UNDEFINED: u16 = 7;
    const LONG: u16 = 4;
    let entry = |tag: u16, kind: u16, count: usize, value: usize| {
        let (count, value) = ((count as u32).to_be_bytes(), (value as u32).to_be_bytes());
        [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &count, &value].concat()
    };
    // The header, the first folder with one entry, and behind it the second.
    let folder = 8 + 2 + 12 + 4;
    let mut data = folder + 2 + 12 * entries.len() + 4;
    let mut exif = b"MM\0*\0\0\0\x08\0\x01".to_vec();
    exif.extend(entry(EXIF_FOLDER, LONG, 1, folder));
    exif.extend([0; 4]);
    exif.extend((entries.len() as u16).to_be_bytes());
    for (tag, value) in &entries {
        exif.extend(entry(*tag, UNDEFINED, value.len(), data));
        data += value.len();
    }
    exif.extend([0; 4]);
    entries.iter().for_each(|(_, value)| exif.extend_from_slice(value));
    exif
}

/// The bytes of EXIF or of a TIFF: folders of entries.
pub(super) struct Tiff<'a> {
    bytes: &'a [u8],
    big: bool,
    /// Where the first folder begins.
    first: usize,
}

/// An entry of a folder.
struct Entry<'a> {
    kind: u16,
    value: &'a [u8],
}

impl<'a> Tiff<'a> {
    /// `None` for what does not begin as EXIF does, with or without its name before it.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        const NAME: &[u8] = b"Exif\0\0";
        let bytes = bytes.strip_prefix(NAME).unwrap_or(bytes);
        let bytes = bytes.strip_prefix(NAME).unwrap_or(bytes);
        let big = match bytes.first_chunk()? {
            b"II*\0" | b"II\0*" => false,
            b"MM\0*" | b"MM*\0" => true,
            _ => return None,
        };
        let mut tiff = Self { bytes, big, first: 0 };
        tiff.first = tiff.long(4)? as usize;
        Some(tiff)
    }

    fn short(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn long(&self, at: usize) -> Option<u32> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// The entry of a tag in a folder; of several the first that has a value, as Pillow takes it. What is cut off has no
    /// more entries.
    fn entry(&self, folder: usize, tag: u16) -> Option<Entry<'a>> {
        let count = usize::from(self.short(folder)?);
        let places = (0..count).map_while(|i| folder.checked_add(2 + 12 * i));
        let places = places.take_while(|at| at.checked_add(12).is_some_and(|end| end <= self.bytes.len()));
        let value = |at: usize| {
            let kind = self.short(at + 2)?;
            // Of bytes, letters and numbers, with signs or without, and fractions of them.
            let width = match kind {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 => 4,
                5 | 10 | 12 => 8,
                _ => return None,
            };
            let len = (self.long(at + 4)? as usize).checked_mul(width).filter(|len| *len > 0)?;
            let start = if len > 4 { self.long(at + 8)? as usize } else { at + 8 };
            let value = self.bytes.get(start..start.checked_add(len)?)?;
            Some(Entry { kind, value })
        };
        places.filter(|at| self.short(*at) == Some(tag)).find_map(value)
    }

    /// The first number of an entry.
    fn number(&self, entry: &Entry) -> Option<u32> {
        let value = Tiff { bytes: entry.value, ..*self };
        match entry.kind {
            1 => entry.value.first().copied().map(u32::from),
            3 | 8 => value.short(0).map(u32::from),
            4 | 9 => value.long(0),
            _ => None,
        }
    }

    /// The bytes or letters of an entry.
    fn bytes(&self, folder: usize, tag: u16) -> Option<&'a [u8]> {
        self.entry(folder, tag).filter(|entry| matches!(entry.kind, 1 | 2 | 7)).map(|entry| entry.value)
    }

    /// The orientation where there is one, and its number where it has one.
    fn orientation(&self) -> Option<Option<u32>> {
        self.entry(self.first, ORIENTATION).map(|entry| self.number(&entry))
    }

    /// Whether it is a digital negative.
    pub(super) fn is_dng(&self) -> bool {
        self.entry(self.first, DNG_VERSION).is_some()
    }

    /// The camera's maker, as a message can have it.
    pub(super) fn make(&self) -> Option<String> {
        let make = self.bytes(self.first, MAKE)?;
        let make = make.split(|byte| *byte == 0).next().unwrap_or_default();
        let make: String =
            String::from_utf8_lossy(make).chars().filter(|c| !c.is_control()).take(40).collect();
        Some(make.trim().to_string()).filter(|make| !make.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF with one entry: tag, kind, count, and the four bytes of its value.
    fn exif(big: bool, kind: u16, count: u32, value: [u8; 4]) -> Vec<u8> {
        let short = |x: u16| if big { x.to_be_bytes() } else { x.to_le_bytes() };
        let long = |x: u32| if big { x.to_be_bytes() } else { x.to_le_bytes() };
        let head: &[u8] = if big { b"MM\0*" } else { b"II*\0" };
        [head, &long(8), &short(1), &short(ORIENTATION), &short(kind), &long(count), &value].concat()
    }

    #[test]
    fn the_orientation_is_read_in_both_byte_orders_and_every_width() {
        let two_entries =
            b"II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\x01\0\0\0\0\0\0\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        assert_eq!(orientation(two_entries), Some(6));
        for (kind, little, big) in [
            (1, [6, 0, 0, 0], [6, 0, 0, 0]),
            (3, [6, 0, 0, 0], [0, 6, 0, 0]),
            (4, [6, 0, 0, 0], [0, 0, 0, 6]),
            (8, [6, 0, 0, 0], [0, 6, 0, 0]),
            (9, [6, 0, 0, 0], [0, 0, 0, 6]),
        ] {
            for (order, value) in [(false, little), (true, big)] {
                let plain = exif(order, kind, 1, value);
                assert_eq!(orientation(&plain), Some(6), "kind {kind}");
                for times in 1..=2 {
                    let named = [b"Exif\0\0".repeat(times), plain.clone()].concat();
                    assert_eq!(orientation(&named), Some(6), "kind {kind}, named {times} times");
                }
            }
        }
    }

    #[test]
    fn damaged_exif_says_nothing() {
        let whole = exif(true, 3, 1, [0, 8, 0, 0]);
        assert_eq!(orientation(&whole), Some(8));
        for len in 0..whole.len() {
            assert_eq!(orientation(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(orientation(b"II*\0\xff\xff\xff\xff"), None);
        for (kind, count, value) in [(3, 1, [0, 0, 0, 0]), (3, 1, [0, 9, 0, 0]), (2, 1, [6, 0, 0, 0])] {
            assert_eq!(orientation(&exif(true, kind, count, value)), None, "{kind} {value:?}");
        }
        for (exif, xmp, expected) in [
            (None, Some(&b"<x tiff:Orientation=\"6\"/>"[..]), 6),
            (None, Some(b"<tiff:Orientation>3</tiff:Orientation>"), 3),
            (None, Some(b"<tiff:Orientation>9</tiff:Orientation>"), 1),
            (Some(&exif(true, 3, 1, [0, 8, 0, 0])[..]), Some(b"tiff:Orientation=\"6\""), 8),
            // EXIF that says nonsense says it all the same.
            (Some(&exif(true, 3, 1, [0, 9, 0, 0])[..]), Some(b"tiff:Orientation=\"6\""), 1),
            (Some(b"no EXIF"), Some(b"tiff:Orientation=\"6\""), 6),
            (None, None, 1),
        ] {
            assert_eq!(orientation_of(exif, xmp), expected, "{xmp:?}");
        }
    }

    #[test]
    fn texts_come_back_from_exif() {
        let pairs = [("parameters", "ein Kreis, 円 🔴"), ("tch-flux", "{\"a\":\"ü\"}")];
        let all = pairs.map(|(key, text)| (key.to_string(), text.to_string()));
        for count in 0..=2 {
            let some = BTreeMap::from_iter(all[..count].to_vec());
            let exif = with_texts(&some);
            assert_eq!(texts(&exif), some);
            assert_eq!(texts(&[b"Exif\0\0", &exif[..]].concat()), some);
            (0..exif.len()).for_each(|len| drop(texts(&exif[..len])));
        }
    }
}
