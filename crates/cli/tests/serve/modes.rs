//! What is asked beside OpenAI's fields, over HTTP: the pictures are those that the pipeline draws by itself. What is put on
//! the small model has random weights.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tch_flux::generation::{
    Control, ControlPreprocess, Edit, IpAdapterImage, PartOverrides, Parts, Pipeline, Redux, ReduxImage,
    ReduxMix, Request, Role, Settings,
};
use tch_flux::image::{Image, Mask};
use tch_flux::models::flux1::StepCache;
use tch_flux::numerics::Numerics;
use tch_flux::sampling::{Sampler, Schedule};
use tch_flux_server::Options;

use crate::addons::addon_models;
use crate::client::{edit, generate, metric};
use crate::life::Process;
use crate::{CIRCLE, Served, shared, small, tiny};

fn open(own: PartOverrides) -> (Pipeline, Parts) {
    let parts = Parts::find_rest(own, tiny()).unwrap();
    let settings = Settings { numerics: Numerics::Fast, keep_text_encoders: true, ..Settings::default() };
    (Pipeline::open(parts.clone(), settings).unwrap(), parts)
}

fn serve((pipeline, parts): (Pipeline, Parts)) -> Served {
    Served::of(pipeline, &parts, Options::default(), 64)
}

/// A pipeline with all that stands beside the small model, and its parts.
fn all() -> (Pipeline, Parts) {
    let addons = addon_models();
    let own = PartOverrides { redux: Some(addons.folder.path().join("redux")), ..PartOverrides::default() };
    let (mut pipeline, parts) = open(own);
    pipeline.set_controlnets(&[addons.plain.clone(), addons.union.clone()]).unwrap();
    pipeline.set_ip_adapters(std::slice::from_ref(&addons.adapter), Some(&addons.encoder)).unwrap();
    (pipeline, parts)
}

/// Colours, no two of which are alike.
fn stripes(width: u32, height: u32) -> Image {
    let pixel = |i: u32| [(i % width * 7 % 256) as u8, (i / width * 5 % 256) as u8, (i * 3 % 256) as u8];
    Image { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
}

fn file(image: &Image) -> Vec<u8> {
    image.to_png(&Default::default()).unwrap()
}

fn encoded(image: &Image) -> String {
    BASE64_STANDARD.encode(file(image))
}

/// A mask's file: transparent in the left half.
fn half(side: u32) -> (Vec<u8>, Mask) {
    let left = |i: u32| i % side < side / 2;
    let pixels: Vec<u8> = (0..side * side).flat_map(|i| [9, 9, 9, if left(i) { 0 } else { 255 }]).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Rgba);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    let chosen = (0..side * side).map(|i| if left(i) { 255 } else { 0 }).collect();
    (file, Mask { width: side, height: side, chosen })
}

fn decoded(file: &[u8]) -> Image {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), file).unwrap();
    Image::read_png(path.path()).unwrap().0
}

