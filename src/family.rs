//! The families of models: a row each, with what is the same for all models of the family.
//!
//! A row is data. What belongs to it elsewhere is found by matching on [`ModelFamily`]: the transformer in
//! `models::transformer`, the names of other layouts in `checkpoint`, which detects families by
//! their rows.

use std::fmt;

use crate::error::{Error, Result};
use crate::sampling::{LatentSpec, PositionAxes, Schedule};

/// A family of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ModelFamily {
    /// FLUX.1: dev, schnell, Krea, Kontext, Fill, Canny, Depth.
    Flux1,
    /// FLUX.2: dev and klein. Its files are detected and converted; no pictures are drawn with it.
    Flux2,
}

/// Whose names the tensors of a file have.
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

/// What is the same for all models of a family.
#[derive(Debug)]
pub struct FamilyRow {
    /// The name of the family: `FLUX.1`.
    pub name: &'static str,
    /// What the names of the transformer's files begin with: `flux1`.
    pub file_stem: &'static str,
    /// The name of the transformer.
    pub transformer_name: &'static str,
    /// The name of the autoencoder.
    pub autoencoder_name: &'static str,
    /// The class of the transformer in diffusers.
    pub transformer_class: &'static str,
    /// The class of the autoencoder in diffusers.
    pub autoencoder_class: &'static str,
    /// The names by which a transformer is detected, in each layout.
    pub transformer: &'static [TransformerNames],
    /// A tensor that only the autoencoder of this family has, in any layout; `None` where the layout alone tells.
    pub autoencoder: Option<&'static str>,
    /// What the official names of the transformer's blocks begin with.
    pub blocks: &'static [&'static str],
    /// What the official names begin with of all that lies outside of the blocks: finetunes leave it out where it was not
    /// trained.
    pub outside_the_blocks: &'static [&'static str],
    /// The latents, and the positions of patches and text.
    pub latent: LatentSpec,
    /// How pictures are drawn; `None` for a family whose files alone are known.
    pub drawing: Option<Drawing>,
}

/// The names of a transformer in one layout.
#[derive(Debug)]
pub struct TransformerNames {
    /// The layout.
    pub layout: Layout,
    /// The tensors any of which tells that it is such a transformer.
    pub any_of: &'static [&'static str],
    /// The weight whose columns are the channels of a patch.
    pub img_in: &'static str,
    /// The weight whose rows are the channels of a predicted patch.
    pub final_layer: &'static str,
    /// A tensor that only a transformer distilled for guidance has.
    pub guidance_in: &'static str,
}

/// How a family draws.
#[derive(Debug)]
pub struct Drawing {
    /// What the transformer's files are called, as patterns.
    pub transformer_files: &'static [&'static str],
    /// What the classes of diffusers' pipelines begin with, when no digit follows.
    pub pipeline_prefix: &'static str,
    /// The classes of diffusers' pipelines that are known.
    pub pipelines: &'static [&'static str],
    /// The variants. Those that are alike in their conditions differ in whether they are distilled for guidance.
    pub variants: &'static [Variant],
    /// How pictures are read beside those that are drawn.
    pub references: References,
}

/// A variant of a family, as far as the shapes of a transformer tell it, and its defaults.
#[derive(Debug)]
pub struct Variant {
    /// The name: `dev`.
    pub name: &'static str,
    /// The name as a part of a file's name.
    pub file_name: &'static str,
    /// What is read beside the noise of every patch.
    pub condition: Condition,
    /// Whether it is distilled for guidance, whose strength it then takes as an input.
    pub guidance_embed: bool,
    /// The defaults of its parameters.
    pub defaults: Defaults,
}

/// More channels of every patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// None: it draws from text.
    None,
    /// The latent of a picture, such as edges or depths.
    Latent,
    /// The latent of a picture, and the pixels of a mask.
    LatentAndMask,
}

/// The defaults of a variant's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Steps from noise to picture.
    pub steps: usize,
    /// The strength of the guidance, of models that are distilled for it.
    pub guidance: f64,
    /// Tokens of the prompt.
    pub max_sequence_length: usize,
    /// The times of the steps.
    pub schedule: Schedule,
}

/// How a family reads pictures beside those that are drawn.
#[derive(Debug)]
pub struct References {
    /// What the names of models begin with or contain, in lower case, that read pictures in this way unless told otherwise: no
    /// shape tells it.
    pub model_name: &'static str,
    /// What the class of such a model's pipeline in diffusers begins with.
    pub pipeline_prefix: &'static str,
    /// The sizes, width and height, that a reference is resized to: the one whose sides are most alike.
    pub sizes: &'static [(u32, u32)],
}

