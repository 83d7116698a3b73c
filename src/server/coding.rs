//! Pictures to files and back, away from the threads that wait for sockets.

use std::io::Cursor;
use std::sync::Arc;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::problem::Problem;
use super::state::Charge;
use crate::error::Error;
use crate::image::{Image, Mask};
use crate::pipeline::Generated;
use crate::recipe::{Means, Recipe};

/// The longest side of an uploaded picture.
const MAX_SIDE: u32 = 16_384;
/// A mask's pixel is drawn anew where its alpha is below.
const HALF: u8 = 128;

/// What pictures are sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Webp,
}

impl Format {
    pub(super) const NAMES: [&'static str; 3] = ["png", "jpeg", "webp"];

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Png, Self::Jpeg, Self::Webp].into_iter().find(|format| format.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    pub(super) fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// Does work that takes a core, with few others at once.
pub(super) async fn aside<T: Send + 'static>(
    coders: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let fault = |reason: String| Problem::internal("fault", format!("a fault: {reason}")).again(1);
    let place = coders.clone().acquire_owned().await.map_err(|closed| fault(closed.to_string()))?;
    let work = move || {
        let _place = place;
        work()
    };
    spawn_blocking(work).await.map_err(|panic| fault(panic.to_string()))?
}

/// The file of a picture that was drawn. A PNG says how.
pub(super) fn encode(
    picture: &Generated,
    means: &Means,
    format: Format,
    quality: u8,
) -> Result<Vec<u8>, Problem> {
    match format {
        Format::Png => {
            let png = Recipe::new(means, picture).texts().and_then(|texts| picture.image.to_png(&texts));
            png.map_err(|error| Problem::of_job(&error, 1))
        }
        _ => encode_plain(&picture.image, format, quality),
    }
}

/// The file of a picture that says nothing.
pub(super) fn encode_plain(image: &Image, format: Format, quality: u8) -> Result<Vec<u8>, Problem> {
    let Image { width, height, rgb } = image;
    let failed = |reason: String| Problem::internal("encoding", format!("{}: {reason}", format.name()));
    match format {
        Format::Png => image.to_png(&Default::default()).map_err(|error: Error| failed(error.to_string())),
        Format::Jpeg => {
            let mut jpeg = Vec::new();
            let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, quality.max(1));
            let encoded = encoder.encode(rgb, *width, *height, ExtendedColorType::Rgb8);
            encoded.map_err(|error| failed(error.to_string()))?;
            Ok(jpeg)
        }
        Format::Webp => {
            let encoder = webp::Encoder::from_rgb(rgb, *width, *height);
            let webp = encoder.encode_simple(false, f32::from(quality));
            Ok(webp.map_err(|error| failed(format!("{error:?}")))?.to_vec())
        }
    }
}

/// A picture that a client has sent, upright, on white where it is transparent.
pub(super) fn decode_image(file: &[u8], name: &str, bounds: &mut Bounds) -> Result<Image, Problem> {
    let picture = decode(file, name, bounds)?;
    let (width, height) = (picture.width(), picture.height());
    let rgb = if picture.color().has_alpha() {
        let over_white = |[r, g, b, alpha]: [u8; 4]| {
            [r, g, b].map(|channel| {
                let (channel, alpha) = (u32::from(channel), u32::from(alpha));
                ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
            })
        };
        picture.into_rgba8().pixels().flat_map(|pixel| over_white(pixel.0)).collect()
    } else {
        picture.into_rgb8().into_raw()
    };
    Ok(Image { width, height, rgb })
}

/// A mask that a client has sent: what is transparent is drawn anew.
pub(super) fn decode_mask(file: &[u8], bounds: &mut Bounds) -> Result<Mask, Problem> {
    let picture = decode(file, "mask", bounds)?;
    if !picture.color().has_alpha() {
        let text = "the mask has no alpha channel; what is transparent in it is drawn anew";
        return Err(Problem::invalid("invalid_mask", text).param("mask"));
    }
    let (width, height) = (picture.width(), picture.height());
    let chosen = |alpha: u8| if alpha < HALF { 255 } else { 0 };
    let chosen = picture.into_rgba8().pixels().map(|pixel| chosen(pixel.0[3])).collect();
    Ok(Mask { width, height, chosen })
}

/// What the pictures of one request may take.
pub(super) struct Bounds {
    /// Pixels that are left.
    pub(super) pixels: u64,
    pub(super) charge: Arc<Charge>,
}

fn decode(file: &[u8], name: &str, bounds: &mut Bounds) -> Result<DynamicImage, Problem> {
    let wrong = |text: String| Problem::invalid("invalid_image", format!("{name}: {text}")).param(name);
    let broken = |error: ::image::ImageError| wrong(format!("the picture cannot be read: {error}"));
    let mut reader = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|error| wrong(format!("the picture cannot be read: {error}")))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) {
        return Err(wrong("this is no PNG, JPEG or WebP".into()));
    }
    // The sides alone: a few bytes may promise any number of pixels.
    let (width, height) =
        ImageReader::with_format(Cursor::new(file), reader.format().unwrap_or(ImageFormat::Png))
            .into_dimensions()
            .map_err(broken)?;
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > MAX_SIDE || pixels > bounds.pixels {
        let left = bounds.pixels;
        return Err(wrong(format!("{width}x{height} is more than the {left} pixels that are left for it")));
    }
    bounds.pixels -= pixels;
    // As it is decoded, four channels of two bytes at most; then as what is kept of it.
    let working = pixels as usize * 8;
    bounds.charge.grow(working)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(working as u64 * 2 + (1 << 20));
    reader.limits(limits);
    let decoded = reader.into_decoder().and_then(|mut decoder| {
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(picture)
    });
    bounds.charge.shrink(working - pixels as usize * 4);
    decoded.map_err(broken)
}
