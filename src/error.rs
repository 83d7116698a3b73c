//! Every error of the crate, typed.

mod file;
mod hint;
#[cfg(feature = "hub")]
mod hub;
mod parameter;
mod tensors;

use std::io;
use std::path::{Path, PathBuf};

pub use file::FileProblem;
pub use hint::Hint;
#[cfg(feature = "hub")]
pub use hub::HubProblem;
pub use parameter::ParameterProblem;
pub use tensors::{Mismatch, Unplaced};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, with what is needed to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),

    /// The operating system refused something about a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A file is not what its name promises, or is damaged.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: FileProblem,
    },

    /// A checkpoint does not hold the tensors that the model declares.
    #[error("{0}")]
    Mismatch(Box<Mismatch>),

    /// A LoRA holds what the models have no place for.
    #[error("{0}")]
    Lora(Box<Unplaced>),

    /// A file that is being read changed since it was opened.
    #[error("{}: the file changed while it was in use ({was} bytes, now {now}); open it again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its length when it was opened.
        was: u64,
        /// Its length now.
        now: u64,
    },

    /// Sizes that no model can be built from.
    #[error("{0}")]
    Config(String),

    /// A tensor that was handed in has the wrong shape.
    #[error("{what} must be {expected}, but its shape is {found:?}")]
    Shape {
        /// The argument's name.
        what: &'static str,
        /// What is asked of it, in words.
        expected: String,
        /// The shape that it has.
        found: Vec<i64>,
    },

    /// A tensor that was handed in is of another kind, or on another device, than the model's weights.
    #[error("{what} must be {expected:?} as the weights are, but it is {found:?}")]
    Kind {
        /// The argument's name.
        what: &'static str,
        /// Kind and device of the weights.
        expected: (tch::Kind, tch::Device),
        /// Kind and device that it has.
        found: (tch::Kind, tch::Device),
    },

    /// A guidance-distilled model was called without a guidance strength.
    #[error("this model is distilled for guidance: it needs a guidance strength")]
    MissingGuidance,

    /// A model that reads pooled text was called without it.
    #[error("this model reads pooled text: it needs the vector of a CLIP")]
    MissingPooledText,

    /// A model was used before a checkpoint had filled it.
    #[error("{count} parameters have no values yet, {example} among them: load a checkpoint first")]
    Unfilled {
        /// How many.
        count: usize,
        /// One of them.
        example: String,
    },

    /// A result holds NaN or infinity.
    #[error("{what} holds NaN or infinity: {hint}")]
    NotFinite {
        /// Which result.
        what: &'static str,
        /// The likely cause.
        hint: &'static str,
    },

    /// A folder lacks a part that a pipeline needs.
    #[error("{}: no {part}; expected {expected}", path.display())]
    MissingPart {
        /// The folder.
        path: PathBuf,
        /// The part.
        part: &'static str,
        /// The names that were looked for.
        expected: String,
    },

    /// A request needs a part that is none of a folder's, and none is named.
    #[error("{purpose} needs its {part}, and none is named: {expected}")]
    UnnamedPart {
        /// What needs it.
        purpose: &'static str,
        /// The part.
        part: &'static str,
        /// What would be one.
        expected: &'static str,
    },

    /// A finetune lacks a tensor outside of the blocks.
    #[error("{name} is missing: a finetune without it needs a base to take it from")]
    MissingTensor {
        /// Its name.
        name: String,
    },

    /// A tokenizer could not be read, or could not read a text.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A repository on the hub, or a file of one, that cannot be had.
    #[cfg(feature = "hub")]
    #[error("{what}: {problem}")]
    Hub {
        /// The repository, or the repository and the file.
        what: String,
        /// Why.
        problem: HubProblem,
    },

    /// A request that cannot be drawn.
    #[error("{0}")]
    Request(String),

    /// A parameter of a request that cannot be as it is.
    #[error("{0}")]
    Parameter(Box<ParameterProblem>),

    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// An engine has as many jobs waiting as it may.
    #[error("the queue is full: {waiting} of at most {queue} jobs are waiting; try again later")]
    Full {
        /// How many.
        waiting: usize,
        /// How many may, beside those that are drawn.
        queue: usize,
    },

    /// An engine that was shut down, or whose devices are all lost, was given a job.
    #[error("the engine has stopped")]
    Stopped,

    /// A job would need more memory than there is.
    #[error("this needs {} of memory on {} at once, of which {} are free{}", bytes(*needed), device_name(*device), bytes(*free), in_words(hints))]
    TooLarge {
        /// Bytes at its peak.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        device: tch::Device,
        /// What would make it fit.
        hints: Vec<Hint>,
    },

    /// The memory ran out in the middle of a job.
    #[error("out of memory: {0}")]
    OutOfMemory(String),

    /// A device that computes no more until the process is started anew.
    #[error("{} is lost: {reason}", device_name(*device))]
    DeviceLost {
        /// Which.
        device: tch::Device,
        /// In the driver's words.
        reason: String,
    },

    /// A fault in this crate or in libtorch ended a job.
    #[error("a fault ended this job: {0}")]
    Panicked(String),

    /// A parity case does not hold what its module needs.
    #[error("parity case: {0}")]
    Case(String),
}

/// `cpu`, `mps` or `cuda:1`.
fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// `6.25 GB`.
fn bytes(count: u64) -> String {
    if count < 1_000_000_000 {
        format!("{:.1} MB", count as f64 / 1e6)
    } else {
        format!("{:.2} GB", count as f64 / 1e9)
    }
}

/// Hints as the end of a sentence.
fn in_words(hints: &[Hint]) -> String {
    hints.iter().map(|hint| format!("; {hint}")).collect()
}

impl From<ParameterProblem> for Error {
    fn from(problem: ParameterProblem) -> Self {
        Self::Parameter(Box::new(problem))
    }
}

impl Error {
    /// Names the file in an error of the operating system.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// Names the file in what is wrong with it.
    pub(crate) fn file(path: impl AsRef<Path>) -> impl FnOnce(FileProblem) -> Error {
        let path = path.as_ref().to_path_buf();
        move |problem| Error::File { path, problem }
    }
}