impl ModelFamily {
    /// All families. Later ones come first, since their tensors may have the names of earlier ones, too.
    pub const ALL: [Self; 2] = [Self::Flux2, Self::Flux1];

    /// Returns the row of the family.
    pub fn row(self) -> &'static FamilyRow {
        match self {
            Self::Flux1 => &FLUX1,
            Self::Flux2 => &FLUX2,
        }
    }

    /// Returns the latents of the family.
    pub fn latent(self) -> &'static LatentSpec {
        &self.row().latent
    }

    /// Returns the variant of a transformer with so many channels of a patch, conditions included, and of a predicted patch;
    /// `None` where the family has none of these sizes.
    pub fn variant(
        self,
        in_channels: i64,
        out_channels: i64,
        guidance_embed: bool,
    ) -> Option<&'static Variant> {
        let condition = self.condition(in_channels, out_channels)?;
        let is_it =
            |variant: &&Variant| variant.condition == condition && variant.guidance_embed == guidance_embed;
        self.row().drawing.as_ref()?.variants.iter().find(is_it)
    }

    /// Returns what a transformer reads beside the noise; `None` for channels that no condition has.
    pub fn condition(self, in_channels: i64, out_channels: i64) -> Option<Condition> {
        let latent = self.latent();
        // A mask has a number for every pixel of a patch: so many for each channel of a patch.
        let mask = out_channels * (latent.patch_pixels() * latent.patch_pixels()) / latent.patch_channels();
        match in_channels - out_channels {
            0 => Some(Condition::None),
            more if more == out_channels => Some(Condition::Latent),
            more if more == out_channels + mask => Some(Condition::LatentAndMask),
            _ => None,
        }
    }

    /// Returns the variant that draws from text alone and is distilled for guidance or not.
    ///
    /// # Errors
    /// [`Error::Config`] where the family draws nothing, or has no such variant.
    pub fn text_variant(self, guidance_embed: bool) -> Result<&'static Variant> {
        let is_it = |variant: &&Variant| {
            variant.condition == Condition::None && variant.guidance_embed == guidance_embed
        };
        let variant = self.row().drawing.as_ref().and_then(|drawing| drawing.variants.iter().find(is_it));
        variant.ok_or_else(|| Error::Config(format!("no pictures are drawn with such a {self}")))
    }

    /// Returns the defaults of a transformer, distilled for guidance or not.
    ///
    /// # Errors
    /// As [`ModelFamily::text_variant`].
    pub fn defaults(self, guidance_embed: bool) -> Result<&'static Defaults> {
        Ok(&self.text_variant(guidance_embed)?.defaults)
    }

    /// Returns the sizes, width and height, that a reference is resized to.
    pub fn reference_sizes(self) -> &'static [(u32, u32)] {
        self.row().drawing.as_ref().map_or(&[], |drawing| drawing.references.sizes)
    }

    /// Returns how each family draws that draws pictures.
    pub fn drawings() -> impl Iterator<Item = (Self, &'static Drawing)> {
        Self::ALL.into_iter().filter_map(|family| Some((family, family.row().drawing.as_ref()?)))
    }

    /// Returns whether a tensor of this official name lies outside of the blocks of any family's transformer.
    pub fn is_outside_the_blocks(name: &str) -> bool {
        let mut prefixes = Self::ALL.iter().flat_map(|family| family.row().outside_the_blocks);
        prefixes.any(|prefix| name.starts_with(prefix))
    }
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.row().name)
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

