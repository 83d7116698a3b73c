//! The layers of FLUX's transformers, in the official order of operations.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/layers.py` and `lora.py`.
//! `B` batch, `L` tokens, `D` hidden size, `H` heads, `d` head width.

use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::math::{self, rope_even};
use crate::nn::{LayerNorm, Linear, check_sizes, declare};
use crate::numerics::at_least_f32;
use crate::ops::{self, Qkv};

/// Rotation matrices for positions with several axes: ids `[B, L, n]` to `[B, 1, L, dim/2, 2, 2]` in f32.
///
/// Source: `layers.py` lines 11–25.
#[derive(Debug, Clone)]
#[doc(alias = "EmbedND")]
pub struct EmbedNd {
    theta: i64,
    axes_dim: Vec<i64>,
}

impl EmbedNd {
    /// `dim` is the sum of `axes_dim`, each of them even.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not.
    pub fn new(dim: i64, theta: i64, axes_dim: &[i64]) -> Result<Self> {
        if axes_dim.iter().sum::<i64>() != dim {
            return Err(Error::Config(format!("Got {axes_dim:?} but expected positional dim {dim}")));
        }
        if axes_dim.iter().any(|d| d % 2 != 0 || *d <= 0) {
            return Err(Error::Config(format!("axes of rotary positions must be even, got {axes_dim:?}")));
        }
        Ok(Self { theta, axes_dim: axes_dim.to_vec() })
    }
}

impl Module for EmbedNd {
    fn forward(&self, ids: &Tensor) -> Tensor {
        let axes = self.axes_dim.iter().zip(0..);
        let axes: Vec<_> = axes.map(|(&dim, i)| rope_even(&ids.select(-1, i), dim, self.theta)).collect();
        Tensor::cat(&axes, -3).unsqueeze(1)
    }
}

/// Sinusoidal embedding of `t` `[B]`: `[B, dim]`, cosines first, in the kind of `t` where that is a float, else f32.
///
/// `time_factor * t` is computed in the kind of `t`, the frequencies in f32. An odd `dim` gets a column of zeros.
/// The official defaults are `max_period` 10000 and `time_factor` 1000.
///
/// Source: `layers.py` lines 28–49.
pub fn timestep_embedding(t: &Tensor, dim: i64, max_period: f64, time_factor: f64) -> Tensor {
    let t = t * time_factor;
    let half = dim / 2;
    let exponents = Tensor::arange_start(0, half, (Kind::Float, tch::Device::Cpu));
    let freqs = (exponents * -max_period.ln() / half).exp().to_device(t.device());

    let args = t.unsqueeze(1).to_kind(at_least_f32(t.kind())) * freqs.unsqueeze(0);
    let mut embedding = Tensor::cat(&[args.cos(), args.sin()], -1);
    if dim % 2 != 0 {
        embedding = Tensor::cat(&[&embedding, &embedding.narrow(1, 0, 1).zeros_like()], -1);
    }
    if t.is_floating_point() { embedding.to_kind(t.kind()) } else { embedding }
}

/// Two linear layers with SiLU between: `[B, in]` to `[B, D]`.
///
/// Source: `layers.py` lines 52–60.
#[derive(Debug)]
#[doc(alias = "MLPEmbedder")]
pub struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    /// Declares `in_layer` and `out_layer`.
    pub fn new(vs: Path, in_dim: i64, hidden_dim: i64) -> Self {
        Self {
            in_layer: Linear::new(&vs / "in_layer", in_dim, hidden_dim, true),
            out_layer: Linear::new(&vs / "out_layer", hidden_dim, hidden_dim, true),
        }
    }
}

impl Module for MlpEmbedder {
    fn forward(&self, x: &Tensor) -> Tensor {
        let silu = ops::Epilogue { activation: ops::Activation::Silu, ..ops::Epilogue::default() };
        ops::linear(&self.out_layer, &ops::linear(&self.in_layer, x, silu), ops::Epilogue::default())
    }
}

/// Root mean square norm over the last axis, in f32, cast back before it is scaled.
///
/// Source: `layers.py` lines 63–72.
#[derive(Debug)]
#[doc(alias = "RMSNorm")]
pub struct RmsNorm {
    scale: Tensor,
}

