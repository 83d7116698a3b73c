//! Where a model's parts lie, as flags say it.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use tch_flux::Error;
use tch_flux::generation::{LoraFile, PartOverrides, Parts, PreviewBy};

use super::hints::part_flag;
use super::progress::Verbosity;
use super::targets::Input;
use super::{demo_model, hub};

/// Where the parts of a model lie.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ModelArgs {
    /// A model's folder, a file with all weights, or OWNER/NAME[@REVISION] on the hub. [default: the small model]
    ///
    /// A folder is as the official repositories have it, a file with all weights ComfyUI's. Of a name on the hub is fetched
    /// what is needed, once.
    #[arg(long, value_name = "PATH|OWNER/NAME")]
    pub(super) model: Option<PathBuf>,
    /// The transformer's weights, instead of the folder's.
    #[arg(long, value_name = "PATH")]
    pub(super) transformer: Option<PathBuf>,
    /// A transformer to take from what the first lacks outside of the blocks, as many finetunes do.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    base: Option<PathBuf>,
    /// The autoencoder's weights, instead of the folder's.
    #[arg(long, visible_alias = "vae", value_name = "PATH", hide_short_help = true)]
    autoencoder: Option<PathBuf>,
    /// CLIP's weights, instead of the folder's: its text model, or a whole CLIP.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    clip: Option<PathBuf>,
    /// T5's weights, instead of the folder's: its encoder, or a whole T5.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    t5: Option<PathBuf>,
    /// CLIP's tokenizer, instead of the folder's.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    clip_tokenizer: Option<PathBuf>,
    /// T5's tokenizer, instead of the folder's.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    t5_tokenizer: Option<PathBuf>,
    /// A depth model (Depth Anything), for drawings that follow depths: a folder, or a file with config.json beside.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    depth_model: Option<PathBuf>,
    /// A tiny autoencoder (TAEF1) that makes the previews.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    preview_decoder: Option<PathBuf>,
    /// Factors from latents to colours that make the previews: scripts/fit_latent_rgb.py writes such a file.
    #[arg(long, value_name = "FILE", conflicts_with = "preview_decoder", hide_short_help = true)]
    preview_factors: Option<PathBuf>,
}

impl ModelArgs {
    /// Returns what the model and its transformer are called.
    pub(super) fn names(&self) -> impl Iterator<Item = &Path> {
        [&self.model, &self.transformer].into_iter().flatten().map(PathBuf::as_path)
    }

    /// The flags that name the files of a model.
    pub(super) const FLAGS: [&str; 11] = [
        "--model",
        "--transformer",
        "--base",
        "--autoencoder",
        "--clip",
        "--t5",
        "--clip-tokenizer",
        "--t5-tokenizer",
        "--depth-model",
        "--preview-decoder",
        "--preview-factors",
    ];

    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let paths = [
            &self.model,
            &self.transformer,
            &self.base,
            &self.autoencoder,
            &self.clip,
            &self.t5,
            &self.clip_tokenizer,
            &self.t5_tokenizer,
            &self.depth_model,
            &self.preview_decoder,
            &self.preview_factors,
        ];
        let named = |(path, flag): (&Option<PathBuf>, &'static str)| Some(Input::new(flag, path.as_ref()?));
        paths.into_iter().zip(Self::FLAGS).filter_map(named).collect()
    }

    pub(super) fn parts(&self, verbosity: Verbosity) -> anyhow::Result<Parts> {
        let overrides = PartOverrides {
            transformer: self.transformer.clone(),
            base: self.base.clone(),
            autoencoder: self.autoencoder.clone(),
            clip: self.clip.clone(),
            t5: self.t5.clone(),
            clip_tokenizer: self.clip_tokenizer.clone(),
            t5_tokenizer: self.t5_tokenizer.clone(),
            redux: None,
            image_encoder: None,
            preview: match (&self.preview_factors, &self.preview_decoder) {
                (Some(path), _) => Some(PreviewBy::Factors(path.clone())),
                (None, Some(path)) => Some(PreviewBy::Decoder(path.clone())),
                (None, None) => None,
            },
            depth: self.depth_model.clone(),
            scheduler: None,
        };
        if let Some(parts) = overrides.whole() {
            return Ok(parts);
        }
        match &self.model {
            Some(model) if !model.exists() => hub::parts(model, overrides, verbosity),
            Some(folder) => {
                Parts::find_rest(overrides, folder).map_err(|error| self.incomplete(folder, error))
            }
            None => Ok(Parts::find_rest(overrides, demo_model::folder(verbosity)?)?),
        }
    }
}

