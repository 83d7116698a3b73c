//! The settings that lie beside a model's weights: which file is whose, and what it makes of the sizes that the weights'
//! shapes say.
//!
//! A `config.json` in a folder of weights is that folder's. Beside a file that is named by itself it is the file's only if
//! it says that it is for such a model: a folder such as ComfyUI's `models/vae` holds files of many models.

use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::config::ConfigFile;
use crate::error::{Error, FileProblem, Result};
use crate::family::ModelFamily;
use crate::models::TransformerParams;
use crate::models::autoencoder::{AutoEncoderParams, TinyAutoEncoderParams};
use crate::models::flux1::ControlNetParams;
use crate::models::text::{ClipConfig, T5Config};

/// The words of diffusers and transformers for a model, in its settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    classes: &'static [&'static str],
    model_types: &'static [&'static str],
    /// Keys of transformers' settings, one of which those of older files have that name no model.
    keys: &'static [&'static str],
}

impl Kind {
    const CONTROLNET: Self = Self::of_class(&["FluxControlNetModel"]);
    const TINY_AUTOENCODER: Self = Self::of_class(&["AutoencoderTiny"]);
    const CLIP: Self =
        Self::of_type(&["clip", "clip_text_model"], &["text_config", "max_position_embeddings"]);
    const T5: Self = Self::of_type(&["t5", "mt5"], &["d_kv"]);
    pub(super) const CLIP_VISION: Self =
        Self::of_type(&["clip", "clip_vision_model"], &["vision_config", "patch_size"]);
    pub(super) const SIGLIP: Self =
        Self::of_type(&["siglip", "siglip_vision_model"], &["vision_config", "patch_size"]);
    pub(super) const DEPTH: Self = Self::of_type(&["depth_anything"], &["backbone_config"]);

    /// The transformer of a family.
    fn transformer(family: ModelFamily) -> Self {
        Self::of_class(std::slice::from_ref(&family.row().transformer_class))
    }

    /// The autoencoder of a family.
    fn autoencoder(family: ModelFamily) -> Self {
        Self::of_class(std::slice::from_ref(&family.row().autoencoder_class))
    }

    const fn of_class(classes: &'static [&'static str]) -> Self {
        Self { classes, model_types: &[], keys: &[] }
    }

    const fn of_type(model_types: &'static [&'static str], keys: &'static [&'static str]) -> Self {
        Self { classes: &[], model_types, keys }
    }

    /// Whether settings say that they are for such a model.
    fn is_of(self, config: &ConfigFile) -> Result<bool> {
        Ok(match (config.text("_class_name")?, config.text("model_type")?) {
            (Some(class), _) => self.classes.contains(&class),
            (None, Some(model_type)) => self.model_types.contains(&model_type),
            (None, None) => self.keys.iter().any(|key| config.has(key)),
        })
    }
}

/// The settings of the weights at a path: of a folder, or beside a file.
pub(super) fn beside(weights: &Path, kind: Kind) -> Result<Option<ConfigFile>> {
    let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(Path::new("")) };
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config = ConfigFile::read(&path)?.of_weights(weights);
    Ok(if weights.is_dir() || kind.is_of(&config)? { Some(config) } else { None })
}

/// The path of them.
pub(super) fn path_beside(weights: &Path, kind: Kind) -> Result<Option<PathBuf>> {
    Ok(beside(weights, kind)?.map(|config| config.path().to_path_buf()))
}

/// That tensors do not make a model says which file they are in.
fn of_file(checkpoint: &Checkpoint, error: Error) -> Error {
    match (error, checkpoint.files().first()) {
        (Error::Config(reason), Some(path)) => {
            let reason = format!("{reason}; the file: {}", checkpoint.family());
            Error::file(*path)(FileProblem::NotThisPart { reason })
        }
        (other, _) => other,
    }
}

