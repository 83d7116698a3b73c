//! What can be said of the kernels without a GPU (`ops/tests.rs` runs them on one): that NVRTC compiles them for every
//! architecture, and that the files which keep them are read, mended and done without.

use std::io::Write;

use tch::Kind;

use super::compile::{Target, file_name, kernels};
use super::kernels::{Kernel, symbol};
use super::library::{Nvrtc, nvrtc};

/// NVRTC, or a word about why the test says nothing here.
fn found(test: &str) -> Option<&'static Nvrtc> {
    nvrtc()
        .inspect_err(|problem| {
            // Not through `println!`, which a test that passes swallows.
            let _ = std::io::stderr().write_all(format!("{test}: skipped: {problem}\n").as_bytes());
        })
        .ok()
}

fn has(program: &[u8], symbol: &str) -> bool {
    program.windows(symbol.len()).any(|window| window == symbol.as_bytes())
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let Some(nvrtc) = found("every_kernel_compiles_for_every_architecture") else { return };
    for capability in [80, 89, 90, 100, 120] {
        // An NVRTC of CUDA 12.0 knows nothing after 90.
        if Target::of(nvrtc, capability) != Ok(Target::Cubin(capability)) {
            continue;
        }
        for target in [Target::Cubin(capability), Target::Ptx(capability)] {
            let program = kernels(target, None).unwrap();
            for kernel in Kernel::ALL {
                for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                    let symbol = symbol(kernel, kind).unwrap();
                    assert_eq!(has(&program, &symbol), capability >= kernel.since(), "{target:?}: {symbol}");
                }
            }
        }
    }
}

#[test]
fn a_device_that_nvrtc_does_not_know_gets_ptx_of_the_newest_that_it_knows() {
    let Some(nvrtc) = found("a_device_that_nvrtc_does_not_know") else { return };
    assert!(matches!(Target::of(nvrtc, 9990), Ok(Target::Ptx(known)) if known >= 90));
    assert!(Target::of(nvrtc, 10).is_err());
}

#[test]
fn compiled_kernels_are_kept_reused_and_mended() {
    let Some(nvrtc) = found("compiled_kernels_are_kept_reused_and_mended") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    let target = Target::Cubin(90);
    let file = cache.join(file_name(nvrtc, target));
    let compiled = kernels(target, Some(&cache)).unwrap();
    let kept = std::fs::read(&file).unwrap();
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "no other file is left");

    // The file's numbers are what is given, not another run of NVRTC.
    let other =
        [&kept[..8], &4u64.to_le_bytes(), &super::compile::hash(b"four").to_le_bytes(), b"four"].concat();
    std::fs::write(&file, &other).unwrap();
    assert_eq!(kernels(target, Some(&cache)).unwrap(), b"four");

    let mut flipped = kept.clone();
    flipped[kept.len() / 2] ^= 1;
    for damaged in [&b""[..], &kept[..20], &kept[..kept.len() - 1], &flipped] {
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(kernels(target, Some(&cache)).unwrap(), compiled);
        assert_eq!(std::fs::read(&file).unwrap(), kept, "a damaged file is written anew");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    if found("a_cache_that_cannot_be_written_is_no_error").is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = file.path().join("kernels");
    assert!(!kernels(Target::Cubin(90), Some(&below)).unwrap().is_empty());
}

#[test]
fn every_target_has_a_file_of_its_own() {
    let Some(nvrtc) = found("every_target_has_a_file_of_its_own") else { return };
    let targets = [Target::Cubin(80), Target::Cubin(90), Target::Ptx(90)];
    let names: std::collections::BTreeSet<_> = targets.map(|target| file_name(nvrtc, target)).into();
    assert_eq!(names.len(), 3);
}

#[test]
fn without_a_driver_it_is_said_why() {
    let found = super::arithmetic(0);
    // With a device there is nothing to complain of; without one the driver or the device is named.
    assert_eq!(found.problem.is_none(), found.capability.is_some() && found.nvrtc.is_some(), "{found:?}");
    assert!(found.problem.is_none_or(|problem| !problem.is_empty()));
}
