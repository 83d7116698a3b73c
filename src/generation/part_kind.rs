//! What the parts of a pipeline are called.

use std::fmt;

use crate::checkpoint::Family;
use crate::family::ModelFamily;

/// One of the parts that pictures are drawn with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartKind {
    /// The transformer.
    Transformer,
    /// T5, which encodes prompts.
    T5,
    /// CLIP's text model, which encodes prompts.
    Clip,
    /// The autoencoder.
    Autoencoder,
    /// An autoencoder that makes previews.
    PreviewDecoder,
    /// SigLIP, which encodes the pictures of Redux.
    ImageEncoder,
    /// The embedder of Redux.
    Redux,
    /// A depth model.
    Depth,
    /// A ControlNet.
    ControlNet,
    /// An IP-Adapter.
    IpAdapter,
    /// CLIP's vision model, which encodes the pictures of IP-Adapters.
    ClipVision,
    /// CLIP's tokenizer.
    ClipTokenizer,
    /// T5's tokenizer.
    T5Tokenizer,
}

impl PartKind {
    /// The parts that every pipeline has.
    pub(super) const REQUIRED: [Self; 6] =
        [Self::Transformer, Self::Autoencoder, Self::Clip, Self::T5, Self::ClipTokenizer, Self::T5Tokenizer];

    /// The parts that encode prompts.
    pub(super) const TEXT_ENCODERS: [Self; 2] = [Self::T5, Self::Clip];

    /// The name of the part in full, as errors have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "CLIP text model",
            Self::T5 => "T5 encoder",
            other => other.label(),
        }
    }

    /// The name of the part as reports have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::T5 => "T5",
            Self::Clip => "CLIP",
            Self::Autoencoder => "autoencoder",
            Self::PreviewDecoder => "preview decoder",
            Self::ImageEncoder => "image encoder",
            Self::Redux => "Redux",
            Self::Depth => "depth model",
            Self::ControlNet => "ControlNet",
            Self::IpAdapter => "IP-Adapter",
            Self::ClipVision => "CLIP vision model",
            Self::ClipTokenizer => "CLIP tokenizer",
            Self::T5Tokenizer => "T5 tokenizer",
        }
    }

    /// Whether the part is a tokenizer, which has no weights.
    pub fn is_tokenizer(self) -> bool {
        matches!(self, Self::ClipTokenizer | Self::T5Tokenizer)
    }

    /// Whether what a file holds is such a part.
    pub(super) fn is(self, family: &Family) -> bool {
        match self {
            Self::Transformer => family.is_drawn() && matches!(family, Family::Transformer { .. }),
            Self::T5 => matches!(family, Family::T5 { .. }),
            Self::Clip => *family == Family::Clip,
            Self::Autoencoder | Self::PreviewDecoder => {
                family.is_drawn()
                    && matches!(family, Family::AutoEncoder { .. } | Family::TinyAutoEncoder { .. })
            }
            Self::ImageEncoder => *family == Family::Siglip,
            Self::Redux => *family == Family::Redux,
            Self::Depth => *family == Family::Depth,
            Self::ControlNet => matches!(family, Family::ControlNet { .. }),
            Self::IpAdapter => *family == Family::IpAdapter,
            Self::ClipVision => *family == Family::ClipVision,
            Self::ClipTokenizer | Self::T5Tokenizer => false,
        }
    }

    /// What the official names in the blocks of the part begin with, where its weights can be brought a block at a time;
    /// `family` is the transformer's.
    pub(super) fn blocks(self, family: ModelFamily) -> Option<&'static [&'static str]> {
        match self {
            Self::Transformer => Some(family.row().blocks),
            Self::T5 => Some(&["encoder.block."]),
            Self::ControlNet => {
                Some(&["double_blocks.", "single_blocks.", "controlnet_blocks.", "controlnet_single_blocks."])
            }
            Self::IpAdapter => Some(&["double_blocks."]),
            _ => None,
        }
    }

    /// What model the part is, and what it is found as.
    pub(super) fn wanted(self) -> (&'static str, &'static str) {
        match self {
            Self::Transformer => (
                "FLUX.1 transformer",
                "flux1-dev.safetensors, flux1-schnell.safetensors, a finetune of them, a GGUF file, transformer/",
            ),
            Self::Autoencoder | Self::PreviewDecoder => ("FLUX.1 autoencoder", "ae.safetensors, vae/"),
            Self::Clip => ("CLIP text model", "clip_l.safetensors, text_encoder/"),
            Self::T5 => ("T5 encoder", "t5xxl_fp16.safetensors, its fp8 or GGUF files, text_encoder_2/"),
            Self::ImageEncoder => ("SigLIP vision model", "image_encoder/ of FLUX.1 Redux"),
            Self::Redux => ("Redux embedder", "flux1-redux-dev.safetensors, image_embedder/"),
            Self::Depth => ("depth model", "Depth Anything in transformers' names"),
            Self::ControlNet => {
                ("FLUX.1 ControlNet", "a ControlNet of FLUX.1 as XLabs, InstantX or Shakker publish them")
            }
            Self::IpAdapter => ("IP-Adapter of FLUX.1", "XLabs' IP-Adapter of FLUX.1"),
            Self::ClipVision => (
                "CLIP vision model",
                "CLIP-L's vision model with its projection, as in clip-vit-large-patch14",
            ),
            Self::ClipTokenizer | Self::T5Tokenizer => (self.name(), ""),
        }
    }

    /// The names of the files and folders that the part is found by in a folder, as patterns; none for a part that no folder
    /// has.
    pub(super) fn patterns(self) -> Vec<&'static str> {
        let patterns: &[&str] = match self {
            Self::Transformer => {
                let files = ModelFamily::drawings().flat_map(|(_, drawing)| drawing.transformer_files);
                return files.copied().chain(["transformer"]).collect();
            }
            Self::Autoencoder => &["ae.safetensors", "ae.sft", "vae"],
            Self::Clip => &["text_encoder"],
            Self::T5 => &["text_encoder_2"],
            Self::ClipTokenizer => &["tokenizer"],
            Self::T5Tokenizer => &["tokenizer_2"],
            Self::Redux => &["flux1-redux-*.safetensors", "image_embedder"],
            Self::ImageEncoder => &["image_encoder"],
            Self::PreviewDecoder | Self::Depth | Self::ControlNet | Self::IpAdapter | Self::ClipVision => &[],
        };
        patterns.to_vec()
    }
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.label())
    }
}