impl RmsNorm {
    /// Declares `scale` `[dim]`.
    pub fn new(vs: Path, dim: i64) -> Self {
        Self { scale: declare(&vs, "scale", &[dim]) }
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Tensor {
        let x_kind = x.kind();
        let x = x.to_kind(at_least_f32(x_kind));
        let rrms = (x.square().mean_dim(-1, true, None) + 1e-6).rsqrt();
        (x * rrms).to_kind(x_kind) * &self.scale
    }
}

/// Norms of queries and keys.
///
/// Source: `layers.py` lines 75–84.
#[derive(Debug)]
#[doc(alias = "QKNorm")]
pub struct QkNorm {
    query_norm: RmsNorm,
    key_norm: RmsNorm,
}

impl QkNorm {
    /// Declares `query_norm` and `key_norm`, each over `dim` values.
    pub fn new(vs: Path, dim: i64) -> Self {
        Self {
            query_norm: RmsNorm::new(&vs / "query_norm", dim),
            key_norm: RmsNorm::new(&vs / "key_norm", dim),
        }
    }

    /// `q`, `k` `[B, H, L, d]`, normalised, in the kind of `v`.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let q = self.query_norm.forward(q);
        let k = self.key_norm.forward(k);
        (q.to_kind(v.kind()), k.to_kind(v.kind()))
    }

    /// The scales of queries and keys.
    pub(crate) fn scales(&self) -> [&Tensor; 2] {
        [&self.query_norm.scale, &self.key_norm.scale]
    }
}

/// Self-attention with rotary positions: `[B, L, D]` to `[B, L, D]`.
///
/// Source: `layers.py` lines 87–104.
#[derive(Debug)]
pub struct SelfAttention {
    qkv: Linear,
    norm: QkNorm,
    proj: Linear,
    num_heads: i64,
}

impl SelfAttention {
    /// Declares `qkv` (with a bias where asked), `norm` and `proj`.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide `dim`.
    pub fn new(vs: Path, dim: i64, num_heads: i64, qkv_bias: bool) -> Result<Self> {
        let head_dim = head_dim(dim, num_heads)?;
        Ok(Self {
            qkv: Linear::new(&vs / "qkv", dim, dim * 3, qkv_bias),
            norm: QkNorm::new(&vs / "norm", head_dim),
            proj: Linear::new(&vs / "proj", dim, dim, true),
            num_heads,
        })
    }

    /// `x` `[B, L, D]`, `pe` `[B, 1, L, d/2, 2, 2]`.
    pub fn forward(&self, x: &Tensor, pe: &Tensor) -> Tensor {
        let qkv = ops::linear(&self.qkv, x, ops::Epilogue::default());
        let attn = joint_attention(&[(&qkv, &self.norm)], self.num_heads, pe);
        ops::linear(&self.proj, &attn, ops::Epilogue::default())
    }

    /// The normalised queries `[B, H, L, d]` of `qkv`.
    fn query(&self, qkv: &Tensor) -> Tensor {
        let [q, _, _] = split_qkv(qkv, self.num_heads);
        self.norm.query_norm.forward(&q)
    }
}

/// What a block does to its stream: `[B, 1, D]` each.
///
/// Source: `layers.py` lines 107–111.
#[derive(Debug)]
pub struct ModulationOut {
    /// Added before the layer.
    pub shift: Tensor,
    /// Multiplied before the layer, as `1 + scale`.
    pub scale: Tensor,
    /// Multiplied after the layer.
    pub gate: Tensor,
}

/// The conditioning vector `[B, D]` as `N` modulations: two in a double block, one in a single one.
///
/// Source: `layers.py` lines 114–127.
#[derive(Debug)]
pub struct Modulation<const N: usize> {
    lin: Linear,
}

impl<const N: usize> Modulation<N> {
    /// Declares `lin` with `3·N·dim` rows.
    pub fn new(vs: Path, dim: i64) -> Self {
        Self { lin: Linear::new(&vs / "lin", dim, 3 * N as i64 * dim, true) }
    }

