//! Prompts to what the transformer reads of them.

use tch::{Kind, Tensor};

use super::draw::not_loaded;
use super::{Pipeline, Request, redux};
use crate::error::{Error, Result};
use crate::models::text::{Tokenizer, Tokens};

/// A prompt as the transformer takes it.
pub(super) struct Encoded {
    pub(super) txt: Tensor,
    pub(super) vec: Tensor,
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

impl Pipeline {
    /// Those of a request, with what Redux sees behind each.
    pub(super) fn texts_of(&mut self, request: &Request) -> Result<Vec<Text>> {
        let seen = self.encode_redux_images(request)?;
        request.prompts.iter().map(|prompt| self.text(prompt, request, &seen)).collect()
    }

    /// `seen`: the tokens of Redux's pictures. The negative prompt stands alone, as in diffusers and in ComfyUI.
    fn text(&mut self, prompt: &str, request: &Request, seen: &[Tensor]) -> Result<Text> {
        let mut prompt = match &request.redux {
            Some(redux) if redux.without_text => self.no_text(request)?,
            _ => self.encode(prompt, request.prompt_2.as_deref().unwrap_or(prompt), request)?,
        };
        if let Some(redux) = &request.redux {
            prompt = redux::beside(prompt, redux, seen)?;
        }
        let negative = request.scale().and(request.negative_prompt.as_deref());
        let negative = negative.map(|negative| self.encode(negative, negative, request)).transpose()?;
        Ok(Text { prompt, negative })
    }

    /// The states of T5 and the pooled vector of CLIP, each of its own prompt. Weights are T5's alone, as in ComfyUI: the
    /// pooled vector is that of CLIP's tokens without them.
    fn encode(&mut self, for_clip: &str, for_t5: &str, request: &Request) -> Result<Encoded> {
        let device = self.settings.device;
        let length = request.max_sequence_length.unwrap_or(512);
        let kind = self.text_kind();
        if self.t5.is_none() {
            self.t5 = Some(self.parts.load_t5(&self.settings, kind)?.adapt(&self.loras.t5)?);
        }
        if self.clip.is_none() {
            self.clip = Some(self.parts.load_clip(&self.settings, kind)?.adapt(&self.loras.clip)?);
        }
        let (Some(t5), Some(clip)) = (&self.t5, &self.clip) else { return Err(not_loaded()) };
        t5.checkpoint.check_unchanged()?;
        clip.checkpoint.check_unchanged()?;
        let ids = |tokens: &Tokens| {
            Ok::<_, Error>(Tensor::f_from_slice(&tokens.ids)?.f_unsqueeze(0)?.f_to_device(device)?)
        };

        let mut warnings = request.warnings_of(for_t5);
        if for_clip != for_t5 {
            warnings.extend(request.warnings_of(for_clip));
        }
        let (tokens, weights) = read(&self.t5_tokenizer, for_t5, request, length)?;
        warnings.extend(cut("T5", &tokens));
        let mut txt = t5.model.forward(&ids(&tokens)?)?;
        if weights.iter().any(|weight| *weight != 1.0) {
            let empty = t5.model.forward(&ids(&self.t5_tokenizer.encode("", length)?)?)?;
            txt = weigh(&txt, &empty, &weights)?;
        }
        let most = clip.model.config().max_position_embeddings.max(2) as usize;
        let (tokens, _) = read(&self.clip_tokenizer, for_clip, request, most)?;
        warnings.extend(cut("CLIP", &tokens));
        let vec = clip.model.forward(&ids(&tokens)?)?.pooler_output;
        Ok(Encoded { txt: txt.f_to_kind(self.kind)?, vec: vec.f_to_kind(self.kind)?, warnings })
    }

    /// T5 overflows in f16, so there the text encoders run in bf16.
    pub(super) fn text_kind(&self) -> Kind {
        if self.kind == Kind::Half { Kind::BFloat16 } else { self.kind }
    }
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
