//! Both tokenizers against what transformers' make of the same texts, in every form that a tokenizer comes in.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};
use tch_flux::Error;
use tch_flux::models::text::{Tokenizer, WeightedPrompt};

#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    length: usize,
    text: String,
    ids: Vec<i64>,
}

fn fixtures() -> PathBuf {
    crate::support::root().join("fixtures")
}

fn agrees(name: &str, tokenizer: &Tokenizer) {
    let cases: Vec<Case> = read("tokens.json");
    let mine: Vec<_> = cases.iter().filter(|case| case.tokenizer == name).collect();
    assert!(mine.len() > 300);
    for case in mine {
        let tokens = tokenizer.encode(&case.text, case.length).unwrap();
        assert!(tokens.ids.starts_with(&case.ids), "{:?}: {:?}, not {:?}", case.text, tokens.ids, case.ids);
        assert!([case.length, tokens.used].contains(&case.ids.len()), "{:?} in {}", case.text, case.length);
        assert_eq!(tokens.ids.len(), case.length, "{:?}", case.text);
    }
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join(name)).unwrap()).unwrap()
}

#[test]
fn clip_from_vocab_and_merges_matches_transformers() {
    let folder = fixtures().join("tiny/tokenizer");
    assert!(!folder.join("tokenizer.json").exists(), "else the older form is not what is read");
    agrees("clip", &Tokenizer::clip(folder).unwrap());
}

#[test]
fn t5_from_tokenizer_json_matches_transformers() {
    agrees("t5", &Tokenizer::t5(fixtures().join("tiny/tokenizer_2/tokenizer.json")).unwrap());
}

#[test]
fn t5_from_spiece_model_matches_transformers() {
    agrees("t5", &Tokenizer::t5(fixtures().join("tiny/tokenizer_2/spiece.model")).unwrap());
}

#[test]
fn t5_from_spiece_model_alone_has_the_extra_ids_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spiece.model");
    std::fs::copy(fixtures().join("tiny/tokenizer_2/spiece.model"), &path).unwrap();
    agrees("t5 from spiece.model", &Tokenizer::t5(&path).unwrap());
    agrees("t5 from spiece.model", &Tokenizer::t5(folder.path()).unwrap());
}

/// FLUX.1's own `tokenizer.json` was converted by an older transformers, and OpenAI's for CLIP has another split: whatever a
/// file says, transformers 5 puts the steps of its class around the vocabulary.
#[test]
fn the_steps_around_a_vocabulary_are_those_of_transformers_classes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = read("tiny/tokenizer_2/tokenizer.json");
    json["normalizer"] = json!({ "type": "Sequence", "normalizers": [
        json["normalizer"],
        { "type": "Strip", "strip_left": false, "strip_right": true },
        { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "▁" },
    ] });
    json["pre_tokenizer"] =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    std::fs::write(&path, json.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{ "extra_ids": 0 }"#).unwrap();
    agrees("t5", &Tokenizer::t5(&path).unwrap());

    let vocab: Value = read("tiny/tokenizer/vocab.json");
    let merges = std::fs::read_to_string(fixtures().join("tiny/tokenizer/merges.txt")).unwrap();
    let mark = |mark: &str| {
        json!({ "id": vocab[mark], "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let json = json!({
        "version": "1.0",
        "added_tokens": [mark("<|startoftext|>"), mark("<|endoftext|>")],
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocab,
            "merges": merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect::<Vec<_>>(),
        },
    });
    std::fs::write(&path, json.to_string()).unwrap();
    agrees("clip", &Tokenizer::clip(&path).unwrap());
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    weighted: bool,
    clip: Weights,
    t5: Weights,
}

/// The first tokens, as far as they are no padding, with their weights.
#[derive(Deserialize)]
struct Weights {
    length: usize,
    ids: Vec<i64>,
    weights: Vec<String>,
}

