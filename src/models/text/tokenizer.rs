//! Tokenizers: prompts to tokens, padded to the lengths that FLUX.1 reads.
//!
//! The files may be `tokenizer.json` (either encoder), `vocab.json` with `merges.txt` (CLIP) and `spiece.model` (T5).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper};

use super::WeightedPrompt;
use crate::config::other_format;
use crate::error::{Error, Result};

/// The tokens of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The prompt, its marks and padding, in all as many as were requested.
    pub ids: Vec<i64>,
    /// Count of tokens of the prompt that did not fit and were left out.
    pub cut: usize,
    /// Count of the ids that are no padding.
    pub used: usize,
}

/// The tokenizer of either text encoder.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    begin: Option<i64>,
    end: i64,
    pad: i64,
}

impl Tokenizer {
    /// Reads CLIP's tokenizer from a folder or file: `tokenizer.json`, else `vocab.json` and `merges.txt`.
    ///
    /// Source of the form: `transformers` 5.23.0, `CLIPTokenizer`.
    ///
    /// # Errors
    /// [`Error::MissingPart`], [`Error::Io`], [`Error::Tokenizer`].
    pub fn clip(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (json, vocab) = (path.join("tokenizer.json"), path.join("vocab.json"));
        let inner = if path.is_file() {
            clip_from_json(path)?
        } else if json.is_file() {
            clip_from_json(&json)?
        } else if vocab.is_file() {
            clip_from_vocab(&vocab, &path.join("merges.txt"))?
        } else {
            return Err(missing(path, "CLIP tokenizer", "tokenizer.json, or vocab.json and merges.txt"));
        };
        let begin = token(&inner, path, "<|startoftext|>")?;
        let end = token(&inner, path, "<|endoftext|>")?;
        Ok(Self { inner, path: path.to_path_buf(), begin: Some(begin), end, pad: end })
    }

    /// Reads T5's tokenizer from a folder or file: `tokenizer.json`, else `spiece.model`. A `tokenizer_config.json` in the same
    /// folder gives the count of `<extra_id_N>`, which is 100 without it.
    ///
    /// Source of the form: `transformers` 5.23.0, `T5Tokenizer`.
    ///
    /// # Errors
    /// [`Error::MissingPart`], [`Error::Io`], [`Error::Tokenizer`].
    pub fn t5(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (json, pieces) = (path.join("tokenizer.json"), path.join("spiece.model"));
        let inner = if path.is_file() && path.extension().is_some_and(|e| e == "model") {
            t5_from_pieces(path)?
        } else if path.is_file() {
            t5_from_json(path)?
        } else if json.is_file() {
            t5_from_json(&json)?
        } else if pieces.is_file() {
            t5_from_pieces(&pieces)?
        } else {
            return Err(missing(path, "T5 tokenizer", "tokenizer.json or spiece.model"));
        };
        let end = token(&inner, path, "</s>")?;
        let pad = token(&inner, path, "<pad>")?;
        Ok(Self { inner, path: path.to_path_buf(), begin: None, end, pad })
    }

