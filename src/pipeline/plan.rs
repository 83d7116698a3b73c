//! How a request fits into so much memory.

use std::collections::BTreeMap;

use tch::{Device, Kind};

use super::{Memory, Offload, Pipeline, Request, Settings, resident};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::ops::Quantize;

/// What libtorch, its libraries and this program take of the host's memory by themselves once they have run: measured on
/// Linux with libtorch 2.13, with some added.
const PROGRAM: u64 = 700 << 20;

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
}

impl Pipeline {
    /// Changes the settings so that a request takes no more than so many bytes on the pipeline's device, and says how.
    /// Nothing that changes a bit of the picture is done: text encoders are released, parts are offloaded, quantised files
    /// stay quantised, then blocks are offloaded; only tiles of the autoencoder, at last, blend their seams. Models that were
    /// loaded are released.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where nothing makes it fit, and the settings are then as they were; what is wrong with the files.
    pub fn fit(&mut self, request: &Request, limit: u64) -> Result<Plan> {
        let before = self.settings;
        let on_host = self.settings.device == Device::Cpu;
        let program = if on_host { PROGRAM } else { 0 };
        let mut settings = before;
        let mut steps = Vec::new();
        loop {
            let expected = self.expected(request, &settings, program)?;
            if expected.peak() <= limit {
                self.release();
                self.owned.take();
                self.settings = settings;
                return Ok(Plan { limit, expected, steps });
            }
            match next(&mut settings, &expected, limit, self.is_quantised()?) {
                Some(step) => steps.push(step),
                None => {
                    let advice = "a smaller picture takes less".into();
                    let device = self.settings.device;
                    return Err(Error::TooLarge { needed: expected.peak(), free: limit, device, advice });
                }
            }
        }
    }

    fn expected(&self, request: &Request, settings: &Settings, program: u64) -> Result<Memory> {
        let access = settings.access;
        let (transformer, _) = self.parts.open_transformer(access)?;
        let t5 = self.parts.open_t5(access)?;
        let tiny = resident::is_tiny(&self.parts.open_autoencoder(access)?);
        let weights = self.weights()?;
        let as_it_is = |part: &str| -> u64 {
            let of = weights.iter().filter(|weights| weights.part == part);
            of.flat_map(|weights| weights.in_memory.values()).sum()
        };
        let blocks = settings.offload == Offload::Blocks;
        let on_host = settings.device == Device::Cpu;
        let size = |checkpoint: &Checkpoint, kind: Kind, starts: &[&str]| match blocks {
            true => in_blocks(checkpoint, kind.elt_size_in_bytes() as u64, starts, on_host),
            false => checkpoint.types_in_memory(kind, settings.keep_quantized).values().sum(),
        };
        let own = |part: &'static str| match part {
            // What was made of the numbers when they were loaded is nowhere else.
            "transformer" if settings.quantize != Quantize::None => as_it_is(part),
            "transformer" => size(&transformer, self.kind, &["double_blocks.", "single_blocks."]),
            "T5" => size(&t5, self.text_kind(), &["encoder.block."]),
            other => as_it_is(other),
        };
        let Memory { text, denoise, decode } = self.memory_with(request, 1, settings, tiny, &own);
        Ok(Memory { text: text + program, denoise: denoise + program, decode: decode + program })
    }

    fn is_quantised(&self) -> Result<bool> {
        let access = self.settings.access;
        Ok(self.parts.open_transformer(access)?.0.is_quantised()
            || self.parts.open_t5(access)?.is_quantised())
    }
}

/// The next thing to be done for the phase that takes too much, mildest first.
fn next(settings: &mut Settings, expected: &Memory, limit: u64, quantised: bool) -> Option<String> {
    let weights = expected.text > limit || expected.denoise > limit;
    if settings.keep_text_encoders {
        settings.keep_text_encoders = false;
        return Some("T5 and CLIP are released once the prompt is read".into());
    }
    if settings.offload == Offload::None {
        settings.offload = Offload::Parts;
        return Some("each part is in memory only while its phase lasts".into());
    }
    if weights && quantised && !settings.keep_quantized {
        settings.keep_quantized = true;
        return Some("quantised weights stay as they are on the disk".into());
    }
    if weights && settings.offload == Offload::Parts {
        settings.offload = Offload::Blocks;
        return Some("of T5 and of the transformer, no more than two blocks are in memory at a time".into());
    }
    if !weights
        && let Some(tile) = TILES.into_iter().find(|&tile| settings.vae_tile.is_none_or(|own| tile < own))
    {
        settings.vae_tile = Some(tile);
        return Some(format!("the autoencoder works in tiles of {tile} pixels"));
    }
    None
}

/// What is outside of the blocks, and twice the largest of them; where they lie in the host's own files, twice the largest
/// of their tensors, since each goes as soon as it was computed with.
fn in_blocks(checkpoint: &Checkpoint, number: u64, blocks: &[&str], on_host: bool) -> u64 {
    let (mut rest, mut sizes) = (0, BTreeMap::<&str, u64>::new());
    for name in checkpoint.names() {
        let numbers: i64 = checkpoint.shape(name).unwrap_or_default().iter().product();
        let bytes = numbers.unsigned_abs() * number;
        match blocks.iter().find_map(|start| block_of(name, start)) {
            Some(_) if on_host => *sizes.entry(name).or_default() += bytes,
            Some(block) => *sizes.entry(block).or_default() += bytes,
            None => rest += bytes,
        }
    }
    rest + 2 * sizes.values().max().copied().unwrap_or(0)
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
        let mut step = |expected: Memory| next(&mut settings, &expected, 10, true).map(|_| settings);
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
