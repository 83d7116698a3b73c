//! Other layouts' names as data: what becomes of each of their tensors under the official name.

use std::collections::BTreeMap;

use super::source::Source;

/// One rule. `{}` in a pattern stands for a number, and for the same number in the other pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rename {
    /// A module's `weight` and `bias`, unchanged: theirs, official.
    Same(&'static str, &'static str),
    /// One tensor, unchanged: theirs, official.
    Tensor(&'static str, &'static str),
    /// Modules whose rows are joined in this order: theirs, official.
    Concat(&'static [&'static str], &'static str),
    /// A module whose halves of rows change places: theirs, official.
    SwapHalves(&'static str, &'static str),
    /// As [`Rename::Same`], with the second number counted from the other end: theirs, official. The official
    /// autoencoder counts its decoder's levels from the largest pictures, diffusers from the smallest.
    Reversed(&'static str, &'static str),
    /// As [`Rename::Same`], with the first number so much lower: theirs, official. The original decoder of TAESD counts what
    /// clamps the latent, diffusers' does not.
    Shifted(&'static str, &'static str, usize),
    /// A linear layer `[out, in]` that officially is a 1×1 convolution `[out, in, 1, 1]`: theirs, official.
    Pointwise(&'static str, &'static str),
}

/// The rules of one layout.
#[derive(Debug, Clone, Copy)]
pub struct Renames(pub &'static [Rename]);

use Rename::{Concat, Pointwise, Reversed, Same, Shifted, SwapHalves, Tensor as One};

const IMG_QKV: &[&str] = &[
    "transformer_blocks.{}.attn.to_q",
    "transformer_blocks.{}.attn.to_k",
    "transformer_blocks.{}.attn.to_v",
];
const TXT_QKV: &[&str] = &[
    "transformer_blocks.{}.attn.add_q_proj",
    "transformer_blocks.{}.attn.add_k_proj",
    "transformer_blocks.{}.attn.add_v_proj",
];

/// diffusers' `FluxTransformer2DModel`.
pub const FLUX1_DIFFUSERS: Renames = Renames(&[
    Same("x_embedder", "img_in"),
    Same("context_embedder", "txt_in"),
    Same("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    Same("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    Same("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    Same("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    Same("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    Same("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    Same("transformer_blocks.{}.norm1.linear", "double_blocks.{}.img_mod.lin"),
    Same("transformer_blocks.{}.norm1_context.linear", "double_blocks.{}.txt_mod.lin"),
    Concat(IMG_QKV, "double_blocks.{}.img_attn.qkv"),
    Concat(TXT_QKV, "double_blocks.{}.txt_attn.qkv"),
    One("transformer_blocks.{}.attn.norm_q.weight", "double_blocks.{}.img_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_k.weight", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_q.weight", "double_blocks.{}.txt_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_k.weight", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    Same("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj"),
    Same("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj"),
    Same("transformer_blocks.{}.ff.net.0.proj", "double_blocks.{}.img_mlp.0"),
    Same("transformer_blocks.{}.ff.net.2", "double_blocks.{}.img_mlp.2"),
    Same("transformer_blocks.{}.ff_context.net.0.proj", "double_blocks.{}.txt_mlp.0"),
    Same("transformer_blocks.{}.ff_context.net.2", "double_blocks.{}.txt_mlp.2"),
    Same("single_transformer_blocks.{}.norm.linear", "single_blocks.{}.modulation.lin"),
    Concat(
        &[
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
            "single_transformer_blocks.{}.proj_mlp",
        ],
        "single_blocks.{}.linear1",
    ),
    Same("single_transformer_blocks.{}.proj_out", "single_blocks.{}.linear2"),
    One("single_transformer_blocks.{}.attn.norm_q.weight", "single_blocks.{}.norm.query_norm.scale"),
    One("single_transformer_blocks.{}.attn.norm_k.weight", "single_blocks.{}.norm.key_norm.scale"),
    Same("proj_out", "final_layer.linear"),
    // diffusers puts the scale first, the official code the shift.
    SwapHalves("norm_out.linear", "final_layer.adaLN_modulation.1"),
]);

/// What diffusers' `FluxControlNetModel` has beside the names of the transformer: theirs, and those of XLabs.
const CONTROLNET: [Rename; 9] = [
    Same("controlnet_x_embedder", "pos_embed_input"),
    Same("input_hint_block.conv_in", "input_hint_block.0"),
    Same("input_hint_block.blocks.0", "input_hint_block.2"),
    Same("input_hint_block.blocks.1", "input_hint_block.4"),
    Same("input_hint_block.blocks.2", "input_hint_block.6"),
    Same("input_hint_block.blocks.3", "input_hint_block.8"),
    Same("input_hint_block.blocks.4", "input_hint_block.10"),
    Same("input_hint_block.blocks.5", "input_hint_block.12"),
    Same("input_hint_block.conv_out", "input_hint_block.14"),
];

/// diffusers' `FluxControlNetModel`.
pub const CONTROLNET_DIFFUSERS: Renames =
    Renames(&joined::<{ FLUX1_DIFFUSERS.0.len() + CONTROLNET.len() }>(FLUX1_DIFFUSERS.0, &CONTROLNET));

/// The rules of one list and then of another, `N` of them in all.
const fn joined<const N: usize>(first: &[Rename], second: &[Rename]) -> [Rename; N] {
    let mut all = [first[0]; N];
    let mut i = 0;
    while i < N {
        all[i] = if i < first.len() { first[i] } else { second[i - first.len()] };
        i += 1;
    }
    all
}

/// diffusers' `Flux2Transformer2DModel`.
pub const FLUX2_DIFFUSERS: Renames = Renames(&[
    Same("x_embedder", "img_in"),
    Same("context_embedder", "txt_in"),
    Same("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    Same("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    Same("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    Same("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    Same("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    Same("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    Same("single_stream_modulation.linear", "single_stream_modulation.lin"),
    Concat(IMG_QKV, "double_blocks.{}.img_attn.qkv"),
    Concat(TXT_QKV, "double_blocks.{}.txt_attn.qkv"),
    One("transformer_blocks.{}.attn.norm_q.weight", "double_blocks.{}.img_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_k.weight", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_q.weight", "double_blocks.{}.txt_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_k.weight", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    Same("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj"),
    Same("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj"),
    Same("transformer_blocks.{}.ff.linear_in", "double_blocks.{}.img_mlp.0"),
    Same("transformer_blocks.{}.ff.linear_out", "double_blocks.{}.img_mlp.2"),
    Same("transformer_blocks.{}.ff_context.linear_in", "double_blocks.{}.txt_mlp.0"),
    Same("transformer_blocks.{}.ff_context.linear_out", "double_blocks.{}.txt_mlp.2"),
    Same("single_transformer_blocks.{}.attn.to_qkv_mlp_proj", "single_blocks.{}.linear1"),
    Same("single_transformer_blocks.{}.attn.to_out", "single_blocks.{}.linear2"),
    One("single_transformer_blocks.{}.attn.norm_q.weight", "single_blocks.{}.norm.query_norm.scale"),
    One("single_transformer_blocks.{}.attn.norm_k.weight", "single_blocks.{}.norm.key_norm.scale"),
    Same("proj_out", "final_layer.linear"),
    SwapHalves("norm_out.linear", "final_layer.adaLN_modulation.1"),
]);

/// The official names with the scales of the q and k norms spelled `.weight`, as some writers of both generations do.
pub const NORMS_SPELLED_WEIGHT: Renames = Renames(&[
    One(
        "double_blocks.{}.img_attn.norm.query_norm.weight",
        "double_blocks.{}.img_attn.norm.query_norm.scale",
    ),
    One("double_blocks.{}.img_attn.norm.key_norm.weight", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    One(
        "double_blocks.{}.txt_attn.norm.query_norm.weight",
        "double_blocks.{}.txt_attn.norm.query_norm.scale",
    ),
    One("double_blocks.{}.txt_attn.norm.key_norm.weight", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    One("single_blocks.{}.norm.query_norm.weight", "single_blocks.{}.norm.query_norm.scale"),
    One("single_blocks.{}.norm.key_norm.weight", "single_blocks.{}.norm.key_norm.scale"),
]);

/// llama.cpp's names of a T5 encoder.
pub const T5_LLAMA: Renames = Renames(&[
    One("token_embd.weight", "shared.weight"),
    One("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
    One("enc.blk.{}.attn_norm.weight", "encoder.block.{}.layer.0.layer_norm.weight"),
    One("enc.blk.{}.attn_q.weight", "encoder.block.{}.layer.0.SelfAttention.q.weight"),
    One("enc.blk.{}.attn_k.weight", "encoder.block.{}.layer.0.SelfAttention.k.weight"),
    One("enc.blk.{}.attn_v.weight", "encoder.block.{}.layer.0.SelfAttention.v.weight"),
    One("enc.blk.{}.attn_o.weight", "encoder.block.{}.layer.0.SelfAttention.o.weight"),
    One(
        "enc.blk.{}.attn_rel_b.weight",
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    One("enc.blk.{}.ffn_norm.weight", "encoder.block.{}.layer.1.layer_norm.weight"),
    One("enc.blk.{}.ffn_gate.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight"),
    One("enc.blk.{}.ffn_up.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight"),
    One("enc.blk.{}.ffn_down.weight", "encoder.block.{}.layer.1.DenseReluDense.wo.weight"),
]);

/// diffusers' `AutoencoderKL` as FLUX.1 uses it, and its `AutoencoderKLFlux2`.
pub const AUTOENCODER_DIFFUSERS: Renames = Renames(&[
    Same("encoder.down_blocks.{}.resnets.{}.norm1", "encoder.down.{}.block.{}.norm1"),
    Same("encoder.down_blocks.{}.resnets.{}.conv1", "encoder.down.{}.block.{}.conv1"),
    Same("encoder.down_blocks.{}.resnets.{}.norm2", "encoder.down.{}.block.{}.norm2"),
    Same("encoder.down_blocks.{}.resnets.{}.conv2", "encoder.down.{}.block.{}.conv2"),
    Same("encoder.down_blocks.{}.resnets.{}.conv_shortcut", "encoder.down.{}.block.{}.nin_shortcut"),
    Same("encoder.down_blocks.{}.downsamplers.0.conv", "encoder.down.{}.downsample.conv"),
    Reversed("decoder.up_blocks.{}.resnets.{}.norm1", "decoder.up.{}.block.{}.norm1"),
    Reversed("decoder.up_blocks.{}.resnets.{}.conv1", "decoder.up.{}.block.{}.conv1"),
    Reversed("decoder.up_blocks.{}.resnets.{}.norm2", "decoder.up.{}.block.{}.norm2"),
    Reversed("decoder.up_blocks.{}.resnets.{}.conv2", "decoder.up.{}.block.{}.conv2"),
    Reversed("decoder.up_blocks.{}.resnets.{}.conv_shortcut", "decoder.up.{}.block.{}.nin_shortcut"),
    Reversed("decoder.up_blocks.{}.upsamplers.0.conv", "decoder.up.{}.upsample.conv"),
    Same("encoder.mid_block.resnets.0.norm1", "encoder.mid.block_1.norm1"),
    Same("encoder.mid_block.resnets.1.norm1", "encoder.mid.block_2.norm1"),
    Same("encoder.mid_block.resnets.0.conv1", "encoder.mid.block_1.conv1"),
    Same("encoder.mid_block.resnets.1.conv1", "encoder.mid.block_2.conv1"),
    Same("encoder.mid_block.resnets.0.norm2", "encoder.mid.block_1.norm2"),
    Same("encoder.mid_block.resnets.1.norm2", "encoder.mid.block_2.norm2"),
    Same("encoder.mid_block.resnets.0.conv2", "encoder.mid.block_1.conv2"),
    Same("encoder.mid_block.resnets.1.conv2", "encoder.mid.block_2.conv2"),
    Same("decoder.mid_block.resnets.0.norm1", "decoder.mid.block_1.norm1"),
    Same("decoder.mid_block.resnets.1.norm1", "decoder.mid.block_2.norm1"),
    Same("decoder.mid_block.resnets.0.conv1", "decoder.mid.block_1.conv1"),
    Same("decoder.mid_block.resnets.1.conv1", "decoder.mid.block_2.conv1"),
    Same("decoder.mid_block.resnets.0.norm2", "decoder.mid.block_1.norm2"),
    Same("decoder.mid_block.resnets.1.norm2", "decoder.mid.block_2.norm2"),
    Same("decoder.mid_block.resnets.0.conv2", "decoder.mid.block_1.conv2"),
    Same("decoder.mid_block.resnets.1.conv2", "decoder.mid.block_2.conv2"),
    Same("encoder.mid_block.attentions.0.group_norm", "encoder.mid.attn_1.norm"),
    Same("decoder.mid_block.attentions.0.group_norm", "decoder.mid.attn_1.norm"),
    Pointwise("encoder.mid_block.attentions.0.to_q", "encoder.mid.attn_1.q"),
    Pointwise("encoder.mid_block.attentions.0.to_k", "encoder.mid.attn_1.k"),
    Pointwise("encoder.mid_block.attentions.0.to_v", "encoder.mid.attn_1.v"),
    Pointwise("encoder.mid_block.attentions.0.to_out.0", "encoder.mid.attn_1.proj_out"),
    Pointwise("decoder.mid_block.attentions.0.to_q", "decoder.mid.attn_1.q"),
    Pointwise("decoder.mid_block.attentions.0.to_k", "decoder.mid.attn_1.k"),
    Pointwise("decoder.mid_block.attentions.0.to_v", "decoder.mid.attn_1.v"),
    Pointwise("decoder.mid_block.attentions.0.to_out.0", "decoder.mid.attn_1.proj_out"),
    Same("quant_conv", "encoder.quant_conv"),
    Same("post_quant_conv", "decoder.post_quant_conv"),
    Same("encoder.conv_norm_out", "encoder.norm_out"),
    Same("decoder.conv_norm_out", "decoder.norm_out"),
]);

/// What files of SigLIP hold beside the states of a picture's patches: the text tower, the head that pools the patches, and
/// the two numbers of its training. `*` at the end stands for `weight` or `bias`.
const BESIDE_SIGLIP: [&str; 23] = [
    "logit_scale",
    "logit_bias",
    "text_model.embeddings.position_ids",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.{}.layer_norm1.*",
    "text_model.encoder.layers.{}.self_attn.k_proj.*",
    "text_model.encoder.layers.{}.self_attn.v_proj.*",
    "text_model.encoder.layers.{}.self_attn.q_proj.*",
    "text_model.encoder.layers.{}.self_attn.out_proj.*",
    "text_model.encoder.layers.{}.layer_norm2.*",
    "text_model.encoder.layers.{}.mlp.fc1.*",
    "text_model.encoder.layers.{}.mlp.fc2.*",
    "text_model.final_layer_norm.*",
    "text_model.head.*",
    "vision_model.embeddings.position_ids",
    "vision_model.head.probe",
    "vision_model.head.attention.in_proj_weight",
    "vision_model.head.attention.in_proj_bias",
    "vision_model.head.attention.out_proj.*",
    "vision_model.head.layernorm.*",
    "vision_model.head.mlp.fc1.*",
    "vision_model.head.mlp.fc2.*",
];

/// Whether a tensor of a SigLIP file is known, and none of the vision tower's own.
pub(super) fn is_beside_siglip(name: &str) -> bool {
    BESIDE_SIGLIP.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(module) => {
            ["weight", "bias"].iter().any(|kind| numbers(&format!("{module}{kind}"), name).is_some())
        }
        None => numbers(pattern, name).is_some(),
    })
}

/// DINOv2 in a depth model, in the names that transformers has had since version 5; published files have the older ones.
pub const DEPTH_TRANSFORMERS_5: Renames = Renames(&[
    Same("backbone.encoder.layer.{}.attention.q_proj", "backbone.encoder.layer.{}.attention.attention.query"),
    Same("backbone.encoder.layer.{}.attention.k_proj", "backbone.encoder.layer.{}.attention.attention.key"),
    Same("backbone.encoder.layer.{}.attention.v_proj", "backbone.encoder.layer.{}.attention.attention.value"),
    Same("backbone.encoder.layer.{}.attention.o_proj", "backbone.encoder.layer.{}.attention.output.dense"),
]);

/// A file of TAESD's encoder alone, in the names of `madebyollin/taesd`; ours are diffusers'.
pub const TAESD_ENCODER: Renames =
    Renames(&[Same("{}", "encoder.layers.{}"), Same("{}.conv.{}", "encoder.layers.{}.conv.{}")]);

/// The same of the decoder.
pub const TAESD_DECODER: Renames =
    Renames(&[Shifted("{}", "decoder.layers.{}", 1), Shifted("{}.conv.{}", "decoder.layers.{}.conv.{}", 1)]);

impl Renames {
    /// The same tensors under the official names. Names that no rule knows stay as they are.
    pub(super) fn apply(&self, mut from: BTreeMap<String, Source>) -> BTreeMap<String, Source> {
        let last = last_level(&from, "decoder.up_blocks.{}.*");
        let mut renamed = BTreeMap::new();
        for rule in self.0 {
            for kind in rule.kinds() {
                rule.take(kind, last, &mut from, &mut renamed);
            }
        }
        keep_rest(from, renamed)
    }

    /// Whether a name is one of this layout's.
    pub(crate) fn writes(&self, name: &str) -> bool {
        let fits = |rule: &Rename, theirs: &str| {
            rule.kinds().iter().any(|kind| numbers(&format!("{theirs}{kind}"), name).is_some())
        };
        self.0.iter().any(|rule| rule.patterns().0.iter().any(|theirs| fits(rule, theirs)))
    }

    /// The modules of this layout that an official one is, and whether the halves of its rows change places. The scale of
    /// a norm, officially a parameter, is found by its whole name.
    pub(crate) fn modules(&self, official: &str) -> Option<(Vec<String>, bool)> {
        self.0.iter().find_map(|rule| {
            let (theirs, pattern) = rule.patterns();
            let numbers = numbers(pattern, official)?;
            let names = theirs.iter().map(|theirs| fill(theirs, &numbers)).collect();
            Some((names, matches!(rule, SwapHalves(..))))
        })
    }

    /// The same tensors under this layout's names, from the official ones: [`Renames::apply`] the other way round.
    pub(super) fn undo(&self, mut from: BTreeMap<String, Source>) -> BTreeMap<String, Source> {
        let last = last_level(&from, "decoder.up.{}.*");
        let mut renamed = BTreeMap::new();
        for rule in self.0 {
            // The bias first: how its rows are shared, the weight's columns tell.
            for kind in rule.kinds().iter().rev() {
                rule.give(kind, last, &mut from, &mut renamed);
            }
        }
        keep_rest(from, renamed)
    }
}

/// What no rule knows keeps its name, unless a rule has placed another tensor there: both are then reported.
fn keep_rest(
    rest: BTreeMap<String, Source>,
    mut renamed: BTreeMap<String, Source>,
) -> BTreeMap<String, Source> {
    for (name, source) in rest {
        let name = if renamed.contains_key(&name) { format!("{name} (a second one)") } else { name };
        renamed.insert(name, source);
    }
    renamed
}

fn last_level(names: &BTreeMap<String, Source>, pattern: &str) -> usize {
    names.keys().filter_map(|n| numbers(pattern, n)?.first().copied()).max().unwrap_or(0)
}

impl Rename {
    /// Theirs, and the official one.
    pub(super) fn patterns(&self) -> (&[&'static str], &'static str) {
        match self {
            Same(a, b)
            | One(a, b)
            | SwapHalves(a, b)
            | Reversed(a, b)
            | Shifted(a, b, _)
            | Pointwise(a, b) => (std::slice::from_ref(a), b),
            Concat(parts, b) => (parts, b),
        }
    }

    fn kinds(&self) -> &'static [&'static str] {
        if matches!(self, One(..)) { &[""] } else { &[".weight", ".bias"] }
    }

    /// Moves what this rule knows from one map to the other, under the official name.
    fn take(
        &self,
        kind: &str,
        last: usize,
        from: &mut BTreeMap<String, Source>,
        to: &mut BTreeMap<String, Source>,
    ) {
        let (theirs, official) = self.patterns();
        let first = format!("{}{kind}", theirs[0]);
        let found: Vec<Vec<usize>> = from.keys().filter_map(|name| numbers(&first, name)).collect();
        for mut numbers in found {
            let names: Vec<String> = theirs.iter().map(|t| fill(&format!("{t}{kind}"), &numbers)).collect();
            let shapes: Option<Vec<&[i64]>> = names.iter().map(|n| Some(&from.get(n)?.shape[..])).collect();
            if !shapes.is_some_and(|shapes| can_be_joined(&shapes)) {
                continue;
            }
            let sources: Vec<Source> = names.iter().filter_map(|n| from.remove(n)).collect();
            let mut source = Source::joined(&sources);
            match self {
                Pointwise(..) if source.shape.len() == 2 => source.shape.extend([1, 1]),
                SwapHalves(..) => source = source.halves_swapped(),
                Reversed(..) => numbers[0] = last.saturating_sub(numbers[0]),
                Shifted(_, _, by) => numbers[0] = numbers[0].saturating_sub(*by),
                _ => {}
            }
            to.insert(fill(&format!("{official}{kind}"), &numbers), source);
        }
    }

    /// Moves what this rule knows from one map to the other, under their names.
    fn give(
        &self,
        kind: &str,
        last: usize,
        from: &mut BTreeMap<String, Source>,
        to: &mut BTreeMap<String, Source>,
    ) {
        let (theirs, official) = self.patterns();
        let pattern = format!("{official}{kind}");
        let found: Vec<(Vec<usize>, String)> =
            from.keys().filter_map(|name| Some((numbers(&pattern, name)?, name.clone()))).collect();
        for (mut numbers, name) in found {
            let columns = || from.get(&fill(&format!("{official}.weight"), &numbers))?.shape.get(1).copied();
            let shares = match (self, from.get(&name)) {
                (Concat(parts, _), Some(source)) => shares(source, parts.len(), columns()),
                (_, Some(source)) => source.shape.first().map(|rows| vec![*rows as usize]).or(Some(vec![0])),
                _ => None,
            };
            let Some((shares, mut source)) = shares.zip(from.remove(&name)) else { continue };
            match self {
                Pointwise(..) if source.shape.ends_with(&[1, 1]) && source.shape.len() == 4 => {
                    source.shape.truncate(2);
                }
                SwapHalves(..) => source = source.halves_swapped(),
                Reversed(..) => numbers[0] = last.saturating_sub(numbers[0]),
                Shifted(_, _, by) => numbers[0] = numbers[0].saturating_add(*by),
                _ => {}
            }
            let mut at = 0;
            for (share, theirs) in shares.iter().zip(theirs) {
                let part = if shares.len() == 1 { source.clone() } else { source.rows(at..at + share) };
                at += share;
                to.insert(fill(&format!("{theirs}{kind}"), &numbers), part);
            }
        }
    }
}

/// How many rows each of the joined modules has: q, k and v as many as the model is wide, and the MLP the rest. Three
/// parts are equal in any model.
fn shares(source: &Source, parts: usize, width: Option<i64>) -> Option<Vec<usize>> {
    let rows = *source.shape.first()?;
    if parts == 3 {
        return (rows % 3 == 0).then(|| vec![rows as usize / 3; 3]);
    }
    let width = width.filter(|width| (1..rows).contains(&(3 * width)))?;
    let mut shares = vec![width as usize; parts - 1];
    shares.push((rows - width * (parts as i64 - 1)) as usize);
    Some(shares)
}

/// Whether these are one tensor, or differ in the first axis alone and can be joined on it.
fn can_be_joined(shapes: &[&[i64]]) -> bool {
    let rows = shapes.iter().try_fold(0i64, |n, shape| n.checked_add(*shape.first()?));
    shapes.len() == 1 || rows.is_some() && shapes.iter().all(|shape| shape[1..] == shapes[0][1..])
}

/// The numbers of `name` where the pattern has `{}`, if it fits. A `*` at the end fits anything.
pub(super) fn numbers(pattern: &str, name: &str) -> Option<Vec<usize>> {
    let (mut pattern, mut name, mut found) = (pattern, name, Vec::new());
    while let Some((before, after)) = pattern.split_once("{}") {
        name = name.strip_prefix(before)?;
        let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        found.push(name[..digits].parse().ok().filter(|n| *n < usize::MAX)?);
        (pattern, name) = (after, &name[digits..]);
    }
    let fits = match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    fits.then_some(found)
}

/// The pattern with the numbers in place of `{}`.
pub(super) fn fill(pattern: &str, numbers: &[usize]) -> String {
    let mut pieces = pattern.split("{}");
    let mut filled = pieces.next().unwrap_or_default().to_string();
    for (i, piece) in pieces.enumerate() {
        if let Some(number) = numbers.get(i) {
            filled.push_str(&number.to_string());
        }
        filled.push_str(piece);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::source::Stored;

    fn rename(renames: &Renames, names: &[(&str, &[i64])]) -> BTreeMap<String, (Vec<String>, Vec<i64>)> {
        let flat = |s: Source| (s.parts.into_iter().map(|p| p.entry).collect(), s.shape);
        renames.apply(sources(names)).into_iter().map(|(n, s)| (n, flat(s))).collect()
    }

    fn sources(names: &[(&str, &[i64])]) -> BTreeMap<String, Source> {
        let source = |n: &str, shape: &[i64]| Source::whole(0, n, Stored::Plain, shape.to_vec());
        names.iter().map(|(n, shape)| (n.to_string(), source(n, shape))).collect()
    }

    #[test]
    fn same_keeps_numbers_and_both_tensors() {
        let out = rename(
            &FLUX1_DIFFUSERS,
            &[
                ("transformer_blocks.12.ff.net.2.weight", &[4, 8]),
                ("transformer_blocks.12.ff.net.2.bias", &[4]),
            ],
        );
        assert_eq!(out["double_blocks.12.img_mlp.2.weight"].1, [4, 8]);
        assert_eq!(out["double_blocks.12.img_mlp.2.bias"].1, [4]);
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn concat_joins_rows_in_order() {
        let name = |s: &str| format!("single_transformer_blocks.3.{s}.weight");
        let names = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(name);
        let shapes: [&[i64]; 4] = [&[4, 4], &[4, 4], &[4, 4], &[16, 4]];
        let out = rename(&FLUX1_DIFFUSERS, &names.iter().map(String::as_str).zip(shapes).collect::<Vec<_>>());
        assert_eq!(out["single_blocks.3.linear1.weight"], (names.to_vec(), vec![28, 4]));
    }

    #[test]
    fn concat_with_a_part_missing_leaves_the_names_for_the_report() {
        let out = rename(&FLUX1_DIFFUSERS, &[("transformer_blocks.0.attn.to_q.weight", &[4, 4])]);
        assert!(out.contains_key("transformer_blocks.0.attn.to_q.weight"));
    }

    #[test]
    fn swap_halves_exchanges_scale_and_shift() {
        let out = FLUX1_DIFFUSERS.apply(sources(&[("norm_out.linear.bias", &[4])]));
        let source = &out["final_layer.adaLN_modulation.1.bias"];
        assert_eq!(source.parts.iter().map(|p| p.elements.clone()).collect::<Vec<_>>(), [2..4, 0..2]);
    }

    #[test]
    fn reversed_counts_the_levels_from_the_other_end() {
        let out = rename(
            &AUTOENCODER_DIFFUSERS,
            &[
                ("decoder.up_blocks.0.resnets.2.conv1.weight", &[8, 8, 3, 3]),
                ("decoder.up_blocks.3.resnets.0.conv_shortcut.weight", &[8, 8, 1, 1]),
            ],
        );
        assert!(out.contains_key("decoder.up.3.block.2.conv1.weight"));
        assert!(out.contains_key("decoder.up.0.block.0.nin_shortcut.weight"));
    }

    #[test]
    fn pointwise_becomes_a_convolution() {
        let out = rename(
            &AUTOENCODER_DIFFUSERS,
            &[
                ("decoder.mid_block.attentions.0.to_out.0.weight", &[8, 8]),
                ("decoder.mid_block.attentions.0.to_out.0.bias", &[8]),
                ("decoder.mid_block.resnets.1.norm2.bias", &[8]),
            ],
        );
        assert_eq!(out["decoder.mid.attn_1.proj_out.weight"].1, [8, 8, 1, 1]);
        assert_eq!(out["decoder.mid.attn_1.proj_out.bias"].1, [8]);
        assert!(out.contains_key("decoder.mid.block_2.norm2.bias"));
    }

    /// The official names and shapes of a layout list.
    fn list(name: &str) -> BTreeMap<String, Source> {
        let path = format!("{}/fixtures/layouts/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let entry = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            let shape = fields[2].split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
            (fields[0].to_string(), Source::whole(0, fields[0], Stored::Plain, shape))
        };
        text.lines().map(entry).collect()
    }

    fn shapes(tensors: &BTreeMap<String, Source>) -> BTreeMap<&str, &[i64]> {
        tensors.iter().map(|(name, source)| (name.as_str(), &source.shape[..])).collect()
    }

    /// Their list becomes the official one, and the other way round, and both ways end with every tensor whole.
    fn there_and_back(renames: &Renames, theirs: &str, official: &str) {
        let (theirs, official) = (list(theirs), list(official));
        assert_eq!(shapes(&renames.apply(theirs.clone())), shapes(&official));
        assert_eq!(shapes(&renames.undo(official.clone())), shapes(&theirs));
        assert_eq!(renames.apply(renames.undo(official.clone())), official);
        assert_eq!(renames.undo(renames.apply(theirs.clone())), theirs);
    }

    #[test]
    fn flux1_there_and_back() {
        there_and_back(&FLUX1_DIFFUSERS, "flux1-dev.diffusers", "flux1-dev");
    }

    #[test]
    fn flux2_there_and_back() {
        there_and_back(&FLUX2_DIFFUSERS, "flux2-dev.diffusers", "flux2-dev");
    }

    #[test]
    fn autoencoder_there_and_back() {
        there_and_back(&AUTOENCODER_DIFFUSERS, "ae.diffusers", "ae");
    }

    #[test]
    fn klein_and_the_second_autoencoder_come_back() {
        for name in ["flux2-klein-4b.diffusers", "flux2-klein-9b.diffusers"] {
            let theirs = list(name);
            let official = FLUX2_DIFFUSERS.apply(theirs.clone());
            assert!(official.keys().all(|n| !n.contains("transformer_blocks")), "{name}");
            assert_eq!(FLUX2_DIFFUSERS.undo(official), theirs, "{name}");
        }
        let official = list("flux2-ae");
        let theirs = AUTOENCODER_DIFFUSERS.undo(official.clone());
        assert!(theirs.contains_key("post_quant_conv.weight") && theirs.contains_key("bn.running_mean"));
        assert_eq!(AUTOENCODER_DIFFUSERS.apply(theirs), official);
    }

    #[test]
    fn what_stands_beside_siglips_vision_tower_is_known_by_name() {
        for name in [
            "logit_bias",
            "text_model.encoder.layers.26.mlp.fc2.bias",
            "text_model.head.weight",
            "vision_model.head.attention.in_proj_weight",
            "vision_model.head.mlp.fc1.bias",
        ] {
            assert!(is_beside_siglip(name), "{name}");
        }
        for name in [
            "vision_model.encoder.layers.26.mlp.fc2.bias",
            "vision_model.post_layernorm.weight",
            "text_model.head.extra",
            "text_model.encoder.layers.3.self_attn.q_norm.weight",
            "vision_model.head",
        ] {
            assert!(!is_beside_siglip(name), "{name}");
        }
    }

    #[test]
    fn shifted_counts_from_another_layer() {
        let decoder: &[(&str, &[i64])] = &[
            ("1.weight", &[64, 16, 3, 3]),
            ("1.bias", &[64]),
            ("3.conv.0.weight", &[64, 64, 3, 3]),
            ("7.weight", &[64, 64, 3, 3]),
            ("18.bias", &[3]),
        ];
        let out = rename(&TAESD_DECODER, decoder);
        let names = ["0.bias", "0.weight", "17.bias", "2.conv.0.weight", "6.weight"];
        assert_eq!(
            out.keys().collect::<Vec<_>>(),
            names.map(|name| format!("decoder.layers.{name}")).each_ref()
        );
        let back = TAESD_DECODER.undo(TAESD_DECODER.apply(sources(decoder)));
        assert_eq!(back, sources(decoder));
    }

    #[test]
    fn an_encoder_of_taesd_keeps_its_numbers() {
        let names: &[(&str, &[i64])] =
            &[("0.bias", &[64]), ("14.weight", &[16, 64, 3, 3]), ("1.conv.4.bias", &[64])];
        let out = rename(&TAESD_ENCODER, names);
        let names = ["0.bias", "1.conv.4.bias", "14.weight"];
        assert_eq!(
            out.keys().collect::<Vec<_>>(),
            names.map(|name| format!("encoder.layers.{name}")).each_ref()
        );
    }

    #[test]
    fn newer_names_of_a_depth_model_become_those_of_its_files() {
        let out = rename(&DEPTH_TRANSFORMERS_5, &[("backbone.encoder.layer.11.attention.o_proj.bias", &[8])]);
        assert!(out.contains_key("backbone.encoder.layer.11.attention.output.dense.bias"));
    }

    #[test]
    fn norms_spelled_weight_become_scales() {
        let out = rename(&NORMS_SPELLED_WEIGHT, &[("single_blocks.7.norm.key_norm.weight", &[128])]);
        assert!(out.contains_key("single_blocks.7.norm.key_norm.scale"));
    }

    #[test]
    fn a_controlnet_there_and_back() {
        let theirs = sources(&[
            ("controlnet_blocks.0.weight", &[4, 4]),
            ("controlnet_x_embedder.bias", &[4]),
            ("input_hint_block.blocks.5.weight", &[16, 16, 3, 3]),
            ("input_hint_block.conv_out.bias", &[16]),
            ("transformer_blocks.0.ff.net.2.weight", &[4, 16]),
            ("x_embedder.weight", &[4, 64]),
        ]);
        let ours = CONTROLNET_DIFFUSERS.apply(theirs.clone());
        let names: Vec<&str> = ours.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "controlnet_blocks.0.weight",
                "double_blocks.0.img_mlp.2.weight",
                "img_in.weight",
                "input_hint_block.12.weight",
                "input_hint_block.14.bias",
                "pos_embed_input.bias",
            ]
        );
        assert_eq!(CONTROLNET_DIFFUSERS.undo(ours), theirs);
    }

    #[test]
    fn llama_names_become_those_of_t5() {
        let out =
            rename(&T5_LLAMA, &[("enc.blk.3.ffn_gate.weight", &[8, 4]), ("token_embd.weight", &[9, 4])]);
        assert!(out.contains_key("encoder.block.3.layer.1.DenseReluDense.wi_0.weight"));
        assert!(out.contains_key("shared.weight"));
    }
}
