//! What becomes of the weights of a part.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::Kind;

use super::PartKind;
use super::loader::Loader;
use super::models::OpenPart;
use crate::error::Result;
use crate::models::Transformer;
use crate::numerics::Quantize;

/// What became of a part's weights: on the disk, in memory, in the arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Which part.
    pub part: PartKind,
    /// Its first file.
    pub file: PathBuf,
    /// The types on the disk, with the bytes of each, as [`Checkpoint::types`](crate::checkpoint::Checkpoint::types) has them.
    pub on_disk: BTreeMap<String, u64>,
    /// The types in memory, with the bytes of each.
    pub in_memory: BTreeMap<String, u64>,
    /// The kind of the arithmetic.
    pub arithmetic: Kind,
    /// Tensors that were taken from the base, since the file lacks them.
    pub from_base: Vec<String>,
    /// What the caller should know about how the files were read: see [`Checkpoint::warnings`](crate::checkpoint::Checkpoint::warnings).
    pub warnings: Vec<String>,
}

impl Weights {
    /// The warnings of several parts, each line once: parts of a pipeline may lie in one file.
    pub fn all_warnings(parts: &[Self]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for line in parts.iter().flat_map(|part| &part.warnings) {
            if !lines.contains(line) {
                lines.push(line.clone());
            }
        }
        lines
    }

    /// Returns what becomes of the weights of these parts.
    pub(super) fn of_parts(loader: &Loader, parts: Vec<OpenPart>) -> Result<Vec<Self>> {
        let (_, from_base) = loader.open_transformer()?;
        let mut all: Vec<_> = parts.into_iter().map(|part| Self::of(loader, part)).collect();
        if let Some(transformer) = all.iter_mut().find(|weights| weights.part == PartKind::Transformer) {
            transformer.from_base = from_base;
        }
        Ok(all)
    }

    fn of(loader: &Loader, OpenPart { part, checkpoint, kind }: OpenPart) -> Self {
        let settings = &loader.settings;
        let is_autoencoder = matches!(part, PartKind::Autoencoder | PartKind::PreviewDecoder);
        let keep_quantized = settings.keep_quantized && !is_autoencoder && part != PartKind::ClipVision;
        let mut in_memory = checkpoint.types_in_memory(kind, keep_quantized);
        let quantized = match settings.quantize {
            Quantize::Int8 if part == PartKind::Transformer => Some("I8"),
            Quantize::Fp8 if part == PartKind::Transformer => Some("F8_E4M3"),
            _ => None,
        };
        if let Some(name) = quantized {
            let blocks = checkpoint.names().filter(|name| Transformer::quantizes(loader.family, name));
            let numbers: u64 =
                blocks.filter_map(|name| Some(checkpoint.shape(name)?.iter().product::<i64>() as u64)).sum();
            let before = kind.elt_size_in_bytes() as u64;
            in_memory.values_mut().for_each(|held| *held = held.saturating_sub(numbers * before));
            in_memory.retain(|_, held| *held > 0);
            // A byte a number.
            in_memory.insert(name.into(), numbers);
        }
        Self {
            part,
            file: checkpoint.files().first().map(|path| path.to_path_buf()).unwrap_or_default(),
            in_memory,
            on_disk: checkpoint.types(),
            arithmetic: if is_autoencoder && !loader.decodes_in_f32(kind) { Kind::BFloat16 } else { kind },
            from_base: Vec::new(),
            warnings: checkpoint.warnings().to_vec(),
        }
    }
}
