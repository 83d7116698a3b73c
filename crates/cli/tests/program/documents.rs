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

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(path, to).map(|_| ()).unwrap() }
    }
}
