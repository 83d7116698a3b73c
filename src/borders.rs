//! The borders between the modules: what each uses, read from the sources and held against the table in `lib.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The sources below a folder, without tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut sources = Vec::new();
    for path in entries {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            sources.extend(if stem == "tests" { Vec::new() } else { self::sources(&path) });
        } else if path.extension().is_some_and(|end| end == "rs") && stem != "tests" {
            sources.push(path);
        }
    }
    sources.sort();
    sources
}

/// The code of a file: no comments, and no unit tests, which stand at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules of the crate that a text names: `crate::NAME` and `crate::{NAME, …}`. What the crate has at its root is of
/// `error`.
fn used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for rest in text.split("crate::").skip(1) {
        let list = match rest.strip_prefix('{') {
            Some(list) => top_level(list),
            None => vec![rest],
        };
        for name in list {
            let name: String =
                name.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let is_module = name.starts_with(|c: char| c.is_ascii_lowercase());
            used.push(if is_module { name } else { "error".into() });
        }
    }
    used
}

/// The items of a list in braces, whose first brace is gone.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&list[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.into_iter().filter(|item| !item.trim().is_empty()).collect()
}

/// The modules of the table in `lib.rs`, from the lowest up.
fn order() -> Vec<String> {
    let map = include_str!("lib.rs");
    let rows = map.lines().filter_map(|line| line.strip_prefix("//! | ")?.split('`').nth(1));
    let mut order: Vec<String> = rows.map(str::to_string).collect();
    order.reverse();
    order
}

#[test]
fn modules_use_only_what_stands_below_them_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let order = order();
    println!("{}", order.join(" < "));
    let declared = include_str!("lib.rs").lines().filter_map(|line| {
        line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';').map(str::to_string)
    });
    let mut declared: Vec<String> = declared.filter(|module| module != "borders").collect();
    declared.sort();
    let mut listed = order.clone();
    listed.sort();
    assert_eq!(listed, declared, "the table lists every module once");

    let rank = |module: &str| order.iter().position(|other| other == module);
    let mut wrong = Vec::new();
    let mut uses = BTreeMap::<String, usize>::new();
    for path in sources(&root.join("src")) {
        let place = path.strip_prefix(root.join("src")).unwrap();
        let first = Path::new(place.components().next().unwrap().as_os_str()).file_stem().unwrap();
        let module = first.to_string_lossy().into_owned();
        let Some(own) = rank(&module) else {
            assert!(["lib", "borders"].contains(&module.as_str()), "{module} is in no row of the table");
            continue;
        };
        for other in used(&code(&path)) {
            let Some(theirs) = rank(&other) else { panic!("{}: no module {other}", path.display()) };
            *uses.entry(module.clone()).or_default() += 1;
            if theirs > own {
                wrong.push(format!("{}: {module} uses {other}", place.display()));
            }
        }
    }
    assert!(uses.len() + 2 >= order.len(), "{uses:?}: the sources were not read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_library_knows_no_package_above_it_and_the_server_no_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, above) in [
        ("src", &["tch_flux_server", "tch_flux_cli", "clap::", "axum::"][..]),
        ("crates/server/src", &["clap::"]),
    ] {
        let folder = root.join(folder);
        // A published library has no packages beside it.
        if !folder.exists() {
            continue;
        }
        for path in sources(&folder).into_iter().filter(|path| !path.ends_with("borders.rs")) {
            let code = code(&path);
            for name in above {
                assert!(!code.contains(name), "{}: {name}", path.display());
            }
        }
    }
}

#[test]
fn lists_in_braces_are_read() {
    assert_eq!(used("use crate::{math, shim::{self, Memory}, Error};"), ["math", "shim", "error"]);
    assert_eq!(used("let x = crate::numerics::empty(); use crate::Error;"), ["numerics", "error"]);
}
