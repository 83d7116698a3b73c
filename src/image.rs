//! Pictures: eight bits a channel, read from PNG, JPEG and WebP, and written as files that know how they were made.

mod canny;
mod codec;
mod decode_error;
mod encode;
mod exif;
mod foreign;
mod format;
mod grid;
mod orientation;
mod psnr;
mod resize;
#[cfg(test)]
mod tests;

pub use codec::{Decoded, MAX_SIDE, decode, within_bounds};
pub use decode_error::DecodeError;
pub use exif::orientation;
pub use foreign::describe;
pub use format::Format;
use resize::Filter;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// A picture: rows from the top, three bytes a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width · height · 3` bytes: red, green, blue.
    pub rgb: Vec<u8>,
}

/// One byte for each pixel, rows from the top: 255 is chosen, 0 is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width · height` bytes.
    pub chosen: Vec<u8>,
}

impl Mask {
    /// From this value on a pixel is chosen.
    pub const CHOSEN: u8 = 128;

    /// The mask in another size, as Pillow's `resize` with `LANCZOS` makes it of grey values; sides are at least 1.
    pub fn resize(&self, width: u32, height: u32) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let (from, to) = ((self.width, self.height), (width, height));
        let chosen = resize::resize(&self.chosen, 1, from, to, Filter::Lanczos);
        Self { width, height, chosen }
    }

    /// `[1, 1, H, W]`: 1 where a pixel is chosen, else 0. A value from the middle on counts as chosen.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let bytes = Tensor::f_from_slice(&self.chosen)?;
        Ok(bytes.f_ge(i64::from(Self::CHOSEN))?.f_to_kind(Kind::Float)?.f_reshape([
            1,
            1,
            i64::from(self.height),
            i64::from(self.width),
        ])?)
    }
}

impl Image {
    /// One decoded picture `[3, H, W]` in −1..1: clamped, and rounded down as the official code does it
    /// (`(127.5 * (x + 1.0)).byte()`, `black-forest-labs/flux` 802fb47, `src/flux/util.py` line 261).
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`].
    pub fn from_tensor(x: &Tensor) -> Result<Self> {
        let [3, height, width] = x.size()[..] else {
            return Err(Error::Shape { what: "picture", expected: "[3, H, W]".into(), found: x.size() });
        };
        let x = x.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?;
        if !bool::try_from(x.isfinite().all())? {
            let hint = "try another kind: the autoencoder overflows in f16";
            return Err(Error::NotFinite { what: "the decoded picture", hint });
        }
        let bytes =
            ((x.f_clamp(-1.0, 1.0)?.permute([1, 2, 0]) + 1.0) * 127.5).f_to_kind(Kind::Uint8)?.contiguous();
        let mut rgb = vec![0; bytes.numel()];
        bytes.f_copy_data_u8(&mut rgb, bytes.numel())?;
        Ok(Self { width: width as u32, height: height as u32, rgb })
    }

    /// The picture on a larger canvas, with so many pixels around it on the left, above, on the right and below, and the
    /// mask that chooses those. They take the grey between black and white.
    pub fn pad(&self, [left, top, right, bottom]: [u32; 4]) -> (Self, Mask) {
        let (width, height) = (left + self.width + right, top + self.height + bottom);
        let pixels = width as usize * height as usize;
        let (mut rgb, mut chosen) = (vec![128; 3 * pixels], vec![255; pixels]);
        let row = self.width as usize;
        for y in 0..self.height as usize {
            let (from, to) = (y * row, (y + top as usize) * width as usize + left as usize);
            rgb[3 * to..3 * (to + row)].copy_from_slice(&self.rgb[3 * from..3 * (from + row)]);
            chosen[to..to + row].fill(0);
        }
        (Self { width, height, rgb }, Mask { width, height, chosen })
    }

    /// Its edges, white on black: `cv2.Canny(rgb, low, high)`, bit for bit. The official code takes 50 and 200.
    pub fn canny(&self, low: i32, high: i32) -> Self {
        let edges = canny::canny(&self.rgb, (self.width, self.height), low, high);
        Self { rgb: edges.into_iter().flat_map(|edge| [edge; 3]).collect(), ..*self }
    }

    /// As a mask: what is light is chosen. The grey of a colour is Pillow's.
    pub fn to_mask(&self) -> Mask {
        let grey = |p: &[u8]| {
            let [r, g, b] = [p[0], p[1], p[2]].map(u32::from);
            ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
        };
        Mask { width: self.width, height: self.height, chosen: self.rgb.chunks_exact(3).map(grey).collect() }
    }

    /// `[1, 3, H, W]` in −1..1, as diffusers' `VaeImageProcessor` makes it.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let size = [1, i64::from(self.height), i64::from(self.width), 3];
        let bytes = Tensor::f_from_slice(&self.rgb)?.f_reshape(size)?.permute([0, 3, 1, 2]);
        Ok(bytes.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
    }

    /// The picture in another size, as Pillow's `resize` with `LANCZOS` makes it; sides are at least 1.
    pub fn resize(&self, width: u32, height: u32) -> Self {
        self.resize_with(width, height, Filter::Lanczos)
    }

    /// The same with Pillow's `BICUBIC`, which looks at every pixel also where the picture becomes smaller.
    pub fn resize_bicubic(&self, width: u32, height: u32) -> Self {
        self.resize_with(width, height, Filter::Bicubic)
    }

    fn resize_with(&self, width: u32, height: u32, filter: Filter) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let rgb = resize::resize(&self.rgb, 3, (self.width, self.height), (width, height), filter);
        Self { width, height, rgb }
    }

    /// As it is to be seen, of a camera that was held so: [`orientation`] reads it. A number that EXIF does not know
    /// changes nothing.
    pub fn upright(self, orientation: u16) -> Self {
        let size = (self.width as usize, self.height as usize);
        let (rgb, (width, height)) = orientation::upright(self.rgb, 3, size, orientation);
        let (width, height) = (width as u32, height as u32);
        Self { width, height, rgb }
    }
}
