//! Which tensors of a file a model reads. Many files hold more: both towers of CLIP, T5's decoder, what training left.

use super::names;
use super::source::Source;
use super::{
    AUTOENCODER_DIFFUSERS, CLIP_OPENAI, CLIP_VISION_OPENAI, CONTROLNET_DIFFUSERS, Checkpoint, Contained,
    DEPTH_TRANSFORMERS_5, Family, Layout, NORMS_SPELLED_WEIGHT, T5_LLAMA, TAESD_DECODER, TAESD_ENCODER,
    transformer_diffusers,
};

impl Checkpoint {
    /// The same tensors under the official names, whatever layout was found: diffusers' transformers, ControlNets and
    /// autoencoders, ComfyUI's prefixes, the scales of norms that are spelled `.weight`, T5's embedding under any of its
    /// names and T5 in llama.cpp's, CLIP in OpenAI's names and with and without `text_model.`, and SigLIP with and without
    /// `vision_model.`. What the model does not read is left aside: see [`Checkpoint::part`]. Of several models in one
    /// file, nothing is taken.
    pub fn official(self) -> Self {
        match &self.contained()[..] {
            [Contained { prefix, family }] => self.part(prefix, family),
            _ => self,
        }
    }

    /// One of the models that [`Checkpoint::contained`] found, under its official names; of a file with a whole CLIP also
    /// its vision model, [`Family::ClipVision`].
    ///
    /// Left aside is what stands beside it: the vision tower and the projections of CLIP, the decoder and the head of T5,
    /// the losses, averages and optimizer states of a training. [`Checkpoint::left_aside`] names all of it, and
    /// [`Checkpoint::warnings`] says it. Within the model every tensor stays, and so do tensors of a file with several
    /// models that belong to none of them, so that loading reports what is unknown.
    pub fn part(mut self, prefix: &str, family: &Family) -> Self {
        let found = self.contained();
        let (bare, others): (Vec<&str>, Vec<&str>) = {
            let found = found.iter().map(|model| model.prefix.as_str()).filter(|p| *p != prefix);
            found.partition(|other| other.is_empty())
        };
        // ComfyUI keeps what belongs to a text encoder, but is no part of its model, one level above.
        let above = prefix.strip_suffix("transformer.").unwrap_or(prefix);
        let (mut outside, mut strangers) = (Vec::new(), Vec::new());
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        let mine = |(name, source): (String, Source)| match name.strip_prefix(prefix) {
            Some(rest) if !prefix.is_empty() => Some((rest.to_string(), source)),
            _ if others.iter().any(|other| name.starts_with(other)) => None,
            // The model without a prefix answers for what has none.
            None if !bare.is_empty() => None,
            None if prefix == OPEN_CLIP_TEXT || is_left_by_training(&name) => {
                outside.push(name);
                None
            }
            None if BESIDE_TEXT_ENCODERS.iter().any(|end| name.ends_with(end)) => {
                if name.starts_with(above) {
                    outside.push(name);
                }
                None
            }
            None => {
                strangers.push(name.clone());
                Some((name, source))
            }
            Some(_) => Some((name, source)),
        };
        self.tensors = tensors.filter_map(mine).collect();
        self.note_left_aside("", family, outside);
        let embeddings = ["shared.weight", "encoder.embed_tokens.weight"];
        if matches!(family, Family::T5 { .. }) && embeddings.iter().all(|name| self.shape(name).is_none()) {
            // One tensor under several names, of which a file may keep any.
            self = self.alias("decoder.embed_tokens.weight", "shared.weight");
        }
        let tower = self.tower(family);
        let siglip = *family == Family::Siglip && self.shape("embeddings.patch_embedding.bias").is_some();
        let beside = |name: &str| match (family, tower) {
            _ if is_left_by_training(name) => true,
            _ if strangers.iter().any(|stranger| stranger == name) => false,
            (_, Some(tower)) => !tower.iter().any(|start| name.starts_with(start)) || UNUSED.contains(&name),
            (Family::Siglip, _) if siglip => names::is_beside_siglip(&format!("vision_model.{name}")),
            (Family::Siglip, _) => names::is_beside_siglip(name),
            _ => false,
        };
        let aside: Vec<String> = self.names().filter(|name| beside(name)).map(String::from).collect();
        let mut part = self.without(&aside);
        part.note_left_aside(prefix, family, aside);
        part.under_official_names(family)
    }

