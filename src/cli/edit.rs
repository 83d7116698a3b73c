//! `edit`: pictures and a prompt in, PNG files out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tch_flux::Error;
use tch_flux::image::{Image, Mask};
use tch_flux::pipeline::{self, Role};
use tch_flux::recipe::Begun;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::generate::{Begin, Generate};

#[derive(Args)]
pub(super) struct Edit {
    /// The picture to begin with, PNG or JPEG; as a reference it may be given several times.
    #[arg(short, long, value_name = "FILE", required_unless_present = "from_image")]
    image: Vec<PathBuf>,
    /// What is drawn anew is white in it, what is kept black; as large as the picture.
    #[arg(long, value_name = "FILE", conflicts_with = "pad")]
    mask: Option<PathBuf>,
    /// Pixels to draw around the picture, on each side.
    #[arg(long, value_name = "LEFT,TOP,RIGHT,BOTTOM", value_parser = parse_pad)]
    pad: Option<Pad>,
    /// How much of a start is drawn anew: 1 forgets it. [default: 0.6]
    #[arg(long)]
    strength: Option<f64>,
    /// What the picture is to the model. [default: what its input channels say; a start, where they say nothing; a
    /// reference, where the model's name has \"kontext\" in it]
    #[arg(long = "as", value_enum, value_name = "ROLE")]
    role: Option<RoleArg>,
    /// References stay as large as they are. [default: one of the sizes that Kontext was trained on]
    #[arg(long)]
    keep_size: bool,
    /// The picture's edges are followed, as OpenCV's Canny finds them, not the picture itself.
    #[arg(long)]
    canny: bool,
    #[command(flatten)]
    generate: Generate,
}

/// Pixels around a picture: left, top, right, bottom.
#[derive(Clone, Copy)]
struct Pad([u32; 4]);

#[derive(Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Noised and drawn anew from there: image-to-image, and inpainting with a mask.
    Start,
    /// Looked at by Kontext.
    Reference,
    /// Filled by Fill where the mask says.
    Fill,
    /// Edges or depths, followed by Canny or Depth.
    Control,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Start => Self::Start,
            RoleArg::Reference => Self::Reference,
            RoleArg::Fill => Self::Fill,
            RoleArg::Control => Self::Control,
        }
    }
}

impl Edit {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let before = self.generate.recipe()?.and_then(|recipe| recipe.edit);
        let begun = self.begun(before);
        if begun.images.is_empty() {
            let text = "that picture does not say by name which ones it was begun with: give --image";
            return Err(Error::Request(text.into()).into());
        }
        let mut images = begun.images.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut mask = begun.mask.as_deref().map(|path| anyhow::Ok(read(path)?.to_mask())).transpose()?;
        if let Some(pad) = begun.pad {
            let (picture, around): (Image, Mask) = images[0].pad(pad);
            images[0] = picture;
            mask = Some(around);
        }
        let edit = pipeline::Edit {
            images,
            mask,
            strength: begun.strength,
            role: begun.role,
            keep_size: begun.keep_size,
            canny: begun.canny,
        };
        self.generate.run_from(Some(Begin { edit: Arc::new(edit), begun }))
    }

    /// What is asked for, and the rest as it was before.
    fn begun(&self, before: Option<Begun>) -> Begun {
        let mut begun = before.unwrap_or_else(|| Begun {
            images: Vec::new(),
            mask: None,
            pad: None,
            strength: pipeline::Edit::STRENGTH,
            role: self.generate.names().find_map(|name| Role::of_model(&name.to_string_lossy())),
            keep_size: false,
            canny: false,
        });
        if !self.image.is_empty() {
            begun.images = self.image.clone();
        }
        if self.mask.is_some() || self.pad.is_some() {
            (begun.mask, begun.pad) = (self.mask.clone(), self.pad.map(|pad| pad.0));
        }
        begun.strength = self.strength.unwrap_or(begun.strength);
        begun.role = self.role.map(Role::from).or(begun.role);
        begun.keep_size |= self.keep_size;
        begun.canny |= self.canny;
        begun
    }
}

/// A PNG or a JPEG.
pub(super) fn read(path: &Path) -> anyhow::Result<Image> {
    let file = fs::read(path).with_context(|| path.display().to_string())?;
    if !file.starts_with(&[0xff, 0xd8, 0xff]) {
        return Ok(Image::read_png(path)?.0);
    }
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&file), options);
    let rgb = decoder.decode().with_context(|| path.display().to_string())?;
    let (width, height) = decoder.dimensions().with_context(|| path.display().to_string())?;
    Ok(Image { width: width as u32, height: height as u32, rgb })
}

fn parse_pad(text: &str) -> Result<Pad, String> {
    // More than the longest side of a picture is no canvas.
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|pixels| *pixels <= 16_384);
    let sides: Option<Vec<u32>> = text.split(',').map(side).collect();
    let sides = sides.and_then(|sides| <[u32; 4]>::try_from(sides).ok());
    sides.map(Pad).ok_or_else(|| "expected four numbers of pixels: left,top,right,bottom".into())
}
