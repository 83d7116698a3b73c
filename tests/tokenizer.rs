//! Both tokenizers against what transformers' make of the same texts, in every form that a tokenizer comes in.

use std::path::PathBuf;

use serde::Deserialize;
use tch_flux::Error;
use tch_flux::text::Tokenizer;

#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    length: usize,
    text: String,
    ids: Vec<i64>,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn agrees(name: &str, tokenizer: &Tokenizer) {
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join("tokens.json")).unwrap()).unwrap();
    let mine: Vec<_> = cases.iter().filter(|case| case.tokenizer == name).collect();
    assert!(mine.len() > 20);
    for case in mine {
        let tokens = tokenizer.encode(&case.text, case.length).unwrap();
        assert_eq!(tokens.ids, case.ids, "{:?} in {} tokens", case.text, case.length);
    }
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
