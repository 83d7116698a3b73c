//! Cases of functions and of single layers.

use std::collections::BTreeMap;

use tch::Tensor;
use tch::nn::Module;

use super::params::{
    AttentionParams, BlockParams, ConvParams, DimParams, EmbedParams, LastParams, LoraParams, MlpParams,
    ModulationParams, RopeParams, TimestepParams,
};
use super::{Case, named, output};
use crate::error::Result;
use crate::layers::{
    DoubleStreamBlock, EmbedNd, LastLayer, LinearLora, MlpEmbedder, Modulation, QkNorm, RmsNorm,
    SelfAttention, SingleStreamBlock, timestep_embedding,
};
use crate::math::{apply_rope, attention, rope};
use crate::models::autoencoder::{AttnBlock, ResnetBlock};

impl Case {
    /// `None` where the module is no layer.
    pub(super) fn layer(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        match self.module.as_str() {
            "flux.math.rope" => {
                let p: RopeParams = self.params()?;
                output(rope(&self.input("pos")?, p.dim, p.theta)?)
            }
            "flux.math.apply_rope" => {
                let (q, k) = apply_rope(&self.input("xq")?, &self.input("xk")?, &self.input("freqs_cis")?);
                named([("q", q), ("k", k)])
            }
            "flux.math.attention" => {
                output(attention(&self.input("q")?, &self.input("k")?, &self.input("v")?, &self.input("pe")?))
            }
            "flux.modules.layers.EmbedND" => {
                let p: EmbedParams = self.params()?;
                output(EmbedNd::new(p.dim, p.theta, &p.axes_dim)?.forward(&self.input("ids")?))
            }
            "flux.modules.layers.timestep_embedding" => {
                let p: TimestepParams = self.params()?;
                output(timestep_embedding(&self.input("t")?, p.dim, p.max_period, p.time_factor))
            }
            "flux.modules.layers.MLPEmbedder" => {
                let p: MlpParams = self.params()?;
                let vs = self.store();
                let layer = MlpEmbedder::new(vs.root(), p.in_dim, p.hidden_dim);
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?))
            }
            "flux.modules.layers.RMSNorm" => {
                let p: DimParams = self.params()?;
                let vs = self.store();
                let layer = RmsNorm::new(vs.root(), p.dim);
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?))
            }
            "flux.modules.layers.QKNorm" => {
                let p: DimParams = self.params()?;
                let vs = self.store();
                let layer = QkNorm::new(vs.root(), p.dim);
                self.load(&vs)?;
                let (q, k) = layer.forward(&self.input("q")?, &self.input("k")?, &self.input("v")?);
                named([("q", q), ("k", k)])
            }
            "flux.modules.layers.SelfAttention" => {
                let p: AttentionParams = self.params()?;
                let vs = self.store();
                let layer = SelfAttention::new(vs.root(), p.dim, p.num_heads, p.qkv_bias)?;
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?, &self.input("pe")?))
            }
            "flux.modules.layers.Modulation" => {
                let p: ModulationParams = self.params()?;
                if p.double { self.modulation::<2>(p.dim) } else { self.modulation::<1>(p.dim) }.map(Some)
            }
            "flux.modules.layers.DoubleStreamBlock" => {
                let p: BlockParams = self.params()?;
                let vs = self.store();
                let layer =
                    DoubleStreamBlock::new(vs.root(), p.hidden_size, p.num_heads, p.mlp_ratio, p.qkv_bias)?;
                self.load(&vs)?;
                let (img, txt) = layer.forward(
                    &self.input("img")?,
                    &self.input("txt")?,
                    &self.input("vec")?,
                    &self.input("pe")?,
                );
                named([("img", img), ("txt", txt)])
            }
            "flux.modules.layers.SingleStreamBlock" => {
                let p: BlockParams = self.params()?;
                let vs = self.store();
                let layer = SingleStreamBlock::new(vs.root(), p.hidden_size, p.num_heads, p.mlp_ratio)?;
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?, &self.input("vec")?, &self.input("pe")?))
            }
            "flux.modules.layers.LastLayer" => {
                let p: LastParams = self.params()?;
                let vs = self.store();
                let layer = LastLayer::new(vs.root(), p.hidden_size, p.patch_size, p.out_channels);
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?, &self.input("vec")?))
            }
            "flux.modules.lora.LinearLora" => {
                let p: LoraParams = self.params()?;
                let vs = self.store();
                let (i, o) = (p.in_features, p.out_features);
                let layer = LinearLora::new(vs.root(), i, o, p.bias, p.rank, p.lora_bias, p.scale);
                self.load(&vs)?;
                output(layer.forward(&self.any_input(&["input", "x"])?))
            }
            "flux.modules.autoencoder.AttnBlock" => {
                let p: ConvParams = self.params()?;
                let vs = self.store();
                let layer = AttnBlock::new(vs.root(), p.in_channels);
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?))
            }
            "flux.modules.autoencoder.ResnetBlock" => {
                let p: ConvParams = self.params()?;
                let vs = self.store();
                let layer =
                    ResnetBlock::new(vs.root(), p.in_channels, p.out_channels.unwrap_or(p.in_channels));
                self.load(&vs)?;
                output(layer.forward(&self.input("x")?))
            }
            _ => Ok(None),
        }
    }

    fn modulation<const N: usize>(&self, dim: i64) -> Result<BTreeMap<String, Tensor>> {
        let vs = self.store();
        let layer = Modulation::<N>::new(vs.root(), dim);
        self.load(&vs)?;
        let parts = layer.forward(&self.input("vec")?).into_iter().enumerate().flat_map(|(i, out)| {
            [("shift", out.shift), ("scale", out.scale), ("gate", out.gate)]
                .map(|(n, t)| (format!("{i}.{n}"), t))
        });
        Ok(parts.collect())
    }
}
