//! What is asked of a pipeline.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::params::EditSettings;
use super::{Control, Edit, IpAdapterImage, Redux, Request, Variation};
use crate::error::{Error, ParameterProblem, Result};
use crate::models::flux1::StepCache;
use crate::models::text::WeightedPrompt;
use crate::sampling::{Sampler, Schedule};

impl Edit {
    /// Returns what is said of the pictures.
    pub fn settings(&self) -> EditSettings {
        let Self { strength, role, keep_size, follow, .. } = *self;
        EditSettings { strength, role, keep_size, follow }
    }
}

impl Request {
    /// One picture of the prompt, with the model's own settings.
    pub fn new(prompt: impl Into<String>, width: i64, height: i64) -> Self {
        Self { prompts: vec![prompt.into()], width, height, ..Self::blank() }
    }

    /// Sets the steps from noise to picture.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self
    }

    /// Sets how a step is made.
    pub fn sampler(mut self, sampler: Sampler) -> Self {
        self.sampler = Some(sampler);
        self
    }

    /// Sets the times of the steps.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    /// Sets which steps are not computed whole.
    pub fn cache(mut self, cache: StepCache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Sets the guidance strength.
    pub fn guidance(mut self, guidance: f64) -> Self {
        self.guidance = Some(guidance);
        self
    }

    /// Sets the seed of the first picture.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets another noise, and how near to it.
    pub fn variation(mut self, seed: u64, strength: f64) -> Self {
        self.variation = Some(Variation { seed, strength });
        self
    }

    /// Sets what T5 reads in place of the prompt.
    pub fn prompt_2(mut self, prompt: impl Into<String>) -> Self {
        self.prompt_2 = Some(prompt.into());
        self
    }

    /// Sets what the picture shall not show, and how far it is led away from that.
    pub fn negative_prompt(mut self, prompt: impl Into<String>, true_cfg_scale: f64) -> Self {
        self.negative_prompt = Some(prompt.into());
        self.true_cfg_scale = Some(true_cfg_scale);
        self
    }

    /// Sets the pictures that it begins with.
    pub fn edit(mut self, edit: Edit) -> Self {
        self.edit = Some(Arc::new(edit));
        self
    }

    /// Sets the pictures that it shall look like.
    pub fn redux(mut self, redux: Redux) -> Self {
        self.redux = Some(Arc::new(redux));
        self
    }

    /// Adds a picture that a ControlNet follows.
    pub fn control(mut self, control: Control) -> Self {
        self.controls.push(control);
        self
    }

    /// Adds pictures that it shall be like.
    pub fn pictured(mut self, pictured: IpAdapterImage) -> Self {
        self.pictured.push(pictured);
        self
    }

    /// Sets how many pictures of each prompt are drawn.
    pub fn num_images(mut self, num_images: usize) -> Self {
        self.num_images = num_images;
        self
    }

    /// Sets how many previews of each picture are made on the way.
    pub fn previews(mut self, previews: usize) -> Self {
        self.previews = previews;
        self
    }

    /// A seed that nobody chose, of the 32 bits that the generator uses.
    pub fn random_seed() -> u64 {
        RandomState::new().build_hasher().finish() & 0xffff_ffff
    }

    /// The noise of one of the pictures of a prompt, from 0.
    pub fn seeds(&self, image: usize) -> (u64, Option<Variation>) {
        let on = |seed: u64| seed.wrapping_add(image as u64);
        match self.variation {
            Some(variation) => (self.seed, Some(Variation { seed: on(variation.seed), ..variation })),
            None => (on(self.seed), None),
        }
    }

    /// The parts of a prompt that weigh more or less, where there are any.
    pub(super) fn weighted(&self, prompt: &str) -> Option<WeightedPrompt> {
        if self.literal { None } else { WeightedPrompt::parse(prompt) }
    }

    /// Whether a prompt has weights, which are read as such unless [`Request::literal`].
    pub(crate) fn has_weights(&self) -> bool {
        self.read_prompts().any(|prompt| WeightedPrompt::parse(prompt).is_some())
    }

    /// What should be said of the prompts before anything is drawn. It is among the warnings of each picture, too.
    pub fn prompt_warnings(&self) -> Vec<String> {
        self.read_prompts().flat_map(|prompt| self.warnings_of(prompt)).collect()
    }

    /// The prompts that an encoder reads.
    fn read_prompts(&self) -> impl Iterator<Item = &String> {
        let negative = self.scale().and(self.negative_prompt.as_ref());
        self.prompts.iter().chain(&self.prompt_2).chain(negative)
    }

    /// What should be said of a prompt: weights beyond [`WeightedPrompt::USUAL`], embeddings, which are left out, and LoRAs in
    /// the notation of other programs, which are text here as they are to ComfyUI.
    pub(super) fn warnings_of(&self, prompt: &str) -> Vec<String> {
        let loras = lora_tags(prompt).map(|tag| {
            format!("{} in the prompt is text: it puts no LoRA on, which is named by its file", quote(tag))
        });
        let Some(weighted) = self.weighted(prompt) else { return loras.collect() };
        let unusual = weighted.unusual().map(|part| {
            format!(
                "the prompt gives {} a weight of {}, and weights beyond {} spoil pictures; if it is no weight, read the \
                 prompt to the letter (literal)",
                quote(&part.text),
                part.weight,
                WeightedPrompt::USUAL,
            )
        });
        let left_out = weighted.embeddings.iter().map(|name| {
            format!(
                "embedding:{name} is left out of the prompt: there are no embeddings of textual inversion for FLUX.1"
            )
        });
        unusual.chain(left_out).chain(loras).collect()
    }

    /// # Errors
    /// [`Error::Request`] for a weight that is no finite number.
    fn check_weights(&self) -> Result<()> {
        for prompt in self.read_prompts() {
            let weighted = self.weighted(prompt);
            if let Some(part) = weighted.as_ref().and_then(WeightedPrompt::not_finite) {
                return Err(Error::Request(format!(
                    "the prompt gives {} the weight {}, which is no finite number: give it another one, or read the \
                     prompt to the letter (literal)",
                    quote(&part.text),
                    part.weight,
                )));
            }
        }
        Ok(())
    }

    /// Whether there is true classifier-free guidance, which reads the negative prompt.
    pub fn has_true_guidance(&self) -> bool {
        self.scale().is_some()
    }

    /// The scale of the true guidance, where there is one.
    pub(crate) fn scale(&self) -> Option<f64> {
        self.true_cfg_scale.filter(|&scale| scale > 1.0 && self.negative_prompt.is_some())
    }

    /// Whether a preview is made after a step, counted from 1, of so many.
    pub(super) fn previews_after(&self, step: usize, steps: usize) -> bool {
        let place = |i: usize| (i * steps).div_ceil(self.previews + 1);
        step < steps && (1..=self.previews.min(steps)).any(|i| place(i) == step)
    }

    /// # Errors
    /// [`Error::Parameter`] and [`Error::Request`] with what is wrong and what would be right.
    pub fn check(&self) -> Result<()> {
        if let Some(schedule) = &self.schedule {
            // Before the steps: those of one's own times are counted from them.
            self.check_schedule(schedule)?;
        }
        self.check_rows()?;
        if self.prompts.is_empty() {
            return Err(Error::Request("no prompt".into()));
        }
        self.check_weights()?;
        if let Some(Variation { strength, .. }) = self.variation
            && !(0.0..=1.0).contains(&strength)
        {
            let rest = format!(" must be a number from 0 to 1, not {strength}");
            return Err(ParameterProblem::of_value("variation_strength", rest).into());
        }
        if self.true_cfg_scale.is_some_and(|scale| scale > 1.0) && self.negative_prompt.is_none() {
            let text = "a {true_cfg_scale} above 1 needs a {negative_prompt}, which may be empty";
            return Err(ParameterProblem::new("negative_prompt", text, &[]).into());
        }
        if let Some(edit) = &self.edit {
            edit.check()?;
        }
        if let Some(redux) = &self.redux {
            redux.check(&self.prompts, self.prompt_2.as_deref())?;
        }
        self.controls.iter().try_for_each(Control::check)?;
        self.pictured.iter().try_for_each(IpAdapterImage::check)
    }

    fn check_schedule(&self, schedule: &Schedule) -> Result<()> {
        match schedule.check() {
            Err(_) if matches!(schedule, Schedule::Sigmas(_)) => {
                let rest =
                    " must fall from at most 1, each below the one before, down to 0 or what is above it";
                return Err(ParameterProblem::of_value("sigmas", rest).into());
            }
            checked => checked?,
        }
        match (schedule.steps(), self.steps) {
            (Some(own), Some(steps)) if own != steps => {
                let text = "{steps} is {}, but there are {sigmas} for {}: leave one of both out";
                Err(ParameterProblem::new("steps", text, &[&steps, &own]).into())
            }
            _ => Ok(()),
        }
    }
}

/// `<lora:NAME:STRENGTH>`, as A1111 and its relatives put LoRAs into a prompt, and `<lyco:…>`.
fn lora_tags(prompt: &str) -> impl Iterator<Item = &str> {
    let tag = |(at, _): (usize, &str)| {
        let tag = prompt[at..].split_inclusive('>').next().filter(|tag| tag.ends_with('>'))?;
        (tag.starts_with("<lora:") || tag.starts_with("<lyco:")).then_some(tag)
    };
    prompt.match_indices('<').filter_map(tag)
}

/// A part of a prompt as messages show it: no longer than a line.
fn quote(text: &str) -> String {
    const LONGEST: usize = 40;
    let text = text.trim();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}", format!("{}…", &text[..end])),
        None => format!("{text:?}"),
    }
}
