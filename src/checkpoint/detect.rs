//! What a file is, by the names and shapes of its tensors alone; of packed ones by their types, too.

mod foreign;
mod packed;
mod wrapped;

use std::collections::BTreeMap;
use std::fmt;

pub use foreign::{ForeignModel, Role};
pub use packed::Packing;
pub(crate) use packed::find as find_packing;
pub(super) use wrapped::without_wrappers;

use super::lora::is_change;
pub use crate::family::Layout;
use crate::family::{ModelFamily, TransformerNames};

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// A transformer.
    Transformer {
        /// The family of models.
        family: ModelFamily,
        /// Whose names.
        layout: Layout,
        /// Channels of a patch; of FLUX.1 64 (dev, schnell), 128 (Canny, Depth), 384 (Fill).
        in_channels: Option<i64>,
        /// Channels of a predicted patch.
        out_channels: Option<i64>,
        /// Whether it is distilled for guidance; FLUX.1 schnell is not.
        guidance: bool,
    },
    /// A ControlNet of FLUX.1.
    ControlNet {
        /// Whose names: XLabs', or diffusers' as InstantX' and Shakker's have them.
        layout: Layout,
    },
    /// The autoencoder of a family.
    AutoEncoder {
        /// The family of models.
        family: ModelFamily,
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
    /// A model that is known, and that nothing here runs.
    Foreign(&'static ForeignModel),
    /// Weights in a form that is not read.
    Packed {
        /// The form.
        packing: &'static Packing,
        /// What is packed, where the names tell: `FLUX.1 transformer`.
        within: Option<&'static str>,
    },
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
    pub prefix: String,
    /// What it is.
    pub family: Family,
}

/// Where ComfyUI's files keep a transformer, an autoencoder and the text encoders.
const COMFY: [&str; 8] = [
    "model.diffusion_model.",
    "diffusion_model.",
    "vae.",
    "first_stage_model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.t5xxl.transformer.",
    "text_encoders.clip_l.",
    "text_encoders.t5xxl.",
];

/// What is known of a file's tensors.
pub(super) struct Names<'a> {
    /// Shapes by name.
    pub(super) shapes: BTreeMap<&'a str, &'a [i64]>,
    /// The form in which the weights are packed.
    pub(super) packing: Option<&'static Packing>,
    /// What a GGUF file calls the model.
    pub(super) architecture: Option<&'a str>,
}