    /// Returns exactly `max_length` tokens: the marks and as much of the text as fits, then padding.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the text cannot be read, or `max_length` has no room for the marks.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Tokens> {
        let room = self.room(max_length)?;
        let mut ids = self.text_ids(text)?;
        let cut = ids.len().saturating_sub(room);
        ids.truncate(room);
        Ok(self.pad(ids, cut, max_length))
    }

    /// Returns the tokens of a prompt in parts, each of which is tokenised by itself, and the weight of each token; the marks
    /// and the padding weigh 1. The tokens are those of ComfyUI, except for what does not fit: ComfyUI puts the rest of CLIP's
    /// prompt into further sections of `max_length` tokens, and this is the first section. A part of fewer than 8 tokens is
    /// not cut in two at its end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_weighted(&self, prompt: &WeightedPrompt, max_length: usize) -> Result<(Tokens, Vec<f64>)> {
        let room = self.room(max_length)?;
        let (mut ids, mut cut) = (Vec::new(), 0);
        let mut weights: Vec<f64> = self.begin.iter().map(|_| 1.0).collect();
        for part in &prompt.parts {
            let part_ids = self.text_ids(&part.text)?;
            let left = if cut > 0 { 0 } else { room - ids.len() };
            let whole_only = self.begin.is_some() && part_ids.len() < SHORT_PART;
            let kept = match part_ids.len() {
                len if len <= left => len,
                _ if whole_only => 0,
                _ => left,
            };
            ids.extend_from_slice(&part_ids[..kept]);
            weights.resize(weights.len() + kept, part.weight);
            cut += part_ids.len() - kept;
        }
        weights.resize(max_length, 1.0);
        Ok((self.pad(ids, cut, max_length), weights))
    }

    /// Returns how many tokens of a text fit between the marks.
    fn room(&self, max_length: usize) -> Result<usize> {
        let marks = 1 + usize::from(self.begin.is_some());
        max_length.checked_sub(marks).ok_or_else(|| Error::Tokenizer {
            path: self.path.clone(),
            reason: format!("{max_length} tokens have no room for a prompt"),
        })
    }

    /// Returns the tokens of a text, without marks.
    fn text_ids(&self, text: &str) -> Result<Vec<i64>> {
        let failed =
            |e: tokenizers::Error| Error::Tokenizer { path: self.path.clone(), reason: e.to_string() };
        let encoding = self.inner.encode(text, false).map_err(failed)?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Puts the tokens of a text between the marks, and pads them to `max_length`.
    fn pad(&self, text: Vec<i64>, cut: usize, max_length: usize) -> Tokens {
        let mut ids: Vec<i64> = self.begin.into_iter().chain(text).chain([self.end]).collect();
        let used = ids.len();
        ids.resize(max_length, self.pad);
        Tokens { ids, cut, used }
    }
}

/// Parts with fewer tokens stay whole at the end of a section. Source: ComfyUI, `SDTokenizer.max_word_length`.
const SHORT_PART: usize = 8;

fn missing(path: &Path, part: &'static str, expected: &str) -> Error {
    Error::MissingPart { path: path.to_path_buf(), part, expected: expected.into() }
}

/// The fields of a `tokenizer.json` that decide how it is read.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    normalizer: Value,
    model: HeadModel,
}

#[derive(Deserialize)]
struct HeadModel {
    #[serde(rename = "type")]
    class: Option<String>,
}

/// Reads the bytes of a tokenizer's file.
///
/// # Errors
/// [`Error::Tokenizer`], which tells what the file is where it is a pointer of git-LFS, a web page or the like.
fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let is_json = bytes.trim_ascii_start().starts_with(b"{");
    // Merges are a text file, too.
    let pointer = bytes.starts_with(b"version https://git-lfs") || !path.ends_with("merges.txt");
    match other_format(&bytes).filter(|_| !is_json && pointer) {
        Some(kind) => Err(Error::Tokenizer { path: path.to_path_buf(), reason: format!("this is {kind}") }),
        None => Ok(bytes),
    }
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.utf8_error().to_string() })
}

fn from_json(path: &Path) -> Result<(tokenizers::Tokenizer, Head)> {
    let failed = |e: serde_json::Error| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() };
    let bytes = read(path)?;
    let tokenizer = parsed(tokenizers::Tokenizer::from_bytes(&bytes), path)?;
    Ok((tokenizer, serde_json::from_slice(&bytes).map_err(failed)?))
}

/// Reads the vocabulary from the file. The other steps are those of the class in transformers, whatever the file says.
fn clip_from_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let (mut tokenizer, head) = from_json(path)?;
    if head.model.class.as_deref() == Some("BPE") {
        set_normalizer(&mut tokenizer, path, clip_normalizer())?;
        tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(clip_words(), path)?));
    }
    Ok(tokenizer)
}

