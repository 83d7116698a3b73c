//! The one layer that knows how its weight is stored, and what is added to it as it runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::nn::{Module, Path};
use tch::{Device, Tensor};

use super::offload::{Offloaded, WeightSource, wait_for_copies};
use super::{collect, declare, is_placeholder, placeholder};
use crate::error::Result;
use crate::lora::{LoraBranch, Term};
use crate::math::linear;
use crate::quant::{Fp8, Int8, Quantized};

/// What a linear layer has beside the tensors of the variable store.
#[derive(Debug, Default)]
pub(super) struct LinearState {
    /// The weight in other numbers, in place of the variable's values.
    stored: Option<WeightStorage>,
    /// What LoRAs add as the layer runs.
    beside: Option<LoraBranch>,
}

/// A weight that is not a tensor of the variable store.
#[derive(Debug)]
enum WeightStorage {
    /// As its file has it.
    Quantized(Quantized),
    /// As int8, for products of int8.
    Int8(Int8),
    /// As fp8, for products of fp8.
    Fp8(Fp8),
    /// In its file, and on its device while its block runs.
    Offloaded(Offloaded),
}

/// A weight as a product takes it.
pub(crate) enum Weight {
    /// `[out, in]`.
    Dense(Tensor),
    /// On the CPU.
    Int8(Int8),
    /// On CUDA.
    Fp8(Fp8),
}

/// Shared by the layer and by the model's [`Linears`].
pub(super) type Slot = Arc<Mutex<LinearState>>;

/// What the layer with this variable holds. A variable that was given values by another checkpoint, or by training,
/// counts again: what was stored is then let go.
fn held<'a>(slot: &'a Slot, variable: &Tensor) -> MutexGuard<'a, LinearState> {
    // Each change is one assignment, so what a panic left behind is whole.
    let mut held = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if held.stored.is_some() && !is_placeholder(variable) {
        held.stored = None;
    }
    held
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
        let weight = declare(&vs, "weight", &[out_features, in_features]);
        collect(|mine| mine.linears.push((vs.path("weight"), slot.clone(), weight.shallow_clone())));
        Self { weight, bias: bias.then(|| declare(&vs, "bias", &[out_features])), slot }
    }

    /// Calls `f` with what runs beside the weight, with the weight, and with the bias.
    pub(crate) fn with<R>(&self, f: impl FnOnce(Option<&LoraBranch>, &Weight, Option<&Tensor>) -> R) -> R {
        let held = held(&self.slot, &self.weight);
        let weight = match &held.stored {
            Some(WeightStorage::Int8(int8)) => Weight::Int8(int8.shallow_clone()),
            Some(WeightStorage::Fp8(fp8)) if self.weight.device().is_cuda() => {
                Weight::Fp8(fp8.shallow_clone())
            }
            _ => Weight::Dense(must(held.weight(&self.weight))),
        };
        let out = f(held.beside.as_ref(), &weight, self.bias.as_ref());
        held.used();
        out
    }

    /// The weight, where it is fp8 on CUDA and nothing runs beside it.
    pub(crate) fn fp8(&self) -> Option<Fp8> {
        let held = held(&self.slot, &self.weight);
        match (&held.stored, &held.beside) {
            (Some(WeightStorage::Fp8(fp8)), None) if self.weight.device().is_cuda() => {
                Some(fp8.shallow_clone())
            }
            _ => None,
        }
    }

    /// Whether something runs beside the weight.
    pub(crate) fn has_branch(&self) -> bool {
        held(&self.slot, &self.weight).beside.is_some()
    }
}

impl Module for Linear {
    /// A quantised weight becomes numbers of the variable's kind for as long as the product takes. LoRAs run beside it.
    fn forward(&self, xs: &Tensor) -> Tensor {
        let held = held(&self.slot, &self.weight);
        let weight = must(held.weight(&self.weight));
        let out = linear(xs, &weight, self.bias.as_ref());
        let out = match &held.beside {
            Some(beside) => beside.forward(xs, out, &|xs| linear(xs, &weight, None)),
            None => out,
        };
        held.used();
        out
    }
}

impl LinearState {
    /// The numbers of the weight, whose variable this is.
    fn weight(&self, variable: &Tensor) -> Result<Tensor> {
        match &self.stored {
            Some(WeightStorage::Quantized(stored)) => stored.dequantize(variable.kind(), variable.device()),
            Some(WeightStorage::Int8(int8)) => int8.dequantize(variable.kind()),
            Some(WeightStorage::Fp8(fp8)) => fp8.dequantize(variable.kind()),
            Some(WeightStorage::Offloaded(offloaded)) => {
                offloaded.numbers(variable.kind(), variable.device())
            }
            None => Ok(variable.shallow_clone()),
        }
    }

    /// After a product.
    fn used(&self) {
        if let Some(WeightStorage::Offloaded(offloaded)) = &self.stored {
            offloaded.used();
        }
    }
}

