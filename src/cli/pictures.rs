//! Pictures from files, as they are to be seen, and what they were when they were read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use sha2::{Digest, Sha256};
use tch_flux::image::{Image, Mask, orientation};
use tch_flux::{Error, FileProblem};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The checksums of all files that were read, by their names.
static SEEN: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

/// A PNG or a JPEG.
pub(super) fn read(path: &Path) -> anyhow::Result<Image> {
    match file(path)? {
        Some(jpeg) => decode(path, &jpeg),
        None => Ok(Image::read_png(path)?.0),
    }
}

/// A PNG or a JPEG whose light pixels are drawn anew.
pub(super) fn read_mask(path: &Path) -> anyhow::Result<Mask> {
    match file(path)? {
        Some(jpeg) => Ok(decode(path, &jpeg)?.to_mask()),
        None => Ok(Mask::read_png(path)?),
    }
}

/// The checksums of all pictures that were read, by their files' names.
pub(super) fn seen() -> BTreeMap<PathBuf, String> {
    SEEN.lock().map_or_else(|broken| broken.into_inner().clone(), |seen| seen.clone())
}

/// The bytes of a JPEG; nothing of a PNG, which knows its own way.
fn file(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let sum: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    if let Ok(mut seen) = SEEN.lock() {
        seen.insert(path.to_path_buf(), sum);
    }
    if let Some(name) = other_format(&bytes) {
        let reason = format!("it is {name}: make a PNG or a JPEG of it");
        return Err(unreadable(path, reason).into());
    }
    Ok(bytes.starts_with(&[0xff, 0xd8, 0xff]).then_some(bytes))
}

/// What else a file of pictures may be.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let brand = bytes.get(4..12);
    match bytes {
        [b'G', b'I', b'F', b'8', ..] => Some("a GIF"),
        [b'B', b'M', ..] => Some("a BMP"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some("a TIFF"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("a WebP"),
        _ if brand.is_some_and(|brand| matches!(brand, b"ftypavif" | b"ftypavis")) => Some("an AVIF"),
        _ if brand.is_some_and(|brand| matches!(brand, b"ftypheic" | b"ftypheix" | b"ftypmif1")) => {
            Some("a HEIC")
        }
        [] => Some("empty"),
        _ => None,
    }
}

fn decode(path: &Path, jpeg: &[u8]) -> anyhow::Result<Image> {
    let failed = |reason: String| unreadable(path, reason);
    // What is damaged is not to be drawn from: otherwise what is missing would be grey.
    let options = DecoderOptions::default().set_strict_mode(true).jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
    let rgb = decoder.decode().map_err(|problem| failed(format!("{problem}; it may be damaged")))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| failed("it has no size".into()))?;
    let held = decoder.exif().and_then(|exif| orientation(exif)).unwrap_or(1);
    Ok(Image { width: width as u32, height: height as u32, rgb }.upright(held))
}

fn unreadable(path: &Path, reason: String) -> Error {
    Error::File { path: path.to_path_buf(), problem: FileProblem::Image { reason } }
}
