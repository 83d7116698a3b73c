//! LoRAs, placed on the models of a pipeline.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::configs;
use super::loader::Loader;
use crate::checkpoint::lora::{Component, Lora, Placed};
use crate::error::Result;
use crate::models::TransformerParams;

/// A LoRA's file, and how much of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraFile {
    /// A safetensors file.
    #[serde(rename = "file")]
    pub path: PathBuf,
    /// 1 as it was trained, 0 nothing, below 0 the opposite.
    pub strength: f64,
}

/// The LoRAs of a pipeline.
#[derive(Debug, Default)]
pub(super) struct Loras {
    /// What they do to each model.
    pub(super) terms: Placed,
    /// Where they lie.
    pub(super) files: Vec<PathBuf>,
}

impl Loras {
    /// Places LoRAs on the models; also returns the sizes that the transformer then has, since control LoRAs widen it, and a
    /// line for all that could not be placed where the settings let it be left out.
    ///
    /// # Errors
    /// [`Error::Lora`](crate::Error::Lora) with every key that has no place; what is wrong with the files.
    pub(super) fn place(
        loader: &Loader,
        files: &[LoraFile],
    ) -> Result<(Self, TransformerParams, Vec<String>)> {
        let access = loader.settings.access;
        let loras = files.iter().map(|file| Ok((Lora::open(&file.path, access)?, file)));
        let loras = loras.collect::<Result<Vec<_>>>()?;
        let (transformer, _) = loader.open_transformer()?;
        let (params, _) = configs::transformer(loader.family, &loader.parts.transformer, &transformer)?;
        let columns = loras.iter().filter_map(|(lora, _)| lora.img_in_columns()).max().unwrap_or(0);
        let params = params.widened(columns);
        let transformer = transformer.widened("img_in.weight", params.in_channels());
        let needs = |model| loras.iter().any(|(lora, _)| lora.modules(model) > 0);
        let clip = needs(Component::Clip).then(|| loader.open_clip()).transpose()?;
        let t5 = needs(Component::T5).then(|| loader.open_t5()).transpose()?;
        let shape = |model: Component, name: &str| match model {
            Component::Transformer => transformer.shape(name),
            Component::Clip => clip.as_ref()?.shape(name),
            Component::T5 => t5.as_ref()?.shape(name),
        };
        let (mut terms, mut skipped) = (Placed::default(), Vec::new());
        for (lora, file) in &loras {
            let placed = lora.place(&shape, file.strength, loader.settings.allow_partial_lora)?;
            let lines = placed.skipped.lines();
            skipped.extend(lines.iter().map(|line| format!("{}: left out: {line}", lora.path.display())));
            terms.transformer.extend(placed.transformer);
            terms.clip.extend(placed.clip);
            terms.t5.extend(placed.t5);
        }
        let files = files.iter().map(|file| file.path.clone()).collect();
        Ok((Self { terms, files }, params, skipped))
    }
}
