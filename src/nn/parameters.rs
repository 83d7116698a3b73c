//! The parameters that the constructor of a model declares.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

use tch::Tensor;
use tch::nn::Path;

use super::linear::{Block, Linears};
use super::{COLLECTORS, Declarations, collect, is_placeholder};
use crate::error::{Error, Result};
use crate::numerics::{Guard, NumericsSetting};

/// The parameters of a model: which of them have no values yet, which belong to linear layers, and in which numerics the
/// model computes with them.
#[derive(Debug)]
pub struct Parameters {
    /// Those that had no values at the last check.
    unfilled: RefCell<Vec<(String, Tensor)>>,
    is_filled: Cell<bool>,
    linears: Linears,
    numerics: NumericsSetting,
}

impl Parameters {
    /// Begins to collect what is declared on this thread: the parameters of the model at `vs`.
    pub(crate) fn collect(vs: &Path) -> Collector {
        let depth = COLLECTORS.with_borrow_mut(|open| {
            open.push(Declarations::default());
            open.len() - 1
        });
        Collector { root: vs.path(""), depth, on_this_thread: PhantomData }
    }

    /// Names the blocks of the model, in the order in which they run.
    pub(crate) fn with_blocks(mut self, blocks: impl IntoIterator<Item = Block>) -> Self {
        self.linears.set_blocks(blocks.into_iter().collect());
        self
    }

    /// Returns [`Error::Unfilled`] while any parameter is a placeholder, unless its values are kept quantised.
    pub(crate) fn check_filled(&self) -> Result<()> {
        if self.is_filled.get() {
            return Ok(());
        }
        let mut unfilled = self.unfilled.borrow_mut();
        unfilled.retain(|(name, parameter)| is_placeholder(parameter) && !self.linears.is_stored(name));
        if let Some((example, _)) = unfilled.first() {
            return Err(Error::Unfilled { count: unfilled.len(), example: example.clone() });
        }
        self.is_filled.set(true);
        Ok(())
    }

    /// Begins a run of the model: until the guard is dropped, the operations of this thread obey the numerics of the model
    /// and use its workspace.
    ///
    /// # Errors
    /// As [`Parameters::check_filled`].
    pub(crate) fn enter(&self) -> Result<Guard> {
        self.check_filled()?;
        Ok(self.numerics.enter())
    }

    /// Returns the linear layers.
    pub(crate) fn linears(&self) -> &Linears {
        &self.linears
    }

    /// Returns the numerics of the model, and the memory that its steps share.
    pub(crate) fn numerics(&self) -> &NumericsSetting {
        &self.numerics
    }
}

/// Collects what a constructor declares, from [`Parameters::collect`] until it is finished or dropped.
pub(crate) struct Collector {
    /// What stands before the names of the model in the variable store.
    root: String,
    /// How many constructors of this thread are around this one.
    depth: usize,
    on_this_thread: PhantomData<*const ()>,
}

impl Collector {
    /// Returns what was declared. A constructor around this one has declared it, too.
    pub(crate) fn finish(self) -> Parameters {
        let declared = COLLECTORS.with_borrow_mut(|open| {
            open.truncate(self.depth + 1);
            open.pop().unwrap_or_default()
        });
        collect(|outer| {
            let parameters = declared.parameters.iter();
            outer.parameters.extend(parameters.map(|(name, p)| (name.clone(), p.shallow_clone())));
            let linears = declared.linears.iter();
            outer
                .linears
                .extend(linears.map(|(name, slot, w)| (name.clone(), slot.clone(), w.shallow_clone())));
        });
        Parameters {
            unfilled: RefCell::new(declared.parameters),
            is_filled: Cell::new(false),
            linears: Linears::new(self.root.clone(), declared.linears),
            numerics: NumericsSetting::default(),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // A constructor that has failed leaves nothing behind for those around it.
        COLLECTORS.with_borrow_mut(|open| open.truncate(self.depth));
    }
}
