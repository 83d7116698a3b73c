//! The parts put together: a request in, pictures out.
//!
//! prompt → tokens → text states → noise and positions → times → velocity steps → latents → pixels.

mod batch;
mod batch_key;
mod configs;
mod control;
mod damage;
mod denoise;
mod draw;
mod edit;
mod ip_adapter;
mod memory;
pub mod params;
mod parts;
mod plan;
mod preview;
mod prompts;
pub mod provenance;
mod redux;
mod request;
mod resident;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use configs::Folder;
use control::Net;
use ip_adapter::{Adapter, Encoder};
use memory::Owned;
use preview::Previewer;
use redux::Vision;
use resident::Resident;

pub use control::Control;
pub use denoise::{Conditions, denoise};
pub use draw::OnTogether;
pub use ip_adapter::IpAdapterImage;
pub use memory::Memory;
pub use params::Request;
#[cfg(feature = "hub")]
pub(crate) use parts::{MODEL_INDEX, Part, SCHEDULER};
pub use parts::{PartOverrides, Parts, PreviewBy};
pub use plan::Plan;
pub use redux::{Redux, ReduxImage, ReduxMix};
pub use request::{ControlPreprocess, Edit, Role, Variation};

use crate::checkpoint::lora::{Lora, Model, Placed};
use crate::checkpoint::{Access, Checkpoint};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::models::autoencoder::AnyAutoEncoder;
use crate::models::flux1::{Flux1, Flux1Params};
use crate::models::text::{ClipText, T5Encoder, Tokenizer};
use crate::models::vision::DepthAnything;
use crate::numerics::{Numerics, Quantize};
use crate::sampling::{Sampler, Schedule};
use crate::shim;

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
    /// Goes on where a LoRA has keys that cannot be placed; [`Pipeline::set_loras`] then returns them.
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

/// What is not in memory while it does not run. No choice changes a bit of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// Transformer and autoencoder stay once they were needed.
    #[default]
    None,
    /// Each part goes when its phase is over.
    Parts,
    /// And of T5, the transformer, ControlNets and IP-Adapters, the weights of one block are in memory at a time, while
    /// those of the next one are brought: from the mapped file itself, so that no memory is needed to keep them. What is
    /// quantised, is quantised layer by layer, and stays.
    Blocks,
}

/// What a pipeline is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// T5 and CLIP are loaded and run, and so is what reads Redux's pictures.
    Text,
    /// The transformer is loaded.
    Load,
    /// Noise becomes a latent.
    Denoise,
    /// A latent becomes a picture.
    Decode,
}

/// How far a pipeline is.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// A phase begins. Several pictures are drawn and decoded in turns, so that each is there as soon as it can be.
    Phase(Phase),
    /// A step is done.
    Step {
        /// Which picture, from 0.
        image: usize,
        /// Of how many.
        images: usize,
        /// Which step, from 1.
        step: usize,
        /// Of how many.
        steps: usize,
    },
    /// What a picture will look like, as far as it can be told: see [`Request::previews`].
    Preview {
        /// Which picture, from 0.
        image: usize,
        /// After which step, from 1.
        step: usize,
        /// At most 256 pixels a side where the autoencoder made it; else see [`PreviewBy`].
        picture: Image,
    },
    /// A picture is finished. It is also among those that are returned.
    Picture {
        /// Which picture, from 0.
        image: usize,
        /// Of how many.
        images: usize,
        /// The picture, and how it came about.
        picture: Arc<Generated>,
    },
}

/// Hears of the progress, and stops the work with `Break`.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// A picture and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The picture.
    pub image: Image,
    /// The request that draws it alone, with nothing left open.
    pub request: Request,
    /// What the caller should know: tokens that did not fit.
    pub warnings: Vec<String>,
    /// Calls of the transformer that [`Request::cache`] did not compute whole, and all; none without one.
    pub skipped: (usize, usize),
}

/// A LoRA's file, and how much of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraFile {
    /// A safetensors file.
    #[serde(rename = "file")]
    pub path: PathBuf,
    /// 1 as it was trained, 0 nothing, below 0 the opposite.
    pub strength: f64,
}

/// What became of a part's weights: on the disk, in memory, in the arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Which part.
    pub part: &'static str,
    /// Its first file.
    pub file: PathBuf,
    /// The types on the disk, with the bytes of each, as [`Checkpoint::types`] has them.
    pub on_disk: BTreeMap<String, u64>,
    /// The types in memory, with the bytes of each.
    pub in_memory: BTreeMap<String, u64>,
    /// The kind of the arithmetic.
    pub arithmetic: Kind,
    /// Tensors that were taken from the base, since the file lacks them.
    pub from_base: Vec<String>,
    /// What the caller should know about how the files were read: see [`Checkpoint::warnings`].
    pub warnings: Vec<String>,
}

