//! Every form in which users' weights come: layouts, fp8, GGUF, bitsandbytes, and what is said of them.
//!
//! `fixtures/formats` was written by the packages that such files come from (`scripts/export_formats.py`).

mod bitsandbytes;
mod damaged;
mod foreign;
mod fp8;
mod gguf;
mod layouts;
mod misplaced;
mod settings;
mod towers;
mod wrapped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint, LoadOptions, Loaded};

use tch_flux::models::Model;
use tch_flux::models::flux1::{Flux1, Flux1Input, Flux1Options, Flux1Params};
use tch_flux::nn::declare;
use tch_flux::{Error, FileProblem, Mismatch};

use crate::support::{Stored, temp, write_file};

fn fixture(name: &str) -> PathBuf {
    crate::support::root().join("fixtures/formats").join(name)
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(path, Access::Map).unwrap()
}

/// A checkpoint of these tensors, which lives on in memory.
fn of(tensors: &[Stored]) -> Checkpoint {
    try_of(tensors).unwrap()
}

fn try_of(tensors: &[Stored]) -> tch_flux::Result<Checkpoint> {
    let (_folder, path) = temp("w.safetensors");
    write_file(&path, tensors);
    Checkpoint::open(&path, Access::Map)
}

/// What is wrong with a tensor of this file: its name, and why.
fn refused(tensors: &[Stored]) -> (String, String) {
    match try_of(tensors) {
        Err(Error::File { problem: FileProblem::Tensor { name, reason }, .. }) => (name, reason),
        other => panic!("{other:?}"),
    }
}

fn mismatch(result: tch_flux::Result<Loaded>) -> Mismatch {
    match result {
        Err(Error::Mismatch(mismatch)) => *mismatch,
        other => panic!("{other:?}"),
    }
}

/// A store of placeholders of these names and shapes.
fn store<'a>(shapes: impl IntoIterator<Item = (&'a str, Vec<i64>)>) -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    for (name, shape) in shapes {
        let mut fields: Vec<&str> = name.split('.').collect();
        let leaf = fields.pop().unwrap();
        let path = fields.into_iter().fold(vs.root(), |path, field| path.sub(field));
        let _ = declare(&path, leaf, &shape);
    }
    vs
}

/// A store for all that a checkpoint holds.
fn store_for(checkpoint: &Checkpoint) -> VarStore {
    store(checkpoint.names().map(|name| (name, checkpoint.shape(name).unwrap())))
}

fn load_as(checkpoint: &Checkpoint, vs: &VarStore, kind: Kind) -> Loaded {
    checkpoint.load(vs, LoadOptions { kind: Some(kind), ..Default::default() }).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().to_kind(Kind::Float).contiguous().view([-1])).unwrap()
}

/// Numbers between -1 and 1 that differ from name to name and from place to place; f32 holds them exactly.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut state = fnv(name.as_bytes());
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The nearest bf16, to the even one of two.
fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// The hash of the numbers as little-endian f32, as `expected.json` has it.
fn hash(tensor: &Tensor) -> String {
    let bytes: Vec<u8> = values(tensor).iter().flat_map(|v| v.to_le_bytes()).collect();
    format!("{:016x}", fnv(&bytes))
}

/// What the package that wrote a file makes of its quantised tensors.
fn expected(file: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(fixture("expected.json")).unwrap();
    let all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    all[file].clone()
}

/// Each tensor of a fixture is, bit for bit, what its package makes of it, and in bf16 and f16 what torch rounds that to.
fn is_as_its_package_reads_it(file: &str) -> Checkpoint {
    for access in crate::support::BOTH {
        let checkpoint = Checkpoint::open(fixture(file), access).unwrap();
        for (name, hashed) in expected(file) {
            let f32 = checkpoint.tensor_as(&name, Kind::Float).unwrap();
            assert_eq!(hash(&f32), hashed, "{file}: {name}");
            for kind in [Kind::BFloat16, Kind::Half] {
                let rounded = checkpoint.tensor_as(&name, kind).unwrap();
                assert_eq!(rounded.kind(), kind);
                assert!(rounded.equal(&f32.to_kind(kind)), "{file}: {name} in {kind:?}");
            }
        }
    }
    open(fixture(file))
}

/// The rows of these tensors of a file, one after the other.
fn rows(checkpoint: &Checkpoint, names: &[&str]) -> Vec<f32> {
    names.iter().flat_map(|name| values(&checkpoint.tensor_as(name, Kind::Float).unwrap())).collect()
}

fn flux1(params: &Flux1Params) -> (Flux1, VarStore) {
    let vs = VarStore::new(Device::Cpu);
    (Flux1::new(vs.root(), params).unwrap(), vs)
}

/// What a model makes of a fixed input.
fn velocity(model: &Flux1, kind: Kind) -> tch_flux::Result<Tensor> {
    let p = model.params();
    let wave = |size: &[i64]| {
        let count: i64 = size.iter().product();
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.7).sin().view(size).to_kind(kind)
    };
    let _no_grad = tch::no_grad_guard();
    let input = Flux1Input {
        img: &wave(&[1, 6, p.in_channels]),
        img_ids: &Tensor::arange(18, (Kind::Float, Device::Cpu)).view([1, 6, 3]).fmod(3),
        txt: &wave(&[1, 5, p.context_in_dim]),
        txt_ids: &Tensor::zeros([1, 5, 3], (Kind::Float, Device::Cpu)),
        timesteps: &Tensor::from_slice(&[0.4f32]).to_kind(kind),
        y: &wave(&[1, p.vec_in_dim]),
        guidance: Some(&Tensor::from_slice(&[2.5f32]).to_kind(kind)),
    };
    model.forward(&input, Flux1Options::default())
}

/// That a model whose weights are kept as they are stored gives the bits of one that was filled with numbers.
fn kept_is_as_cast(checkpoint: &Checkpoint, kind: Kind) {
    let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
    let (cast, vs) = flux1(&params);
    let filled = load_as(checkpoint, &vs, kind);
    let (kept, vs) = flux1(&params);
    let options =
        LoadOptions { kind: Some(kind), keep_quantized: Some(kept.linears()), ..Default::default() };
    let loaded = checkpoint.load(&vs, options).unwrap();
    assert!(loaded.quantized > 0 && loaded.bytes < filled.bytes, "{loaded:?} and {filled:?}");
    assert_eq!((loaded.tensors, loaded.kind, filled.quantized), (filled.tensors, kind, 0));
    for (name, variable) in vs.variables() {
        assert_eq!(variable.kind(), kind, "{name}");
        assert_eq!(tch_flux::nn::is_placeholder(&variable), kept.linears().is_stored(&name), "{name}");
    }
    let (one, other) = (velocity(&cast, kind).unwrap(), velocity(&kept, kind).unwrap());
    assert!(bool::try_from(one.isfinite().all()).unwrap());
    assert!(one.equal(&other), "{kind:?}");
    assert_eq!(sum(&checkpoint.types_in_memory(kind, true)), loaded.bytes);
    assert_eq!(sum(&checkpoint.types_in_memory(kind, false)), filled.bytes);
}

fn sum(types: &BTreeMap<String, u64>) -> u64 {
    types.values().sum()
}

fn run(arguments: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_tch-flux")).args(arguments).output().unwrap()
}

/// The JSON that a successful run prints.
fn report(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
