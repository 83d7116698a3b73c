//! Pictures whose look goes into a drawing: Redux.
//!
//! SigLIP reads each, an embedder makes tokens of its states, and those stand behind T5's. With one picture of strength 1
//! that is the official code (`black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`, `prepare_redux`).

use tch::{Kind, Tensor};

use super::prompts::Encoded;
use super::resident::Resident;
use super::{Pipeline, Request};
use crate::choice::choice;
use crate::error::{Error, ParameterProblem, Result};
use crate::image::Image;
use crate::math;
use crate::models::vision::{ReduxConfig, ReduxImageEncoder, SiglipConfig, SiglipVision};

/// A picture that a drawing shall look like.
#[derive(Debug, Clone, PartialEq)]
pub struct ReduxImage {
    /// Of any size and shape; it is squeezed into the square that SigLIP reads.
    pub image: Image,
    /// What its tokens are multiplied by: 1 as Redux was trained, 0 none of it.
    pub strength: f64,
    /// What the pooled text is multiplied by for this picture. Of [`ReduxMix::Sum`] alone.
    pub pooled: f64,
}

impl ReduxImage {
    /// As Redux was trained.
    pub fn new(image: Image) -> Self {
        Self { image, strength: 1.0, pooled: 1.0 }
    }
}

choice! {
    /// How tokens of several pictures, and of the text, come together.
    #[derive(Default)]
    pub enum ReduxMix {
        /// Behind the text, one picture after the other: the official code with one picture, and what ComfyUI's style models
        /// do with several, and with their strengths ("multiply").
        Append = "append", default;
        /// Each picture behind the text, all of that times its strength, and the sum over the pictures; of the pooled text
        /// the sum of its multiples. So diffusers 0.42.1 does it, `pipelines/flux/pipeline_flux_prior_redux.py`, with
        /// `prompt_embeds_scale` and `pooled_prompt_embeds_scale`. The sequence is as long as with one picture.
        Sum = "sum";
    }
}

/// Pictures that a drawing shall look like, with its prompt or without one.
#[derive(Debug, Clone, PartialEq)]
pub struct Redux {
    /// One or more.
    pub images: Vec<ReduxImage>,
    /// How they come together.
    pub mix: ReduxMix,
    /// Zeros stand in place of the text's states, as in diffusers where the pipeline has no text encoders; the prompt must
    /// be empty. Otherwise also an empty prompt is read, as the official code does it.
    pub without_text: bool,
}

impl Redux {
    /// Of these pictures, each as Redux was trained, one after the other.
    pub fn new(images: Vec<Image>) -> Self {
        let images = images.into_iter().map(ReduxImage::new).collect();
        Self { images, mix: ReduxMix::Append, without_text: false }
    }

    pub(super) fn check(&self, prompts: &[String], prompt_2: Option<&str>) -> Result<()> {
        let wrong = |text: &str| Err(Error::Request(text.into()));
        if self.images.is_empty() {
            return wrong("Redux has no picture to look at");
        }
        if self.images.iter().any(|image| !image.strength.is_finite() || !image.pooled.is_finite()) {
            return wrong("strengths of Redux must be finite numbers");
        }
        if self.mix == ReduxMix::Append && self.images.iter().any(|image| image.pooled != 1.0) {
            let text = "{pooled_prompt_embeds_scale} is for a sum: set {redux_mix} to `sum`, or leave it out";
            return Err(ParameterProblem::new("pooled_prompt_embeds_scale", text, &[]).into());
        }
        let is_read = |text: &str| self.without_text && !text.is_empty();
        let not_read = if prompts.iter().any(|prompt| is_read(prompt)) {
            Some(("prompts", "{prompts} is not read with {redux_without_text}: leave one of both out"))
        } else if prompt_2.is_some_and(is_read) {
            Some(("prompt_2", "{prompt_2} is not read with {redux_without_text}: leave one of both out"))
        } else {
            None
        };
        match not_read {
            Some((key, text)) => return Err(ParameterProblem::new(key, text, &[]).into()),
            None => {}
        }
        Ok(())
    }

    /// As many pictures' tokens stand behind the text's.
    pub(super) fn blocks(&self) -> usize {
        if self.mix == ReduxMix::Append { self.images.len() } else { 1 }
    }
}

