//! The basic layers: linear, convolution, norms and embedding with the names (`weight`, `bias`) and the order of operations
//! of PyTorch's `nn`, over parameters that take no memory until they are filled.

mod linear;
mod offload;
mod parameters;

use std::cell::RefCell;

use tch::nn::{Module, Path, VarStore};
use tch::{Kind, Tensor};

pub(crate) use linear::{Block, Weight};
pub use linear::{Linear, Linears};
pub(crate) use offload::WeightSource;
pub use parameters::Parameters;

use crate::error::{Error, Result};
use crate::shim;
use linear::Slot;

/// Declares the parameter `name` of the shape `size` in the variable store, without memory and without values.
///
/// A placeholder is a single NaN, seen through strides of zero. A checkpoint or [`init`] replaces it in place, so every
/// layer that holds it sees the values. It is trainable: freeze the store for inference.
pub fn declare(vs: &Path, name: &str, size: &[i64]) -> Tensor {
    let parameter = vs.add(name, placeholder(vs.kind(), vs.device(), size), true);
    collect(|declared| declared.parameters.push((vs.path(name), parameter.shallow_clone())));
    parameter
}

fn placeholder(kind: Kind, device: tch::Device, size: &[i64]) -> Tensor {
    Tensor::full([1], f64::NAN, (kind, device)).expand(size, false)
}

/// Returns [`Error::Config`] unless every size is one that a model can have: 1 to 2²².
pub(crate) fn check_sizes(sizes: &[(&str, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=1 << 22).contains(size)) {
        Some((name, size)) => {
            Err(Error::Config(format!("{name} must be between 1 and {}, not {size}", 1 << 22)))
        }
        None => Ok(()),
    }
}

/// Returns [`Error::Kind`] unless a tensor that becomes `kind` fits a layer's weights. Under autocast libtorch casts.
pub(crate) fn check_kind(what: &'static str, x: &Tensor, kind: Kind, weight: &Tensor) -> Result<()> {
    let (expected, found) = ((weight.kind(), weight.device()), (kind, x.device()));
    if expected == found || (expected.1 == found.1 && shim::autocast_is_enabled(found.1)) {
        return Ok(());
    }
    Err(Error::Kind { what, expected, found })
}

/// Returns whether a parameter is still the placeholder that [`declare`] made.
pub fn is_placeholder(parameter: &Tensor) -> bool {
    let is_expanded =
        parameter.size().into_iter().zip(parameter.stride()).all(|(n, stride)| n == 1 || stride == 0);
    match parameter.numel() {
        0 => false,
        // The strides of a single value say nothing.
        1 => parameter.dim() > 0 && f64::try_from(parameter.flatten(0, -1).get(0)).is_ok_and(f64::is_nan),
        _ => is_expanded,
    }
}

/// Gives every placeholder of the store random values, as PyTorch's constructors do: uniform within ±1/√fan_in for
/// weights and biases, 1 for the scales of norms, 0 for their biases. The same seed gives the same values.
///
/// # Errors
/// [`Error::Tch`] where memory runs out.
pub fn init(vs: &VarStore, seed: u64) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let variables = vs.variables();
    let mut names: Vec<_> = variables.keys().cloned().collect();
    names.sort();
    for (i, name) in names.iter().enumerate() {
        let mut parameter = variables[name].shallow_clone();
        if !is_placeholder(&parameter) {
            continue;
        }
        let size = parameter.size();
        let weight = name.strip_suffix("bias").and_then(|layer| variables.get(&format!("{layer}weight")));
        let value = match (size.len(), weight.map(Tensor::size)) {
            // A vector without a weight of the same layer is the scale of a norm.
            (1, None) => Tensor::f_ones(&size, (Kind::Float, tch::Device::Cpu))?,
            (1, Some(weight)) if weight.len() == 1 => {
                Tensor::f_zeros(&size, (Kind::Float, tch::Device::Cpu))?
            }
            (_, weight) => {
                let fan_in: i64 = weight.unwrap_or_else(|| size.clone())[1..].iter().product();
                // The distribution function of the normal makes a uniform value of a normal one.
                let uniform = (shim::randn(&size, seed.wrapping_add(i as u64))? / 2f64.sqrt()).erf();
                uniform / (fan_in as f64).sqrt()
            }
        };
        parameter.f_set_data(&value.f_to_kind(vs.kind())?.f_to_device(vs.device())?)?;
    }
    Ok(())
}

thread_local! {
    /// Those of the constructors that run on this thread, the innermost last.
    static COLLECTORS: RefCell<Vec<Declarations>> = const { RefCell::new(Vec::new()) };
}

