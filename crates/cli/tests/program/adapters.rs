//! ControlNets and IP-Adapters in a pipeline: what a picture depends on, and what is refused. Their weights are random, of
//! the small model's sizes; what they draw is compared with diffusers' pipelines in `reference.rs`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::{Access, Checkpoint, Family};
use tch_flux::generation::{Control, Edit, IpAdapterImage, Offload, Parts, Pipeline, Request, Settings};
use tch_flux::image::Image;
use tch_flux::models::flux1::{ControlNet, ControlNetParams, Flux1Params, IpAdapter, IpAdapterParams};
use tch_flux::models::vision::{ClipVision, ClipVisionConfig};
use tch_flux::nn;
use tch_flux::numerics::Numerics;

fn model() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

/// The small model's sizes, with fewer blocks.
fn sizes() -> ControlNetParams {
    let flux = Flux1Params {
        vec_in_dim: 64,
        context_in_dim: 64,
        hidden_size: 128,
        num_heads: 4,
        depth: 1,
        depth_single_blocks: 2,
        axes_dim: [4, 14, 14],
        ..Flux1Params::SCHNELL
    };
    ControlNetParams { flux, num_mode: None, conditioning_embedding_channels: None }
}

fn save(vs: &VarStore, path: &Path) {
    nn::init(vs, 3).unwrap();
    vs.save(path).unwrap();
}

/// A ControlNet in a file of its own.
fn controlnet(folder: &Path, name: &str, params: &ControlNetParams) -> PathBuf {
    let (vs, path) = (VarStore::new(Device::Cpu), folder.join(format!("{name}.safetensors")));
    ControlNet::new(vs.root(), params).unwrap();
    save(&vs, &path);
    path
}

/// An IP-Adapter and its image encoder.
fn ip_adapter(folder: &Path) -> (PathBuf, PathBuf) {
    let params = IpAdapterParams {
        clip_embeddings_dim: 24,
        cross_attention_dim: 64,
        clip_extra_context_tokens: 4,
        hidden_size: 128,
        depth: 2,
    };
    let (vs, path) = (VarStore::new(Device::Cpu), folder.join("adapter.safetensors"));
    IpAdapter::new(vs.root(), &params).unwrap();
    save(&vs, &path);
    let config = ClipVisionConfig {
        hidden_size: 64,
        intermediate_size: 96,
        projection_dim: 24,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        image_size: 28,
        patch_size: 14,
        hidden_act: "quick_gelu".into(),
        layer_norm_eps: 1e-5,
    };
    let (vs, encoder) = (VarStore::new(Device::Cpu), folder.join("encoder.safetensors"));
    ClipVision::new(vs.root(), &config).unwrap();
    save(&vs, &encoder);
    (path, encoder)
}

