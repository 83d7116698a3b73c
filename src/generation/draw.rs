//! From requests to pictures, phase by phase; pictures of one shape are computed together where that changes no bit.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::batch::{Batch, BatchItem};
use super::edit::EditConditions;
use super::ip_adapter::ImageEmbeds;
use super::preview::Previewer;
use super::prompts::Text;
use super::resident::{self, Resident};
use super::{
    ControlPreprocess, Edit, Generated, Offload, OnProgress, Phase, Pipeline, Progress, Request, Role,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::image::Image;
use crate::models::Model;
use crate::models::autoencoder::AnyAutoEncoder;
use crate::numerics::{self, Numerics};
use crate::sampling::{Schedule, Solver};
use crate::shim;

/// Tokens that a step computes together at most: measured, more are no faster.
const TOGETHER: i64 = 2048;

/// Where the transformer is released while the autoencoder decodes, pictures wait to be decoded until drawing them took so
/// many times as long as loading the transformer again does.
const LOADS: u32 = 4;

/// Numbers of a step's tensors up to which libtorch's operations are done before other threads are there to help.
const SMALL: i64 = 1 << 20;

/// Hears of the progress of each request by its place, and stops that one's work with `Break`.
pub type OnTogether<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + 'a;

/// A picture on its way.
pub(super) struct Drawing<'a> {
    /// Whose it is: a place among the requests.
    job: usize,
    /// Which of that request's pictures.
    image: usize,
    /// Of how many.
    images: usize,
    /// What draws it alone.
    pub(super) request: Request,
    pub(super) text: &'a Text,
    pub(super) given: &'a EditConditions,
}

/// The times of a walk, and its end.
pub(super) struct Times {
    /// How much of the picture is noise.
    pub(super) sigmas: Vec<f64>,
    /// What the model is told of that.
    pub(super) timesteps: Vec<f64>,
}

impl Times {
    fn steps(&self) -> usize {
        self.sigmas.len().saturating_sub(1)
    }
}

/// A picture's place, its latent, and how many calls of the model were skipped of how many.
type Drawn = (usize, Tensor, (usize, usize));

/// How the requests fare: each goes on until an error of its own.
struct Jobs<'a> {
    failed: Vec<Option<Error>>,
    /// The phase that each was told of last.
    phases: Vec<Option<Phase>>,
    /// Once it is true, no further step is begun.
    stop: Option<&'a Arc<AtomicBool>>,
    on_progress: &'a mut OnTogether<'a>,
}