fn merged(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn circle() -> Request {
    Request::new(CIRCLE, 64, 64).seed(5).steps(2)
}

/// The same in JSON.
fn asked(more: Value) -> Value {
    merged(json!({ "prompt": CIRCLE, "size": "64x64", "seed": 5, "num_inference_steps": 2 }), more)
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Image {
    pipeline.generate(request, &mut |_| ControlFlow::Continue(())).unwrap().remove(0).image
}

/// Draws both, and they are the same, and no other one's.
fn are_the_same(at: SocketAddr, pipeline: &mut Pipeline, all: Vec<(Value, Request)>) {
    let mut seen = vec![draw(pipeline, &circle())];
    for (asked, request) in all {
        let drawn = decoded(&generate(at, &asked).pictures()[0]);
        assert_eq!(drawn, draw(pipeline, &request), "{request:?}");
        assert!(!seen.contains(&drawn), "{request:?}");
        seen.push(drawn);
    }
}

#[test]
fn samplers_schedules_caches_weights_and_variations_are_the_pipelines() {
    let (mut pipeline, _) = open(PartOverrides::default());
    let eight = || Request { steps: Some(8), ..circle() };
    let of = |more: Value| asked(merged(json!({ "num_inference_steps": 8 }), more));
    let sigmas = vec![1.0, 0.7, 0.3];
    let weighted = "a (red:1.6) circle on a blue background";
    let variation = json!({ "variation_strength": 0.4, "variation_seed": 9 });
    let all = vec![
        (of(json!({ "sampler": "heun" })), eight().sampler(Sampler::Heun)),
        (of(json!({ "sampler": "dpmpp_2m" })), eight().sampler(Sampler::Dpmpp2m)),
        (of(json!({ "sampler": "lcm" })), eight().sampler(Sampler::Lcm)),
        (of(json!({ "schedule": "shifted" })), eight().schedule(Schedule::SHIFTED)),
        (of(json!({ "shift": [1, 2] })), eight().schedule(Schedule::Shifted { base: 1.0, max: 2.0 })),
        (
            asked(json!({ "num_inference_steps": null, "sigmas": sigmas })),
            Request { steps: None, ..circle() }.schedule(Schedule::Sigmas(sigmas)),
        ),
        (of(json!({ "cache": "taylor-seer:3" })), {
            eight().cache(StepCache::TaylorSeer { interval: 3, order: 1, warmup: 3 })
        }),
        (of(json!({ "cache": "first-block:0.9" })), eight().cache(StepCache::FirstBlock { threshold: 0.9 })),
        (
            asked(json!({ "prompt": weighted, "literal": false })),
            Request { prompts: vec![weighted.into()], ..circle() },
        ),
        (
            asked(json!({ "prompt": weighted })),
            Request { prompts: vec![weighted.into()], literal: true, ..circle() },
        ),
        (asked(json!({ "prompt_2": "a green square" })), circle().prompt_2("a green square")),
        (asked(variation), circle().variation(9, 0.4)),
    ];
    are_the_same(shared(), &mut pipeline, all);
}

#[test]
fn variations_of_a_seed_count_on_by_themselves() {
    let more = json!({ "variation_strength": 0.5, "variation_seed": 3, "n": 2 });
    let answer = generate(shared(), &asked(more)).json();
    let seeds: Vec<_> = (0..2)
        .map(|i| (answer["data"][i]["seed"].as_u64(), answer["data"][i]["variation_seed"].as_u64()))
        .collect();
    assert_eq!(seeds, [(Some(5), Some(3)), (Some(5), Some(4))]);
    // Without a seed of its own it has one that is told.
    let answer = generate(shared(), &asked(json!({ "variation_strength": 0.5 }))).json();
    assert!(answer["data"][0]["variation_seed"].is_u64(), "{answer}");
}

#[test]
fn controlnets_ip_adapters_and_redux_are_the_pipelines() {
    let (mut pipeline, _) = all();
    let served = serve(all());
    let (one, two) = (stripes(90, 70), stripes(30, 40));
    let control = Control { net: 1, mode: Some(2), strength: 0.7, end: 0.5, ..Control::new(one.clone()) };
    let like = IpAdapterImage { scales: vec![0.5, 2.0], ..IpAdapterImage::new(two.clone()) };
    let seen = |strength, image: &Image| ReduxImage { strength, ..ReduxImage::new(image.clone()) };
    let look =
        Redux { images: vec![seen(0.6, &one), seen(0.5, &two)], mix: ReduxMix::Sum, ..Redux::new(vec![]) };
    let controlled = json!({
        "controlnet": "union", "control_image": encoded(&one), "control_mode": "depth",
        "controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.5,
    });
    let liked = json!({ "ip_adapter_image": encoded(&two), "ip_adapter_scale": [0.5, 2] });
    let looked = json!({
        "redux_image": [encoded(&one), encoded(&two)], "prompt_embeds_scale": [0.6, 0.5], "redux_mix": "sum",
    });
    let edges = json!({ "controlnet": "plain", "control_image": encoded(&one), "control_canny": true });
    let all = vec![
        (asked(controlled.clone()), circle().control(control.clone())),
        (asked(edges), circle().control(Control { canny: true, ..Control::new(one.clone()) })),
        (asked(liked.clone()), circle().pictured(like.clone())),
        (asked(looked.clone()), circle().redux(look.clone())),
        (
            asked(merged(merged(controlled, liked), looked)),
            circle().control(control).pictured(like).redux(look),
        ),
        (
            json!({
                "redux_image": encoded(&one), "redux_without_text": true, "size": "64x64", "seed": 5,
                "num_inference_steps": 2,
            }),
            Request { prompts: vec![String::new()], ..circle() }
                .redux(Redux { without_text: true, ..Redux::new(vec![one]) }),
        ),
    ];
    are_the_same(served.at, &mut pipeline, all);
    assert_eq!(metric(served.at, "tch_flux_upload_bytes"), 0.0);
    assert_eq!(
        generate(served.at, &small(1)).pictures(),
        generate(shared(), &small(1)).pictures(),
        "nobody asked"
    );
}

/// An edit's form.
fn form<'a>(
    image: &'a [u8],
    more: &[(&'a str, Option<&'a str>, &'a [u8])],
) -> Vec<(&'a str, Option<&'a str>, &'a [u8])> {
    let fields = [
        ("prompt", None, CIRCLE.as_bytes()),
        ("size", None, b"64x64"),
        ("seed", None, b"5"),
        ("num_inference_steps", None, b"2"),
        ("image", Some("a.png"), image),
    ];
    [&fields[..], more].concat()
}

#[test]
fn fill_fills_what_is_transparent() {
    let own = || PartOverrides { transformer: Some(addon_models().fill.clone()), ..PartOverrides::default() };
    let (mut pipeline, served) = (open(own()).0, serve(open(own())));
    let (image, (mask_file, mask)) = (stripes(64, 64), half(64));
    let picture = file(&image);
    let answer = edit(served.at, &form(&picture, &[("mask", Some("m.png"), &mask_file)]));
    let request = circle().edit(Edit { mask: Some(mask), ..Edit::new(vec![image]) });
    assert_eq!(decoded(&answer.pictures()[0]), draw(&mut pipeline, &request));
    edit(served.at, &form(&picture, &[])).is_error(400, "mask");
    generate(served.at, &small(1)).is_error(400, "image");
}

#[test]
fn edges_and_depths_are_followed() {
    let own = || PartOverrides {
        transformer: Some(addon_models().control.clone()),
        depth: Some(addon_models().depth.clone()),
        ..PartOverrides::default()
    };
    let (mut pipeline, served) = (open(own()).0, serve(open(own())));
    let image = stripes(64, 64);
    let picture = file(&image);
    let mut seen: Vec<Image> = Vec::new();
    for (field, follow) in [
        ("as", ControlPreprocess::Picture),
        ("canny", ControlPreprocess::Canny),
        ("depth", ControlPreprocess::Depth),
    ] {
        let value: &[u8] = if field == "as" { b"control" } else { b"true" };
        let drawn = decoded(&edit(served.at, &form(&picture, &[(field, None, value)])).pictures()[0]);
        let request = circle().edit(Edit { follow, ..Edit::new(vec![image.clone()]) });
        assert_eq!(drawn, draw(&mut pipeline, &request), "{follow:?}");
        assert!(!seen.contains(&drawn), "{follow:?}");
        seen.push(drawn);
    }
    edit(served.at, &form(&picture, &[("as", None, b"reference")])).is_error(400, "as");
}

#[test]
fn references_are_looked_at_where_a_request_says_so() {
    let (mut pipeline, _) = open(PartOverrides::default());
    let images = [stripes(64, 64), stripes(48, 96)];
    let files = images.each_ref().map(file);
    let more =
        [("image[]", Some("b.png"), &files[1][..]), ("as", None, b"reference"), ("keep_size", None, b"true")];
    let answer = edit(shared(), &form(&files[0], &more));
    let request =
        circle().edit(Edit { role: Some(Role::Reference), keep_size: true, ..Edit::new(images.to_vec()) });
    assert_eq!(decoded(&answer.pictures()[0]), draw(&mut pipeline, &request));
}

/// `generate` or `edit`, of a picture that a server drew.
fn repeat(folder: &Path, command: &str, flags: &[&str]) -> (Option<i32>, String, Image) {
    let again = folder.join("again.png");
    let output = Command::new(env!("CARGO_BIN_EXE_tch-flux"))
        .current_dir(folder)
        .args([command, "--from-image", "served.png", "--quiet", "--force", "-o", "again.png"])
        .args(flags)
        .output()
        .unwrap();
    let image = again.exists().then(|| Image::read_png(&again).unwrap().0);
    let nothing = || Image { width: 0, height: 0, rgb: Vec::new() };
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
        image.unwrap_or_else(nothing),
    )
}

#[test]
fn the_binary_serves_all_of_it_and_its_pictures_can_be_repeated() {
    let folder = addon_models().folder.path();
    let process = Process::ready_in(
        folder,
        &[
            "--controlnet=pose=union.safetensors",
            "--controlnet=plain.safetensors",
            "--ip-adapter=adapter.safetensors",
            "--ip-image-encoder=encoder.safetensors",
            "--redux-model=redux",
        ],
    );
    let (one, two) = (stripes(90, 70), stripes(30, 40));
    for (name, image) in [("one.png", &one), ("two.png", &two)] {
        image.write_png(folder.join(name), &Default::default()).unwrap();
    }
    let error =
        generate(process.at, &asked(json!({ "control_image": encoded(&one) }))).is_error(400, "controlnet");
    assert!(error["message"].as_str().unwrap().contains("pose, plain"), "{error}");
    let all = asked(json!({
        "controlnet": "pose", "control_image": encoded(&one), "control_mode": "pose",
        "controlnet_conditioning_scale": 0.6, "ip_adapter_image": encoded(&two), "ip_adapter_scale": 0.8,
        "redux_image": encoded(&one), "prompt_embeds_scale": 0.5, "sampler": "heun", "shift": [0.6, 1.3],
    }));
    let served = generate(process.at, &all).pictures().remove(0);
    std::fs::write(folder.join("served.png"), &served).unwrap();
    let model = tiny();
    let named = [
        "--model",
        model.to_str().unwrap(),
        "--redux-model=redux",
        "--controlnet=union.safetensors",
        "--control-image=one.png",
        "--ip-adapter=adapter.safetensors",
        "--ip-image-encoder=encoder.safetensors",
        "--ip-image=two.png",
        "--redux=one.png",
    ];
    let (code, said, image) = repeat(folder, "generate", &named);
    assert!(code == Some(0) && image == decoded(&served), "{said}");
    for (without, flag) in [(4, "--control-image"), (7, "--ip-image"), (8, "--redux")] {
        let flags = [&named[..without], &named[without + 1..]].concat();
        let (code, said, _) = repeat(folder, "generate", &flags);
        assert!(code == Some(2) && said.contains(flag), "{flag}: {said}");
    }
}

#[test]
fn the_binary_serves_models_that_draw_from_pictures_alone() {
    let folder = tempfile::tempdir().unwrap();
    let fill = Process::ready(&["--transformer", addon_models().fill.to_str().unwrap()]);
    let (picture, (mask, _)) = (file(&stripes(64, 64)), half(64));
    edit(fill.at, &form(&picture, &[])).is_error(400, "mask");
    let served = edit(fill.at, &form(&picture, &[("mask", Some("m.png"), &mask)])).pictures().remove(0);
    std::fs::write(folder.path().join("served.png"), &served).unwrap();
    stripes(64, 64).write_png(folder.path().join("one.png"), &Default::default()).unwrap();
    let grey = |i: u32| if i % 64 < 32 { [255; 3] } else { [0; 3] };
    let white = Image { width: 64, height: 64, rgb: (0..64 * 64).flat_map(grey).collect() };
    white.write_png(folder.path().join("mask.png"), &Default::default()).unwrap();
    let model = tiny();
    let named = [
        "--model",
        model.to_str().unwrap(),
        "--transformer",
        addon_models().fill.to_str().unwrap(),
        "--image=one.png",
        "--mask=mask.png",
    ];
    let (code, said, image) = repeat(folder.path(), "edit", &named);
    assert!(code == Some(0) && image == decoded(&served), "{said}");

    let flags = ["--transformer", addon_models().control.to_str().unwrap(), "--depth-model"];
    let depth = Process::ready(&[&flags[..], &[addon_models().depth.to_str().unwrap()]].concat());
    let served = edit(depth.at, &form(&picture, &[("depth", None, b"true")])).pictures().remove(0);
    std::fs::write(folder.path().join("served.png"), &served).unwrap();
    let named = [
        "--model",
        model.to_str().unwrap(),
        "--transformer",
        addon_models().control.to_str().unwrap(),
        "--depth-model",
        addon_models().depth.to_str().unwrap(),
        "--image=one.png",
    ];
    let (code, said, image) = repeat(folder.path(), "edit", &named);
    assert!(code == Some(0) && image == decoded(&served), "{said}");
}

#[test]
fn what_cannot_stand_beside_the_model_is_said_at_the_start() {
    let folder = addon_models().folder.path();
    let refused = |flags: &[&str]| {
        let mut process = Process::start_in(folder, flags);
        assert!(!process.ended().success());
        process.log()
    };
    let missing = crate::settings::run(folder, &["--port=0", "--controlnet=none.safetensors"], &[]);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("none.safetensors"));
    assert!(refused(&["--controlnet=encoder.safetensors"]).contains("ControlNet"));
    assert!(refused(&["--ip-adapter=adapter.safetensors"]).contains("image encoder"));
    assert!(refused(&["--redux-model=redux/flux1-redux-dev.safetensors"]).contains("--image-encoder"));
    let twice = ["--controlnet=a=plain.safetensors", "--controlnet=a=union.safetensors"];
    assert!(refused(&twice).contains("NAME="));
}
