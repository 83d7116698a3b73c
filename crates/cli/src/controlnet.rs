//! ControlNets and their control images, as flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tch_flux::Error;
use tch_flux::generation::provenance::ControlRecord;
use tch_flux::generation::{Control, Pipeline};
use tch_flux::models::flux1::MODES;

use super::input_images::read;
use super::targets::Input;

#[derive(Args)]
pub(super) struct ControlArgs {
    /// A ControlNet: a file or folder in diffusers' layout (InstantX, Shakker) or XLabs'; may be given several times, one
    /// for each --control-image.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    controlnet: Vec<PathBuf>,
    /// What the ControlNet follows, PNG, JPEG or WebP; of one ControlNet there may be several.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    control_image: Vec<PathBuf>,
    /// How much of what the ControlNet says is added; once for all, or for each picture. [default: 1]
    #[arg(long, value_name = "X", hide_short_help = true)]
    control_strength: Vec<f64>,
    /// What the picture is to a union ControlNet: canny, tile, depth, blur, pose, gray, low-quality, or a number; once for
    /// all, or for each picture.
    #[arg(long, value_name = "MODE", value_parser = parse_mode, hide_short_help = true)]
    control_mode: Vec<i64>,
    /// The share of the steps after which the ControlNet begins. [default: 0]
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    control_start: Vec<f64>,
    /// The share of the steps after which the ControlNet ends. [default: 1]
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    control_end: Vec<f64>,
    /// The edges of the pictures are followed, as OpenCV's Canny finds them, not the pictures themselves.
    #[arg(long, hide_short_help = true)]
    control_canny: bool,
}

impl ControlArgs {
    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let nets = self.controlnet.iter().map(|path| Input::new("--controlnet", path));
        nets.chain(self.control_image.iter().map(|path| Input::new("--control-image", path))).collect()
    }

    /// Returns what the flags ask for, and without them what a picture was drawn with before.
    pub(super) fn records(&self, before: Vec<ControlRecord>) -> anyhow::Result<Vec<ControlRecord>> {
        let (nets, pictures) = (self.controlnet.len(), self.control_image.len());
        if pictures == 0 && nets == 0 {
            return self.with_settings(before);
        }
        if pictures == before.len() && before.iter().any(|record| record.image.is_none()) {
            return self.with_settings(self.with_files(before)?);
        }
        if pictures == 0 || nets == 0 || (nets != 1 && nets != pictures) {
            let text = format!(
                "{nets} --controlnet and {pictures} --control-image: one for each picture, or one for all"
            );
            return Err(Error::Request(text).into());
        }
        let record = |i: usize| ControlRecord {
            controlnet: self.controlnet[if nets == 1 { 0 } else { i }].clone(),
            image: Some(self.control_image[i].clone()),
            strength: 1.0,
            mode: None,
            start: 0.0,
            end: 1.0,
            canny: false,
        };
        self.with_settings((0..pictures).map(record).collect())
    }

    /// Names the files in the records of a picture that came from a server, which does not know them.
    fn with_files(&self, mut before: Vec<ControlRecord>) -> anyhow::Result<Vec<ControlRecord>> {
        let nets = self.controlnet.len();
        if nets > 1 && nets != before.len() {
            let text = format!("{nets} --controlnet for {} --control-image", before.len());
            return Err(Error::Request(text).into());
        }
        for ((i, record), image) in before.iter_mut().enumerate().zip(&self.control_image) {
            record.image = Some(image.clone());
            if let Some(net) = self.controlnet.get(if nets == 1 { 0 } else { i }) {
                record.controlnet.clone_from(net);
            }
        }
        Ok(before)
    }

    /// Applies what the other flags say to all records.
    fn with_settings(&self, mut all: Vec<ControlRecord>) -> anyhow::Result<Vec<ControlRecord>> {
        let pictures = all.len();
        let given = [
            ("--control-strength", self.control_strength.len()),
            ("--control-mode", self.control_mode.len()),
            ("--control-start", self.control_start.len()),
            ("--control-end", self.control_end.len()),
        ];
        if let Some((flag, count)) =
            given.into_iter().find(|(_, count)| !matches!(count, 0 | 1) && *count != pictures)
        {
            let text = format!("{count} {flag} for {pictures} --control-image: one for all, or one for each");
            return Err(Error::Request(text).into());
        }
        let any = self.control_canny || given.iter().any(|(_, count)| *count > 0);
        if any && pictures == 0 {
            let text = "no picture is followed: give --controlnet and --control-image";
            return Err(Error::Request(text.into()).into());
        }
        for (i, record) in all.iter_mut().enumerate() {
            record.strength = pick(&self.control_strength, i).unwrap_or(record.strength);
            record.mode = pick(&self.control_mode, i).or(record.mode);
            record.start = pick(&self.control_start, i).unwrap_or(record.start);
            record.end = pick(&self.control_end, i).unwrap_or(record.end);
            record.canny |= self.control_canny;
        }
        Ok(all)
    }
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

/// Returns the value for all pictures, or that of picture `i`.
fn pick<T: Copy>(values: &[T], i: usize) -> Option<T> {
    values.get(if values.len() == 1 { 0 } else { i }).copied()
}

fn parse_mode(text: &str) -> Result<i64, String> {
    let name = text.trim().to_lowercase().replace(['_', ' '], "-");
    let place = MODES.iter().position(|mode| *mode == name).map(|place| place as i64);
    let number = || name.parse().ok().filter(|number| *number >= 0);
    place.or_else(number).ok_or_else(|| format!("expected a number or one of {}", MODES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_names_and_numbers() {
        assert_eq!(parse_mode("Canny"), Ok(0));
        assert_eq!(parse_mode("low_quality"), Ok(6));
        assert_eq!(parse_mode("9"), Ok(9));
        assert!(parse_mode("-1").is_err() && parse_mode("edges").is_err());
    }
}