impl Weights {
    /// The warnings of several parts, each line once: parts of a pipeline may lie in one file.
    pub fn all_warnings(parts: &[Self]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for line in parts.iter().flat_map(|part| &part.warnings) {
            if !lines.contains(line) {
                lines.push(line.clone());
            }
        }
        lines
    }

    /// Of a part whose weights become `kind`, unless they are kept quantised.
    fn of(part: &'static str, checkpoint: &Checkpoint, kind: Kind, arithmetic: Kind, keep: bool) -> Self {
        Self {
            part,
            file: checkpoint.files().first().map(|path| path.to_path_buf()).unwrap_or_default(),
            in_memory: checkpoint.types_in_memory(kind, keep),
            on_disk: checkpoint.types(),
            arithmetic,
            from_base: Vec::new(),
            warnings: checkpoint.warnings().to_vec(),
        }
    }
}

/// FLUX.1 from prompt to picture.
///
/// Opening reads headers only. The models are loaded when they are first needed; an error leaves the pipeline usable.
#[derive(Debug)]
pub struct Pipeline {
    parts: Parts,
    settings: Settings,
    /// What the model's folder says of the whole.
    folder: Folder,
    params: Flux1Params,
    kind: Kind,
    /// What the device does not compute in, though it was wanted.
    lacking: Option<Kind>,
    loras: Placed,
    /// The files that these are of.
    lora_files: Vec<PathBuf>,
    controlnets: Vec<Net>,
    ip_adapters: Vec<Adapter>,
    image_encoder: Option<Encoder>,
    clip_tokenizer: Tokenizer,
    t5_tokenizer: Tokenizer,
    clip: Option<Resident<ClipText>>,
    t5: Option<Resident<T5Encoder>>,
    transformer: Option<Resident<Flux1>>,
    autoencoder: Option<Resident<AnyAutoEncoder>>,
    previewer: Option<Previewer>,
    depth: Option<Resident<DepthAnything>>,
    vision: Option<Vision>,
    /// Tokens of a picture that Redux reads.
    redux_tokens: OnceCell<i64>,
    /// See [`Pipeline::memory`].
    owned: OnceCell<Owned>,
}

