//! What is asked of a pipeline.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Control, IpAdapterImage};
use crate::error::{Error, Result};
use crate::generation::Redux;
use crate::image::{Image, Mask};
use crate::models::flux1::StepCache;
use crate::models::text::WeightedPrompt;
use crate::sampling::{Sampler, Schedule};

/// The longest side of a picture, in pixels.
const MAX_SIDE: i64 = 16_384;

/// How pictures come into a drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It is noised and drawn anew from there: image-to-image, and with a mask inpainting. Any model that draws from text
    /// does it.
    Start,
    /// Its patches stand beside those that are drawn, for Kontext to look at.
    Reference,
    /// What a mask has not chosen is seen by Fill, which draws the rest.
    Fill,
    /// Edges or depths, which the models of Canny and Depth follow.
    Control,
}

impl Role {
    /// What pictures are to a model of this name. Kontext's weights have the shapes of dev's: only the name tells.
    pub fn of_model(name: &str) -> Option<Self> {
        name.to_lowercase().contains("kontext").then_some(Self::Reference)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Reference => "reference",
            Self::Fill => "fill",
            Self::Control => "control",
        })
    }
}

/// What of a picture a drawing follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlPreprocess {
    /// The picture as it is: edges or depths already.
    #[default]
    Picture,
    /// Its edges as OpenCV's Canny finds them, on which Canny-dev was trained.
    Canny,
    /// How far away its pixels are, as [`Parts::depth`](super::Parts::depth) says, on which Depth-dev was trained.
    Depth,
}

/// Pictures that a request begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Of any size. Those of [`Role::Reference`] may be several, each of which is resized to one of Kontext's sizes; the
    /// one of any other role is resized to the request's size.
    pub images: Vec<Image>,
    /// What is drawn anew; without it, all of the picture. Of the first picture's size. [`Role::Start`] may have one,
    /// [`Role::Fill`] needs one.
    pub mask: Option<Mask>,
    /// How much of the way from noise to picture [`Role::Start`] walks: 1 forgets the picture, near 0 it stays as it is.
    pub strength: f64,
    /// What they are to the model; `None` takes the only role that its input channels allow, and else [`Role::Start`].
    pub role: Option<Role>,
    /// References stay as large as they are, but for the rest of a division by 16.
    pub keep_size: bool,
    /// What [`Role::Control`] follows of the picture.
    pub follow: ControlPreprocess,
}

impl Edit {
    /// The strength of image-to-image where nothing is said: diffusers' default.
    pub const STRENGTH: f64 = 0.6;

    /// Of these pictures, all of them anew, with the role that the model has for them.
    pub fn new(images: Vec<Image>) -> Self {
        Self {
            images,
            mask: None,
            strength: 1.0,
            role: None,
            keep_size: false,
            follow: ControlPreprocess::Picture,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        let Some(first) = self.images.first() else { return wrong("no picture to begin with".into()) };
        if !(self.strength > 0.0 && self.strength <= 1.0) {
            return wrong(format!("strength {} is not above 0 and at most 1", self.strength));
        }
        if let Some(mask) = &self.mask
            && (mask.width, mask.height) != (first.width, first.height)
        {
            let size = |width, height| format!("{width}x{height}");
            return wrong(format!(
                "the mask is {} and the picture {}: they must be of one size",
                size(mask.width, mask.height),
                size(first.width, first.height)
            ));
        }
        if self.mask.as_ref().is_some_and(|mask| !mask.chosen.iter().any(|&pixel| pixel >= Mask::CHOSEN)) {
            return wrong("the mask chooses nothing: what is drawn anew must be white in it".into());
        }
        Ok(())
    }
}

/// Another noise, and how near to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Variation {
    /// The first picture's; the following ones count on from it, and the request's own seed then stays.
    pub seed: u64,
    /// 0 is the request's own noise, 1 the other one, and between both the noises on the great circle through them.
    pub strength: f64,
}

