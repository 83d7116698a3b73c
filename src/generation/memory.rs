//! What a request takes of memory, and what there is.

use std::collections::BTreeMap;

use tch::{Device, Kind};

use super::conditions::control::ControlNets;
use super::loader::Loader;
use super::opened::is_tiny;
use super::{ControlPreprocess, Edit, Offload, PartKind, PreviewBy, Request, Settings, Weights};
use crate::checkpoint::Access;
use crate::error::{Hint, Result};
use crate::models::TransformerParams;
use crate::numerics::{Numerics, Quantize};
use crate::shim;

/// Bytes that a request takes beyond what the pipeline holds already, at the peak of each phase. Weights that are borrowed
/// from a mapped file are not counted: the system can drop them and read them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Text encoders, and what reads the pictures of Redux.
    pub text: u64,
    /// Transformer.
    pub denoise: u64,
    /// Autoencoder.
    pub decode: u64,
}

impl Memory {
    /// Of the phase that takes most.
    pub fn peak(&self) -> u64 {
        self.text.max(self.denoise).max(self.decode)
    }
}

/// Numbers that a step holds at once for each token and each of the transformer's channels: measured with one double
/// and two single blocks of FLUX.1's width and 1280 tokens, with a tenth added.
const DENOISE: [u64; 2] = [32, 19];
/// Numbers that decoding holds at once for each pixel and each of the first level's channels: measured at 512 × 512,
/// with a tenth added.
const DECODE: [u64; 2] = [10, 7];

/// The same of TAEF1 in both numerics, measured at 768 × 768.
const DECODE_TINY: u64 = 5;

/// Bytes that the large depth model takes for a picture, whatever its size, beside its weights.
const DEPTH: u64 = 1 << 30;

/// What the weights take, from the headers of their files.
#[derive(Debug)]
pub(super) struct WeightSizes {
    /// What the weights of each part take of memory of their own.
    pub(super) bytes: BTreeMap<PartKind, u64>,
    /// Whether the autoencoder is a tiny one.
    pub(super) is_tiny: bool,
}

impl WeightSizes {
    /// Of these weights of all parts.
    pub(super) fn new(loader: &Loader, weights: &[Weights]) -> Result<Self> {
        let mut bytes = BTreeMap::new();
        for weights in weights {
            *bytes.entry(weights.part).or_default() += own_bytes(weights, &loader.settings);
        }
        Ok(Self { bytes, is_tiny: is_tiny(&loader.open_autoencoder()?) })
    }
}

/// The lengths of what the transformer reads for a picture, in tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens {
    pub(super) image: i64,
    /// Of the text, with what stands behind it.
    pub(super) text: i64,
    /// Of the pictures that stand beside the one that is drawn.
    pub(super) references: i64,
}

impl Tokens {
    pub(super) fn sum(&self) -> i64 {
        self.image + self.text + self.references
    }
}

/// What a request is to the models.
pub(super) struct MemoryInputs<'a> {
    /// With nothing left open.
    pub(super) request: &'a Request,
    pub(super) tokens: Tokens,
    pub(super) params: &'a TransformerParams,
    pub(super) controlnets: &'a ControlNets,
    /// Whether the autoencoder encodes any of its pictures.
    pub(super) encodes: bool,
    /// The kind of the transformer.
    pub(super) kind: Kind,
    pub(super) preview: Option<&'a PreviewBy>,
    pub(super) is_tiny: bool,
}

/// Which of two the numerics take: exact, fast.
fn form(numbers: [u64; 2], numerics: Numerics) -> u64 {
    numbers[usize::from(numerics == Numerics::Fast)]
}

