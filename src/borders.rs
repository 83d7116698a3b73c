//! The borders between the modules: what each uses, read from the sources and held against the table in `lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
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
    // `error`, `shim` and `choice` use no other.
    assert!(uses.len() + 3 >= order.len(), "{uses:?}: the sources were not read");
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
fn the_library_names_no_flag() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The table of parameters has the flags of the program; the others are those of other programs.
    let may = |path: &Path, flag: &str| {
        path.components().any(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs") == "params")
            || path.ends_with("borders.rs")
            || ["--gpu-architecture", "--std", "--merge"].contains(&flag)
    };
    let mut found = Vec::new();
    for path in sources(&root.join("src")) {
        let code = code(&path);
        for (at, _) in code.match_indices("--") {
            let before = code[..at].chars().next_back();
            let name: String =
                code[at + 2..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            let flag = format!("--{name}");
            let starts = matches!(before, Some(' ' | '"' | '`' | '('));
            if starts && name.starts_with(|c: char| c.is_ascii_lowercase()) && !may(&path, &flag) {
                found.push(format!("{}: {flag}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The modules below a folder: the path of each, as `["quant", "blocks"]`, and its file. Unit tests are no modules here.
fn modules(src: &Path) -> BTreeMap<Vec<String>, PathBuf> {
    let module = |path: PathBuf| {
        let place = path.strip_prefix(src).unwrap().with_extension("");
        let mut names: Vec<String> = place.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        if names.last().is_some_and(|name| ["mod", "lib", "main"].contains(&name.as_str())) {
            names.pop();
        }
        (names, path)
    };
    sources(src).into_iter().map(module).filter(|(names, _)| *names != ["borders"]).collect()
}

/// The paths that a text names from `crate`, `super` or `self` on, with the lists in braces written out.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(start) {
            let is_inside = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            if !text[..at].ends_with(is_inside) {
                expand(&[], &text[at..], &mut paths);
            }
        }
    }
    paths
}

fn expand(prefix: &[String], rest: &str, paths: &mut Vec<Vec<String>>) {
    let rest = rest.trim_start();
    if let Some(list) = rest.strip_prefix('{') {
        top_level(list).into_iter().for_each(|item| expand(prefix, item, paths));
        return;
    }
    let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let path = [prefix, std::slice::from_ref(&name)].concat();
    match rest[name.len()..].strip_prefix("::") {
        Some(rest) => expand(&path, rest, paths),
        None => paths.push(path),
    }
}

/// The modules that one uses, and those that these use, and so on.
fn reachable<'a>(
    from: &'a Vec<String>,
    uses: &'a BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
) -> BTreeSet<&'a Vec<String>> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        open.extend(uses.get(module).into_iter().flatten().filter(|other| reached.insert(*other)));
    }
    reached
}

/// Where the names that modules take from their children come from: of `use blocks::Block;` in `quant`, `Block` of `quant` is
/// in `quant::blocks`.
fn reexports(modules: &BTreeMap<Vec<String>, PathBuf>) -> BTreeMap<(Vec<String>, String), Vec<String>> {
    let mut reexports = BTreeMap::new();
    for (module, file) in modules {
        for line in code(file).split(';') {
            let Some((_, used)) = line.rsplit_once("use ") else { continue };
            let mut paths = Vec::new();
            expand(module, used, &mut paths);
            for path in paths {
                let mut child = path.clone();
                let name = child.pop().unwrap_or_default();
                while child.len() > module.len() && !modules.contains_key(&child) {
                    child.pop();
                }
                if child.len() > module.len() {
                    reexports.insert((module.clone(), name), child);
                }
            }
        }
    }
    reexports
}

/// The circles between modules that stand side by side, as `["quant::blocks", "quant::decode"]`: what is in one module counts
/// as the module's.
fn circles(src: &Path) -> Vec<Vec<String>> {
    let modules = modules(src);
    let reexports = reexports(&modules);
    let mut uses = BTreeMap::<Vec<String>, BTreeSet<Vec<String>>>::new();
    for (module, file) in &modules {
        for path in paths(&code(file)) {
            let supers = path.iter().take_while(|name| *name == "super").count();
            let base = match path[0].as_str() {
                "crate" => &[][..],
                _ => &module[..module.len().saturating_sub(supers)],
            };
            let mut target = [base, &path[supers.max(1)..]].concat();
            let mut name = None;
            while !target.is_empty() && !modules.contains_key(&target) {
                name = target.pop();
            }
            if let Some(child) = name.and_then(|name| reexports.get(&(target.clone(), name))) {
                target.clone_from(child);
            }
            let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if shared < module.len() && shared < target.len() {
                let siblings = (module[..=shared].to_vec(), target[..=shared].to_vec());
                uses.entry(siblings.0).or_default().insert(siblings.1);
            }
        }
    }
    let reached: BTreeMap<_, _> = uses.keys().map(|module| (module, reachable(module, &uses))).collect();
    let circle = |module: &Vec<String>| -> Vec<String> {
        let is_mutual = |other: &&&Vec<String>| reached.get(*other).is_some_and(|all| all.contains(&module));
        reached[module].iter().filter(is_mutual).map(|other| other.join("::")).collect()
    };
    let circles: BTreeSet<_> = uses.keys().map(circle).filter(|circle| circle.len() > 1).collect();
    circles.into_iter().collect()
}

#[test]
fn no_files_side_by_side_use_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(circles(&root.join("src")), [] as [Vec<String>; 0]);
    for package in ["crates/server/src", "crates/cli/src"] {
        // A published library has no packages beside it.
        let src = root.join(package);
        if src.exists() {
            assert!(modules(&src).len() > 10, "{package}: the sources were not read");
            assert_eq!(circles(&src), [] as [Vec<String>; 0], "{package}");
        }
    }
}

#[test]
fn a_circle_is_found_through_lists_parents_and_children() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a; mod b; mod c; mod d;");
    write("a.rs", "use crate::{c, d::{self, Deep}};");
    write("b.rs", "use super::a; // crate::c\n// use crate::c;");
    write("c.rs", "");
    write("d.rs", "mod inner; pub struct Deep;");
    write("d/inner.rs", "fn f() { super::super::b::g() }");
    assert_eq!(circles(folder.path()), [["a", "b", "d"]]);
    write("d/inner.rs", "use super::Deep;");
    assert!(circles(folder.path()).is_empty());
    write("d.rs", "mod inner; mod other; pub use inner::Inner; use other::{self, Other};");
    write("d/inner.rs", "use super::Other;");
    write("d/other.rs", "use super::Inner;");
    assert_eq!(circles(folder.path()), [["d::inner", "d::other"]]);
}

#[test]
fn lists_in_braces_are_read() {
    assert_eq!(used("use crate::{math, shim::{self, Memory}, Error};"), ["math", "shim", "error"]);
    assert_eq!(used("let x = crate::numerics::empty(); use crate::Error;"), ["numerics", "error"]);
}