    /// The beginnings of the names of a model that often has others beside it.
    fn tower(&self, family: &Family) -> Option<&'static [&'static str]> {
        let has = |name: &str| self.shape(name).is_some();
        Some(match family {
            Family::Clip if has("text_model.embeddings.token_embedding.weight") => &["text_model."],
            Family::Clip if has("embeddings.token_embedding.weight") => {
                &["embeddings.", "encoder.", "final_layer_norm."]
            }
            Family::Clip => &["token_embedding.", "positional_embedding", "transformer.", "ln_final."],
            Family::ClipVision if has("vision_model.embeddings.class_embedding") => {
                &["vision_model.", "visual_projection."]
            }
            Family::ClipVision => &["visual."],
            Family::T5 { layout: Layout::Llama } => &["enc.", "token_embd."],
            Family::T5 { .. } if has("enc.blk.0.attn_q.weight") => &["enc.", "token_embd."],
            Family::T5 { .. } => &["encoder.", "shared."],
            Family::AutoEncoder { .. } => &["encoder.", "decoder.", "bn.", "quant_conv.", "post_quant_conv."],
            _ => return None,
        })
    }

    fn note_left_aside(&mut self, prefix: &str, family: &Family, names: Vec<String>) {
        if !names.is_empty() {
            let file = self.files().first().map(|path| path.display().to_string()).unwrap_or_default();
            let (family, names) = (family.name(), summary(&names));
            self.warnings.push(format!("{file}: left aside, since the {family} does not read it: {names}"));
        }
        self.left_aside.extend(names.into_iter().map(|name| format!("{prefix}{name}")));
    }

    /// A single model under its official names.
    fn under_official_names(self, family: &Family) -> Self {
        let diffusers = family.layout() == Some(Layout::Diffusers)
            || self.shape("transformer_blocks.0.attn.norm_added_k.weight").is_some()
            || self.shape("encoder.down_blocks.0.resnets.0.conv1.weight").is_some();
        match family {
            Family::Transformer { family, .. } if diffusers => self.renamed(transformer_diffusers(*family)),
            Family::ControlNet { .. } if diffusers => self.renamed(&CONTROLNET_DIFFUSERS),
            Family::Transformer { .. } | Family::ControlNet { .. } => self.renamed(&NORMS_SPELLED_WEIGHT),
            Family::AutoEncoder { .. } if diffusers => self.renamed(&AUTOENCODER_DIFFUSERS),
            Family::TinyAutoEncoder { .. } if self.shape("0.weight").is_some() => {
                self.renamed(&TAESD_ENCODER)
            }
            Family::TinyAutoEncoder { .. } if self.shape("1.weight").is_some() => {
                self.renamed(&TAESD_DECODER)
            }
            // The token stood for hidden patches in training.
            Family::Depth => self.renamed(&DEPTH_TRANSFORMERS_5).without(&["backbone.embeddings.mask_token"]),
            Family::T5 { .. } => {
                self.renamed(&T5_LLAMA).alias("encoder.embed_tokens.weight", "shared.weight")
            }
            // Position ids count from 0, in every file.
            Family::ClipVision => {
                self.renamed(&CLIP_VISION_OPENAI).without(&["vision_model.embeddings.position_ids"])
            }
            Family::Clip => {
                let bare = self.shape("embeddings.token_embedding.weight").is_some();
                let clip = if bare { self.prefixed("text_model.") } else { self.renamed(&CLIP_OPENAI) };
                clip.with_long_positions().without(&["text_model.embeddings.position_ids"])
            }
            Family::Siglip => {
                let bare = self.shape("embeddings.patch_embedding.bias").is_some();
                if bare { self.prefixed("vision_model.") } else { self }
            }
            _ => self,
        }
    }

    /// LongCLIP's positions as one table. It was trained with two of 248: the first is read for the first 20 tokens, the
    /// second for those after them.
    ///
    /// Source: `beichenzbc/Long-CLIP`, `model/model_longclip.py`, `mask1` and `mask2`.
    fn with_long_positions(mut self) -> Self {
        const KEPT: usize = 20;
        let [first, second] = ["position_embedding.weight", "position_embedding_res"]
            .map(|name| format!("text_model.embeddings.{name}"));
        let joined = match (self.tensors.get(&first), self.tensors.get(&second)) {
            (Some(one), Some(other)) if one.shape == other.shape && one.shape.len() == 2 => {
                let rows = one.shape[0] as usize;
                Source::joined(&[one.rows(0..KEPT.min(rows)), other.rows(KEPT.min(rows)..rows)])
            }
            _ => return self,
        };
        self.tensors.remove(&second);
        self.tensors.insert(first, joined);
        self
    }
}

