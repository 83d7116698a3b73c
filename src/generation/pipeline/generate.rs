//! From requests to pictures, phase by phase; pictures of one shape are computed together where that changes no bit.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tch::Device;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::generation::damage::with_causes;
use crate::generation::drawing::{Drawing, drawings};
use crate::generation::jobs::Jobs;
use crate::generation::steps::{Latent, latents};
use crate::generation::text::Text;
use crate::generation::{
    ControlPreprocess, Edit, Generated, Offload, OnBatchProgress, OnProgress, Phase, Progress, Request,
};
use crate::image::Image;
use crate::numerics::Numerics;
use crate::shim;

/// Where the transformer is released while the autoencoder decodes, pictures wait to be decoded until drawing them took so
/// many times as long as loading the transformer again does.
const LOADS: u32 = 4;

/// Numbers of a step's tensors up to which libtorch's operations are done before other threads are there to help.
const SMALL: i64 = 1 << 20;

impl Pipeline {
    /// Draws the pictures, prompt by prompt and seed by seed. The bits of each are those that it has when it is drawn
    /// alone.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::Cancelled`], what is wrong with the files, NaN in their weights included, and
    /// [`Error::NotFinite`] where no weight is to blame.
    pub fn generate(&mut self, request: &Request, on_progress: &mut OnProgress) -> Result<Vec<Generated>> {
        let mut outcomes = self.generate_batch(&[request], &mut |_, progress| on_progress(progress))?;
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
        with_causes(&self.loader, &self.models, outcomes)?.pop().unwrap_or(Err(Error::Cancelled))
    }

    /// Draws several requests, those of one shape together: up to [`Pipeline::max_batch`] pictures at a time. Each has its
    /// own outcome, in the order of the requests, and the bits of its pictures are those that they have alone.
    ///
    /// # Errors
    /// What goes wrong for all of them.
    pub fn generate_batch(
        &mut self,
        requests: &[&Request],
        on_progress: &mut OnBatchProgress,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let outcomes = self.draw(requests, None, on_progress);
        with_causes(&self.loader, &self.models, outcomes)
    }

    /// prompt → tokens → text states → noise and positions → times → velocity steps → latents → pixels.
    fn draw(
        &mut self,
        requests: &[&Request],
        stop: Option<&Arc<AtomicBool>>,
        on_progress: &mut OnBatchProgress,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let _no_grad = tch::no_grad_guard();
        let mut jobs = Jobs::new(requests.len(), stop, on_progress);
        for (job, request) in requests.iter().enumerate() {
            jobs.or_fails(job, self.check(request));
        }
        let requests: Vec<Request> = requests.iter().map(|request| self.complete(request)).collect();
        let small = jobs.living().into_iter().all(|job| self.is_small(&requests[job]));
        let _single_thread = small.then(shim::SingleThread::enter);

        jobs.begin(Phase::Text);
        let texts = self.encode_prompts(&requests, &mut jobs);
        let embeds = for_each(&requests, &mut jobs, |_, request| {
            let is_guided = request.scale().is_some();
            self.models.ip_adapters.encode(&self.loader, &request.pictured, is_guided)
        });
        let offloads = self.offloads();
        if !self.loader.settings.keep_text_encoders || offloads {
            self.models.release_encoders();
        }

        jobs.begin(Phase::Load);
        let begun = Instant::now();
        let living = jobs.living();
        if !living.is_empty() {
            self.load_denoiser(&requests, &living)?;
        }
        let loading = begun.elapsed();
        self.load_conditioners(&requests, &living)?;
        let conditioning = for_each(&requests, &mut jobs, |job, request| {
            self.models.conditioning(&self.loader, request, &embeds[job], self.folder.role)
        });
        self.models.depth.release();
        if offloads {
            self.models.ip_adapters.release();
        }
        if offloads && living.iter().all(|&job| requests[job].previews == 0) {
            self.models.autoencoder.release();
        }

        jobs.begin(Phase::Denoise);
        let drawings = drawings(&requests, &texts, &conditioning, jobs.living());
        let mut pictures: Vec<Vec<Arc<Generated>>> = requests.iter().map(|_| Vec::new()).collect();
        let (mut waiting, mut drawing) = (Vec::new(), Duration::ZERO);
        let groups = self.groups(&drawings);
        let last = groups.len().saturating_sub(1);
        for (i, group) in groups.into_iter().enumerate() {
            let begun = Instant::now();
            let members: Vec<usize> = group.iter().map(|&i| drawings[i].job).collect();
            if members.iter().any(|&job| jobs.lives(job)) && !jobs.is_stopped() {
                self.load_denoiser(&requests, &members)?;
                let previews = members.iter().any(|&job| requests[job].previews > 0);
                if previews && !self.models.previewer.is_loaded() {
                    self.models.autoencoder.load(&self.loader)?;
                }
                members.iter().for_each(|&job| jobs.enter(job, Phase::Denoise));
                let times = self.times(&drawings[group[0]].request)?;
                let drawn = latents(&self.loader, &self.models, &times, &drawings, group, &mut jobs)?;
                waiting.extend(drawn);
            }
            drawing += begun.elapsed();
            if !offloads || i == last || jobs.is_stopped() || drawing >= loading * LOADS {
                self.decode(&drawings, &mut waiting, &mut jobs, &mut pictures)?;
                drawing = Duration::ZERO;
            }
        }
        if offloads {
            self.models.transformer.release();
            self.models.controlnets.release();
        }
        let outcome = |(failed, pictures): (Option<Error>, Vec<_>)| match failed {
            Some(error) => Err(error),
            None => Ok(pictures.into_iter().map(Arc::unwrap_or_clone).collect()),
        };
        Ok(jobs.failed.into_iter().zip(pictures).map(outcome).collect())
    }