impl Weight {
    /// The rows.
    pub(crate) fn len(&self) -> i64 {
        match self {
            Self::Dense(weight) => weight.size()[0],
            Self::Int8(int8) => int8.weight.size()[0],
            Self::Fp8(fp8) => fp8.weight.size()[0],
        }
    }

    /// Some of the rows, without a copy; `None` where no product takes so many.
    pub(crate) fn rows(&self, rows: &Range<i64>) -> Option<Self> {
        let part = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.end - rows.start);
        Some(match self {
            Self::Dense(weight) => Self::Dense(part(weight)),
            Self::Int8(Int8 { weight, scale, sum }) => {
                Self::Int8(Int8 { weight: part(weight), scale: part(scale), sum: part(sum) })
            }
            Self::Fp8(fp8) => {
                let fp8 = Fp8 { weight: part(&fp8.weight), scale: part(&fp8.scale) };
                return Fp8::takes(&fp8.weight.size()).then_some(Self::Fp8(fp8));
            }
        })
    }
}

/// As tch's operators do where they cannot go on: a layer has no way to return an error.
fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A block of a model, whose weights may lie elsewhere while others run. All names are as the variable store has them, without
/// the last dot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Block {
    /// What the names of its layers start with.
    pub(crate) layers: Vec<String>,
    /// The same of those among them that run at other times.
    pub(crate) aside: Vec<String>,
}

impl Block {
    pub(crate) fn new(layers: impl IntoIterator<Item = String>) -> Self {
        Self { layers: layers.into_iter().collect(), aside: Vec::new() }
    }

    fn has(&self, name: &str) -> bool {
        self.layers.iter().any(|layer| is_under(name, layer))
    }

    /// Whether a layer of its own runs when the block does.
    fn runs(&self, name: &str) -> bool {
        !self.aside.iter().any(|layer| is_under(name, layer))
    }
}

fn is_under(name: &str, start: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| rest.starts_with('.'))
}

/// The linear layers of a model by the names of their weights: where quantised weights are kept, and where LoRAs are
/// put on and taken off.
#[derive(Debug, Default)]
pub struct Linears {
    /// What stands before the official names of the model's layers in the variable store, the last dot included.
    root: String,
    layers: BTreeMap<String, (Slot, Tensor)>,
    /// Other parameters that a LoRA has changed, each with the values that it had.
    changed: Mutex<Vec<(Tensor, Tensor)>>,
    /// In the order in which they run.
    blocks: Vec<Block>,
    /// Whether weights of the blocks lie elsewhere.
    offloaded: AtomicBool,
}

impl Linears {
    /// Those of a model that lies at `vs`.
    pub(super) fn new(vs: &Path, layers: Vec<(String, Slot, Tensor)>) -> Self {
        let layers = layers.into_iter().map(|(name, slot, weight)| (name, (slot, weight))).collect();
        let root = vs.path("");
        Self { root, layers, ..Self::default() }
    }

    /// What stands before the official names of the model's layers in the variable store: `model.`, or nothing where the
    /// model lies at the root.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The shape of a linear layer's weight, by the name that it has in the variable store.
    pub(crate) fn size(&self, name: &str) -> Option<Vec<i64>> {
        self.layers.get(name).map(|(_, weight)| weight.size())
    }

    /// Says which blocks the model has, in the order in which they run.
    pub(super) fn set_blocks(&mut self, blocks: Vec<Block>) {
        self.blocks = blocks;
    }

    /// Whether a name is that of a linear layer's weight in one of the blocks.
    pub(crate) fn is_in_block(&self, name: &str) -> bool {
        self.contains(name) && self.blocks.iter().any(|block| block.has(name))
    }

    /// Lets a weight lie elsewhere. Its variable must be a placeholder, as in [`Linears::store`].
    pub(crate) fn offload(&self, name: &str, weight: Arc<dyn WeightSource>) {
        if let Some((slot, variable)) = self.layers.get(name) {
            held(slot, variable).stored = Some(WeightStorage::Offloaded(Offloaded::new(weight)));
            self.offloaded.store(true, Ordering::Relaxed);
        }
    }

    /// Runs a block. Where weights lie elsewhere, its own are there for as long, and those of the next one are begun to be
    /// brought.
    pub(crate) fn in_block<R>(&self, block: usize, run: impl FnOnce() -> R) -> Result<R> {
        if !self.offloaded.load(Ordering::Relaxed) {
            return Ok(run());
        }
        let device = self.layers.values().next().map_or(Device::Cpu, |(_, variable)| variable.device());
        let prefetch = |block| {
            self.each_away(block, |offloaded, variable| {
                offloaded.prefetch(variable.kind(), variable.device())
            })
        };
        prefetch(block)?;
        wait_for_copies(device);
        // The disk reads while the CPU computes. On CUDA the copy of what is mapped holds this thread up: what the block
        // computes is queued before.
        if device == Device::Cpu {
            prefetch(block + 1)?;
        }
        let out = run();
        if device != Device::Cpu {
            prefetch(block + 1)?;
        }
        self.each_away(block, |offloaded, _| {
            offloaded.evict();
            Ok(())
        })?;
        Ok(out)
    }

