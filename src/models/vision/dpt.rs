//! Depth Anything: how far away each pixel of a picture is, from DINOv2's states through the neck and head of DPT.
//!
//! Source: `transformers` 5.23.0, `models/depth_anything/modeling_depth_anything.py`
//! (`DepthAnythingForDepthEstimation`). The official code of FLUX.1's Depth runs `LiheYoung/depth-anything-large-hf`.

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use super::dinov2::{Dinov2, Dinov2Config};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::models::Model;
use crate::models::text::read_config;
use crate::nn::{Conv2d, ConvTranspose2d, Parameters, check_sizes};

/// The sizes of a depth model, in the names of its `config.json`; what may be left out there is as in the small one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DepthConfig {
    /// Sizes of the backbone.
    pub backbone_config: Dinov2Config,
    /// Pixels to a side of the backbone's patch.
    pub patch_size: i64,
    /// Width of the backbone's states.
    pub reassemble_hidden_size: i64,
    /// By which factor each of these states is enlarged: 4, 2, 1, and 0.5 for half.
    pub reassemble_factors: Vec<f64>,
    /// Channels of each state after that.
    pub neck_hidden_sizes: Vec<i64>,
    /// Channels of the sums of the states.
    pub fusion_hidden_size: i64,
    /// Which of the sums the head reads; below 0 they count from the end.
    pub head_in_index: i64,
    /// Channels before the head's last layer.
    pub head_hidden_size: i64,
    /// `relative`: near is large, and 0 is far; `metric`: metres.
    pub depth_estimation_type: String,
    /// What the depth is multiplied by; `None` stands for 1.
    pub max_depth: Option<f64>,
}

impl Default for DepthConfig {
    fn default() -> Self {
        Self {
            backbone_config: Dinov2Config {
                hidden_size: 384,
                num_attention_heads: 6,
                image_size: 518,
                out_indices: Some(vec![9, 10, 11, 12]),
                ..Dinov2Config::default()
            },
            patch_size: 14,
            reassemble_hidden_size: 384,
            reassemble_factors: vec![4.0, 2.0, 1.0, 0.5],
            neck_hidden_sizes: vec![48, 96, 192, 384],
            fusion_hidden_size: 64,
            head_in_index: -1,
            head_hidden_size: 32,
            depth_estimation_type: "relative".into(),
            max_depth: Some(1.0),
        }
    }
}

