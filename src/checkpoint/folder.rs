//! Which files of a folder hold the weights, by their names alone: one rule for folders and for repositories on the hub.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::index::Index;
use crate::error::{Error, FileProblem, Result};

/// The names that transformers and diffusers give weights. A variant has another word behind: `model.fp16`.
const USUAL_NAMES: [&str; 2] = ["model", "diffusion_pytorch_model"];

/// What macOS puts before the name of the file in which it keeps a file's attributes on other file systems.
const SIDECAR: &str = "._";

/// The ends of the names of weights, in small letters; `.sft` is safetensors', too.
const ENDS: [(&str, Format); 3] =
    [(".safetensors", Format::Safetensors), (".sft", Format::Safetensors), (".gguf", Format::Gguf)];

/// What stands before the end of a name, whether that is in small letters or not.
pub(crate) fn before_end<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    let (stem, found) = name.split_at_checked(name.len().checked_sub(end.len())?)?;
    found.eq_ignore_ascii_case(end).then_some(stem)
}

/// How weights are stored, the preferred form first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// An index, which names the shards.
    Index,
    /// One file.
    File,
    /// A shard of so many.
    Shard { count: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Format {
    Safetensors,
    Gguf,
}

/// The name of a file of weights, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WeightName {
    format: Format,
    /// What all files of a model have in common, its variant included: `model.fp16`.
    model: String,
    form: Form,
    /// A shard's number.
    number: usize,
}

impl WeightName {
    fn parse(name: &str) -> Option<Self> {
        if name.starts_with(SIDECAR) {
            return None;
        }
        if let Some(model) = index_of(name) {
            return Some(Self { format: Format::Safetensors, model, form: Form::Index, number: 0 });
        }
        let (stem, format) =
            ENDS.into_iter().find_map(|(end, format)| Some((before_end(name, end)?, format)))?;
        let whole = || Self { format, model: stem.to_string(), form: Form::File, number: 0 };
        // One of one is a whole file.
        Some(shard_of(stem).filter(|(_, _, count)| *count > 1).map_or_else(
            whole,
            |(model, number, count)| Self { format, model, form: Form::Shard { count }, number },
        ))
    }
}

/// The model of an index: `STEM.safetensors.index.json`, and of a variant `STEM.VARIANT.safetensors.index.json`,
/// `STEM.safetensors.index.VARIANT.json` (diffusers and transformers today) or `STEM.safetensors.VARIANT.index.json`
/// (older ones).
fn index_of(name: &str) -> Option<String> {
    let (stem, rest) = name.split_once(".safetensors.")?;
    match rest.split('.').collect::<Vec<_>>()[..] {
        ["index", "json"] => Some(stem.to_string()),
        ["index", variant, "json"] | [variant, "index", "json"] => Some(format!("{stem}.{variant}")),
        _ => None,
    }
}

/// The model, the number and the count of a shard: `STEM-00001-of-00002`, and of a variant `STEM.VARIANT-00001-of-00002`
/// or, from older versions of diffusers, `STEM-00001-of-00002.VARIANT`.
fn shard_of(stem: &str) -> Option<(String, usize, usize)> {
    let number = |text: &str| {
        let digits = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok() } else { None }
    };
    let (before, after) = stem.rsplit_once("-of-")?;
    let (model, i) = before.rsplit_once('-').filter(|(model, _)| !model.is_empty())?;
    let (count, variant) = after.split_once('.').map_or((after, None), |(count, v)| (count, Some(v)));
    let model = variant.map_or_else(|| model.to_string(), |variant| format!("{model}.{variant}"));
    Some((model, number(i)?, number(count).filter(|count| *count > 0)?))
}

/// Whether a name is that of an index of shards.
pub(crate) fn is_index(name: &str) -> bool {
    !name.starts_with(SIDECAR) && (name.ends_with(".index.json") || index_of(name).is_some())
}

/// The files of one model in a folder.
#[derive(Debug)]
struct Group<'a> {
    model: String,
    form: Form,
    /// With the number of each shard.
    files: Vec<(usize, &'a str)>,
}

