//! `--json`: JSON and nothing else, whatever happens.

use serde_json::Value;

use super::{CIRCLE, fixtures, folder, run};

#[test]
fn errors_are_json_too_in_every_subcommand() {
    let folder = folder();
    let case = fixtures().join("parity/rms_norm_f32.safetensors");
    let case = case.to_str().unwrap();
    let calls: [(&[&str], i32, &str, &str); 14] = [
        (&["generate"], 2, "request", "nothing to draw"),
        (&["generate", CIRCLE, "--width", "100"], 2, "request", "96 and 112"),
        (&["generate", CIRCLE, "--steps", "many"], 2, "usage", "--steps must be a whole number"),
        (&["generate", CIRCLE, "--frobnicate"], 2, "usage", "--frobnicate"),
        (&["generate", CIRCLE, "--model", "nowhere"], 1, "hub", "nowhere"),
        (&["generate", CIRCLE, "--from-image", "gone.png"], 1, "io", "gone.png"),
        (&["edit", CIRCLE], 2, "request", "--image"),
        (&["edit", CIRCLE, "--image", "gone.png"], 1, "io", "gone.png"),
        (&["inspect", "gone.safetensors"], 1, "io", "gone.safetensors"),
        (&["inspect", "--compare", case, "gone.safetensors"], 1, "io", "gone.safetensors"),
        (&["convert", "gone.safetensors", "out.safetensors"], 1, "io", "gone.safetensors"),
        (&["bench", "load", "gone.safetensors"], 1, "io", "gone.safetensors"),
        (&["bench", "step", "--repeat", "0"], 2, "usage", "--repeat"),
        (&["doctor", "--frobnicate"], 2, "usage", "--frobnicate"),
    ];
    for (call, code, kind, says) in calls {
        let output = run(folder.path(), &[call, &["--json"]].concat());
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{call:?}: {said} {errors}");
        assert_eq!(errors, "", "{call:?}");
        let object: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{call:?}: {said}"));
        assert_eq!(object["error"]["kind"], kind, "{call:?}: {said}");
        let message = object["error"]["message"].as_str().unwrap();
        assert!(message.contains(says) && !message.contains("Usage"), "{call:?}: {message}");
    }
}

#[test]
fn every_case_of_parity_has_a_line_of_its_own_when_it_fails_too() {
    let output = run(folder().path(), &["parity", "gone", "--json"]);
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(1), true), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["case"], &lines[0]["verdict"]), (&"gone".into(), &"fail".into()));
    assert_eq!((&lines[1]["failed"], lines.len()), (&1.into(), 2));
}

#[test]
fn every_line_of_a_success_is_json_and_nothing_is_said_beside() {
    let folder = folder();
    let (case, file) =
        (fixtures().join("parity/rms_norm_f32.safetensors"), fixtures().join("tiny/ae.safetensors"));
    let (case, file) = (case.to_str().unwrap(), file.to_str().unwrap());
    let calls: [&[&str]; 9] = [
        &["generate", CIRCLE, "--steps", "1", "-n", "2", "-o", "x.png", "--guidance", "3"],
        &["generate", CIRCLE, "--dry-run"],
        &["inspect", file],
        &["inspect", "--compare", file, file],
        &["convert", file, "out.safetensors"],
        &["parity", case],
        &["parity", "--modules"],
        &["bench", "text", "--layers", "1", "--tokens", "8", "--repeat", "1", "--warmup", "0"],
        &["doctor"],
    ];
    for call in calls {
        let output = run(folder.path(), &[call, &["--json"]].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{call:?}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.is_empty());
        for line in said.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{call:?}: {line}"));
        }
    }
}
