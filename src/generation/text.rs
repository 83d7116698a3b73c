//! Prompts to what the transformer reads of them.

use tch::{Kind, Tensor};

use super::loader::Loader;
use super::loras::Loras;
use super::resident::{Resident, not_loaded};
use super::{PartKind, Parts, Request, configs};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::models::text::{ClipText, T5Encoder, Tokenizer, Tokens};

/// A prompt as the transformer takes it.
pub(super) struct Encoded {
    pub(super) txt: Tensor,
    /// Of families that read pooled text.
    pub(super) vec: Option<Tensor>,
    pub(super) warnings: Vec<String>,
}

/// A prompt, and what the picture shall not show.
pub(super) struct Text {
    pub(super) prompt: Encoded,
    pub(super) negative: Option<Encoded>,
}

impl Text {
    pub(super) fn warnings(&self) -> Vec<String> {
        let negative = self.negative.iter().flat_map(|negative| &negative.warnings);
        let negative = negative.map(|warning| format!("negative prompt: {warning}"));
        self.prompt.warnings.iter().cloned().chain(negative).collect()
    }
}

/// The text encoders with their tokenizers.
#[derive(Debug)]
pub(super) struct TextEncoders {
    clip_tokenizer: Tokenizer,
    t5_tokenizer: Tokenizer,
    clip: Option<Resident<ClipText>>,
    t5: Option<Resident<T5Encoder>>,
}

impl TextEncoders {
    /// Reads the tokenizers.
    pub(super) fn open(parts: &Parts) -> Result<Self> {
        Ok(Self {
            clip_tokenizer: Tokenizer::clip(&parts.clip_tokenizer)?,
            t5_tokenizer: Tokenizer::t5(&parts.t5_tokenizer)?,
            clip: None,
            t5: None,
        })
    }

    pub(super) fn release(&mut self) {
        (self.clip, self.t5) = (None, None);
    }

    /// Opens what has weights.
    pub(super) fn open_parts(loader: &Loader) -> Result<[(PartKind, Checkpoint); 2]> {
        Ok([(PartKind::T5, loader.open_t5()?), (PartKind::Clip, loader.open_clip()?)])
    }

    /// Reads the settings beside the weights.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn check_configs(loader: &Loader) -> Result<()> {
        configs::clip(&loader.parts.clip, &loader.open_clip()?)?;
        configs::t5(&loader.parts.t5, &loader.open_t5()?)?;
        Ok(())
    }

    /// Whether a part is one of these, and loaded.
    pub(super) fn is_loaded(&self, part: PartKind) -> bool {
        match part {
            PartKind::T5 => self.t5.is_some(),
            PartKind::Clip => self.clip.is_some(),
            _ => false,
        }
    }

    /// Applies these LoRAs to what is loaded, in place of those from before.
    pub(super) fn adapt(&mut self, loras: &Loras) -> Result<()> {
        self.clip = self.clip.take().map(|clip| clip.adapt(&loras.terms.clip)).transpose()?;
        self.t5 = self.t5.take().map(|t5| t5.adapt(&loras.terms.t5)).transpose()?;
        Ok(())
    }

    /// The states of T5 and the pooled vector of CLIP, each of its own prompt. Weights are T5's alone, as in ComfyUI: the
    /// pooled vector is that of CLIP's tokens without them.
    pub(super) fn encode(
        &mut self,
        loader: &Loader,
        loras: &Loras,
        (for_clip, for_t5): (&str, &str),
        request: &Request,
    ) -> Result<Encoded> {
        let length = request.max_sequence_length.unwrap_or(512);
        if self.t5.is_none() {
            self.t5 = Some(load_t5(loader)?.adapt(&loras.terms.t5)?);
        }
        if self.clip.is_none() {
            self.clip = Some(load_clip(loader)?.adapt(&loras.terms.clip)?);
        }
        let (Some(t5), Some(clip)) = (&self.t5, &self.clip) else { return Err(not_loaded()) };
        let (t5, clip) = (t5.model()?, clip.model()?);
        let ids = |tokens: &Tokens| {
            let ids = Tensor::f_from_slice(&tokens.ids)?.f_unsqueeze(0)?;
            Ok::<_, Error>(ids.f_to_device(loader.settings.device)?)
        };

        let mut warnings = request.warnings_of(for_t5);
        if for_clip != for_t5 {
            warnings.extend(request.warnings_of(for_clip));
        }
        let (tokens, weights) = read(&self.t5_tokenizer, for_t5, request, length)?;
        warnings.extend(cut("T5", &tokens));
        let mut txt = t5.forward(&ids(&tokens)?)?;
        if weights.iter().any(|weight| *weight != 1.0) {
            let empty = t5.forward(&ids(&self.t5_tokenizer.encode("", length)?)?)?;
            txt = weigh(&txt, &empty, &weights)?;
        }
        let most = clip.config().max_position_embeddings.max(2) as usize;
        let (tokens, _) = read(&self.clip_tokenizer, for_clip, request, most)?;
        warnings.extend(cut("CLIP", &tokens));
        let vec = clip.forward(&ids(&tokens)?)?.pooler_output;
        Ok(Encoded { txt: txt.f_to_kind(loader.kind)?, vec: Some(vec.f_to_kind(loader.kind)?), warnings })
    }
}

fn load_clip(loader: &Loader) -> Result<Resident<ClipText>> {
    let checkpoint = loader.open_clip()?;
    let config = configs::clip(&loader.parts.clip, &checkpoint)?;
    loader.load(loader.text_kind(), checkpoint, |vs| ClipText::new(vs, &config))
}

fn load_t5(loader: &Loader) -> Result<Resident<T5Encoder>> {
    let checkpoint = loader.open_t5()?;
    let config = configs::t5(&loader.parts.t5, &checkpoint)?;
    loader.load(loader.text_kind(), checkpoint, |vs| T5Encoder::new(vs, &config))
}

/// The tokens of a prompt, and the weight of each.
fn read(tokenizer: &Tokenizer, prompt: &str, request: &Request, length: usize) -> Result<(Tokens, Vec<f64>)> {
    match request.weighted(prompt) {
        Some(weighted) => tokenizer.encode_weighted(&weighted, length),
        None => Ok((tokenizer.encode(prompt, length)?, Vec::new())),
    }
}

fn cut(name: &str, tokens: &Tokens) -> Option<String> {
    let Tokens { ids, cut, .. } = tokens;
    let length = ids.len();
    (*cut > 0).then(|| format!("{name} reads {length} tokens: the last {cut} of the prompt were cut off"))
}

/// The states `[1, L, D]` of the tokens that weigh something else than 1, led away from those of an empty prompt, or
/// towards them.
///
/// Source: ComfyUI, `comfy/sd1_clip.py`, `ClipTokenWeightEncoder.encode_token_weights`.
fn weigh(states: &Tensor, empty: &Tensor, weights: &[f64]) -> Result<Tensor> {
    let (kind, device) = (states.kind(), states.device());
    let is_weighed: Vec<bool> = weights.iter().map(|weight| *weight != 1.0).collect();
    let column = |tensor: Tensor| tensor.f_reshape([1, -1, 1])?.f_to_device(device);
    let is_weighed = column(Tensor::f_from_slice(&is_weighed)?)?;
    let weights = column(Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?)?;
    let (from, to) = (empty.f_to_kind(Kind::Float)?, states.f_to_kind(Kind::Float)?);
    let weighed = from.f_add(&to.f_sub(&from)?.f_mul(&weights)?)?;
    Ok(weighed.f_to_kind(kind)?.f_where_self(&is_weighed, states)?)
}
