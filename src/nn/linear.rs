//! The linear layer, which alone knows how its weight is stored and which LoRAs run with it.

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

/// What a linear layer holds that is no tensor of the variable store.
#[derive(Debug, Default)]
pub(super) struct LinearState {
    /// The weight in another form, in place of the variable's values.
    stored: Option<WeightStorage>,
    /// What LoRAs add as the layer runs.
    branch: Option<LoraBranch>,
}

/// A weight that is not a tensor of the variable store.
#[derive(Debug)]
enum WeightStorage {
    /// In the number format of its file.
    Quantized(Quantized),
    /// As int8, for products of int8.
    Int8(Int8),
    /// As fp8, for products of fp8.
    Fp8(Fp8),
    /// At its source, and on its device while its block runs.
    Offloaded(Offloaded),
}

/// The weight in the form that a matrix product takes.
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

/// Locks the state of the layer with this variable. Where another checkpoint or training has given the variable values,
/// these count, and the stored form is dropped.
fn lock<'a>(slot: &'a Slot, variable: &Tensor) -> MutexGuard<'a, LinearState> {
    // Each change is a single assignment, so a panic leaves no half-written state.
    let mut state = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if state.stored.is_some() && !is_placeholder(variable) {
        state.stored = None;
    }
    state
}

/// `torch.nn.Linear`: `[…, in]` to `[…, out]`. It is the only layer that knows how its weight is stored.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`; still a placeholder where the weight is kept quantised.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    slot: Slot,
}

impl Linear {
    /// Declares `weight` and, where `bias` says so, `bias`.
    pub fn new(vs: Path, in_features: i64, out_features: i64, bias: bool) -> Self {
        let slot = Slot::default();
        let weight = declare(&vs, "weight", &[out_features, in_features]);
        collect(|declared| declared.linears.push((vs.path("weight"), slot.clone(), weight.shallow_clone())));
        Self { weight, bias: bias.then(|| declare(&vs, "bias", &[out_features])), slot }
    }

    /// Calls `f` with the LoRAs, the weight and the bias.
    pub(crate) fn with<R>(&self, f: impl FnOnce(Option<&LoraBranch>, &Weight, Option<&Tensor>) -> R) -> R {
        let state = lock(&self.slot, &self.weight);
        let weight = match &state.stored {
            Some(WeightStorage::Int8(int8)) => Weight::Int8(int8.shallow_clone()),
            Some(WeightStorage::Fp8(fp8)) if self.weight.device().is_cuda() => {
                Weight::Fp8(fp8.shallow_clone())
            }
            _ => Weight::Dense(expect_weight(state.weight(&self.weight))),
        };
        let out = f(state.branch.as_ref(), &weight, self.bias.as_ref());
        state.after_use();
        out
    }

    /// Returns the weight, where it is fp8 on CUDA and no LoRA runs with it.
    pub(crate) fn fp8(&self) -> Option<Fp8> {
        let state = lock(&self.slot, &self.weight);
        match (&state.stored, &state.branch) {
            (Some(WeightStorage::Fp8(fp8)), None) if self.weight.device().is_cuda() => {
                Some(fp8.shallow_clone())
            }
            _ => None,
        }
    }

    /// Returns whether LoRAs run with the weight.
    pub(crate) fn has_branch(&self) -> bool {
        lock(&self.slot, &self.weight).branch.is_some()
    }
}

impl Module for Linear {
    /// A quantised weight is dequantised to the variable's kind for as long as the product takes. LoRAs are added to the
    /// product.
    fn forward(&self, xs: &Tensor) -> Tensor {
        let state = lock(&self.slot, &self.weight);
        let weight = expect_weight(state.weight(&self.weight));
        let out = linear(xs, &weight, self.bias.as_ref());
        let out = match &state.branch {
            Some(branch) => branch.forward(xs, out, &|xs| linear(xs, &weight, None)),
            None => out,
        };
        state.after_use();
        out
    }
}

impl LinearState {
    /// Returns the weight in the kind and on the device of its variable.
    fn weight(&self, variable: &Tensor) -> Result<Tensor> {
        match &self.stored {
            Some(WeightStorage::Quantized(stored)) => stored.dequantize(variable.kind(), variable.device()),
            Some(WeightStorage::Int8(int8)) => int8.dequantize(variable.kind()),
            Some(WeightStorage::Fp8(fp8)) => fp8.dequantize(variable.kind()),
            Some(WeightStorage::Offloaded(offloaded)) => offloaded.load(variable.kind(), variable.device()),
            None => Ok(variable.shallow_clone()),
        }
    }