    /// `vec` `[B, D]`.
    pub fn forward(&self, vec: &Tensor) -> [ModulationOut; N] {
        let out = ops::linear(&self.lin, &vec.silu(), ops::Epilogue::default()).unsqueeze(1); // [B, 1, 3·N·D]
        let dim = out.size()[2] / (3 * N as i64);
        std::array::from_fn(|i| {
            let part = |j: i64| out.narrow(-1, (3 * i as i64 + j) * dim, dim);
            ModulationOut { shift: part(0), scale: part(1), gate: part(2) }
        })
    }
}

/// Two linear layers with tanh-GELU between: `torch.nn.Sequential`'s children 0 and 2.
#[derive(Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(vs: Path, dim: i64, hidden_dim: i64) -> Self {
        Self {
            up: Linear::new(&vs / 0, dim, hidden_dim, true),
            down: Linear::new(&vs / 2, hidden_dim, dim, true),
        }
    }
}

/// One of the two streams of a double block: image or text.
#[derive(Debug)]
struct Stream {
    modulation: Modulation<2>,
    norm1: LayerNorm,
    attn: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Stream {
    fn new(
        vs: &Path,
        prefix: &str,
        hidden_size: i64,
        num_heads: i64,
        mlp_ratio: f64,
        qkv_bias: bool,
    ) -> Result<Self> {
        let child = |name: &str| vs / format!("{prefix}_{name}");
        Ok(Self {
            modulation: Modulation::new(child("mod"), hidden_size),
            norm1: LayerNorm::plain(hidden_size, 1e-6),
            attn: SelfAttention::new(child("attn"), hidden_size, num_heads, qkv_bias)?,
            norm2: LayerNorm::plain(hidden_size, 1e-6),
            mlp: Mlp::new(child("mlp"), hidden_size, mlp_hidden_dim(hidden_size, mlp_ratio)),
        })
    }

    fn qkv(&self, x: &Tensor, mod1: &ModulationOut) -> Tensor {
        ops::modulate_linear(&self.norm1, x, [&mod1.scale, &mod1.shift], &self.attn.qkv)
    }

    /// What follows attention: `x + gate * proj(attn)`, then `x + gate * mlp(modulated x)`.
    fn finish(&self, x: &Tensor, attn: &Tensor, [mod1, mod2]: &[ModulationOut; 2]) -> Tensor {
        let fused = ops::ResidualMlp {
            proj: &self.attn.proj,
            gate: &mod1.gate,
            norm: &self.norm2,
            modulation: [&mod2.scale, &mod2.shift],
            up: &self.mlp.up,
            down: &self.mlp.down,
            mlp_gate: &mod2.gate,
        };
        if let Some(out) = fused.fused(attn, x) {
            return out;
        }
        let x = ops::linear_gated_residual(&self.attn.proj, attn, &mod1.gate, x);
        let x_mod = ops::modulate(&self.norm2, &x, &mod2.scale, &mod2.shift);
        let hidden = ops::linear_gelu(&self.mlp.up, &x_mod); // [B, L, mlp]
        ops::linear_gated_residual(&self.mlp.down, &hidden, &mod2.gate, &x)
    }
}

/// What is added to a double block's picture `[B, L, D]`, of its queries `[B, H, L, d]`: normalised, not rotated.
pub(crate) type AttentionHook<'a> = dyn Fn(&Tensor) -> Option<Tensor> + 'a;

/// A block with separate weights for image and text and attention over both, the text first.
///
/// Source: `layers.py` lines 130–193.
#[derive(Debug)]
pub struct DoubleStreamBlock {
    img: Stream,
    txt: Stream,
}

impl DoubleStreamBlock {
    /// Declares `img_mod`, `img_attn`, `img_mlp` and the same with `txt_`.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide `hidden_size`.
    pub fn new(vs: Path, hidden_size: i64, num_heads: i64, mlp_ratio: f64, qkv_bias: bool) -> Result<Self> {
        check_mlp_ratio(hidden_size, mlp_ratio)?;
        Ok(Self {
            img: Stream::new(&vs, "img", hidden_size, num_heads, mlp_ratio, qkv_bias)?,
            txt: Stream::new(&vs, "txt", hidden_size, num_heads, mlp_ratio, qkv_bias)?,
        })
    }