/// The two models that Redux reads pictures with.
#[derive(Debug)]
pub(super) struct Vision {
    siglip: Resident<SiglipVision>,
    redux: Resident<ReduxImageEncoder>,
}

impl Pipeline {
    /// Whether what the request's pictures are read with is there, and fits the transformer.
    pub(super) fn check_redux(&self, request: &Request) -> Result<()> {
        if request.redux.is_none() { Ok(()) } else { self.check_vision() }
    }

    /// Whether there is what reads the pictures of Redux, from its headers.
    ///
    /// # Errors
    /// What is missing, wrong with the files, or of another transformer.
    pub fn check_vision(&self) -> Result<()> {
        let (siglip, redux) = self.vision_sizes()?;
        let width = self.params.context_in_dim;
        if redux.txt_in_features != width {
            return Err(Error::Config(format!(
                "the Redux embedder makes tokens of {}, but the transformer reads text of {width}",
                redux.txt_in_features
            )));
        }
        if redux.redux_dim != siglip.hidden_size {
            return Err(Error::Config(format!(
                "the Redux embedder reads states of {}, but the image encoder's are {} wide",
                redux.redux_dim, siglip.hidden_size
            )));
        }
        Ok(())
    }

    /// The sizes of both models, from their headers.
    fn vision_sizes(&self) -> Result<(SiglipConfig, ReduxConfig)> {
        let access = self.settings.access;
        let redux = self.parts.open_redux(access)?;
        let siglip = self.parts.siglip_config(&self.parts.open_image_encoder(access)?)?;
        Ok((siglip, ReduxConfig::from_shapes(|name| redux.shape(name))?))
    }

    /// Tokens that the request's Redux pictures add behind the text.
    pub(super) fn redux_tokens(&self, request: &Request) -> i64 {
        let Some(redux) = request.redux.as_deref() else { return 0 };
        // Without the models there is nothing to be counted: `check_redux` says what is wrong.
        let of_one = self.redux_tokens.get().copied().or_else(|| {
            let (siglip, _) = self.vision_sizes().ok()?;
            Some(*self.redux_tokens.get_or_init(|| siglip.patches()))
        });
        of_one.unwrap_or(0) * redux.blocks() as i64
    }

    /// The tokens `[1, L, context_in_dim]` of each of the request's Redux pictures, in the pipeline's kind.
    pub(super) fn encode_redux_images(&mut self, request: &Request) -> Result<Vec<Tensor>> {
        let Some(redux) = request.redux.as_deref() else { return Ok(Vec::new()) };
        let kind = self.text_kind();
        let vision = match self.vision.take() {
            Some(vision) => vision,
            None => Vision {
                siglip: self.parts.load_image_encoder(&self.settings, kind)?,
                redux: self.parts.load_redux(&self.settings, kind)?,
            },
        };
        let Vision { siglip, redux: embedder } = self.vision.insert(vision);
        siglip.checkpoint.check_unchanged()?;
        embedder.checkpoint.check_unchanged()?;
        let tokens = |ReduxImage { image, .. }: &ReduxImage| {
            let pixels = siglip.model.config().preprocess(image)?.f_to_device(self.settings.device)?;
            let states = siglip.model.forward(&pixels.f_to_kind(kind)?)?;
            Ok(embedder.model.forward(&states)?.f_to_kind(self.kind)?)
        };
        redux.images.iter().map(tokens).collect()
    }

    /// What stands for text where there is none: zeros.
    pub(super) fn no_text(&self, request: &Request) -> Result<Encoded> {
        let options = (self.kind, self.settings.device);
        let length = request.max_sequence_length.unwrap_or(512) as i64;
        let txt = Tensor::f_zeros([1, length, self.params.context_in_dim], options)?;
        let vec = Tensor::f_zeros([1, self.params.vec_in_dim], options)?;
        Ok(Encoded { txt, vec, warnings: Vec::new() })
    }
}

