//! Pictures that a drawing shall look like: what they change, what they go with, and what is said where they cannot be read.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use tch::nn::VarStore;
use tch::{Device, Kind};
use tch_flux::generation::{
    Edit, Generated, PartOverrides, Parts, Pipeline, Redux, ReduxImage, ReduxMix, Request, Settings,
};
use tch_flux::image::Image;
use tch_flux::models::vision::{ReduxConfig, ReduxImageEncoder, SiglipConfig, SiglipVision};
use tch_flux::numerics::Numerics;
use tch_flux::{Error, nn};

use crate::support::{stored_all, write_file};

fn model() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

fn small() -> SiglipConfig {
    SiglipConfig {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        image_size: 44,
        patch_size: 10,
        ..SiglipConfig::default()
    }
}

/// Small random models in a folder as the official repository of Redux has it. The tiny model reads text of 64.
fn redux_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let encoder = folder.path().join("image_encoder");
    std::fs::create_dir(&encoder).unwrap();
    let vs = VarStore::new(Device::Cpu);
    SiglipVision::new(vs.root(), &small()).unwrap();
    nn::init(&vs, 1).unwrap();
    write_file(&encoder.join("model.safetensors"), &stored_all(&vs, Kind::Float));
    std::fs::write(encoder.join("config.json"), serde_json::to_string(&small()).unwrap()).unwrap();
    embedder(&folder.path().join("flux1-redux-dev.safetensors"), 32, 64);
    folder
}

fn embedder(path: &Path, redux_dim: i64, txt_in_features: i64) {
    let vs = VarStore::new(Device::Cpu);
    ReduxImageEncoder::new(vs.root(), &ReduxConfig { redux_dim, txt_in_features }).unwrap();
    nn::init(&vs, 2).unwrap();
    let _no_grad = tch::no_grad_guard();
    // As large as what the tiny model reads of T5.
    vs.variables().into_values().for_each(|mut variable| drop(variable.g_mul_scalar_(3.0)));
    write_file(path, &stored_all(&vs, Kind::Float));
}

fn parts(folder: &Path) -> Parts {
    Parts::find_rest(PartOverrides { redux: Some(folder.into()), ..PartOverrides::default() }, model())
        .unwrap()
}

fn open(folder: &Path, numerics: Numerics) -> Pipeline {
    Pipeline::open(parts(folder), Settings { numerics, ..Settings::default() }).unwrap()
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Vec<Generated> {
    pipeline.generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn circle() -> Request {
    Request::new("a red circle on a blue background", 64, 64).steps(2)
}

fn picture(seed: u32, width: u32, height: u32) -> Image {
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 77) >> 13) as u8;
    Image { width, height, rgb: (0..3 * width * height).map(byte).collect() }
}

fn weighed(image: Image, strength: f64) -> ReduxImage {
    ReduxImage { strength, ..ReduxImage::new(image) }
}

#[test]
fn every_picture_and_strength_is_another_drawing_and_one_beside_changes_nothing() {
    let folder = redux_folder();
    let mut pipeline = open(folder.path(), Numerics::Fast);
    let (one, two) = (picture(1, 64, 48), picture(2, 30, 70));
    let of = |images: Vec<ReduxImage>, mix| circle().redux(Redux { images, mix, ..Redux::new(vec![]) });
    let append = ReduxMix::Append;
    let requests = [
        circle(),
        of(vec![weighed(one.clone(), 1.0)], append),
        of(vec![weighed(one.clone(), 0.2)], append),
        of(vec![weighed(two.clone(), 1.0)], append),
        of(vec![weighed(one.clone(), 1.0), weighed(two.clone(), 1.0)], append),
        of(vec![weighed(one.clone(), 0.6), weighed(two.clone(), 0.4)], ReduxMix::Sum),
        of(vec![weighed(one.clone(), 0.4), weighed(two.clone(), 0.6)], ReduxMix::Sum),
        Request { prompts: vec![String::new()], ..circle() }
            .redux(Redux { without_text: true, ..Redux::new(vec![one.clone()]) }),
    ];
    let alone: Vec<_> = requests.iter().map(|request| draw(&mut pipeline, request).remove(0).image).collect();
    for i in 0..alone.len() {
        assert!(alone[i + 1..].iter().all(|other| *other != alone[i]), "{i} is another one's, too");
    }
    let all: Vec<&Request> = requests.iter().chain(&requests[..4]).collect();
    let together = pipeline.generate_batch(&all, &mut |_, _| ControlFlow::Continue(())).unwrap();
    for (i, outcome) in together.into_iter().enumerate() {
        assert_eq!(outcome.unwrap().remove(0).image, alone[i % requests.len()], "request {i}");
    }
    assert!(pipeline.can_batch(&requests[1], &requests[3]), "pictures of another size have as many tokens");
    assert!(
        !pipeline.can_batch(&requests[0], &requests[1]) && !pipeline.can_batch(&requests[1], &requests[4])
    );
}