impl<'a> Group<'a> {
    /// One for each model and form among the names. Of a model that is there in several forms, the preferred one.
    fn all(names: impl IntoIterator<Item = &'a str>, format: Format) -> Vec<Self> {
        let mut groups: BTreeMap<(String, Form), Vec<(usize, &str)>> = BTreeMap::new();
        for name in names {
            if let Some(parsed) = WeightName::parse(name).filter(|parsed| parsed.format == format) {
                groups.entry((parsed.model, parsed.form)).or_default().push((parsed.number, name));
            }
        }
        let groups = groups.into_iter().map(|((model, form), files)| Self { model, form, files });
        let mut preferred: Vec<Self> = Vec::new();
        for group in groups {
            let better = |other: &Self| other.model == group.model && other.form.rank() < group.form.rank();
            if !preferred.last().is_some_and(better) {
                preferred.push(group);
            }
        }
        preferred
    }

    fn is_usual(&self) -> bool {
        USUAL_NAMES.contains(&self.model.as_str())
    }

    /// Whether it is a variant of a model with a usual name.
    fn is_variant(&self) -> bool {
        let behind = |usual| self.model.strip_prefix(usual).is_some_and(|rest: &str| rest.starts_with('.'));
        USUAL_NAMES.iter().any(|usual| behind(*usual))
    }

    /// All its files in the order of their numbers.
    fn whole(mut self) -> Result<Vec<&'a str>, FileProblem> {
        self.files.sort_unstable();
        if let Form::Shard { count } = self.form {
            self.check_numbers(count).map_err(|reason| FileProblem::Shards { reason })?;
        }
        Ok(self.files.into_iter().map(|(_, name)| name).collect())
    }

    /// That every number stands there, and once.
    fn check_numbers(&self, count: usize) -> Result<(), String> {
        if let Some(&[(number, one), (_, other)]) = self.files.windows(2).find(|pair| pair[0].0 == pair[1].0)
        {
            return Err(format!("{one} and {other} both are shard {number} of {count}"));
        }
        // Some writers count from 0.
        let first = usize::from(self.files.iter().all(|(number, _)| *number > 0));
        let numbers = first..first + count;
        if let Some((_, name)) = self.files.iter().find(|(number, _)| !numbers.contains(number)) {
            return Err(format!("{name} counts beyond its own number of shards"));
        }
        if self.files.len() == count {
            return Ok(());
        }
        let is_lost = |number: &usize| self.files.binary_search_by_key(number, |(n, _)| *n).is_err();
        let lost: Vec<_> = numbers.filter(is_lost).take(MOST_NAMED).map(|n| n.to_string()).collect();
        let more = count - self.files.len() - lost.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let example = self.files.first().map_or("", |(_, name)| name);
        Err(format!(
            "{example} is one of {count} shards, and those with the numbers {}{more} are missing",
            lost.join(", ")
        ))
    }
}

impl Form {
    /// The lower, the more it is preferred.
    fn rank(self) -> u8 {
        match self {
            Self::Index => 0,
            Self::File => 1,
            Self::Shard { .. } => 2,
        }
    }
}

/// How many missing shards an error names.
const MOST_NAMED: usize = 8;

/// The group with the preferred form; none where there are no groups.
///
/// # Errors
/// [`FileProblem::Ambiguous`] where several have that form, or where there are several of which `is_rival` says that no
/// form makes one of them more likely.
fn best<'a>(
    groups: Vec<Group<'a>>,
    part: &'static str,
    is_rival: impl Fn(&Group) -> bool,
) -> Result<Option<Group<'a>>, FileProblem> {
    let rivals = groups.iter().filter(|group| is_rival(group)).count();
    let rank = groups.iter().map(|group| group.form.rank()).min();
    let meant = |group: &Group| rivals > 1 || Some(group.form.rank()) == rank;
    let mut meant: Vec<_> = groups.into_iter().filter(meant).collect();
    if meant.len() > 1 {
        let names = meant.iter().filter_map(|group| Some(group.files.first()?.1.to_string())).collect();
        return Err(FileProblem::Ambiguous { part, names });
    }
    Ok(meant.pop())
}

