use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

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
    #[error("this needs {} of memory on {} at once, of which {} are free; {advice}", bytes(*needed), device_name(*device), bytes(*free))]
    TooLarge {
        /// Bytes at its peak.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        device: tch::Device,
        /// What would make it fit.
        advice: String,
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

/// Why something on the hub cannot be had.
#[cfg(feature = "hub")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// A text that names no repository.
    #[error("a repository's name is OWNER/NAME or OWNER/NAME@REVISION")]
    Name,
    /// Access is given on request, and not yet to us.
    #[error("access is given on request: accept the licence on its page, {page}, then {}", if *token {
        "let the token in use (HF_TOKEN or the token file) read gated repositories"
    } else {
        "log in with `hf auth login` or set HF_TOKEN"
    })]
    Gated {
        /// The address of the page where access is asked for.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub knows no such repository, or does not show it to us.
    #[error("the hub has no such repository, or it is private{}", if *token {
        " and the token in use (HF_TOKEN or the token file) may not read it"
    } else {
        ": then log in with `hf auth login` or set HF_TOKEN"
    })]
    NotFound {
        /// Whether a token was sent.
        token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("it has no such revision; without @REVISION its branch main is taken")]
    NoRevision,
    /// The repository has no such file.
    #[error("the repository has no such file")]
    NoFile,
    /// The token is not, or no longer, good.
    #[error("the hub refuses the token in use: log in again with `hf auth login`, or mend HF_TOKEN")]
    Token,
    /// Refused for another reason.
    #[error("the hub refuses it: {reason}")]
    Forbidden {
        /// In the hub's words.
        reason: String,
    },
    /// More requests than the hub allows.
    #[error("the hub asks for fewer requests{}; with a token (HF_TOKEN) it allows more", wait.map_or(
        String::new(), |wait| format!(": try again in {wait} s")
    ))]
    RateLimited {
        /// The seconds after which it wants to be asked again, if it says.
        wait: Option<u64>,
    },
    /// The hub failed, several times.
    #[error("the hub answers {status}, an error of its own: try again later")]
    Server {
        /// The status.
        status: u16,
    },
    /// No answer, or one that broke off, several times.
    #[error("the connection failed: {reason}")]
    Network {
        /// What happened.
        reason: String,
    },
    /// An address that cannot be asked.
    #[error("it cannot be asked for: {reason}; look at HF_ENDPOINT and HF_TOKEN")]
    Address {
        /// Why.
        reason: String,
    },
    /// An answer that no hub gives.
    #[error("the answer makes no sense: {reason}; is HF_ENDPOINT the address of a hub?")]
    Answer {
        /// What is wrong with it.
        reason: String,
    },
    /// A name in the repository's list that would lead out of the cache.
    #[error("the repository lists {name:?}, which is no name of a file in it; nothing of it is fetched")]
    UnsafeName {
        /// The name.
        name: String,
    },
    /// Something is not in the cache, and nothing may be fetched.
    #[error("not in the cache, {}, and offline nothing is fetched: run it once without HF_HUB_OFFLINE", cache.display())]
    Offline {
        /// The folder of the cache.
        cache: PathBuf,
    },
    /// Another number of bytes than the hub announced. They are thrown away.
    #[error("{found} bytes came, but the hub lists {expected}: try again later")]
    WrongSize {
        /// As the hub lists it.
        expected: u64,
        /// As it came.
        found: u64,
    },
    /// Other bytes than the hub announced. They are thrown away.
    #[error(
        "what came has the hash {found}, but the hub lists {expected}: try again, or over another network"
    )]
    WrongHash {
        /// As the hub lists it: a SHA-256, or git's of a small file.
        expected: String,
        /// As it came.
        found: String,
    },
    /// No room for a file. What came of it stays, to be gone on with.
    #[error("the disk of {} is full: {needed} more bytes are needed; HF_HUB_CACHE names another place", folder.display())]
    DiskFull {
        /// Where the room is missing.
        folder: PathBuf,
        /// How many bytes have yet to come.
        needed: u64,
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

/// What of a LoRA could not be placed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Unplaced {
    /// The LoRA's file; empty where the terms of several are put on a model.
    pub path: PathBuf,
    /// Keys whose meaning is not known.
    pub unknown: Vec<String>,
    /// Modules of the file whose counterparts the models lack: the file's name, and the official one.
    pub absent: Vec<(String, String)>,
    /// Changes of another shape than what they change: the file's name, the model's shape, the change's.
    pub misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Modules that change what another module of the file changes already: this one, and the other.
    pub twice: Vec<(String, String)>,
    /// The family of models that the LoRA was made for, where its keys tell that it is another than FLUX.1.
    pub made_for: Option<&'static str>,
}