impl Pipeline {
    /// Opens the parts: reads the transformer's header and the tokenizers.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] where the transformer is no FLUX.1.
    pub fn open(parts: Parts, settings: Settings) -> Result<Self> {
        let (transformer, _) = parts.open_transformer(settings.access)?;
        let (params, _) = configs::transformer(&parts.transformer, &transformer)?;
        let folder = Folder::of(&parts, &params)?;
        let wanted = settings.kind.or_else(|| transformer.main_kind()).unwrap_or(Kind::Float);
        let kind = kind_on(settings.device, wanted);
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double) {
            let reason = format!("the transformer's weights are {kind:?}; ask for a kind to compute in");
            return Err(Error::Config(reason));
        }
        Ok(Self {
            clip_tokenizer: Tokenizer::clip(&parts.clip_tokenizer)?,
            t5_tokenizer: Tokenizer::t5(&parts.t5_tokenizer)?,
            parts,
            settings,
            folder,
            params,
            kind,
            lacking: (kind != wanted).then_some(wanted),
            loras: Placed::default(),
            lora_files: Vec::new(),
            controlnets: Vec::new(),
            ip_adapters: Vec::new(),
            image_encoder: None,
            clip: None,
            t5: None,
            transformer: None,
            autoencoder: None,
            previewer: None,
            depth: None,
            vision: None,
            redux_tokens: OnceCell::new(),
            owned: OnceCell::new(),
        })
    }

    /// The sizes of the transformer.
    pub fn params(&self) -> &Flux1Params {
        &self.params
    }

    /// What it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Lets go of every model. The next request loads them anew.
    pub fn release(&mut self) {
        (self.clip, self.t5, self.transformer) = (None, None, None);
        (self.autoencoder, self.previewer, self.depth, self.vision) = (None, None, None, None);
        self.controlnets.iter_mut().for_each(|net| net.release(true));
        self.release_ip_adapters();
        self.release_image_encoder();
        if self.settings.device != Device::Cpu {
            shim::empty_cache();
        }
    }

    /// The kind of the transformer and of the latents.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The kind that was wanted, where the device does not compute in it and [`Pipeline::kind`] is another.
    pub fn lacking(&self) -> Option<Kind> {
        self.lacking
    }

    /// Puts these LoRAs on the models, in place of those that were on them, and returns a line for all that could not be
    /// placed where [`Settings::allow_partial_lora`] lets it be left out. The weights are not loaded again, and without
    /// LoRAs they have the bits that they had.
    ///
    /// # Errors
    /// [`Error::Lora`] with every key that has no place; what is wrong with the files. The LoRAs from before then stay.
    pub fn set_loras(&mut self, files: &[LoraFile]) -> Result<Vec<String>> {
        let access = self.settings.access;
        let loras = files.iter().map(|file| Ok((Lora::open(&file.path, access)?, file.strength)));
        let loras = loras.collect::<Result<Vec<_>>>()?;
        let (transformer, _) = self.parts.open_transformer(access)?;
        let (params, _) = configs::transformer(&self.parts.transformer, &transformer)?;
        let columns = loras.iter().filter_map(|(lora, _)| lora.img_in_columns()).max().unwrap_or(0);
        let params = Flux1Params { in_channels: params.in_channels.max(columns), ..params };
        let transformer = transformer.widened("img_in.weight", params.in_channels);
        let needs = |model| loras.iter().any(|(lora, _)| lora.modules(model) > 0);
        let clip = needs(Model::Clip).then(|| self.parts.open_clip(access)).transpose()?;
        let t5 = needs(Model::T5).then(|| self.parts.open_t5(access)).transpose()?;
        let shape = |model: Model, name: &str| match model {
            Model::Transformer => transformer.shape(name),
            Model::Clip => clip.as_ref()?.shape(name),
            Model::T5 => t5.as_ref()?.shape(name),
        };
        let (mut placed, mut skipped) = (Placed::default(), Vec::new());
        for (lora, strength) in &loras {
            let one = lora.place(&shape, *strength, self.settings.allow_partial_lora)?;
            let lines = one.skipped.lines();
            skipped.extend(lines.iter().map(|line| format!("{}: left out: {line}", lora.path.display())));
            placed.transformer.extend(one.transformer);
            placed.clip.extend(one.clip);
            placed.t5.extend(one.t5);
        }
        if params != self.params {
            // Another width of `img_in` is another model; the file is still mapped.
            self.transformer = None;
        }
        self.params = params;
        self.loras = placed;
        self.lora_files = files.iter().map(|file| file.path.clone()).collect();
        let Placed { transformer, clip, t5, .. } = &self.loras;
        self.transformer = self.transformer.take().map(|model| model.adapt(transformer)).transpose()?;
        self.clip = self.clip.take().map(|model| model.adapt(clip)).transpose()?;
        self.t5 = self.t5.take().map(|model| model.adapt(t5)).transpose()?;
        Ok(skipped)
    }

    /// What becomes of the weights of each part, from the headers of their files.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn weights(&self) -> Result<Vec<Weights>> {
        let access = self.settings.access;
        let (transformer, from_base) = self.parts.open_transformer(access)?;
        let autoencoder = self.parts.open_autoencoder(access)?;
        let keep = self.settings.keep_quantized;
        let (kind, text) = (self.kind, self.text_kind());
        let decoder = self.autoencoder_kind(&autoencoder);
        let decodes_in = if self.decodes_in_f32(decoder) { Kind::Float } else { Kind::BFloat16 };
        let quantized = match self.settings.quantize {
            Quantize::None => None,
            Quantize::Int8 => Some(("I8", 1)),
            Quantize::Fp8 => Some(("F8_E4M3", 1)),
        };
        let blocks = transformer.names().filter(|name| Flux1::quantizes(name));
        let numbers: u64 =
            blocks.filter_map(|name| Some(transformer.shape(name)?.iter().product::<i64>() as u64)).sum();
        let mut transformer =
            Weights { from_base, ..Weights::of("transformer", &transformer, kind, kind, keep) };
        if let Some((name, bytes)) = quantized {
            let before = kind.elt_size_in_bytes() as u64;
            transformer.in_memory.values_mut().for_each(|held| *held = held.saturating_sub(numbers * before));
            transformer.in_memory.retain(|_, held| *held > 0);
            transformer.in_memory.insert(name.into(), numbers * bytes);
        }
        let previews = match &self.parts.preview {
            Some(PreviewBy::Decoder(path)) => Some(resident::open_autoencoder(path, access)?),
            _ => None,
        };
        let previews = previews.map(|checkpoint| {
            let kind = self.autoencoder_kind(&checkpoint);
            let arithmetic = if self.decodes_in_f32(kind) { Kind::Float } else { Kind::BFloat16 };
            Weights::of("preview decoder", &checkpoint, kind, arithmetic, false)
        });
        let mut all = vec![
            transformer,
            Weights::of("T5", &self.parts.open_t5(access)?, text, text, keep),
            Weights::of("CLIP", &self.parts.open_clip(access)?, text, text, keep),
            Weights::of("autoencoder", &autoencoder, decoder, decodes_in, false),
        ];
        all.extend(previews);
        if self.parts.redux.is_some() && self.parts.image_encoder.is_some() {
            let encoder = self.parts.open_image_encoder(access)?;
            all.push(Weights::of("image encoder", &encoder, text, text, keep));
            all.push(Weights::of("Redux", &self.parts.open_redux(access)?, text, text, keep));
        }
        if let Some(path) = &self.parts.depth {
            let depth = resident::open_depth(path, access)?;
            all.push(Weights::of("depth model", &depth, Kind::Float, Kind::Float, keep));
        }
        all.extend(self.control_weights()?);
        all.extend(self.pictured_weights()?);
        Ok(all)
    }

    /// What the caller should know about how the files of all parts were read, each line once: tensors that were left aside,
    /// since no model reads them, shards that were found by another's name, and settings that are not obeyed.
    ///
    /// # Errors
    /// As [`Pipeline::weights`], and what is wrong with the settings: [`Error::File`] with the key.
    pub fn warnings(&self) -> Result<Vec<String>> {
        let mut warnings = Weights::all_warnings(&self.weights()?);
        warnings.extend(self.config_warnings()?);
        Ok(warnings)
    }

    /// What the settings beside the weights say that is not obeyed, in words. All of them are read.
    fn config_warnings(&self) -> Result<Vec<String>> {
        let (access, parts) = (self.settings.access, &self.parts);
        let mut warnings = self.folder.warnings.clone();
        warnings.extend(configs::transformer(&parts.transformer, &parts.open_transformer(access)?.0)?.1);
        configs::clip(&parts.clip, &parts.open_clip(access)?)?;
        configs::t5(&parts.t5, &parts.open_t5(access)?)?;
        let previewer = match &parts.preview {
            Some(PreviewBy::Decoder(path)) => Some(path),
            _ => None,
        };
        for path in [Some(&parts.autoencoder), previewer].into_iter().flatten() {
            let checkpoint = resident::open_autoencoder(path, access)?;
            warnings.extend(match resident::is_tiny(&checkpoint) {
                true => configs::tiny_autoencoder(path, &checkpoint)?.1,
                false => configs::autoencoder(path, &checkpoint)?.1,
            });
        }
        for (path, net) in self.controlnet_paths().zip(self.open_controlnets()?) {
            warnings.extend(configs::controlnet(path, &net)?.1);
        }
        Ok(warnings)
    }

    /// The request with what the model's folder says where the request says nothing, and else with the variant's own
    /// settings: schnell 4 steps and 256 tokens, dev 50 steps, guidance 2.5 and 512 tokens. A ControlNet may be distilled for
    /// guidance where schnell is not.
    pub fn complete(&self, request: &Request) -> Request {
        let distilled = self.params.guidance_embed;
        let guided = |control: &Control| {
            self.controlnets().nth(control.net).is_some_and(|net| net.flux.guidance_embed)
        };
        let guided = distilled || request.controls.iter().any(guided);
        let mut request = request.clone();
        let own = self.folder.scheduler.as_ref();
        request.sampler.get_or_insert(own.map_or(Sampler::Euler, |own| own.sampler));
        let official = || if distilled { Schedule::SHIFTED } else { Schedule::Linear };
        let schedule =
            request.schedule.get_or_insert_with(|| own.map_or_else(official, |own| own.schedule.clone()));
        let steps = schedule.steps().unwrap_or(if distilled { 50 } else { 4 });
        request.steps.get_or_insert(steps);
        request.max_sequence_length.get_or_insert(if distilled { 512 } else { 256 });
        if guided {
            request.guidance.get_or_insert(2.5);
        } else {
            request.guidance = None;
        }
        request
    }
}

/// The kind that a device computes in: the one that is wanted if it can, else f32. Asked of the device itself, since
/// no list of what each can do stays true.
fn kind_on(device: Device, wanted: Kind) -> Kind {
    let product = |kind| Tensor::f_ones([2, 2], (kind, device)).and_then(|ones| ones.f_matmul(&ones));
    if product(wanted).is_err() && product(Kind::Float).is_ok() { Kind::Float } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_a_device_does_not_compute_in_becomes_f32() {
        // The CPU holds complex numbers of two halves, and multiplies no matrices of them.
        assert_eq!(kind_on(Device::Cpu, Kind::ComplexHalf), Kind::Float);
        assert_eq!(kind_on(Device::Cpu, Kind::BFloat16), Kind::BFloat16);
    }
}