/// What stands before the text model in files of open_clip whose towers were made separately.
pub(super) const OPEN_CLIP_TEXT: &str = "text.";

/// What ComfyUI keeps of a text encoder beside its model.
const BESIDE_TEXT_ENCODERS: [&str; 4] =
    [".logit_scale", ".spiece_model", ".text_projection", ".text_projection.weight"];

/// What some writers keep below the name of CLIP's text model, though it is no part of it.
const UNUSED: [&str; 2] = ["text_model.text_projection.weight", "text_model.logit_scale"];

/// The first words of the names under which trainers keep what is not the model: optimizers, schedules, counters, losses
/// with their own networks, running averages of the weights, and the times of older samplers.
const TRAINING: [&str; 40] = [
    "alphas_cumprod",
    "amp_scaling_state",
    "betas",
    "callbacks",
    "discriminator",
    "ema",
    "ema_model",
    "ema_state_dict",
    "epoch",
    "exp_avg",
    "exp_avg_sq",
    "global_step",
    "global_steps",
    "grad_scaler",
    "hparams",
    "hyper_parameters",
    "iteration",
    "log_sigmas",
    "loops",
    "loss",
    "loss_fn",
    "losses",
    "lr_scheduler",
    "lr_schedulers",
    "model_ema",
    "model_sampling",
    "momentum_buffer",
    "native_amp_scaling_state",
    "optim",
    "param_groups",
    "perceptual_loss",
    "random_states",
    "rng_state",
    "scaler",
    "schedulers",
    "sigmas",
    "train_state",
    "trainer",
    "v_pred",
    "ztsnr",
];

/// The last words of the names under which optimizers keep a parameter's state.
const OPTIMIZER_STATES: [&str; 4] = [".exp_avg", ".exp_avg_sq", ".max_exp_avg_sq", ".momentum_buffer"];

/// Whether a tensor was left by the training, and is no weight.
fn is_left_by_training(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    TRAINING.contains(&first)
        || ["optimizer", "lr_scheduler", "ema_"].iter().any(|start| first.starts_with(start))
        || OPTIMIZER_STATES.iter().any(|end| name.ends_with(end))
}

/// The names in a few words: `vision_model.* (391 tensors), logit_scale`.
fn summary(names: &[String]) -> String {
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_string();
    let mut groups: Vec<(String, usize, &str)> = Vec::new();
    for name in names {
        match groups.iter_mut().find(|(group, ..)| *group == first(name)) {
            Some((_, count, _)) => *count += 1,
            None => groups.push((first(name), 1, name)),
        }
    }
    let more = groups.len().saturating_sub(MOST_NAMED);
    let mut words: Vec<String> = groups
        .into_iter()
        .take(MOST_NAMED)
        .map(|(group, count, name)| match count {
            1 => name.chars().take(80).collect(),
            _ => format!("{}.* ({count} tensors)", group.chars().take(80).collect::<String>()),
        })
        .collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

/// How many groups of names a warning lists.
const MOST_NAMED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_training_leaves_is_told_from_weights() {
        for name in [
            "loss.discriminator.main.0.weight",
            "loss.logvar",
            "model_ema.decay",
            "model_ema.encoderconv_inweight",
            "ema_model.encoder.conv_in.weight",
            "optimizer_states.0.state.0.exp_avg",
            "optimizer.param_groups.0.lr",
            "lr_schedulers.0.last_epoch",
            "global_step",
            "encoder.conv_in.weight.exp_avg_sq",
        ] {
            assert!(is_left_by_training(name), "{name}");
        }
        for name in [
            "encoder.conv_in.weight",
            "double_blocks.0.img_attn.qkv.weight",
            "time_in.in_layer.weight",
            "shared.weight",
            "embeddings.patch_embedding.bias",
            "text_model.final_layer_norm.weight",
            "logit_scale",
        ] {
            assert!(!is_left_by_training(name), "{name}");
        }
    }

    #[test]
    fn a_summary_counts_what_has_a_first_word_in_common() {
        let names = ["vision_model.a", "vision_model.b.c", "logit_scale", "visual_projection.weight"];
        let names = names.map(String::from);
        assert_eq!(summary(&names), "vision_model.* (2 tensors), logit_scale, visual_projection.weight");
        let many: Vec<String> = (0..20).map(|i| format!("a{i}")).collect();
        assert!(summary(&many).ends_with("a7, 12 more"), "{}", summary(&many));
    }
}
