//! What runs beside the transformer: ControlNets and IP-Adapters, and what they add to it.

use std::collections::BTreeMap;

use serde::Deserialize;
use tch::Tensor;

use super::Case;
use super::params::DiffusersParams;
use crate::checkpoint::LoadOptions;
use crate::error::Result;
use crate::models::flux1::{
    Additions, ControlNet, ControlNetParams, Flux1, Flux1Input, IpAdapter, IpAdapterParams, Residuals,
};

/// The arguments of diffusers' ControlNet, and of its forward those that are no tensors.
#[derive(Deserialize)]
struct ControlParams {
    #[serde(flatten)]
    flux: DiffusersParams,
    num_mode: Option<i64>,
    conditioning_embedding_channels: Option<i64>,
    controlnet_mode: Option<i64>,
    conditioning_scale: f64,
}

/// Of the transformer's forward.
#[derive(Deserialize)]
struct RepeatParams {
    #[serde(default)]
    controlnet_blocks_repeat: bool,
}

/// Of a transformer with IP-Adapters.
#[derive(Deserialize)]
struct AdapterParams {
    #[serde(flatten)]
    flux: DiffusersParams,
    /// Of each IP-Adapter, for all blocks or for each.
    scales: Vec<Vec<f64>>,
}

impl Case {
    pub(super) fn controlnet(&self) -> Result<BTreeMap<String, Tensor>> {
        let p: ControlParams = self.params()?;
        let params = ControlNetParams {
            flux: p.flux.official(),
            num_mode: p.num_mode,
            conditioning_embedding_channels: p.conditioning_embedding_channels,
        };
        let vs = self.store();
        let model = ControlNet::new(vs.root(), &params)?;
        self.load(&vs)?;
        let guidance = self.optional("guidance")?;
        let input = Flux1Input {
            img: &self.input("img")?,
            img_ids: &self.input("img_ids")?,
            txt: &self.input("txt")?,
            txt_ids: &self.input("txt_ids")?,
            timesteps: &self.input("timesteps")?,
            y: &self.input("y")?,
            guidance: guidance.as_ref(),
        };
        let embedded = model.embed(&self.input("controlnet_cond")?)?;
        let out = model.forward(&input, &embedded, p.controlnet_mode, p.conditioning_scale)?;
        let named = |name: &'static str, all: Vec<Tensor>| {
            all.into_iter().enumerate().map(move |(i, x)| (format!("{name}.{i}"), x))
        };
        Ok(named("double", out.double).chain(named("single", out.single)).collect())
    }

    /// The transformer with IP-Adapters, whose weights lie under `w.ip_adapter.N.`.
    pub(super) fn ip_adapters(&self) -> Result<Tensor> {
        let p: AdapterParams = self.params()?;
        let params = p.flux.official();
        let (vs, all) = (self.store(), self.weights()?);
        let model = Flux1::new(vs.root(), &params)?;
        let of_adapters: Vec<String> =
            all.names().filter(|name| name.starts_with("ip_adapter.")).map(str::to_string).collect();
        all.without(&of_adapters).official().load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let prompt = |(i, scales): (usize, &Vec<f64>)| {
            let weights = self.weights()?.under(&format!("ip_adapter.{i}."));
            let vs = self.store();
            let adapter =
                IpAdapter::new(vs.root(), &IpAdapterParams::from_shapes(|name| weights.shape(name))?)?;
            weights.load(&vs, LoadOptions::default())?;
            self.drawn(&vs)?;
            adapter.prompt(&self.input(&format!("image_embeds.{i}"))?, params.num_heads, scales)
        };
        let prompts = p.scales.iter().enumerate().map(prompt).collect::<Result<Vec<_>>>()?;
        self.run_flux(&model, Additions { image_prompts: &prompts, ..Additions::default() })
    }

    /// What the case adds to the transformer; nothing, where it has none.
    pub(super) fn residuals(&self) -> Result<Vec<Residuals>> {
        let samples = |name: &str| {
            let all = (0..).map_while(|i| self.optional(&format!("{name}.{i}")).transpose());
            all.collect::<Result<Vec<_>>>()
        };
        let (double, single) = (samples("block_samples")?, samples("single_block_samples")?);
        if double.is_empty() && single.is_empty() {
            return Ok(Vec::new());
        }
        let RepeatParams { controlnet_blocks_repeat: repeat } = self.params()?;
        Ok(vec![Residuals { double, single, repeat }])
    }
}
