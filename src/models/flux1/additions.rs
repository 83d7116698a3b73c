//! What other models add to the transformer's streams between its blocks.

use tch::Tensor;

use super::{Flux1Input, Flux1Params, ImagePrompt};
use crate::error::{Error, Result};

/// What other models add after the blocks. By default nothing is added.
#[derive(Debug, Clone, Copy, Default)]
pub struct Additions<'a> {
    /// The residuals of ControlNets, which are added after each block, one after the other.
    pub residuals: &'a [Residuals],
    /// The image prompts of IP-Adapters, whose attention is added after each double block.
    pub image_prompts: &'a [ImagePrompt],
}

/// The output of a ControlNet for a step: tensors `[B, L, D]`, which are added to the first `L` tokens of the picture after
/// the blocks. There may be fewer of them than blocks.
#[derive(Debug)]
pub struct Residuals {
    /// For the double blocks; empty where the ControlNet has no such blocks.
    pub double: Vec<Tensor>,
    /// For the single blocks; empty where the ControlNet has no such blocks.
    pub single: Vec<Tensor>,
    /// Whether the double blocks take them in turn, as with XLabs' ControlNets. Otherwise each tensor is for several blocks
    /// that follow one another.
    pub repeat: bool,
}

impl Residuals {
    /// Returns the tensor that the block `i` of `depth` takes.
    ///
    /// Source: diffusers 0.42.1, `models/transformers/transformer_flux.py` lines 781–813.
    fn for_block(all: &[Tensor], i: usize, depth: usize, repeat: bool) -> Option<&Tensor> {
        let len = all.len().max(1);
        let place = if repeat { i % len } else { i / depth.div_ceil(len).max(1) };
        all.get(place)
    }

    /// Sums the residuals of several ControlNets that have as many tensors for the same blocks, in this order, as diffusers
    /// does. Others stay apart.
    ///
    /// Source: diffusers 0.42.1, `models/controlnets/controlnet_flux.py`, `FluxMultiControlNetModel`.
    ///
    /// # Errors
    /// [`Error::Tch`] where shapes differ or memory runs out.
    pub fn sum(all: Vec<Self>) -> Result<Vec<Self>> {
        let mut sums: Vec<Self> = Vec::new();
        for residuals in all {
            let is_alike = |sum: &&mut Self| {
                (sum.double.len(), sum.single.len(), sum.repeat)
                    == (residuals.double.len(), residuals.single.len(), residuals.repeat)
            };
            match sums.iter_mut().find(is_alike) {
                Some(sum) => {
                    let sums = sum.double.iter_mut().chain(&mut sum.single);
                    let terms = residuals.double.iter().chain(&residuals.single);
                    for (sum, term) in sums.zip(terms) {
                        *sum = sum.f_add(term)?;
                    }
                }
                None => sums.push(residuals),
            }
        }
        Ok(sums)
    }
}

impl Additions<'_> {
    /// Returns [`Error::Shape`] for residuals that do not fit the input, and [`Error::Config`] for such image prompts.
    pub(super) fn check(&self, input: &Flux1Input, params: &Flux1Params) -> Result<()> {
        let (b, most, d) = (input.img.size()[0], input.img.size()[1], params.hidden_size);
        for tensor in self.residuals.iter().flat_map(|all| all.double.iter().chain(&all.single)) {
            let found = tensor.size();
            let fits = matches!(found[..], [batch, len, width] if (batch, width) == (b, d) && len <= most);
            if !fits {
                let expected = format!("[{b}, at most {most}, {d}]");
                return Err(Error::Shape { what: "residuals", expected, found });
            }
        }
        if self.image_prompts.iter().all(|prompt| prompt.fits(b, params)) {
            return Ok(());
        }
        Err(Error::Config(format!("an image prompt is for another transformer, or not for {b} pictures")))
    }

    /// Returns what the image prompts add to the picture's tokens after the double block `i` with these queries.
    pub(super) fn attend(&self, i: usize, query: &Tensor) -> Option<Tensor> {
        let all = self.image_prompts.iter().filter_map(|prompt| prompt.attend(i, query));
        all.reduce(|sum, more| sum + more)
    }

    /// Adds the residuals to the picture's tokens `[B, Li, D]` after the double block `i` of `depth`.
    pub(super) fn add_double(&self, img: &mut Tensor, i: usize, depth: usize) -> Result<()> {
        for residuals in self.residuals {
            add(img, Residuals::for_block(&residuals.double, i, depth, residuals.repeat))?;
        }
        Ok(())
    }

    /// Adds the residuals after a single block.
    pub(super) fn add_single(&self, img: &mut Tensor, i: usize, depth: usize) -> Result<()> {
        for residuals in self.residuals {
            add(img, Residuals::for_block(&residuals.single, i, depth, false))?;
        }
        Ok(())
    }
}

/// Adds in place, since nothing else reads the output of a block.
fn add(img: &mut Tensor, residual: Option<&Tensor>) -> Result<()> {
    if let Some(residual) = residual {
        let _ = img.f_narrow(1, 0, residual.size()[1])?.f_add_(residual)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residuals(double: usize, single: usize, repeat: bool) -> Residuals {
        let tensors =
            |count| (0..count).map(|i| Tensor::from_slice(&[i as f32]).reshape([1, 1, 1])).collect();
        Residuals { double: tensors(double), single: tensors(single), repeat }
    }

    fn taken(all: &[Tensor], depth: usize, repeat: bool) -> Vec<Option<f64>> {
        let value = |i| Residuals::for_block(all, i, depth, repeat).map(|x| x.double_value(&[0, 0, 0]));
        (0..depth).map(value).collect()
    }

    #[test]
    fn each_residual_is_for_blocks_that_follow_one_another_or_they_take_turns() {
        let three = residuals(3, 0, false).double;
        let some = |all: &[i64]| all.iter().map(|&x| Some(x as f64)).collect::<Vec<_>>();
        assert_eq!(taken(&three, 7, false), some(&[0, 0, 0, 1, 1, 1, 2]));
        assert_eq!(taken(&three, 7, true), some(&[0, 1, 2, 0, 1, 2, 0]));
        assert_eq!(taken(&three, 2, false), some(&[0, 1]), "more than blocks");
        assert_eq!(taken(&[], 2, true), [None, None]);
    }

    #[test]
    fn what_is_alike_is_summed_and_the_rest_stays() {
        let sums = Residuals::sum(vec![
            residuals(2, 1, false),
            residuals(1, 0, true),
            residuals(2, 1, false),
            residuals(2, 1, true),
        ])
        .unwrap();
        let sizes: Vec<_> = sums.iter().map(|sum| (sum.double.len(), sum.single.len(), sum.repeat)).collect();
        assert_eq!(sizes, [(2, 1, false), (1, 0, true), (2, 1, true)]);
        assert_eq!(sums[0].double[1].double_value(&[0, 0, 0]), 2.0);
    }
}