/// One picture of strength 1 is the same to both ways: the official one.
#[test]
fn one_picture_as_trained_is_the_same_appended_and_summed() {
    let folder = redux_folder();
    let mut pipeline = open(folder.path(), Numerics::Exact);
    let redux = Redux::new(vec![picture(1, 64, 48)]);
    let appended = draw(&mut pipeline, &circle().redux(redux.clone())).remove(0).image;
    let summed = Redux { mix: ReduxMix::Sum, ..redux };
    assert_eq!(draw(&mut pipeline, &circle().redux(summed)).remove(0).image, appended);
}

#[test]
fn redux_goes_with_edits_negative_prompts_and_several_pictures() {
    let folder = redux_folder();
    let mut pipeline = open(folder.path(), Numerics::Exact);
    let redux = |request: Request| request.redux(Redux::new(vec![picture(1, 64, 48)]));
    let edit = Edit { strength: 0.6, ..Edit::new(vec![picture(3, 64, 64)]) };
    let requests = [
        circle().edit(edit),
        circle().negative_prompt("a green square on a white background", 3.0),
        circle().num_images(2),
    ];
    for request in requests {
        let plain = draw(&mut pipeline, &request);
        let looks = draw(&mut pipeline, &redux(request.clone()));
        assert_eq!(looks.len(), plain.len());
        for (plain, looks) in plain.iter().zip(&looks) {
            assert_ne!(plain.image, looks.image);
            assert_eq!(draw(&mut pipeline, &looks.request)[0].image, looks.image, "it is drawn again alone");
        }
    }
}

#[test]
fn its_tokens_and_models_count_for_memory() {
    let folder = redux_folder();
    let pipeline = open(folder.path(), Numerics::Exact);
    let (one, two) = (Redux::new(vec![picture(1, 9, 9)]), Redux::new(vec![picture(1, 9, 9); 2]));
    let memory = |request: &Request| pipeline.memory(request).unwrap();
    let [none, one, two] = [circle(), circle().redux(one), circle().redux(two)].map(|r| memory(&r));
    let step = one.denoise - none.denoise;
    assert!(step > 0 && two.denoise - one.denoise == step, "{none:?} {one:?} {two:?}");
    // The file is f32 and the pipeline computes in bf16: the weights take memory of their own.
    assert!(one.text > none.text && one.decode == none.decode, "{none:?} {one:?}");
    let weights = pipeline.weights().unwrap();
    let parts: Vec<_> = weights.iter().map(|weights| weights.part.label()).collect();
    assert_eq!(parts, ["transformer", "T5", "CLIP", "autoencoder", "image encoder", "Redux"]);
}

