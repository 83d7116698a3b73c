//! `edit`: pictures and a prompt in, picture files out.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use tch_flux::Error;
use tch_flux::generation::Role;
use tch_flux::generation::params::EditSettings;
use tch_flux::generation::provenance::EditRecord;

use super::generate::{EditInput, Generate, MAX_SIDE};
use super::parameter_args::ParameterArgs;

#[derive(Args)]
pub(super) struct Edit {
    #[command(flatten)]
    picture: ParameterArgs<true>,
    /// Pixels to draw around the picture, on each side.
    #[arg(long, value_name = "LEFT,TOP,RIGHT,BOTTOM", value_parser = parse_pad, conflicts_with = "mask", help_heading = "Picture", hide_short_help = true)]
    pad: Option<Pad>,
    #[command(flatten)]
    generate: Generate,
}

/// Pixels around a picture: left, top, right, bottom.
#[derive(Clone, Copy)]
struct Pad([u32; 4]);

impl Edit {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if self.picture.files("image").is_empty() && !self.generate.has_from_image() {
            let text = "an edit is drawn from a picture: give --image FILE; from the prompt alone draws `tch-flux generate`";
            return Err(Error::Request(text.into()).into());
        }
        self.picture.check()?;
        self.picture.values.check_rules(|_| true).map_err(Error::from)?;
        let before = self.generate.provenance()?.and_then(|provenance| provenance.edit);
        let record = self.record(before);
        if record.images.is_empty() {
            let text = "that picture does not say by name which ones it was begun with: give --image";
            return Err(Error::Request(text.into()).into());
        }
        let values = self.picture.values;
        self.generate.run_with(Some(EditInput { record, values }))
    }

    /// Returns what the flags ask for; the rest stays as it was before.
    fn record(&self, before: Option<EditRecord>) -> EditRecord {
        let mut record = before.unwrap_or_else(|| {
            let role = self.generate.model_names().find_map(|name| Role::of_model(&name.to_string_lossy()));
            EditRecord::new(EditSettings { role, ..EditSettings::default() })
        });
        let images = self.picture.files("image");
        if !images.is_empty() {
            record.images = images.to_vec();
        }
        let mask = self.picture.file("mask");
        if mask.is_some() || self.pad.is_some() {
            (record.mask, record.pad) = (mask.map(Path::to_path_buf), self.pad.map(|pad| pad.0));
        }
        record.settings = self.picture.values.edit(record.settings);
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