/// Which of the names in a folder are its weights: an index of shards, one file, or all shards of a model that has no
/// index, in their order. What has a usual name is taken before variants and others, safetensors before GGUF.
///
/// # Errors
/// [`Error::MissingPart`] where there are none; [`Error::File`] with [`FileProblem::Ambiguous`] where several could be
/// meant, with [`FileProblem::Shards`] where shards are missing or doubled.
pub(crate) fn weights_among<'a>(folder: &Path, names: &'a [String]) -> Result<Vec<&'a str>> {
    for format in [Format::Safetensors, Format::Gguf] {
        let groups = Group::all(names.iter().map(String::as_str), format);
        let (usual, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(Group::is_usual);
        let candidates = if usual.is_empty() { others } else { usual };
        let best = best(candidates, "file", |group| group.is_variant()).map_err(Error::file(folder))?;
        if let Some(group) = best {
            return group.whole().map_err(Error::file(folder));
        }
    }
    let there = no_weights(names).map(|told| format!("; it has {told}")).unwrap_or_default();
    Err(Error::MissingPart {
        path: folder.to_path_buf(),
        part: "weights",
        expected: format!("*.safetensors, *.safetensors.index.json or *.gguf{there}"),
    })
}

/// What a folder has in place of weights, and what to do about it.
fn no_weights(names: &[String]) -> Option<String> {
    const UNFINISHED: &str = "a download that is not finished: fetch it again";
    const PICKLE: &str = "a pickle of PyTorch, which can run code when it is read: convert it to safetensors";
    const OTHERS: [(&str, &str); 11] = [
        (".incomplete", UNFINISHED),
        (".part", UNFINISHED),
        (".partial", UNFINISHED),
        (".crdownload", UNFINISHED),
        (".download", UNFINISHED),
        (".aria2", UNFINISHED),
        (".tmp", UNFINISHED),
        (".bin", PICKLE),
        (".pt", PICKLE),
        (".pth", PICKLE),
        (".ckpt", PICKLE),
    ];
    names.iter().filter(|name| !name.starts_with(SIDECAR)).find_map(|name| {
        let (_, what) = OTHERS.iter().find(|(end, _)| before_end(name, end).is_some())?;
        Some(format!("{name}, {what}"))
    })
}

/// Which of these names is the one model among them: its index, its file, or its first shard. Nothing where there is none.
///
/// # Errors
/// [`Error::File`] with [`FileProblem::Ambiguous`] where there are several models.
pub(crate) fn one_model<'a>(
    folder: &Path,
    part: &'static str,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> Result<Option<&'a str>> {
    let groups = [Format::Safetensors, Format::Gguf].map(|format| Group::all(names.clone(), format));
    let best = best(groups.into_iter().flatten().collect(), part, |_| true).map_err(Error::file(folder))?;
    Ok(best.and_then(|mut group| {
        group.files.sort_unstable();
        group.files.first().map(|(_, name)| *name)
    }))
}

/// All shards that a name is one of, in the order of their numbers; the name alone where it is that of no shard.
///
/// # Errors
/// [`Error::File`] with [`FileProblem::Shards`] where shards are missing or doubled.
pub(crate) fn shards_of<'a>(folder: &Path, name: &'a str, names: &'a [String]) -> Result<Vec<&'a str>> {
    let Some(parsed) = WeightName::parse(name).filter(|parsed| matches!(parsed.form, Form::Shard { .. }))
    else {
        return Ok(vec![name]);
    };
    let file = |other: &'a String| {
        let other_name = WeightName::parse(other)?;
        let same = (other_name.format, &other_name.model, other_name.form)
            == (parsed.format, &parsed.model, parsed.form);
        same.then_some((other_name.number, other.as_str()))
    };
    let files = names.iter().filter_map(file).collect();
    Group { model: parsed.model.clone(), form: parsed.form, files }
        .whole()
        .map_err(Error::file(folder.join(name)))
}

/// What is opened for a path.
#[derive(Debug)]
pub(super) enum Weights {
    /// The shards of this index.
    Index(PathBuf),
    /// These files.
    Files(Vec<PathBuf>),
}

