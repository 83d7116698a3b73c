//! Decodes the pictures that clients send, within limits that are checked before the first pixel is read.

use std::sync::Arc;

use crate::api_error::ApiError;
use crate::state::Charge;
use tch_flux::image::{self, DecodeError, Decoded, Format, Image, MAX_SIDE, Mask};

/// A mask's pixel is drawn anew where its alpha is below this.
const MASK_ALPHA: u8 = 128;
/// The most bytes that a decoder takes for each pixel: four channels of two bytes, and one for the result.
const DECODING_BYTES: usize = 9;
/// The bytes of each pixel that stay: four channels.
const DECODED_BYTES: usize = 4;

/// What the pictures of one request may still take.
pub(crate) struct DecodeLimits {
    pub(crate) pixels: u64,
    pub(crate) charge: Arc<Charge>,
}

/// Decodes the picture of a field: upright, and on white where it is transparent.
pub(crate) fn decode_image(file: &[u8], name: &str, limits: &mut DecodeLimits) -> Result<Image, ApiError> {
    Ok(decode(file, name, limits)?.into_image())
}

/// Decodes a mask: what is transparent in it is drawn anew.
pub(crate) fn decode_mask(file: &[u8], limits: &mut DecodeLimits) -> Result<Mask, ApiError> {
    let decoded = decode(file, "mask", limits)?;
    let Some(alpha) = decoded.alpha() else {
        let text = "the mask has no alpha channel; what is transparent in it is drawn anew";
        return Err(ApiError::invalid("invalid_mask", text).param("mask"));
    };
    let chosen = alpha.into_iter().map(|alpha| if alpha < MASK_ALPHA { 255 } else { 0 }).collect();
    Ok(Mask { width: decoded.width, height: decoded.height, chosen })
}

/// Whether bytes begin as the file of a picture does.
pub(crate) fn is_image_file(file: &[u8]) -> bool {
    Format::of_bytes(file).is_some()
}

/// Returns the error for a field whose file cannot be decoded.
pub(crate) fn invalid_image(name: &str, error: &DecodeError) -> ApiError {
    ApiError::invalid("invalid_image", format!("{name}: {error}")).param(name)
}

fn decode(file: &[u8], name: &str, limits: &mut DecodeLimits) -> Result<Decoded, ApiError> {
    let mut check = SizeCheck { limits, charged_pixels: 0, full: None };
    let decoded = image::decode(file, &mut |width, height| check.admit(width as usize, height as usize));
    let SizeCheck { charged_pixels, full, .. } = check;
    limits.charge.shrink(charged_pixels * (DECODING_BYTES - DECODED_BYTES));
    match full {
        Some(full) => Err(full),
        None => decoded.map_err(|error| invalid_image(name, &error)),
    }
}

/// Checks the size of a picture before it is decoded, and charges for it.
struct SizeCheck<'a> {
    limits: &'a mut DecodeLimits,
    charged_pixels: usize,
    /// The error where the server's budget is used up.
    full: Option<ApiError>,
}

impl SizeCheck<'_> {
    fn admit(&mut self, width: usize, height: usize) -> Result<(), DecodeError> {
        let (pixels, left) = (width as u64 * height as u64, self.limits.pixels);
        if width.max(height) > MAX_SIDE as usize || pixels > left {
            let text = format!("{width}x{height} is more than the {left} pixels that are left for it");
            return Err(DecodeError::Size(text));
        }
        self.limits.charge.grow(pixels as usize * DECODING_BYTES).map_err(|full| {
            let text = full.to_string();
            self.full = Some(full);
            DecodeError::Size(text)
        })?;
        self.charged_pixels = pixels as usize;
        self.limits.pixels -= pixels;
        Ok(())
    }
}
