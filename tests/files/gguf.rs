//! GGUF files of `fixtures/gguf`, written by the package `gguf` (`scripts/export_gguf.py`): the header, and the bytes
//! that it leads to, are what the package's own reader finds.

use std::path::PathBuf;

use safetensors::Dtype;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::{Access, Checkpoint, Entry, Header, LoadOptions};
use tch_flux::nn::declare;
use tch_flux::quant::{BlockType, Encoding};

use crate::support::{BOTH, f32s, temp, variables, write_file};

fn fixture(name: &str) -> PathBuf {
    crate::support::root().join("fixtures/gguf").join(name)
}

fn open(name: &str, access: Access) -> Checkpoint {
    Checkpoint::open(fixture(&format!("{name}.gguf")), access).unwrap()
}

/// What the package's reader finds in a file.
fn expected(file: &str, tensor: &str) -> Tensor {
    let values = Checkpoint::open(fixture("values.safetensors"), Access::Read).unwrap();
    values.tensor(&format!("{file}:{tensor}")).unwrap()
}

fn entry<'a>(checkpoint: &'a Checkpoint, name: &str) -> &'a Entry {
    &checkpoint.headers()[0].entries[name]
}

fn plain(dtype: Dtype) -> Encoding {
    Encoding::Plain(dtype)
}

#[test]
fn numbers_of_every_plain_type_are_what_the_package_reads() {
    for access in BOTH {
        let checkpoint = open("plain", access);
        assert_eq!(checkpoint.names().count(), 11);
        for (name, dtype, shape) in [
            ("f32.weight", Dtype::F32, &[3, 5][..]),
            ("f16.weight", Dtype::F16, &[3, 5]),
            ("bf16.weight", Dtype::BF16, &[3, 5]),
            ("f64.weight", Dtype::F64, &[3, 5]),
            ("i8.weight", Dtype::I8, &[3, 5]),
            ("i16.weight", Dtype::I16, &[3, 5]),
            ("i32.weight", Dtype::I32, &[3, 5]),
            ("i64.weight", Dtype::I64, &[3, 5]),
            ("vector", Dtype::BF16, &[7]),
            ("scalar", Dtype::F32, &[]),
            ("four", Dtype::F32, &[2, 3, 4, 5]),
        ] {
            assert_eq!(entry(&checkpoint, name).encoding, plain(dtype), "{name}");
            let tensor = checkpoint.tensor(name).unwrap();
            assert_eq!(tensor.size(), shape, "{name}");
            let expected = expected("plain", name).view(shape).to_kind(tensor.kind());
            assert!(tensor.equal(&expected), "{name}");
        }
    }
}

#[test]
fn the_bytes_of_every_block_type_are_where_the_package_reads_them() {
    let bytes = std::fs::read(fixture("blocks.gguf")).unwrap();
    let checkpoint = open("blocks", Access::Map);
    assert_eq!(checkpoint.names().count(), BlockType::ALL.len() + 1);
    for block in BlockType::ALL {
        let name = format!("{}.weight", format!("{block:?}").to_lowercase());
        let entry = entry(&checkpoint, &name);
        assert_eq!(entry.encoding, Encoding::Blocks(block));
        assert_eq!(entry.shape, [3, if block.elements() == 32 { 64 } else { 512 }], "{name}");
        let expected = Vec::<u8>::try_from(expected("blocks", &name).view([-1])).unwrap();
        assert_eq!(bytes[entry.begin as usize..entry.end as usize], expected, "{name}");
    }
}