    /// Tells an offloaded weight that its product is computed.
    fn after_use(&self) {
        if let Some(WeightStorage::Offloaded(offloaded)) = &self.stored {
            offloaded.after_use();
        }
    }
}

impl Weight {
    /// Returns the count of rows.
    pub(crate) fn len(&self) -> i64 {
        match self {
            Self::Dense(weight) => weight.size()[0],
            Self::Int8(int8) => int8.weight.size()[0],
            Self::Fp8(fp8) => fp8.weight.size()[0],
        }
    }

    /// Returns some of the rows, without a copy; `None` where no product takes so many.
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

/// Panics where a weight cannot be read, as tch's operators do: the `forward` of a layer returns no error.
fn expect_weight<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A block of a model, whose weights may be offloaded while other blocks run. All names are those of the variable store,
/// without the last dot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Block {
    /// Prefixes of the names of its layers.
    layers: Vec<String>,
    /// Prefixes of the names of those layers among them that do not run when the block does.
    excluded: Vec<String>,
}

impl Block {
    pub(crate) fn new(layers: impl IntoIterator<Item = String>) -> Self {
        Self { layers: layers.into_iter().collect(), excluded: Vec::new() }
    }

    /// Names layers of the block that run at other times.
    pub(crate) fn excluding(self, layers: impl IntoIterator<Item = String>) -> Self {
        Self { excluded: layers.into_iter().collect(), ..self }
    }

    fn has(&self, name: &str) -> bool {
        self.layers.iter().any(|layer| is_under(name, layer))
    }

    /// Returns whether a layer of the block runs when the block does.
    fn runs(&self, name: &str) -> bool {
        !self.excluded.iter().any(|layer| is_under(name, layer))
    }
}

fn is_under(name: &str, start: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| rest.starts_with('.'))
}

/// The linear layers of a model by the names of their weights: where quantised weights are kept, and where LoRAs are
/// applied and removed.
#[derive(Debug, Default)]
pub struct Linears {
    /// What stands before the official names of the model's layers in the variable store, the last dot included.
    root: String,
    layers: BTreeMap<String, (Slot, Tensor)>,
    /// Other parameters that a LoRA has changed, each with its original values.
    changed: Mutex<Vec<(Tensor, Tensor)>>,
    /// The blocks in the order in which they run.
    blocks: Vec<Block>,
    /// Whether weights of the blocks are offloaded.
    offloaded: AtomicBool,
}

impl Linears {
    pub(super) fn new(root: String, layers: Vec<(String, Slot, Tensor)>) -> Self {
        let layers = layers.into_iter().map(|(name, slot, weight)| (name, (slot, weight))).collect();
        Self { root, layers, ..Self::default() }
    }

    /// Returns what stands before the official names of the model's layers in the variable store: `model.`, or nothing where
    /// the model is at the root.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Returns the shape of a linear layer's weight, by the name that it has in the variable store.
    pub(crate) fn size(&self, name: &str) -> Option<Vec<i64>> {
        self.layers.get(name).map(|(_, weight)| weight.size())
    }

    /// Names the blocks of the model, in the order in which they run.
    pub(super) fn set_blocks(&mut self, blocks: Vec<Block>) {
        self.blocks = blocks;
    }

    /// Returns whether a name is that of a linear layer's weight in one of the blocks.
    pub(crate) fn is_in_block(&self, name: &str) -> bool {
        self.contains(name) && self.blocks.iter().any(|block| block.has(name))
    }

    /// Leaves a weight at its source until its block runs. Its variable must be a placeholder, as in [`Linears::store`].
    pub(crate) fn offload(&self, name: &str, weight: Arc<dyn WeightSource>) {
        if let Some((slot, variable)) = self.layers.get(name) {
            lock(slot, variable).stored = Some(WeightStorage::Offloaded(Offloaded::new(weight)));
            self.offloaded.store(true, Ordering::Relaxed);
        }
    }

    /// Runs a block. Where weights are offloaded, those of the block are loaded for as long, and those of the next block are
    /// prefetched.
    pub(crate) fn run_block<R>(&self, block: usize, run: impl FnOnce() -> R) -> Result<R> {
        if !self.offloaded.load(Ordering::Relaxed) {
            return Ok(run());
        }
        let device = self.layers.values().next().map_or(Device::Cpu, |(_, variable)| variable.device());
        let prefetch = |block| {
            self.for_each_offloaded(block, |offloaded, variable| {
                offloaded.prefetch(variable.kind(), variable.device())
            })
        };
        prefetch(block)?;
        wait_for_copies(device);
        // The disk reads while the CPU computes. On CUDA the copy from mapped memory blocks this thread, so the kernels of the
        // block are queued first.
        if device == Device::Cpu {
            prefetch(block + 1)?;
        }
        let out = run();
        if device != Device::Cpu {
            prefetch(block + 1)?;
        }
        self.for_each_offloaded(block, |offloaded, _| {
            offloaded.evict();
            Ok(())
        })?;
        Ok(out)
    }

