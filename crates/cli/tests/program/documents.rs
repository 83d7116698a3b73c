//! The commands of the documents: those that need no other weights than the repository's run as they stand there.

use std::fs;
use std::path::Path;

use super::{fixtures, folder, run};

#[path = "../../../../tests/support/commands.rs"]
mod listed;

use listed::{commands, documents};

/// Whether all files that a command names are in the clone.
fn is_at_hand(command: &[String], clone: &Path) -> bool {
    let names_one = |word: &String| {
        let file = word.split(['=', ':']).next().unwrap_or(word);
        let ends = [".png", ".jpg", ".safetensors", ".json"].iter().any(|ending| file.ends_with(ending));
        ends || word.contains('/')
    };
    let mut written = false;
    command.iter().skip(1).filter(|word| !word.contains(' ')).all(|word| {
        let is_target = std::mem::replace(&mut written, ["-o", "--grid"].contains(&word.as_str()));
        is_target || !names_one(word) || clone.join(word.split(['=', ':']).next().unwrap_or(word)).exists()
    })
}

#[test]
fn commands_of_the_documents_that_need_no_other_weights_run() {
    // A clone in which pictures may be written.
    let clone = folder();
    for name in ["tiny", "tiny-kontext", "tiny-fill", "tiny-additions"] {
        copy(&fixtures().join(name), &clone.path().join("fixtures").join(name));
    }
    copy(&crate::support::root().join("docs"), &clone.path().join("docs"));
    let mut ran = 0;
    for document in documents() {
        let of_modes = document.ends_with("modes.md");
        for command in commands(&document) {
            let draws = ["generate", "edit"].contains(&command[0].as_str());
            if !draws || !is_at_hand(&command, clone.path()) {
                continue;
            }
            ran += 1;
            let mut call: Vec<&str> = command.iter().map(String::as_str).collect();
            // The pictures of that page are there already.
            call.extend(["--dry-run"].iter().chain(of_modes.then_some(&"--force")));
            let output = run(clone.path(), &call);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{}: {command:?}: {said}", document.display());
        }
    }
    assert!(ran >= 18, "{ran}");
}

#[test]
fn what_the_documents_link_to_and_name_is_there() {
    let root = crate::support::root();
    let (mut links, mut names) = (0, 0);
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let folder = document.parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") && !link.starts_with('#') {
                links += 1;
                let file = link.split('#').next().unwrap();
                assert!(folder.join(file).exists(), "{}: {link}", document.display());
            }
        }
        for name in text.split('`').skip(1).step_by(2) {
            let folders =
                ["scripts/", "tests/", "crates/", "src/", "fixtures/", "examples/", "docs/", "deploy/"];
            let path = name.split_whitespace().next().unwrap_or_default();
            if folders.iter().any(|folder| path.starts_with(folder)) && !path.contains(['*', '<', '{']) {
                names += 1;
                assert!(root.join(path).exists(), "{}: {path}", document.display());
            }
        }
    }
    assert!(links > 30 && names > 20, "{links} {names}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(path, to).map(|_| ()).unwrap() }
    }
}