/// The text with what was seen behind it: the tokens of each picture.
pub(super) fn beside(text: Encoded, redux: &Redux, seen: &[Tensor]) -> Result<Encoded> {
    let Encoded { txt, vec, warnings } = text;
    let mut parts = vec![txt];
    match redux.mix {
        ReduxMix::Append => {
            for (tokens, image) in seen.iter().zip(&redux.images) {
                parts.push(times(tokens, image.strength)?);
            }
            let txt = math::cat(&parts.iter().collect::<Vec<_>>(), 1)?;
            Ok(Encoded { txt, vec, warnings })
        }
        ReduxMix::Sum => {
            let count = seen.len() as i64;
            let seen = Tensor::f_cat(seen, 0)?;
            let txt = Tensor::f_cat(&[parts[0].f_repeat([count, 1, 1])?, seen], 1)?;
            let factors = |of: fn(&ReduxImage) -> f64| {
                let factors: Vec<f64> = redux.images.iter().map(of).collect();
                Tensor::f_from_slice(&factors)?.f_to_kind(txt.kind())?.f_to_device(txt.device())
            };
            let strengths = factors(|image| image.strength)?.f_view([count, 1, 1])?;
            let pooled = factors(|image| image.pooled)?.f_view([count, 1])?;
            let vec = vec.f_repeat([count, 1])?.f_mul(&pooled)?;
            let sum = |x: &Tensor| x.f_sum_dim_intlist([0i64].as_slice(), true, None::<Kind>);
            Ok(Encoded { txt: sum(&txt.f_mul(&strengths)?)?, vec: sum(&vec)?, warnings })
        }
    }
}

/// As it is where the factor is 1.
fn times(x: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 { Ok(x.shallow_clone()) } else { Ok(x.f_mul_scalar(factor)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image { width: 1, height: 1, rgb: vec![0; 3] }
    }

    fn mixed(mix: ReduxMix, strengths: [f64; 2]) -> (Vec<f64>, Vec<f64>) {
        let number = |x: f64| Tensor::from_slice(&[x]).view([1, 1, 1]);
        let text =
            Encoded { txt: number(10.0), vec: Tensor::from_slice(&[7.0]).view([1, 1]), warnings: vec![] };
        let pooled = if mix == ReduxMix::Sum { [0.5, 2.0] } else { [1.0; 2] };
        let images = strengths.into_iter().zip(pooled);
        let images =
            images.map(|(strength, pooled)| ReduxImage { image: image(), strength, pooled }).collect();
        let redux = Redux { images, mix, without_text: false };
        redux.check(&[], None).unwrap();
        let Encoded { txt, vec, .. } = beside(text, &redux, &[number(1.0), number(2.0)]).unwrap();
        assert_eq!(txt.size(), [1, 1 + redux.blocks() as i64, 1]);
        (Vec::try_from(txt.view([-1])).unwrap(), Vec::try_from(vec.view([-1])).unwrap())
    }

    #[test]
    fn pictures_stand_behind_the_text_or_are_summed_with_it() {
        assert_eq!(mixed(ReduxMix::Append, [1.0, 1.0]), (vec![10.0, 1.0, 2.0], vec![7.0]));
        assert_eq!(mixed(ReduxMix::Append, [0.5, 3.0]), (vec![10.0, 0.5, 6.0], vec![7.0]));
        // 0.5 · 10 + 3 · 10, 0.5 · 1 + 3 · 2, and 0.5 · 7 + 2 · 7.
        assert_eq!(mixed(ReduxMix::Sum, [0.5, 3.0]), (vec![35.0, 6.5], vec![17.5]));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refused = |redux: &Redux, prompt: &str| match redux.check(&[prompt.to_string()], None) {
            Err(Error::Request(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refused(&Redux::new(Vec::new()), "").contains("no picture"));
        let one = Redux::new(vec![image()]);
        assert!(refused(&Redux { without_text: true, ..one.clone() }, "a cat").contains("empty"));
        let with = |strength, pooled| Redux {
            images: vec![ReduxImage { image: image(), strength, pooled }],
            ..one.clone()
        };
        assert!(refused(&with(f64::NAN, 1.0), "").contains("finite"));
        assert!(refused(&with(1.0, 0.5), "").contains("pooled"));
        assert!(Redux { mix: ReduxMix::Sum, ..with(1.0, 0.5) }.check(&["a cat".into()], None).is_ok());
        assert!(Redux { without_text: true, ..one }.check(&[String::new()], None).is_ok());
    }
}
