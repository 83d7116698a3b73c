//! Picture files to pixels, and back: one reader for whatever comes in.

mod jpeg;
mod png;
#[cfg(test)]
mod tests;
mod webp;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub(super) use write::write_jpeg;
#[cfg(feature = "webp")]
pub(super) use write::write_webp;

use super::decode_error::DecodeError;
use super::orientation::upright;
use super::{Format, Image, Mask, exif, foreign};
use crate::error::{Error, Result};

/// Width and height.
type Size = (u32, u32);

/// The longest side of a picture that is read.
pub const MAX_SIDE: u32 = 16_384;

/// The pixels of a file as they are to be seen: set upright, eight bits a channel, with their transparency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
    pub channels: usize,
    /// `width · height · channels` bytes, rows from the top.
    pub samples: Vec<u8>,
    /// What the file says in words: the texts of a PNG by their keys, and those that [`Image::encode`] puts into EXIF.
    pub texts: BTreeMap<String, String>,
}

/// What a file says beside its pixels.
#[derive(Default)]
struct Metadata {
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
    texts: BTreeMap<String, String>,
}

/// Reads a PNG, JPEG or WebP by its contents. Of an animation the first picture is read; profiles of colours and gamma are
/// left aside, as Pillow leaves them. `admit` is asked whether a picture of this width and height may be decoded, before
/// there is memory for it; [`within_bounds`] says yes to what fits [`MAX_SIDE`].
///
/// # Errors
/// A [`DecodeError`] that says what the file is instead, or what is wrong with it; what `admit` refuses.
pub fn decode(
    file: &[u8],
    admit: &mut dyn FnMut(u32, u32) -> Result<(), DecodeError>,
) -> Result<Decoded, DecodeError> {
    let mut admit = |(width, height): Size| match (width, height) {
        (0, _) | (_, 0) => Err(DecodeError::Size("it has no pixels".into())),
        _ => admit(width, height),
    };
    match Format::of_bytes(file) {
        Some(Format::Png) => png::decode(file, &mut admit),
        Some(Format::Jpeg) => jpeg::decode(file, &mut admit),
        Some(Format::Webp) => webp::decode(file, &mut admit),
        None => Err(foreign::describe(file)),
    }
}

/// Refuses pictures with a side longer than [`MAX_SIDE`].
///
/// # Errors
/// [`DecodeError::Size`].
pub fn within_bounds(width: u32, height: u32) -> Result<(), DecodeError> {
    if width.max(height) > MAX_SIDE {
        return Err(DecodeError::Size(format!("{width}x{height} is more than {MAX_SIDE} pixels a side")));
    }
    Ok(())
}

impl Decoded {
    /// Set upright, and with the texts of its metadata.
    fn with(mut self, Metadata { exif, xmp, texts }: Metadata) -> Self {
        let orientation = exif::orientation_of(exif.as_deref(), xmp.as_deref());
        let size = (self.width as usize, self.height as usize);
        let (samples, (width, height)) = upright(self.samples, self.channels, size, orientation);
        (self.samples, self.width, self.height) = (samples, width as u32, height as u32);
        self.texts = texts;
        if let Some(exif) = exif {
            // What a PNG says in its own way comes first.
            for (key, text) in exif::texts(&exif) {
                self.texts.entry(key).or_insert(text);
            }
        }
        self
    }

    /// Whether it has an alpha channel.
    pub fn has_alpha(&self) -> bool {
        self.channels.is_multiple_of(2)
    }

    /// Whether a pixel of it is transparent, be it a little.
    pub fn is_transparent(&self) -> bool {
        self.has_alpha()
            && self.samples.chunks_exact(self.channels).any(|pixel| pixel[self.channels - 1] != 255)
    }

    /// How opaque each pixel is, where there is an alpha channel.
    pub fn alpha(&self) -> Option<Vec<u8>> {
        let alpha = |pixel: &[u8]| pixel[self.channels - 1];
        self.has_alpha().then(|| self.samples.chunks_exact(self.channels).map(alpha).collect())
    }

    /// The picture on white: what is transparent shows white, and not the colour that it hides.
    pub fn into_image(self) -> Image {
        let Self { width, height, channels, samples, .. } = self;
        let over_white = |channel: u8, alpha: u8| {
            let (channel, alpha) = (u32::from(channel), u32::from(alpha));
            ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        let rgb = match channels {
            1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
            2 => samples.chunks_exact(2).flat_map(|p| [over_white(p[0], p[1]); 3]).collect(),
            3 => samples,
            _ => samples
                .chunks_exact(4)
                .flat_map(|p| [p[0], p[1], p[2]].map(|c| over_white(c, p[3])))
                .collect(),
        };
        Image { width, height, rgb }
    }

    /// The mask in which light pixels are chosen.
    ///
    /// # Errors
    /// [`DecodeError::TransparentMask`]: some programs choose what is transparent, and others what is not.
    pub fn into_mask(self) -> Result<Mask, DecodeError> {
        if self.is_transparent() {
            Err(DecodeError::TransparentMask)
        } else {
            Ok(self.into_image().to_mask())
        }
    }
}

impl Image {
    /// Reads a PNG, a JPEG or a WebP, whatever its name is: eight bits a channel, set upright as
    /// EXIF says, on white where it is transparent; and the texts of the file.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] with a [`DecodeError`]'s words, as for a side longer than [`MAX_SIDE`].
    pub fn read(path: impl AsRef<Path>) -> Result<(Self, BTreeMap<String, String>)> {
        let path = path.as_ref();
        let file = std::fs::read(path).map_err(Error::io(path))?;
        let mut decoded = decode(&file, &mut within_bounds).map_err(|problem| problem.of_file(path))?;
        let texts = std::mem::take(&mut decoded.texts);
        Ok((decoded.into_image(), texts))
    }

    /// The same of a PNG alone.
    ///
    /// # Errors
    /// As [`Image::read`]; [`Error::File`] for a file of another format.
    pub fn read_png(path: impl AsRef<Path>) -> Result<(Self, BTreeMap<String, String>)> {
        let path = path.as_ref();
        let mut start = [0; 16];
        let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
        let len = std::io::Read::read(&mut file, &mut start).map_err(Error::io(path))?;
        match Format::of_bytes(&start[..len]) {
            Some(format) if format != Format::Png => {
                let kind = format!("a {}", format.title());
                Err(DecodeError::OtherFormat { kind, advice: "here only a PNG is read" }.of_file(path))
            }
            _ => Self::read(path),
        }
    }
}

impl Mask {
    /// Reads a PNG, a JPEG or a WebP: what is light in it is chosen.
    ///
    /// # Errors
    /// As [`Image::read`]; [`Error::File`] for one with transparent pixels, which some take for what is chosen and others for
    /// what is not.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::read(path).map_err(Error::io(path))?;
        let mask = decode(&file, &mut within_bounds).and_then(Decoded::into_mask);
        mask.map_err(|problem| problem.of_file(path))
    }
}