/// Reads the vocabulary and the table of the normaliser from the file. The other steps are those of the class in
/// transformers: the files of FLUX.1 name other steps, with which U+0085 is no whitespace.
fn t5_from_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let (mut tokenizer, head) = from_json(path)?;
    if head.model.class.as_deref() == Some("Unigram") {
        match precompiled(&head.normalizer) {
            Some(table) => set_normalizer(&mut tokenizer, path, table.clone())?,
            None => {
                tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(failed(path))?;
            }
        }
        tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(t5_words(), path)?));
    }
    let extra = (0..extra_ids(path)).map(|i| AddedToken::from(format!("<extra_id_{i}>"), true));
    tokenizer.add_special_tokens(extra).map_err(failed(path))?;
    Ok(tokenizer)
}

/// Returns the step of a normaliser that has SentencePiece's table.
fn precompiled(normalizer: &Value) -> Option<&Value> {
    match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().find_map(precompiled),
        None => (normalizer.get("type")? == "Precompiled").then_some(normalizer),
    }
}

/// Returns the step that splits words at whitespace and puts a mark before each.
fn t5_words() -> Value {
    json!({ "type": "Sequence", "pretokenizers": [
        { "type": "WhitespaceSplit" },
        { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
    ] })
}

fn clip_normalizer() -> Value {
    json!({ "type": "Sequence", "normalizers": [
        { "type": "NFC" },
        { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
        { "type": "Lowercase" },
    ] })
}

fn clip_words() -> Value {
    let words =
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
    ] })
}

/// Returns the count of `<extra_id_N>` that the `tokenizer_config.json` in the folder of a file names; 100 without it.
fn extra_ids(path: &Path) -> usize {
    let config = std::fs::read(path.with_file_name("tokenizer_config.json")).ok();
    let config: Option<Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let count = config.as_ref().and_then(|config| config.get("extra_ids")?.as_u64());
    count.map_or(100, |count| count.min(MAX_EXTRA_IDS) as usize)
}

/// A limit far above the counts of all models.
const MAX_EXTRA_IDS: u64 = 10_000;

fn part<T: DeserializeOwned>(form: Value, path: &Path) -> Result<T> {
    serde_json::from_value(form)
        .map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })
}

fn set_normalizer(tokenizer: &mut tokenizers::Tokenizer, path: &Path, form: Value) -> Result<()> {
    let normalizer: NormalizerWrapper = part(form, path)?;
    tokenizer.with_normalizer(Some(normalizer)).map(|_| ()).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(tokenizers::Error) -> Error + '_ {
    |e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() }
}

fn parsed(
    tokenizer: tokenizers::Result<tokenizers::Tokenizer>,
    path: &Path,
) -> Result<tokenizers::Tokenizer> {
    let mut tokenizer =
        tokenizer.map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })?;
    // This crate pads and truncates, whatever the file was saved with.
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })?;
    Ok(tokenizer)
}

fn token(tokenizer: &tokenizers::Tokenizer, path: &Path, mark: &str) -> Result<i64> {
    tokenizer.token_to_id(mark).map(i64::from).ok_or_else(|| Error::Tokenizer {
        path: path.to_path_buf(),
        reason: format!("it has no {mark}: it is another model's"),
    })
}