#[test]
fn metadata_of_every_type_are_kept_as_text() {
    let checkpoint = open("metadata", Access::Read);
    let metadata = &checkpoint.headers()[0].metadata;
    for (key, text) in [
        ("general.architecture", "pig"),
        ("general.alignment", "64"),
        ("test.u8", "200"),
        ("test.i8", "-100"),
        ("test.u16", "60000"),
        ("test.i16", "-30000"),
        ("test.u32", "4000000000"),
        ("test.i32", "-2000000000"),
        ("test.u64", "18446744073709551615"),
        ("test.i64", "-9223372036854775808"),
        ("test.f32", "0.5"),
        ("test.f64", "1e300"),
        ("test.bool", "true"),
        ("test.string", "two\nlines, ünïcödé"),
        ("test.short", "[1, -2, 3]"),
        ("test.words", r#"["a", "b \"c\"", ""]"#),
        ("test.nested", "[[1, 2], [3]]"),
        ("test.long", "[100 f32]"),
        ("tokenizer.ggml.tokens", "[1000 strings]"),
    ] {
        assert_eq!(metadata[key], text, "{key}");
    }
    assert_eq!(metadata.len(), 19);
}

#[test]
fn tensors_lie_where_an_alignment_of_64_puts_them() {
    for access in BOTH {
        let checkpoint = open("metadata", access);
        for name in ["weight", "bias"] {
            assert!(entry(&checkpoint, name).begin.is_multiple_of(64));
            assert!(checkpoint.tensor(name).unwrap().equal(&expected("metadata", name)), "{name}");
        }
    }
}

#[test]
fn comfys_original_shapes_are_the_shapes() {
    let checkpoint = open("comfy", Access::Map);
    let conv = entry(&checkpoint, "conv.weight");
    assert_eq!((conv.encoding, &conv.shape[..]), (Encoding::Blocks(BlockType::Q8_0), &[2, 4, 4, 4][..]));
    assert_eq!((conv.end - conv.begin, conv.numel()), (4 * 34, 128));
    let five = checkpoint.tensor("five.weight").unwrap();
    assert_eq!(five.size(), [2, 3, 2, 2, 4]);
    assert!(five.equal(&expected("comfy", "five.weight").view([2, 3, 2, 2, 4])));
}

#[test]
fn a_file_without_tensors_opens() {
    let checkpoint = open("empty", Access::Map);
    assert_eq!(checkpoint.names().count(), 0);
    assert_eq!(checkpoint.headers()[0].metadata["general.architecture"], "cow");
}

#[test]
fn plain_floats_load_and_borrow_from_the_mapping() {
    let vs = VarStore::new(Device::Cpu);
    let _ = declare(&vs.root(), "weight", &[4, 6]);
    let _ = declare(&vs.root(), "bias", &[4]);
    for (access, borrowed) in [(Access::Map, 1), (Access::Read, 0)] {
        let options = LoadOptions { kind: Some(Kind::Float), ..Default::default() };
        let loaded = open("metadata", access).load(&vs, options).unwrap();
        assert_eq!((loaded.tensors, loaded.borrowed), (2, borrowed));
        for (name, tensor) in variables(&vs) {
            assert!(tensor.equal(&expected("metadata", &name).to_kind(Kind::Float)), "{name}");
        }
    }
}

#[test]
fn a_folder_with_one_gguf_file_opens_and_safetensors_come_first() {
    let (folder, path) = temp("one.gguf");
    std::fs::copy(fixture("metadata.gguf"), &path).unwrap();
    assert_eq!(Checkpoint::open(folder.path(), Access::Map).unwrap().files(), [&path]);
    let beside = folder.path().join("w.safetensors");
    write_file(&beside, &[f32s("a", &[1], &[1.0])]);
    assert_eq!(Checkpoint::open(folder.path(), Access::Map).unwrap().files(), [&beside]);
    std::fs::remove_file(&beside).unwrap();
    std::fs::copy(&path, folder.path().join("other.gguf")).unwrap();
    let error = Checkpoint::open(folder.path(), Access::Map).unwrap_err();
    assert!(matches!(&error, Error::File { .. }) && error.to_string().contains("one.gguf, other.gguf"));
}

#[test]
fn the_name_of_a_file_says_nothing_about_its_format() {
    let (_folder, path) = temp("model.safetensors");
    std::fs::copy(fixture("metadata.gguf"), &path).unwrap();
    assert_eq!(Checkpoint::open(&path, Access::Map).unwrap().names().count(), 2);
}

#[test]
fn a_header_that_goes_on_asks_for_more_and_then_is_the_same() {
    for name in ["plain", "blocks", "metadata", "comfy", "empty"] {
        let bytes = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
        let len = bytes.len() as u64;
        let whole = Header::parse_gguf(&bytes, len).unwrap().unwrap();
        let first = (0..bytes.len()).find(|&n| Header::parse_gguf(&bytes[..n], len).unwrap().is_some());
        let data = whole.entries.values().map(|e| e.begin).min().unwrap_or(len) as usize;
        let first = first.unwrap_or(bytes.len());
        assert!(first <= data && first + 64 > data, "{name}: {first} {data}");
        for n in first..bytes.len() {
            assert_eq!(Header::parse_gguf(&bytes[..n], len).unwrap().unwrap(), whole, "{name} {n}");
        }
    }
}
