//! What a file is, by the names and shapes of its tensors alone.

use std::collections::BTreeMap;
use std::fmt;

use super::lora::is_change;
use super::select::OPEN_CLIP_TEXT;

/// Whose names a file bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The official ones.
    Official,
    /// Those of diffusers.
    Diffusers,
    /// Those of ComfyUI: the official ones behind a prefix.
    Comfy,
    /// Those of llama.cpp.
    Llama,
    /// Those of XLabs' models, which have the official ones within.
    XLabs,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// A FLUX.1 transformer.
    Flux1 {
        /// Whose names.
        layout: Layout,
        /// Channels of a patch: 64 (dev, schnell), 128 (Canny, Depth), 384 (Fill).
        in_channels: Option<i64>,
        /// Channels of a predicted patch.
        out_channels: Option<i64>,
        /// Whether it is distilled for guidance; schnell is not.
        guidance: bool,
    },
    /// A FLUX.2 transformer.
    Flux2 {
        /// Whose names.
        layout: Layout,
    },
    /// A ControlNet of FLUX.1.
    ControlNet {
        /// Whose names: XLabs', or diffusers' as InstantX' and Shakker's have them.
        layout: Layout,
    },
    /// The autoencoder of FLUX.1.
    AutoEncoder {
        /// Whose names.
        layout: Layout,
    },
    /// The autoencoder of FLUX.2.
    AutoEncoder2 {
        /// Whose names.
        layout: Layout,
    },
    /// A tiny autoencoder (TAESD, TAEF1), or one of its halves.
    TinyAutoEncoder {
        /// Whose names; the official ones are those of its author, and there encoder and decoder are files of their own.
        layout: Layout,
    },
    /// A T5 encoder.
    T5 {
        /// Whose names; the official ones are those of transformers.
        layout: Layout,
    },
    /// A CLIP text model.
    Clip,
    /// SigLIP's vision tower, alone or with the text tower beside it.
    Siglip,
    /// The embedder of Redux.
    Redux,
    /// A depth model: Depth Anything.
    Depth,
    /// A CLIP vision model with its projection.
    ClipVision,
    /// An IP-Adapter of FLUX.1, in XLabs' names.
    IpAdapter,
    /// A low-rank update of another model.
    Lora,
    /// Several models in one file.
    AllInOne,
    /// Nothing that is known here; with one of its names.
    Unknown {
        /// A name, to recognise it by.
        example: Option<String>,
    },
}

/// One of the models in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contained {
    /// What stands before all of its names.
    pub prefix: &'static str,
    /// What it is.
    pub family: Family,
}

/// Where ComfyUI's files keep a transformer, an autoencoder and the text encoders, and open_clip's a text model.
const PREFIXES: [&str; 10] = [
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "vae.",
    "first_stage_model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.t5xxl.transformer.",
    "text_encoders.clip_l.",
    "text_encoders.t5xxl.",
    OPEN_CLIP_TEXT,
];

/// Shapes by name.
pub(super) struct Names<'a>(pub(super) BTreeMap<&'a str, &'a [i64]>);