    fn for_each_offloaded(
        &self,
        block: usize,
        mut f: impl FnMut(&mut Offloaded, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let Some(block) = self.blocks.get(block) else { return Ok(()) };
        for layer in &block.layers {
            let start = format!("{layer}.");
            let within = self.layers.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
            for (_, (slot, variable)) in within.filter(|(name, _)| block.runs(name)) {
                if let Some(WeightStorage::Offloaded(offloaded)) = &mut lock(slot, variable).stored {
                    f(offloaded, variable)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the names of the weights.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Returns whether a weight is kept quantised or offloaded.
    pub fn is_stored(&self, name: &str) -> bool {
        self.layers.get(name).is_some_and(|(slot, weight)| lock(slot, weight).stored.is_some())
    }

    /// Returns whether a name is that of a linear layer's weight.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.layers.contains_key(name)
    }

    /// Keeps a weight quantised. Its variable must be a placeholder: values that the variable is given later replace it.
    pub(crate) fn store(&self, name: &str, stored: Quantized) {
        if let Some((slot, weight)) = self.layers.get(name) {
            lock(slot, weight).stored = Some(WeightStorage::Quantized(stored));
        }
    }

    /// Quantises the weights that `which` names to int8, one at a time, and frees their previous values: their variables are
    /// placeholders afterwards. It works on the CPU alone. Weights that are int8 stay as they are.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch); the weights before the failing one are then int8, and the model can run.
    pub(crate) fn quantize_int8(&self, which: impl Fn(&str) -> bool) -> Result<()> {
        self.quantize(
            which,
            |stored| matches!(stored, WeightStorage::Int8(_)),
            |weight| Ok(Some(WeightStorage::Int8(Int8::of(weight)?))),
        )
    }

    /// Does the same with fp8. Weights that no product of fp8 takes stay as they are.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch); the weights before the failing one are then fp8, and the model can run.
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
            let mut state = lock(slot, variable);
            if state.stored.as_ref().is_some_and(&is_done) {
                continue;
            }
            let quantized = quantized(&state.weight(variable)?)?;
            state.after_use();
            let Some(stored) = quantized else { continue };
            let mut variable = variable.shallow_clone();
            variable.f_set_data(&placeholder(variable.kind(), variable.device(), &variable.size()))?;
            state.stored = Some(stored);
        }
        Ok(())
    }

    /// Replaces all earlier changes by these: terms that are added to the products of linear layers, by the names of their
    /// weights, and new values for other parameters. Parameters that are not changed now get back their original values, bit
    /// for bit.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch), and then all changes are removed.
    pub(crate) fn change(
        &self,
        terms: &BTreeMap<String, &Vec<Term>>,
        values: &dyn Fn() -> Result<Vec<(Tensor, Tensor)>>,
    ) -> Result<()> {
        self.restore()?;
        let changed = self.apply(terms, values);
        if changed.is_err() {
            self.restore()?;
        }
        changed
    }

    fn apply(
        &self,
        terms: &BTreeMap<String, &Vec<Term>>,
        values: &dyn Fn() -> Result<Vec<(Tensor, Tensor)>>,
    ) -> Result<()> {
        for (name, terms) in terms {
            let Some((slot, variable)) = self.layers.get(name) else { continue };
            let mut state = lock(slot, variable);
            let weight = || state.weight(variable);
            let branch = LoraBranch::new(terms, &weight, variable.device(), variable.kind())?;
            state.branch = Some(branch);
        }
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        for (mut variable, value) in values()? {
            // This tensor keeps the values, which the variable then no longer shares.
            let before = variable.f_detach()?;
            variable.f_set_data(&value)?;
            changed.push((variable, before));
        }
        Ok(())
    }

    /// Removes all changes.
    fn restore(&self) -> Result<()> {
        for (slot, weight) in self.layers.values() {
            lock(slot, weight).branch = None;
        }
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((variable, before)) = changed.last_mut() {
            variable.f_set_data(before)?;
            changed.pop();
        }
        Ok(())
    }
}