/// What is to be opened where a file or a folder is named, and what to say about it.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be read, and as [`weights_among`].
pub(super) fn find(path: &Path) -> Result<(Weights, Option<String>)> {
    if path.is_dir() {
        let names = names_in(path)?;
        let found = weights_among(path, &names)?;
        let files: Vec<_> = found.iter().map(|name| path.join(name)).collect();
        return Ok(match (&files[..], &found[..]) {
            ([index], [name]) if is_index(name) => (Weights::Index(index.clone()), None),
            ([_], _) => (Weights::Files(files), None),
            _ => {
                let note = format!(
                    "{}: {} shards without an index, read by their numbers",
                    path.display(),
                    files.len()
                );
                (Weights::Files(files), Some(note))
            }
        });
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if is_index(&name) {
        return Ok((Weights::Index(path.to_path_buf()), None));
    }
    let one = || Ok((Weights::Files(vec![path.to_path_buf()]), None));
    let parsed = WeightName::parse(&name).filter(|parsed| matches!(parsed.form, Form::Shard { .. }));
    let (Some(parsed), true) = (parsed, path.is_file()) else { return one() };
    let folder = path.parent().unwrap_or(Path::new(""));
    let names = names_in(folder)?;
    let note =
        |count: usize| Some(format!("{}: one of {count} shards, all of which are read", path.display()));
    for index in names.iter().filter(|other| index_of(other).is_some_and(|model| model == parsed.model)) {
        let index = folder.join(index);
        let shards = Index::read(&index)?;
        if shards.shards().contains(name.as_str()) {
            let note = note(shards.shards().len());
            return Ok((Weights::Index(index), note));
        }
    }
    let files: Vec<_> = shards_of(folder, &name, &names)?.iter().map(|name| folder.join(name)).collect();
    let note = note(files.len());
    Ok((Weights::Files(files), note))
}

/// The names in a folder, sorted.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>> {
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        names.push(entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        weights_among(Path::new("folder"), &names)
            .map(|found| found.iter().map(|name| name.to_string()).collect())
    }

    fn refused(names: &[&str]) -> String {
        found(names).unwrap_err().to_string()
    }

    #[test]
    fn every_spelling_of_an_index_is_one() {
        for (name, model) in [
            ("model.safetensors.index.json", "model"),
            ("model.safetensors.index.fp16.json", "model.fp16"),
            ("model.fp16.safetensors.index.json", "model.fp16"),
            ("model.safetensors.fp16.index.json", "model.fp16"),
        ] {
            assert_eq!(index_of(name).as_deref(), Some(model), "{name}");
        }
        for name in
            ["model.safetensors", "model_index.json", "model.safetensors.json", "a.safetensors.b.json"]
        {
            assert!(!is_index(name), "{name}");
        }
        assert!(!is_index("._model.safetensors.index.json"));
    }

    #[test]
    fn the_numbers_of_a_shard_are_read_in_every_spelling() {
        let shard = |model: &str, number, count| Some((model.to_string(), number, count));
        assert_eq!(shard_of("model-00001-of-00002"), shard("model", 1, 2));
        assert_eq!(shard_of("model.fp16-00002-of-00002"), shard("model.fp16", 2, 2));
        assert_eq!(shard_of("model-00002-of-00002.fp16"), shard("model.fp16", 2, 2));
        assert_eq!(shard_of("flux1-dev-Q8_0-1-of-3"), shard("flux1-dev-Q8_0", 1, 3));
        for stem in ["model", "best-of-5", "model-1-of-", "model-a-of-2", "-1-of-2", "model-1-of-0", "1-of-2"]
        {
            assert_eq!(shard_of(stem), None, "{stem}");
        }
    }

    #[test]
    fn of_several_files_the_one_with_a_usual_name_is_meant() {
        for (names, expected) in [
            (&["model.fp16.safetensors", "model.safetensors"][..], "model.safetensors"),
            (&["model.safetensors.index.fp16.json", "model.safetensors"], "model.safetensors"),
            (&["model.safetensors", "other.safetensors.index.json"], "model.safetensors"),
            (&["a.safetensors", "b.safetensors", "x.safetensors.index.json"], "x.safetensors.index.json"),
            (
                &["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
                "model.safetensors.index.json",
            ),
            (
                &["m.fp16-00001-of-00002.safetensors", "m.safetensors.index.fp16.json"],
                "m.safetensors.index.fp16.json",
            ),
            (&["one.safetensors", "x.gguf"], "one.safetensors"),
            (&["x.gguf", "._x.gguf", "config.json"], "x.gguf"),
        ] {
            assert_eq!(found(names).unwrap(), [expected], "{names:?}");
        }
    }

    #[test]
    fn files_none_of_which_is_more_likely_are_named() {
        for names in [
            &["a.safetensors", "b.safetensors"][..],
            &["model.bf16.safetensors", "model.fp16.safetensors"],
            &["model.bf16.safetensors", "model.safetensors.index.fp16.json"],
            &["model.safetensors", "diffusion_pytorch_model.safetensors"],
            &["m-1-of-1.safetensors", "n-1-of-2.safetensors", "n-2-of-2.safetensors", "o-1-of-1.safetensors"],
        ] {
            assert!(refused(names).contains("several files could be meant"), "{names:?}");
        }
    }

    #[test]
    fn sidecars_are_no_candidates() {
        let names = ["._model.fp16.safetensors", "._model.safetensors.index.json", "model.fp16.safetensors"];
        assert_eq!(found(&names).unwrap(), ["model.fp16.safetensors"]);
        assert!(matches!(found(&["._model.safetensors"]), Err(Error::MissingPart { .. })));
    }

    #[test]
    fn shards_without_an_index_are_taken_by_their_numbers() {
        let shards =
            ["m-00002-of-00003.safetensors", "m-00003-of-00003.safetensors", "m-00001-of-00003.safetensors"];
        let mut sorted = shards;
        sorted.sort_unstable();
        assert_eq!(found(&shards).unwrap(), sorted);
        assert_eq!(found(&["m-0-of-2.safetensors", "m-1-of-2.safetensors"]).unwrap().len(), 2);
        // Ten sorts before two, but comes after it.
        let ten: Vec<String> = (1..=10).map(|i| format!("m-{i}-of-10.gguf")).collect();
        assert_eq!(weights_among(Path::new(""), &ten).unwrap()[9], "m-10-of-10.gguf");
        // With a sidecar beside each.
        assert_eq!(
            found(&["._m-1-of-2.gguf", "._m-2-of-2.gguf", "m-1-of-2.gguf", "m-2-of-2.gguf"]).unwrap().len(),
            2
        );
    }

    #[test]
    fn missing_and_doubled_shards_are_named() {
        let text = refused(&["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"]);
        assert!(
            text.contains("m-00001-of-00003.safetensors is one of 3 shards")
                && text.contains("numbers 2 are"),
            "{text}"
        );
        let text = refused(&["m-1-of-2.safetensors", "m-00001-of-00002.safetensors", "m-2-of-2.safetensors"]);
        assert!(
            text.contains("m-00001-of-00002.safetensors and m-1-of-2.safetensors both are shard 1"),
            "{text}"
        );
        let text = refused(&["m-3-of-2.safetensors"]);
        assert!(text.contains("m-3-of-2.safetensors counts beyond"), "{text}");
        let text = refused(&["m-1-of-999999999.safetensors"]);
        assert!(text.contains("2, 3, 4, 5, 6, 7, 8, 9 and 999999990 more are missing"), "{text}");
    }

    #[test]
    fn the_shards_of_one_are_found_among_others() {
        let names =
            ["m-1-of-2.safetensors", "m-1-of-3.safetensors", "m-2-of-2.safetensors", "n-2-of-2.safetensors"];
        let names = names.map(String::from);
        let of = |name| shards_of(Path::new("folder"), name, &names);
        assert_eq!(of("m-2-of-2.safetensors").unwrap(), ["m-1-of-2.safetensors", "m-2-of-2.safetensors"]);
        assert_eq!(of("model.safetensors").unwrap(), ["model.safetensors"]);
        assert!(of("n-2-of-2.safetensors").is_err());
    }
}
