//! Cases of models, and of what leads to them and from them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::params::{
    DenoiseParams, DiffusersAutoencoderParams, DiffusersParams, NoiseParams, ScheduleParams, SizeParams,
    WrapperParams,
};
use super::{Case, named, output};
use crate::checkpoint::lora::{Component, Lora};
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::error::Result;
use crate::family::ModelFamily;
use crate::generation::{Conditions, denoise};
use crate::image::Image;
use crate::models::autoencoder::{AutoEncoder, AutoEncoderParams, TinyAutoEncoder, TinyAutoEncoderParams};
use crate::models::flux1::{Additions, Flux1, Flux1Input, Flux1Options, Flux1Params};
use crate::models::text::{ClipConfig, ClipText, T5Config, T5Encoder};
use crate::models::vision::dpt::{pixel_values, resize_bicubic};
use crate::models::vision::{
    ClipVision, ClipVisionConfig, DepthAnything, DepthConfig, Dinov2, Dinov2Config, ReduxConfig,
    ReduxImageEncoder, SiglipConfig, SiglipVision,
};
use crate::models::{Model as _, Transformer, TransformerParams};
use crate::nn::Parameters;
use crate::sampling::{Prepared, get_schedule};

impl Case {
    /// `None` where the module is none of these.
    pub(super) fn model(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        match self.module.as_str() {
            "flux.model.Flux" => output(self.flux(&self.params()?)?),
            "flux.model.FluxLoraWrapper" => output(self.flux_lora(&self.params()?)?),
            "diffusers.FluxTransformer2DModel" => {
                let p: DiffusersParams = self.params()?;
                output(self.flux(&p.official())?)
            }
            "diffusers.FluxControlNetModel" => self.controlnet().map(Some),
            "diffusers.FluxIPAdapterAttnProcessor" => output(self.ip_adapters()?),
            "flux.modules.autoencoder.AutoEncoder" => {
                self.autoencoder(&self.params()?, self.weights()?).map(Some)
            }
            "diffusers.AutoencoderKL" => {
                let weights = self.weights()?.official();
                let p: DiffusersAutoencoderParams = self.params()?;
                let sizes = AutoEncoderParams::from_shapes(|name| weights.shape(name))?;
                let (scale_factor, shift_factor) = (p.scaling_factor, p.shift_factor);
                self.autoencoder(&AutoEncoderParams { scale_factor, shift_factor, ..sizes }, weights)
                    .map(Some)
            }
            "diffusers.AutoencoderTiny" => self.tiny_autoencoder().map(Some),
            "flux.sampling.get_noise" => {
                let p: NoiseParams = self.params()?;
                let kind = p.kind()?;
                output(ModelFamily::Flux1.latent().get_noise(
                    p.num_samples,
                    p.height,
                    p.width,
                    kind,
                    p.seed,
                    p.rule(),
                )?)
            }
            "flux.sampling.get_schedule" => {
                let p: ScheduleParams = self.params()?;
                let (base, max) = (p.base_shift, p.max_shift);
                let schedule = get_schedule(p.num_steps, p.image_seq_len, base, max, p.shift);
                output(Tensor::from_slice(&schedule))
            }
            "flux.sampling.prepare" => {
                let latent = ModelFamily::Flux1.latent();
                let p =
                    latent.prepare(&self.input("img")?, &self.input("txt")?, Some(&self.input("vec")?))?;
                let Prepared { img, img_ids, txt, txt_ids, vec } = p;
                let vec = vec.map(|vec| ("vec", vec));
                let all = [("img", img), ("img_ids", img_ids), ("txt", txt), ("txt_ids", txt_ids)];
                named(all.into_iter().chain(vec))
            }
            "flux.sampling.unpack" => {
                let p: SizeParams = self.params()?;
                output(ModelFamily::Flux1.latent().unpack(&self.input("x")?, p.height, p.width)?)
            }
            "flux.sampling.denoise" => output(self.denoise()?),
            "diffusers.schedulers" => output(self.walk()?),
            "transformers.T5EncoderModel" => {
                let vs = self.store();
                let model = T5Encoder::new(vs.root(), &self.params::<T5Config>()?)?;
                self.load(&vs)?;
                named([("last_hidden_state", model.forward(&self.input("input_ids")?)?)])
            }
            "transformers.CLIPTextModel" => {
                let vs = self.store();
                let model = ClipText::new(vs.root(), &self.params::<ClipConfig>()?)?;
                self.load(&vs)?;
                let out = model.forward(&self.input("input_ids")?)?;
                let (state, pooled) = (out.last_hidden_state, out.pooler_output);
                named([("last_hidden_state", state), ("pooler_output", pooled)])
            }
            "transformers.CLIPVisionModelWithProjection" => {
                let vs = self.store();
                let model = ClipVision::new(vs.root(), &self.params::<ClipVisionConfig>()?)?;
                self.load(&vs)?;
                named([("image_embeds", model.forward(&self.input("pixel_values")?)?)])
            }
            "transformers.SiglipVisionModel" => {
                let vs = self.store();
                let model = SiglipVision::new(vs.root(), &self.params::<SiglipConfig>()?)?;
                self.load(&vs)?;
                named([("last_hidden_state", model.forward(&self.input("pixel_values")?)?)])
            }
            "diffusers.ReduxImageEncoder" => {
                let vs = self.store();
                let model = ReduxImageEncoder::new(vs.root(), &self.params::<ReduxConfig>()?)?;
                self.load(&vs)?;
                named([("image_embeds", model.forward(&self.input("x")?)?)])
            }
            "transformers.Dinov2Backbone" => {
                let vs = self.store();
                let config: Dinov2Config = self.params()?;
                let collector = Parameters::collect(&vs.root());
                let model = Dinov2::new(vs.root(), &config)?;
                let parameters = collector.finish();
                self.load(&vs)?;
                let _scope = parameters.enter()?;
                let states = model.forward(&self.input("pixel_values")?)?;
                Ok(Some(states.into_iter().enumerate().map(|(i, x)| (i.to_string(), x)).collect()))
            }
            "transformers.DepthAnythingForDepthEstimation" => {
                let vs = self.store();
                let model = DepthAnything::new(vs.root(), &self.params::<DepthConfig>()?)?;
                self.load(&vs)?;
                named([("predicted_depth", model.forward(&self.input("pixel_values")?)?)])
            }
            "transformers.DPTImageProcessorPil" => output(pixel_values(&self.picture("picture")?)?),
            "torch.nn.functional.interpolate" => {
                let p: SizeParams = self.params()?;
                output(resize_bicubic(&self.input("x")?, [p.height, p.width])?)
            }
            _ => Ok(None),
        }
    }

