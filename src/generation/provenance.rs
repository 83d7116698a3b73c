//! What a picture's file says about how it was drawn: enough to draw it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::error::{Error, Result};
use crate::generation::params::EditSettings;
use crate::generation::{Generated, LoraFile, Parts, Pipeline, ReduxMix, Request, Role, Variation};
use crate::numerics::{Numerics, Quantize};

/// The key of our own text in a PNG.
const TEXT_KEY: &str = "tch-flux";

/// What pictures are drawn with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The transformer's file, without its folder.
    pub model: String,
    /// The kind of the arithmetic: `f32`, `bf16`, `f16`.
    pub kind: String,
    /// Pictures from before there was a choice are exact.
    #[serde(default)]
    pub numerics: Numerics,
    /// What the weights of the transformer's blocks became.
    #[serde(default)]
    pub quantize: Quantize,
    /// See [`Settings::vae_tile`](crate::generation::Settings::vae_tile).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae_tile: Option<i64>,
    /// The autoencoder's file or folder, without what it lies in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub autoencoder: String,
    /// The LoRAs beside the weights, by their files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraFile>,
}

impl ModelRecord {
    /// Those of a pipeline and its parts, without LoRAs, whose files it does not know.
    pub fn of(pipeline: &Pipeline, parts: &Parts) -> Self {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let settings = pipeline.settings();
        Self {
            model: name(&parts.transformer),
            kind: match pipeline.kind() {
                Kind::Float => "f32".into(),
                Kind::BFloat16 => "bf16".into(),
                Kind::Half => "f16".into(),
                other => format!("{other:?}").to_lowercase(),
            },
            numerics: settings.numerics,
            quantize: settings.quantize,
            vae_tile: settings.vae_tile,
            autoencoder: name(&parts.autoencoder),
            loras: Vec::new(),
        }
    }
}

/// The pictures that a drawing began with, by their files: those themselves are in no provenance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EditRecord {
    /// As they were named; none where they came from elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PathBuf>,
    /// What was drawn anew, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// Pixels that were drawn around the picture: left, top, right, bottom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<[u32; 4]>,
    /// What was said of them.
    #[serde(flatten)]
    pub settings: EditSettings,
}

impl EditRecord {
    /// Of pictures without names.
    pub fn new(settings: EditSettings) -> Self {
        Self { images: Vec::new(), mask: None, pad: None, settings }
    }
}

/// The pictures that a drawing was made to look like, by their files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReduxRecord {
    /// Each of them.
    pub images: Vec<ReduxImageRecord>,
    /// See [`Redux::mix`](crate::generation::Redux::mix).
    #[serde(default)]
    pub mix: ReduxMix,
    /// See [`Redux::without_text`](crate::generation::Redux::without_text).
    #[serde(default)]
    pub without_text: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReduxImageRecord {
    /// As it was named; none where it came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// See [`ReduxImage::strength`](crate::generation::ReduxImage::strength).
    pub strength: f64,
    /// See [`ReduxImage::pooled`](crate::generation::ReduxImage::pooled).
    pub pooled: f64,
}

/// A picture that a ControlNet followed, by its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlRecord {
    /// The ControlNet, as it was named; of a server, by the name that it has there.
    pub controlnet: PathBuf,
    /// The picture, likewise; none where it came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// See [`Control::strength`](crate::generation::Control::strength).
    pub strength: f64,
    /// See [`Control::mode`](crate::generation::Control::mode).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<i64>,
    /// See [`Control::start`](crate::generation::Control::start).
    pub start: f64,
    /// See [`Control::end`](crate::generation::Control::end).
    pub end: f64,
    /// See [`Control::canny`](crate::generation::Control::canny).
    #[serde(default)]
    pub canny: bool,
}

/// Pictures that a drawing was like, by their files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IpAdapterRecord {
    /// The IP-Adapter, as it was named; of a server, by the name that it has there.
    pub ip_adapter: PathBuf,
    /// Its image encoder, likewise; none of a server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_encoder: Option<PathBuf>,
    /// The pictures, likewise; none where they came from elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PathBuf>,
    /// Those of the negative prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negative: Vec<PathBuf>,
    /// See [`IpAdapterImage::scales`](crate::generation::IpAdapterImage::scales).
    pub scales: Vec<f64>,
}