    /// `img` `[B, Li, D]`, `txt` `[B, Lt, D]`, `vec` `[B, D]`, `pe` `[B, 1, Lt + Li, d/2, 2, 2]`: the new `img` and
    /// `txt`.
    pub fn forward(&self, img: &Tensor, txt: &Tensor, vec: &Tensor, pe: &Tensor) -> (Tensor, Tensor) {
        self.run(img, txt, &self.modulation(vec), pe)
    }

    /// What the conditioning vector makes of the block: for the image, then for the text.
    pub(crate) fn modulation(&self, vec: &Tensor) -> [[ModulationOut; 2]; 2] {
        [self.img.modulation.forward(vec), self.txt.modulation.forward(vec)]
    }

    /// The patches as attention reads them.
    pub(crate) fn modulated(&self, img: &Tensor, [img_mod, _]: &[[ModulationOut; 2]; 2]) -> Tensor {
        ops::modulate(&self.img.norm1, img, &img_mod[0].scale, &img_mod[0].shift)
    }

    pub(crate) fn run(
        &self,
        img: &Tensor,
        txt: &Tensor,
        modulation: &[[ModulationOut; 2]; 2],
        pe: &Tensor,
    ) -> (Tensor, Tensor) {
        self.run_with_hook(img, txt, modulation, pe, None)
    }

    /// With what is added to the picture in the end, of its queries.
    pub(crate) fn run_with_hook(
        &self,
        img: &Tensor,
        txt: &Tensor,
        [img_mod, txt_mod]: &[[ModulationOut; 2]; 2],
        pe: &Tensor,
        hook: Option<&AttentionHook>,
    ) -> (Tensor, Tensor) {
        let (img_len, txt_len) = (img.size()[1], txt.size()[1]);
        let img_qkv = self.img.qkv(img, &img_mod[0]);
        let txt_qkv = self.txt.qkv(txt, &txt_mod[0]);
        let added = hook.and_then(|hook| hook(&self.img.attn.query(&img_qkv)));

        let streams = [(&txt_qkv, &self.txt.attn.norm), (&img_qkv, &self.img.attn.norm)];
        let attn = joint_attention(&streams, self.img.attn.num_heads, pe); // [B, Lt + Li, D]
        drop((img_qkv, txt_qkv));

        let img = self.img.finish(img, &attn.narrow(1, txt_len, img_len), img_mod);
        let txt = self.txt.finish(txt, &attn.narrow(1, 0, txt_len), txt_mod);
        let img = match added {
            Some(added) => img + added,
            None => img,
        };
        (img, txt)
    }
}

/// A block over the joint sequence, attention and MLP side by side.
///
/// Source: `layers.py` lines 196–242.
#[derive(Debug)]
pub struct SingleStreamBlock {
    linear1: Linear,
    linear2: Linear,
    norm: QkNorm,
    pre_norm: LayerNorm,
    modulation: Modulation<1>,
    hidden_size: i64,
    num_heads: i64,
}

impl SingleStreamBlock {
    /// Declares `linear1` (q, k, v and the MLP's entry), `linear2` (projection and the MLP's exit), `norm` and
    /// `modulation`.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide `hidden_size`.
    pub fn new(vs: Path, hidden_size: i64, num_heads: i64, mlp_ratio: f64) -> Result<Self> {
        let head_dim = head_dim(hidden_size, num_heads)?;
        check_mlp_ratio(hidden_size, mlp_ratio)?;
        let mlp_hidden_dim = mlp_hidden_dim(hidden_size, mlp_ratio);
        Ok(Self {
            linear1: Linear::new(&vs / "linear1", hidden_size, hidden_size * 3 + mlp_hidden_dim, true),
            linear2: Linear::new(&vs / "linear2", hidden_size + mlp_hidden_dim, hidden_size, true),
            norm: QkNorm::new(&vs / "norm", head_dim),
            pre_norm: LayerNorm::plain(hidden_size, 1e-6),
            modulation: Modulation::new(&vs / "modulation", hidden_size),
            hidden_size,
            num_heads,
        })
    }