/// The transformer's sizes, and what its settings say that is not obeyed.
pub(super) fn transformer(
    family: ModelFamily,
    weights: &Path,
    checkpoint: &Checkpoint,
) -> Result<(TransformerParams, Vec<String>)> {
    let params = TransformerParams::from_shapes(family, |name| checkpoint.shape(name))
        .map_err(|error| of_file(checkpoint, error))?;
    match beside(weights, Kind::transformer(family))? {
        Some(config) => params.with_config(&config),
        None => Ok((params, Vec::new())),
    }
}

/// The same of a ControlNet.
pub(super) fn controlnet(weights: &Path, checkpoint: &Checkpoint) -> Result<(ControlNetParams, Vec<String>)> {
    let params = ControlNetParams::from_shapes(|name| checkpoint.shape(name))
        .map_err(|error| of_file(checkpoint, error))?;
    match beside(weights, Kind::CONTROLNET)? {
        Some(config) => params.with_config(&config),
        None => Ok((params, Vec::new())),
    }
}

/// The same of the autoencoder.
///
/// The official repositories hold their autoencoder twice: as `ae.safetensors`, which is preferred, and in `vae/` with its
/// settings. Those are of both where the sizes are the same.
pub(super) fn autoencoder(
    family: ModelFamily,
    weights: &Path,
    checkpoint: &Checkpoint,
) -> Result<(AutoEncoderParams, Vec<String>)> {
    let params = AutoEncoderParams::from_shapes(|name| checkpoint.shape(name))
        .map_err(|error| of_file(checkpoint, error))?;
    let (levels, official) = (params.ch_mult.len(), AutoEncoderParams::flux1().ch_mult.len());
    if levels != official {
        let reason = format!(
            "this autoencoder has {levels} levels of blocks, so that {side} by {side} pixels are one place of a latent; \
             FLUX.1's has {official}, which makes 8 by 8: take ae.safetensors, or diffusers' vae/",
            side = 1u64 << levels.min(63).saturating_sub(1)
        );
        return Err(of_file(checkpoint, Error::Config(reason)));
    }
    let kind = Kind::autoencoder(family);
    if let Some(config) = beside(weights, kind)? {
        return params.with_config(&config);
    }
    let sibling = weights.parent().unwrap_or(Path::new("")).join("vae/config.json");
    if weights.is_file()
        && weights.file_name().is_some_and(|name| name == "ae.safetensors")
        && sibling.is_file()
    {
        let config = ConfigFile::read(&sibling)?.of_weights(weights);
        if kind.is_of(&config)? && params.matches_config(&config)? {
            return params.with_config(&config);
        }
    }
    Ok((params, Vec::new()))
}

/// The same of a tiny autoencoder.
pub(super) fn tiny_autoencoder(
    weights: &Path,
    checkpoint: &Checkpoint,
) -> Result<(TinyAutoEncoderParams, Vec<String>)> {
    let params = TinyAutoEncoderParams::from_shapes(|name| checkpoint.shape(name))
        .map_err(|error| of_file(checkpoint, error))?;
    match beside(weights, Kind::TINY_AUTOENCODER)? {
        Some(config) => params.with_config(&config),
        None => Ok((params, Vec::new())),
    }
}

/// The sizes of a CLIP text model.
pub(super) fn clip(weights: &Path, checkpoint: &Checkpoint) -> Result<ClipConfig> {
    let shapes =
        ClipConfig::from_shapes(|name| checkpoint.shape(name)).map_err(|error| of_file(checkpoint, error))?;
    match beside(weights, Kind::CLIP)? {
        Some(config) => ClipConfig::from_config(&config, Some(&shapes)),
        None => Ok(shapes),
    }
}

/// The sizes of a T5 encoder.
pub(super) fn t5(weights: &Path, checkpoint: &Checkpoint) -> Result<T5Config> {
    let shapes =
        T5Config::from_shapes(|name| checkpoint.shape(name)).map_err(|error| of_file(checkpoint, error))?;
    match beside(weights, Kind::T5)? {
        Some(config) => T5Config::from_config(&config, Some(&shapes)),
        None => Ok(shapes),
    }
}