/// What is to be drawn. What is `None` is taken from the model's variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// One picture, or `num_images` of them, for each.
    pub prompts: Vec<String>,
    /// What T5 reads in place of the prompt, which CLIP alone reads then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// Reads the prompts to the letter, `(word:1.3)` too. Otherwise a prompt in which a group has a number, be it
    /// `prompts`, `prompt_2` or `negative_prompt`, is read as [`WeightedPrompt`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub literal: bool,
    /// Pixels, a multiple of 16.
    pub width: i64,
    /// Pixels, a multiple of 16.
    pub height: i64,
    /// Steps from noise to picture.
    pub steps: Option<usize>,
    /// How a step is made; `None` takes what the model's folder says ([`Parts::scheduler`](super::Parts::scheduler)), else
    /// [`Sampler::Euler`], as pictures that say nothing were drawn.
    #[serde(default = "euler")]
    pub sampler: Option<Sampler>,
    /// At which times; `None` takes what the model's folder says, else the variant's: linear for schnell, shifted for the
    /// others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Steps that are not computed whole; `None` computes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<StepCache>,
    /// Guidance strength, for models that were distilled for it.
    pub guidance: Option<f64>,
    /// What the picture shall not show: with [`Request::true_cfg_scale`], and at twice the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// How far each velocity is led away from the negative prompt's; above 1, else there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_cfg_scale: Option<f64>,
    /// The pictures that it begins with.
    #[serde(skip)]
    pub edit: Option<Arc<Edit>>,
    /// The pictures that it shall look like.
    #[serde(skip)]
    pub redux: Option<Arc<Redux>>,
    /// The pictures that ControlNets follow; each adds to what the others say.
    #[serde(skip)]
    pub controls: Vec<Control>,
    /// Pictures that it shall be like, each brought in by an IP-Adapter.
    #[serde(skip)]
    pub pictured: Vec<IpAdapterImage>,
    /// The first picture's noise; the following ones count on from it.
    pub seed: u64,
    /// Leads each picture's noise a part of the way towards another one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variation: Option<Variation>,
    /// Pictures of each prompt.
    pub num_images: usize,
    /// Tokens of T5, padding included.
    pub max_sequence_length: Option<usize>,
    /// Draws bf16 noise as torch up to 2.11 did.
    #[serde(default)]
    pub legacy_noise: bool,
    /// Small pictures on the way, evenly spaced over the steps of each picture. They change no bit of it. The autoencoder
    /// makes them of the latent's means, or what [`Parts::preview`](super::Parts::preview) names, of the latent.
    #[serde(skip)]
    pub previews: usize,
}

fn euler() -> Option<Sampler> {
    Some(Sampler::Euler)
}

impl Request {
    /// One picture of the prompt, with the model's own settings.
    pub fn new(prompt: impl Into<String>, width: i64, height: i64) -> Self {
        Self {
            prompts: vec![prompt.into()],
            prompt_2: None,
            literal: false,
            width,
            height,
            steps: None,
            sampler: None,
            schedule: None,
            cache: None,
            guidance: None,
            negative_prompt: None,
            true_cfg_scale: None,
            edit: None,
            redux: None,
            controls: Vec::new(),
            pictured: Vec::new(),
            seed: 0,
            variation: None,
            num_images: 1,
            max_sequence_length: None,
            legacy_noise: false,
            previews: 0,
        }
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

    /// The scale of the true guidance, where there is one.
    pub(super) fn scale(&self) -> Option<f64> {
        self.true_cfg_scale.filter(|&scale| scale > 1.0 && self.negative_prompt.is_some())
    }

    /// Whether a preview is made after a step, counted from 1, of so many.
    pub(super) fn previews_after(&self, step: usize, steps: usize) -> bool {
        let place = |i: usize| (i * steps).div_ceil(self.previews + 1);
        step < steps && (1..=self.previews.min(steps)).any(|i| place(i) == step)
    }

    /// # Errors
    /// [`Error::Request`] with what is wrong and what would be right.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        for (what, pixels) in [("width", self.width), ("height", self.height)] {
            if pixels > MAX_SIDE {
                return wrong(format!("{what} {pixels} is more than {MAX_SIDE}"));
            }
            if pixels < 16 || pixels % 16 != 0 {
                let below = pixels.max(0) / 16 * 16;
                let nearest = if below < 16 { "16".into() } else { format!("{below} and {}", below + 16) };
                return wrong(format!("{what} {pixels} is no multiple of 16; the nearest are {nearest}"));
            }
        }
        if self.prompts.is_empty() {
            return wrong("no prompt".into());
        }
        self.check_weights()?;
        if self.num_images == 0 {
            return wrong("num_images must be at least 1".into());
        }
        if let Some(cache) = self.cache {
            cache.check()?;
        }
        if let Some(schedule) = &self.schedule {
            // Before the steps: those of one's own times are counted from them.
            schedule.check()?;
            if let (Some(own), Some(steps)) = (schedule.steps(), self.steps)
                && own != steps
            {
                return wrong(format!(
                    "{own} sigmas are for {own} steps, not {steps}: leave one of both out"
                ));
            }
        }
        if self.steps == Some(0) {
            return wrong("steps must be at least 1".into());
        }
        if let Some(Variation { strength, .. }) = self.variation
            && !(0.0..=1.0).contains(&strength)
        {
            return wrong(format!("the strength {strength} of a variation is not between 0 and 1"));
        }
        if self.guidance.is_some_and(|g| !g.is_finite()) {
            return wrong("guidance must be a finite number".into());
        }
        if self.true_cfg_scale.is_some_and(|scale| !scale.is_finite()) {
            return wrong("true_cfg_scale must be a finite number".into());
        }
        if self.true_cfg_scale.is_some_and(|scale| scale > 1.0) && self.negative_prompt.is_none() {
            return wrong("true_cfg_scale above 1 needs a negative_prompt".into());
        }
        if let Some(edit) = &self.edit {
            edit.check()?;
        }
        if let Some(redux) = &self.redux {
            redux.check(&self.prompts, self.prompt_2.as_deref())?;
        }
        self.controls.iter().try_for_each(Control::check)?;
        self.pictured.iter().try_for_each(IpAdapterImage::check)?;
        if self.max_sequence_length.is_some_and(|n| !(2..=512).contains(&n)) {
            return wrong("max_sequence_length must be between 2 and 512".into());
        }
        Ok(())
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
