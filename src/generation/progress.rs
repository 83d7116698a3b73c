//! What a pipeline tells while it draws, and what it returns.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Request;
use crate::image::Image;

/// What a pipeline is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// T5 and CLIP are loaded and run, and so is what reads Redux's pictures.
    Text,
    /// The transformer is loaded.
    Load,
    /// Noise becomes a latent.
    Denoise,
    /// A latent becomes a picture.
    Decode,
}

/// How far a pipeline is.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// A phase begins. Several pictures are drawn and decoded in turns, so that each is there as soon as it can be.
    Phase(Phase),
    /// A step is done.
    Step {
        /// Which picture, from 0.
        image: usize,
        /// Of how many.
        images: usize,
        /// Which step, from 1.
        step: usize,
        /// Of how many.
        steps: usize,
    },
    /// What a picture will look like, as far as it can be told: see [`Request::previews`].
    Preview {
        /// Which picture, from 0.
        image: usize,
        /// After which step, from 1.
        step: usize,
        /// At most 256 pixels a side where the autoencoder made it; else see [`PreviewBy`](super::PreviewBy).
        picture: Image,
    },
    /// A picture is finished. It is also among those that are returned.
    Picture {
        /// Which picture, from 0.
        image: usize,
        /// Of how many.
        images: usize,
        /// The picture, and how it came about.
        picture: Arc<Generated>,
    },
}

/// Hears of the progress, and stops the work with `Break`.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// A picture and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The picture.
    pub image: Image,
    /// The request that draws it alone, with nothing left open.
    pub request: Request,
    /// What the caller should know: tokens that did not fit.
    pub warnings: Vec<String>,
    /// Calls of the transformer that [`Request::cache`] did not compute whole, and all; none without one.
    pub skipped: (usize, usize),
}

/// Hears of the progress of each request by its place, and stops that one's work with `Break`.
pub type OnBatchProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + 'a;
