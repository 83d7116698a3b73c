//! Tensors that are not those of a model, and changes that have no place in one.

use std::fmt;
use std::path::PathBuf;

use super::Hint;

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
    /// Whether all that is missing lies outside of a transformer's blocks.
    pub lacks_only_ends: bool,
    /// What the files seem to be.
    pub looks_like: String,
}

impl Mismatch {
    /// Whether all that is wrong is that tensors outside of the blocks are missing, as in many finetunes.
    pub fn needs_base(&self) -> bool {
        let Self { missing, unexpected, misshapen, of_another_kind, lacks_only_ends, .. } = self;
        let else_right = unexpected.is_empty() && misshapen.is_empty() && of_another_kind.is_empty();
        else_right && !missing.is_empty() && *lacks_only_ends
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
        write!(f, "\n  {}", Hint::PartialLora)
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
            write!(f, "\n  a finetune without these needs a base to take them from")?;
        }
        Ok(())
    }
}
