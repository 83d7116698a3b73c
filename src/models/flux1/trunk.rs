//! What the transformer and its ControlNets have in common.

use tch::Tensor;
use tch::nn::{Module, Path};

use super::{Flux1Input, Flux1Params};
use crate::error::{Error, Result};
use crate::layers::{
    DoubleStreamBlock, EmbedNd, MlpEmbedder, SingleStreamBlock, check_mlp_ratio, timestep_embedding,
};
use crate::nn::{Linear, check_kind, check_sizes};

/// The embedders and the blocks.
///
/// Source: `model.py` lines 35–83.
#[derive(Debug)]
pub(super) struct Trunk {
    pub(super) img_in: Linear,
    time_in: MlpEmbedder,
    vector_in: MlpEmbedder,
    guidance_in: Option<MlpEmbedder>,
    pub(super) txt_in: Linear,
    pub(super) double_blocks: Vec<DoubleStreamBlock>,
    pub(super) single_blocks: Vec<SingleStreamBlock>,
    pe_embedder: EmbedNd,
    pub(super) params: Flux1Params,
}

impl Trunk {
    /// Declares every parameter under its official name.
    pub(super) fn new(vs: &Path, params: &Flux1Params) -> Result<Self> {
        let Flux1Params { hidden_size, num_heads, mlp_ratio, .. } = *params;
        check_sizes(&[
            ("in_channels", params.in_channels),
            ("vec_in_dim", params.vec_in_dim),
            ("context_in_dim", params.context_in_dim),
            ("hidden_size", hidden_size),
            ("theta", params.theta),
        ])?;
        check_mlp_ratio(hidden_size, mlp_ratio)?;
        if num_heads <= 0 || hidden_size % num_heads != 0 {
            return Err(Error::Config(format!(
                "Hidden size {hidden_size} must be divisible by num_heads {num_heads}"
            )));
        }
        let double_block = |i| {
            let vs = vs / "double_blocks" / i;
            DoubleStreamBlock::new(vs, hidden_size, num_heads, mlp_ratio, params.qkv_bias)
        };
        let single_block =
            |i| SingleStreamBlock::new(vs / "single_blocks" / i, hidden_size, num_heads, mlp_ratio);
        Ok(Self {
            pe_embedder: EmbedNd::new(hidden_size / num_heads, params.theta, &params.axes_dim)?,
            img_in: Linear::new(vs / "img_in", params.in_channels, hidden_size, true),
            time_in: MlpEmbedder::new(vs / "time_in", 256, hidden_size),
            vector_in: MlpEmbedder::new(vs / "vector_in", params.vec_in_dim, hidden_size),
            guidance_in: params
                .guidance_embed
                .then(|| MlpEmbedder::new(vs / "guidance_in", 256, hidden_size)),
            txt_in: Linear::new(vs / "txt_in", params.context_in_dim, hidden_size, true),
            double_blocks: (0..params.depth).map(double_block).collect::<Result<_>>()?,
            single_blocks: (0..params.depth_single_blocks).map(single_block).collect::<Result<_>>()?,
            params: params.clone(),
        })
    }

    /// Computes the conditioning vector `[B, D]`.
    pub(super) fn vec(&self, timesteps: &Tensor, guidance: Option<&Tensor>, y: &Tensor) -> Result<Tensor> {
        let vec = self.time_in.forward(&timestep_embedding(timesteps, 256, 1e4, 1e3));
        let vec = match &self.guidance_in {
            Some(guidance_in) => {
                let guidance = guidance.ok_or(Error::MissingGuidance)?;
                vec + guidance_in.forward(&timestep_embedding(guidance, 256, 1e4, 1e3))
            }
            None => vec,
        };
        Ok(vec + self.vector_in.forward(y))
    }

    /// Computes the rotations of text and picture, the text first.
    pub(super) fn pe(&self, txt_ids: &Tensor, img_ids: &Tensor) -> Tensor {
        self.pe_embedder.forward(&Tensor::cat(&[txt_ids, img_ids], 1))
    }

    /// Checks that the inputs fit the sizes and each other.
    pub(super) fn check(&self, input: &Flux1Input) -> Result<()> {
        let size = input.img.size();
        let (&[b, li, _], &[_, lt, _]) = (&size[..], &input.txt.size()[..]) else {
            let (what, found) =
                if size.len() == 3 { ("txt", input.txt.size()) } else { ("img", input.img.size()) };
            return Err(Error::Shape { what, expected: "3-dimensional".into(), found });
        };
        let p = &self.params;
        let mut inputs = vec![
            ("img", input.img, vec![b, li, p.in_channels]),
            ("img_ids", input.img_ids, vec![b, li, 3]),
            ("txt", input.txt, vec![b, lt, p.context_in_dim]),
            ("txt_ids", input.txt_ids, vec![b, lt, 3]),
            ("timesteps", input.timesteps, vec![b]),
            ("y", input.y, vec![b, p.vec_in_dim]),
        ];
        if let (Some(guidance), true) = (input.guidance, p.guidance_embed) {
            inputs.push(("guidance", guidance, vec![b]));
        }
        for (what, tensor, expected) in inputs {
            if tensor.size() != expected {
                return Err(Error::Shape { what, expected: format!("{expected:?}"), found: tensor.size() });
            }
            // Positions are f32 in every model, and times that are whole numbers are embedded in f32.
            let kind = match what {
                "img_ids" | "txt_ids" => self.img_in.weight.kind(),
                "timesteps" | "guidance" if !tensor.is_floating_point() => tch::Kind::Float,
                _ => tensor.kind(),
            };
            check_kind(what, tensor, kind, &self.img_in.weight)?;
        }
        Ok(())
    }
}
