//! Where the program writes, and where it does not.

use std::fs;
use std::path::Path;

use tch_flux::image::Image;

use super::{CIRCLE, fixtures, folder, run, stdout};

/// One step of a small picture, which is enough to be one.
const QUICK: [&str; 6] = ["generate", CIRCLE, "--steps", "1", "--seed", "7"];

fn refused(folder: &Path, call: &[&str], code: i32, says: &str) {
    // A dry run finds all of it, too.
    for more in [&[][..], &["--dry-run"]] {
        let output = run(folder, &[call, more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{call:?} {more:?}: {said}");
        assert!(said.contains(says) && !said.contains(".part"), "{call:?} {more:?}: {said}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn folders_are_made_and_a_dry_run_makes_none() {
    let folder = folder();
    let call = [&QUICK[..], &["-o", "a/b/x.png", "--grid", "c/sheet.png", "-n", "2"]].concat();
    let said = stdout(&run(folder.path(), &[&call[..], &["--dry-run"]].concat()));
    for says in
        ["a/b/x-0.png", "a/b/x-1.png", "c/sheet.png", "seeds          7 to 8", "1 steps", "ae.safetensors"]
    {
        assert!(said.contains(says), "{says}: {said}");
    }
    assert!(names(folder.path()).is_empty());
    stdout(&run(folder.path(), &call));
    assert_eq!(names(&folder.path().join("a/b")), ["x-0.png", "x-1.png"]);
    assert_eq!(names(&folder.path().join("c")), ["sheet.png"]);
}

#[test]
fn what_stands_there_is_replaced_by_force_alone() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("x.png"), "mine").unwrap();
    fs::write(at("n-1.png"), "mine").unwrap();
    fs::write(at("7-0.png"), "mine").unwrap();
    fs::write(at("p.step-1.png"), "mine").unwrap();
    let with = |more: &[&'static str]| [&QUICK[..], more].concat();
    refused(folder.path(), &with(&["-o", "x.png"]), 1, "x.png: this stands there already: --force");
    refused(
        folder.path(),
        &with(&["-o", "new.png", "--grid", "x.png"]),
        1,
        "x.png: this stands there already",
    );
    let previews = ["-o", "p.png", "--previews", "1", "--steps", "2"];
    let previews = [&["generate", CIRCLE, "--seed", "7"], &previews[..]].concat();
    refused(folder.path(), &previews, 1, "p.step-1.png: this stands there already");
    refused(folder.path(), &with(&["-o", "new.png", "--grid", "./new.png"]), 2, "another name than --output");
    refused(folder.path(), &with(&["-o", "x.png/y.png"]), 1, "x.png is a file");
    refused(folder.path(), &with(&["-o", &"n".repeat(300).leak()[..], "--quiet"]), 2, "end the name with");
    let long: &'static str = format!("{}.png", "n".repeat(300)).leak();
    refused(folder.path(), &with(&["-o", long]), 1, &format!("{long}: "));
    fs::create_dir(at("d.png")).unwrap();
    refused(folder.path(), &with(&["-o", "d.png", "--force"]), 1, "d.png: this is a folder");
    if cfg!(target_os = "linux") {
        refused(folder.path(), &with(&["-o", "/proc/x.png"]), 1, "/proc: no file can be written there");
    }
    // Before anything is fetched or opened, so that a model that is not there changes nothing.
    refused(
        folder.path(),
        &with(&["-o", "x.png", "--model", "no/where"]),
        1,
        "x.png: this stands there already",
    );

    // Names that count go on where there is room.
    let drawn = stdout(&run(folder.path(), &with(&["-n", "2", "-o", "n.png"])));
    assert!(drawn.starts_with("n-2.png (seed 7)\nn-3.png (seed 8)\n"), "{drawn}");
    let drawn = stdout(&run(folder.path(), &QUICK));
    assert!(drawn.starts_with("7-1.png (seed 7)\n"), "{drawn}");
    for kept in ["x.png", "n-1.png", "7-0.png", "p.step-1.png"] {
        assert_eq!(fs::read(at(kept)).unwrap(), b"mine", "{kept}");
    }
    stdout(&run(folder.path(), &with(&["-o", "x.png", "--force"])));
    assert_eq!(Image::read_png(at("x.png")).unwrap(), Image::read_png(at("7-1.png")).unwrap());
    let left = names(folder.path());
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
}

#[cfg(unix)]
#[test]
fn what_is_read_is_never_written() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    stdout(&run(folder.path(), &[&QUICK[..], &["-o", "in.png"]].concat()));
    let before = fs::read(at("in.png")).unwrap();
    fs::create_dir(at("sub")).unwrap();
    std::os::unix::fs::symlink(at("in.png"), at("soft.png")).unwrap();
    fs::hard_link(at("in.png"), at("sub/hard.png")).unwrap();
    for name in ["in.png", "./in.png", "sub/../in.png", "soft.png", "sub/hard.png"] {
        let edit = ["edit", CIRCLE, "--steps", "1", "--image", "in.png", "--force", "-o", name];
        refused(folder.path(), &edit, 2, "this is what --image reads");
        let again = ["generate", "--from-image", "in.png", "--force", "-o", name];
        refused(folder.path(), &again, 2, "this is what --from-image reads");
        let sheet = ["edit", CIRCLE, "--image", "in.png", "--force", "-o", "new.png", "--grid", name];
        refused(folder.path(), &sheet, 2, "this is what --image reads");
    }
    let mask = ["edit", CIRCLE, "--image", "sub/hard.png", "--mask", "soft.png", "--force", "-o", "soft.png"];
    refused(folder.path(), &mask, 2, "reads");
    let lora = [&QUICK[..], &["--lora", "in.png", "--force", "-o", "in.png"]].concat();
    refused(folder.path(), &lora, 2, "this is what --lora reads");
    let weights = [&QUICK[..], &["--transformer", "in.png", "--force", "-o", "in.png"]].concat();
    refused(folder.path(), &weights, 2, "this is what --transformer reads");
    // An edit's own picture says by name what it was begun with.
    stdout(&run(folder.path(), &["edit", CIRCLE, "--image", "in.png", "--steps", "1", "-o", "edited.png"]));
    let repeat = ["edit", "--from-image", "edited.png", "--force", "-o", "in.png"];
    refused(folder.path(), &repeat, 2, "reads");
    assert_eq!(fs::read(at("in.png")).unwrap(), before);
}

#[test]
fn an_output_that_cannot_be_written_is_said_before_pictures_are_read() {
    let folder = folder();
    fs::create_dir(folder.path().join("sub.png")).unwrap();
    for (name, code, says) in
        [("x.gif", 2, "end the name with .png"), ("x", 2, "end the name"), ("sub.png", 1, "this is a folder")]
    {
        refused(folder.path(), &["edit", CIRCLE, "--image", "gone.png", "-o", name], code, says);
    }
    for (picture, says) in [
        ("gone.png", "gone.png: "),
        ("https://example.com/a.png", "this is an address"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,…: this is a picture as text"),
        ("-", "/dev/stdin"),
        ("sub.png", "this is a folder: name a picture in it"),
    ] {
        refused(folder.path(), &["edit", CIRCLE, "--image", picture, "-o", "x.png"], 1, says);
    }
}

#[test]
fn convert_keeps_the_same_rule() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::copy(fixtures().join("tiny/ae.safetensors"), at("ae.safetensors")).unwrap();
    fs::write(at("there.safetensors"), "mine").unwrap();
    let ends = |call: &[&str], code: i32, says: &str| {
        let output = run(folder.path(), &[&["convert", "ae.safetensors"], call].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{call:?}: {said}");
        assert!(said.contains(says) && !said.contains(".part"), "{call:?}: {said}");
    };
    ends(&["there.safetensors"], 1, "there.safetensors: this stands there already: --force");
    ends(&["ae.safetensors", "--force"], 2, "this is what IN reads");
    ends(&["there.safetensors/x.safetensors"], 1, "there.safetensors is a file");
    ends(&["there.safetensors/x"], 1, "there.safetensors is a file");
    ends(&["a/b/new.safetensors"], 0, "");
    ends(&["there.safetensors", "--force"], 0, "");
    if cfg!(target_os = "linux") {
        ends(&["/proc/x/"], 1, "no file can be written there");
        ends(&["/proc/x.safetensors"], 1, "/proc: no file can be written there");
    }
}

#[test]
fn a_variation_says_its_seed_everywhere() {
    let folder = folder();
    let call = [&QUICK[..], &["-n", "2", "--variation-strength", "0.3", "--json"]].concat();
    let report: serde_json::Value = serde_json::from_str(&stdout(&run(folder.path(), &call))).unwrap();
    for image in report["images"].as_array().unwrap() {
        let (seed, varied) = (&image["seed"], image["variation_seed"].as_u64().unwrap());
        let file = image["file"].as_str().unwrap();
        assert!(file.starts_with(&format!("{seed}-{varied}-")), "{image}");
        let (_, texts) = Image::read_png(folder.path().join(file)).unwrap();
        assert!(texts["tch-flux"].contains(&format!(r#""variation":{{"seed":{varied},"strength":0.3}}"#)));
        let says =
            format!("Seed: 7, Size: 64x64, Model: flux1-schnell.safetensors, Variation seed: {varied}, ");
        assert!(texts["parameters"].contains(&says), "{texts:?}");
    }
    let said = stdout(&run(folder.path(), &[&QUICK[..], &["--variation-strength", "0.3"]].concat()));
    let line = said.lines().next().unwrap();
    let (file, seeds) = line.split_once(" (seed 7, variation seed ").unwrap();
    assert!(file.contains(seeds.trim_end_matches(')')), "{line}");
    // Another strength of the same variation keeps the noise that it leads to.
    let again =
        ["generate", "--from-image", file, "--variation-strength", "0.5", "--json", "-o", "again.png"];
    let report: serde_json::Value = serde_json::from_str(&stdout(&run(folder.path(), &again))).unwrap();
    assert_eq!(report["images"][0]["variation_seed"].to_string(), seeds.trim_end_matches(')'));
}

#[test]
fn a_size_that_is_not_the_pictures_own_is_said() {
    let folder = folder();
    let grey =
        |width: u32, height: u32| Image { width, height, rgb: vec![128; (3 * width * height) as usize] };
    grey(100, 67).write_png(folder.path().join("odd.png"), &Default::default()).unwrap();
    grey(64, 64).write_png(folder.path().join("even.png"), &Default::default()).unwrap();
    let edit = |more: &[&str]| {
        let call = [&["edit", CIRCLE, "--steps", "1", "--force", "-o", "x.png"], more].concat();
        let output = run(folder.path(), &call);
        stdout(&output);
        String::from_utf8(output.stderr).unwrap()
    };
    let said = edit(&["--image", "odd.png"]);
    assert!(said.contains("note: odd.png is 100x67: it is drawn at 96x64\n"), "{said}");
    assert!(!edit(&["--image", "even.png"]).contains("note: "));
    let said = edit(&["--image", "even.png", "--width", "80"]);
    assert!(said.contains("note: even.png is 64x64: it is drawn at 80x64\n"), "{said}");
    let said = edit(&["--as", "reference", "--keep-size", "--image", "even.png", "--image", "odd.png"]);
    assert!(said.contains("note: odd.png is 100x67: it is looked at at 96x64\n"), "{said}");
    assert!(!said.contains("note: even.png"), "{said}");
}

#[test]
fn a_model_that_is_a_part_alone_says_where_the_rest_is_named() {
    let folder = folder();
    let kontext = fixtures().join("tiny-kontext");
    let kontext = kontext.to_str().unwrap();
    for call in [&["generate", CIRCLE][..], &["edit", CIRCLE, "--image", "in.png"]] {
        Image { width: 16, height: 16, rgb: vec![9; 768] }
            .write_png(folder.path().join("in.png"), &Default::default())
            .unwrap();
        let output = run(folder.path(), &[call, &["--model", kontext]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let says =
            format!("a transformer alone: name it by --transformer {kontext}/flux1-kontext.safetensors");
        assert!(said.contains(&says) && said.contains("--model"), "{said}");
    }
    let without = run(folder.path(), &["edit", CIRCLE, "--model", kontext]);
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert_eq!(without.status.code(), Some(2));
    assert!(said.contains("give --image FILE") && said.contains("tch-flux generate"), "{said}");
}

#[test]
fn a_picture_larger_than_its_format_is_refused_before_anything_is_drawn() {
    let folder = folder();
    let call = |more: &[&'static str]| [&QUICK[..], more].concat();
    let wide = ["--width", "16384", "--height", "64", "-o", "x.webp"];
    refused(folder.path(), &call(&wide), 2, "a WebP has at most 16383 pixels a side, not 16384x64");
    let many = ["--width", "1024", "--height", "64", "-n", "400", "--grid", "x.webp"];
    refused(folder.path(), &call(&many), 2, "x.webp: a WebP has at most 16383 pixels a side");
}
