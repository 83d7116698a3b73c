//! What is wrong with a file.

use std::path::PathBuf;

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
    #[error(
        "{}a safetensors file begins with 8 bytes that say its header's length",
        if *len == 0 { "this file is empty: it was not fetched or copied to its end; ".into() } else { format!("only {len} bytes long; ") }
    )]
    TooShort {
        /// The file's length.
        len: u64,
    },
    /// A link leads to nothing.
    #[error("this is a link to {}, where nothing is: fetch the file again", target.display())]
    DeadLink {
        /// Where it leads.
        target: PathBuf,
    },
    /// The tensors are not those of the part that is to be read.
    #[error("{reason}")]
    NotThisPart {
        /// What is missing, and what the file is.
        reason: String,
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
    /// The file holds another model than the one that is asked for.
    #[error("no {wanted}: {looks_like}")]
    OtherModel {
        /// What is asked for: `FLUX.1 transformer`.
        wanted: &'static str,
        /// What it seems to be, and what would work.
        looks_like: String,
        /// Which part of a model it is, where it is one.
        part: Option<&'static str>,
    },
    /// The weights are in a form that cannot be read.
    #[error("{looks_like}")]
    Packed {
        /// What packs weights so, and what would work.
        looks_like: String,
    },
    /// Weights that are no numbers. Results are looked at, not weights: this is found when a result is not finite.
    #[error(
        "tensor \"{name}\" holds NaN or infinity: {count} of its {of} numbers, the first at {first:?}; the file is damaged or \
         its training diverged: fetch it again, or take another"
    )]
    NotFinite {
        /// The tensor's name in the file.
        name: String,
        /// The place of the first of them.
        first: Vec<i64>,
        /// How many.
        count: u64,
        /// Of how many.
        of: u64,
    },
    /// Weights that the kind to compute in does not hold.
    #[error(
        "tensor \"{name}\" holds {value} at {first:?}, which {kind} does not hold: compute in bf16 or f32"
    )]
    Overflow {
        /// The tensor's name in the file.
        name: String,
        /// The place of the first such number.
        first: Vec<i64>,
        /// The number.
        value: f64,
        /// The kind, as the formats spell it.
        kind: &'static str,
    },
    /// A LoRA was asked for.
    #[error("this holds no LoRA: {looks_like}")]
    NotALora {
        /// What it seems to be.
        looks_like: String,
        /// Which part of a model it is, where it is one.
        part: Option<&'static str>,
    },
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
    /// A setting that has no such value, or one that is not built here.
    #[error("\"{key}\" {reason}")]
    Setting {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An index of shards that cannot be followed.
    #[error("the index cannot be followed: {reason}")]
    Index {
        /// Why.
        reason: String,
    },
    /// Shards without an index, of which some are missing or there twice.
    #[error("these shards are not a whole model: {reason}")]
    Shards {
        /// Which.
        reason: String,
    },
    /// Several files of a folder, none of which is more likely to be meant than the others.
    #[error("several {part}s could be meant: {}; name one", names.join(", "))]
    Ambiguous {
        /// What was looked for.
        part: &'static str,
        /// The files.
        names: Vec<String>,
    },
}