/// Reads the older form: the pieces and the order in which they are joined.
fn clip_from_vocab(vocab: &Path, merges: &Path) -> Result<tokenizers::Tokenizer> {
    let failed = |path: &Path, reason: String| Error::Tokenizer { path: path.to_path_buf(), reason };
    let text = read_text(vocab)?;
    let pieces: Value = serde_json::from_str(&text).map_err(|e| failed(vocab, e.to_string()))?;
    let text = read_text(merges)?;
    let joins: Vec<Vec<&str>> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"))
        .map(|(i, line)| match line.split(' ').collect::<Vec<_>>() {
            pair if pair.len() == 2 => Ok(pair),
            _ => Err(failed(merges, format!("line {} is no pair of pieces", i + 1))),
        })
        .collect::<Result<_>>()?;
    let added: Vec<Value> = ["<|startoftext|>", "<|endoftext|>"]
        .iter()
        .filter_map(|mark| {
            let id = pieces.get(mark)?;
            Some(json!({
                "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }))
        })
        .collect();
    let form = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": clip_normalizer(),
        "pre_tokenizer": clip_words(),
        "model": {
            "type": "BPE", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": pieces, "merges": joins,
        },
    });
    parsed(tokenizers::Tokenizer::from_bytes(form.to_string()), vocab)
}

/// Reads the form of SentencePiece: a protocol buffer with pieces, scores and the table of the normaliser.
///
/// Source: `google/sentencepiece`, `src/sentencepiece_model.proto`.
fn t5_from_pieces(path: &Path) -> Result<tokenizers::Tokenizer> {
    let failed = |reason: &str| Error::Tokenizer { path: path.to_path_buf(), reason: reason.to_string() };
    let bytes = read(path)?;
    let (mut pieces, mut charsmap, mut added) = (Vec::new(), None, Vec::new());
    let mut unknown = None;
    for field in fields(&bytes) {
        match field.ok_or_else(|| failed("it is no SentencePiece model, or it is damaged"))? {
            (1, Field::Bytes(piece)) => {
                let (mut text, mut score, mut class) = (String::new(), 0f32, 1);
                for field in fields(piece) {
                    match field.ok_or_else(|| failed("a piece is damaged"))? {
                        (1, Field::Bytes(t)) => {
                            text =
                                String::from_utf8(t.to_vec()).map_err(|_| failed("a piece is not UTF-8"))?;
                        }
                        (2, Field::Fixed32(bits)) => score = f32::from_bits(bits),
                        (3, Field::Varint(value)) => class = value,
                        _ => {}
                    }
                }
                match class {
                    UNKNOWN => {
                        unknown = Some(pieces.len());
                        added.push(AddedToken::from(text.clone(), true));
                    }
                    CONTROL => added.push(AddedToken::from(text.clone(), true)),
                    USER_DEFINED => added.push(AddedToken::from(text.clone(), false).normalized(false)),
                    _ => {}
                }
                pieces.push((text, f64::from(score)));
            }
            (3, Field::Bytes(normalizer)) => {
                for field in fields(normalizer) {
                    if let (2, Field::Bytes(map)) =
                        field.ok_or_else(|| failed("the normaliser is damaged"))?
                    {
                        charsmap = Some(map.to_vec());
                    }
                }
            }
            _ => {}
        }
    }
    // The file does not contain them: transformers appends them to its pieces, the last first.
    for i in (0..extra_ids(path)).rev() {
        let text = format!("<extra_id_{i}>");
        if !pieces.iter().any(|(piece, _)| *piece == text) {
            pieces.push((text.clone(), 0.0));
        }
        added.push(AddedToken::from(text, true));
    }
    let model = Unigram::from(pieces, unknown, false)
        .map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if let Some(map) = charsmap.filter(|map| !map.is_empty()) {
        let normalizer = Precompiled::from(&map).map_err(|_| failed("the normaliser's table is damaged"))?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| failed(&e.to_string()))?;
    }
    tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(t5_words(), path)?));
    let (special, plain): (Vec<_>, Vec<_>) = added.into_iter().partition(|token| token.special);
    tokenizer.add_special_tokens(special).map_err(|e| failed(&e.to_string()))?;
    tokenizer.add_tokens(plain).map_err(|e| failed(&e.to_string()))?;
    Ok(tokenizer)
}

// The classes of pieces that are matched before all others.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The value of a field of a protocol buffer.
enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Iterates over the fields of a message with their numbers, and yields `None` once where the message is damaged.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u64, Field<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = next_field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(bytes)?;
    let mut take = |len: usize| {
        let (field, rest) = bytes.split_at_checked(len)?;
        *bytes = rest;
        Some(field)
    };
    let field = match key & 7 {
        0 => Field::Varint(varint(bytes)?),
        1 => Field::Bytes(take(8)?),
        5 => Field::Fixed32(u32::from_le_bytes(take(4)?.try_into().ok()?)),
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            let (field, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            Field::Bytes(field)
        }
        _ => return None,
    };
    Some((key >> 3, field))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