    fn each_away(
        &self,
        block: usize,
        mut f: impl FnMut(&mut Offloaded, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let Some(block) = self.blocks.get(block) else { return Ok(()) };
        for layer in &block.layers {
            let start = format!("{layer}.");
            let within = self.layers.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
            for (_, (slot, variable)) in within.filter(|(name, _)| block.runs(name)) {
                if let Some(WeightStorage::Offloaded(offloaded)) = &mut held(slot, variable).stored {
                    f(offloaded, variable)?;
                }
            }
        }
        Ok(())
    }

    /// The names of the weights.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Whether a weight is kept quantised.
    pub fn is_stored(&self, name: &str) -> bool {
        self.layers.get(name).is_some_and(|(slot, weight)| held(slot, weight).stored.is_some())
    }

    /// Whether a name is that of a linear layer's weight.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.layers.contains_key(name)
    }

    /// Keeps a weight quantised. Its variable must be a placeholder: values that it is given later count again.
    pub(crate) fn store(&self, name: &str, stored: Quantized) {
        if let Some((slot, weight)) = self.layers.get(name) {
            held(slot, weight).stored = Some(WeightStorage::Quantized(stored));
        }
    }

    /// Makes int8 of the weights that `which` names, one at a time, and lets the numbers before go: their variables are
    /// placeholders afterwards. On the CPU alone. Weights that are int8 stay as they are.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch); the weights that came before are then int8, and all can run.
    pub(crate) fn quantize_int8(&self, which: impl Fn(&str) -> bool) -> Result<()> {
        self.quantize(
            which,
            |stored| matches!(stored, WeightStorage::Int8(_)),
            |weight| Ok(Some(WeightStorage::Int8(Int8::of(weight)?))),
        )
    }

    /// The same with fp8. Weights that no product of fp8 takes stay as they are.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch); the weights that came before are then fp8, and all can run.
    pub(crate) fn quantize_fp8(&self, which: impl Fn(&str) -> bool) -> Result<()> {
        self.quantize(
            which,
            |stored| matches!(stored, WeightStorage::Fp8(_)),
            |weight| {
                Ok(if Fp8::takes(&weight.size()) { Some(WeightStorage::Fp8(Fp8::of(weight)?)) } else { None })
            },
        )
    }

    fn quantize(
        &self,
        which: impl Fn(&str) -> bool,
        is_done: impl Fn(&WeightStorage) -> bool,
        quantized: impl Fn(&Tensor) -> Result<Option<WeightStorage>>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (_, (slot, variable)) in self.layers.iter().filter(|(name, _)| which(name)) {
            let mut held = held(slot, variable);
            if held.stored.as_ref().is_some_and(&is_done) {
                continue;
            }
            let quantized = quantized(&held.weight(variable)?)?;
            held.used();
            let Some(stored) = quantized else { continue };
            let mut variable = variable.shallow_clone();
            variable.f_set_data(&placeholder(variable.kind(), variable.device(), &variable.size()))?;
            held.stored = Some(stored);
        }
        Ok(())
    }

    /// Puts these changes in place of all that were made before: terms to run beside the linear layers, by the names of
    /// their weights, and new values for other parameters. Parameters that are not changed now have again what they had
    /// before the first change, bit for bit.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch), and then nothing is changed any more.
    pub(crate) fn change(
        &self,
        terms: &BTreeMap<String, &Vec<Term>>,
        values: &dyn Fn() -> Result<Vec<(Tensor, Tensor)>>,
    ) -> Result<()> {
        self.restore()?;
        let changed = self.put(terms, values);
        if changed.is_err() {
            self.restore()?;
        }
        changed
    }

    fn put(
        &self,
        terms: &BTreeMap<String, &Vec<Term>>,
        values: &dyn Fn() -> Result<Vec<(Tensor, Tensor)>>,
    ) -> Result<()> {
        for (name, terms) in terms {
            let Some((slot, variable)) = self.layers.get(name) else { continue };
            let mut held = held(slot, variable);
            let weight = || held.weight(variable);
            let beside = LoraBranch::new(terms, &weight, variable.device(), variable.kind())?;
            held.beside = Some(beside);
        }
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        for (mut variable, value) in values()? {
            // Another tensor over the same values, which the variable then no longer looks at.
            let before = variable.f_detach()?;
            variable.f_set_data(&value)?;
            changed.push((variable, before));
        }
        Ok(())
    }

    /// Takes all changes off.
    fn restore(&self) -> Result<()> {
        for (slot, weight) in self.layers.values() {
            held(slot, weight).beside = None;
        }
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((variable, before)) = changed.last_mut() {
            variable.f_set_data(before)?;
            changed.pop();
        }
        Ok(())
    }
}