/// What a constructor has declared.
#[derive(Default)]
struct Declarations {
    parameters: Vec<(String, Tensor)>,
    linears: Vec<(String, Slot, Tensor)>,
}

/// Adds to what the innermost constructor on this thread has declared.
fn collect(add: impl FnOnce(&mut Declarations)) {
    COLLECTORS.with_borrow_mut(|open| {
        if let Some(declared) = open.last_mut() {
            add(declared);
        }
    });
}

/// `torch.nn.Conv2d` with a square kernel: `[B, C, H, W]`.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// Declares `weight` `[out, in, kernel, kernel]` and `bias` `[out]`.
    pub fn new(
        vs: Path,
        in_channels: i64,
        out_channels: i64,
        kernel_size: i64,
        stride: i64,
        padding: i64,
    ) -> Self {
        let conv = Self::without_bias(&vs, in_channels, out_channels, kernel_size, stride, padding);
        Self { bias: Some(declare(&vs, "bias", &[out_channels])), ..conv }
    }

    /// Declares `weight` alone (`bias=False`).
    pub fn without_bias(
        vs: &Path,
        in_channels: i64,
        out_channels: i64,
        kernel_size: i64,
        stride: i64,
        padding: i64,
    ) -> Self {
        let weight = declare(vs, "weight", &[out_channels, in_channels, kernel_size, kernel_size]);
        Self { weight, bias: None, stride, padding }
    }

    /// Returns the kernels.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(crate) fn stride(&self) -> i64 {
        self.stride
    }

    pub(crate) fn padding(&self) -> i64 {
        self.padding
    }
}

impl Module for Conv2d {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        xs.conv2d(&self.weight, self.bias.as_ref(), stride, padding, [1, 1], 1)
    }
}

/// `torch.nn.ConvTranspose2d` whose kernel is as wide as its stride, so that no two pixels write to the same place:
/// `[B, C, H, W]` to `[B, C', H·stride, W·stride]`.
#[derive(Debug)]
pub struct ConvTranspose2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

impl ConvTranspose2d {
    /// Declares `weight` `[in, out, stride, stride]` and `bias` `[out]`.
    pub fn new(vs: Path, in_channels: i64, out_channels: i64, stride: i64) -> Self {
        Self {
            weight: declare(&vs, "weight", &[in_channels, out_channels, stride, stride]),
            bias: declare(&vs, "bias", &[out_channels]),
            stride,
        }
    }
}

impl Module for ConvTranspose2d {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.conv_transpose2d(&self.weight, Some(&self.bias), [self.stride; 2], [0, 0], [0, 0], 1, [1, 1])
    }
}

/// `torch.nn.GroupNorm` over 32 groups with eps 1e-6, as the autoencoder has it.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    pub(crate) const GROUPS: i64 = 32;
    pub(crate) const EPS: f64 = 1e-6;

    /// Declares `weight` and `bias` of `num_channels` values.
    pub fn new(vs: Path, num_channels: i64) -> Self {
        Self { weight: declare(&vs, "weight", &[num_channels]), bias: declare(&vs, "bias", &[num_channels]) }
    }

    /// Returns weight and bias.
    pub(crate) fn affine(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }
}

impl Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.group_norm(Self::GROUPS, Some(&self.weight), Some(&self.bias), Self::EPS, true)
    }
}

/// `torch.nn.LayerNorm` over the last axis.
#[derive(Debug)]
pub struct LayerNorm {
    affine: Option<(Tensor, Tensor)>,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    /// Declares `weight` and `bias`.
    pub fn new(vs: Path, width: i64, eps: f64) -> Self {
        let affine = Some((declare(&vs, "weight", &[width]), declare(&vs, "bias", &[width])));
        Self { affine, width, eps }
    }

    /// Without parameters (`elementwise_affine=False`).
    pub fn plain(width: i64, eps: f64) -> Self {
        Self { affine: None, width, eps }
    }

    /// Returns what is added to the variance, where there are no parameters.
    pub(crate) fn plain_eps(&self) -> Option<f64> {
        self.affine.is_none().then_some(self.eps)
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (weight, bias) = self.affine.as_ref().map(|(w, b)| (w, b)).unzip();
        xs.layer_norm([self.width], weight, bias, self.eps, true)
    }
}

/// `torch.nn.Embedding`: indices `[…]` to `[…, D]`.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Declares `weight` `[num_embeddings, embedding_dim]`.
    pub fn new(vs: Path, num_embeddings: i64, embedding_dim: i64) -> Self {
        Self { weight: declare(&vs, "weight", &[num_embeddings, embedding_dim]) }
    }
}

impl Module for Embedding {
    fn forward(&self, indices: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, indices, -1, false, false)
    }
}
