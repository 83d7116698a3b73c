//! The commands that stand in the documents.

use std::fs;
use std::path::{Path, PathBuf};

/// Every command of a document that begins with `tch-flux`.
pub fn commands(document: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(document).unwrap();
    let mut commands = Vec::new();
    for block in text.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap().replace("\\\n", " ");
        for line in block.lines() {
            let words = words(line);
            let run = words
                .windows(2)
                .position(|pair| pair == ["--release", "--"] && words.contains(&"run".into()));
            match (words.first().map(String::as_str), run) {
                (Some("tch-flux"), _) => commands.push(words[1..].to_vec()),
                (_, Some(at)) => commands.push(words[at + 2..].to_vec()),
                _ => {}
            }
        }
    }
    commands
}

/// The words of a line as a shell has them, up to a comment or to what is done with the output.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            // What a shell does with the output is not the command's.
            '>' | '|' if !quoted && word.is_none() => break,
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

pub fn documents() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    let mut documents: Vec<_> = pages.chain([root().join("README.md")]).collect();
    documents.sort();
    documents
}