/// How a picture was drawn, as its file says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version of this crate.
    pub version: String,
    /// With what.
    #[serde(flatten)]
    pub means: ModelRecord,
    /// What was asked for, with nothing left open.
    #[serde(flatten)]
    pub request: Request,
    /// Of a picture that was begun with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditRecord>,
    /// Of a picture that was made to look like others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redux: Option<ReduxRecord>,
    /// Of a picture for which ControlNets followed others, where the ControlNets' names are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<ControlRecord>,
    /// Of a picture that was like others, where the IP-Adapters' names are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pictured: Vec<IpAdapterRecord>,
    /// Checksums of the pictures that it was drawn from, by their files: the first 8 bytes of SHA-256 in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<PathBuf, String>,
}

impl Provenance {
    /// Of a picture that was drawn.
    pub fn new(means: &ModelRecord, picture: &Generated) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            means: means.clone(),
            // Where nothing has a weight, to the letter is not said: the server and the program then say the same.
            request: Request {
                literal: picture.request.literal && picture.request.has_weights(),
                ..picture.request.clone()
            },
            edit: picture.request.edit.as_deref().map(|edit| EditRecord::new(edit.settings())),
            redux: picture.request.redux.as_deref().map(|redux| ReduxRecord {
                images: redux
                    .images
                    .iter()
                    .map(|seen| ReduxImageRecord { file: None, strength: seen.strength, pooled: seen.pooled })
                    .collect(),
                mix: redux.mix,
                without_text: redux.without_text,
            }),
            controls: Vec::new(),
            pictured: Vec::new(),
            inputs: BTreeMap::new(),
        }
    }

    /// From the texts of a PNG; `None` where there is none of ours.
    ///
    /// # Errors
    /// [`Error::Request`] for one that cannot be read.
    pub fn from_texts(texts: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let wrong = |problem| Error::Request(format!("how the picture was drawn cannot be read: {problem}"));
        texts.get(TEXT_KEY).map(|text| serde_json::from_str(text).map_err(wrong)).transpose()
    }

    /// The texts of a PNG: A1111's `parameters`, which many tools read, and our own.
    ///
    /// # Errors
    /// [`Error::Request`] for numbers that JSON does not have.
    pub fn texts(&self) -> Result<BTreeMap<String, String>> {
        let wrong =
            |problem| Error::Request(format!("how the picture was drawn cannot be written: {problem}"));
        let own = serde_json::to_string(self).map_err(wrong)?;
        Ok(BTreeMap::from([("parameters".to_string(), self.parameters()), (TEXT_KEY.to_string(), own)]))
    }

    fn parameters(&self) -> String {
        let Self { version, means: ModelRecord { model, .. }, request, edit, .. } = self;
        let steps = request.steps.unwrap_or_default();
        let negative = request.negative_prompt.as_ref();
        let negative = negative.map_or(String::new(), |text| format!("\nNegative prompt: {text}"));
        let cfg = request.true_cfg_scale.unwrap_or(1.0);
        let guidance =
            request.guidance.map_or(String::new(), |guidance| format!("Distilled CFG Scale: {guidance}, "));
        let Request { prompts, seed, width, height, .. } = request;
        let variation = request.variation.map_or(String::new(), |Variation { seed, strength }| {
            format!("Variation seed: {seed}, Variation seed strength: {strength}, ")
        });
        let start = edit.as_ref().filter(|edit| matches!(edit.settings.role, None | Some(Role::Init)));
        let strength =
            start.map_or(String::new(), |edit| format!("Denoising strength: {}, ", edit.settings.strength));
        format!(
            "{}{negative}\nSteps: {steps}, Sampler: {}, CFG scale: {cfg}, {guidance}{strength}Seed: {seed}, \
             Size: {width}x{height}, Model: {model}, {variation}Version: tch-flux {version}",
            prompts.join("\n"),
            request.sampler.unwrap_or_default().title(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::ControlPreprocess;

    #[test]
    fn what_is_followed_is_read_from_older_pictures_too() {
        let begun = |more: &str| serde_json::from_str::<EditRecord>(&format!(r#"{{"strength": 0.6{more}}}"#));
        for (more, follow) in [
            ("", ControlPreprocess::Picture),
            (r#", "canny": false"#, ControlPreprocess::Picture),
            (r#", "canny": true"#, ControlPreprocess::Canny),
            (r#", "follow": "depth""#, ControlPreprocess::Depth),
        ] {
            assert_eq!(begun(more).unwrap().settings.follow, follow, "{more}");
        }
        let depth = begun(r#", "follow": "depth""#).unwrap();
        assert_eq!(
            serde_json::from_str::<EditRecord>(&serde_json::to_string(&depth).unwrap()).unwrap(),
            depth
        );
        assert!(begun(r#", "follow": "edges""#).is_err());
    }
}
