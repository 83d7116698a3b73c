//! How a request fits into so much memory.

use std::collections::BTreeMap;

use tch::Device;

use super::models::OpenPart;
use super::{Memory, Offload, PartKind, Settings, Weights};
use crate::error::{Error, Hint, Result};
use crate::family::ModelFamily;
use crate::models::Transformer;
use crate::numerics::Quantize;
use crate::ops;

/// What libtorch, its libraries and this program take of the host's memory by themselves once they have run: measured on
/// Linux with libtorch 2.13, with some added.
const PROGRAM: u64 = 700 << 20;

/// What is quantised lies in whole pages, as large as the system has them.
const PAGE: u64 = 2 << 20;

/// Sides of the tiles that are tried, in pixels: the largest that fits is taken.
const TILES: [i64; 6] = [1024, 768, 512, 384, 256, 192];

/// What is done so that a request stays under a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The figure, in bytes.
    pub limit: u64,
    /// What is expected of each phase, the program itself included; weights in mapped files are counted.
    pub expected: Memory,
    /// What is done, a line each; none where it fits as it is.
    pub steps: Vec<String>,
    /// Whether quantising the transformer would do in place of bringing its blocks anew in every step, had it been allowed.
    pub quantized_fits: bool,
}

/// What a request takes with these settings, where the weights of each part take so much.
type Expected<'a> = dyn Fn(&Settings, &dyn Fn(PartKind) -> u64) -> Memory + 'a;

/// What a plan is made for.
pub(super) struct PlanInputs<'a> {
    pub(super) limit: u64,
    /// Whether the weights of the transformer's blocks may be quantised.
    pub(super) may_quantize: bool,
    /// The family of the transformer.
    pub(super) family: ModelFamily,
    pub(super) parts: &'a [OpenPart],
    /// What becomes of their weights as the settings are.
    pub(super) weights: &'a [Weights],
    /// What is expected of each phase, with these settings and where the weights of each part take so much.
    pub(super) expected: &'a Expected<'a>,
}

impl PlanInputs<'_> {
    /// Finds settings with which no phase takes more than the limit, and says how they differ from these.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where nothing makes it fit.
    pub(super) fn plan(&self, mut settings: Settings) -> Result<(Settings, Plan)> {
        let (limit, may_quantize) = (self.limit, self.may_quantize);
        let (mut steps, mut quantized_fits) = (Vec::new(), false);
        loop {
            let expected = self.expected(&settings);
            if expected.peak() <= limit {
                return Ok((settings, Plan { limit, expected, steps, quantized_fits }));
            }
            let next = next(&settings, &expected, limit, self.is_quantised());
            if let Some((changed, _)) = next
                && changed.offload == Offload::Blocks
                && let Some(quantized) = self.quantized(&changed)
            {
                let expected = self.expected(&quantized);
                quantized_fits = expected.text.max(expected.denoise) <= limit;
                if may_quantize && quantized_fits {
                    let numbers = if quantized.quantize == Quantize::Fp8 { "fp8" } else { "int8" };
                    steps.push(format!(
                        "the weights of the transformer's blocks become {numbers}, which changes the picture; of T5 no more \
                         than two blocks are in memory at a time"
                    ));
                    (settings, quantized_fits) = (quantized, false);
                    continue;
                }
            }
            match next {
                Some((changed, step)) => {
                    settings = changed;
                    steps.push(step);
                }
                None => {
                    let mut hints = vec![Hint::LargerLimit, Hint::SmallerPicture];
                    if settings.quantize != Quantize::None {
                        hints.push(Hint::UnquantizedBlocks);
                    }
                    let device = settings.device;
                    return Err(Error::TooLarge { needed: expected.peak(), free: limit, device, hints });
                }
            }
        }
    }

    /// These settings, with the transformer quantised, where the device can do it and it is not quantised already.
    fn quantized(&self, settings: &Settings) -> Option<Settings> {
        let quantize = match settings.device {
            Device::Cpu => Quantize::Int8,
            device if ops::cuda::check_fp8(device).is_ok() => Quantize::Fp8,
            _ => return None,
        };
        let mut transformers = self.parts.iter().filter(|part| part.part == PartKind::Transformer);
        let already =
            settings.quantize != Quantize::None || transformers.any(|part| part.checkpoint.is_quantised());
        (!already).then_some(Settings { quantize, ..*settings })
    }

    /// What a request takes with these settings.
    fn expected(&self, settings: &Settings) -> Memory {
        let program = if settings.device == Device::Cpu { PROGRAM } else { 0 };
        let own = |part: PartKind| {
            let Some(blocks) = part.blocks(self.family) else {
                let of = self.weights.iter().filter(|weights| weights.part == part);
                return of.flat_map(|weights| weights.in_memory.values()).sum();
            };
            let of = self.parts.iter().filter(|open| open.part == part);
            of.map(|open| bytes(open, (self.family, blocks), settings)).sum()
        };
        let Memory { text, denoise, decode } = (self.expected)(settings, &own);
        Memory { text: text + program, denoise: denoise + program, decode: decode + program }
    }

    fn is_quantised(&self) -> bool {
        let is_large = |part| matches!(part, PartKind::Transformer | PartKind::T5);
        self.parts.iter().any(|open| is_large(open.part) && open.checkpoint.is_quantised())
    }
}

