//! The models at full size have the names and shapes of the official files, tensor for tensor.

use std::collections::BTreeMap;

use tch::nn::VarStore;
use tch::{Device, Kind};
use tch_flux::Error;
use tch_flux::checkpoint::{AUTOENCODER_DIFFUSERS, Access, Checkpoint, FLUX1_DIFFUSERS, Family, LoadOptions};
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams, TinyAutoEncoder, TinyAutoEncoderParams};
use tch_flux::models::flux1::{Flux1, Flux1Params};
use tch_flux::models::text::{ClipConfig, ClipText, T5Config, T5Encoder};
use tch_flux::models::vision::{
    DepthAnything, DepthConfig, ReduxConfig, ReduxImageEncoder, SiglipConfig, SiglipVision,
};

use crate::support::{layout, temp, write_sparse};

type Shapes = BTreeMap<String, Vec<i64>>;

fn declared(vs: &VarStore) -> Shapes {
    vs.variables().into_iter().map(|(name, tensor)| (name, tensor.size())).collect()
}

fn official(name: &str) -> Shapes {
    layout(name).into_iter().map(|(name, _, shape)| (name, shape)).collect()
}

/// Both directions, and what differs by name.
fn assert_same(declared: &Shapes, official: &Shapes) {
    for (name, shape) in official {
        assert_eq!(declared.get(name), Some(shape), "{name} is in the file");
    }
    for (name, shape) in declared {
        assert_eq!(official.get(name), Some(shape), "{name} is in the model");
    }
}

fn flux1(params: &Flux1Params) -> Shapes {
    let vs = VarStore::new(Device::Cpu);
    Flux1::new(vs.root(), params).unwrap();
    declared(&vs)
}

#[test]
fn flux1_dev_declares_the_official_tensors() {
    let declared = flux1(&Flux1Params::DEV);
    assert_eq!(declared.len(), 780);
    assert_same(&declared, &official("flux1-dev"));
}

#[test]
fn flux1_schnell_declares_the_official_tensors() {
    let declared = flux1(&Flux1Params::SCHNELL);
    assert_eq!(declared.len(), 776);
    assert_same(&declared, &official("flux1-schnell"));
}

#[test]
fn flux1_fill_dev_declares_the_official_tensors() {
    assert_same(&flux1(&Flux1Params::FILL_DEV), &official("flux1-fill-dev"));
}

#[test]
fn flux1_canny_dev_declares_the_official_tensors() {
    assert_same(&flux1(&Flux1Params::CANNY_DEV), &official("flux1-canny-dev"));
}

#[test]
fn the_autoencoder_declares_the_official_tensors() {
    let vs = VarStore::new(Device::Cpu);
    AutoEncoder::new(vs.root(), &AutoEncoderParams::flux1()).unwrap();
    assert_same(&declared(&vs), &official("ae"));
}

#[test]
fn taef1_declares_the_tensors_of_both_of_its_layouts() {
    let vs = VarStore::new(Device::Cpu);
    TinyAutoEncoder::new(vs.root(), &TinyAutoEncoderParams::taef1()).unwrap();
    assert_same(&declared(&vs), &official("taef1.diffusers"));
    let (_folder, first) = temp("taef1_encoder.safetensors");
    let second = first.with_file_name("taef1_decoder.safetensors");
    write_sparse(&first, &layout("taef1-encoder"));
    write_sparse(&second, &layout("taef1-decoder"));
    let [first, second] =
        [first, second].map(|path| Checkpoint::open(&path, Access::Map).unwrap().official());
    assert_same(&renamed(&first.joined(second)), &official("taef1.diffusers"));
}

#[test]
fn the_large_depth_model_declares_the_published_tensors() {
    let (_folder, path) = temp("model.safetensors");
    write_sparse(&path, &layout("depth-anything-large"));
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    assert_eq!(checkpoint.family(), Family::Depth);
    let vs = VarStore::new(Device::Cpu);
    DepthAnything::new(vs.root(), &DepthConfig::large()).unwrap();
    assert_same(&declared(&vs), &renamed(&checkpoint.official()));
}

#[test]
fn t5_declares_the_official_tensors_with_one_embedding() {
    let vs = VarStore::new(Device::Cpu);
    T5Encoder::new(vs.root(), &T5Config::xxl()).unwrap();
    let mut official = official("t5-xxl-encoder");
    // Some files hold the embedding under a second name.
    if let Some(shape) = official.remove("encoder.embed_tokens.weight") {
        assert_eq!(official.entry("shared.weight".into()).or_insert(shape.clone()), &shape);
    }
    assert_same(&declared(&vs), &official);
}

#[test]
fn clip_declares_the_official_tensors() {
    let vs = VarStore::new(Device::Cpu);
    ClipText::new(vs.root(), &ClipConfig::large()).unwrap();
    assert_same(&declared(&vs), &official("clip-l-text"));
}

#[test]
fn redux_declares_the_official_tensors() {
    let vs = VarStore::new(Device::Cpu);
    ReduxImageEncoder::new(vs.root(), &ReduxConfig::default()).unwrap();
    assert_same(&declared(&vs), &official("flux1-redux-dev"));
    let shapes = official("flux1-redux-dev");
    let read = ReduxConfig::from_shapes(|name| shapes.get(name).cloned()).unwrap();
    assert_eq!(read, ReduxConfig::default());
}

