//! Where and how a pipeline computes.

use tch::{Device, Kind};

use crate::checkpoint::Access;
use crate::choice::choice;
use crate::numerics::{Numerics, Quantize};

/// Where and in which kind a pipeline computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The device of every model.
    pub device: Device,
    /// The kind of the transformer and of the latents; `None` takes the transformer file's.
    pub kind: Option<Kind>,
    /// Mapped or read.
    pub access: Access,
    /// Keeps T5, CLIP and what reads Redux's pictures after the prompt was encoded. Otherwise they are released before the transformer is loaded.
    pub keep_text_encoders: bool,
    /// Keeps fp8 and GGUF weights of linear layers as they are on the disk; each becomes numbers of `kind` for as long
    /// as its layer runs. Otherwise they become such numbers when they are loaded.
    pub keep_quantized: bool,
    /// What is not in memory while it does not run.
    pub offload: Offload,
    /// The official bits, or speed: see [`Numerics`].
    pub numerics: Numerics,
    /// What the weights of the transformer's blocks become once they are loaded.
    pub quantize: Quantize,
    /// Goes on where a LoRA has keys that cannot be placed; [`Pipeline::set_loras`](super::Pipeline::set_loras) then returns them.
    pub allow_partial_lora: bool,
    /// Decodes in tiles of so many pixels a side where memory is short; a quarter of each is shared with its neighbour.
    pub vae_tile: Option<i64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            kind: None,
            access: Access::Map,
            keep_text_encoders: false,
            keep_quantized: false,
            offload: Offload::None,
            numerics: Numerics::Exact,
            quantize: Quantize::None,
            allow_partial_lora: false,
            vae_tile: None,
        }
    }
}

choice! {
    /// What is not in memory while it does not run. No choice changes a bit of a picture.
    #[derive(Default)]
    pub enum Offload {
        /// Transformer and autoencoder stay once they were needed.
        None = "none", default;
        /// Each part goes when its phase is over.
        Parts = "parts";
        /// And of T5, the transformer, ControlNets and IP-Adapters, the weights of one block are in memory at a time, while
        /// those of the next one are brought: from the mapped file itself, so that no memory is needed to keep them. What is
        /// quantised, is quantised layer by layer, and stays.
        Blocks = "blocks";
    }
}
