//! Pictures that clients send: decoded within bounds that hold before the first pixel is.

use std::sync::Arc;

use super::problem::Problem;
use super::state::Charge;
use tch_flux::image::{self, DecodeError, Decoded, Format, Image, MAX_SIDE, Mask};

/// A mask's pixel is drawn anew where its alpha is below.
const HALF: u8 = 128;
/// A decoder's own bytes for each pixel, at most: four channels of two bytes, of which one is ready.
const WORKING: usize = 9;
/// What stays of them: four channels.
const KEPT: usize = 4;

/// What the pictures of one request may take.
pub(super) struct Bounds {
    /// Pixels that are left.
    pub(super) pixels: u64,
    pub(super) charge: Arc<Charge>,
}

/// The picture of a field, upright, and on white where it is transparent.
pub(super) fn image(file: &[u8], name: &str, bounds: &mut Bounds) -> Result<Image, Problem> {
    Ok(decode(file, name, bounds)?.into_image())
}

/// A mask: what is transparent in it is drawn anew.
pub(super) fn mask(file: &[u8], bounds: &mut Bounds) -> Result<Mask, Problem> {
    let decoded = decode(file, "mask", bounds)?;
    let Some(alpha) = decoded.alpha() else {
        let text = "the mask has no alpha channel; what is transparent in it is drawn anew";
        return Err(Problem::invalid("invalid_mask", text).param("mask"));
    };
    let chosen = alpha.into_iter().map(|alpha| if alpha < HALF { 255 } else { 0 }).collect();
    Ok(Mask { width: decoded.width, height: decoded.height, chosen })
}

/// Whether it begins as a file of a picture does.
pub(super) fn is_file(file: &[u8]) -> bool {
    Format::of_bytes(file).is_some()
}

/// What is said of a field whose file is no picture that is read.
pub(super) fn wrong(name: &str, problem: &DecodeError) -> Problem {
    Problem::invalid("invalid_image", format!("{name}: {problem}")).param(name)
}

fn decode(file: &[u8], name: &str, bounds: &mut Bounds) -> Result<Decoded, Problem> {
    let mut admit = Admit { bounds, working: 0, full: None };
    let decoded = image::decode(file, &mut |width, height| admit.size(width as usize, height as usize));
    let Admit { working, full, .. } = admit;
    bounds.charge.shrink(working * (WORKING - KEPT));
    match full {
        Some(full) => Err(full),
        None => decoded.map_err(|problem| wrong(name, &problem)),
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
    fn size(&mut self, width: usize, height: usize) -> Result<(), DecodeError> {
        let (pixels, left) = (width as u64 * height as u64, self.bounds.pixels);
        if width.max(height) > MAX_SIDE as usize || pixels > left {
            let text = format!("{width}x{height} is more than the {left} pixels that are left for it");
            return Err(DecodeError::Size(text));
        }
        self.bounds.charge.grow(pixels as usize * WORKING).map_err(|full| {
            let text = full.to_string();
            self.full = Some(full);
            DecodeError::Size(text)
        })?;
        self.working = pixels as usize;
        self.bounds.pixels -= pixels;
        Ok(())
    }
}
