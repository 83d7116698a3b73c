//! The settings that lie beside a model's weights: which file is whose, and what it makes of the sizes that the weights'
//! shapes say.
//!
//! A `config.json` in a folder of weights is that folder's. Beside a file that is named by itself it is the file's only if
//! it says that it is for such a model: a folder such as ComfyUI's `models/vae` holds files of many models.

use std::path::{Path, PathBuf};

use super::{Parts, Role};
use crate::checkpoint::Checkpoint;
use crate::config::ConfigFile;
use crate::error::{Error, FileProblem, Result};
use crate::models::autoencoder::{AutoEncoderParams, TinyAutoEncoderParams};
use crate::models::flux1::{ControlNetParams, Flux1Params};
use crate::models::text::{ClipConfig, T5Config};
use crate::sampling::Scheduler;

/// The words of diffusers and transformers for a model, in its settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    classes: &'static [&'static str],
    model_types: &'static [&'static str],
    /// Keys of transformers' settings, one of which those of older files have that name no model.
    keys: &'static [&'static str],
}

impl Kind {
    const TRANSFORMER: Self = Self::of_class(&["FluxTransformer2DModel"]);
    const CONTROLNET: Self = Self::of_class(&["FluxControlNetModel"]);
    const AUTOENCODER: Self = Self::of_class(&["AutoencoderKL"]);
    const TINY_AUTOENCODER: Self = Self::of_class(&["AutoencoderTiny"]);
    const CLIP: Self =
        Self::of_type(&["clip", "clip_text_model"], &["text_config", "max_position_embeddings"]);
    const T5: Self = Self::of_type(&["t5", "mt5"], &["d_kv"]);
    pub(super) const CLIP_VISION: Self =
        Self::of_type(&["clip", "clip_vision_model"], &["vision_config", "patch_size"]);
    pub(super) const SIGLIP: Self =
        Self::of_type(&["siglip", "siglip_vision_model"], &["vision_config", "patch_size"]);
    pub(super) const DEPTH: Self = Self::of_type(&["depth_anything"], &["backbone_config"]);

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
pub(super) fn transformer(weights: &Path, checkpoint: &Checkpoint) -> Result<(Flux1Params, Vec<String>)> {
    let params = Flux1Params::from_shapes(|name| checkpoint.shape(name))
        .map_err(|error| of_file(checkpoint, error))?;
    match beside(weights, Kind::TRANSFORMER)? {
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
    if let Some(config) = beside(weights, Kind::AUTOENCODER)? {
        return params.with_config(&config);
    }
    let sibling = weights.parent().unwrap_or(Path::new("")).join("vae/config.json");
    if weights.is_file()
        && weights.file_name().is_some_and(|name| name == "ae.safetensors")
        && sibling.is_file()
    {
        let config = ConfigFile::read(&sibling)?.of_weights(weights);
        if Kind::AUTOENCODER.is_of(&config)? && params.matches_config(&config)? {
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

/// What a folder's `model_index.json` says of the whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModelIndex {
    /// What pictures are to it, where only its pipeline's class tells.
    pub(super) role: Option<Role>,
    /// The class of its scheduler.
    pub(super) scheduler: Option<String>,
    pub(super) warnings: Vec<String>,
}

impl ModelIndex {
    /// # Errors
    /// [`Error::File`](crate::Error::File) where it is another model's than FLUX.1's.
    pub(super) fn read(path: &Path) -> Result<Self> {
        const KNOWN: [&str; 12] = [
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlPipeline",
            "FluxFillPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxKontextInpaintPipeline",
            "FluxKontextPipeline",
            "FluxPipeline",
        ];
        let config = ConfigFile::read(path)?;
        let class = config.text_or_second("_class_name")?;
        let mut index = Self::default();
        if let Some(class) = class {
            let first = class
                .strip_prefix("Flux")
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
            if !first || class.starts_with("FluxPriorRedux") {
                let reason = format!("is {class:?}: this folder is of another model than FLUX.1");
                return Err(config.wrong("_class_name", reason));
            }
            if !KNOWN.contains(&class) {
                let path = path.display();
                index
                    .warnings
                    .push(format!("{path}: {class} is not known: it is drawn as FluxPipeline does"));
            }
            index.role = class.starts_with("FluxKontext").then_some(Role::Reference);
        }
        index.scheduler =
            config.texts("scheduler")?.and_then(|pair| pair.get(1).map(|class| class.to_string()));
        Ok(index)
    }
}

/// What the folder of a model says of the whole: how it is walked, and what pictures are to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Folder {
    /// `None`: as the official code walks.
    pub(super) scheduler: Option<Scheduler>,
    pub(super) role: Option<Role>,
    pub(super) warnings: Vec<String>,
}

impl Folder {
    /// That of the parts; `params` are the transformer's.
    pub(super) fn of(parts: &Parts, params: &Flux1Params) -> Result<Self> {
        let index = parts.model_index.as_deref().map(ModelIndex::read).transpose()?.unwrap_or_default();
        let mut folder = Self { scheduler: None, role: index.role, warnings: index.warnings };
        let Some(path) = &parts.scheduler else { return Ok(folder) };
        if let Some(other) = other_variant(path, parts, params)? {
            let (path, file) = (path.display(), parts.transformer.display());
            folder.warnings.push(format!(
                "{path} is not obeyed: it is for a FLUX.1 {other}, and {file} is a {}, which is walked as the official \
                 code does",
                params.variant()
            ));
            return Ok(folder);
        }
        let config = ConfigFile::read(path)?;
        let mut scheduler = Scheduler::from_config(&config)?;
        folder.warnings.append(&mut scheduler.warnings);
        if let (Some(named), Some(class)) = (&index.scheduler, config.text("_class_name")?)
            && named != class
        {
            let path = path.display();
            folder.warnings.push(format!(
                "{path} is of {class}, though model_index.json names {named}: {class} is taken"
            ));
        }
        folder.scheduler = Some(scheduler);
        Ok(folder)
    }
}

/// The variant that a scheduler is for, where the transformer is not of its folder and is of another one: schnell's times
/// are not dev's.
fn other_variant(scheduler: &Path, parts: &Parts, params: &Flux1Params) -> Result<Option<&'static str>> {
    let model = scheduler.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    if parts.transformer.starts_with(model) && model != Path::new("") {
        return Ok(None);
    }
    let config = model.join("transformer/config.json");
    let guided = match config.is_file() {
        true => ConfigFile::read(&config)?.flag("guidance_embeds")?.unwrap_or(false),
        false => match Parts::transformer_in(model) {
            Some(own) => Checkpoint::open(own, crate::checkpoint::Access::Map)?.names().any(is_guidance),
            None => return Ok(None),
        },
    };
    Ok((guided != params.guidance_embed).then_some(if guided { "dev" } else { "schnell" }))
}

/// Whether only a model that was distilled for guidance has a tensor of this name, in any layout.
fn is_guidance(name: &str) -> bool {
    name.contains("guidance_in.") || name.contains("guidance_embedder.")
}
