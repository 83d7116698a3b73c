//! From a prompt to a picture, against the official code on the same weights.
//!
//! `scripts/export_official_pictures.py` has drawn them. Every byte is equal where torch, threads and CPU are those of
//! the machine that drew; elsewhere the pictures are a few grey levels apart at the most. The test says which it was.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use serde::Deserialize;
use tch::{Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint};
use tch_flux::generation::{Parts, Pipeline, Request, Settings};
use tch_flux::image::Image;
use tch_flux::parity::Machine;

#[derive(Deserialize)]
struct Listed {
    machine: Machine,
    pictures: Vec<Drawn>,
}

#[derive(Deserialize)]
struct Drawn {
    file: String,
    autoencoder: String,
    prompt: String,
    seed: u64,
    steps: usize,
}

fn fixtures() -> PathBuf {
    crate::support::root().join("fixtures")
}

#[test]
fn generate_draws_what_the_official_code_draws() {
    let folder = fixtures().join("official");
    let listed: Listed =
        serde_json::from_str(&std::fs::read_to_string(folder.join("pictures.json")).unwrap()).unwrap();
    let _alone = crate::alone();
    tch::set_num_threads(listed.machine.threads);
    let exact = Machine::here().gives_the_bits_of(&listed.machine);
    let how = if exact { "byte for byte" } else { "within a few grey levels" };
    std::io::stderr().write_all(format!("official pictures: {how}\n").as_bytes()).unwrap();

    // The official autoencoder's file is f32.
    let temporary = tempfile::tempdir().unwrap();
    let wide = temporary.path().join("ae.safetensors");
    let stored = Checkpoint::open(fixtures().join("tiny/ae.safetensors"), Access::Read).unwrap();
    let tensors: Vec<(String, Tensor)> = stored
        .names()
        .map(|name| (name.to_string(), stored.tensor(name).unwrap().to_kind(Kind::Float)))
        .collect();
    Tensor::write_safetensors(&tensors, &wide).unwrap();

    assert!(listed.pictures.len() >= 8);
    for drawn in listed.pictures {
        let mut parts = Parts::find(fixtures().join("tiny")).unwrap();
        if drawn.autoencoder == "f32" {
            parts.autoencoder = wide.clone();
        }
        let request = Request::new(drawn.prompt, 64, 64).seed(drawn.seed).steps(drawn.steps);
        let mut pipeline = Pipeline::open(parts, Settings::default()).unwrap();
        let ours = pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap().remove(0).image;
        let (theirs, _) = Image::read_png(folder.join(&drawn.file)).unwrap();
        let sum: u32 = ours.rgb.iter().zip(&theirs.rgb).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        let mean = f64::from(sum) / ours.rgb.len() as f64;
        assert!(mean < 3.0, "{}: {mean} grey levels apart", drawn.file);
        assert!(!exact || ours == theirs, "{}: {mean} grey levels apart", drawn.file);
    }
}
