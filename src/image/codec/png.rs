//! PNG: of every kind, as eight bits a channel.

use std::collections::BTreeMap;
use std::io::Cursor;

use super::{Decoded, Metadata, Size};
use crate::image::{DecodeError, Format};

/// Where programs put EXIF into a PNG before there was a place for it, as hexadecimal digits.
const RAW_EXIF: [&str; 2] = ["Raw profile type exif", "Raw profile type APP1"];
const XMP: &str = "XML:com.adobe.xmp";
/// The most bytes of compressed texts together: a few bytes of a file can stand for as many as there is memory for.
const MOST_TEXT: usize = 16 << 20;

pub(super) fn decode(
    file: &[u8],
    admit: &mut dyn FnMut(Size) -> Result<(), DecodeError>,
) -> Result<Decoded, DecodeError> {
    let damaged =
        |problem: &dyn ToString| DecodeError::Damaged { format: Format::Png, reason: problem.to_string() };
    let mut decoder = ::png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(::png::Transformations::EXPAND | ::png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|problem| damaged(&problem))?;
    admit((reader.info().width, reader.info().height))?;
    let mut samples = vec![0; reader.output_buffer_size().ok_or_else(|| damaged(&"it is too large"))?];
    let frame = reader.next_frame(&mut samples).map_err(|problem| damaged(&problem))?;
    samples.truncate(frame.buffer_size());
    // What stands behind the pixels, and that nothing is missing.
    reader.finish().map_err(|problem| damaged(&problem))?;
    let metadata = metadata(reader.info());
    let channels = frame.color_type.samples();
    let texts = BTreeMap::new();
    Ok(Decoded { width: frame.width, height: frame.height, channels, samples, texts }.with(metadata))
}

/// A text that cannot be read is none: it may be another program's.
fn metadata(info: &::png::Info) -> Metadata {
    let mut texts = BTreeMap::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.text.clone());
    }
    let mut left = MOST_TEXT;
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        if chunk.decompress_text_with_limit(left).is_ok()
            && let Ok(text) = chunk.get_text()
        {
            left -= text.len().min(left);
            texts.insert(chunk.keyword, text);
        }
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        if chunk.decompress_text_with_limit(left).is_ok()
            && let Ok(text) = chunk.get_text()
        {
            left -= if chunk.compressed { text.len().min(left) } else { 0 };
            texts.insert(chunk.keyword, text);
        }
    }
    let raw = RAW_EXIF.map(|key| texts.remove(key)).into_iter().flatten().next();
    let exif = info.exif_metadata.as_deref().map(<[u8]>::to_vec).or_else(|| from_digits(&raw?));
    Metadata { exif, xmp: texts.remove(XMP).map(String::into_bytes), texts }
}

/// The bytes of a raw profile: an empty line, the profile's name, its length, and then the digits.
fn from_digits(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.splitn(4, '\n').nth(3)?.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.as_chunks().0.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}