impl Names<'_> {
    /// What all of it is.
    pub(super) fn family(&self) -> Family {
        if self.0.keys().any(|name| is_change(name)) {
            return Family::Lora;
        }
        let mut contained = self.contained();
        match contained.len() {
            0 => Family::Unknown { example: self.0.keys().next().map(|n| n.chars().take(80).collect()) },
            1 => {
                let Contained { prefix, family } = contained.remove(0);
                if prefix.is_empty() { family } else { family.prefixed() }
            }
            _ => Family::AllInOne,
        }
    }

    /// The models in it, each by its prefix.
    pub(super) fn contained(&self) -> Vec<Contained> {
        let known = |prefix| Some(Contained { prefix, family: self.under(prefix)? });
        PREFIXES.into_iter().filter_map(known).collect()
    }

    /// Looks for FLUX.2 and ControlNets first, since their names contain FLUX.1's.
    fn under(&self, prefix: &str) -> Option<Family> {
        let shape = |name: &str| self.0.get(format!("{prefix}{name}").as_str());
        let has = |name: &str| shape(name).is_some();
        let is_kernel = |name: &str| shape(name).is_some_and(|shape| shape.len() == 4);
        let flux1 = |layout, img_in: &str, out: &str, guidance: &str| Family::Flux1 {
            layout,
            in_channels: shape(img_in).and_then(|s| s.get(1).copied()),
            out_channels: shape(out).and_then(|s| s.first().copied()),
            guidance: has(guidance),
        };
        // CLIP's vision tower has a class and no bias there.
        let is_siglip = |tower: &str| {
            has(&format!("{tower}embeddings.patch_embedding.bias"))
                && has(&format!("{tower}post_layernorm.weight"))
                && !has(&format!("{tower}embeddings.class_embedding"))
        };
        let norm = ["scale", "weight"].map(|s| format!("double_blocks.0.img_attn.norm.key_norm.{s}"));
        let diffusers = has("transformer_blocks.0.attn.norm_added_k.weight");
        let family = if has("controlnet_blocks.0.weight") && has("pos_embed_input.weight") {
            Family::ControlNet { layout: Layout::XLabs }
        } else if has("controlnet_blocks.0.weight") && has("controlnet_x_embedder.weight") && diffusers {
            Family::ControlNet { layout: Layout::Diffusers }
        } else if has("ip_adapter_proj_model.proj.weight") {
            Family::IpAdapter
        } else if has("double_stream_modulation_img.lin.weight") {
            Family::Flux2 { layout: Layout::Official }
        } else if has("double_stream_modulation_img.linear.weight") {
            Family::Flux2 { layout: Layout::Diffusers }
        } else if norm.iter().any(|name| has(name)) {
            let (out, guidance) = ("final_layer.linear.weight", "guidance_in.in_layer.weight");
            flux1(Layout::Official, "img_in.weight", out, guidance)
        } else if diffusers {
            let guidance = "time_text_embed.guidance_embedder.linear_1.weight";
            flux1(Layout::Diffusers, "x_embedder.weight", "proj_out.weight", guidance)
        } else if has("encoder.down.0.block.0.conv1.weight") {
            autoencoder(Layout::Official, has("bn.running_mean"))
        } else if has("encoder.down_blocks.0.resnets.0.conv1.weight") {
            autoencoder(Layout::Diffusers, has("bn.running_mean"))
        } else if has("decoder.layers.2.conv.0.weight") || has("encoder.layers.1.conv.0.weight") {
            Family::TinyAutoEncoder { layout: Layout::Diffusers }
        } else if is_kernel("0.weight") && has("1.conv.0.weight")
            || is_kernel("1.weight") && has("3.conv.0.weight")
        {
            Family::TinyAutoEncoder { layout: Layout::Official }
        } else if has("encoder.block.0.layer.0.SelfAttention.q.weight") {
            Family::T5 { layout: Layout::Official }
        } else if has("enc.blk.0.attn_q.weight") {
            Family::T5 { layout: Layout::Llama }
        } else if is_siglip("vision_model.") || is_siglip("") {
            Family::Siglip
        } else if has("redux_up.weight") && has("redux_down.weight") {
            Family::Redux
        } else if has("text_model.embeddings.token_embedding.weight")
            || has("embeddings.token_embedding.weight")
            || has("token_embedding.weight") && has("transformer.resblocks.0.attn.in_proj_weight")
        {
            Family::Clip
        } else if has("backbone.embeddings.position_embeddings")
            && has("neck.reassemble_stage.layers.0.projection.weight")
        {
            Family::Depth
        } else if has("vision_model.embeddings.class_embedding") && has("visual_projection.weight")
            || has("visual.class_embedding") && has("visual.proj")
        {
            Family::ClipVision
        } else {
            return None;
        };
        Some(family)
    }
}

fn autoencoder(layout: Layout, second: bool) -> Family {
    if second { Family::AutoEncoder2 { layout } } else { Family::AutoEncoder { layout } }
}

impl Family {
    /// Whose names it bears, where there is a choice.
    pub fn layout(&self) -> Option<Layout> {
        match self {
            Self::Flux1 { layout, .. }
            | Self::Flux2 { layout }
            | Self::ControlNet { layout }
            | Self::AutoEncoder { layout }
            | Self::AutoEncoder2 { layout }
            | Self::TinyAutoEncoder { layout }
            | Self::T5 { layout } => Some(*layout),
            Self::AllInOne => Some(Layout::Comfy),
            _ => None,
        }
    }

