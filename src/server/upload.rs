//! Pictures that clients send: decoded within bounds that hold before the first pixel is.

use std::io::Cursor;
use std::sync::Arc;

use image_webp::WebPDecoder;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::problem::Problem;
use super::state::Charge;
use crate::image::{Image, Mask, orientation, upright};

/// The longest side of an uploaded picture.
const MAX_SIDE: usize = 16_384;
/// A mask's pixel is drawn anew where its alpha is below.
const HALF: u8 = 128;
/// A decoder's own bytes for each pixel, at most: four channels of two bytes.
const WORKING: usize = 8;
/// What stays of them: four channels.
const KEPT: usize = 4;

/// What the pictures of one request may take.
pub(super) struct Bounds {
    /// Pixels that are left.
    pub(super) pixels: u64,
    pub(super) charge: Arc<Charge>,
}

/// A picture as its file has it.
struct Pixels {
    width: usize,
    height: usize,
    /// 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
    channels: usize,
    bytes: Vec<u8>,
}

impl Pixels {
    /// As they are to be seen, of a camera that was held so.
    fn upright(self, held: Option<u16>) -> Self {
        let Self { width, height, channels, bytes } = self;
        let (bytes, (width, height)) = upright(bytes, channels, (width, height), held.unwrap_or(1));
        Self { width, height, channels, bytes }
    }
}

/// The picture of a field, upright, and on white where it is transparent.
pub(super) fn image(file: &[u8], name: &str, bounds: &mut Bounds) -> Result<Image, Problem> {
    let Pixels { width, height, channels, bytes } = decode(file, name, bounds)?;
    let over_white = |channel: u8, alpha: u8| {
        let (channel, alpha) = (u32::from(channel), u32::from(alpha));
        ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgb = match channels {
        1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
        2 => bytes.chunks_exact(2).flat_map(|p| [over_white(p[0], p[1]); 3]).collect(),
        3 => bytes,
        _ => bytes.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|c| over_white(c, p[3]))).collect(),
    };
    Ok(Image { width: width as u32, height: height as u32, rgb })
}

/// A mask: what is transparent in it is drawn anew.
pub(super) fn mask(file: &[u8], bounds: &mut Bounds) -> Result<Mask, Problem> {
    let Pixels { width, height, channels, bytes } = decode(file, "mask", bounds)?;
    if channels % 2 == 1 {
        let text = "the mask has no alpha channel; what is transparent in it is drawn anew";
        return Err(Problem::invalid("invalid_mask", text).param("mask"));
    }
    let chosen = |pixel: &[u8]| if pixel[channels - 1] < HALF { 255 } else { 0 };
    let chosen = bytes.chunks_exact(channels).map(chosen).collect();
    Ok(Mask { width: width as u32, height: height as u32, chosen })
}

type Decode = fn(&[u8], &mut Admit) -> Result<Pixels, String>;

/// What reads a file that begins like this one.
fn decoder(file: &[u8]) -> Option<Decode> {
    match file {
        [0x89, b'P', b'N', b'G', ..] => Some(png),
        [0xff, 0xd8, 0xff, ..] => Some(jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(webp),
        _ => None,
    }
}

/// Whether it begins as a file of a picture does.
pub(super) fn is_file(file: &[u8]) -> bool {
    decoder(file).is_some()
}

fn decode(file: &[u8], name: &str, bounds: &mut Bounds) -> Result<Pixels, Problem> {
    let decode = decoder(file).unwrap_or(|_, _| Err("this is no PNG, JPEG or WebP".to_string()));
    let wrong = |reason| Problem::invalid("invalid_image", format!("{name}: {reason}")).param(name);
    let mut admit = Admit { bounds, working: 0, full: None };
    let decoded = decode(file, &mut admit);
    let Admit { working, full, .. } = admit;
    bounds.charge.shrink(working * (WORKING - KEPT));
    match full {
        Some(full) => Err(full),
        None => decoded.map_err(wrong),
    }
}

/// Says of a size whether it may be decoded.
struct Admit<'a> {
    bounds: &'a mut Bounds,
    /// Pixels that are charged for.
    working: usize,
    full: Option<Problem>,
}

impl Admit<'_> {
    fn size(&mut self, width: usize, height: usize) -> Result<(), String> {
        let (pixels, left) = (width as u64 * height as u64, self.bounds.pixels);
        if width.max(height) > MAX_SIDE || pixels > left {
            return Err(format!("{width}x{height} is more than the {left} pixels that are left for it"));
        }
        if pixels == 0 {
            return Err("it has no pixels".into());
        }
        self.bounds.charge.grow(pixels as usize * WORKING).map_err(|full| {
            let text = full.to_string();
            self.full = Some(full);
            text
        })?;
        self.working = pixels as usize;
        self.bounds.pixels -= pixels;
        Ok(())
    }
}

fn png(file: &[u8], admit: &mut Admit) -> Result<Pixels, String> {
    let unreadable = |error: png::DecodingError| format!("the PNG cannot be read: {error}");
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    let mut reader = decoder.read_info().map_err(unreadable)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    admit.size(width, height)?;
    let mut bytes = vec![0; reader.output_buffer_size().ok_or("the PNG is too large")?];
    let frame = reader.next_frame(&mut bytes).map_err(unreadable)?;
    bytes.truncate(frame.buffer_size());
    let channels = frame.color_type.samples();
    let held = reader.info().exif_metadata.as_deref().and_then(orientation);
    Ok(Pixels { width, height, channels, bytes }.upright(held))
}

fn webp(file: &[u8], admit: &mut Admit) -> Result<Pixels, String> {
    let unreadable = |error: image_webp::DecodingError| format!("the WebP cannot be read: {error}");
    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    admit.size(width, height)?;
    decoder.set_memory_limit(width * height * WORKING);
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut bytes = vec![0; decoder.output_buffer_size().ok_or("the WebP is too large")?];
    decoder.read_image(&mut bytes).map_err(unreadable)?;
    Ok(Pixels { width, height, channels, bytes })
}

fn jpeg(file: &[u8], admit: &mut Admit) -> Result<Pixels, String> {
    let unreadable = |error: zune_jpeg::errors::DecodeErrors| format!("the JPEG cannot be read: {error}");
    // What is damaged is not to be drawn from: otherwise what is missing would be grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(unreadable)?;
    let size = decoder.info().ok_or("the JPEG has no size")?;
    let (width, height) = (usize::from(size.width), usize::from(size.height));
    admit.size(width, height)?;
    let bytes = decoder.decode().map_err(unreadable)?;
    let held = decoder.exif().and_then(|exif| orientation(exif));
    Ok(Pixels { width, height, channels: 3, bytes }.upright(held))
}
