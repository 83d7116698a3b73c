//! WebP, lossy and lossless, and the first picture of an animation.

use std::collections::BTreeMap;
use std::io::Cursor;

use image_webp::WebPDecoder;

use super::{Decoded, Metadata, Size};
use crate::image::{DecodeError, Format};

/// A decoder's own bytes for each pixel, at most.
const WORKING: usize = 8;

pub(super) fn decode(
    file: &[u8],
    admit: &mut dyn FnMut(Size) -> Result<(), DecodeError>,
) -> Result<Decoded, DecodeError> {
    let damaged =
        |problem: &dyn ToString| DecodeError::Damaged { format: Format::Webp, reason: problem.to_string() };
    let len = file.get(4..8).and_then(<[u8]>::first_chunk).map_or(0, |len| u32::from_le_bytes(*len) as usize);
    // The decoder takes what is missing for zeros.
    if file.len() < len.saturating_add(8) {
        return Err(damaged(&format!("it has {} bytes of {}", file.len(), len.saturating_add(8))));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(|problem| damaged(&problem))?;
    let (width, height) = decoder.dimensions();
    admit((width, height))?;
    decoder.set_memory_limit(width as usize * height as usize * WORKING);
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut samples = vec![0; decoder.output_buffer_size().ok_or_else(|| damaged(&"it is too large"))?];
    decoder.read_image(&mut samples).map_err(|problem| damaged(&problem))?;
    // Damaged metadata are as none, and none are longer than the file.
    decoder.set_memory_limit(file.len());
    let metadata = Metadata {
        exif: decoder.exif_metadata().ok().flatten(),
        xmp: decoder.xmp_metadata().ok().flatten(),
        texts: BTreeMap::new(),
    };
    Ok(Decoded { width, height, channels, samples, texts: BTreeMap::new() }.with(metadata))
}
