//! The program and the server refuse the same requests, for the same reasons, with the same words.

use std::process::Command;

use serde_json::{Value, json};

use crate::client::generate;
use crate::{shared, tiny};

/// What the program says of a call with these flags.
fn said(flags: &[&str]) -> String {
    let call = Command::new(env!("CARGO_BIN_EXE_tch-flux"))
        .args(["generate", "a red circle on a blue background", "--dry-run", "--model"])
        .arg(tiny())
        .args(flags)
        .output()
        .unwrap();
    assert_eq!(call.status.code(), Some(2), "{flags:?}: {call:?}");
    let text = String::from_utf8(call.stderr).unwrap();
    text.trim().strip_prefix("error: ").unwrap().to_string()
}

#[test]
fn the_program_and_the_server_refuse_with_the_same_words() {
    let served = shared();
    for (flags, fields, names) in [
        (
            &["--steps", "0"][..],
            json!({ "num_inference_steps": 0 }),
            &[("--steps", "num_inference_steps")][..],
        ),
        (&["--guidance", "x"], json!({ "guidance_scale": "x" }), &[("--guidance", "guidance_scale")]),
        (&["--guidance", "101"], json!({ "guidance_scale": 101 }), &[("--guidance", "guidance_scale")]),
        (&["--sampler", "ddim"], json!({ "sampler": "ddim" }), &[("--sampler", "sampler")]),
        (&["--schedule", "karras"], json!({ "schedule": "karras" }), &[("--schedule", "schedule")]),
        (&["--seed", "-1"], json!({ "seed": -1 }), &[("--seed", "seed")]),
        (
            &["--max-sequence-length", "513"],
            json!({ "max_sequence_length": 513 }),
            &[("--max-sequence-length", "max_sequence_length")],
        ),
        (&["--shift", "1,2,3"], json!({ "shift": [1, 2, 3] }), &[("--shift", "shift")]),
        (&["--cache", "fbcache"], json!({ "cache": "fbcache" }), &[("--cache", "cache")]),
        (
            &["--variation-strength", "1.5"],
            json!({ "variation_strength": 1.5 }),
            &[("--variation-strength", "variation_strength")],
        ),
        (
            &["--variation-seed", "3"],
            json!({ "variation_seed": 3 }),
            &[("--variation-strength", "variation_strength"), ("--variation-seed", "variation_seed")],
        ),
        (
            &["--sigmas", "1,0.5", "--schedule", "linear"],
            json!({ "sigmas": [1, 0.5], "schedule": "linear" }),
            &[("--schedule", "schedule"), ("--sigmas", "sigmas")],
        ),
        (
            &["--sigmas", "1,0.5", "--shift", "0.5,1"],
            json!({ "sigmas": [1, 0.5], "shift": [0.5, 1] }),
            &[("--shift", "shift"), ("--sigmas", "sigmas")],
        ),
        (
            &["--schedule", "linear", "--shift", "0.5,1"],
            json!({ "schedule": "linear", "shift": [0.5, 1] }),
            &[("--shift", "shift")],
        ),
        (
            &["--sigmas", "1,0.5", "--steps", "3"],
            json!({ "sigmas": [1, 0.5], "num_inference_steps": 3 }),
            &[("--steps", "num_inference_steps"), ("--sigmas", "sigmas")],
        ),
        (&["--sigmas", "0.5,1"], json!({ "sigmas": [0.5, 1] }), &[("--sigmas", "sigmas")]),
        (
            &["--true-cfg-scale", "2"],
            json!({ "true_cfg_scale": 2 }),
            &[("--negative-prompt", "negative_prompt"), ("--true-cfg-scale", "true_cfg_scale")],
        ),
        (
            &["--control-strength", "0.5"],
            json!({ "controlnet_conditioning_scale": 0.5 }),
            &[("--control-strength", "controlnet_conditioning_scale"), ("--control-image", "control_image")],
        ),
        (
            &["--control-mode", "edges"],
            json!({ "control_mode": "edges" }),
            &[("--control-mode", "control_mode")],
        ),
        (
            &["--ip-strength", "1"],
            json!({ "ip_adapter_scale": 1 }),
            &[("--ip-strength", "ip_adapter_scale"), ("--ip-image", "ip_adapter_image")],
        ),
        (
            &["--redux-mix", "sum"],
            json!({ "redux_mix": "sum" }),
            &[("--redux-mix", "redux_mix"), ("--redux", "redux_image")],
        ),
    ] {
        let mut request = json!({ "prompt": "a red circle on a blue background", "size": "64x64" });
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = generate(served, &request);
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_string();
        let param = answer.json()["error"]["param"].clone();
        let mut expected = said(flags);
        for (flag, field) in names {
            assert!(expected.contains(flag), "{flags:?}: {expected}");
            expected = expected.replace(flag, field);
        }
        // A server lets one request ask for less.
        let expected =
            expected.replace("from 1 to 1000", "from 1 to 100").replace("from 0 to 100", "from 0 to 30");
        assert_eq!(message, expected, "{flags:?}");
        assert_eq!(param, Value::from(names[0].1), "{flags:?}");
    }
}
