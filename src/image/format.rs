//! The formats that pictures are read from and written in.

use std::path::Path;

/// A format of pictures that is read and written; WebP is written with the feature `webp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Loses nothing.
    Png,
    /// Loses something; has no transparency.
    Jpeg,
    /// Read whether it loses something or not; written so that it does, as OpenAI's servers do.
    Webp,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jpeg, Self::Webp];

    /// Their names, as [`Format::name`] has them.
    pub const NAMES: [&'static str; 3] = [Self::Png.name(), Self::Jpeg.name(), Self::Webp.name()];

    /// The quality that a JPEG or WebP is written with where nothing else is said, of 100.
    pub const QUALITY: u8 = 100;

    /// `png`, `jpeg` or `webp`, as OpenAI's `output_format` names them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// `PNG`, `JPEG` or `WebP`, as sentences have it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Webp => "WebP",
        }
    }

    /// The format of a name that [`Format::name`] gives.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The type of its contents in HTTP.
    pub const fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    /// The format that a file of this name is written in: `.png`, `.jpg`, `.jpeg` or `.webp`, in letters of either case.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "webp" => Some(Self::Webp),
            _ => None,
        }
    }

    /// The format that a file with these first bytes is in, whatever it is called.
    pub fn of_bytes(file: &[u8]) -> Option<Self> {
        match file {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            _ => None,
        }
    }

    /// The longest side that a file of it can have, in pixels.
    pub const fn max_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX as u32,
            Self::Jpeg => 65_535,
            Self::Webp => 16_383,
        }
    }
}