#[test]
fn what_cannot_be_read_is_refused_and_the_pipeline_still_draws() {
    let folder = redux_folder();
    let refused = |parts: Parts| {
        let mut pipeline = Pipeline::open(parts, Settings::default()).unwrap();
        let request = circle().redux(Redux::new(vec![picture(1, 64, 48)]));
        let text = match pipeline.generate(&request, &mut |_| ControlFlow::Continue(())) {
            Err(error @ (Error::UnnamedPart { .. } | Error::Config(_) | Error::File { .. })) => {
                error.to_string()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(draw(&mut pipeline, &circle()).len(), 1);
        text
    };
    let good = || parts(folder.path());
    assert!(refused(Parts { redux: None, ..good() }).contains("needs its Redux model"));
    assert!(refused(Parts { image_encoder: None, ..good() }).contains("needs its image encoder"));
    let text = refused(Parts { redux: good().image_encoder, ..good() });
    assert!(text.contains("no Redux embedder") && text.contains("SigLIP"), "{text}");
    let text = refused(Parts { image_encoder: Some(model().join("text_encoder")), ..good() });
    assert!(text.contains("no SigLIP vision model") && text.contains("CLIP"), "{text}");
    let other = folder.path().join("other.safetensors");
    embedder(&other, 32, 40);
    assert!(refused(Parts { redux: Some(other.clone()), ..good() }).contains("of 40"));
    embedder(&other, 24, 64);
    assert!(refused(Parts { redux: Some(other), ..good() }).contains("states of 24"));
}

#[test]
fn redux_is_found_in_its_own_folder_and_beside_a_transformer() {
    let folder = redux_folder();
    let found = parts(folder.path());
    assert_eq!(found.redux, Some(folder.path().join("flux1-redux-dev.safetensors")));
    assert_eq!(found.image_encoder, Some(folder.path().join("image_encoder")));
    // Its name is no transformer's.
    let own = PartOverrides {
        autoencoder: Some(found.autoencoder.clone()),
        clip: Some(found.clip.clone()),
        t5: Some(found.t5.clone()),
        clip_tokenizer: Some(found.clip_tokenizer.clone()),
        t5_tokenizer: Some(found.t5_tokenizer.clone()),
        ..PartOverrides::default()
    };
    let none = Parts::find_rest(own.clone(), folder.path());
    assert!(matches!(none, Err(Error::MissingPart { part: "transformer", .. })), "{none:?}");
    std::fs::copy(&found.transformer, folder.path().join("flux1-dev.safetensors")).unwrap();
    let beside = Parts::find_rest(own.clone(), folder.path()).unwrap();
    assert_eq!((&beside.redux, &beside.image_encoder), (&found.redux, &found.image_encoder));
    assert_eq!(beside.transformer, folder.path().join("flux1-dev.safetensors"));
    // Without Redux, an image encoder is another model's.
    std::fs::remove_file(folder.path().join("flux1-redux-dev.safetensors")).unwrap();
    let without = Parts::find_rest(own.clone(), folder.path()).unwrap();
    assert_eq!((without.redux, without.image_encoder), (None, None));
    // diffusers' folder stands for the file.
    std::fs::create_dir(folder.path().join("image_embedder")).unwrap();
    let theirs = Parts::find_rest(own, folder.path()).unwrap();
    assert_eq!(theirs.redux, Some(folder.path().join("image_embedder")));
}

#[test]
fn the_binary_draws_from_pictures_alone_and_a_drawing_says_how_it_is_repeated() {
    let folder = redux_folder();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
        let output = command.current_dir(folder.path()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let drawn = |name: &str, arguments: &[&str]| {
        let (code, text) = run(&[arguments, &["--quiet", "-o", name]].concat());
        assert_eq!(code, Some(0), "{text}");
        Image::read_png(folder.path().join(name)).unwrap()
    };
    for (name, image) in [("a.png", picture(1, 64, 48)), ("b.png", picture(2, 30, 70))] {
        image.write_png(folder.path().join(name), &Default::default()).unwrap();
    }
    let models = ["--redux-model", "."];
    let call = ["generate", "--redux", "a.png=0.7", "--redux", "b.png", "--steps", "2", "--seed", "5"];
    let (first, texts) = drawn("first.png", &[&call[..], &models].concat());
    let recipe: serde_json::Value = serde_json::from_str(&texts["tch-flux"]).unwrap();
    assert_eq!(recipe["redux"]["images"][0]["file"], "a.png");
    assert_eq!(recipe["redux"]["images"][0]["strength"], 0.7);
    let again = [&["generate", "--from-image", "first.png"], &models[..]].concat();
    assert_eq!(drawn("again.png", &again).0, first);
    assert_ne!(drawn("summed.png", &[&again[..], &["--redux-mix", "sum"]].concat()).0, first);
    assert_ne!(drawn("other.png", &[&again[..], &["--redux", "b.png"]].concat()).0, first);

    let (code, text) = run(&["generate", "--from-image", "first.png"]);
    assert!(code == Some(1) && text.contains("--redux-model"), "{text}");
    let (code, text) = run(&["generate", "a cat", "--redux-without-text"]);
    assert!(code == Some(2) && text.contains("--redux"), "{text}");
    let (code, text) = run(&[&call[..3], &["a cat", "--redux-without-text"], &models].concat());
    assert!(code == Some(2) && text.contains("PROMPT is not read with --redux-without-text"), "{text}");
}
