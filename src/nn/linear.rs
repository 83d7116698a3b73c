//! The one layer that knows how its weight is stored, and what is added to it as it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;
use tch::nn::{Module, Path};

use super::{collect, declare};
use crate::lora::{self, Term};
use crate::quant::Quantized;

/// What a linear layer has beside the tensors of the variable store.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The weight as it is stored, in place of the variable's values.
    stored: Option<Quantized>,
    /// Changes of LoRAs.
    terms: Vec<Term>,
}

/// Shared by the layer and by the model's [`Linears`].
pub(super) type Slot = Arc<Mutex<Held>>;

fn held(slot: &Slot) -> MutexGuard<'_, Held> {
    // Each change is one assignment, so what a panic left behind is whole.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `torch.nn.Linear`: `[…, in]` to `[…, out]`. The only layer that knows how its weight is stored.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`; still a placeholder where the weight is kept quantised.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    slot: Slot,
}

impl Linear {
    /// Declares `weight` and, where asked, `bias`.
    pub fn new(vs: Path, in_features: i64, out_features: i64, bias: bool) -> Self {
        let slot = Slot::default();
        collect(|mine| mine.linears.push((vs.path("weight"), slot.clone())));
        Self {
            weight: declare(&vs, "weight", &[out_features, in_features]),
            bias: bias.then(|| declare(&vs, "bias", &[out_features])),
            slot,
        }
    }
}

impl Module for Linear {
    /// A quantised weight becomes numbers of the variable's kind for as long as the product takes. LoRAs of low rank
    /// are two products beside it; others change those numbers before the product.
    fn forward(&self, xs: &Tensor) -> Tensor {
        let held = held(&self.slot);
        if held.stored.is_none() && held.terms.is_empty() {
            return product(xs, &self.weight, self.bias.as_ref());
        }
        let weight = match &held.stored {
            Some(stored) => must(stored.dequantize(self.weight.kind(), self.weight.device())),
            None => self.weight.shallow_clone(),
        };
        if lora::is_low_rank_only(&held.terms) {
            let base = product(xs, &weight, self.bias.as_ref());
            return lora::add_low_rank(xs, base, &held.terms);
        }
        product(xs, &lora::merged(&weight, &held.terms), self.bias.as_ref())
    }
}

/// As tch's operators do where they cannot go on: a layer has no way to return an error.
fn must<T>(result: crate::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// For a strided input of three axes libtorch multiplies batch by batch, unless the weight requires gradients: then it
/// folds batch and tokens into one product, with other last bits. The official parameters do require gradients, also
/// at inference, so that is the path here whatever the store was told.
pub(crate) fn product(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    if xs.dim() < 3 || xs.is_contiguous() {
        return xs.linear(weight, bias);
    }
    let mut size = xs.size();
    let rows = xs.reshape([-1, size[size.len() - 1]]).matmul(&weight.tr());
    if let Some(width) = size.last_mut() {
        *width = rows.size()[1];
    }
    let out = rows.view(&size[..]);
    match bias {
        Some(bias) => out + bias,
        None => out,
    }
}

/// The linear layers of a model by the names of their weights: where quantised weights are kept, and where LoRAs are
/// put on and taken off.
#[derive(Debug, Default)]
pub struct Linears {
    slots: BTreeMap<String, Slot>,
    /// The values of other parameters that a LoRA has replaced.
    replaced: Mutex<Vec<(Tensor, Tensor)>>,
}

impl Linears {
    pub(super) fn new(slots: Vec<(String, Slot)>) -> Self {
        Self { slots: slots.into_iter().collect(), replaced: Mutex::default() }
    }

    /// The names of the weights.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// Whether a weight is kept quantised.
    pub fn is_stored(&self, name: &str) -> bool {
        self.slots.get(name).is_some_and(|slot| held(slot).stored.is_some())
    }

    /// Whether a name is that of a linear layer's weight.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.slots.contains_key(name)
    }

    /// Keeps a weight quantised, or lets the variable's values count again.
    pub(crate) fn store(&self, name: &str, stored: Option<Quantized>) {
        if let Some(slot) = self.slots.get(name) {
            held(slot).stored = stored;
        }
    }

    /// Puts these changes in place of all that were there: terms by the name of the weight, and whole values for other
    /// parameters. The values that were there before the first change come back where nothing replaces them now.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch); the changes are then half made, and making them again is safe.
    pub(crate) fn change(
        &self,
        mut terms: BTreeMap<String, Vec<Term>>,
        values: Vec<(Tensor, Tensor)>,
    ) -> crate::Result<()> {
        for (name, slot) in &self.slots {
            held(slot).terms = terms.remove(name).unwrap_or_default();
        }
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((variable, before)) = replaced.last_mut() {
            variable.f_set_data(before)?;
            replaced.pop();
        }
        for (mut variable, value) in values {
            // Another tensor over the same values, which the variable then no longer looks at.
            replaced.push((variable.shallow_clone(), variable.f_detach()?));
            variable.f_set_data(&value)?;
        }
        Ok(())
    }
}
