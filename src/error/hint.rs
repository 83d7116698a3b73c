//! What would help against an error.

use std::fmt;

use super::Error;

/// What would help against an error. The library names it by the field or method that the caller would set; a program and a
/// server name their own flag or field for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hint {
    /// A transformer to take from what a finetune lacks: [`PartOverrides::base`](crate::generation::PartOverrides::base).
    Base,
    /// Applying what fits of a LoRA: [`Settings::allow_partial_lora`](crate::generation::Settings::allow_partial_lora).
    PartialLora,
    /// Naming the part that a folder lacks: the field of [`PartOverrides`](crate::generation::PartOverrides) for it.
    Part(&'static str),
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
    /// As a sentence, in the library's own names.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Base => f.write_str("name a base to take what is missing from (`PartOverrides::base`)"),
            Self::PartialLora => {
                f.write_str("`Settings::allow_partial_lora` applies the rest; is it made for this model?")
            }
            Self::Part(part) => write!(f, "name the {part} (`PartOverrides`)"),
            Self::LargerLimit => f.write_str("a larger limit is needed"),
            Self::UnquantizedBlocks => {
                f.write_str("blocks that are not quantised need not all be in memory")
            }
            Self::SmallerPicture => f.write_str("a smaller picture takes less memory"),
            Self::VaeTile => f.write_str("decoding in tiles takes less memory (`Settings::vae_tile`)"),
            Self::ReleaseTextEncoders => {
                f.write_str("released text encoders take less memory (`Settings::keep_text_encoders`)")
            }
            Self::QuantizedWeights => f.write_str(
                "quantised weights take less memory (`Settings::quantize`, or `Settings::keep_quantized` with a GGUF \
                 or fp8 file)",
            ),
        }
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
            Self::TooLarge { hints, .. } => hints.clone(),
            _ => Vec::new(),
        }
    }
}
