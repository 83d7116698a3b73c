use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::{FileProblem, Mismatch};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

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

    /// A guidance-distilled model was called without a guidance strength.
    #[error("this model is distilled for guidance: it needs a guidance strength")]
    MissingGuidance,

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

    /// A tokenizer could not be read, or could not read a text.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A request that cannot be drawn.
    #[error("{0}")]
    Request(String),

    /// The caller's progress function asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// A parity case does not hold what its module needs.
    #[error("parity case: {0}")]
    Case(String),
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
