//! What would help against an error.

use std::fmt;

use super::{Error, FileProblem};

/// What would help against an error, by the setting of the library. An error's own words name no setting, so that a program or a
/// server can add the flag or the field that it has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hint {
    /// A transformer to take from what a finetune lacks: [`PartOverrides::base`](crate::generation::PartOverrides::base).
    Base,
    /// Applying what fits of a LoRA: [`Settings::allow_partial_lora`](crate::generation::Settings::allow_partial_lora).
    PartialLora,
    /// Naming the part that a folder lacks, or that a file is: the field of [`PartOverrides`](crate::generation::PartOverrides) for it.
    Part(&'static str),
    /// A request that names its sampler and its schedule, in place of what a scheduler's configuration says.
    Sampling,
    /// A larger limit of memory.
    LargerLimit,
    /// A smaller picture.
    SmallerPicture,
    /// Decoding in tiles: [`Settings::vae_tile`](crate::generation::Settings::vae_tile).
    VaeTile,
    /// Text encoders that are released: [`Settings::keep_text_encoders`](crate::generation::Settings::keep_text_encoders).
    ReleaseTextEncoders,
    /// Quantised weights: [`Settings::quantize`](crate::generation::Settings::quantize), or
    /// [`Settings::keep_quantized`](crate::generation::Settings::keep_quantized) with a GGUF or fp8 file.
    QuantizedWeights,
    /// Blocks that are not quantised, of which not all need be in memory.
    UnquantizedBlocks,
}

impl fmt::Display for Hint {
    /// In words that name no setting.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "a base is needed to take what is missing from",
            Self::PartialLora => "is it made for this model? what fits can be applied without the rest",
            Self::Part(part) => return write!(f, "the {part} can be named by itself"),
            Self::Sampling => "a request can name its sampler and its schedule",
            Self::LargerLimit => "a larger limit is needed",
            Self::SmallerPicture => "a smaller picture takes less",
            Self::VaeTile => "decoding in tiles takes less",
            Self::ReleaseTextEncoders => "text encoders that are released take less",
            Self::QuantizedWeights => "quantised weights take less",
            Self::UnquantizedBlocks => "blocks that are not quantised need not all be in memory",
        })
    }
}

impl Error {
    /// What would help against it, if that can be told.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            Self::MissingTensor { .. } => vec![Hint::Base],
            Self::Mismatch(mismatch) if mismatch.needs_base() => vec![Hint::Base],
            Self::Lora(unplaced) if unplaced.made_for.is_none() && !unplaced.path.as_os_str().is_empty() => {
                vec![Hint::PartialLora]
            }
            Self::MissingPart { part, .. } | Self::UnnamedPart { part, .. } => vec![Hint::Part(part)],
            Self::File {
                problem: FileProblem::OtherModel { part, .. } | FileProblem::NotALora { part, .. },
                ..
            } => part.map(Hint::Part).into_iter().collect(),
            Self::File { path, problem: FileProblem::Setting { key, .. } }
                if key == "_class_name" && path.ends_with("scheduler_config.json") =>
            {
                vec![Hint::Sampling]
            }
            Self::TooLarge { hints, .. } => hints.clone(),
            _ => Vec::new(),
        }
    }
}
