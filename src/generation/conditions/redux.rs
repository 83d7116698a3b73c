//! Pictures whose look goes into a drawing: Redux.
//!
//! SigLIP reads each, an embedder makes tokens of its states, and those stand behind T5's. With one picture of strength 1
//! that is the official code (`black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`, `prepare_redux`).

use std::cell::OnceCell;

use tch::{Kind, Tensor};

use crate::choice::choice;
use crate::error::{Error, ParameterProblem, Result};
use crate::generation::loader::Loader;
use crate::generation::resident::Resident;
use crate::image::Image;
use crate::math;
use crate::models::TransformerParams;
use crate::models::vision::{ReduxImageEncoder, SiglipVision};

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

    pub(in crate::generation) fn check(&self, prompts: &[String], prompt_2: Option<&str>) -> Result<()> {
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
        if let Some((key, text)) = not_read {
            return Err(ParameterProblem::new(key, text, &[]).into());
        }
        Ok(())
    }

    /// As many pictures' tokens stand behind the text's.
    pub(in crate::generation) fn blocks(&self) -> usize {
        if self.mix == ReduxMix::Append { self.images.len() } else { 1 }
    }
}

/// The two models that Redux reads pictures with.
#[derive(Debug)]
struct Vision {
    siglip: Resident<SiglipVision>,
    redux: Resident<ReduxImageEncoder>,
}

/// What reads the pictures of Redux.
#[derive(Debug, Default)]
pub(in crate::generation) struct ReduxEncoder {
    vision: Option<Vision>,
    /// Tokens of a picture.
    tokens: OnceCell<i64>,
}

impl ReduxEncoder {
    pub(in crate::generation) fn is_loaded(&self) -> bool {
        self.vision.is_some()
    }

    pub(in crate::generation) fn release(&mut self) {
        self.vision = None;
    }

    /// Whether there is what reads the pictures, and whether it fits the transformer, from the headers.
    ///
    /// # Errors
    /// What is missing, wrong with the files, or of another transformer.
    pub(in crate::generation) fn check(
        &self,
        loader: &Loader,
        transformer: &TransformerParams,
    ) -> Result<()> {
        let (siglip, redux) = loader.redux_sizes()?;
        let width = transformer.flux1()?.context_in_dim;
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

    /// Tokens that stand behind the text.
    pub(in crate::generation) fn tokens(&self, loader: &Loader, redux: &Redux) -> i64 {
        // Without the models there is nothing to be counted: `check` says what is wrong.
        let of_one = self.tokens.get().copied().or_else(|| {
            let (siglip, _) = loader.redux_sizes().ok()?;
            Some(*self.tokens.get_or_init(|| siglip.patches()))
        });
        of_one.unwrap_or(0) * redux.blocks() as i64
    }

    /// The tokens `[1, L, context_in_dim]` of each picture, in the pipeline's kind.
    pub(in crate::generation) fn encode(&mut self, loader: &Loader, redux: &Redux) -> Result<Vec<Tensor>> {
        let vision = match self.vision.take() {
            Some(vision) => vision,
            None => Vision { siglip: loader.load_image_encoder()?, redux: loader.load_redux()? },
        };
        let Vision { siglip, redux: embedder } = self.vision.insert(vision);
        let (siglip, embedder) = (siglip.model()?, embedder.model()?);
        let encode = |ReduxImage { image, .. }: &ReduxImage| {
            let pixels = siglip.config().preprocess(image)?.f_to_device(loader.settings.device)?;
            let states = siglip.forward(&pixels.f_to_kind(loader.text_kind())?)?;
            Ok(embedder.forward(&states)?.f_to_kind(loader.kind)?)
        };
        redux.images.iter().map(encode).collect()
    }
}

/// Puts the tokens of each picture behind the states of the text, `[1, L, D]`; also returns the pooled text, `[1, D]`.
pub(in crate::generation) fn mix(
    (txt, vec): (Tensor, Tensor),
    redux: &Redux,
    tokens: &[Tensor],
) -> Result<(Tensor, Tensor)> {
    let mut parts = vec![txt];
    match redux.mix {
        ReduxMix::Append => {
            for (tokens, image) in tokens.iter().zip(&redux.images) {
                parts.push(times(tokens, image.strength)?);
            }
            let txt = math::cat(&parts.iter().collect::<Vec<_>>(), 1)?;
            Ok((txt, vec))
        }
        ReduxMix::Sum => {
            let count = tokens.len() as i64;
            let tokens = Tensor::f_cat(tokens, 0)?;
            let txt = Tensor::f_cat(&[parts[0].f_repeat([count, 1, 1])?, tokens], 1)?;
            let factors = |of: fn(&ReduxImage) -> f64| {
                let factors: Vec<f64> = redux.images.iter().map(of).collect();
                Tensor::f_from_slice(&factors)?.f_to_kind(txt.kind())?.f_to_device(txt.device())
            };
            let strengths = factors(|image| image.strength)?.f_view([count, 1, 1])?;
            let pooled = factors(|image| image.pooled)?.f_view([count, 1])?;
            let vec = vec.f_repeat([count, 1])?.f_mul(&pooled)?;
            let sum = |x: &Tensor| x.f_sum_dim_intlist([0i64].as_slice(), true, None::<Kind>);
            Ok((sum(&txt.f_mul(&strengths)?)?, sum(&vec)?))
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
        let text = (number(10.0), Tensor::from_slice(&[7.0]).view([1, 1]));
        let pooled = if mix == ReduxMix::Sum { [0.5, 2.0] } else { [1.0; 2] };
        let images = strengths.into_iter().zip(pooled);
        let images =
            images.map(|(strength, pooled)| ReduxImage { image: image(), strength, pooled }).collect();
        let redux = Redux { images, mix, without_text: false };
        redux.check(&[], None).unwrap();
        let (txt, vec) = super::mix(text, &redux, &[number(1.0), number(2.0)]).unwrap();
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
            Err(error @ (Error::Request(_) | Error::Parameter(_))) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(refused(&Redux::new(Vec::new()), "").contains("no picture"));
        let one = Redux::new(vec![image()]);
        assert!(refused(&Redux { without_text: true, ..one.clone() }, "a cat").contains("is not read"));
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