fn open(numerics: Numerics) -> Pipeline {
    let settings = Settings { numerics, kind: Some(Kind::Float), ..Settings::default() };
    Pipeline::open(Parts::find(model()).unwrap(), settings).unwrap()
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Vec<Image> {
    let pictures = pipeline.generate(request, &mut |_| ControlFlow::Continue(())).unwrap();
    pictures.into_iter().map(|picture| picture.image).collect()
}

fn refused(pipeline: &mut Pipeline, request: &Request) -> String {
    let result = pipeline.generate(request, &mut |_| ControlFlow::Continue(()));
    match result {
        Err(error @ (Error::Request(_) | Error::Parameter(_))) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn circle(seed: u64) -> Request {
    Request::new("a red circle on a blue background", 64, 64).seed(seed)
}

/// Stripes, no two of which are alike.
fn stripes(width: u32, height: u32) -> Image {
    let pixel = |i: u32| [(i % width * 7 % 256) as u8, (i / width * 5 % 256) as u8, (i * 3 % 256) as u8];
    Image { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
}

/// Mean square difference of two pictures.
fn apart(a: &Image, b: &Image) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.rgb.iter().zip(&b.rgb).map(square).sum::<f64>() / a.rgb.len() as f64
}

#[test]
fn a_controlnet_changes_the_picture_and_its_bits_depend_on_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let hint = ControlNetParams { conditioning_embedding_channels: Some(16), ..sizes() };
    let nets = [controlnet(folder.path(), "plain", &sizes()), controlnet(folder.path(), "hint", &hint)];
    let mut pictures = Vec::new();
    for numerics in [Numerics::Exact, Numerics::Fast] {
        let mut pipeline = open(numerics);
        let bare = draw(&mut pipeline, &circle(4)).remove(0);
        pipeline.set_controlnets(&nets).unwrap();
        assert_eq!(draw(&mut pipeline, &circle(4))[0], bare, "nobody asked for a ControlNet");

        let first = Control { end: 0.5, ..Control::new(stripes(90, 70)) };
        let second = Control { net: 1, strength: 0.7, ..Control::new(stripes(64, 64)) };
        let request = circle(4).control(first.clone()).control(second);
        let alone = draw(&mut pipeline, &request).remove(0);
        assert!(apart(&alone, &bare) > 25.0, "{}", apart(&alone, &bare));
        let batch = Request { seed: 3, num_images: 3, ..request.clone() };
        assert_eq!(draw(&mut pipeline, &batch)[1], alone, "{numerics:?}");
        assert_eq!(draw(&mut pipeline, &request)[0], alone, "again");

        let nothing = circle(4).control(Control { strength: 0.0, ..first });
        assert_eq!(draw(&mut pipeline, &nothing)[0], bare, "a strength of 0 adds nothing");
        pictures.push(alone);
    }
    assert!(apart(&pictures[0], &pictures[1]) < 0.5, "fast and exact");
}

#[test]
fn edges_are_those_of_the_picture_in_the_requests_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = open(Numerics::Fast);
    pipeline.set_controlnets(&[controlnet(folder.path(), "plain", &sizes())]).unwrap();
    let picture = stripes(100, 80);
    let edges = picture.resize(64, 64).canny(50, 200);
    let by_flag = circle(1).control(Control { canny: true, ..Control::new(picture) });
    let by_hand = circle(1).control(Control::new(edges));
    assert_eq!(draw(&mut pipeline, &by_flag), draw(&mut pipeline, &by_hand));
}

#[test]
fn controlnets_go_with_an_edit_and_an_ip_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = open(Numerics::Fast);
    pipeline.set_controlnets(&[controlnet(folder.path(), "plain", &sizes())]).unwrap();
    let (adapter, encoder) = ip_adapter(folder.path());
    pipeline.set_ip_adapters(&[adapter], Some(&encoder)).unwrap();
    let edit = Edit { strength: 0.7, ..Edit::new(vec![stripes(64, 64)]) };
    let edited = circle(2).edit(edit);
    let controlled = edited.clone().control(Control::new(stripes(64, 64)));
    let liked = controlled.clone().pictured(IpAdapterImage::new(stripes(30, 40)));
    let all = [edited, controlled, liked].map(|request| draw(&mut pipeline, &request).remove(0));
    assert!(apart(&all[0], &all[1]) > 1.0 && apart(&all[1], &all[2]) > 1.0);
}

#[test]
fn a_union_is_told_what_the_picture_is() {
    let folder = tempfile::tempdir().unwrap();
    let union = ControlNetParams { num_mode: Some(3), ..sizes() };
    let nets = [controlnet(folder.path(), "union", &union), controlnet(folder.path(), "plain", &sizes())];
    let mut pipeline = open(Numerics::Fast);
    pipeline.set_controlnets(&nets).unwrap();
    let control = Control::new(stripes(64, 64));
    let with = |net, mode| circle(0).control(Control { net, mode, ..control.clone() });
    assert!(refused(&mut pipeline, &with(0, None)).contains("mode"));
    assert!(refused(&mut pipeline, &with(0, Some(3))).contains("0 to 2"));
    assert!(refused(&mut pipeline, &with(1, Some(0))).contains("no union"));
    assert!(refused(&mut pipeline, &with(2, None)).contains("number 2"));
    let backwards = circle(0).control(Control { start: 0.5, end: 0.5, ..control.clone() });
    assert!(refused(&mut pipeline, &backwards).contains("0.5"));
    assert_ne!(draw(&mut pipeline, &with(0, Some(0))), draw(&mut pipeline, &with(0, Some(1))));
}

#[test]
fn what_is_no_controlnet_of_this_transformer_is_refused_and_the_old_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let plain = controlnet(folder.path(), "plain", &sizes());
    let wide = Flux1Params { hidden_size: 64, num_heads: 2, ..sizes().flux };
    let other = controlnet(folder.path(), "other", &ControlNetParams { flux: wide, ..sizes() });
    let mut pipeline = open(Numerics::Fast);
    pipeline.set_controlnets(&[plain]).unwrap();
    let error = |result: Result<(), Error>| result.unwrap_err().to_string();
    let text = error(pipeline.set_controlnets(std::slice::from_ref(&other)));
    assert!(text.contains("hidden_size") && text.contains("other.safetensors"), "{text}");
    let text = error(pipeline.set_controlnets(&[model().join("flux1-schnell.safetensors")]));
    assert!(text.contains("ControlNet") && text.contains("schnell"), "{text}");
    assert_eq!(pipeline.controlnets().count(), 1);

    let (adapter, encoder) = ip_adapter(folder.path());
    let text = error(pipeline.set_ip_adapters(&[other], Some(&encoder)));
    assert!(text.contains("IP-Adapter"), "{text}");
    let text = error(pipeline.set_ip_adapters(std::slice::from_ref(&adapter), None));
    assert!(text.contains("image encoder"), "{text}");
    let text = error(pipeline.set_ip_adapters(&[adapter], Some(&model().join("text_encoder"))));
    assert!(text.contains("no CLIP vision model"), "{text}");
}

