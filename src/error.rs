use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

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

/// What is wrong with a weight file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// A folder stands under the name.
    #[error("this is a folder, not a file")]
    Directory,
    /// A pipe, a device or a socket.
    #[error("this is no ordinary file")]
    NotAFile,
    /// Fewer than the 8 bytes that say the header's length.
    #[error("only {len} bytes long; a safetensors file begins with 8 bytes that say its header's length")]
    TooShort {
        /// The file's length.
        len: u64,
    },
    /// The first bytes are those of another format.
    #[error("this is {kind}")]
    OtherFormat {
        /// Which, and what to do about it.
        kind: &'static str,
    },
    /// The header would be longer than the format allows.
    #[error(
        "its first 8 bytes ask for a header of {len} bytes, more than the format allows (100,000,000); this is no safetensors file, or it is damaged"
    )]
    HeaderTooLong {
        /// The length that is asked for.
        len: u64,
    },
    /// The header would not fit the file.
    #[error(
        "a header of {len} bytes does not fit a file of {file_len}: the download may have been cut short"
    )]
    HeaderPastEnd {
        /// The length that is asked for.
        len: u64,
        /// The file's length.
        file_len: u64,
    },
    /// The header is no text.
    #[error("the header is not UTF-8 after {at} bytes")]
    HeaderNotUtf8 {
        /// How much of it is.
        at: usize,
    },
    /// The header is no JSON of the format's form.
    #[error("the header cannot be read: {reason}")]
    HeaderNotJson {
        /// What and where.
        reason: String,
    },
    /// A GGUF file as a whole is none that can be read.
    #[error("this GGUF file cannot be read: {reason}")]
    Gguf {
        /// Why.
        reason: String,
    },
    /// The header announces more than the file has room for.
    #[error(
        "{what} would take {len} bytes or more, of which the file has {left}: it is damaged, or its download was cut short"
    )]
    HeaderCut {
        /// What is announced.
        what: String,
        /// The fewest bytes of it.
        len: u64,
        /// How many are left.
        left: u64,
    },
    /// An entry of the metadata makes no sense, or stands in the way.
    #[error("metadata \"{key}\": {reason}")]
    Metadata {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's entry makes no sense.
    #[error("tensor \"{name}\": {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's bytes are not all in the file.
    #[error("tensor \"{name}\" ends at byte {end} of {len}: the download may have been cut short")]
    TensorPastEnd {
        /// Its name.
        name: String,
        /// Where it ends.
        end: u64,
        /// How many bytes there are.
        len: u64,
    },
    /// Two tensors share bytes.
    #[error("the bytes of tensor \"{name}\" are also another's")]
    Overlap {
        /// The second of them.
        name: String,
    },
    /// Bytes between tensors that belong to none.
    #[error("{bytes} bytes before tensor \"{before}\" belong to no tensor")]
    Hole {
        /// The tensor after them.
        before: String,
        /// How many.
        bytes: u64,
    },
    /// Bytes after the last tensor.
    #[error("{bytes} bytes after the last tensor belong to none")]
    TrailingBytes {
        /// How many.
        bytes: u64,
    },
    /// A file that would be written stands there already.
    #[error("this stands there already; ask for it to be overwritten, or name another place")]
    Exists,
    /// A file that would be written is being written.
    #[error("another process is writing this; wait for it, or name another place")]
    BeingWritten,
    /// A picture that cannot be read.
    #[error("the picture cannot be read: {reason}")]
    Image {
        /// Why.
        reason: String,
    },
    /// A file of settings that cannot be read.
    #[error("the settings cannot be read: {reason}")]
    Settings {
        /// Why.
        reason: String,
    },
    /// An index of shards that cannot be followed.
    #[error("the index cannot be followed: {reason}")]
    Index {
        /// Why.
        reason: String,
    },
}

/// What a finetune may lack, since it was not trained: everything outside of the blocks.
pub(crate) const OUTSIDE_THE_BLOCKS: [&str; 6] =
    ["img_in.", "time_in.", "vector_in.", "guidance_in.", "txt_in.", "final_layer."];

/// How the tensors that a model declares differ from those that a checkpoint holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mismatch {
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// Declared, but not in the files.
    pub missing: Vec<String>,
    /// In the files, but not declared.
    pub unexpected: Vec<String>,
    /// In both, with shapes that differ: name, declared, found.
    pub misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// In both, of a type that cannot become what is wanted: name, and why.
    pub of_another_kind: Vec<(String, String)>,
    /// What the files seem to be.
    pub looks_like: String,
}

impl Mismatch {
    /// Whether all that is wrong is that tensors outside of the blocks are missing, as in many finetunes.
    pub fn needs_base(&self) -> bool {
        let Self { missing, unexpected, misshapen, of_another_kind, .. } = self;
        let else_right = unexpected.is_empty() && misshapen.is_empty() && of_another_kind.is_empty();
        let outside = |name: &String| OUTSIDE_THE_BLOCKS.iter().any(|prefix| name.starts_with(prefix));
        else_right && !missing.is_empty() && missing.iter().all(outside)
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Self { missing, unexpected, misshapen, of_another_kind, .. } = self;
        missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() && of_another_kind.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let files: Vec<_> = self.files.iter().map(|p| p.display().to_string()).collect();
        write!(f, "{}: not the tensors that the model declares", files.join(", "))?;
        let mut part = |what: &str, lines: Vec<String>| {
            if lines.is_empty() {
                return Ok(());
            }
            write!(f, "\n  {what} ({}): {}", lines.len(), lines[..lines.len().min(4)].join("; "))?;
            if lines.len() > 4 { write!(f, "; …") } else { Ok(()) }
        };
        part("missing", self.missing.clone())?;
        part("unexpected", self.unexpected.clone())?;
        let shapes = self.misshapen.iter().map(|(n, want, got)| format!("{n} is {got:?}, not {want:?}"));
        part("misshapen", shapes.collect())?;
        part("of another kind", self.of_another_kind.iter().map(|(n, why)| format!("{n} {why}")).collect())?;
        write!(f, "\n  the file: {}", self.looks_like)?;
        if self.needs_base() {
            write!(f, "\n  a finetune without these needs a base (--base) to take them from")?;
        }
        Ok(())
    }
}