/// The list is that of transformers' `SiglipModel` in the sizes of so400m. What the tower alone holds is written without
/// the prefix by transformers 5, and with it by those before.
#[test]
fn siglip_declares_the_vision_tower_of_whole_files_and_of_files_of_it_alone() {
    let vs = VarStore::new(Device::Cpu);
    SiglipVision::new(vs.root(), &SiglipConfig::so400m()).unwrap();
    let whole = layout("siglip-so400m");
    let mut alone = whole.clone();
    alone.retain(|(name, ..)| name.starts_with("vision_model."));
    let mut bare = alone.clone();
    bare.iter_mut().for_each(|(name, ..)| *name = name.trim_start_matches("vision_model.").to_string());
    for (what, lines) in [("whole", whole), ("alone", alone), ("bare", bare)] {
        let (_folder, path) = temp("model.safetensors");
        write_sparse(&path, &lines);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        assert_eq!(checkpoint.family(), Family::Siglip, "{what}");
        let checkpoint = checkpoint.official();
        assert_same(&declared(&vs), &renamed(&checkpoint));
        let read = SiglipConfig::from_shapes(|name| checkpoint.shape(name)).unwrap();
        assert_eq!(read, SiglipConfig::so400m(), "{what}");
    }
}

/// What is not known of SigLIP's other tower is reported, not dropped.
#[test]
fn a_siglip_file_with_a_name_that_is_not_known_is_refused_with_it() {
    let (_folder, path) = temp("model.safetensors");
    let mut lines = layout("siglip-so400m");
    lines.push(("text_model.head.gate".into(), "F32".into(), vec![4]));
    write_sparse(&path, &lines);
    let vs = VarStore::new(Device::Cpu);
    SiglipVision::new(vs.root(), &SiglipConfig::so400m()).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().official();
    match checkpoint.load(&vs, LoadOptions::default()) {
        Err(Error::Mismatch(mismatch)) => {
            assert_eq!(mismatch.unexpected, ["text_model.head.gate"]);
            assert_eq!(mismatch.missing, [""; 0]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_sizes_of_every_variant_are_read_from_its_header() {
    for (name, params, variant) in [
        ("flux1-dev", Flux1Params::DEV, "dev"),
        ("flux1-schnell", Flux1Params::SCHNELL, "schnell"),
        ("flux1-fill-dev", Flux1Params::FILL_DEV, "Fill"),
        ("flux1-canny-dev", Flux1Params::CANNY_DEV, "Canny or Depth"),
    ] {
        let shapes = official(name);
        let read = Flux1Params::from_shapes(|name| shapes.get(name).cloned()).unwrap();
        assert_eq!(read, params, "{name}");
        assert_eq!(read.variant(), variant);
    }
    let shapes = official("ae");
    let read = AutoEncoderParams::from_shapes(|name| shapes.get(name).cloned()).unwrap();
    assert_eq!(read, AutoEncoderParams::flux1());
}

fn renamed(checkpoint: &Checkpoint) -> Shapes {
    checkpoint.names().map(|name| (name.to_string(), checkpoint.shape(name).unwrap())).collect()
}

#[test]
fn diffusers_flux1_has_the_official_tensors_once_renamed() {
    let (_folder, path) = temp("flux1-dev.safetensors");
    write_sparse(&path, &layout("flux1-dev.diffusers"));
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().renamed(&FLUX1_DIFFUSERS);
    assert_same(&renamed(&checkpoint), &official("flux1-dev"));
}

/// One block of each kind, since the joined tensors of all blocks would take 7 GB.
#[test]
fn diffusers_flux1_loads_strictly_into_the_official_model() {
    let (_folder, path) = temp("flux1-dev.safetensors");
    let mut lines = layout("flux1-dev.diffusers");
    lines.retain(|(name, ..)| {
        let mut fields = name.split('.');
        !fields.next().unwrap().ends_with("transformer_blocks") || fields.next() == Some("0")
    });
    write_sparse(&path, &lines);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().renamed(&FLUX1_DIFFUSERS);
    let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
    assert_eq!(params, Flux1Params { depth: 1, depth_single_blocks: 1, ..Flux1Params::DEV });
    let vs = VarStore::new(Device::Cpu);
    Flux1::new(vs.root(), &params).unwrap();
    let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
    assert_eq!((loaded.tensors, loaded.kind), (vs.len(), Kind::BFloat16));
    let joined = 2 * 2 + 2; // qkv of both streams and linear1, weight and bias
    let swapped = 2; // adaLN_modulation
    assert_eq!(loaded.borrowed, loaded.tensors - joined - swapped);
}

#[test]
fn diffusers_autoencoder_loads_strictly_into_the_official_model() {
    let (_folder, path) = temp("diffusion_pytorch_model.safetensors");
    write_sparse(&path, &layout("ae.diffusers"));
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().renamed(&AUTOENCODER_DIFFUSERS);
    assert_same(&renamed(&checkpoint), &official("ae"));
    let vs = VarStore::new(Device::Cpu);
    AutoEncoder::new(vs.root(), &AutoEncoderParams::flux1()).unwrap();
    let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
    assert_eq!((loaded.tensors, loaded.borrowed), (244, 244));
}
