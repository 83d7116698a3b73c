//! Pictures to files. A file appears whole or not at all: it is written beside its name, and renamed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Format, Image};
use crate::error::{Error, Result};

impl Image {
    /// The picture as a file in memory, with the given texts in it: in a PNG as texts of these keys, in a JPEG or WebP
    /// in EXIF, from where [`Image::read`] takes them too. `quality` is that of a JPEG or WebP, from 0 to 100.
    ///
    /// # Errors
    /// [`Error::Request`] for a side that is longer than the format allows, for bytes that are not three for each pixel, for a
    /// text's key that PNG does not allow, and for a WebP without the feature `webp`.
    pub fn encode(&self, format: Format, quality: u8, texts: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let most = format.max_side();
        if self.width.max(self.height) > most {
            let (title, Self { width, height, .. }) = (format.title(), self);
            return Err(Error::Request(format!(
                "a {title} has at most {most} pixels a side, not {width}x{height}"
            )));
        }
        let bytes =
            (self.width as usize).checked_mul(self.height as usize).and_then(|pixels| pixels.checked_mul(3));
        if bytes != Some(self.rgb.len()) || self.rgb.is_empty() {
            let Self { width, height, rgb } = self;
            return Err(Error::Request(format!(
                "a picture of {width}x{height} pixels has not {} bytes",
                rgb.len()
            )));
        }
        match format {
            Format::Png => self.to_png(texts),
            Format::Jpeg => super::codec::write_jpeg(self, quality, texts),
            #[cfg(feature = "webp")]
            Format::Webp => super::codec::write_webp(self, quality, texts),
            #[cfg(not(feature = "webp"))]
            Format::Webp => Err(Error::Request("a WebP is written with the feature `webp`".into())),
        }
    }

    /// Writes the picture with the given texts in it, in the format that the file's name says; see [`Image::encode`]. The
    /// file appears whole or not at all.
    ///
    /// # Errors
    /// As [`Image::encode`]; [`Error::Request`] for a name that says no format; [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>, quality: u8, texts: &BTreeMap<String, String>) -> Result<()> {
        let path = path.as_ref();
        match Format::of_path(path) {
            Some(Format::Png) => self.write_png(path, texts),
            Some(format) => {
                let file = self.encode(format, quality, texts)?;
                write_whole(path, |out| out.write_all(&file).map_err(Error::io(path)))
            }
            None => Err(Error::Request(format!(
                "{}: pictures are written as PNG, JPEG or WebP: end the name with .png, .jpg or .webp",
                path.display()
            ))),
        }
    }

    /// Writes a PNG with the given texts in it. The file appears whole or not at all: it is written beside and renamed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_png(&self, path: impl AsRef<Path>, texts: &BTreeMap<String, String>) -> Result<()> {
        let path = path.as_ref();
        write_whole(path, |out| self.write_png_to(out, texts).map_err(Error::io(path)))
    }

    /// Writes a PNG with the given texts in it into `out`, smaller than [`Image::to_png`]'s.
    ///
    /// # Errors
    /// Those of `out`, and one for a text's key that PNG does not allow.
    pub fn write_png_to(&self, out: impl Write, texts: &BTreeMap<String, String>) -> std::io::Result<()> {
        self.encode_png(out, texts, ::png::Compression::Balanced).map_err(|problem| match problem {
            ::png::EncodingError::IoError(source) => source,
            other => std::io::Error::other(other),
        })
    }

    /// A PNG with the given texts in it, in memory; soon made, at the price of some more bytes.
    ///
    /// # Errors
    /// [`Error::Request`] for a text's key that PNG does not allow.
    pub fn to_png(&self, texts: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let mut png = Vec::new();
        self.encode_png(&mut png, texts, ::png::Compression::Fast)
            .map_err(|problem| Error::Request(format!("PNG: {problem}")))?;
        Ok(png)
    }

    fn encode_png(
        &self,
        out: impl Write,
        texts: &BTreeMap<String, String>,
        compression: ::png::Compression,
    ) -> Result<(), ::png::EncodingError> {
        let mut encoder = ::png::Encoder::new(out, self.width, self.height);
        encoder.set_color(::png::ColorType::Rgb);
        encoder.set_depth(::png::BitDepth::Eight);
        encoder.set_compression(compression);
        for (key, text) in texts {
            encoder.add_itxt_chunk(key.clone(), text.clone())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()
    }
}

/// Writes a file beside its name, and renames it once all of it is on the disk.
fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let beside = beside(path);
    let written = (|| {
        let mut out = BufWriter::new(File::create(&beside).map_err(Error::io(path))?);
        write(&mut out)?;
        out.flush().map_err(Error::io(path))?;
        out.get_ref().sync_all().map_err(Error::io(path))?;
        std::fs::rename(&beside, path).map_err(Error::io(path))
    })();
    if written.is_err() {
        // What failed half-way is of no use; that it cannot be removed is not what went wrong.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// A name in the same folder that nobody else uses, and that is short wherever the file's own is long.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".tch-flux.{}.{next}.part", std::process::id()))
}