impl Names<'_> {
    /// What all of it is.
    pub(super) fn family(&self) -> Family {
        if let Some(packing) = self.packing {
            let unpacked = packed::unpacked(&self.shapes);
            let shapes = unpacked.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
            let names = Names { shapes, packing: None, architecture: self.architecture };
            let within = names.contained().first().map(|model| model.family.name());
            return Family::Packed { packing, within };
        }
        if self.shapes.keys().any(|name| is_change(name)) {
            return Family::Lora;
        }
        let mut contained = self.contained();
        let foreign = |model: &Contained| matches!(model.family, Family::Foreign(_));
        match contained.len() {
            0 => match self
                .architecture
                .and_then(foreign::of_architecture)
                .or_else(|| foreign::adapter(&self.shapes))
            {
                Some(model) => Family::Foreign(model),
                None => {
                    let example = self.shapes.keys().next().map(|name| name.chars().take(80).collect());
                    Family::Unknown { example }
                }
            },
            1 => {
                let Contained { prefix, family } = contained.remove(0);
                if COMFY.contains(&prefix.as_str()) { family.prefixed() } else { family }
            }
            _ if contained.iter().all(foreign) => contained.remove(0).family,
            _ => Family::AllInOne,
        }
    }

    /// The models in it, each by its prefix: transformers first, then autoencoders, then what reads prompts.
    pub(super) fn contained(&self) -> Vec<Contained> {
        if self.packing.is_some() {
            return Vec::new();
        }
        let mut found: Vec<Contained> = Vec::new();
        // Shortest first: what is a model behind nothing may look like one behind its first word, too.
        for (prefix, known) in wrapped::prefixes(&self.shapes) {
            let Some(family) = self.under(&prefix) else { continue };
            let same = |other: &Contained| {
                prefix.starts_with(&other.prefix) && (!known || other.family.name() == family.name())
            };
            if !found.iter().any(same) {
                found.push(Contained { prefix, family });
            }
        }
        let stable_diffusion_3 = |model: &Contained| model.family.name() == foreign::STABLE_DIFFUSION_3;
        if found.iter().any(stable_diffusion_3) {
            for model in &mut found {
                if matches!(model.family, Family::AutoEncoder { .. }) {
                    model.family = Family::Foreign(&foreign::STABLE_DIFFUSION_3_AUTOENCODER);
                }
            }
        }
        found.sort_by_key(|model| model.family.rank());
        found
    }

    /// The model whose names begin with `prefix`. Looks for other families, FLUX.2 and ControlNets first, since their
    /// names may contain FLUX.1's.
    fn under(&self, prefix: &str) -> Option<Family> {
        if let Some(model) = foreign::find(&self.shapes, prefix) {
            return Some(Family::Foreign(model));
        }
        let shape = |name: &str| self.shapes.get(format!("{prefix}{name}").as_str());
        let has = |name: &str| shape(name).is_some();
        let is_kernel = |name: &str| shape(name).is_some_and(|shape| shape.len() == 4);
        let transformer = |family: ModelFamily, names: &TransformerNames| Family::Transformer {
            family,
            layout: names.layout,
            in_channels: shape(names.img_in).and_then(|s| s.get(1).copied()),
            out_channels: shape(names.final_layer).and_then(|s| s.first().copied()),
            guidance: has(names.guidance_in),
        };
        let mut transformers = ModelFamily::ALL
            .iter()
            .flat_map(|&family| family.row().transformer.iter().map(move |names| (family, names)));
        let autoencoder = |layout| {
            let is_of = |family: &ModelFamily| family.row().autoencoder.is_none_or(&has);
            ModelFamily::ALL.into_iter().find(is_of).map(|family| Family::AutoEncoder { family, layout })
        };
        // CLIP's vision tower has a class and no bias there.
        let is_siglip = |tower: &str| {
            has(&format!("{tower}embeddings.patch_embedding.bias"))
                && has(&format!("{tower}post_layernorm.weight"))
                && !has(&format!("{tower}embeddings.class_embedding"))
        };
        let family = if has("controlnet_blocks.0.weight") && has("pos_embed_input.weight") {
            Family::ControlNet { layout: Layout::XLabs }
        } else if has("controlnet_blocks.0.weight")
            && has("controlnet_x_embedder.weight")
            && has("transformer_blocks.0.attn.norm_added_k.weight")
        {
            Family::ControlNet { layout: Layout::Diffusers }
        } else if has("ip_adapter_proj_model.proj.weight") {
            Family::IpAdapter
        } else if let Some((family, names)) =
            transformers.find(|(_, names)| names.any_of.iter().any(|name| has(name)))
        {
            transformer(family, names)
        } else if has("encoder.down.0.block.0.conv1.weight") {
            autoencoder(Layout::Official)?
        } else if has("encoder.down_blocks.0.resnets.0.conv1.weight") {
            autoencoder(Layout::Diffusers)?
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

impl Family {
    /// Whether pictures are drawn with it; `false` for files that are only detected and converted.
    pub fn is_drawn(&self) -> bool {
        match self {
            Self::Transformer { family, .. } | Self::AutoEncoder { family, .. } => {
                family.row().drawing.is_some()
            }
            Self::Foreign(_) | Self::Packed { .. } | Self::Unknown { .. } => false,
            _ => true,
        }
    }

    /// Which part of a model it is, by the name that [`Hint::Part`](crate::Hint::Part) has for it; none where it is none of a
    /// model that can be drawn with.
    pub(crate) fn part(&self) -> Option<&'static str> {
        Some(match self {
            Self::Transformer { .. } if self.is_drawn() => "transformer",
            Self::ControlNet { .. } => "ControlNet",
            Self::AutoEncoder { .. } if self.is_drawn() => "autoencoder",
            Self::TinyAutoEncoder { .. } => "autoencoder",
            Self::T5 { .. } => "T5 encoder",
            Self::Clip => "CLIP text model",
            Self::Siglip => "image encoder",
            Self::Redux => "Redux",
            Self::Depth => "depth model",
            Self::ClipVision => "CLIP vision model",
            Self::IpAdapter => "IP-Adapter",
            Self::Lora => "LoRA",
            Self::AllInOne => "model",
            Self::Transformer { .. }
            | Self::AutoEncoder { .. }
            | Self::Foreign(_)
            | Self::Packed { .. }
            | Self::Unknown { .. } => return None,
        })
    }

    /// Whose names it bears, where there is a choice.
    pub fn layout(&self) -> Option<Layout> {
        match self {
            Self::Transformer { layout, .. }
            | Self::ControlNet { layout }
            | Self::AutoEncoder { layout, .. }
            | Self::TinyAutoEncoder { layout }
            | Self::T5 { layout } => Some(*layout),
            Self::AllInOne => Some(Layout::Comfy),
            _ => None,
        }
    }

    /// The same behind one of ComfyUI's prefixes.
    fn prefixed(mut self) -> Self {
        match &mut self {
            Self::Transformer { layout, .. }
            | Self::ControlNet { layout }
            | Self::AutoEncoder { layout, .. }
            | Self::TinyAutoEncoder { layout }
            | Self::T5 { layout } => *layout = Layout::Comfy,
            _ => {}
        }
        self
    }

    /// In which order the models of a file are told of.
    fn rank(&self) -> u8 {
        match self {
            Self::Transformer { .. } | Self::ControlNet { .. } => 0,
            Self::Foreign(model) if model.role == Role::Transformer => 0,
            Self::AutoEncoder { .. } | Self::TinyAutoEncoder { .. } => 1,
            Self::Foreign(model) if model.role == Role::Autoencoder => 1,
            Self::Clip => 2,
            Self::T5 { .. } => 3,
            _ => 4,
        }
    }

    /// What it is in a few words: `FLUX.1 transformer`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Transformer { family, .. } => family.row().transformer_name,
            Self::ControlNet { .. } => "ControlNet",
            Self::AutoEncoder { family, .. } => family.row().autoencoder_name,
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
            Self::Foreign(model) => model.name,
            Self::Packed { packing, .. } => packing.name,
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Family::Transformer { family, layout, in_channels, out_channels, guidance }
                if self.is_drawn() =>
            {
                let variant = match (in_channels, out_channels) {
                    (None, _) => "without img_in",
                    (Some(a), Some(b)) => {
                        family.variant(*a, *b, *guidance).map_or("of an unknown variant", |v| v.name)
                    }
                    (Some(_), None) => "of an unknown variant",
                };
                write!(f, "this is {family} {variant}, in {layout}")?;
                in_channels.map_or(Ok(()), |c| write!(f, ": img_in has {c} inputs"))?;
                write!(f, "; {} guidance_in", if *guidance { "with" } else { "without" })
            }
            Family::Transformer { family, layout, .. } => {
                let instead = Role::Transformer.of_flux1();
                write!(
                    f,
                    "this is a {family} transformer, in {layout}, which is not run here: take {instead}"
                )
            }
            Family::ControlNet { layout } => write!(f, "this is a ControlNet of FLUX.1, in {layout}"),
            Family::AutoEncoder { family, layout } => {
                write!(f, "this is {family}'s autoencoder, in {layout}")?;
                let instead = Role::Autoencoder.of_flux1();
                if self.is_drawn() { Ok(()) } else { write!(f, ", which is not run here: take {instead}") }
            }
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
            Family::Foreign(ForeignModel { name, role }) => {
                let article = if name.starts_with(['A', 'E', 'I', 'O', 'a', 'i', 'u']) { "an" } else { "a" };
                write!(f, "this is {article} {name}, which is not run here: take {}", role.of_flux1())
            }
            Family::Packed { packing: Packing { name, instead }, within } => {
                match within {
                    Some(within) => write!(f, "this is a {within}, but saved by {name}")?,
                    None => write!(f, "these weights are saved by {name}")?,
                }
                write!(f, ", a form that is not read: {instead}")
            }
            Family::Unknown { example: None } => f.write_str("this holds no tensors"),
            Family::Unknown { example: Some(name) } => {
                write!(f, "nothing that is known here; it holds {name}")
            }
        }
    }
}
