//! Values that are out of bounds.

use serde_json::{Value, json};

use crate::client::{generate, post};
use crate::{shared, small, with};

fn are_refused(name: &str, values: impl IntoIterator<Item = Value>) {
    for value in values {
        let answer = generate(shared(), &with(small(1), name, value.clone()));
        let error = answer.is_error(400, name);
        assert_eq!(error["code"], "invalid_value", "{value}");
        assert!(error["message"].as_str().unwrap().starts_with(name), "{error}");
    }
}

fn are_taken(name: &str, values: impl IntoIterator<Item = Value>) {
    for value in values {
        let answer = generate(shared(), &with(small(1), name, value.clone()));
        assert_eq!(answer.status, 200, "{name} {value}: {}", answer.text());
    }
}

#[test]
fn sizes_that_are_none_are_refused() {
    let wrong = [
        "1024x",
        "-16x16",
        "99999999999x1",
        "x",
        "",
        "64",
        "64x64x64",
        "64X64",
        "64 x 64",
        " 64x64",
        "+64x64",
        "64x+64",
        "6４x64",
        "0x0",
        "48x64",
        "64x2064",
        "65x64",
        "64x72",
        "1e2x64",
        "00064x00064",
        "AUTO",
    ];
    are_refused("size", wrong.map(Value::from));
    are_refused("size", [json!(64), json!([64, 64]), json!({}), json!(true)]);
    let error = generate(shared(), &with(small(1), "size", json!("1000x70"))).is_error(400, "size");
    assert!(error["message"].as_str().unwrap().ends_with("the nearest is 1008x64"), "{error}");
    are_taken("size", [json!("auto"), json!(null), json!("64x80"), json!("0064x64")]);
}

#[test]
fn numbers_of_pictures_out_of_bounds_are_refused() {
    are_refused(
        "n",
        [json!(0), json!(-1), json!(11), json!(1.5), json!("2"), json!(true), json!([1]), json!(1e300)],
    );
    are_taken("n", [json!(10), json!(null), json!(1.0)]);
}

#[test]
fn guidance_that_is_no_number_or_not_finite_is_refused() {
    are_refused("guidance_scale", [json!("NaN"), json!(-0.1), json!(30.1), json!("3"), json!([])]);
    // Numbers that no double holds are no JSON for this server.
    for literal in ["NaN", "1e309", "-1e309"] {
        let body = format!(r#"{{"prompt": "a", "guidance_scale": {literal}}}"#);
        post(shared(), body).is_error(400, "");
    }
    are_taken("guidance_scale", [json!(0), json!(30), json!(3.5), json!(null)]);
    are_refused("true_cfg_scale", [json!(-1), json!(31), json!("2")]);
}

#[test]
fn steps_out_of_bounds_are_refused() {
    are_refused(
        "num_inference_steps",
        [json!(0), json!(1e9), json!(1_000_000_000), json!(101), json!(-4), json!(2.5)],
    );
    are_taken("num_inference_steps", [json!(1), json!(100)]);
}

#[test]
fn seeds_out_of_bounds_are_refused() {
    are_refused("seed", [json!(-1), json!(1.5), json!("7"), json!(false)]);
    let body = |seed: &str| small(1).to_string().replace("\"seed\":1", &format!("\"seed\":{seed}"));
    for seed in ["18446744073709551616", "1e30", "-18446744073709551616"] {
        post(shared(), body(seed)).is_error(400, "seed");
    }
    let answer = post(shared(), body("18446744073709551615"));
    assert_eq!(answer.json()["data"][0]["seed"].as_u64(), Some(u64::MAX), "as it was sent");
    let answer = post(shared(), body("29.0"));
    assert_eq!(answer.json()["data"][0]["seed"].as_u64(), Some(29), "a whole number, as JSON may write it");
}

#[test]
fn the_other_fields_have_bounds_too() {
    are_refused("output_format", [json!("gif"), json!("PNG"), json!(1)]);
    are_refused("output_compression", [json!(-1), json!(101), json!("50"), json!(0.5)]);
    are_refused("response_format", [json!("png"), json!(true)]);
    are_refused("stream", [json!("true"), json!(1)]);
    are_refused("partial_images", [json!(-1), json!(4), json!(1.5)]);
    are_refused("model", [json!(7), json!("m".repeat(257))]);
    are_refused("negative_prompt", [json!(1), json!("x".repeat(32_001))]);
    are_taken("output_compression", [json!(0), json!(100)]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let both = with(with(small(1), "stream", json!(true)), "response_format", json!("url"));
    generate(shared(), &both).is_error(400, "response_format");
    generate(shared(), &with(small(1), "background", json!("transparent"))).is_error(400, "background");
    generate(shared(), &with(small(1), "true_cfg_scale", json!(2))).is_error(400, "negative_prompt");
}

#[test]
fn unknown_fields_are_refused_with_the_nearest_name() {
    let error =
        generate(shared(), &with(small(1), "guidence_scale", json!(1))).is_error(400, "guidence_scale");
    assert_eq!(error["code"], "unknown_parameter");
    assert!(error["message"].as_str().unwrap().contains("`guidance_scale`"), "{error}");
    let error = generate(shared(), &with(small(1), "zzz", json!(1))).is_error(400, "zzz");
    assert!(!error["message"].as_str().unwrap().contains("meant"), "{error}");
    for (name, wanted) in [
        ("steps", "`num_inference_steps`"),
        ("width", "`size`"),
        ("height", "`size`"),
        ("guidance", "`guidance_scale`"),
        ("cfg_scale", "`true_cfg_scale`"),
        ("scheduler", "`sampler`"),
        ("negative", "`negative_prompt`"),
        ("batch_size", "`n`"),
        ("format", "`output_format`"),
        ("numInferenceSteps", "`num_inference_steps`"),
        ("lora", "--lora"),
        // Of edits alone.
        ("strength", "/v1/images/edits"),
        ("image", "/v1/images/edits"),
        ("file", "/v1/images/edits"),
    ] {
        let error = generate(shared(), &with(small(1), name, json!(1))).is_error(400, name);
        assert!(error["message"].as_str().unwrap().contains(wanted), "{error}");
    }
}

#[test]
fn null_means_absent_everywhere() {
    let names = [
        "model",
        "n",
        "size",
        "response_format",
        "output_format",
        "output_compression",
        "stream",
        "partial_images",
        "num_inference_steps",
        "guidance_scale",
        "true_cfg_scale",
        "negative_prompt",
        "background",
        "quality",
        "moderation",
        "style",
        "user",
        "safety_identifier",
    ];
    let nulls = names
        .into_iter()
        .fold(json!({ "prompt": "a", "seed": null }), |body, name| with(body, name, json!(null)));
    let answer = generate(shared(), &nulls);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["size"], "64x64");
}
