//! Conversions of small models: there and back, every kind, and what stands on the disk after a failure.

mod disk;
mod kinds;
mod loras;
mod merges;
mod models;
mod reference;
mod rooms;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tch_flux::checkpoint::Layout;
use tch_flux::convert::{Conversion, Converted, convert};

use models::{model, read, write};

/// Converts, without a listener.
fn run(input: &Path, output: &Path, conversion: &Conversion) -> tch_flux::Result<Converted> {
    convert(input, output, conversion, &mut |_| ControlFlow::Continue(()))
}

fn to(layout: Layout) -> Conversion {
    Conversion { layout: Some(layout), ..Conversion::default() }
}

/// A folder with a file of a small official model in it.
fn official(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.safetensors"));
    write(&path, &model(name));
    (folder, path)
}

const FAMILIES: [&str; 6] = ["flux1-dev", "flux2-dev", "ae", "flux2-ae", "t5-xxl-encoder", "clip-l-text"];

#[test]
fn every_family_comes_back_from_every_layout_byte_for_byte() {
    for name in FAMILIES {
        let (folder, path) = official(name);
        let before = read(&path);
        for layout in [Layout::Official, Layout::Diffusers, Layout::Comfy] {
            for shard_size in [None, Some(4_000)] {
                let there = folder.path().join(format!("{layout:?}-{shard_size:?}"));
                let done = run(&path, &there, &Conversion { shard_size, ..to(layout) }).unwrap();
                assert_eq!(done.notes, [""; 0], "{name}");
                assert_eq!(done.tensors, before.tensors.len().max(done.tensors));
                assert_eq!(done.files.len() > 2, shard_size.is_some(), "{name}: {:?}", done.files);
                assert!(read(&there).metadata.iter().all(|m| *m == before.metadata[0]), "{name}");
                let back = folder.path().join(format!("{layout:?}-{shard_size:?}.safetensors"));
                run(&there, &back, &to(Layout::Official)).unwrap();
                assert_eq!(read(&back), before, "{name} from {layout:?}");
            }
        }
    }
}

#[test]
fn the_other_layouts_have_their_names() {
    for (name, layout, expected) in [
        ("flux1-dev", Layout::Diffusers, "single_transformer_blocks.1.proj_mlp.weight"),
        ("flux1-dev", Layout::Comfy, "model.diffusion_model.double_blocks.1.img_attn.qkv.weight"),
        ("flux2-dev", Layout::Diffusers, "single_transformer_blocks.1.attn.to_qkv_mlp_proj.weight"),
        ("ae", Layout::Diffusers, "decoder.up_blocks.0.resnets.2.conv1.weight"),
        ("ae", Layout::Comfy, "decoder.up.3.block.2.conv1.weight"),
        ("flux2-ae", Layout::Diffusers, "post_quant_conv.weight"),
    ] {
        let (folder, path) = official(name);
        let out = folder.path().join("out.safetensors");
        run(&path, &out, &to(layout)).unwrap();
        assert!(read(&out).tensors.contains_key(expected), "{name}: {expected}");
    }
}

#[test]
fn shards_have_an_index_and_are_no_larger_than_asked_for() {
    let (folder, path) = official("flux1-dev");
    let out = folder.path().join("out.safetensors");
    let asked = Conversion { shard_size: Some(200_000), ..Conversion::default() };
    let done = run(&path, &out, &asked).unwrap();
    let index = folder.path().join("out.safetensors.index.json");
    assert_eq!(done.files.last(), Some(&index));
    let shards = done.files.len() - 1;
    assert_eq!(done.files[0], folder.path().join(format!("out-00001-of-{shards:05}.safetensors")));
    for shard in &done.files[..shards] {
        assert!(read(shard).tensors.values().map(|t| t.2.len()).sum::<usize>() <= 200_000);
    }
    assert_eq!(read(&index).tensors, read(&path).tensors);
    let text: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&index).unwrap()).unwrap();
    assert_eq!(text["metadata"]["total_size"], done.bytes);
}

#[test]
fn another_number_of_shards_leaves_none_of_the_old_ones() {
    let (folder, path) = official("ae");
    let out = folder.path().join("out");
    for shard_size in [Some(300_000), None, Some(500_000)] {
        let asked = Conversion { shard_size, overwrite: true, ..Conversion::default() };
        let mut files = run(&path, &out, &asked).unwrap().files;
        files.sort();
        let mut there: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).collect();
        there.sort();
        assert_eq!(there, files);
        assert_eq!(read(&out).tensors, read(&path).tensors);
    }
    let asked = Conversion::default();
    assert!(matches!(run(&path, &out, &asked), Err(tch_flux::Error::File { .. })), "not without being asked");
}
