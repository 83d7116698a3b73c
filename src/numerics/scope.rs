//! Which form of the operations runs on this thread.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Kind, Tensor};

use super::Numerics;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::shim::{self, OnThisThread};

/// What runs, one more than what a user chooses between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Exact,
    Fast,
    /// The exact operations, and what is f32 in the official code is at least as wide as everything else: the yardstick
    /// that both forms are measured against, in f64.
    ReferenceF64,
    /// The fast form from libtorch's operations alone, on the CPU, too: so that it is tested without a GPU.
    #[cfg(test)]
    TorchOnly,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Exact) };
    static WORKSPACE: RefCell<Option<Arc<Workspace>>> = const { RefCell::new(None) };
    static CANCEL: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Puts back what was chosen before, also after a panic.
#[must_use]
pub(crate) struct Guard {
    mode: Mode,
    workspace: Option<Arc<Workspace>>,
    _thread: OnThisThread,
}

impl Drop for Guard {
    fn drop(&mut self) {
        MODE.set(self.mode);
        WORKSPACE.set(self.workspace.take());
    }
}

fn enter(mode: Mode, workspace: Option<Arc<Workspace>>) -> Guard {
    Guard { mode: MODE.replace(mode), workspace: WORKSPACE.replace(workspace), _thread: PhantomData }
}

/// Runs `f` with this form of the operations on this thread: for layers that are used alone. A model whose
/// `set_numerics` was called keeps to that.
///
/// ```
/// use tch_flux::numerics::{Numerics, with_numerics};
/// # let (layer, x) = (tch::nn::func(|x| x.shallow_clone()), tch::Tensor::from(1.0));
/// use tch::nn::Module;
/// let y = with_numerics(Numerics::Fast, || layer.forward(&x));
/// ```
pub fn with_numerics<R>(numerics: Numerics, f: impl FnOnce() -> R) -> R {
    let _guard = enter(numerics.into(), Some(Arc::default()));
    f()
}

/// Runs `f`, in which a model stops between two of its blocks with [`Error::Cancelled`] once `cancel` is true.
///
/// ```
/// # use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
/// use tch_flux::numerics::with_cancel;
/// let cancel = Arc::new(AtomicBool::new(false));
/// let elsewhere = cancel.clone();
/// std::thread::spawn(move || elsewhere.store(true, Ordering::Relaxed));
/// with_cancel(&cancel, || { /* a model's forward */ });
/// ```
pub fn with_cancel<R>(cancel: &Arc<AtomicBool>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<AtomicBool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CANCEL.set(self.0.take());
        }
    }
    let _restore = Restore(CANCEL.replace(Some(cancel.clone())));
    f()
}

/// Between two blocks of a model, before the one that takes `x`: [`Error::Cancelled`] where the work is not wanted any
/// more. A GPU works through a queue, so where it can be cancelled this waits until it is at the block before.
pub(crate) fn check_cancelled(x: &Tensor) -> Result<()> {
    let Some(cancel) = CANCEL.with_borrow(Clone::clone) else { return Ok(()) };
    if let Device::Cuda(index) = x.device() {
        shim::throttle(index);
    }
    if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
}

/// Runs `f` as the yardstick: see [`Mode::ReferenceF64`].
pub(crate) fn with_reference_f64<R>(f: impl FnOnce() -> R) -> R {
    let _guard = enter(Mode::ReferenceF64, None);
    f()
}

/// Runs `f` as [`Mode::TorchOnly`].
#[cfg(test)]
pub(crate) fn torch_only<R>(f: impl FnOnce() -> R) -> R {
    let _guard = enter(Mode::TorchOnly, None);
    f()
}

/// Whether libtorch's operations run on the CPU, too.
pub(crate) fn torch_everywhere() -> bool {
    !matches!(MODE.get(), Mode::Exact | Mode::Fast | Mode::ReferenceF64)
}

impl From<Numerics> for Mode {
    fn from(numerics: Numerics) -> Self {
        match numerics {
            Numerics::Exact => Self::Exact,
            Numerics::Fast => Self::Fast,
        }
    }
}

/// A model's choice, and the memory that its steps reuse.
#[derive(Debug, Default)]
pub(crate) struct NumericsSetting {
    numerics: Cell<Option<Numerics>>,
    workspace: Arc<Workspace>,
}

impl NumericsSetting {
    pub(crate) fn set(&self, numerics: Numerics) {
        self.numerics.set(Some(numerics));
    }

    /// Until the guard is dropped, this thread's operations are the model's. Without a choice of the model's own they
    /// stay as they are.
    pub(crate) fn enter(&self) -> Guard {
        let mode = self.numerics.get().map_or(MODE.get(), Mode::from);
        enter(mode, Some(self.workspace.clone()))
    }

    /// Gives the memory back that is kept from step to step.
    pub(crate) fn release(&self) {
        self.workspace.release();
    }
}

/// Whether the fast form may run on these tensors: it is chosen, and no gradient goes through them.
pub(crate) fn is_fast<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    (MODE.get() == Mode::Fast || torch_everywhere())
        && (!shim::grad_is_enabled() || tensors.into_iter().all(|tensor| !tensor.requires_grad()))
}

/// The memory of the model that runs.
pub(crate) fn workspace() -> Arc<Workspace> {
    WORKSPACE.with_borrow(|workspace| workspace.clone().unwrap_or_default())
}

/// The kind of what the official code computes in f32: f32, but in the f64 yardstick.
pub(crate) fn at_least_f32(kind: Kind) -> Kind {
    if kind == Kind::Double && MODE.get() == Mode::ReferenceF64 { Kind::Double } else { Kind::Float }
}

/// `x` as the exact form of a layer with this weight takes it: the fast form keeps pictures in another kind and order.
/// In that order libtorch's backward of group norm in bf16 writes where nothing is, if only the weight is trained.
pub(crate) fn fitting(x: &Tensor, weight: &Tensor) -> Tensor {
    if MODE.get() != Mode::Fast {
        return x.shallow_clone();
    }
    let x = x.contiguous();
    if shim::autocast_is_enabled(x.device()) { x } else { x.to_kind(weight.kind()) }
}
