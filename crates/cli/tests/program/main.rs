//! The binary as a user runs it.

mod adapters;
mod demo_edit;
mod documents;
mod help;
mod inspect;
mod interrupts;
mod json;
mod outputs;
mod pictures;
mod redux;
#[path = "../../../../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tch_flux::image::Image;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tch-flux")).current_dir(folder).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn fixtures() -> PathBuf {
    crate::support::root().join("fixtures")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

const CIRCLE: &str = "a red circle on a blue background";

#[test]
fn generate_draws_with_the_small_model_and_says_the_seed() {
    let folder = folder();
    let text = stdout(&run(folder.path(), &["generate", CIRCLE, "--seed", "42", "-o", "circle.png"]));
    assert!(text.contains("circle.png (seed 42)"), "{text}");
    let (image, texts) = Image::read_png(folder.path().join("circle.png")).unwrap();
    assert_eq!((image.width, image.height), (64, 64));
    assert!(texts["parameters"].starts_with(&format!("{CIRCLE}\nSteps: 4, Sampler: Euler")), "{texts:?}");
    assert!(texts["parameters"].contains("Seed: 42, Size: 64x64"), "{texts:?}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["circle.png"], "nothing half-written stays");
}

#[test]
fn a_seed_is_chosen_where_none_is_given_and_the_picture_says_it() {
    let folder = folder();
    let report: Value =
        serde_json::from_str(&stdout(&run(folder.path(), &["generate", CIRCLE, "--json"]))).unwrap();
    let (seed, file) =
        (report["images"][0]["seed"].as_u64().unwrap(), report["images"][0]["file"].as_str().unwrap());
    assert_eq!(file, format!("{seed}-0.png"));
    assert!(folder.path().join(file).is_file());
}

#[test]
fn numerics_are_fast_unless_told_otherwise_and_a_picture_says_which() {
    let folder = folder();
    let draw = |more: &[&str], name: &str| {
        let call = [&["generate", CIRCLE, "--seed", "9", "--kind", "f32", "-o", name], more].concat();
        stdout(&run(folder.path(), &call));
        Image::read_png(folder.path().join(name)).unwrap()
    };
    let (fast, texts) = draw(&[], "fast.png");
    assert!(texts["tch-flux"].contains(r#""numerics":"fast""#), "{texts:?}");
    let (exact, texts) = draw(&["--numerics", "exact"], "exact.png");
    assert!(texts["tch-flux"].contains(r#""numerics":"exact""#), "{texts:?}");
    let (int8, texts) = draw(&["--quantize", "int8"], "int8.png");
    assert!(texts["tch-flux"].contains(r#""quantize":"int8""#), "{texts:?}");
    assert_ne!(int8, exact);
    let far = |a: &Image, b: &Image| {
        let far = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
        a.rgb.iter().zip(&b.rgb).map(far).sum::<f64>() / a.rgb.len() as f64
    };
    assert!(far(&fast, &exact) < 0.1, "{}", far(&fast, &exact));
    assert!(far(&int8, &exact) < 8.0, "{}", far(&int8, &exact));
    // As it was drawn.
    stdout(&run(folder.path(), &["generate", "--from-image", "exact.png", "-o", "again.png"]));
    assert_eq!(Image::read_png(folder.path().join("again.png")).unwrap().0, exact);
    let plan = ["generate", CIRCLE, "--quantize", "int8", "--dry-run", "--json"];
    let plan: Value = serde_json::from_str(&stdout(&run(folder.path(), &plan))).unwrap();
    let transformer = &plan["weights"][0]["in_memory"];
    assert!(transformer["I8"].as_u64().unwrap() > transformer["BF16"].as_u64().unwrap(), "{plan}");
}

#[test]
fn from_image_draws_the_same_picture_again_and_flags_change_it() {
    let folder = folder();
    let first = ["generate", CIRCLE, "--seed", "9", "--steps", "3", "--kind", "f32", "-o", "first.png"];
    stdout(&run(folder.path(), &first));
    stdout(&run(folder.path(), &["generate", "--from-image", "first.png", "-o", "again.png"]));
    let read = |name: &str| Image::read_png(folder.path().join(name)).unwrap();
    assert_eq!(read("first.png"), read("again.png"));
    stdout(&run(
        folder.path(),
        &["generate", "--from-image", "first.png", "--seed", "10", "-o", "other.png"],
    ));
    assert_ne!(read("first.png").0, read("other.png").0);
}

#[test]
fn an_edit_says_what_it_began_with_and_is_repeated_from_its_picture() {
    let folder = folder();
    let run = |call: &[&str]| stdout(&run(folder.path(), call));
    let read = |name: &str| Image::read_png(folder.path().join(name)).unwrap();
    run(&["generate", CIRCLE, "--seed", "9", "-o", "first.png"]);
    let edit = ["edit", "a green circle", "--image", "first.png", "--strength", "0.8", "--seed", "4"];
    run(&[&edit[..], &["-o", "edited.png"]].concat());
    let (edited, texts) = read("edited.png");
    assert!(texts["tch-flux"].contains(r#""images":["first.png"]"#), "{texts:?}");
    assert!(texts["parameters"].contains("Denoising strength: 0.8"), "{texts:?}");
    assert_ne!(edited, read("first.png").0);
    run(&["edit", "--from-image", "edited.png", "-o", "again.png"]);
    assert_eq!(read("again.png"), read("edited.png"));
    run(&["edit", "--from-image", "edited.png", "--strength", "0.3", "-o", "less.png"]);
    assert_ne!(read("less.png").0, edited);

    // More of the picture: what was there keeps its place.
    run(&["edit", CIRCLE, "--image", "first.png", "--pad", "16,0,16,32", "--seed", "4", "-o", "wide.png"]);
    assert_eq!((read("wide.png").0.width, read("wide.png").0.height), (96, 96));
    run(&[
        "edit",
        CIRCLE,
        "--image",
        "first.png",
        "--as",
        "reference",
        "--keep-size",
        "--seed",
        "4",
        "-o",
        "look.png",
    ]);
    assert_ne!(read("look.png").0, edited);
}

#[test]
fn an_edit_that_cannot_be_is_refused() {
    let folder = folder();
    stdout(&run(folder.path(), &["generate", CIRCLE, "--seed", "9", "-o", "first.png"]));
    stdout(&run(folder.path(), &["edit", CIRCLE, "--image", "first.png", "--seed", "4", "-o", "edited.png"]));
    let ends = |call: &[&str], code: i32, text: &str| {
        let output = run(folder.path(), call);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{call:?}: {said}");
        assert!(said.contains(text), "{call:?}: {said}");
    };
    ends(&["edit", CIRCLE], 2, "--image");
    ends(&["edit", CIRCLE, "--image", "missing.png"], 1, "missing.png");
    ends(&["edit", CIRCLE, "--image", "first.png", "--strength", "0"], 2, "strength");
    ends(&["edit", CIRCLE, "--image", "first.png", "--as", "fill"], 2, "start or reference");
    ends(&["edit", CIRCLE, "--image", "first.png", "--image", "first.png"], 2, "one picture");
    ends(&["edit", CIRCLE, "--image", "first.png", "--pad", "1,2,3"], 2, "left,top,right,bottom");
    ends(&["generate", "--from-image", "edited.png"], 2, "edit --from-image");
}

#[test]
fn several_pictures_get_a_name_each() {
    let folder = folder();
    let call = ["generate", CIRCLE, "-n", "2", "--seed", "3", "--quiet", "-o", "x.png"];
    assert_eq!(stdout(&run(folder.path(), &call)), "", "quiet prints nothing");
    assert!(folder.path().join("x-0.png").is_file() && folder.path().join("x-1.png").is_file());
    std::fs::write(
        folder.path().join("prompts.txt"),
        "a red ring on a white background\n\na blue cross on a black background\n",
    )
    .unwrap();
    stdout(&run(
        folder.path(),
        &["generate", "--prompt-file", "prompts.txt", "--seed", "5", "-o", "{seed}_{index}.png"],
    ));
    assert!(folder.path().join("5_0.png").is_file() && folder.path().join("5_1.png").is_file());
}

fn run_with_stdin(folder: &Path, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    command.current_dir(folder).args(arguments).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let folder = folder();
    let prompts = |call: &[&str], stdin: &[u8]| -> Value {
        let call = [call, &["--dry-run", "--json"]].concat();
        let plan = stdout(&run_with_stdin(folder.path(), &call, stdin));
        serde_json::from_str::<Value>(&plan).unwrap()["request"]["prompts"].clone()
    };
    let text = "\u{feff}# drawn in turn\r\na red circle\r\n\r\n größe 🙂 \r\n\\#1";
    let expected = serde_json::json!(["a red circle", "größe 🙂", "#1"]);
    let utf16 = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<_>>();
    for bytes in [text.as_bytes().to_vec(), utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
        std::fs::write(folder.path().join("prompts.txt"), &bytes).unwrap();
        assert_eq!(prompts(&["generate", "--prompt-file", "prompts.txt"], b""), expected);
        assert_eq!(prompts(&["generate", "--prompt-file", "-"], &bytes), expected);
    }
    let whole = "\u{feff}a red circle\r\n# on\r\nblue\r\n".as_bytes();
    let expected = serde_json::json!(["a red circle\r\n# on\r\nblue"]);
    assert_eq!(prompts(&["generate", "-"], whole), expected);
    assert_eq!(prompts(&["generate", "--prompt", "-"], whole), expected);
    let picture = fixtures().join("../docs/circle.png");
    let edit = ["edit", "--image", picture.to_str().unwrap()];
    assert_eq!(prompts(&[&edit[..], &["-"]].concat(), whole), expected);
    assert_eq!(
        prompts(&[&edit[..], &["--prompt-file", "-"]].concat(), b"a\nb"),
        serde_json::json!(["a", "b"])
    );

    let call = ["generate", "a", "--dry-run", "--prompt-2", "-", "--negative-prompt", "no"];
    let plan = stdout(&run_with_stdin(folder.path(), &call, b"in full\n"));
    assert!(plan.contains(r#"prompt for T5  "in full""#), "{plan}");

    let refused = |call: &[&str], stdin: &[u8], words: &str| {
        let output = run_with_stdin(folder.path(), &[&["generate"], call].concat(), stdin);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(words), "{words}: {error}");
    };
    std::fs::write(folder.path().join("latin.txt"), b"a red circle\ncaf\xe9\n").unwrap();
    refused(&["--prompt-file", "latin.txt"], b"", "latin.txt: line 2 is not UTF-8");
    refused(&["--prompt-file", "-"], b"a\0 \0", "standard input: it seems to be text in UTF-16");
    refused(&["--prompt-file", "-"], b"# only\n\n", "standard input: it holds no prompt");
    refused(&["--prompt-file", "none.txt"], b"", "none.txt");
    refused(&["-"], b" \r\n", "standard input: it holds no prompt");
    refused(&["--prompt-file", "."], b"", "this is a folder");
    refused(&["-", "--negative-prompt", "-"], b"a", "standard input: it can be only one");
    refused(&["--prompt-file", "-", "--prompt-2", "-"], b"a", "standard input: it can be only one");
    refused(&["--prompt", "-", "--prompt", "-"], b"a", "standard input: it can be only one");
    refused(&["a (red:nan) circle"], b"", "no finite number");
}

#[test]
fn weights_are_told_and_a_picture_drawn_to_the_letter_can_have_them() {
    let folder = folder();
    let prompt = "a room (aspect ratio 16:9)";
    let literal = |more: &[&str]| -> bool {
        let plan = stdout(&run(folder.path(), &[&["generate", "--dry-run", "--json"], more].concat()));
        let is_told = plan.contains("weight of 9");
        let literal = serde_json::from_str::<Value>(&plan).unwrap()["request"]["literal"] == true;
        assert_ne!(is_told, literal, "{plan}");
        literal
    };
    assert!(!literal(&[prompt]));
    assert!(literal(&[prompt, "--literal"]));
    stdout(&run(folder.path(), &["generate", prompt, "--literal", "--steps", "1", "-o", "first.png"]));
    assert!(literal(&["--from-image", "first.png"]));
    assert!(!literal(&["--from-image", "first.png", "--literal=false"]));
    let drawn = run(folder.path(), &["generate", prompt, "--steps", "1", "-o", "second.png"]);
    let said = String::from_utf8_lossy(&drawn.stderr);
    assert!(drawn.status.success() && said.contains("weight of 9"), "{said}");
    // The notation of other programs is text, which is said.
    for prompt in ["a cat <lora:fur_v2:0.8>", "a (cat:1.1) <lyco:x:1>"] {
        let plan = stdout(&run(folder.path(), &["generate", prompt, "--dry-run"]));
        assert!(plan.contains("in the prompt is text: it puts no LoRA on"), "{plan}");
    }
    let plan = stdout(&run(folder.path(), &["generate", "a < b, <lora: c", "--dry-run"]));
    assert!(!plan.contains("puts no LoRA on"), "{plan}");
}

#[test]
fn dry_run_says_what_would_be_drawn_and_draws_nothing() {
    let folder = folder();
    let call = ["generate", CIRCLE, "--dry-run", "--json"];
    let plan: Value = serde_json::from_str(&stdout(&run(folder.path(), &call))).unwrap();
    assert_eq!(plan["request"]["steps"], 4);
    assert_eq!(plan["request"]["max_sequence_length"], 256);
    for (more, wanted) in [
        (&["--sigmas", "1,0.9,0.7"][..], "times 1, 0.9, 0.7"),
        (&["--shift", "0.5,1.15"], "schedule shifted by 0.5 to 1.15"),
        (&["--cache", "first-block:0.1"], "cache first-block threshold 0.1"),
        (&["--cache", "taylor-seer:3,2"], "cache taylor-seer interval 3, order 2"),
    ] {
        let text = stdout(&run(folder.path(), &[&["generate", CIRCLE, "--dry-run"], more].concat()));
        assert!(text.contains(wanted) && !text.contains('{'), "{text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn calls_that_cannot_be_right_end_with_2_and_failures_with_1() {
    let folder = folder();
    let ends = |arguments: &[&str], code: i32, says: &str| {
        let output = run(folder.path(), arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    };
    ends(&["generate", CIRCLE, "--width", "100"], 2, "the nearest are 96 and 112");
    ends(
        &["generate", CIRCLE, "--steps", "many"],
        2,
        "--steps must be a whole number from 1 to 1000, not \"many\"",
    );
    ends(
        &["generate", CIRCLE, "--steps=null"],
        2,
        "--steps must be a whole number from 1 to 1000, not \"null\"",
    );
    ends(&["generate", CIRCLE, "--quantize", "fp8"], 2, "on the CPU quantise to int8");
    ends(&["generate"], 2, "nothing to draw");
    ends(
        &["generate", CIRCLE, "-n", "99999999999"],
        2,
        "--num-images must be a whole number from 1 to 1000000",
    );
    let most = ["generate", "--prompt", "a", "--prompt", "b", "-n", "1000000"];
    ends(&most, 2, "more than 1000000 pictures");
    ends(&["generate", CIRCLE, "-o", "picture.gif"], 2, ".png");
    ends(&["generate", CIRCLE, "--seed", "-1"], 2, "left out, it is another one each time");
    ends(&["generate", CIRCLE, "-n", "-1"], 2, "--num-images must be a whole number");
    ends(&["generate", CIRCLE, "--variation-strength", "-0.5"], 2, "must be a number from 0 to 1");
    ends(&["generate", CIRCLE, "--device", "tpu"], 2, "expected cpu, cuda, cuda:N or mps");
    ends(&["frobnicate"], 2, "unrecognized subcommand");
    ends(&["generate", CIRCLE, "--model", "nowhere"], 1, "nowhere");
    ends(&["generate", "--from-image", "missing.png"], 1, "missing.png");
    ends(&["inspect", "missing.safetensors"], 1, "missing.safetensors");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_reader_who_stops_changes_nothing_but_what_is_said() {
    let folder = folder();
    let file = fixtures().join("tiny/flux1-schnell.safetensors");
    let case = fixtures().join("parity/rms_norm_f32.safetensors");
    let (file, case) = (file.to_str().unwrap(), case.to_str().unwrap());
    let calls: [&[&str]; 8] = [
        &["inspect", "--tensors", file],
        &["inspect", "--json", file],
        &["inspect", "--compare", file, file],
        &["parity", case],
        &["doctor"],
        &["bench", "text", "--layers", "1", "--tokens", "8", "--repeat", "1", "--warmup", "0"],
        &["convert", file, "out.safetensors", "--kind", "f32"],
        &["generate", CIRCLE, "--steps", "1", "--force", "-o", "out.png"],
    ];
    for call in calls {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
        command.current_dir(folder.path()).args(call).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("panicked"), "{call:?}: {said}");
        let mut child = command.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert!(child.wait().unwrap().success() || call[0] == "convert", "{call:?}: nobody listens at all");
    }
    assert!(folder.path().join("out.png").is_file() && folder.path().join("out.safetensors").is_file());

    // The usual status where there is something to say.
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    let mut child = command.args(["inspect", "missing"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    if let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") {
        let output =
            Command::new(env!("CARGO_BIN_EXE_tch-flux")).arg("doctor").stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("error: standard output: "), "{said}");
    }
}

#[test]
fn inspect_says_what_a_folder_and_a_file_hold() {
    let folder = folder();
    let model = fixtures().join("tiny");
    let model = model.to_str().unwrap();
    let parts: Value =
        serde_json::from_str(&stdout(&run(folder.path(), &["inspect", "--json", model]))).unwrap();
    let families: Vec<_> =
        parts.as_array().unwrap().iter().map(|part| part["family"].as_str().unwrap()).collect();
    assert_eq!(families, ["FLUX.1 transformer", "FLUX.1 autoencoder", "CLIP text model", "T5 encoder"]);
    let file = format!("{model}/flux1-schnell.safetensors");
    let one: Value =
        serde_json::from_str(&stdout(&run(folder.path(), &["inspect", "--json", &file]))).unwrap();
    assert_eq!(one["variant"], "schnell");
    assert_eq!(one["layout"], "the official names");
    assert_eq!(one["sizes"]["hidden_size"], 128);
    assert_eq!(one["kinds"]["BF16"], one["bytes"]);
    let text = stdout(&run(folder.path(), &["inspect", &file]));
    assert!(text.contains("FLUX.1 transformer schnell"), "{text}");
}

#[test]
fn parity_counts_and_fails_where_something_differs() {
    let folder = folder();
    let case = fixtures().join("parity/rms_norm_f32.safetensors");
    let text = stdout(&run(folder.path(), &["parity", case.to_str().unwrap()]));
    assert!(text.contains("rms_norm_f32 output max_abs"), "{text}");
    assert_eq!(text.lines().last(), Some("1 passed, 0 failed, 0 skipped"));

    // One bit of the expected output is turned, far below the tolerance.
    let mut bytes = std::fs::read(&case).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let begin = json["out.output"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header + begin] ^= 1;
    std::fs::write(folder.path().join("turned.safetensors"), &bytes).unwrap();
    let close = run(folder.path(), &["parity", "turned.safetensors"]);
    assert_eq!(close.status.code(), Some(0));
    let exact = run(folder.path(), &["parity", "--exact", "turned.safetensors"]);
    assert_eq!(exact.status.code(), Some(1));
    let text = String::from_utf8_lossy(&exact.stdout).into_owned();
    assert_eq!(text.lines().last(), Some("0 passed, 1 failed, 0 skipped"));

    // A module that is not known is named: that nothing was compared is no success.
    let name = b"flux.modules.layers.RMSNorm";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(b"flux.modules.layers.XYZNorm");
    std::fs::write(folder.path().join("turned.safetensors"), &bytes).unwrap();
    let unknown = run(folder.path(), &["parity", "turned.safetensors"]);
    assert_eq!(unknown.status.code(), Some(1));
    let text = String::from_utf8_lossy(&unknown.stdout).into_owned();
    assert!(
        text.contains("FAIL (module flux.modules.layers.XYZNorm is not known: --modules lists"),
        "{text}"
    );
    assert_eq!(text.lines().last(), Some("0 passed, 1 failed, 0 skipped"));
    let text = stdout(&run(folder.path(), &["parity", "--allow-unknown", "turned.safetensors"]));
    assert!(text.contains("flux.modules.layers.XYZNorm is not known"), "{text}");
    assert_eq!(text.lines().last(), Some("0 passed, 0 failed, 1 skipped"));
    let known = stdout(&run(folder.path(), &["parity", "--modules"]));
    assert!(known.contains("flux.modules.layers.SelfAttention: dim, [num_heads], [qkv_bias]\n"), "{known}");
    let known = stdout(&run(folder.path(), &["parity", "--modules", "--json"]));
    let first: Value = serde_json::from_str(known.lines().next().unwrap()).unwrap();
    assert_eq!(first["params"], serde_json::json!(["scaling_factor", "shift_factor"]));

    std::fs::write(folder.path().join("broken.safetensors"), b"{}").unwrap();
    assert_eq!(run(folder.path(), &["parity", "broken.safetensors"]).status.code(), Some(1));
    assert_eq!(run(folder.path(), &["parity"]).status.code(), Some(2));
}

#[test]
fn bench_load_prints_seconds_bytes_and_memory() {
    let folder = folder();
    let file = fixtures().join("tiny/flux1-schnell.safetensors");
    let file = file.to_str().unwrap();
    let mapped: Value =
        serde_json::from_str(&stdout(&run(folder.path(), &["bench", "load", file, "--json"]))).unwrap();
    assert_eq!(mapped["borrowed"], mapped["tensors"]);
    assert_eq!(mapped["kind"], "bf16");
    assert!(mapped["seconds"].as_f64().unwrap() > 0.0);
    let cast = ["bench", "load", file, "--json", "--kind", "f32", "--no-mmap"];
    let cast: Value = serde_json::from_str(&stdout(&run(folder.path(), &cast))).unwrap();
    assert_eq!(cast["bytes"].as_u64().unwrap(), 2 * mapped["bytes"].as_u64().unwrap());
    assert_eq!(cast["borrowed"], 0);
}

#[test]
fn doctor_finds_the_libtorch_that_runs() {
    let folder = folder();
    let found: Value = serde_json::from_str(&stdout(&run(folder.path(), &["doctor", "--json"]))).unwrap();
    assert_eq!(found["problems"], Value::Array(vec![]));
    if cfg!(target_os = "linux") {
        let linked = found["linked"].as_array().unwrap();
        assert!(linked.iter().any(|lib| lib.as_str().unwrap().contains("libtorch_cpu")), "{found}");
    }
}

/// Runs `bench` with `--json`, and returns the object on its last line.
fn bench(arguments: &[&str]) -> Value {
    let folder = folder();
    let text = stdout(&run(folder.path(), &[&["bench"], arguments, &["--json", "--threads", "2"]].concat()));
    let measured: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let seconds = |key: &str| measured[key].as_f64().unwrap();
    assert!(seconds("min_s") > 0.0 && seconds("min_s") <= seconds("median_s"), "{measured}");
    assert!(seconds("median_s") <= seconds("max_s"), "{measured}");
    assert!(measured["weight_bytes"].as_u64().unwrap() > 0, "{measured}");
    assert_eq!(measured["device"], "cpu");
    assert_eq!(measured["threads"], 2);
    assert!(measured["instructions"].is_string() && measured["torch"].is_string(), "{measured}");
    if cfg!(target_os = "linux") {
        assert!(measured["peak_bytes"].as_u64() > measured["weight_bytes"].as_u64(), "{measured}");
        // Where the system does not let a process forget its peak, this is null.
        assert!(measured.get("beyond_weights_bytes").is_some(), "{measured}");
    }
    measured
}

#[test]
fn bench_step_measures_a_step_in_every_kind_and_numerics() {
    let small = ["step", "--depth", "1", "--single", "1", "--hidden-size", "256"];
    let small = [&small[..], &["--image-tokens", "60", "--text-tokens", "20"]].concat();
    for (kind, numerics) in [("f32", "exact"), ("f32", "fast"), ("bf16", "exact"), ("bf16", "fast")] {
        let flags = ["--kind", kind, "--numerics", numerics, "--repeat", "2"];
        let measured = bench(&[&small[..], &flags].concat());
        assert_eq!((&measured["kind"], &measured["numerics"]), (&kind.into(), &numerics.into()));
        assert_eq!((&measured["preset"], &measured["quantize"]), (&"flux1-dev".into(), &"none".into()));
        assert_eq!((&measured["depth"], &measured["single"]), (&1.into(), &1.into()));
        assert_eq!((&measured["image_tokens"], &measured["text_tokens"]), (&60.into(), &20.into()));
        assert_eq!(measured["seconds"].as_array().unwrap().len(), 2);
    }
    let bytes = |flags: &[&str]| bench(&[&small[..], flags].concat())["weight_bytes"].as_u64().unwrap();
    let once = ["--repeat", "1", "--warmup", "0", "--preset", "flux1-schnell"];
    assert!(bytes(&[&once[..], &["--quantize", "int8"]].concat()) < bytes(&once));
}

#[test]
fn bench_step_refuses_weights_that_the_device_does_not_have() {
    let folder = folder();
    let call = ["bench", "step", "--depth", "0", "--single", "0", "--quantize", "fp8"];
    let refused = run(folder.path(), &call);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("fp8 weights need CUDA"), "{refused:?}");
    assert_eq!(run(folder.path(), &["bench", "step", "--hidden-size", "200"]).status.code(), Some(2));
}

#[test]
fn bench_decode_and_text_measure_and_say_it_in_words() {
    let decode =
        ["decode", "--width", "32", "--height", "16", "--kind", "f32", "--repeat", "1", "--warmup", "0"];
    let measured = bench(&[&decode[..], &["--numerics", "exact"]].concat());
    assert_eq!((&measured["width"], &measured["height"]), (&32.into(), &16.into()));
    bench(&decode);
    let text = ["text", "--layers", "1", "--tokens", "8", "--repeat", "1", "--warmup", "0"];
    let measured = bench(&text);
    assert_eq!((&measured["layers"], &measured["tokens"]), (&1.into(), &8.into()));

    let folder = folder();
    let words = stdout(&run(folder.path(), &[&["bench"], &decode[..], &["--threads", "1"]].concat()));
    assert!(words.starts_with("FLUX.1's autoencoder, a picture of 32 × 16\n"), "{words}");
    assert!(words.contains("\nf32, fast, on the CPU: 1 thread, "), "{words}");
    let wrong = ["bench", "decode", "--width", "40"];
    assert_eq!(run(folder.path(), &wrong).status.code(), Some(2));
}

#[test]
fn the_comparison_with_pytorch_names_its_rows() {
    let Some(python) = support::require::python() else { return };
    let python = python.get_program().to_owned();
    let script = crate::support::root().join("scripts/bench_vs_reference");
    let call = |arguments: &[&str]| Command::new(&python).arg(&script).args(arguments).output().unwrap();
    let listed = stdout(&call(&["--list"]));
    for row in ["step-bf16", "step-int8", "decode-512-f32", "t5-f32", "generate-tiny", "memory-4608-bf16"] {
        assert!(listed.lines().any(|line| line.split_whitespace().next() == Some(row)), "{row}: {listed}");
    }
    assert_eq!(call(&["no-such-row"]).status.code(), Some(2));
}

#[test]
fn what_was_read_beside_the_file_that_was_named_is_said() {
    use tch_flux::checkpoint::{Access, Checkpoint};
    let folder = folder();
    let whole = fixtures().join("tiny/transformer/diffusion_pytorch_model.safetensors");
    let checkpoint = Checkpoint::open(&whole, Access::Map).unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    for (i, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let mut tensors: Vec<_> = part.iter().map(|name| (*name, checkpoint.tensor(name).unwrap())).collect();
        // What a training left, which is no weight.
        tensors.extend((i == 0).then(|| ("optimizer.state.0.exp_avg", tch::Tensor::from_slice(&[1f32]))));
        let shard = folder.path().join(format!("m-0000{}-of-00002.safetensors", i + 1));
        tch::Tensor::write_safetensors(&tensors, shard).unwrap();
    }
    let draw = |more: &[&str]| {
        let drawn =
            run(folder.path(), &[&["generate", CIRCLE, "--seed", "4", "--kind", "f32"], more].concat());
        stdout(&drawn);
        String::from_utf8(drawn.stderr).unwrap()
    };
    let said = draw(&["--transformer", "m-00002-of-00002.safetensors", "-o", "shards.png"]);
    for part in ["one of 2 shards", "left aside", "optimizer.state.0.exp_avg"] {
        assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
    }
    let said = draw(&["-o", "whole.png", "--model", fixtures().join("tiny").to_str().unwrap()]);
    assert!(!said.contains("warning"), "{said}");
    let read = |name: &str| Image::read_png(folder.path().join(name)).unwrap().0;
    assert_eq!(read("shards.png"), read("whole.png"));
    let text = stdout(&run(folder.path(), &["inspect", "m-00001-of-00002.safetensors"]));
    assert!(text.contains("note: ") && text.contains("one of 2 shards"), "{text}");
    assert!(text.contains("optimizer.state.0.exp_avg"), "{text}");
}

/// The small model in diffusers' parts, with this scheduler.
fn scheduled(config: &str) -> tempfile::TempDir {
    let folder = folder();
    let parts = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"];
    for part in parts {
        std::os::unix::fs::symlink(fixtures().join("tiny").join(part), folder.path().join(part)).unwrap();
    }
    std::fs::create_dir(folder.path().join("scheduler")).unwrap();
    std::fs::write(folder.path().join("scheduler/scheduler_config.json"), config).unwrap();
    folder
}

#[test]
fn flags_say_more_than_a_folders_scheduler_and_what_is_not_obeyed_is_said() {
    let size = ["--width", "64", "--height", "64", "--steps", "2", "--seed", "7", "--kind", "f32"];
    let draw = |folder: &Path, more: &[&str]| {
        let flags = ["generate", "a red circle", "--model", ".", "--force", "-o", "out.png"];
        run(folder, &[&flags[..], &size, more].concat())
    };
    let other = scheduled(r#"{"_class_name": "UniPCMultistepScheduler"}"#);
    let refused = draw(other.path(), &[]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        ["scheduler_config.json", "_class_name", "UniPC", "--sampler"].iter().all(|word| said.contains(word)),
        "{said}"
    );
    let drawn = draw(other.path(), &["--sampler", "euler", "--schedule", "linear"]);
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));

    let shifted = scheduled(r#"{"shift": 3.0, "of_mine": 1}"#);
    let drawn = draw(shifted.path(), &[]);
    let said = String::from_utf8_lossy(&drawn.stderr);
    assert!(drawn.status.success() && said.contains("of_mine"), "{said}");
    let bytes = |folder: &Path| Image::read_png(folder.join("out.png")).unwrap().0;
    let (drawn, linear) = (bytes(shifted.path()), bytes(other.path()));
    assert_ne!(drawn, linear);
    assert!(draw(other.path(), &["--sampler", "euler", "--shift", "3"]).status.success());
    assert_eq!(bytes(other.path()), drawn);
    assert!(draw(shifted.path(), &["--schedule", "linear"]).status.success());
    assert_eq!(bytes(shifted.path()), linear);
    let plan = draw(shifted.path(), &["--dry-run", "--json"]);
    let plan: Value = serde_json::from_str(&stdout(&plan)).unwrap();
    assert_eq!(plan["request"]["schedule"]["flow_match"]["shift"], 3.0);
    assert!(plan["notes"].to_string().contains("of_mine"), "{plan}");
}
