//! From prompt to picture.

mod generate;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use super::conditions::edit::EditRules;
use super::folder::Folder;
use super::loader::Loader;
use super::memory::{self, MemoryInputs, Tokens, WeightSizes, free_bytes};
use super::models::Models;
use super::plan::PlanInputs;
use super::times::Times;
use super::{Control, Edit, LoraFile, Memory, PartKind, Plan, Request, Role, Settings, Weights, configs};
use crate::error::{Error, Result};
use crate::family::Defaults;
use crate::models::TransformerParams;
use crate::models::flux1::{ControlNetParams, IpAdapterParams};
use crate::numerics::Numerics;
use crate::sampling::Sampler;
use crate::shim;

/// Tokens that a step computes together at most: measured, more are no faster.
const MAX_BATCH_TOKENS: i64 = 2048;

/// A model from prompt to picture.
///
/// Opening reads headers only. The models are loaded when they are first needed; an error leaves the pipeline usable.
#[derive(Debug)]
pub struct Pipeline {
    /// Where the models come from.
    loader: Loader,
    models: Models,
    /// What the model's folder says of the whole.
    folder: Folder,
    /// What the variant takes where neither the request nor the folder says anything.
    defaults: &'static Defaults,
    /// Read when they are first needed.
    weight_sizes: OnceCell<WeightSizes>,
}

impl Pipeline {
    /// Opens the parts: reads the transformer's header and the tokenizers.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] where the transformer is of no family that is drawn with.
    pub fn open(parts: super::Parts, settings: Settings) -> Result<Self> {
        let loader = Loader::open(parts, settings)?;
        let (transformer, _) = loader.open_transformer()?;
        let (params, _) = configs::transformer(loader.family, &loader.parts.transformer, &transformer)?;
        let folder = Folder::of(&loader.parts, &params)?;
        let defaults = loader.family.defaults(params.guidance_embed())?;
        loader.check_kind()?;
        let models = Models::open(&loader, params)?;
        Ok(Self { loader, models, folder, defaults, weight_sizes: OnceCell::new() })
    }

    /// The sizes of the transformer.
    pub fn params(&self) -> &TransformerParams {
        &self.models.transformer.params
    }

