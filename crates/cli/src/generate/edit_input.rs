//! The pictures that an edit is drawn from.

use std::path::PathBuf;

use tch_flux::Error;
use tch_flux::generation::params::{EditSettings, Values};
use tch_flux::generation::provenance::EditRecord;
use tch_flux::generation::{Edit, Role};
use tch_flux::image::{Image, Mask};

use crate::input_images::{read, read_mask};

/// No side of a picture is longer.
pub(crate) const MAX_SIDE: u32 = 16_384;

/// The names of the pictures that an edit is drawn from, which are read once it is known that the outputs can be written.
pub(crate) struct EditInput {
    pub(crate) record: EditRecord,
    /// What the flags say of the pictures.
    pub(crate) values: Values,
}

impl EditInput {
    /// Reads the pictures and the mask, and pads the first where that is asked for.
    pub(super) fn read(&self) -> anyhow::Result<Edit> {
        let record = &self.record;
        let mut images = record.images.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut mask = record.mask.as_deref().map(read_mask).transpose()?;
        if let (Some(pad @ [left, top, right, bottom]), Some(first)) = (record.pad, images.first_mut()) {
            let (width, height) = (left + first.width + right, top + first.height + bottom);
            if width.max(height) > MAX_SIDE {
                let text = format!("with --pad the picture is {width}x{height}: more than {MAX_SIDE} a side");
                return Err(Error::Request(text).into());
            }
            let (padded, around): (Image, Mask) = first.pad(pad);
            *first = padded;
            mask = Some(around);
        }
        let EditSettings { strength, role, keep_size, follow } = record.settings;
        Ok(Edit { images, mask, strength, role, keep_size, follow })
    }
}

/// Returns the size of what is drawn from pictures by default: Kontext's own for the first reference; else as large
/// as the picture, or half of `max_pixels` where it has more than that.
pub(super) fn size_like(edit: &Edit, role: Role, max_pixels: i64) -> (i64, i64) {
    let Some(first) = edit.images.first() else { return (16, 16) };
    let (width, height) = match role {
        Role::Reference => edit.reference_size(first),
        _ => (first.width, first.height),
    };
    let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let max_pixels = max_pixels as f64;
    let factor = if width * height > max_pixels { (max_pixels / 2.0 / (width * height)).sqrt() } else { 1.0 };
    let nearest = |pixels: f64| ((pixels * factor / 16.0).round() as i64 * 16).max(16);
    (nearest(width), nearest(height))
}

/// Returns a line for each picture that is read in another size than it has.
pub(super) fn resize_notes(
    edit: &Edit,
    role: Role,
    files: &[PathBuf],
    (width, height): (i64, i64),
) -> Vec<String> {
    let name =
        |i: usize| files.get(i).map_or_else(|| "the picture".into(), |file| file.display().to_string());
    let mut lines = Vec::new();
    for (i, image) in edit.images.iter().enumerate() {
        let original = (image.width, image.height);
        let (verb, size) = match role {
            Role::Reference => ("looked at", edit.reference_size(image)),
            _ => ("drawn", (width as u32, height as u32)),
        };
        if original != size {
            lines.push(format!(
                "{} is {}x{}: it is {verb} at {}x{}",
                name(i),
                original.0,
                original.1,
                size.0,
                size.1
            ));
        }
    }
    lines
}