impl DepthConfig {
    /// Returns the sizes of the large model of the first version (`LiheYoung/depth-anything-large-hf`), which the official code
    /// runs. The large model of the second version reads other states.
    pub fn large() -> Self {
        Self {
            backbone_config: Dinov2Config {
                hidden_size: 1024,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                image_size: 518,
                out_indices: Some(vec![21, 22, 23, 24]),
                ..Dinov2Config::default()
            },
            reassemble_hidden_size: 1024,
            neck_hidden_sizes: vec![256, 512, 1024, 1024],
            fusion_hidden_size: 256,
            ..Self::default()
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`].
    pub fn read(path: impl AsRef<std::path::Path>) -> Result<Self> {
        read_config(path.as_ref())
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("patch_size", self.patch_size),
            ("reassemble_hidden_size", self.reassemble_hidden_size),
            // The head halves it.
            ("half of fusion_hidden_size", self.fusion_hidden_size / 2),
            ("fusion_hidden_size", self.fusion_hidden_size),
            ("head_hidden_size", self.head_hidden_size),
        ])?;
        self.neck_hidden_sizes.iter().try_for_each(|size| check_sizes(&[("neck_hidden_sizes", *size)]))?;
        let wrong = |text: String| Err(Error::Config(text));
        let (states, sizes) = (self.backbone_config.outputs()?.len(), self.neck_hidden_sizes.len());
        if states != sizes || self.reassemble_factors.len() != sizes {
            let factors = self.reassemble_factors.len();
            return wrong(format!(
                "{states} states of the backbone, {sizes} sizes and {factors} factors of the neck"
            ));
        }
        if self.head_index().is_none() {
            return wrong(format!("head_in_index {} is none of the neck's {sizes} sums", self.head_in_index));
        }
        if let Some(factor) = self.reassemble_factors.iter().find(|&&factor| resize_factor(factor).is_none())
        {
            return wrong(format!(
                "reassemble_factors: {factor} is no whole number, nor one over a whole number"
            ));
        }
        let backbone = &self.backbone_config;
        if self.reassemble_hidden_size != backbone.hidden_size || self.patch_size != backbone.patch_size {
            return wrong(
                "the neck was made for another backbone: another width, or another size of patch".into(),
            );
        }
        match self.depth_estimation_type.as_str() {
            "relative" | "metric" => Ok(()),
            other => wrong(format!("depth_estimation_type is {other:?}; relative and metric are known")),
        }
    }

    /// Returns the index of the sum that the head reads.
    fn head_index(&self) -> Option<usize> {
        let sums = self.neck_hidden_sizes.len() as i64;
        let index = if self.head_in_index < 0 { self.head_in_index + sums } else { self.head_in_index };
        (0..sums).contains(&index).then_some(index as usize)
    }
}

/// How the neck changes the sides of a state.
enum ResizeFactor {
    Up(i64),
    Same,
    Down(i64),
}

fn resize_factor(factor: f64) -> Option<ResizeFactor> {
    let whole = |times: f64| (times.fract() == 0.0 && (2.0..=64.0).contains(&times)).then_some(times as i64);
    match factor {
        1.0 => Some(ResizeFactor::Same),
        factor if factor > 1.0 => whole(factor).map(ResizeFactor::Up),
        factor => whole(1.0 / factor).map(ResizeFactor::Down),
    }
}

/// A state of the backbone as a picture of its patches, larger or smaller.
#[derive(Debug)]
struct Reassemble {
    projection: Conv2d,
    resize: Option<Resize>,
}

#[derive(Debug)]
enum Resize {
    Up(ConvTranspose2d),
    Down(Conv2d),
}

impl Reassemble {
    fn new(vs: Path, hidden: i64, channels: i64, factor: f64) -> Self {
        Self {
            projection: Conv2d::new(&vs / "projection", hidden, channels, 1, 1, 0),
            resize: match resize_factor(factor) {
                Some(ResizeFactor::Up(times)) => {
                    Some(Resize::Up(ConvTranspose2d::new(&vs / "resize", channels, channels, times)))
                }
                Some(ResizeFactor::Down(times)) => {
                    Some(Resize::Down(Conv2d::new(&vs / "resize", channels, channels, 3, times, 1)))
                }
                Some(ResizeFactor::Same) | None => None,
            },
        }
    }
}

impl Module for Reassemble {
    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.projection.forward(x);
        match &self.resize {
            Some(Resize::Up(resize)) => resize.forward(&x),
            Some(Resize::Down(resize)) => resize.forward(&x),
            None => x,
        }
    }
}

/// Two convolutions behind their activations, and a shortcut.
#[derive(Debug)]
struct Residual {
    convolution1: Conv2d,
    convolution2: Conv2d,
}

impl Residual {
    fn new(vs: Path, channels: i64) -> Self {
        let conv = |name: &str| Conv2d::new(&vs / name, channels, channels, 3, 1, 1);
        Self { convolution1: conv("convolution1"), convolution2: conv("convolution2") }
    }
}

impl Module for Residual {
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.convolution1.forward(&x.relu());
        self.convolution2.forward(&h.relu()) + x
    }
}

/// Adds a state to the sum of those before it.
#[derive(Debug)]
struct Fusion {
    projection: Conv2d,
    residual_layer1: Residual,
    residual_layer2: Residual,
}

impl Fusion {
    fn new(vs: Path, channels: i64) -> Self {
        Self {
            projection: Conv2d::new(&vs / "projection", channels, channels, 1, 1, 0),
            residual_layer1: Residual::new(&vs / "residual_layer1", channels),
            residual_layer2: Residual::new(&vs / "residual_layer2", channels),
        }
    }

    /// Adds `state` to the sum of the states before it. The result has the sides `size`, or sides twice as long.
    fn forward(&self, sum: &Tensor, state: Option<&Tensor>, size: Option<[i64; 2]>) -> Tensor {
        let sum = match state {
            Some(state) if state.size() == sum.size() => sum + self.residual_layer1.forward(state),
            Some(state) => {
                let sides = [sum.size()[2], sum.size()[3]];
                sum + self.residual_layer1.forward(&state.upsample_bilinear2d(sides, false, None, None))
            }
            None => sum.shallow_clone(),
        };
        let sum = self.residual_layer2.forward(&sum);
        let sum = match size {
            Some(size) => sum.upsample_bilinear2d(size, true, None, None),
            None => sum.upsample_bilinear2d_vec(None::<&[i64]>, true, [2.0, 2.0]),
        };
        self.projection.forward(&sum)
    }
}

/// The backbone's states, each larger than the next, summed from the smallest on.
#[derive(Debug)]
struct Neck {
    reassemble: Vec<Reassemble>,
    convs: Vec<Conv2d>,
    fusion: Vec<Fusion>,
}

impl Neck {
    fn new(vs: Path, config: &DepthConfig) -> Self {
        let (states, convs) = (&vs / "reassemble_stage" / "layers", &vs / "convs");
        let (fusion, width) = (&vs / "fusion_stage" / "layers", config.fusion_hidden_size);
        let sizes = config.neck_hidden_sizes.iter().zip(&config.reassemble_factors).enumerate();
        let reassemble = sizes.map(|(i, (&channels, &factor))| {
            Reassemble::new(&states / i, config.reassemble_hidden_size, channels, factor)
        });
        let sizes = config.neck_hidden_sizes.iter().enumerate();
        let convs = sizes.clone().map(|(i, &size)| Conv2d::without_bias(&(&convs / i), size, width, 3, 1, 1));
        Self {
            reassemble: reassemble.collect(),
            convs: convs.collect(),
            fusion: sizes.map(|(i, _)| Fusion::new(&fusion / i, width)).collect(),
        }
    }

    /// Returns the sums `[B, C, H, W]`, the smallest first, of states `[B, 1 + L, D]` of `down` × `across` patches.
    fn forward(&self, states: &[Tensor], [down, across]: [i64; 2]) -> Result<Vec<Tensor>> {
        let mut features = Vec::new();
        for ((state, reassemble), conv) in states.iter().zip(&self.reassemble).zip(&self.convs) {
            let (b, l, d) = (state.size()[0], state.size()[1], state.size()[2]);
            let patches = state.f_narrow(1, 1, l - 1)?.f_reshape([b, down, across, d])?;
            let patches = patches.f_permute([0, 3, 1, 2])?.f_contiguous()?; // [B, D, down, across]
            features.push(conv.forward(&reassemble.forward(&patches)));
        }
        features.reverse();
        let mut sums: Vec<Tensor> = Vec::new();
        for (i, (feature, fusion)) in features.iter().zip(&self.fusion).enumerate() {
            let size = features.get(i + 1).map(|next| [next.size()[2], next.size()[3]]);
            sums.push(match sums.last() {
                None => fusion.forward(feature, None, size),
                Some(sum) => fusion.forward(sum, Some(feature), size),
            });
        }
        Ok(sums)
    }
}

/// A sum of the neck to depths.
#[derive(Debug)]
struct Head {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    metric: bool,
    max_depth: f64,
}

impl Head {
    fn new(vs: Path, config: &DepthConfig) -> Self {
        let (width, hidden) = (config.fusion_hidden_size, config.head_hidden_size);
        Self {
            conv1: Conv2d::new(&vs / "conv1", width, width / 2, 3, 1, 1),
            conv2: Conv2d::new(&vs / "conv2", width / 2, hidden, 3, 1, 1),
            conv3: Conv2d::new(&vs / "conv3", hidden, 1, 1, 1, 0),
            metric: config.depth_estimation_type == "metric",
            max_depth: config.max_depth.unwrap_or(1.0),
        }
    }

    /// Returns depths `[B, H, W]` of a sum `[B, C, h, w]`.
    fn forward(&self, sum: &Tensor, sides: [i64; 2]) -> Tensor {
        let x = self.conv1.forward(sum).upsample_bilinear2d(sides, true, None, None);
        let x = self.conv3.forward(&self.conv2.forward(&x).relu());
        let depth = if self.metric { x.sigmoid() } else { x.relu() };
        (depth * self.max_depth).squeeze_dim(1)
    }
}

/// A depth model in the names of `transformers.DepthAnythingForDepthEstimation` (`backbone.…`, `neck.…`, `head.…`), of
/// either version of Depth Anything.
#[derive(Debug)]
#[doc(alias = "DepthAnythingForDepthEstimation")]
pub struct DepthAnything {
    backbone: Dinov2,
    neck: Neck,
    head: Head,
    head_index: usize,
    config: DepthConfig,
    parameters: Parameters,
}

impl Model for DepthAnything {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl DepthAnything {
    /// Declares every parameter.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit each other.
    pub fn new(vs: Path, config: &DepthConfig) -> Result<Self> {
        config.check()?;
        let collector = Parameters::collect(&vs);
        Ok(Self {
            backbone: Dinov2::new(&vs / "backbone", &config.backbone_config)?,
            neck: Neck::new(&vs / "neck", config),
            head: Head::new(&vs / "head", config),
            head_index: config.head_index().unwrap_or_default(),
            config: config.clone(),
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn config(&self) -> &DepthConfig {
        &self.config
    }

    /// Returns the depths `[B, H, W]` of pictures `[B, 3, H, W]`, as [`pixel_values`] makes them; near is large where the model
    /// is `relative`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the sides are no multiples of a patch's; [`Error::Unfilled`].
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let _scope = self.parameters.enter()?;
        let states = self.backbone.forward(pixel_values)?;
        let patch = self.config.patch_size;
        let patches = [2, 3].map(|axis| pixel_values.size()[axis] / patch);
        let sums = self.neck.forward(&states, patches)?;
        Ok(self.head.forward(&sums[self.head_index], patches.map(|side| side * patch)))
    }

    /// Returns the depths of a picture as FLUX.1 Depth was trained on them, `[1, 3, H, W]` in the size of the picture: the
    /// output of the model over 127.5, minus 1, as if it were bytes.
    ///
    /// Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/image_embedders.py`, `DepthImageEncoder`.
    ///
    /// # Errors
    /// As [`DepthAnything::forward`].
    pub fn map(&self, picture: &Image) -> Result<Tensor> {
        let device = self.head.conv3.weight().device();
        let pixels = pixel_values(&requantize_bytes(picture))?.f_to_device(device)?;
        let depth = self.forward(&pixels)?.f_to_kind(Kind::Float)?;
        let depth = depth.f_unsqueeze(1)?.f_expand([-1, 3, -1, -1], false)?;
        let depth = resize_bicubic(&depth, [i64::from(picture.height), i64::from(picture.width)])?;
        Ok(depth / 127.5 - 1.0)
    }
}

/// Returns the picture as the official code passes it on: it was in −1..1 in between, and the conversion back to bytes cuts
/// off values that are a last bit short of a whole number.
fn requantize_bytes(picture: &Image) -> Image {
    let requantize = |byte: &u8| ((f32::from(*byte) / 127.5 - 1.0 + 1.0) * 127.5) as u8;
    Image { rgb: picture.rgb.iter().map(requantize).collect(), ..*picture }
}

/// Resizes `[B, C, H, W]` with the bits of `torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True)`.
///
/// # Errors
/// [`Error::Tch`] for a tensor that does not have four axes.
pub fn resize_bicubic(x: &Tensor, [height, width]: [i64; 2]) -> Result<Tensor> {
    Ok(x.f_internal_upsample_bicubic2d_aa([height, width], false, None, None)?)
}

/// The side that a picture is resized to, what its sides are multiples of, and how its channels are normalised.
///
/// Source: `preprocessor_config.json` of `LiheYoung/depth-anything-large-hf`, and of the other sizes and versions.
const SIDE: f64 = 518.0;
const MULTIPLE: f64 = 14.0;
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Returns the size that a picture is resized to: the side that changes less becomes 518, the other keeps the aspect ratio,
/// and both are rounded to whole patches, of which there is at least one.
///
/// Source: `transformers` 5.23.0, `models/dpt/image_processing_pil_dpt.py`, `get_resize_output_image_size`.
fn size_for(width: u32, height: u32) -> (u32, u32) {
    let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let (wider, higher) = (SIDE / width, SIDE / height);
    let factor = if (1.0 - wider).abs() < (1.0 - higher).abs() { wider } else { higher };
    let rounded = |side: f64| ((factor * side / MULTIPLE).round_ties_even() * MULTIPLE).max(MULTIPLE) as u32;
    (rounded(width), rounded(height))
}

/// Returns a picture as the depth models read it, `[1, 3, H, W]`: resized with Pillow's `BICUBIC`, and each channel normalised
/// by the mean and the standard deviation of ImageNet.
///
/// Source: `transformers` 5.23.0, `DPTImageProcessorPil` with the settings of `LiheYoung/depth-anything-large-hf`.
///
/// # Errors
/// [`Error::Tch`] where memory runs out.
pub fn pixel_values(picture: &Image) -> Result<Tensor> {
    let (width, height) = size_for(picture.width, picture.height);
    let picture = picture.resize_bicubic(width, height);
    let table = [0, 1, 2].map(|channel| {
        let value = |byte: u8| ((f64::from(byte) * (1.0 / 255.0)) as f32 - MEAN[channel]) / STD[channel];
        std::array::from_fn::<f32, 256, _>(|byte| value(byte as u8))
    });
    let pixels = (width * height) as usize;
    let mut values = Vec::with_capacity(3 * pixels);
    for (channel, table) in table.iter().enumerate() {
        values.extend(picture.rgb.chunks_exact(3).map(|pixel| table[usize::from(pixel[channel])]));
    }
    Ok(Tensor::f_from_slice(&values)?.f_reshape([1, 3, i64::from(height), i64::from(width)])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch 2.13.0 makes of all bytes: `((v.float() / 127.5 - 1.0 + 1.0) * 127.5).byte()`.
    #[test]
    fn small_bytes_lose_one_on_their_way_as_officially() {
        let picture = Image { width: 256, height: 1, rgb: (0..=255).flat_map(|byte| [byte; 3]).collect() };
        for (before, after) in picture.rgb.iter().zip(&requantize_bytes(&picture).rgb) {
            let lost = u8::from((1..64).contains(before));
            assert_eq!(*after, before - lost, "{before}");
        }
    }

    /// As `get_resize_output_image_size` of transformers 5.23.0 has them, with 518 and multiples of 14.
    #[test]
    fn pictures_are_resized_to_patches_near_518() {
        let sizes = [(64, 64), (1024, 1024), (640, 480), (480, 640), (1920, 1080), (518, 300), (16, 2048)];
        let taken = sizes.map(|(width, height)| size_for(width, height));
        let expected = [(518, 518), (518, 518), (686, 518), (518, 686), (924, 518), (518, 294)];
        assert_eq!(taken[..6], expected);
        // There no patch was left of the width.
        assert_eq!(taken[6], (14, 518));
    }

    #[test]
    fn sizes_that_do_not_fit_each_other_are_refused() {
        let small = DepthConfig::default();
        assert!(small.check().is_ok());
        let wrong = [
            DepthConfig { reassemble_factors: vec![4.0, 2.0, 1.0], ..small.clone() },
            DepthConfig { reassemble_factors: vec![4.0, 2.0, 1.0, 0.3], ..small.clone() },
            DepthConfig { head_in_index: 4, ..small.clone() },
            DepthConfig { reassemble_hidden_size: 768, ..small.clone() },
            DepthConfig { depth_estimation_type: "absolute".into(), ..small.clone() },
        ];
        for config in wrong {
            assert!(matches!(config.check(), Err(Error::Config(_))), "{config:?}");
        }
    }
}