#[test]
fn an_ip_adapter_changes_the_picture_and_its_bits_depend_on_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (adapter, encoder) = ip_adapter(folder.path());
    let mut pictures = Vec::new();
    for numerics in [Numerics::Exact, Numerics::Fast] {
        let mut pipeline = open(numerics);
        let bare = draw(&mut pipeline, &circle(5)).remove(0);
        pipeline.set_ip_adapters(std::slice::from_ref(&adapter), Some(&encoder)).unwrap();
        let pictured = IpAdapterImage {
            images: vec![Arc::new(stripes(50, 40)), Arc::new(stripes(28, 28))],
            scales: vec![1.0, 2.0],
            ..IpAdapterImage::new(stripes(1, 1))
        };
        let request = circle(5).pictured(pictured.clone()).negative_prompt("a blue square", 2.0);
        let alone = draw(&mut pipeline, &request).remove(0);
        let away = draw(&mut pipeline, &circle(5).negative_prompt("a blue square", 2.0)).remove(0);
        assert!(apart(&alone, &away) > 1.0, "{}", apart(&alone, &away));
        let batch = Request { seed: 3, num_images: 3, ..request.clone() };
        assert_eq!(draw(&mut pipeline, &batch)[2], alone, "{numerics:?}");

        let nothing = circle(5).pictured(IpAdapterImage { scales: vec![0.0], ..pictured.clone() });
        assert_eq!(draw(&mut pipeline, &nothing)[0], bare, "a strength of 0 adds nothing");
        let three = circle(5).pictured(IpAdapterImage { scales: vec![1.0; 3], ..pictured });
        assert!(refused(&mut pipeline, &three).contains("2 double blocks"));
        pictures.push(alone);
    }
    assert!(apart(&pictures[0], &pictures[1]) < 0.5, "fast and exact");
}

/// A whole CLIP serves as the text encoder and as the image encoder, each tower drawing what it draws alone.
#[test]
fn clip_and_the_image_encoder_may_be_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let (adapter, encoder) = ip_adapter(folder.path());
    let named = |path: &Path| {
        let file = Checkpoint::open(path, Access::Read).unwrap();
        let family = if path == encoder { Family::ClipVision } else { Family::Clip };
        let file = file.part("", &family);
        file.names().map(|name| (name.to_string(), file.tensor(name).unwrap())).collect::<Vec<_>>()
    };
    let (vision, text) = (named(&encoder), named(&model().join("text_encoder")));
    let save = |name: &str, tensors: &[(String, Tensor)]| {
        let path = folder.path().join(name);
        Tensor::write_safetensors(tensors, &path).unwrap();
        path
    };
    let alone = save("text.safetensors", &text);
    let mut whole: Vec<_> = text.into_iter().chain(vision).collect();
    whole.push(("logit_scale".into(), Tensor::from(4.6f32)));
    whole.push(("text_projection.weight".into(), Tensor::ones([24, 64], (Kind::Float, Device::Cpu))));
    let wrap = |(name, tensor): &(String, Tensor)| (format!("module.{name}"), tensor.shallow_clone());
    let wrapped = save("wrapped.safetensors", &whole.iter().map(wrap).collect::<Vec<_>>());
    let whole = save("clip.safetensors", &whole);
    let drawn = |clip: &Path, encoder: &Path| {
        let settings = Settings { kind: Some(Kind::Float), ..Settings::default() };
        let parts = Parts { clip: clip.to_path_buf(), ..Parts::find(model()).unwrap() };
        let mut pipeline = Pipeline::open(parts, settings).unwrap();
        pipeline.set_ip_adapters(std::slice::from_ref(&adapter), Some(encoder)).unwrap();
        let drawn = draw(&mut pipeline, &circle(6).pictured(IpAdapterImage::new(stripes(50, 40))));
        (drawn, pipeline.warnings().unwrap())
    };
    let (apart, silent) = drawn(&alone, &encoder);
    let (together, said) = drawn(&whole, &whole);
    assert!(apart == together);
    assert!(apart == drawn(&wrapped, &wrapped).0);
    assert!(silent.is_empty(), "{silent:?}");
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("CLIP text model") && said[0].contains("vision_model.*"), "{said:?}");
    assert!(said[1].contains("CLIP vision model") && said[1].contains("text_model.*"), "{said:?}");
}

