//! What a file is, by the names and shapes of its tensors alone.

use std::fmt;

use super::lora::is_change;

/// Whose names a file bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The official ones.
    Official,
    /// Those of diffusers.
    Diffusers,
    /// Those of ComfyUI's files that hold several models.
    Comfy,
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
    /// The autoencoder of FLUX.1.
    AutoEncoder {
        /// Whose names.
        layout: Layout,
    },
    /// The autoencoder of FLUX.2.
    AutoEncoder2,
    /// A T5 encoder.
    T5,
    /// A CLIP text model.
    Clip,
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

impl Family {
    /// Looks FLUX.2 first, since its names contain FLUX.1's.
    pub(super) fn of<'a>(
        shape: &dyn Fn(&str) -> Option<Vec<i64>>,
        mut names: impl Iterator<Item = &'a str> + Clone,
    ) -> Self {
        let has = |name: &str| shape(name).is_some();
        let ends = |end: &[&str]| names.clone().any(|n| end.iter().any(|e| n.ends_with(e)));
        let begins = |start: &str| names.clone().any(|n| n.starts_with(start));
        let flux1 = |layout, img_in: &str, out: &str, guidance: &str| Self::Flux1 {
            layout,
            in_channels: shape(img_in).and_then(|s| s.get(1).copied()),
            out_channels: shape(out).and_then(|s| s.first().copied()),
            guidance: has(guidance),
        };
        if names.clone().any(is_change) {
            Self::Lora
        } else if begins("model.diffusion_model.") && (begins("vae.") || begins("text_encoders.")) {
            Self::AllInOne
        } else if has("double_stream_modulation_img.lin.weight") {
            Self::Flux2 { layout: Layout::Official }
        } else if has("double_stream_modulation_img.linear.weight") {
            Self::Flux2 { layout: Layout::Diffusers }
        } else if ["scale", "weight"]
            .iter()
            .any(|s| has(&format!("double_blocks.0.img_attn.norm.key_norm.{s}")))
        {
            flux1(
                Layout::Official,
                "img_in.weight",
                "final_layer.linear.weight",
                "guidance_in.in_layer.weight",
            )
        } else if has("transformer_blocks.0.attn.norm_added_k.weight") {
            let guidance = "time_text_embed.guidance_embedder.linear_1.weight";
            flux1(Layout::Diffusers, "x_embedder.weight", "proj_out.weight", guidance)
        } else if has("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale") {
            let name = |s: &str| format!("model.diffusion_model.{s}");
            flux1(
                Layout::Comfy,
                &name("img_in.weight"),
                &name("final_layer.linear.weight"),
                &name("guidance_in.in_layer.weight"),
            )
        } else if has("bn.running_mean") {
            Self::AutoEncoder2
        } else if has("encoder.down.0.block.0.conv1.weight") {
            Self::AutoEncoder { layout: Layout::Official }
        } else if has("encoder.down_blocks.0.resnets.0.conv1.weight") {
            Self::AutoEncoder { layout: Layout::Diffusers }
        } else if has("encoder.block.0.layer.0.SelfAttention.q.weight") {
            Self::T5
        } else if ends(&["embeddings.token_embedding.weight"]) {
            Self::Clip
        } else {
            Self::Unknown { example: names.next().map(|n| n.chars().take(80).collect()) }
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Layout::Official => "the official names",
            Layout::Diffusers => "diffusers' names",
            Layout::Comfy => "ComfyUI's names",
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
            Family::AutoEncoder { layout } => write!(f, "this is FLUX.1's autoencoder, in {layout}"),
            Family::AutoEncoder2 => f.write_str("this is FLUX.2's autoencoder"),
            Family::T5 => f.write_str("this is a T5 encoder"),
            Family::Clip => f.write_str("this is a CLIP text model"),
            Family::Lora => f.write_str("this is a LoRA, a change to another model"),
            Family::AllInOne => f.write_str("this is a file of ComfyUI with several models in it"),
            Family::Unknown { example: None } => f.write_str("this holds no tensors"),
            Family::Unknown { example: Some(name) } => {
                write!(f, "nothing that is known here; it holds {name}")
            }
        }
    }
}