    /// `x` `[B, L, D]`, `vec` `[B, D]`, `pe` `[B, 1, L, d/2, 2, 2]`.
    pub fn forward(&self, x: &Tensor, vec: &Tensor, pe: &Tensor) -> Tensor {
        self.run(x, &self.modulation(vec), pe, 0)
    }

    /// What the conditioning vector makes of the block.
    pub(crate) fn modulation(&self, vec: &Tensor) -> ModulationOut {
        let [modulation] = self.modulation.forward(vec);
        modulation
    }

    /// Computes the tokens from `from` on: after a model's last block, nobody reads those of the text.
    pub(crate) fn run(&self, x: &Tensor, modulation: &ModulationOut, pe: &Tensor, from: i64) -> Tensor {
        let ModulationOut { shift, scale, gate } = modulation;
        let fused = ops::ParallelBlock {
            linear1: &self.linear1,
            linear2: &self.linear2,
            pre_norm: &self.pre_norm,
            scales: self.norm.scales(),
            num_heads: self.num_heads,
            hidden_size: self.hidden_size,
        };
        if let Some(out) = fused.fused(x, [shift, scale, gate], pe, from) {
            return out;
        }
        let x_mod = ops::modulate(&self.pre_norm, x, scale, shift);
        let linear1 = ops::linear(&self.linear1, &x_mod, ops::Epilogue::default()); // [B, L, 3·D + mlp]
        let qkv = linear1.narrow(-1, 0, 3 * self.hidden_size);
        let mlp = linear1.narrow(-1, 3 * self.hidden_size, linear1.size()[2] - 3 * self.hidden_size);

        let attn = joint_attention(&[(&qkv, &self.norm)], self.num_heads, pe); // [B, L, D]
        let both = Tensor::cat(&[attn, mlp.gelu("tanh")], 2);
        let out = ops::linear_gated_residual(&self.linear2, &both, gate, x);
        out.narrow(1, from, out.size()[1] - from)
    }
}

/// The final norm, modulated, and the projection to patches.
///
/// Source: `layers.py` lines 245–257.
#[derive(Debug)]
pub struct LastLayer {
    norm_final: LayerNorm,
    linear: Linear,
    ada_ln_modulation: Linear,
}

impl LastLayer {
    /// Declares `linear` and `adaLN_modulation.1` (shift first, then scale).
    pub fn new(vs: Path, hidden_size: i64, patch_size: i64, out_channels: i64) -> Self {
        Self {
            norm_final: LayerNorm::plain(hidden_size, 1e-6),
            linear: Linear::new(&vs / "linear", hidden_size, patch_size * patch_size * out_channels, true),
            ada_ln_modulation: Linear::new(&vs / "adaLN_modulation" / 1, hidden_size, 2 * hidden_size, true),
        }
    }

    /// `x` `[B, L, D]`, `vec` `[B, D]`: `[B, L, patch_size²·out_channels]`.
    pub fn forward(&self, x: &Tensor, vec: &Tensor) -> Tensor {
        self.run(x, &self.modulation(vec))
    }

    /// What the conditioning vector makes of the layer: shift and scale, `[B, 1, D]` each.
    pub(crate) fn modulation(&self, vec: &Tensor) -> [Tensor; 2] {
        let out = ops::linear(&self.ada_ln_modulation, &vec.silu(), ops::Epilogue::default()).unsqueeze(1);
        let dim = out.size()[2] / 2;
        [out.narrow(2, 0, dim), out.narrow(2, dim, dim)]
    }