impl ModelArgs {
    /// Returns the error for a folder that lacks parts of a model, with what to do about it.
    fn incomplete(&self, folder: &Path, error: Error) -> anyhow::Error {
        let Error::MissingPart { part, .. } = &error else { return error.into() };
        let found = Parts::look(folder).unwrap_or_default();
        let found: Vec<_> =
            found.into_iter().filter_map(|(part, path)| Some((part.name(), path.ok()?))).collect();
        let advice = match &found[..] {
            [(part, path)] if misplaced(folder).is_none() => format!(
                "{} holds {} {part} alone: name it by {} {}, and by --model the folder of a model that has the rest",
                folder.display(),
                if part.starts_with('a') { "an" } else { "a" },
                part_flag(part),
                path.display()
            ),
            _ => misplaced(folder).unwrap_or_else(|| {
                format!("name that part by {}, or another folder by --model", part_flag(part))
            }),
        };
        anyhow::Error::from(error).context(advice)
    }
}

/// Returns what to name instead of a folder that is no model's but has models in it, as other programs keep them.
fn misplaced(folder: &Path) -> Option<String> {
    let shown = folder.display();
    let below = |name: &str| folder.join(name).is_dir();
    let present = |names: &[&'static str]| names.iter().find(|name| below(name)).copied();
    let transformers = present(&["diffusion_models", "unet", "checkpoints", "Stable-diffusion"]);
    let encoders = present(&["text_encoders", "clip", "text_encoder"]);
    if let (Some(transformers), Some(encoders)) = (transformers, encoders)
        && encoders != "text_encoder"
    {
        let flags = [
            ("--transformer", transformers),
            ("--clip", encoders),
            ("--t5", encoders),
            ("--autoencoder", present(&["vae", "VAE"]).unwrap_or("vae")),
        ];
        let flags = flags.map(|(flag, name)| format!("{flag} {}", folder.join(name).join("FILE").display()));
        let flags = flags.join(", ");
        return Some(format!(
            "{shown} is laid out as ComfyUI's models, of which any could be meant: name the files by {flags}, and the \
             tokenizers by --clip-tokenizer and --t5-tokenizer"
        ));
    }
    // The cache of the hub keeps the files of a repository in a folder for each revision.
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    };
    let snapshots = folder.join("snapshots");
    let within = if snapshots.is_dir() { names(&snapshots) } else { names(folder) };
    let whole =
        |path: &&PathBuf| Parts::look(path).is_ok_and(|parts| parts.iter().all(|(_, place)| place.is_ok()));
    let model = within.iter().take(100).find(whole)?;
    Some(format!("{shown} is no model's folder, but {} is: name that by --model", model.display()))
}

/// Returns the side in pixels that the model was trained for: diffusers' `vae/config.json` says it, and FLUX.1's is 1024.
pub(super) fn default_size(autoencoder: &Path) -> i64 {
    let folder = autoencoder.parent().unwrap_or(Path::new(""));
    let config =
        [folder.join("vae/config.json"), folder.join("config.json"), autoencoder.join("config.json")];
    let size = config.iter().find_map(|path| {
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
        json.get("sample_size")?.as_i64()
    });
    size.unwrap_or(1024)
}

/// Parses `FILE` or `FILE:STRENGTH`. A colon may also be part of the file's name.
pub(super) fn parse_lora(text: &str) -> Result<LoraFile, String> {
    if let Some((path, strength)) = text.rsplit_once(':')
        && let Ok(strength) = strength.parse::<f64>()
        && !path.is_empty()
    {
        if !strength.is_finite() {
            return Err(format!("the strength {strength} is no finite number"));
        }
        return Ok(LoraFile { path: path.into(), strength });
    }
    Ok(LoraFile { path: text.into(), strength: 1.0 })
}
