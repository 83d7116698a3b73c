//! Prompts to tokens, padded as FLUX.1 wants them.
//!
//! Read are `tokenizer.json` (either encoder), `vocab.json` with `merges.txt` (CLIP) and `spiece.model` (T5).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::Weighted;
use crate::error::{Error, Result};

/// The tokens of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// As many as were asked for: the prompt, its marks, and padding.
    pub ids: Vec<i64>,
    /// How many tokens of the prompt did not fit and were left out.
    pub cut: usize,
    /// How many of the ids are no padding.
    pub used: usize,
}

/// The tokenizer of one of the two encoders.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    begin: Option<i64>,
    end: i64,
    pad: i64,
}

impl Tokenizer {
    /// CLIP's, from a folder or file: `tokenizer.json`, else `vocab.json` and `merges.txt`.
    ///
    /// Source of the form: `transformers` 5.23.0, `CLIPTokenizer`.
    ///
    /// # Errors
    /// [`Error::MissingPart`], [`Error::Io`], [`Error::Tokenizer`].
    pub fn clip(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (json, vocab) = (path.join("tokenizer.json"), path.join("vocab.json"));
        let inner = if path.is_file() {
            from_json(path)?
        } else if json.is_file() {
            from_json(&json)?
        } else if vocab.is_file() {
            clip_from_vocab(&vocab, &path.join("merges.txt"))?
        } else {
            return Err(missing(path, "CLIP tokenizer", "tokenizer.json, or vocab.json and merges.txt"));
        };
        let begin = token(&inner, path, "<|startoftext|>")?;
        let end = token(&inner, path, "<|endoftext|>")?;
        Ok(Self { inner, path: path.to_path_buf(), begin: Some(begin), end, pad: end })
    }

    /// T5's, from a folder or file: `tokenizer.json`, else `spiece.model`.
    ///
    /// # Errors
    /// [`Error::MissingPart`], [`Error::Io`], [`Error::Tokenizer`].
    pub fn t5(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (json, pieces) = (path.join("tokenizer.json"), path.join("spiece.model"));
        let inner = if path.is_file() && path.extension().is_some_and(|e| e == "model") {
            t5_from_pieces(path)?
        } else if path.is_file() {
            from_json(path)?
        } else if json.is_file() {
            from_json(&json)?
        } else if pieces.is_file() {
            t5_from_pieces(&pieces)?
        } else {
            return Err(missing(path, "T5 tokenizer", "tokenizer.json or spiece.model"));
        };
        let end = token(&inner, path, "</s>")?;
        let pad = token(&inner, path, "<pad>")?;
        Ok(Self { inner, path: path.to_path_buf(), begin: None, end, pad })
    }

    /// Exactly `max_length` tokens: the marks and as much of the text as fits, then padding.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the text cannot be read, or `max_length` has no room for the marks.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Tokens> {
        Ok(self.encode_with_ends(text, max_length)?.0)
    }

    /// The tokens of a prompt's text, and how much each of them weighs. A token that lies in two parts weighs what its end
    /// does.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_weighted(&self, prompt: &Weighted, max_length: usize) -> Result<(Tokens, Vec<f64>)> {
        let (tokens, ends) = self.encode_with_ends(&prompt.text, max_length)?;
        let marks = usize::from(self.begin.is_some());
        let mut weights = vec![1.0; max_length];
        for (weight, end) in weights[marks..].iter_mut().zip(ends) {
            *weight = prompt.at(end.saturating_sub(1));
        }
        Ok((tokens, weights))
    }

    /// The tokens, and of each token of the text that was kept, where in the text it ends, in bytes.
    fn encode_with_ends(&self, text: &str, max_length: usize) -> Result<(Tokens, Vec<usize>)> {
        let failed = |reason: String| Error::Tokenizer { path: self.path.clone(), reason };
        let marks = 1 + usize::from(self.begin.is_some());
        let room = max_length
            .checked_sub(marks)
            .ok_or_else(|| failed(format!("{max_length} tokens have no room for a prompt")))?;
        let encoding = self.inner.encode(text, false).map_err(|e| failed(e.to_string()))?;
        let all = encoding.get_ids();
        let kept = &all[..all.len().min(room)];
        let mut ids: Vec<i64> = self.begin.into_iter().collect();
        ids.extend(kept.iter().map(|&id| i64::from(id)));
        ids.push(self.end);
        let used = ids.len();
        ids.resize(max_length, self.pad);
        let ends = encoding.get_offsets()[..kept.len()].iter().map(|(_, end)| *end).collect();
        Ok((Tokens { ids, cut: all.len() - kept.len(), used }, ends))
    }
}

fn missing(path: &Path, part: &'static str, expected: &str) -> Error {
    Error::MissingPart { path: path.to_path_buf(), part, expected: expected.into() }
}

fn from_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parsed(tokenizers::Tokenizer::from_bytes(bytes), path)
}

fn parsed(
    tokenizer: tokenizers::Result<tokenizers::Tokenizer>,
    path: &Path,
) -> Result<tokenizers::Tokenizer> {
    let mut tokenizer =
        tokenizer.map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })?;
    // Lengths are this crate's business, whatever the file was saved with.
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

/// The older form: the pieces and the order in which they are joined.
fn clip_from_vocab(vocab: &Path, merges: &Path) -> Result<tokenizers::Tokenizer> {
    let failed = |path: &Path, reason: String| Error::Tokenizer { path: path.to_path_buf(), reason };
    let text = std::fs::read_to_string(vocab).map_err(Error::io(vocab))?;
    let pieces: Value = serde_json::from_str(&text).map_err(|e| failed(vocab, e.to_string()))?;
    let text = std::fs::read_to_string(merges).map_err(Error::io(merges))?;
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
    let words =
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let form = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "model": {
            "type": "BPE", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": pieces, "merges": joins,
        },
    });
    parsed(tokenizers::Tokenizer::from_bytes(form.to_string()), vocab)
}

/// The form of SentencePiece: a protocol buffer with pieces, scores and the table of the normaliser.
///
/// Source: `google/sentencepiece`, `src/sentencepiece_model.proto`.
fn t5_from_pieces(path: &Path) -> Result<tokenizers::Tokenizer> {
    let failed = |reason: &str| Error::Tokenizer { path: path.to_path_buf(), reason: reason.to_string() };
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let (mut pieces, mut charsmap, mut special) = (Vec::new(), None, Vec::new());
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
                    2 => unknown = Some(pieces.len()),
                    3 => special.push(text.clone()),
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
    let special: Vec<_> =
        special.iter().chain(unknown.and_then(|i| pieces.get(i)).map(|(t, _)| t)).cloned().collect();
    let model = Unigram::from(pieces, unknown, false)
        .map_err(|e| Error::Tokenizer { path: path.to_path_buf(), reason: e.to_string() })?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if let Some(map) = charsmap.filter(|map| !map.is_empty()) {
        let normalizer = Precompiled::from(&map).map_err(|_| failed("the normaliser's table is damaged"))?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| failed(&e.to_string()))?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit),
        PreTokenizerWrapper::Metaspace(Metaspace::new('▁', PrependScheme::Always, true)),
    ])));
    let marks: Vec<_> = special.into_iter().map(|text| tokenizers::AddedToken::from(text, true)).collect();
    tokenizer.add_special_tokens(marks).map_err(|e| failed(&e.to_string()))?;
    Ok(tokenizer)
}

/// The value of a field of a protocol buffer.
enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message, by number; `None` once, where it is damaged.
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