    pub(crate) fn run(&self, x: &Tensor, [shift, scale]: &[Tensor; 2]) -> Tensor {
        let x = ops::modulate(&self.norm_final, x, scale, shift);
        ops::linear(&self.linear, &x, ops::Epilogue::default())
    }
}

/// A linear layer with a low-rank update beside it: `linear(x) + scale * lora_B(lora_A(x))`.
///
/// Source: `lora.py` lines 38–94. The names are those of the official control LoRAs: the layer's own `weight` and
/// `bias`, `lora_A.weight`, `lora_B.weight`, `lora_B.bias`.
#[derive(Debug)]
pub struct LinearLora {
    base: Linear,
    lora_a: Linear,
    lora_b: Linear,
    scale: f64,
}

impl LinearLora {
    /// The rank is at most the smaller of the two widths.
    pub fn new(
        vs: Path,
        in_features: i64,
        out_features: i64,
        bias: bool,
        rank: i64,
        lora_bias: bool,
        scale: f64,
    ) -> Self {
        let rank = rank.min(in_features).min(out_features);
        Self {
            base: Linear::new(vs.clone(), in_features, out_features, bias),
            lora_a: Linear::new(&vs / "lora_A", in_features, rank, false),
            lora_b: Linear::new(&vs / "lora_B", rank, out_features, lora_bias),
            scale,
        }
    }

    /// Changes the strength of the update; 0 leaves the base.
    pub fn set_scale(&mut self, scale: f64) {
        self.scale = scale;
    }
}

impl Module for LinearLora {
    fn forward(&self, input: &Tensor) -> Tensor {
        let base_out = self.base.forward(input);
        let lora_update = self.lora_b.forward(&self.lora_a.forward(input)) * self.scale;
        base_out + lora_update
    }
}

/// Attention over the streams one after the other, each `qkv` `[B, L, 3·H·d]` with norms of its own, rotated by `pe`
/// `[B, 1, ΣL, d/2, 2, 2]`: `[B, ΣL, H·d]`. What a single stream's `qkv` holds afterwards is not said.
fn joint_attention(streams: &[(&Tensor, &QkNorm)], num_heads: i64, pe: &Tensor) -> Tensor {
    let scaled: Vec<_> = streams.iter().map(|(qkv, norm)| Qkv { qkv, scales: norm.scales() }).collect();
    if let Some(out) = ops::joint_attention(&scaled, num_heads, pe) {
        return out;
    }
    let normed = |(qkv, norm): &(&Tensor, &QkNorm)| {
        let [q, k, v] = split_qkv(qkv, num_heads);
        let (q, k) = norm.forward(&q, &k, &v);
        [q, k, v]
    };
    let streams: Vec<[Tensor; 3]> = streams.iter().map(normed).collect();
    let [q, k, v] = [0, 1, 2].map(|i| match &streams[..] {
        [one] => one[i].shallow_clone(),
        _ => Tensor::cat(&streams.iter().map(|stream| &stream[i]).collect::<Vec<_>>(), 2),
    });
    math::attention(&q, &k, &v, pe)
}

/// `[B, L, 3·H·d]` as q, k and v `[B, H, L, d]`, views without a copy.
fn split_qkv(qkv: &Tensor, num_heads: i64) -> [Tensor; 3] {
    let (b, l, width) = (qkv.size()[0], qkv.size()[1], qkv.size()[2]);
    let qkv = qkv.reshape([b, l, 3, num_heads, width / (3 * num_heads)]).permute([2, 0, 3, 1, 4]);
    [0, 1, 2].map(|i| qkv.get(i))
}

fn head_dim(hidden_size: i64, num_heads: i64) -> Result<i64> {
    check_sizes(&[("hidden_size", hidden_size)])?;
    if num_heads <= 0 || hidden_size % num_heads != 0 {
        return Err(Error::Config(format!(
            "Hidden size {hidden_size} must be divisible by num_heads {num_heads}"
        )));
    }
    Ok(hidden_size / num_heads)
}

/// [`Error::Config`] unless the ratio makes an MLP of at least one and at most 2²² values.
pub(crate) fn check_mlp_ratio(hidden_size: i64, mlp_ratio: f64) -> Result<()> {
    if mlp_ratio.is_finite() && (1.0..=(1 << 22) as f64).contains(&(hidden_size as f64 * mlp_ratio)) {
        return Ok(());
    }
    Err(Error::Config(format!("mlp_ratio {mlp_ratio} makes no MLP for a hidden size of {hidden_size}")))
}

fn mlp_hidden_dim(hidden_size: i64, mlp_ratio: f64) -> i64 {
    (hidden_size as f64 * mlp_ratio) as i64
}