    fn offloads(&self) -> bool {
        self.loader.settings.offload != Offload::None
    }

    fn check(&self, request: &Request) -> Result<()> {
        request.check()?;
        if request.redux.is_some() {
            self.check_vision()?;
        }
        self.models.controlnets.check(&request.controls)?;
        self.models.ip_adapters.check(&request.pictured)?;
        self.edit_rules().check(request.edit.as_deref())?;
        self.times(&self.complete(request)).map(|_| ())
    }

    fn is_small(&self, request: &Request) -> bool {
        let settings = &self.loader.settings;
        let numbers = self.tokens(request).sum() * self.params().hidden_size();
        let ours = settings.device == Device::Cpu && settings.numerics == Numerics::Fast;
        ours && numbers <= SMALL && request.width * request.height <= SMALL
    }

    /// The prompts of each request that lives.
    fn encode_prompts(&mut self, requests: &[Request], jobs: &mut Jobs) -> Vec<Vec<Text>> {
        let mut all = Vec::new();
        for (job, request) in requests.iter().enumerate() {
            let Self { loader, models, .. } = &mut *self;
            let texts = match jobs.lives(job) {
                true => jobs.until_stopped(loader.settings.device, || models.encode_prompts(loader, request)),
                false => Ok(Vec::new()),
            };
            all.push(jobs.or_fails(job, texts).unwrap_or_default());
        }
        all
    }

    /// Loads what the steps of these requests need.
    fn load_denoiser(&mut self, requests: &[Request], jobs: &[usize]) -> Result<()> {
        let Self { loader, models, .. } = self;
        models.transformer.load(loader, &models.loras)?;
        models.controlnets.load(loader, jobs.iter().flat_map(|&job| &requests[job].controls))
    }

    /// Loads what the pictures of these requests are encoded with, and what makes their previews.
    fn load_conditioners(&mut self, requests: &[Request], jobs: &[usize]) -> Result<()> {
        let Self { loader, models, .. } = self;
        let any = |holds: &dyn Fn(&Request) -> bool| jobs.iter().any(|&job| holds(&requests[job]));
        let previews = any(&|request| request.previews > 0);
        if previews {
            models.previewer.load(loader)?;
        }
        if previews && !models.previewer.is_loaded() || any(&|request| models.encodes(request)) {
            models.autoencoder.load(loader)?;
        }
        let depths = |edit: &Edit| edit.follow == ControlPreprocess::Depth;
        if any(&|request| request.edit.as_deref().is_some_and(depths)) {
            models.depth.load(loader)?;
        }
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
                None => groups.push((request, self.max_batch(request), vec![i])),
            }
        }
        groups.into_iter().map(|(_, _, group)| group).collect()
    }

    /// Latents to pictures, each handed out when it is there.
    fn decode(
        &mut self,
        drawings: &[Drawing],
        waiting: &mut Vec<Latent>,
        jobs: &mut Jobs,
        pictures: &mut [Vec<Arc<Generated>>],
    ) -> Result<()> {
        waiting.retain(|latent| jobs.lives(drawings[latent.drawing].job));
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.iter().for_each(|latent| jobs.enter(drawings[latent.drawing].job, Phase::Decode));
        let offloads = self.offloads();
        let Self { loader, models, .. } = self;
        models.transformer.release_workspace();
        models.controlnets.release_workspace();
        models.previewer.release_workspace();
        if offloads {
            models.transformer.release();
            models.controlnets.release();
        }
        models.autoencoder.load(loader)?;
        for Latent { drawing, patches, skipped } in waiting.drain(..) {
            let Drawing { job, image, images, ref request, text, .. } = drawings[drawing];
            if !jobs.lives(job) {
                continue;
            }
            let size = (request.height, request.width);
            let pixels = models.autoencoder.decode_patches(loader, &patches, size);
            let picture = pixels.and_then(|x| Image::from_tensor(&x));
            if let Some(picture) = jobs.or_fails(job, picture) {
                let (request, warnings) = (request.clone(), text.warnings());
                let picture = Arc::new(Generated { image: picture, request, warnings, skipped });
                pictures[job].push(picture.clone());
                jobs.report(job, Progress::Picture { image, images, picture });
            }
        }
        models.autoencoder.release_workspace();
        if offloads {
            models.autoencoder.release();
        }
        Ok(())
    }
}

/// Does this for each request that lives, whose error is its own; the others get nothing.
fn for_each<T: Default>(
    requests: &[Request],
    jobs: &mut Jobs,
    mut f: impl FnMut(usize, &Request) -> Result<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    for (job, request) in requests.iter().enumerate() {
        let done = jobs.lives(job).then(|| f(job, request));
        all.push(done.and_then(|done| jobs.or_fails(job, done)).unwrap_or_default());
    }
    all
}
