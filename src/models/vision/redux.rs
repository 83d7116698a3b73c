//! Redux: SigLIP's states to tokens that follow those of T5.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/image_embedders.py`, `ReduxImageEncoder`; the same under
//! the same names is diffusers 0.42.1, `pipelines/flux/modeling_flux.py`.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::Path;

use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::text::matrix;
use crate::nn::{Linear, Parameters, check_kind, check_sizes};
use crate::ops::{self, Activation, Epilogue};

/// The sizes of a Redux embedder, in the names of its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReduxConfig {
    /// Width of SigLIP's states.
    pub redux_dim: i64,
    /// Width of T5's states.
    pub txt_in_features: i64,
}

impl Default for ReduxConfig {
    /// Returns the sizes of FLUX.1-Redux-dev.
    fn default() -> Self {
        Self { redux_dim: 1152, txt_in_features: 4096 }
    }
}

impl ReduxConfig {
    /// Reads the sizes from the tensors' shapes; `shape` gives `None` for a name that the file does not hold.
    ///
    /// # Errors
    /// [`Error::Config`] where a projection is missing or no matrix.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let matrix = |name: &str| matrix("Redux embedder", &shape, name);
        let (_, redux_dim) = matrix("redux_up.weight")?;
        let (txt_in_features, _) = matrix("redux_down.weight")?;
        Ok(Self { redux_dim, txt_in_features })
    }
}

/// The two projections of Redux.
#[derive(Debug)]
pub struct ReduxImageEncoder {
    redux_up: Linear,
    redux_down: Linear,
    config: ReduxConfig,
    parameters: Parameters,
}

impl Model for ReduxImageEncoder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl ReduxImageEncoder {
    /// Declares every parameter.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that no model has.
    pub fn new(vs: Path, config: &ReduxConfig) -> Result<Self> {
        let ReduxConfig { redux_dim, txt_in_features } = *config;
        check_sizes(&[("redux_dim", redux_dim), ("txt_in_features", txt_in_features)])?;
        let inner = 3 * txt_in_features;
        let collector = Parameters::collect(&vs);
        Ok(Self {
            redux_up: Linear::new(&vs / "redux_up", redux_dim, inner, true),
            redux_down: Linear::new(&vs / "redux_down", inner, txt_in_features, true),
            config: *config,
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn config(&self) -> &ReduxConfig {
        &self.config
    }

    /// Projects states of SigLIP `[B, L, redux_dim]` to tokens `[B, L, txt_in_features]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Kind`], [`Error::Unfilled`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _scope = self.parameters.enter()?;
        if x.dim() != 3 || x.size()[2] != self.config.redux_dim {
            let expected = format!("[B, L, {}]", self.config.redux_dim);
            return Err(Error::Shape { what: "x", expected, found: x.size() });
        }
        check_kind("x", x, x.kind(), &self.redux_up.weight)?;
        let activation = Epilogue { activation: Activation::Silu, ..Epilogue::default() };
        let hidden = ops::linear(&self.redux_up, x, activation);
        Ok(ops::linear(&self.redux_down, &hidden, Epilogue::default()))
    }
}