    /// The same behind one of ComfyUI's prefixes.
    fn prefixed(mut self) -> Self {
        match &mut self {
            Self::Flux1 { layout, .. }
            | Self::Flux2 { layout }
            | Self::ControlNet { layout }
            | Self::AutoEncoder { layout }
            | Self::AutoEncoder2 { layout }
            | Self::TinyAutoEncoder { layout }
            | Self::T5 { layout } => *layout = Layout::Comfy,
            _ => {}
        }
        self
    }

    /// What it is in a few words: `FLUX.1 transformer`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Flux1 { .. } => "FLUX.1 transformer",
            Self::Flux2 { .. } => "FLUX.2 transformer",
            Self::ControlNet { .. } => "ControlNet",
            Self::AutoEncoder { .. } => "FLUX.1 autoencoder",
            Self::AutoEncoder2 { .. } => "FLUX.2 autoencoder",
            Self::TinyAutoEncoder { .. } => "tiny autoencoder",
            Self::T5 { .. } => "T5 encoder",
            Self::Clip => "CLIP text model",
            Self::Siglip => "SigLIP vision model",
            Self::Redux => "FLUX.1 Redux embedder",
            Self::Depth => "depth model",
            Self::ClipVision => "CLIP vision model",
            Self::IpAdapter => "IP-Adapter",
            Self::Lora => "LoRA",
            Self::AllInOne => "ComfyUI all-in-one",
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Layout::Official => "the official names",
            Layout::Diffusers => "diffusers' names",
            Layout::Comfy => "ComfyUI's names",
            Layout::Llama => "llama.cpp's names",
            Layout::XLabs => "XLabs' names",
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Family::Flux1 { layout, in_channels, out_channels, guidance } => {
                let variant = match (in_channels, out_channels) {
                    (None, _) => "without img_in",
                    (a, b) if a == b && *guidance => "dev",
                    (a, b) if a == b => "schnell",
                    (Some(a), Some(b)) if *a == 6 * b => "Fill",
                    (Some(a), Some(b)) if *a == 2 * b => "Canny or Depth",
                    _ => "of an unknown variant",
                };
                write!(f, "this is FLUX.1 {variant}, in {layout}")?;
                in_channels.map_or(Ok(()), |c| write!(f, ": img_in has {c} inputs"))?;
                write!(f, "; {} guidance_in", if *guidance { "with" } else { "without" })
            }
            Family::Flux2 { layout } => write!(f, "this is a FLUX.2 transformer, in {layout}"),
            Family::ControlNet { layout } => write!(f, "this is a ControlNet of FLUX.1, in {layout}"),
            Family::AutoEncoder { layout } => write!(f, "this is FLUX.1's autoencoder, in {layout}"),
            Family::AutoEncoder2 { layout } => write!(f, "this is FLUX.2's autoencoder, in {layout}"),
            Family::TinyAutoEncoder { layout } => {
                write!(f, "this is a tiny autoencoder (TAESD), in {layout}")
            }
            Family::T5 { layout: Layout::Official } => f.write_str("this is a T5 encoder"),
            Family::T5 { layout } => write!(f, "this is a T5 encoder, in {layout}"),
            Family::Clip => f.write_str("this is a CLIP text model"),
            Family::Siglip => f.write_str("this is a SigLIP vision model"),
            Family::Redux => f.write_str("this is the embedder of FLUX.1 Redux"),
            Family::Depth => f.write_str("this is a depth model (Depth Anything)"),
            Family::ClipVision => f.write_str("this is a CLIP vision model"),
            Family::IpAdapter => f.write_str("this is an IP-Adapter of FLUX.1, in XLabs' names"),
            Family::Lora => f.write_str("this is a LoRA, a change to another model"),
            Family::AllInOne => f.write_str("this is a file of ComfyUI with several models in it"),
            Family::Unknown { example: None } => f.write_str("this holds no tensors"),
            Family::Unknown { example: Some(name) } => {
                write!(f, "nothing that is known here; it holds {name}")
            }
        }
    }
}
