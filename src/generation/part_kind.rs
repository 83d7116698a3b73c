//! What the parts of a pipeline are called.

use std::fmt;

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
