//! The formats that pictures are written in.

use std::path::{Path, PathBuf};

use tch_flux::Error;
use tch_flux::image::Format;

/// The format that a file of this name is written in.
///
/// # Errors
/// [`Error::Request`] for a name that says none, with those that there are.
pub(super) fn format(path: &Path) -> Result<Format, Error> {
    Format::of_path(path).ok_or_else(|| {
        let text = "pictures are written as PNG, JPEG or WebP: end the name with .png, .jpg, .jpeg or .webp";
        Error::Request(format!("{}: {text}", path.display()))
    })
}

/// The name of a picture's file, whose ending says its format.
pub(super) fn parse_picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    format(&path).map(|_| path).map_err(|error| error.to_string())
}

/// Whether a picture of this width and height in pixels can be written in the format that the file's name says.
///
/// # Errors
/// [`Error::Request`] with the format's largest side, and as [`format`].
pub(super) fn check_size(path: &Path, size: (u32, u32)) -> Result<(), Error> {
    let format = format(path)?;
    let (most, (width, height)) = (format.max_side(), size);
    if width.max(height) <= most {
        return Ok(());
    }
    let title = format.title();
    let text =
        format!("a {title} has at most {most} pixels a side, not {width}x{height}: end the name with .png");
    Err(Error::Request(format!("{}: {text}", path.display())))
}

/// The quality that pictures of these names are written with.
///
/// # Errors
/// [`Error::Request`] where none of them is of a format that has one.
pub(super) fn quality<'a>(asked: Option<u8>, mut paths: impl Iterator<Item = &'a Path>) -> Result<u8, Error> {
    if asked.is_some() && paths.all(|path| Format::of_path(path) == Some(Format::Png)) {
        return Err(Error::Request("--output-quality is for JPEG and WebP: a PNG loses nothing".into()));
    }
    Ok(asked.unwrap_or(Format::QUALITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_format() {
        for (name, expected) in [
            ("a.png", Format::Png),
            ("a.PNG", Format::Png),
            ("b/a.b.jpg", Format::Jpeg),
            ("a.JPEG", Format::Jpeg),
            ("{seed}.webp", Format::Webp),
        ] {
            assert_eq!(format(Path::new(name)).unwrap(), expected, "{name}");
        }
        for name in ["a", "a.", ".png", "png", "a.tiff", "a.png/", "a.png.bak", "a.{index}", "out/"] {
            let named = format(Path::new(name));
            assert!(named.is_err() || name == "a.png/", "{name}");
        }
    }

    #[test]
    fn a_quality_is_for_formats_that_have_one() {
        let quality = |asked, names: &[&str]| quality(asked, names.iter().map(Path::new));
        assert_eq!(quality(None, &["a.png"]).unwrap(), 100);
        assert_eq!(quality(Some(7), &["a.png", "b.jpg"]).unwrap(), 7);
        assert!(quality(Some(7), &["a.png"]).is_err());
    }
}
