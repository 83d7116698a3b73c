//! JPEG and lossy WebP, with texts in EXIF.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::image::{Image, exif};

/// The most bytes of EXIF in a segment of a JPEG.
const SEGMENT: usize = 65_533 - NAME.len();
const NAME: &[u8] = b"Exif\0\0";

/// A JPEG; both sides are known to fit. EXIF that is too long for a segment goes on in the next, as Pillow reads it.
pub(in crate::image) fn write_jpeg(
    image: &Image,
    quality: u8,
    texts: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let failed = |problem: jpeg_encoder::EncodingError| Error::Request(format!("JPEG: {problem}"));
    let Image { width, height, rgb } = image;
    let mut file = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut file, quality.max(1));
    if !texts.is_empty() {
        for part in exif::with_texts(texts).chunks(SEGMENT) {
            encoder.add_app_segment(1, [NAME, part].concat()).map_err(failed)?;
        }
    }
    encoder.encode(rgb, *width as u16, *height as u16, jpeg_encoder::ColorType::Rgb).map_err(failed)?;
    Ok(file)
}

/// A lossy WebP, as OpenAI's servers send it; with EXIF in the extended form, which has a place for it.
#[cfg(feature = "webp")]
pub(in crate::image) fn write_webp(
    image: &Image,
    quality: u8,
    texts: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let failed = |problem: &dyn std::fmt::Debug| Error::Request(format!("WebP: {problem:?}"));
    let Image { width, height, rgb } = image;
    let encoder = ::webp::Encoder::from_rgb(rgb, *width, *height);
    let file = encoder.encode_simple(false, f32::from(quality)).map_err(|problem| failed(&problem))?;
    if texts.is_empty() {
        return Ok(file.to_vec());
    }
    let picture = file.get(12..).ok_or_else(|| failed(&"the encoder wrote no picture"))?;
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let fill: &[u8] = if data.len() % 2 == 1 { &[0] } else { &[] };
        [&name[..], &(data.len() as u32).to_le_bytes(), data, fill].concat()
    };
    const HAS_EXIF: u32 = 1 << 3;
    let side = |pixels: u32| (pixels - 1).to_le_bytes()[..3].to_vec();
    let header = [&HAS_EXIF.to_le_bytes()[..], &side(*width), &side(*height)].concat();
    let chunks = [&chunk(b"VP8X", &header)[..], picture, &chunk(b"EXIF", &exif::with_texts(texts))].concat();
    Ok(chunk(b"RIFF", &[b"WEBP", &chunks[..]].concat()))
}