/// What the weights of a part with such blocks take at most at a time. Those in the host's own files are counted: they are in
/// memory while they are used.
fn bytes(open: &OpenPart, (family, blocks): (ModelFamily, &[&str]), settings: &Settings) -> u64 {
    let OpenPart { part, checkpoint, kind } = open;
    let on_host = settings.device == Device::Cpu;
    let quantizes = *part == PartKind::Transformer && settings.quantize != Quantize::None;
    let number = kind.elt_size_in_bytes() as u64;
    let numbers = |name: &str| {
        let numbers: i64 = checkpoint.shape(name).unwrap_or_default().iter().product();
        numbers.unsigned_abs()
    };
    let quantized = checkpoint.names().filter(|name| quantizes && Transformer::quantizes(family, name));
    let quantized: u64 = quantized.map(|name| numbers(name) + PAGE).sum();
    if settings.offload != Offload::Blocks {
        let whole: u64 = checkpoint.types_in_memory(*kind, settings.keep_quantized).values().sum();
        // On a device what was quantised takes the place of what it was.
        return whole + if on_host { quantized } else { 0 };
    }
    // In the host's own files each tensor goes as soon as it was computed with, or quantised; elsewhere a block.
    let (mut rest, mut sizes) = (quantized, BTreeMap::<&str, u64>::new());
    for name in checkpoint.names() {
        let bytes = numbers(name) * number;
        match blocks.iter().find_map(|start| block_of(name, start)) {
            Some(block) => {
                let alone = on_host || quantizes && Transformer::quantizes(family, name);
                *sizes.entry(if alone { name } else { block }).or_default() += bytes;
            }
            None => rest += bytes,
        }
    }
    rest + 2 * sizes.values().max().copied().unwrap_or(0)
}

/// The next thing to be done for the phase that takes too much, mildest first: the settings then, and what it is.
fn next(settings: &Settings, expected: &Memory, limit: u64, quantised: bool) -> Option<(Settings, String)> {
    let weights = expected.text > limit || expected.denoise > limit;
    let step = |changed: Settings, step: &str| Some((changed, step.to_string()));
    if settings.keep_text_encoders {
        let changed = Settings { keep_text_encoders: false, ..*settings };
        return step(changed, "T5 and CLIP are released once the prompt is read");
    }
    if settings.offload == Offload::None {
        let changed = Settings { offload: Offload::Parts, ..*settings };
        return step(changed, "each part is in memory only while its phase lasts");
    }
    if weights && quantised && !settings.keep_quantized && settings.quantize == Quantize::None {
        let changed = Settings { keep_quantized: true, ..*settings };
        return step(changed, "quantised weights stay as they are on the disk");
    }
    if weights && settings.offload == Offload::Parts {
        let changed = Settings { offload: Offload::Blocks, ..*settings };
        let blocks = match settings.quantize {
            Quantize::None => "of T5 and of the transformer, no more than two blocks are in memory at a time",
            _ => {
                "of T5 no more than two blocks are in memory at a time, and the transformer is quantised layer by layer"
            }
        };
        return step(changed, blocks);
    }
    if !weights
        && let Some(tile) = TILES.into_iter().find(|&tile| settings.vae_tile.is_none_or(|own| tile < own))
    {
        let changed = Settings { vae_tile: Some(tile), ..*settings };
        return step(changed, &format!("the autoencoder works in tiles of {tile} pixels"));
    }
    None
}

/// `double_blocks.3` of `double_blocks.3.img_attn.qkv.weight`.
fn block_of<'a>(name: &'a str, start: &str) -> Option<&'a str> {
    let number = name.strip_prefix(start)?.split('.').next()?;
    name.get(..start.len() + number.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mildest_is_done_first_and_only_for_the_phase_that_needs_it() {
        let mut settings = Settings { keep_text_encoders: true, ..Settings::default() };
        let of = |text, denoise, decode| Memory { text, denoise, decode };
        let mut step = |expected: Memory| {
            let (changed, _) = next(&settings, &expected, 10, true)?;
            settings = changed;
            Some(changed)
        };
        assert!(!step(of(1, 20, 1)).unwrap().keep_text_encoders);
        assert_eq!(step(of(1, 20, 1)).unwrap().offload, Offload::Parts);
        assert_eq!(step(of(1, 1, 20)).unwrap().vae_tile, Some(1024));
        assert_eq!(step(of(1, 1, 20)).unwrap().vae_tile, Some(768));
        assert!(step(of(20, 1, 20)).unwrap().keep_quantized);
        assert_eq!(step(of(20, 1, 20)).unwrap().offload, Offload::Blocks);
        assert_eq!(step(of(20, 1, 1)), None);
    }

    #[test]
    fn blocks_are_told_by_their_names() {
        assert_eq!(
            block_of("double_blocks.12.img_attn.qkv.weight", "double_blocks."),
            Some("double_blocks.12")
        );
        assert_eq!(block_of("img_in.weight", "double_blocks."), None);
    }
}
