//! Configuration files of diffusers and transformers, read key by key, so that each error names the file and the key.

mod other_format;

use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, FileProblem, Result};

pub(crate) use other_format::find as other_format;

/// No configuration file is as large as this; a file that is, is something else.
const MAX_BYTES: u64 = 16 << 20;

/// A JSON object of settings: a `config.json`, a `scheduler_config.json`, a `model_index.json`.
///
/// A key that is absent and one that is `null` are both `None`, as in Python.
#[derive(Debug, Clone)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    /// Where in the file this object stands, `text_config.` for example; empty for the whole.
    section: String,
    /// The weights that the settings are for, which errors name.
    weights: Option<PathBuf>,
    fields: Map<String, Value>,
}

impl ConfigFile {
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] where the file is no JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let settings = |reason: String| Error::file(path)(FileProblem::Settings { reason });
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if metadata.is_dir() {
            return Err(Error::file(path)(FileProblem::Directory));
        }
        if !metadata.is_file() {
            return Err(Error::file(path)(FileProblem::NotAFile));
        }
        if metadata.len() > MAX_BYTES {
            return Err(settings(format!("{} bytes are more than settings take", metadata.len())));
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        if bytes.is_empty() {
            return Err(settings("the file is empty: it was not fetched or copied to its end".into()));
        }
        if let Some(kind) = other_format(&bytes).filter(|_| !bytes.trim_ascii_start().starts_with(b"{")) {
            return Err(Error::file(path)(FileProblem::OtherFormat { kind }));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| settings(error.to_string()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match serde_json::from_str(&quote_python_floats(text)).map_err(|error| settings(error.to_string()))? {
            Value::Object(fields) => {
                Ok(Self { path: path.to_path_buf(), section: String::new(), weights: None, fields })
            }
            other => Err(settings(format!("a JSON object is expected, not {}", kind_of(&other)))),
        }
    }

    /// Names the weights that the settings are for.
    pub(crate) fn of_weights(mut self, weights: &Path) -> Self {
        self.weights = Some(weights.to_path_buf());
        self
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The object under a key, such as `text_config`.
    pub(crate) fn section(&self, key: &str) -> Result<Option<Self>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self {
                path: self.path.clone(),
                section: format!("{}{key}.", self.section),
                weights: self.weights.clone(),
                fields: fields.clone(),
            })),
            Some(other) => Err(self.expected(key, "an object", other)),
        }
    }

    /// The error that something is wrong with the value of a key.
    pub(crate) fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        let key = format!("{}{key}", self.section);
        Error::file(&self.path)(FileProblem::Setting { key, reason: reason.into() })
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether a key is there, and says nothing.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.fields.get(key).is_some_and(Value::is_null)
    }

    /// What is said of keys that nothing here knows, as it is of diffusers, which goes on without them.
    pub(crate) fn unknown(&self, keys: &[&str]) -> String {
        let (names, are) = (keys.join(", "), if keys.len() == 1 { "is" } else { "are" });
        format!("{}: {names} {are} not known and {are} not obeyed", self.path.display())
    }

    /// The keys that say something, and that are none of these. Those that begin with `_` are diffusers' own.
    pub(crate) fn unknown_keys(&self, known: &[&str]) -> Vec<&str> {
        let unknown = |key: &&str| !key.starts_with('_') && !known.contains(key) && self.has(key);
        self.keys().filter(unknown).filter(|key| *key != "quantization_config").collect()
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A text, or the second of a pair as `model_index.json` has it for a class of one's own: `[module, class]`.
    pub(crate) fn text_or_second(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| value.as_str().or_else(|| value.as_array()?.get(1)?.as_str()))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn int(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "a whole number", whole)
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub(crate) fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a list of whole numbers", |value| value.as_array()?.iter().map(whole).collect())
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A number that the weights' shapes say, too, where they are known: both must say the same.
    pub(crate) fn size(&self, key: &str, weights: Option<i64>) -> Result<i64> {
        match (self.int(key)?, weights) {
            (Some(said), Some(found)) => self.agree(key, said, found).map(|()| said),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => Err(self.wrong(key, "is missing, and nothing else says it")),
        }
    }

    /// A number of layers or blocks.
    pub(crate) fn count(&self, key: &str, number: i64) -> Result<usize> {
        let most = 1 << 16;
        let count = usize::try_from(number).ok().filter(|count| *count <= most);
        count.ok_or_else(|| self.wrong(key, format!("is {number}, which is not between 0 and {most}")))
    }

    /// That a value of the file is what the weights' shapes say.
    pub(crate) fn agree<T: PartialEq + Debug>(&self, key: &str, said: T, found: T) -> Result<()> {
        if said == found {
            return Ok(());
        }
        let weights = self.weights.as_deref().map_or("the weights".into(), |path| path.display().to_string());
        let reason =
            format!("is {said:?}, but {weights} says {found:?}: one of both files belongs to another model");
        Err(self.wrong(key, reason))
    }

    /// That a value, where the file has it, is the only one that is built here.
    pub(crate) fn only<T: PartialEq + Debug>(&self, key: &str, said: Option<T>, known: T) -> Result<()> {
        match said {
            Some(said) if said != known => {
                Err(self.wrong(key, format!("is {said:?}; only {known:?} is known")))
            }
            _ => Ok(()),
        }
    }

    /// That the settings are for a model of one of these classes, as diffusers calls it; `None` where no class is named.
    pub(crate) fn check_class(&self, classes: &[&str]) -> Result<()> {
        match self.text("_class_name")? {
            Some(class) if !classes.contains(&class) => {
                Err(self.wrong("_class_name", format!("is {class:?}; {} is expected", classes.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// The same of transformers' word for it.
    pub(crate) fn check_model_type(&self, types: &[&str]) -> Result<()> {
        match self.text("model_type")? {
            Some(model) if !types.contains(&model) => {
                Err(self.wrong("model_type", format!("is {model:?}; {} is expected", types.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.expected(key, wanted, value))
    }

    fn expected(&self, key: &str, wanted: &str, value: &Value) -> Error {
        let text: String = value.to_string().chars().take(60).collect();
        self.wrong(key, format!("must be {wanted}, not {text}"))
    }
}

/// `2.0` is a whole number, too, as Python's arithmetic has it.
fn whole(value: &Value) -> Option<i64> {
    let float = || value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 2f64.powi(53)).map(|f| f as i64);
    value.as_i64().or_else(float)
}

fn kind_of(value: &Value) -> impl Display {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Python writes `NaN` and `-Infinity`, which JSON does not have: they become texts, which no number is read from.
fn quote_python_floats(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let (mut rest, mut inside) = (text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        match (inside, word) {
            (false, Some(word)) => {
                quoted.extend(["\"", word, "\""]);
                rest = &rest[word.len()..];
                continue;
            }
            (true, _) if c == '\\' => {
                // What is escaped neither ends the text nor escapes.
                let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                quoted.push_str(&rest[..len]);
                rest = &rest[len..];
                continue;
            }
            _ => inside ^= c == '"',
        }
        quoted.push(c);
        rest = &rest[c.len_utf8()..];
    }
    quoted
}

#[cfg(test)]
impl ConfigFile {
    /// Settings that stand in no file.
    pub(crate) fn from_json(fields: Value) -> Self {
        let Value::Object(fields) = fields else { panic!("no object") };
        Self { path: "config.json".into(), section: String::new(), weights: None, fields }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<ConfigFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        ConfigFile::read(&path)
    }

    #[test]
    fn what_is_no_json_object_is_refused_by_the_name_of_the_file() {
        for text in ["", "{", "[1]", "null", "{\"a\": 1", "{\"a\" 1}", "<html>", "\"{}\"", "{} {}"] {
            let error = read(text).unwrap_err();
            assert!(matches!(error, Error::File { .. }), "{text}");
            assert!(error.to_string().contains("config.json"), "{text}: {error}");
        }
        assert!(read([0xff, 0xfe, 0x7b]).is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(ConfigFile::read(folder.path()).unwrap_err().to_string().contains("folder"));
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_the_name_of_its_key() {
        let config =
            read(r#"{"n": "4", "x": [1], "l": [1, "a"], "t": 3, "f": 1, "s": 4, "i": 1.5}"#).unwrap();
        let errors = [
            config.int("n").unwrap_err(),
            config.float("x").unwrap_err(),
            config.ints("l").unwrap_err(),
            config.text("t").unwrap_err(),
            config.flag("f").unwrap_err(),
            config.section("s").unwrap_err(),
            config.int("i").unwrap_err(),
        ];
        for (error, key) in errors.iter().zip(["n", "x", "l", "t", "f", "s", "i"]) {
            let error = error.to_string();
            assert!(error.contains("config.json") && error.contains(&format!("\"{key}\"")), "{error}");
        }
        assert_eq!(
            (config.int("none").unwrap(), read(r#"{"n": null}"#).unwrap().int("n").unwrap()),
            (None, None)
        );
        assert_eq!(read(r#"{"n": 4.0}"#).unwrap().int("n").unwrap(), Some(4));
    }

    #[test]
    fn pythons_floats_are_read_and_are_no_numbers() {
        let config =
            read(r#"{"a": -Infinity, "b": [NaN, Infinity], "c": "NaN \" Infinity", "d": 2}"#).unwrap();
        assert!(config.float("a").unwrap_err().to_string().contains("\"a\""));
        assert_eq!(config.text("c").unwrap(), Some("NaN \" Infinity"));
        assert_eq!(config.int("d").unwrap(), Some(2));
        assert_eq!(read("\u{feff}{\"d\": 3}").unwrap().int("d").unwrap(), Some(3));
    }

    #[test]
    fn what_the_weights_say_otherwise_is_refused_with_both() {
        let config = ConfigFile::from_json(json!({ "num_layers": 3, "text_config": { "d": 1 } }));
        let config = config.of_weights(Path::new("model.safetensors"));
        let error = config.size("num_layers", Some(2)).unwrap_err().to_string();
        for word in ["config.json", "num_layers", "3", "model.safetensors", "2"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert_eq!(config.size("num_layers", None).unwrap(), 3);
        assert_eq!(config.size("absent", Some(7)).unwrap(), 7);
        assert!(config.size("absent", None).is_err());
        let section = config.section("text_config").unwrap().unwrap();
        assert!(section.size("d", Some(2)).unwrap_err().to_string().contains("text_config.d"));
    }
}