impl Unplaced {
    /// Whether all was placed.
    pub fn is_empty(&self) -> bool {
        let Self { unknown, absent, misshapen, twice, .. } = self;
        unknown.is_empty() && absent.is_empty() && misshapen.is_empty() && twice.is_empty()
    }
}

impl fmt::Display for Unplaced {
    /// Each kind of what has no place, with its first keys; of a LoRA of another family, how many they are.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.path.as_os_str().is_empty() {
            write!(f, "not all changes of the LoRAs fit the model, so none was applied")?;
            return self.lines().iter().try_for_each(|line| write!(f, "\n  {line}"));
        }
        write!(f, "{}: not all of this LoRA fits the model, so none of it was applied", self.path.display())?;
        if let Some(family) = self.made_for {
            let Self { unknown, absent, misshapen, twice, .. } = self;
            let count = unknown.len() + absent.len() + misshapen.len() + twice.len();
            let first = unknown.first().or(absent.first().map(|(name, _)| name));
            let first = first.or(misshapen.first().map(|(name, ..)| name)).map_or("", String::as_str);
            write!(f, "\n  it was made for {family}: take a LoRA that was made for FLUX.1")?;
            return write!(
                f,
                "\n  {count} of its keys and modules have no place, the first of which is {first}"
            );
        }
        self.lines().iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        write!(f, "\n  is it made for this model? --allow-partial-lora applies the rest")
    }
}

impl Unplaced {
    /// A line for each kind of what has no place, with the first of its keys.
    pub fn lines(&self) -> Vec<String> {
        let absent = self.absent.iter().map(|(name, official)| format!("{name} ({official})"));
        let shapes = self.misshapen.iter().map(|(n, want, got)| format!("{n} changes {got:?}, not {want:?}"));
        let twice = self.twice.iter().map(|(name, other)| format!("{name} and {other}"));
        let kinds = [
            ("keys of no known meaning", self.unknown.clone()),
            ("for modules that the model lacks", absent.collect()),
            ("of another shape", shapes.collect()),
            ("changing the same", twice.collect()),
        ];
        let there = kinds.into_iter().filter(|(_, keys)| !keys.is_empty());
        there.map(|(what, keys)| format!("{what} ({}): {}", keys.len(), some(&keys))).collect()
    }
}

/// So many keys tell what a LoRA is; some have thousands, and an error is read by people.
const MOST_KEYS: usize = 24;

/// The first of the keys, and how many more there are.
fn some(keys: &[String]) -> String {
    let more = keys.len().saturating_sub(MOST_KEYS);
    let named = keys[..keys.len() - more].join("; ");
    if more > 0 { format!("{named}; and {more} more") } else { named }
}

/// A line of an error with what is wrong and the first four examples of it; nothing where there are none.
fn list(f: &mut fmt::Formatter, what: &str, lines: Vec<String>) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    write!(f, "\n  {what} ({}): {}", lines.len(), lines[..lines.len().min(4)].join("; "))?;
    if lines.len() > 4 { write!(f, "; …") } else { Ok(()) }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let files: Vec<_> = self.files.iter().map(|p| p.display().to_string()).collect();
        write!(f, "{}: not the tensors that the model declares", files.join(", "))?;
        list(f, "missing", self.missing.clone())?;
        list(f, "unexpected", self.unexpected.clone())?;
        let shapes = self.misshapen.iter().map(|(n, want, got)| format!("{n} is {got:?}, not {want:?}"));
        list(f, "misshapen", shapes.collect())?;
        let kinds = self.of_another_kind.iter().map(|(n, why)| format!("{n} {why}"));
        list(f, "of another kind", kinds.collect())?;
        write!(f, "\n  the file: {}", self.looks_like)?;
        if self.needs_base() {
            write!(f, "\n  a finetune without these needs a base (--base) to take them from")?;
        }
        Ok(())
    }
}