#[test]
fn weighted_prompts_have_the_tokens_and_weights_of_comfyui() {
    let (clip, t5) = (fixtures().join("tiny/tokenizer"), fixtures().join("tiny/tokenizer_2"));
    let (clip, t5) = (Tokenizer::clip(clip).unwrap(), Tokenizer::t5(t5).unwrap());
    let prompts: Vec<Prompt> = read("prompt_weights.json");
    let weighted = prompts.iter().filter(|case| case.weighted).count();
    assert!(weighted >= 60 && prompts.len() - weighted >= 15, "{weighted} of {}", prompts.len());
    for Prompt { prompt, weighted, clip: for_clip, t5: for_t5 } in prompts {
        let parsed = WeightedPrompt::parse(&prompt);
        assert_eq!(parsed.is_some(), weighted, "{prompt}");
        for (tokenizer, expected) in [(&clip, for_clip), (&t5, for_t5)] {
            let (tokens, weights) = match &parsed {
                Some(parsed) => tokenizer.encode_weighted(parsed, expected.length).unwrap(),
                None => (tokenizer.encode(&prompt, expected.length).unwrap(), vec![1.0; expected.length]),
            };
            let mut ids = expected.ids.clone();
            ids.resize(expected.length, *expected.ids.last().unwrap());
            assert_eq!(tokens.ids, ids, "{prompt}");
            let numbers = expected.weights.iter().map(|weight| weight.parse::<f64>().unwrap());
            for (i, number) in numbers.chain(std::iter::repeat(1.0)).take(expected.length).enumerate() {
                let same = weights[i] == number || weights[i].is_nan() && number.is_nan();
                assert!(same, "{prompt}: {} for token {i}, not {number}", weights[i]);
            }
            assert_eq!(weights.len(), expected.length);
        }
    }
}

#[test]
fn weighted_prompts_are_cut_like_others_by_t5_and_where_comfyuis_first_section_ends_by_clip() {
    let (clip, t5) = (fixtures().join("tiny/tokenizer"), fixtures().join("tiny/tokenizer_2"));
    let (clip, t5) = (Tokenizer::clip(clip).unwrap(), Tokenizer::t5(t5).unwrap());
    let prompt = WeightedPrompt::parse("a red circle (on a blue background:1.5)").unwrap();
    let whole = t5.encode_weighted(&prompt, 16).unwrap();
    let (tokens, weights) = t5.encode_weighted(&prompt, 6).unwrap();
    assert_eq!((tokens.used, tokens.cut), (6, 2));
    assert_eq!((&tokens.ids[..5], &weights[..5]), (&whole.0.ids[..5], &whole.1[..5]));
    assert_eq!((tokens.ids[5], weights[5]), (1, 1.0));
    // The part of four tokens is not cut in two.
    let (tokens, weights) = clip.encode_weighted(&prompt, 7).unwrap();
    assert_eq!((tokens.used, tokens.cut, weights), (5, 4, vec![1.0; 7]));
    assert!(clip.encode_weighted(&prompt, 1).is_err());
}

#[test]
fn what_was_cut_off_is_counted() {
    let t5 = Tokenizer::t5(fixtures().join("tiny/tokenizer_2")).unwrap();
    let tokens = t5.encode("a red circle a red circle", 5).unwrap();
    assert_eq!((tokens.ids.len(), tokens.used, tokens.cut), (5, 5, 2));
    let tokens = t5.encode("a red circle", 8).unwrap();
    assert_eq!((tokens.ids.len(), tokens.used, tokens.cut), (8, 4, 0));
}

#[test]
fn damaged_tokenizers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixtures().join("tiny/tokenizer_2/spiece.model")).unwrap();
    let path = folder.path().join("spiece.model");
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..len]).unwrap();
        if let Ok(tokenizer) = Tokenizer::t5(&path) {
            tokenizer.encode("a red circle", 16).unwrap();
        }
    }
    std::fs::write(&path, b"<html>").unwrap();
    assert!(matches!(Tokenizer::t5(&path), Err(Error::Tokenizer { .. })));
    std::fs::write(folder.path().join("tokenizer.json"), b"{").unwrap();
    assert!(matches!(Tokenizer::clip(folder.path()), Err(Error::Tokenizer { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::clip(empty.path()), Err(Error::MissingPart { .. })));
    let t5 = fixtures().join("tiny/tokenizer_2");
    assert!(matches!(Tokenizer::clip(t5), Err(Error::Tokenizer { .. })), "T5's is no CLIP's");
}