    /// Bytes `[H, W, 3]`.
    fn picture(&self, name: &str) -> Result<Image> {
        let x = self.input(name)?.f_to_device(Device::Cpu)?;
        let [height, width, 3] = x.size()[..] else {
            return Err(self.lacks(&format!("in.{name} of the shape [H, W, 3]")));
        };
        let rgb = Vec::try_from(x.f_to_kind(Kind::Uint8)?.f_reshape([-1])?)?;
        Ok(Image { width: width as u32, height: height as u32, rgb })
    }

    fn flux(&self, params: &Flux1Params) -> Result<Tensor> {
        let vs = self.store();
        let model = Flux1::new(vs.root(), params)?;
        self.load(&vs)?;
        let residuals = self.residuals()?;
        self.run_flux(&model, Additions { residuals: &residuals, ..Additions::default() })
    }

    /// The official code keeps its LoRA in the model; ours lie under `w.lora.`, as its files have them.
    fn flux_lora(&self, params: &WrapperParams) -> Result<Tensor> {
        let (vs, all) = (self.store(), self.weights()?);
        let model = Flux1::new(vs.root(), &params.flux)?;
        let of_the_lora: Vec<String> =
            all.names().filter(|name| name.starts_with("lora.")).map(str::to_string).collect();
        all.without(&of_the_lora).official().load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let lora = Lora::from_checkpoint(self.weights()?.under("lora."))?;
        let shapes = vs.variables();
        let shape = |_: Component, name: &str| Some(shapes.get(name)?.size());
        lora.place(&shape, params.lora_scale, false)?.transformer.put_on(&vs, model.linears())?;
        self.run_flux(&model, Additions::default())
    }

    pub(super) fn run_flux(&self, model: &Flux1, additions: Additions) -> Result<Tensor> {
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
        model.forward(&input, Flux1Options { additions, ..Flux1Options::default() })
    }

    fn autoencoder(
        &self,
        params: &AutoEncoderParams,
        weights: Checkpoint,
    ) -> Result<BTreeMap<String, Tensor>> {
        let vs = self.store();
        let model = AutoEncoder::new(vs.root(), params)?;
        weights.load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let mut outputs = BTreeMap::new();
        if let Some(x) = self.optional("x")? {
            outputs.insert("encode".to_string(), model.encode(&x)?);
        }
        if let Some(z) = self.optional("z")? {
            outputs.insert("decode".to_string(), model.decode(&z)?);
        }
        Ok(outputs)
    }

    fn tiny_autoencoder(&self) -> Result<BTreeMap<String, Tensor>> {
        let (vs, weights) = (self.store(), self.weights()?.official());
        let p: DiffusersAutoencoderParams = self.params()?;
        let sizes = TinyAutoEncoderParams::from_shapes(|name| weights.shape(name))?;
        let (scaling_factor, shift_factor) = (p.scaling_factor, p.shift_factor);
        let model = TinyAutoEncoder::new(
            vs.root(),
            &TinyAutoEncoderParams { scaling_factor, shift_factor, ..sizes },
        )?;
        weights.load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let (x, z) = (self.input("x")?, self.input("z")?);
        Ok(BTreeMap::from([
            ("encode".to_string(), model.encode(&x)?),
            ("decode".to_string(), model.decode(&z)?),
        ]))
    }

    fn denoise(&self) -> Result<Tensor> {
        let p: DenoiseParams = self.params()?;
        let vs = self.store();
        let model = Transformer::new(vs.root(), &TransformerParams::Flux1(self.params()?))?;
        self.load(&vs)?;
        let prepared = Prepared {
            img: self.input("img")?,
            img_ids: self.input("img_ids")?,
            txt: self.input("txt")?,
            txt_ids: self.input("txt_ids")?,
            vec: Some(self.input("vec")?),
        };
        let timesteps: Vec<f64> = Vec::try_from(self.input("timesteps")?)?;
        let conditions = Conditions {
            img_cond: self.optional("img_cond")?,
            img_cond_seq: self.optional("img_cond_seq")?.zip(self.optional("img_cond_seq_ids")?),
        };
        denoise(&model, &prepared, &timesteps, p.guidance, &conditions, &mut |_, _| Ok(()))
    }
}