#[test]
fn what_is_offloaded_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let union = ControlNetParams { num_mode: Some(3), ..sizes() };
    let hint = ControlNetParams { conditioning_embedding_channels: Some(16), ..sizes() };
    let nets = [controlnet(folder.path(), "union", &union), controlnet(folder.path(), "hint", &hint)];
    let (adapter, encoder) = ip_adapter(folder.path());
    let request = circle(6)
        .control(Control { mode: Some(1), ..Control::new(stripes(64, 64)) })
        .control(Control { net: 1, ..Control::new(stripes(90, 70)) })
        .pictured(IpAdapterImage::new(stripes(50, 40)));
    for (kind, numerics) in [(Kind::Float, Numerics::Exact), (Kind::BFloat16, Numerics::Fast)] {
        let drawn = |offload: Offload| {
            let settings = Settings { kind: Some(kind), numerics, offload, ..Settings::default() };
            let mut pipeline = Pipeline::open(Parts::find(model()).unwrap(), settings).unwrap();
            pipeline.set_controlnets(&nets).unwrap();
            pipeline.set_ip_adapters(std::slice::from_ref(&adapter), Some(&encoder)).unwrap();
            [draw(&mut pipeline, &request), draw(&mut pipeline, &request)]
        };
        let whole = drawn(Offload::None);
        assert!(whole[0] == whole[1]);
        for offload in [Offload::Parts, Offload::Blocks] {
            assert!(drawn(offload) == whole, "{offload:?} {kind:?} {numerics:?}");
        }
    }
}

#[test]
fn what_is_put_on_counts_in_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let net = controlnet(folder.path(), "plain", &sizes());
    let (adapter, encoder) = ip_adapter(folder.path());
    let settings = Settings { kind: Some(Kind::BFloat16), ..Settings::default() };
    let mut pipeline = Pipeline::open(Parts::find(model()).unwrap(), settings).unwrap();
    let bare = pipeline.memory(&circle(0)).unwrap();
    pipeline.set_controlnets(std::slice::from_ref(&net)).unwrap();
    pipeline.set_ip_adapters(&[adapter], Some(&encoder)).unwrap();
    assert_eq!(pipeline.memory(&circle(0)).unwrap(), bare, "what is not asked for is not loaded");
    let asked =
        circle(0).control(Control::new(stripes(64, 64))).pictured(IpAdapterImage::new(stripes(64, 64)));
    let memory = pipeline.memory(&asked).unwrap();
    // The f32 of the file becomes bf16 of half its size.
    let half = std::fs::metadata(net).unwrap().len() / 2;
    assert!(memory.denoise > bare.denoise + half && memory.text > bare.text, "{memory:?} {bare:?}");
    let parts: Vec<_> = pipeline.weights().unwrap().into_iter().map(|weights| weights.part.label()).collect();
    assert_eq!(parts[4..], ["ControlNet", "IP-Adapter", "CLIP vision model"]);
}

#[test]
fn the_command_line_draws_with_both_and_repeats_it_from_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let union = ControlNetParams { num_mode: Some(7), ..sizes() };
    let net = controlnet(folder.path(), "union", &union);
    let (adapter, encoder) = ip_adapter(folder.path());
    let picture = folder.path().join("stripes.png");
    stripes(80, 60).write_png(&picture, &Default::default()).unwrap();
    let run = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tch-flux"))
            .args(["generate", "--model"])
            .arg(model())
            .args(["--width", "64", "--height", "64", "--quiet"])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let [first, second] = ["first.png", "second.png"].map(|name| folder.path().join(name));
    let flags = [
        "a red circle".as_ref(),
        "--seed".as_ref(),
        "3".as_ref(),
        "--controlnet".as_ref(),
        net.as_os_str(),
        "--control-image".as_ref(),
        picture.as_os_str(),
        "--control-mode".as_ref(),
        "depth".as_ref(),
        "--control-canny".as_ref(),
        "--control-strength".as_ref(),
        "0.8".as_ref(),
        "--ip-adapter".as_ref(),
        adapter.as_os_str(),
        "--ip-image".as_ref(),
        picture.as_os_str(),
        "--ip-image-encoder".as_ref(),
        encoder.as_os_str(),
        "--ip-strength".as_ref(),
        "0.5,0.7".as_ref(),
        "-o".as_ref(),
        first.as_os_str(),
    ];
    assert_eq!(run(&flags), (Some(0), String::new()));
    let repeat = ["--from-image".as_ref(), first.as_os_str(), "-o".as_ref(), second.as_os_str()];
    assert_eq!(run(&repeat), (Some(0), String::new()));
    let (one, texts) = Image::read_png(&first).unwrap();
    let (other, again) = Image::read_png(&second).unwrap();
    assert_eq!(one, other);
    assert_eq!(texts, again);
    assert!(texts["tch-flux"].contains("\"mode\":2"), "{texts:?}");

    let lacking = ["a circle".as_ref(), "--controlnet".as_ref(), net.as_os_str()];
    let (code, said) = run(&lacking);
    assert!(code == Some(2) && said.contains("--control-image"), "{said}");
}