/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/util.py` and `src/flux/sampling.py`.
static FLUX1: FamilyRow = FamilyRow {
    name: "FLUX.1",
    transformer_name: "FLUX.1 transformer",
    autoencoder_name: "FLUX.1 autoencoder",
    transformer_class: "FluxTransformer2DModel",
    autoencoder_class: "AutoencoderKL",
    file_stem: "flux1",
    transformer: &[
        TransformerNames {
            layout: Layout::Official,
            any_of: &[
                "double_blocks.0.img_attn.norm.key_norm.scale",
                "double_blocks.0.img_attn.norm.key_norm.weight",
            ],
            img_in: "img_in.weight",
            final_layer: "final_layer.linear.weight",
            guidance_in: "guidance_in.in_layer.weight",
        },
        TransformerNames {
            layout: Layout::Diffusers,
            any_of: &["transformer_blocks.0.attn.norm_added_k.weight"],
            img_in: "x_embedder.weight",
            final_layer: "proj_out.weight",
            guidance_in: "time_text_embed.guidance_embedder.linear_1.weight",
        },
    ],
    autoencoder: None,
    blocks: &["double_blocks.", "single_blocks."],
    outside_the_blocks: &["img_in.", "time_in.", "vector_in.", "guidance_in.", "txt_in.", "final_layer."],
    latent: LatentSpec {
        channels: 16,
        compression: 8,
        patch: 2,
        rounds_up: true,
        axes: PositionAxes { count: 3, row: 1, column: 2, text: None },
    },
    drawing: Some(Drawing {
        transformer_files: &["flux1-*.safetensors", "flux1-*.sft", "flux1-*.gguf"],
        pipeline_prefix: "Flux",
        pipelines: &[
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlPipeline",
            "FluxFillPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxKontextInpaintPipeline",
            "FluxKontextPipeline",
            "FluxPipeline",
        ],
        variants: &[
            flux1("dev", "dev", Condition::None, true),
            flux1("schnell", "schnell", Condition::None, false),
            flux1("Fill", "fill", Condition::LatentAndMask, true),
            flux1("Fill", "fill", Condition::LatentAndMask, false),
            flux1("Canny or Depth", "control", Condition::Latent, true),
            flux1("Canny or Depth", "control", Condition::Latent, false),
        ],
        references: References {
            model_name: "kontext",
            pipeline_prefix: "FluxKontext",
            sizes: &KONTEXT_SIZES,
        },
    }),
};

/// Returns a variant of FLUX.1. What is not distilled for guidance is distilled to few steps, as schnell is.
const fn flux1(
    name: &'static str,
    file_name: &'static str,
    condition: Condition,
    guidance_embed: bool,
) -> Variant {
    let defaults = if guidance_embed {
        Defaults { steps: 50, guidance: 2.5, max_sequence_length: 512, schedule: Schedule::SHIFTED }
    } else {
        Defaults { steps: 4, guidance: 2.5, max_sequence_length: 256, schedule: Schedule::Linear }
    };
    Variant { name, file_name, condition, guidance_embed, defaults }
}

/// The sizes of pictures that Kontext was trained on.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/util.py`, `PREFERED_KONTEXT_RESOLUTIONS`.
const KONTEXT_SIZES: [(u32, u32); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// Source: `black-forest-labs/flux2`, `src/flux2/model.py` and `src/flux2/sampling.py`.
static FLUX2: FamilyRow = FamilyRow {
    name: "FLUX.2",
    transformer_name: "FLUX.2 transformer",
    autoencoder_name: "FLUX.2 autoencoder",
    transformer_class: "Flux2Transformer2DModel",
    autoencoder_class: "AutoencoderKLFlux2",
    file_stem: "flux2",
    transformer: &[
        TransformerNames {
            layout: Layout::Official,
            any_of: &["double_stream_modulation_img.lin.weight"],
            img_in: "img_in.weight",
            final_layer: "final_layer.linear.weight",
            guidance_in: "guidance_in.in_layer.weight",
        },
        TransformerNames {
            layout: Layout::Diffusers,
            any_of: &["double_stream_modulation_img.linear.weight"],
            img_in: "x_embedder.weight",
            final_layer: "proj_out.weight",
            guidance_in: "time_guidance_embed.guidance_embedder.linear_1.weight",
        },
    ],
    autoencoder: Some("bn.running_mean"),
    blocks: &["double_blocks.", "single_blocks."],
    outside_the_blocks: &[
        "img_in.",
        "time_in.",
        "guidance_in.",
        "txt_in.",
        "double_stream_modulation_img.",
        "double_stream_modulation_txt.",
        "single_stream_modulation.",
        "final_layer.",
    ],
    latent: LatentSpec {
        channels: 128,
        compression: 16,
        patch: 1,
        rounds_up: false,
        axes: PositionAxes { count: 4, row: 1, column: 2, text: Some(3) },
    },
    drawing: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channels_tell_the_variants_of_flux1() {
        let name = |channels, guidance| ModelFamily::Flux1.variant(channels, 64, guidance).map(|v| v.name);
        assert_eq!(name(64, true), Some("dev"));
        assert_eq!(name(64, false), Some("schnell"));
        assert_eq!(name(128, true), Some("Canny or Depth"));
        assert_eq!(name(384, true), Some("Fill"));
        assert_eq!(name(96, true), None);
        let small = |channels| ModelFamily::Flux1.variant(channels, 16, true).map(|v| v.name);
        assert_eq!((small(16), small(32), small(96)), (Some("dev"), Some("Canny or Depth"), Some("Fill")));
    }

    #[test]
    fn variants_that_are_alike_in_guidance_have_the_same_defaults() {
        for family in ModelFamily::ALL {
            for variant in family.row().drawing.iter().flat_map(|drawing| drawing.variants) {
                let defaults = family.defaults(variant.guidance_embed).unwrap();
                assert_eq!(*defaults, variant.defaults, "{family}");
            }
        }
    }
}
