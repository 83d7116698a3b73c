//! `edit`: pictures and a prompt in, picture files out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tch_flux::Error;
use tch_flux::generation::provenance::EditRecord;
use tch_flux::generation::{self, ControlPreprocess, Role};

use super::generate::{EditInput, Generate, MAX_SIDE};

#[derive(Args)]
pub(super) struct Edit {
    /// The picture to begin with, PNG, JPEG or WebP; as a reference it may be given several times.
    #[arg(short, long, value_name = "FILE", help_heading = "Picture")]
    image: Vec<PathBuf>,
    /// What is drawn anew is white in it, what is kept black; as large as the picture.
    #[arg(long, value_name = "FILE", conflicts_with = "pad", help_heading = "Picture")]
    mask: Option<PathBuf>,
    /// Pixels to draw around the picture, on each side.
    #[arg(long, value_name = "LEFT,TOP,RIGHT,BOTTOM", value_parser = parse_pad, help_heading = "Picture", hide_short_help = true)]
    pad: Option<Pad>,
    /// How much of a start is drawn anew: 1 forgets it. [default: 0.6]
    #[arg(long, help_heading = "Picture")]
    strength: Option<f64>,
    /// What the picture is to the model.
    ///
    /// Without it, what the model's input channels say; a start, where they say nothing; a reference, where the model's name
    /// has "kontext" in it.
    #[arg(long = "as", value_enum, value_name = "ROLE", help_heading = "Picture")]
    role: Option<RoleArg>,
    /// References stay as large as they are. [default: one of the sizes that Kontext was trained on]
    #[arg(long, help_heading = "Picture", hide_short_help = true)]
    keep_size: bool,
    /// The picture's edges are followed, as OpenCV's Canny finds them, not the picture itself.
    #[arg(long, help_heading = "Picture", hide_short_help = true)]
    canny: bool,
    /// How far away the picture's pixels are is followed, as the model of --depth-model says, not the picture itself.
    #[arg(long, conflicts_with = "canny", help_heading = "Picture", hide_short_help = true)]
    depth: bool,
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
        if self.image.is_empty() && !self.generate.has_from_image() {
            let text = "an edit is drawn from a picture: give --image FILE; from the prompt alone draws `tch-flux generate`";
            return Err(Error::Request(text.into()).into());
        }
        let before = self.generate.provenance()?.and_then(|provenance| provenance.edit);
        let record = self.record(before);
        if record.images.is_empty() {
            let text = "that picture does not say by name which ones it was begun with: give --image";
            return Err(Error::Request(text.into()).into());
        }
        let mut role_flags = Vec::new();
        if self.strength.is_some() {
            role_flags.push(("--strength", Role::Start));
        }
        if self.keep_size {
            role_flags.push(("--keep-size", Role::Reference));
        }
        self.generate.run_with(Some(EditInput { record, role_flags }))
    }

    /// Returns what the flags ask for; the rest stays as it was before.
    fn record(&self, before: Option<EditRecord>) -> EditRecord {
        let mut record = before.unwrap_or_else(|| EditRecord {
            images: Vec::new(),
            mask: None,
            pad: None,
            strength: generation::Edit::STRENGTH,
            role: self.generate.model_names().find_map(|name| Role::of_model(&name.to_string_lossy())),
            keep_size: false,
            follow: ControlPreprocess::Picture,
        });
        if !self.image.is_empty() {
            record.images = self.image.clone();
        }
        if self.mask.is_some() || self.pad.is_some() {
            (record.mask, record.pad) = (self.mask.clone(), self.pad.map(|pad| pad.0));
        }
        record.strength = self.strength.unwrap_or(record.strength);
        record.role = self.role.map(Role::from).or(record.role);
        record.keep_size |= self.keep_size;
        if self.canny {
            record.follow = ControlPreprocess::Canny;
        } else if self.depth {
            record.follow = ControlPreprocess::Depth;
        }
        record
    }
}

fn parse_pad(text: &str) -> Result<Pad, String> {
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|pixels| *pixels <= MAX_SIDE);
    let sides: Option<Vec<u32>> = text.split(',').map(side).collect();
    let sides = sides.and_then(|sides| <[u32; 4]>::try_from(sides).ok());
    let pad = sides.ok_or("expected four numbers of pixels: left,top,right,bottom")?;
    if pad == [0; 4] {
        Err("nothing to draw: one side at least must have pixels".into())
    } else {
        Ok(Pad(pad))
    }
}
