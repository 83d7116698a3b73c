//! ControlNets and their control images, as flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tch_flux::Error;
use tch_flux::generation::params::Values;
use tch_flux::generation::provenance::ControlRecord;
use tch_flux::generation::{Control, Pipeline};

use super::input_images::read;
use super::parameter_args::ParameterArgs;
use super::targets::Input;

#[derive(Args)]
pub(super) struct ControlArgs {
    /// A ControlNet: a file or folder in diffusers' layout (InstantX, Shakker) or XLabs'; may be given several times, one
    /// for each --control-image.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    controlnet: Vec<PathBuf>,
}

impl ControlArgs {
    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        self.controlnet.iter().map(|path| Input::new("--controlnet", path)).collect()
    }

    /// Returns what the flags ask for, and without them what a picture was drawn with before.
    pub(super) fn records(
        &self,
        parameters: &ParameterArgs<false>,
        before: Vec<ControlRecord>,
    ) -> anyhow::Result<Vec<ControlRecord>> {
        let images = parameters.files("control_image");
        let (nets, pictures) = (self.controlnet.len(), images.len());
        let with_settings = |all| with_settings(all, &parameters.values);
        if pictures == 0 && nets == 0 {
            return with_settings(before);
        }
        if pictures == before.len() && before.iter().any(|record| record.image.is_none()) {
            return with_settings(self.with_files(images, before)?);
        }
        if pictures == 0 || nets == 0 || (nets != 1 && nets != pictures) {
            let text = format!(
                "{nets} --controlnet and {pictures} --control-image: one for each picture, or one for all"
            );
            return Err(Error::Request(text).into());
        }
        let record = |i: usize| ControlRecord {
            controlnet: self.controlnet[if nets == 1 { 0 } else { i }].clone(),
            image: Some(images[i].clone()),
            strength: 1.0,
            mode: None,
            start: 0.0,
            end: 1.0,
            canny: false,
        };
        with_settings((0..pictures).map(record).collect())
    }

    /// Names the files in the records of a picture that came from a server, which does not know them.
    fn with_files(
        &self,
        images: &[PathBuf],
        mut before: Vec<ControlRecord>,
    ) -> anyhow::Result<Vec<ControlRecord>> {
        let nets = self.controlnet.len();
        if nets > 1 && nets != before.len() {
            let text = format!("{nets} --controlnet for {} --control-image", before.len());
            return Err(Error::Request(text).into());
        }
        for ((i, record), image) in before.iter_mut().enumerate().zip(images) {
            record.image = Some(image.clone());
            if let Some(net) = self.controlnet.get(if nets == 1 { 0 } else { i }) {
                record.controlnet.clone_from(net);
            }
        }
        Ok(before)
    }
}

/// Applies what the values say to all records.
fn with_settings(mut all: Vec<ControlRecord>, values: &Values) -> anyhow::Result<Vec<ControlRecord>> {
    let pictures = all.len();
    let numbers =
        |key| Values::per_picture(key, &values.numbers(key), "control_image", pictures).map_err(Error::from);
    let (strengths, starts, ends) =
        (numbers("control_strength")?, numbers("control_start")?, numbers("control_end")?);
    let modes = Values::per_picture("control_mode", &values.modes(), "control_image", pictures);
    let modes = modes.map_err(Error::from)?;
    for (i, record) in all.iter_mut().enumerate() {
        record.strength = strengths[i].unwrap_or(record.strength);
        record.mode = modes[i].or(record.mode);
        record.start = starts[i].unwrap_or(record.start);
        record.end = ends[i].unwrap_or(record.end);
        record.canny = values.boolean("control_canny").unwrap_or(record.canny);
    }
    Ok(all)
}

/// Loads the ControlNets into the pipeline, each once, and reads their control images.
pub(super) fn load(pipeline: &mut Pipeline, records: &[ControlRecord]) -> anyhow::Result<Vec<Control>> {
    let files = records.iter().map(|record| record.image.as_deref()).collect::<Option<Vec<_>>>();
    let Some(files) = files else {
        let text = format!(
            "that picture does not say by name which {} its ControlNets followed: give --controlnet and --control-image",
            records.len()
        );
        return Err(Error::Request(text).into());
    };
    let mut nets: Vec<PathBuf> = records.iter().map(|record| record.controlnet.clone()).collect();
    nets.sort();
    nets.dedup();
    pipeline.set_controlnets(&nets)?;
    let control = |(record, file): (&ControlRecord, &Path)| {
        Ok(Control {
            net: nets.iter().position(|net| *net == record.controlnet).unwrap_or_default(),
            image: Arc::new(read(file)?),
            strength: record.strength,
            mode: record.mode,
            start: record.start,
            end: record.end,
            canny: record.canny,
        })
    };
    records.iter().zip(files).map(control).collect()
}