    /// What it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.loader.settings
    }

    /// The kind of the transformer and of the latents.
    pub fn kind(&self) -> Kind {
        self.loader.kind
    }

    /// The kind that was wanted, where the device does not compute in it and [`Pipeline::kind`] is another.
    pub fn lacking(&self) -> Option<Kind> {
        let Loader { kind, wanted_kind, .. } = self.loader;
        (kind != wanted_kind).then_some(wanted_kind)
    }

    /// Lets go of every model. The next request loads them anew.
    pub fn release(&mut self) {
        self.models.release();
        if self.loader.settings.device != Device::Cpu {
            shim::empty_cache();
        }
    }

    /// Puts these LoRAs on the models, in place of those that were on them, and returns a line for all that could not be
    /// placed where [`Settings::allow_partial_lora`] lets it be left out. The weights are not loaded again, and without
    /// LoRAs they have the bits that they had.
    ///
    /// # Errors
    /// [`Error::Lora`] with every key that has no place; what is wrong with the files. The LoRAs from before then stay.
    pub fn set_loras(&mut self, files: &[LoraFile]) -> Result<Vec<String>> {
        self.models.set_loras(&self.loader, files)
    }

    /// Puts these ControlNets on, in place of those that were: a file, an index or a folder each, in diffusers' layout
    /// (InstantX', Shakker's) or in XLabs'. Headers are read; the weights are loaded when a request first asks for them,
    /// and stay.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] for one that is no ControlNet, or none of this transformer. The
    /// ControlNets from before then stay.
    pub fn set_controlnets(&mut self, paths: &[PathBuf]) -> Result<()> {
        self.models.controlnets.set(&self.loader, paths, &self.models.transformer.params)?;
        self.weight_sizes.take();
        Ok(())
    }

    /// The sizes of the ControlNets.
    pub fn controlnets(&self) -> impl Iterator<Item = &ControlNetParams> {
        self.models.controlnets.params()
    }

    /// Where the ControlNets lie, in the order of [`Pipeline::controlnets`].
    pub fn controlnet_paths(&self) -> impl Iterator<Item = &Path> {
        self.models.controlnets.paths()
    }

    /// Puts these IP-Adapters on, in place of those that were: files in XLabs' layout. `image_encoder` is CLIP's vision
    /// model, a file or a folder with `config.json` beside. Headers are read; the weights are loaded when a request first
    /// asks for them.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] for one that is no IP-Adapter, or none of this transformer and
    /// image encoder. The IP-Adapters from before then stay.
    pub fn set_ip_adapters(&mut self, paths: &[PathBuf], image_encoder: Option<&Path>) -> Result<()> {
        let params = &self.models.transformer.params;
        self.models.ip_adapters.set(&self.loader, paths, image_encoder, params)?;
        self.weight_sizes.take();
        Ok(())
    }

    /// The sizes of the IP-Adapters.
    pub fn ip_adapters(&self) -> impl Iterator<Item = &IpAdapterParams> {
        self.models.ip_adapters.params()
    }

    /// Where the IP-Adapters lie, in the order of [`Pipeline::ip_adapters`].
    pub fn ip_adapter_paths(&self) -> impl Iterator<Item = &Path> {
        self.models.ip_adapters.paths()
    }

    /// What becomes of the weights of each part, from the headers of their files.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn weights(&self) -> Result<Vec<Weights>> {
        Weights::of_parts(&self.loader, self.models.open_parts(&self.loader)?)
    }

    /// What the caller should know about how the files of all parts were read, each line once: tensors that were left aside,
    /// since no model reads them, shards that were found by another's name, and settings that are not obeyed.
    ///
    /// # Errors
    /// As [`Pipeline::weights`], and what is wrong with the settings: [`Error::File`] with the key.
    pub fn warnings(&self) -> Result<Vec<String>> {
        let mut warnings = Weights::all_warnings(&self.weights()?);
        warnings.extend(self.folder.warnings.iter().cloned());
        warnings.extend(self.models.config_warnings(&self.loader)?);
        Ok(warnings)
    }

    /// The request with what the model's folder says where the request says nothing, and else with the variant's own
    /// [`Defaults`]. A ControlNet may be distilled for
    /// guidance where schnell is not.
    pub fn complete(&self, request: &Request) -> Request {
        let (distilled, defaults) = (self.params().guidance_embed(), self.defaults);
        let guided = |control: &Control| {
            self.controlnets().nth(control.net).is_some_and(|net| net.flux.guidance_embed)
        };
        let guided = distilled || request.controls.iter().any(guided);
        let mut request = request.clone();
        let own = self.folder.scheduler.as_ref();
        request.sampler.get_or_insert(own.map_or(Sampler::Euler, |own| own.sampler));
        let schedule = own.map_or(&defaults.schedule, |own| &own.schedule);
        let schedule = request.schedule.get_or_insert_with(|| schedule.clone());
        let steps = schedule.steps().unwrap_or(defaults.steps);
        request.steps.get_or_insert(steps);
        request.max_sequence_length.get_or_insert(defaults.max_sequence_length);
        if guided {
            request.guidance.get_or_insert(defaults.guidance);
        } else {
            request.guidance = None;
        }
        request
    }

    /// What the pictures of an edit are to this model.
    ///
    /// # Errors
    /// [`Error::Request`] where the edit says something that the model cannot be asked.
    pub fn role(&self, edit: &Edit) -> Result<Role> {
        self.edit_rules().role(edit)
    }

    /// What pictures are to a model of this kind, where the class of its pipeline tells
    /// ([`Parts::model_index`](super::Parts::model_index)).
    pub fn usual_role(&self) -> Option<Role> {
        self.folder.role
    }

    /// The only role that the model's input channels leave, for those that do not draw from text alone.
    ///
    /// # Errors
    /// [`Error::Config`] for channels that no model of the family has.
    pub fn only_role(&self) -> Result<Option<Role>> {
        self.edit_rules().only_role()
    }

    /// Whether there is what reads the pictures of Redux, from its headers.
    ///
    /// # Errors
    /// What is missing, wrong with the files, or of another transformer.
    pub fn check_vision(&self) -> Result<()> {
        self.models.redux.check(&self.loader, self.params())
    }

    /// Whether there is what makes previews, and whether it is of this model. It stays loaded.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub fn check_previews(&mut self) -> Result<()> {
        self.models.previewer.load(&self.loader)?;
        self.models.previewer.check(&self.loader, &self.models.transformer.params)
    }

    /// After which of a picture's steps, counted from 1, previews of it are made.
    ///
    /// # Errors
    /// [`Error::Request`] where the schedule gives no times for so many steps.
    pub fn preview_steps(&self, request: &Request) -> Result<Vec<usize>> {
        let request = self.complete(request);
        let steps = self.times(&request)?.steps();
        Ok((1..=steps).filter(|&step| request.previews_after(step, steps)).collect())
    }

    /// What a request takes, from the sizes of the models and of the picture.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn memory(&self, request: &Request) -> Result<Memory> {
        self.memory_of(request, 1)
    }

    /// What so many pictures take that are computed together.
    fn memory_of(&self, request: &Request, pictures: usize) -> Result<Memory> {
        let sizes = self.weight_sizes()?;
        // What is there already takes no more.
        let own = |part| {
            let is_loaded = self.models.is_loaded(part);
            sizes.bytes.get(&part).copied().filter(|_| !is_loaded).unwrap_or(0)
        };
        let request = self.complete(request);
        Ok(self.memory_inputs(&request, sizes.is_tiny).memory(&self.loader.settings, pictures, &own))
    }

    /// `request` is complete.
    fn memory_inputs<'a>(&'a self, request: &'a Request, is_tiny: bool) -> MemoryInputs<'a> {
        MemoryInputs {
            request,
            tokens: self.tokens(request),
            params: self.params(),
            controlnets: &self.models.controlnets,
            encodes: self.models.encodes(request),
            kind: self.loader.kind,
            preview: self.loader.parts.preview.as_ref(),
            is_tiny,
        }
    }

    fn weight_sizes(&self) -> Result<&WeightSizes> {
        if let Some(sizes) = self.weight_sizes.get() {
            return Ok(sizes);
        }
        let sizes = WeightSizes::new(&self.loader, &self.weights()?)?;
        Ok(self.weight_sizes.get_or_init(|| sizes))
    }

    /// [`Error::TooLarge`] where less is free than a request takes. Where the system does not say what is free, nothing
    /// is refused.
    ///
    /// # Errors
    /// That, and what is wrong with the files.
    pub fn check_memory(&self, request: &Request) -> Result<()> {
        let device = self.loader.settings.device;
        let Some(free) = free_bytes(device) else { return Ok(()) };
        let memory = self.memory(request)?;
        if memory.peak() <= free {
            return Ok(());
        }
        Err(Error::TooLarge {
            needed: memory.peak(),
            free,
            device,
            hints: memory::hints(&self.loader.settings, &memory, free),
        })
    }

    /// Changes the settings so that a request takes no more than so many bytes on the pipeline's device, and says how.
    /// Text encoders are released, parts are offloaded, quantised files stay quantised, then blocks are offloaded; only
    /// tiles of the autoencoder, at last, change bits of the picture: they blend their seams. Where it `may_quantize`, the
    /// weights of the transformer's blocks become int8, on CUDA fp8, if that saves bringing them anew in every step. Models
    /// that were loaded are released.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where nothing makes it fit, and the settings are then as they were; what is wrong with the files.
    pub fn fit(&mut self, request: &Request, limit: u64, may_quantize: bool) -> Result<Plan> {
        let parts = self.models.open_parts(&self.loader)?;
        let weights = self.weights()?;
        let is_tiny = self.weight_sizes()?.is_tiny;
        let complete = self.complete(request);
        let inputs = self.memory_inputs(&complete, is_tiny);
        let expected = |settings: &Settings, own: &dyn Fn(PartKind) -> u64| inputs.memory(settings, 1, own);
        let plan = PlanInputs {
            limit,
            may_quantize,
            family: self.loader.family,
            parts: &parts,
            weights: &weights,
            expected: &expected,
        };
        let (settings, plan) = plan.plan(self.loader.settings)?;
        self.release();
        self.weight_sizes.take();
        self.loader.settings = settings;
        Ok(plan)
    }

    /// How many pictures of such a request are computed at a time: several where that is faster, changes no bit of them,
    /// and the memory allows it. The kernels of the fast numerics on the CPU give a row of a product the same bits
    /// whatever rows are beside it; libtorch's do not.
    pub fn max_batch(&self, request: &Request) -> usize {
        let settings = &self.loader.settings;
        let ours = settings.device == Device::Cpu && settings.numerics == Numerics::Fast;
        let has_loras = !self.models.loras.terms.transformer.linears.is_empty();
        // What a step cache skips depends on the picture.
        if !ours
            || has_loras
            || request.cache.is_some()
            || !matches!(self.loader.kind, Kind::Float | Kind::BFloat16)
        {
            return 1;
        }
        let request = self.complete(request);
        let most = (MAX_BATCH_TOKENS / self.tokens(&request).sum()).max(1) as usize;
        let Some(free) = free_bytes(settings.device) else { return most };
        let fits = |&count: &usize| self.memory_of(&request, count).is_ok_and(|memory| memory.peak() <= free);
        (2..=most).rev().find(fits).unwrap_or(1)
    }

    /// Whether two requests can be drawn together.
    pub fn can_batch(&self, one: &Request, other: &Request) -> bool {
        self.complete(one).shares_batch_with(&self.complete(other))
    }

    fn edit_rules(&self) -> EditRules<'_> {
        EditRules::new(&self.loader, self.params(), self.folder.role)
    }

    /// The lengths of what the transformer reads for a picture.
    fn tokens(&self, request: &Request) -> Tokens {
        let side = |pixels: i64| self.loader.latent().patches(pixels.max(0));
        let text = request.max_sequence_length.unwrap_or(512) as i64;
        let redux = request.redux.as_deref();
        Tokens {
            image: side(request.width) * side(request.height),
            text: text + redux.map_or(0, |redux| self.models.redux.tokens(&self.loader, redux)),
            references: self.edit_rules().reference_tokens(request.edit.as_deref()),
        }
    }

    /// The times of a complete request, those that its strength leaves.
    ///
    /// # Errors
    /// [`Error::Request`] where the schedule gives no times for so many steps.
    fn times(&self, request: &Request) -> Result<Times> {
        let is_init = |edit: &&Edit| self.role(edit).is_ok_and(|role| role == Role::Init);
        let edit = request.edit.as_deref().filter(is_init);
        let first_step = edit.map_or(0, |edit| edit.first_step(request.steps.unwrap_or(1)));
        // Of the picture alone: what stands beside it shifts nothing.
        Times::new(request, self.tokens(request).image, first_step)
    }
}