impl Jobs<'_> {
    fn lives(&self, job: usize) -> bool {
        self.failed[job].is_none()
    }

    fn living(&self) -> Vec<usize> {
        (0..self.failed.len()).filter(|&job| self.lives(job)).collect()
    }

    fn report(&mut self, job: usize, progress: Progress) {
        if self.lives(job) && (self.on_progress)(job, progress).is_break() {
            self.failed[job] = Some(Error::Cancelled);
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.living().into_iter().for_each(|job| self.enter(job, phase));
    }

    /// Tells a job of the phase that begins for it, unless it is in it.
    fn enter(&mut self, job: usize, phase: Phase) {
        if self.phases[job].replace(phase) != Some(phase) {
            self.report(job, Progress::Phase(phase));
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Runs what may be given up once it is to be stopped. On a GPU a model waits between its blocks to be stopped there,
    /// and a step is soon over.
    fn until_stopped<R>(&self, device: Device, f: impl FnOnce() -> R) -> R {
        match self.stop {
            Some(stop) if device == Device::Cpu => numerics::with_cancel(stop, f),
            _ => f(),
        }
    }

    /// The value, or `None` and the job is done for.
    fn or_fails<T>(&mut self, job: usize, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed[job] = Some(error)).ok()
    }
}

impl Pipeline {
    /// Draws the pictures, prompt by prompt and seed by seed. The bits of each are those that it has when it is drawn
    /// alone.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::Cancelled`], what is wrong with the files, NaN in their weights included, and
    /// [`Error::NotFinite`] where no weight is to blame.
    pub fn generate(&mut self, request: &Request, on_progress: &mut OnProgress) -> Result<Vec<Generated>> {
        let mut outcomes = self.generate_together(&[request], &mut |_, progress| on_progress(progress))?;
        outcomes.pop().unwrap_or(Err(Error::Cancelled))
    }

    /// Draws as [`Pipeline::generate`] does until `stop` becomes true. Then the step that runs is given up, unless it is a
    /// picture's last, and no other begins; pictures whose steps are all done are decoded and returned, so that there may be
    /// fewer than were asked for.
    ///
    /// # Errors
    /// As [`Pipeline::generate`]; [`Error::Cancelled`] where it became true before the first step.
    pub fn generate_until(
        &mut self,
        request: &Request,
        stop: &Arc<AtomicBool>,
        on_progress: &mut OnProgress,
    ) -> Result<Vec<Generated>> {
        let outcomes = self.draw(&[request], Some(stop), &mut |_, progress| on_progress(progress));
        self.with_causes(outcomes)?.pop().unwrap_or(Err(Error::Cancelled))
    }

    /// Draws several requests, those of one shape together: up to [`Pipeline::together`] pictures at a time. Each has its
    /// own outcome, in the order of the requests, and the bits of its pictures are those that they have alone.
    ///
    /// # Errors
    /// What goes wrong for all of them.
    pub fn generate_together(
        &mut self,
        requests: &[&Request],
        on_progress: &mut OnTogether,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let outcomes = self.draw(requests, None, on_progress);
        self.with_causes(outcomes)
    }

    fn draw(
        &mut self,
        requests: &[&Request],
        stop: Option<&Arc<AtomicBool>>,
        on_progress: &mut OnTogether,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let _no_grad = tch::no_grad_guard();
        let mut jobs = Jobs {
            failed: requests.iter().map(|_| None).collect(),
            phases: vec![None; requests.len()],
            stop,
            on_progress: &mut *on_progress,
        };
        for (job, request) in requests.iter().enumerate() {
            jobs.or_fails(job, self.check(request));
        }
        let requests: Vec<Request> = requests.iter().map(|request| self.complete(request)).collect();
        let small = jobs.living().into_iter().all(|job| self.is_small(&requests[job]));
        let _alone = small.then(shim::SingleThread::enter);

        jobs.begin(Phase::Text);
        let texts = self.texts(&requests, &mut jobs);
        let seen: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(job, request)| match jobs.lives(job) {
                true => jobs.or_fails(job, self.encode_ip_adapter_images(request)).unwrap_or_default(),
                false => ImageEmbeds::new(),
            })
            .collect();
        if !self.settings.keep_text_encoders || self.settings.offload != Offload::None {
            (self.clip, self.t5, self.vision) = (None, None, None);
            self.release_image_encoder();
        }

        jobs.begin(Phase::Load);
        let living = jobs.living();
        let loading = Instant::now();
        if !living.is_empty() {
            self.load_transformer()?;
            self.load_controlnets(living.iter().flat_map(|&job| &requests[job].controls))?;
        }
        let loading = loading.elapsed();
        let previews = living.iter().any(|&job| requests[job].previews > 0);
        if previews {
            self.load_previewer()?;
        }
        if previews && self.previewer.is_none() || living.iter().any(|&job| self.encodes(&requests[job])) {
            self.load_autoencoder()?;
        }
        let depths = |edit: &Edit| edit.follow == ControlPreprocess::Depth;
        if living.iter().any(|&job| requests[job].edit.as_deref().is_some_and(depths)) {
            self.load_depth()?;
        }
        let given: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(job, request)| match jobs.lives(job) {
                true => jobs.or_fails(job, self.given_with(request, &seen[job])).unwrap_or_default(),
                false => EditConditions::default(),
            })
            .collect();
        self.depth = None;

        let offloads = self.settings.offload != Offload::None;
        if offloads {
            self.release_ip_adapters();
        }
        if offloads && living.iter().all(|&job| requests[job].previews == 0) {
            self.autoencoder = None;
        }

        jobs.begin(Phase::Denoise);
        let drawings = drawings(&requests, &texts, &given, &jobs);
        let groups = self.groups(&drawings);
        let mut pictures: Vec<Vec<Arc<Generated>>> = requests.iter().map(|_| Vec::new()).collect();
        let (mut waiting, mut drawing) = (Vec::new(), Duration::ZERO);
        let last = groups.len().saturating_sub(1);
        for (i, group) in groups.into_iter().enumerate() {
            let begun = Instant::now();
            let members: Vec<usize> = group.iter().map(|&i| drawings[i].job).collect();
            if members.iter().any(|&job| jobs.lives(job)) && !jobs.is_stopped() {
                self.load_transformer()?;
                self.load_controlnets(members.iter().flat_map(|&job| &requests[job].controls))?;
                let previews = members.iter().any(|&job| requests[job].previews > 0);
                if previews && self.previewer.is_none() {
                    self.load_autoencoder()?;
                }
                members.iter().for_each(|&job| jobs.enter(job, Phase::Denoise));
                waiting.extend(self.latents(&drawings, group, &mut jobs)?);
            }
            drawing += begun.elapsed();
            if !offloads || i == last || jobs.is_stopped() || drawing >= loading * LOADS {
                self.decode_all(&drawings, &mut waiting, &mut jobs, &mut pictures)?;
                drawing = Duration::ZERO;
            }
        }
        if offloads {
            self.transformer = None;
            self.controlnets.iter_mut().for_each(|net| net.release(true));
        }
        let outcome = |(failed, pictures): (Option<Error>, Vec<_>)| match failed {
            Some(error) => Err(error),
            None => Ok(pictures.into_iter().map(Arc::unwrap_or_clone).collect()),
        };
        Ok(jobs.failed.into_iter().zip(pictures).map(outcome).collect())
    }

    /// Latents to pictures, each handed out when it is there.
    fn decode_all(
        &mut self,
        drawings: &[Drawing],
        waiting: &mut Vec<Drawn>,
        jobs: &mut Jobs,
        pictures: &mut [Vec<Arc<Generated>>],
    ) -> Result<()> {
        waiting.retain(|(i, ..)| jobs.lives(drawings[*i].job));
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.iter().for_each(|(i, ..)| jobs.enter(drawings[*i].job, Phase::Decode));
        let offloads = self.settings.offload != Offload::None;
        self.transformer.iter().for_each(|transformer| transformer.model.release_workspace());
        self.controlnets.iter_mut().for_each(|net| net.release(offloads));
        if let Some(Previewer::Decoder(decoder)) = &self.previewer {
            decoder.model.release_workspace();
        }
        if offloads {
            self.transformer = None;
        }
        self.load_autoencoder()?;
        for (i, latent, skipped) in waiting.drain(..) {
            let Drawing { job, image, images, ref request, text, .. } = drawings[i];
            if !jobs.lives(job) {
                continue;
            }
            let picture = self.decode(&latent, request).and_then(|x| Image::from_tensor(&x));
            if let Some(picture) = jobs.or_fails(job, picture) {
                let (request, warnings) = (request.clone(), text.warnings());
                let picture = Arc::new(Generated { image: picture, request, warnings, skipped });
                pictures[job].push(picture.clone());
                jobs.report(job, Progress::Picture { image, images, picture });
            }
        }
        self.autoencoder.iter().for_each(|autoencoder| autoencoder.model.release_workspace());
        if offloads {
            self.autoencoder = None;
        }
        Ok(())
    }

    /// How many pictures of such a request are computed at a time: several where that is faster, changes no bit of them,
    /// and the memory allows it. The kernels of the fast numerics on the CPU give a row of a product the same bits
    /// whatever rows are beside it; libtorch's do not.
    pub fn together(&self, request: &Request) -> usize {
        let settings = &self.settings;
        let ours = settings.device == Device::Cpu && settings.numerics == Numerics::Fast;
        let beside = !self.loras.transformer.linears.is_empty();
        // What a step cache skips depends on the picture.
        if !ours || beside || request.cache.is_some() || !matches!(self.kind, Kind::Float | Kind::BFloat16) {
            return 1;
        }
        let request = self.complete(request);
        let (image, text) = self.tokens(&request);
        let most = (TOGETHER / (image + text + self.reference_tokens(&request))).max(1) as usize;
        self.fitting(&request, most)
    }

    /// All that a request's drawings begin with.
    fn given_with(&mut self, request: &Request, seen: &ImageEmbeds) -> Result<EditConditions> {
        let image_prompts = self.image_prompts(request, seen)?;
        Ok(EditConditions { image_prompts, ..self.given(request)? })
    }

    fn is_small(&self, request: &Request) -> bool {
        let (image, text) = self.tokens(request);
        let numbers = (image + text + self.reference_tokens(request)) * self.params.hidden_size;
        let ours = self.settings.device == Device::Cpu && self.settings.numerics == Numerics::Fast;
        ours && numbers <= SMALL && request.width * request.height <= SMALL
    }

    /// Whether two requests can be drawn together.
    pub fn alike(&self, one: &Request, other: &Request) -> bool {
        self.complete(one).shares_batch_with(&self.complete(other))
    }

    /// Tokens of a picture, and of its text with what stands behind it.
    pub(super) fn tokens(&self, request: &Request) -> (i64, i64) {
        let side = |pixels: i64| ModelFamily::Flux1.latent().patches(pixels.max(0));
        let text = request.max_sequence_length.unwrap_or(512) as i64;
        (side(request.width) * side(request.height), text + self.redux_tokens(request))
    }

    fn check(&self, request: &Request) -> Result<()> {
        request.check()?;
        self.check_redux(request)?;
        self.check_given(request)?;
        self.times(&self.complete(request)).map(|_| ())
    }

    /// The prompts of each request that lives.
    fn texts(&mut self, requests: &[Request], jobs: &mut Jobs) -> Vec<Vec<Text>> {
        let mut all = Vec::new();
        for (job, request) in requests.iter().enumerate() {
            let device = self.settings.device;
            let texts = match jobs.lives(job) {
                true => jobs.until_stopped(device, || self.texts_of(request)),
                false => Ok(Vec::new()),
            };
            all.push(jobs.or_fails(job, texts).unwrap_or_default());
        }
        all
    }

    /// In the kind of its file, unless the pipeline computes in f32 throughout.
    pub(super) fn autoencoder_kind(&self, autoencoder: &Checkpoint) -> Kind {
        if self.kind == Kind::Float { self.kind } else { autoencoder.main_kind().unwrap_or(self.kind) }
    }

    /// Whether the autoencoder with weights of this kind decodes in f32; otherwise it does under bf16 autocast.
    pub(super) fn decodes_in_f32(&self, autoencoder: Kind) -> bool {
        autoencoder == Kind::Float && self.kind == Kind::Float
    }

    fn load_transformer(&mut self) -> Result<()> {
        if self.transformer.is_none() {
            let transformer = self.parts.load_transformer(&self.settings, self.kind, &self.params)?;
            transformer.model.quantize(self.settings.quantize)?;
            self.transformer = Some(transformer.adapt(&self.loras.transformer)?);
        }
        Ok(())
    }

    fn load_autoencoder(&mut self) -> Result<()> {
        if self.autoencoder.is_none() {
            let checkpoint = self.parts.open_autoencoder(self.settings.access)?;
            let kind = self.autoencoder_kind(&checkpoint);
            self.autoencoder =
                Some(resident::load_autoencoder(&self.settings, kind, &self.parts.autoencoder, checkpoint)?);
        }
        Ok(())
    }

    fn load_depth(&mut self) -> Result<()> {
        self.depth = match &self.parts.depth {
            Some(path) => Some(resident::load_depth(&self.settings, path)?),
            None => None,
        };
        Ok(())
    }

    /// The drawings that are computed together, by their places.
    fn groups(&self, drawings: &[Drawing]) -> Vec<Vec<usize>> {
        let mut groups: Vec<(&Request, usize, Vec<usize>)> = Vec::new();
        for (i, Drawing { request, .. }) in drawings.iter().enumerate() {
            let fits = |(other, most, group): &&mut (&Request, usize, Vec<usize>)| {
                group.len() < *most && other.shares_batch_with(request)
            };
            match groups.iter_mut().find(fits) {
                Some((_, _, group)) => group.push(i),
                None => groups.push((request, self.together(request), vec![i])),
            }
        }
        groups.into_iter().map(|(_, _, group)| group).collect()
    }

    /// Noise to latents of drawings of one shape: those that nobody stopped.
    fn latents(&self, drawings: &[Drawing], mut group: Vec<usize>, jobs: &mut Jobs) -> Result<Vec<Drawn>> {
        group.retain(|&i| jobs.lives(drawings[i].job));
        let Some(&first) = group.first() else { return Ok(Vec::new()) };
        let Some(transformer) = &self.transformer else { return Err(not_loaded()) };
        transformer.checkpoint.check_unchanged()?;
        let model = &transformer.model;
        let times = self.times(&drawings[first].request)?;
        let steps = times.steps();
        let rows = group.iter().map(|&i| BatchItem::new(self, model, i, &drawings[i], &times));
        let mut rows = rows.collect::<Result<Vec<_>>>()?;
        let mut beside = Batch::of(self, &rows, steps)?;
        let Request { cache, sampler, .. } = drawings[first].request;
        let sampler = sampler.unwrap_or_default();
        cache.iter().for_each(|&cache| beside.skip(cache, sampler.calls(steps)));
        let mut solver = Solver::new(sampler, &times.sigmas).with_timesteps(&times.timesteps);
        for step in 0..steps {
            let before = beside.img.shallow_clone();
            let mut velocity =
                |img: &Tensor, t_vec: &Tensor, index| beside.velocity(model, img, t_vec, index);
            if jobs.is_stopped() {
                return Ok(Vec::new());
            }
            let mut take = || solver.step(&before, step, &mut velocity, &|| beside.noise(step));
            let stepped = match step + 1 == steps {
                true => take(),
                false => jobs.until_stopped(self.settings.device, take),
            };
            let stepped = match stepped {
                Err(Error::Cancelled) if jobs.is_stopped() => return Ok(Vec::new()),
                stepped => stepped?,
            };
            let expected = || Ok(before.f_sub(&stepped.velocity.f_mul_scalar(times.sigmas[step])?)?);
            self.report_step(&rows, drawings, (step + 1, steps), &expected, jobs)?;
            // At the end the picture is whole, wherever the walk led.
            let time = if step + 1 == steps { 0.0 } else { times.sigmas[step + 1] };
            beside.img = beside.keep_unmasked(&stepped.img, time)?;
            let living: Vec<_> = rows.iter().map(|row| jobs.lives(drawings[row.drawing].job)).collect();
            if living.contains(&false) {
                let places: Vec<i64> =
                    (0..).zip(&living).filter(|(_, lives)| **lives).map(|(i, _)| i).collect();
                let mut lives = living.into_iter();
                rows.retain(|_| lives.next().unwrap_or(false));
                if rows.is_empty() {
                    return Ok(Vec::new());
                }
                let places = Tensor::f_from_slice(&places)?.f_to_device(beside.img.device())?;
                solver.keep(&places)?;
                beside.go_on_with(self, &rows, steps, &places)?;
            }
        }
        let mut latents = Vec::new();
        for (i, row) in (0..).zip(&rows) {
            let latent = beside.img.f_narrow(0, i, 1)?;
            if bool::try_from(latent.isfinite().all())? {
                latents.push((row.drawing, latent, beside.skipped()));
            } else {
                let hint = "a weight file is damaged, or the kind is too narrow: try bf16 or f32";
                jobs.or_fails::<()>(
                    drawings[row.drawing].job,
                    Err(Error::NotFinite { what: "the latent", hint }),
                );
            }
        }
        Ok(latents)
    }

    /// After which of a picture's steps, counted from 1, previews of it are made.
    ///
    /// # Errors
    /// [`Error::Request`] where the schedule gives no times for so many steps.
    pub fn preview_steps(&self, request: &Request) -> Result<Vec<usize>> {
        let request = self.complete(request);
        let steps = self.times(&request)?.sigmas.len().saturating_sub(1);
        Ok((1..=steps).filter(|&step| request.previews_after(step, steps)).collect())
    }

    /// The times that a picture walks, those that its strength leaves.
    ///
    /// # Errors
    /// [`Error::Request`] where the schedule gives no times for so many steps.
    fn times(&self, request: &Request) -> Result<Times> {
        let steps = request.steps.unwrap_or(1);
        // Of the picture alone: what stands beside it shifts nothing.
        let (tokens, _) = self.tokens(request);
        let schedule = request.schedule.as_ref().unwrap_or(&Schedule::Linear);
        let mut sigmas = schedule.times(steps, tokens);
        if let Some(sigma) = sigmas.iter().find(|sigma| !sigma.is_finite()) {
            return Err(Error::Request(format!(
                "the schedule {schedule:?} has a time of {sigma} in {steps} steps"
            )));
        }
        if let Some(edit) = &request.edit
            && self.role(edit).is_ok_and(|role| role == Role::Start)
        {
            sigmas.drain(..edit.first_step(steps));
        }
        Ok(Times { timesteps: schedule.timesteps(&sigmas), sigmas })
    }

    fn report_step(
        &self,
        rows: &[BatchItem],
        drawings: &[Drawing],
        (step, steps): (usize, usize),
        expected: &dyn Fn() -> Result<Tensor>,
        jobs: &mut Jobs,
    ) -> Result<()> {
        let mut patches = None;
        for (i, row) in (0..).zip(rows) {
            let Drawing { job, image, images, ref request, .. } = drawings[row.drawing];
            jobs.report(job, Progress::Step { image, images, step, steps });
            if jobs.lives(job) && request.previews_after(step, steps) {
                if patches.is_none() {
                    patches = Some(expected()?);
                }
                let Some(patches) = &patches else { continue };
                let picture = self.preview(&patches.f_narrow(0, i, 1)?, request)?;
                jobs.report(job, Progress::Preview { image, step, picture });
            }
        }
        Ok(())
    }

    /// Patches to pixels.
    fn decode(&self, patches: &Tensor, request: &Request) -> Result<Tensor> {
        let latent = ModelFamily::Flux1.latent().unpack(
            &patches.f_to_kind(Kind::Float)?,
            request.height,
            request.width,
        )?;
        self.decode_latent(self.autoencoder()?, &latent)
    }

    /// The autoencoder, loaded.
    pub(super) fn autoencoder(&self) -> Result<&Resident<AnyAutoEncoder>> {
        self.autoencoder.as_ref().ok_or_else(not_loaded)
    }

    /// Latent to pixels, as the official code does it: in f32, under bf16 autocast unless the pipeline is f32.
    pub(super) fn decode_latent(
        &self,
        autoencoder: &Resident<AnyAutoEncoder>,
        latent: &Tensor,
    ) -> Result<Tensor> {
        autoencoder.checkpoint.check_unchanged()?;
        let autocast = !self.decodes_in_f32(autoencoder.kind);
        let _autocast = autocast.then(|| shim::Autocast::bf16(self.settings.device)).transpose()?;
        Ok(autoencoder.model.decode(latent, self.settings.vae_tile)?.f_get(0)?)
    }
}

/// Every picture of the requests that live, with the request that draws it alone.
fn drawings<'a>(
    requests: &[Request],
    texts: &'a [Vec<Text>],
    given: &'a [EditConditions],
    jobs: &Jobs,
) -> Vec<Drawing<'a>> {
    let mut drawings = Vec::new();
    for job in jobs.living() {
        let (request, given) = (&requests[job], &given[job]);
        let images = request.prompts.len() * request.num_images;
        for (prompt, text) in request.prompts.iter().zip(&texts[job]) {
            for i in 0..request.num_images {
                let (seed, variation) = request.seeds(i);
                let prompts = vec![prompt.clone()];
                let mine = Request { prompts, num_images: 1, seed, variation, ..request.clone() };
                let image = drawings.iter().filter(|drawing: &&Drawing| drawing.job == job).count();
                drawings.push(Drawing { job, image, images, request: mine, text, given });
            }
        }
    }
    drawings
}

/// For a state that the order of the phases rules out.
pub(super) fn not_loaded() -> Error {
    Error::Config("a part of the pipeline is not loaded".into())
}