impl MemoryInputs<'_> {
    /// What so many pictures take that are computed together, where the weights of each part take so much.
    pub(super) fn memory(
        &self,
        settings: &Settings,
        pictures: usize,
        own: &dyn Fn(PartKind) -> u64,
    ) -> Memory {
        let request = self.request;
        let offloads = settings.offload != Offload::None;
        let (transformer, autoencoder) = (own(PartKind::Transformer), own(PartKind::Autoencoder));
        let vision =
            if request.redux.is_some() { own(PartKind::ImageEncoder) + own(PartKind::Redux) } else { 0 };
        let sees = if request.pictured.is_empty() { 0 } else { own(PartKind::ClipVision) };
        let encoders: u64 = PartKind::TEXT_ENCODERS.into_iter().map(own).sum();
        let text = encoders + vision + sees;
        let kept = if settings.keep_text_encoders && !offloads { text } else { 0 };
        let controlnets = if request.controls.is_empty() { 0 } else { own(PartKind::ControlNet) };
        let adapters = if request.pictured.is_empty() { 0 } else { own(PartKind::IpAdapter) };
        let added = controlnets + adapters;

        let p = self.params;
        let number = self.kind.elt_size_in_bytes() as u64;
        let tokens = self.tokens.sum().unsigned_abs() * pictures as u64;
        // What ControlNets say stays until the step is done; of several, two at a time.
        let said = request.controls.iter().filter_map(|control| self.controlnets.params().nth(control.net));
        let said = said.map(|net| net.flux.depth + net.flux.depth_single_blocks).max().unwrap_or(0) as u64;
        let said = said * (request.controls.len() as u64).min(2);
        let numbers = form(DENOISE, settings.numerics) + said;
        let step = tokens * p.hidden_size().unsigned_abs() * number * numbers;
        // The wider of T5's two: its MLP. In the kinds that the fast form widens, f32. A picture of Redux has about as
        // many tokens, and SigLIP is no wider.
        let encoding = self.tokens.text.unsigned_abs() * p.context_in_dim().unsigned_abs() * 4 * 16;
        let after = if offloads { 0 } else { transformer + added };
        let tile = settings.vae_tile.map_or(u64::MAX, |tile| tile.max(0).unsigned_abs());
        let latent = p.family().latent();
        let side = |pixels: i64| {
            let pixels = latent.patches(pixels.max(0)) * latent.patch_pixels();
            pixels.unsigned_abs().min(tile)
        };
        let pixels = side(request.width) * side(request.height);
        let tiny = pixels * TINY_CHANNELS * 4 * DECODE_TINY;
        let full = pixels * AUTOENCODER_CHANNELS * 4 * form(DECODE, settings.numerics);
        let decoding = if self.is_tiny { tiny } else { full };
        let by_decoder = matches!(self.preview, Some(PreviewBy::Decoder(_)));
        let mut beside = 0;
        // What was encoded before the first step needs the autoencoder no more where it is offloaded. Where it is not, it
        // stays while the pictures after the first ones are drawn.
        let images = request.prompts.len() * request.num_images;
        let stays = !offloads && (self.encodes || images > pictures);
        if stays || request.previews > 0 && self.preview.is_none() {
            beside += autoencoder;
        }
        if request.previews > 0 && by_decoder {
            beside += own(PartKind::PreviewDecoder) + tiny;
        }
        let follows = |edit: &Edit| edit.follow == ControlPreprocess::Depth;
        let depths =
            if request.edit.as_deref().is_some_and(follows) { own(PartKind::Depth) + DEPTH } else { 0 };
        Memory {
            text: text + encoding,
            // Depths are found before the first step.
            denoise: kept + beside + transformer + added + step.max(depths),
            decode: kept + after + autoencoder + decoding,
        }
    }
}

/// What would make it fit.
pub(super) fn hints(settings: &Settings, memory: &Memory, free: u64) -> Vec<Hint> {
    let mut hints = vec![Hint::SmallerPicture];
    if memory.decode > free && settings.vae_tile.is_none() {
        hints.push(Hint::VaeTile);
    }
    if settings.keep_text_encoders {
        hints.push(Hint::ReleaseTextEncoders);
    }
    if memory.denoise > free && !settings.keep_quantized && settings.quantize == Quantize::None {
        hints.push(Hint::QuantizedWeights);
    }
    hints
}

/// Of the first level of FLUX.1's autoencoder.
const AUTOENCODER_CHANNELS: u64 = 128;
/// Of every layer of TAEF1.
const TINY_CHANNELS: u64 = 64;

/// What a part's weights take of memory of their own.
fn own_bytes(weights: &Weights, settings: &Settings) -> u64 {
    let borrowed = settings.device == Device::Cpu
        && settings.access == Access::Map
        && weights.in_memory.keys().all(|kind| weights.on_disk.contains_key(kind));
    if borrowed { 0 } else { weights.in_memory.values().sum() }
}

/// Bytes that are free on a device, if the system says.
pub(crate) fn free_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => free_host_bytes(),
        Device::Cuda(index) => shim::free_bytes(index),
        _ => None,
    }
}

/// What programs may still take: what the machine has, and what the control group allows where there is one.
fn free_host_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    Some(group_bytes("/sys/fs/cgroup").map_or(machine, |group| group.min(machine)))
}

/// What the control group at this path leaves; `None` without a limit.
fn group_bytes(path: &str) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("{path}/{name}")).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (most, current) = (number("memory.max")?, number("memory.current")?);
    // Of what it holds, files can be dropped.
    let stat = read("memory.stat").unwrap_or_default();
    let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(most.saturating_sub(current.saturating_sub(files.unwrap_or(0))))
}
