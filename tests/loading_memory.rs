//! What building and loading cost at full size. A file of its own, since it measures its process.

#![cfg(target_os = "linux")]

mod support;

use std::time::Instant;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint, LoadOptions};
use tch_flux::models::flux1::{Flux1, Flux1Params};

use support::{layout, temp, variables, write_sparse};

const MB: u64 = 1 << 20;

/// A line of the process's own state, in bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// How far the peak lies above what was in use before.
fn growth<T>(what: &str, run: impl FnOnce() -> T) -> (T, u64) {
    let (before, begin) = (status("VmRSS:"), Instant::now());
    let out = run();
    let grown = status("VmHWM:").max(status("VmRSS:")) - before;
    println!("{what}: {:.3} s, {:.1} MB", begin.elapsed().as_secs_f64(), grown as f64 / MB as f64);
    (out, grown)
}

/// One test, so that nothing else runs in the process while it measures.
#[test]
fn flux1_dev_is_built_and_loaded_from_a_mapped_file_without_memory_for_its_weights() {
    // libtorch's own start is not what is measured.
    let warm = Tensor::ones([64, 64], (Kind::BFloat16, Device::Cpu));
    assert_eq!(warm.matmul(&warm).size(), [64, 64]);
    let (_folder, path) = temp("flux1-dev.safetensors");
    write_sparse(&path, &layout("flux1-dev"));
    assert!(std::fs::metadata(&path).unwrap().len() > 23_800_000_000);

    let vs = VarStore::new(Device::Cpu);
    let (_, grown) = growth("build", || Flux1::new(vs.root(), &Flux1Params::DEV).unwrap());
    assert!(grown < 50 * MB, "building took {grown} bytes");

    let vs = VarStore::new(Device::Cpu);
    let ((checkpoint, _model, loaded), grown) = growth("open, build and load", || {
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
        let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
        let model = Flux1::new(vs.root(), &params).unwrap();
        let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
        (checkpoint, model, loaded)
    });
    assert!(grown < 200 * MB, "loading took {grown} bytes");
    assert_eq!((loaded.tensors, loaded.borrowed, loaded.kind), (780, 780, Kind::BFloat16));
    assert_eq!(checkpoint.parameters(), 11_901_408_320);
    assert_eq!(loaded.bytes, 2 * 11_901_408_320);
    assert_eq!(variables(&vs).values().map(Tensor::numel).sum::<usize>(), 11_901_408_320);
    // What lies in the file can be read: the last tensor of the hole is zeros.
    let last = variables(&vs).pop_last().unwrap();
    assert_eq!(f64::try_from(last.1.abs().max()).unwrap(), 0.0, "{}", last.0);
}
