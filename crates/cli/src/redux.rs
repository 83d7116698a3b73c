//! `--redux`: pictures that a drawing shall look like.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};
use tch_flux::Error;
use tch_flux::generation::params::Values;
use tch_flux::generation::provenance::{ReduxImageRecord, ReduxRecord};
use tch_flux::generation::{PartOverrides, Parts, Redux, ReduxImage};

use super::progress::Verbosity;
use super::targets::Input;
use super::{hub, input_images};

#[derive(Args)]
pub(super) struct ReduxArgs {
    /// A picture that the drawing shall look like, PNG, JPEG or WebP; may be given several times. What Redux sees of it is
    /// multiplied by STRENGTH, and of a sum the pooled text by POOLED; without a PROMPT it is drawn from pictures alone.
    #[arg(long, value_name = "FILE[=STRENGTH[,POOLED]]", value_parser = parse_image, hide_short_help = true)]
    redux: Vec<ReduxImageArg>,
    #[command(flatten)]
    model: ReduxModelArgs,
}

/// A picture, and its strength and multiple of the pooled text where they are said.
#[derive(Clone, Debug, PartialEq)]
struct ReduxImageArg {
    file: PathBuf,
    numbers: Option<(f64, f64)>,
}

/// Where the models of Redux lie.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ReduxModelArgs {
    /// Redux's embedder, a folder as its official repository has it, or OWNER/NAME[@REVISION] on the hub; instead of what
    /// the model's folder has.
    #[arg(long, value_name = "PATH|OWNER/NAME", hide_short_help = true)]
    redux_model: Option<PathBuf>,
    /// SigLIP, which reads the pictures of Redux; instead of that folder's.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    image_encoder: Option<PathBuf>,
}

impl ReduxModelArgs {
    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let model = self.redux_model.iter().map(|path| Input::new("--redux-model", path));
        model.chain(self.image_encoder.iter().map(|path| Input::new("--image-encoder", path))).collect()
    }

    /// Adds the models that the flags name to the parts.
    pub(super) fn parts(&self, parts: Parts, verbosity: Verbosity) -> anyhow::Result<Parts> {
        let PartOverrides { redux, image_encoder, .. } = match &self.redux_model {
            Some(model) if !model.exists() => hub::redux(model, verbosity)?,
            // The image encoder of another Redux is not meant.
            Some(model) => PartOverrides { redux: Some(model.clone()), ..PartOverrides::default() },
            None => PartOverrides {
                redux: parts.redux.clone(),
                image_encoder: parts.image_encoder.clone(),
                ..PartOverrides::default()
            },
        };
        let image_encoder = self.image_encoder.clone().or(image_encoder);
        Ok(Parts { redux, image_encoder, ..parts }.with_redux()?)
    }
}

impl ReduxArgs {
    /// Adds the models that the flags name to the parts.
    pub(super) fn parts(&self, parts: Parts, verbosity: Verbosity) -> anyhow::Result<Parts> {
        self.model.parts(parts, verbosity)
    }

    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let pictures = self.redux.iter().map(|image| Input::new("--redux", &image.file));
        pictures.chain(self.model.inputs()).collect()
    }

    /// Whether pictures are given, which can stand in place of a prompt.
    pub(super) fn has_pictures(&self) -> bool {
        !self.redux.is_empty()
    }

    /// Returns what the flags ask for; the rest stays as it was before.
    pub(super) fn record(&self, values: &Values, before: Option<ReduxRecord>) -> Option<ReduxRecord> {
        let mut record = before.unwrap_or_default();
        if self.has_pictures() {
            // Of a picture that came from a server, which does not know their files.
            let unnamed = self.redux.len() == record.images.len()
                && record.images.iter().any(|image| image.file.is_none());
            let before = if unnamed { std::mem::take(&mut record.images) } else { Vec::new() };
            let image_record = |(i, ReduxImageArg { file, numbers }): (usize, &ReduxImageArg)| {
                let before = before.get(i).map_or((1.0, 1.0), |before| (before.strength, before.pooled));
                let (strength, pooled) = numbers.unwrap_or(before);
                ReduxImageRecord { file: Some(file.clone()), strength, pooled }
            };
            record.images = self.redux.iter().enumerate().map(image_record).collect();
        }
        record.mix = values.redux_mix().unwrap_or(record.mix);
        record.without_text = values.boolean("redux_without_text").unwrap_or(record.without_text);
        Some(record).filter(|record| !record.images.is_empty())
    }
}

/// Reads the pictures that a record names.
pub(super) fn read_images(record: &ReduxRecord) -> anyhow::Result<Redux> {
    let image = |ReduxImageRecord { file, strength, pooled }: &ReduxImageRecord| {
        let Some(file) = file else {
            let text = "that picture does not say by name which ones it was made to look like: give --redux";
            return Err(Error::Request(text.into()).into());
        };
        Ok(ReduxImage { image: input_images::read(file)?, strength: *strength, pooled: *pooled })
    };
    Ok(Redux {
        images: record.images.iter().map(image).collect::<anyhow::Result<_>>()?,
        mix: record.mix,
        without_text: record.without_text,
    })
}

/// `FILE`, `FILE=STRENGTH` or `FILE=STRENGTH,POOLED`. An equals sign may also be part of the file's name.
fn parse_image(text: &str) -> Result<ReduxImageArg, String> {
    let whole = ReduxImageArg { file: text.into(), numbers: None };
    let Some((file, numbers)) = text.rsplit_once('=').filter(|(file, _)| !file.is_empty()) else {
        return Ok(whole);
    };
    let (strength, pooled) = numbers.split_once(',').unwrap_or((numbers, "1"));
    let (Ok(strength), Ok(pooled)) = (strength.parse::<f64>(), pooled.parse::<f64>()) else {
        return Ok(whole);
    };
    if !strength.is_finite() || !pooled.is_finite() {
        return Err(format!("{numbers} are no finite numbers"));
    }
    Ok(ReduxImageArg { file: file.into(), numbers: Some((strength, pooled)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_named_with_its_strengths_or_alone() {
        let parsed = |text: &str| {
            let ReduxImageArg { file, numbers } = parse_image(text).unwrap();
            (file.to_string_lossy().into_owned(), numbers)
        };
        assert_eq!(parsed("a.png"), ("a.png".into(), None));
        assert_eq!(parsed("a.png=0.5"), ("a.png".into(), Some((0.5, 1.0))));
        assert_eq!(parsed("a=1.png=2,0.25"), ("a=1.png".into(), Some((2.0, 0.25))));
        assert_eq!(parsed("a=b.png"), ("a=b.png".into(), None));
        assert!(parse_image("a.png=inf").is_err());
    }
}
