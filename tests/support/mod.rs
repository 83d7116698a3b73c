//! What the tests share: weight files written by hand, so that they may also be wrong, and what is said of them then.

// Every test binary compiles this module and takes a part of it.
#![allow(dead_code)]

pub mod gguf;
pub mod judge;
pub mod require;
pub mod targets;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint};
use tch_flux::models::flux1::Flux1Params;
use tch_flux::{Error, FileProblem};

/// Both ways of access.
pub const BOTH: [Access; 2] = [Access::Map, Access::Read];

/// A tensor of a layout: its name, its type and its shape.
pub type Line = (String, String, Vec<i64>);

/// The repository's root, from the folder of whichever package the test is of.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("fixtures").is_dir()).unwrap().to_path_buf()
}

/// The names and shapes of an official file: `fixtures/layouts/NAME.txt`.
pub fn layout(name: &str) -> Vec<Line> {
    let path = root().join(format!("fixtures/layouts/{name}.txt"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines = text.lines().filter(|line| !line.is_empty());
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let dims = fields[2].split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
        (fields[0].to_string(), fields[1].to_string(), dims)
    };
    lines.map(line).collect()
}

/// Bytes of one number.
pub fn width(dtype: &str) -> u64 {
    match dtype {
        "U8" | "I8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => 1,
        "BF16" | "F16" | "I16" => 2,
        "F32" | "I32" => 4,
        "F64" | "I64" => 8,
        _ => panic!("no width for {dtype}"),
    }
}

/// The header's JSON text for these tensors, one after the other, and the length of their bytes.
pub fn header(lines: &[Line]) -> (String, u64) {
    let mut at = 0;
    let mut entries = Vec::new();
    for (name, dtype, shape) in lines {
        let end = at + shape.iter().map(|&d| d as u64).product::<u64>() * width(dtype);
        let name = serde_json::to_string(name).unwrap();
        entries.push(format!(
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        ));
        at = end;
    }
    let mut json = format!("{{{}}}", entries.join(","));
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    (json, at)
}

/// The 8 bytes of the length, the header, the data.
pub fn framed(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A file of these tensors whose data are a hole: it is as long as the true one and takes no room.
pub fn write_sparse(path: &Path, lines: &[Line]) {
    let (json, len) = header(lines);
    let mut file = File::create(path).unwrap();
    file.write_all(&framed(&json, &[])).unwrap();
    file.set_len(8 + json.len() as u64 + len).unwrap();
}

/// The name, type, shape and bytes of a tensor.
pub type Stored = (String, String, Vec<i64>, Vec<u8>);

/// A file of these tensors.
pub fn write_file(path: &Path, tensors: &[Stored]) {
    std::fs::write(path, file_bytes(tensors)).unwrap();
}

/// The bytes of a file of these tensors.
pub fn file_bytes(tensors: &[Stored]) -> Vec<u8> {
    let lines: Vec<Line> = tensors.iter().map(|(n, d, s, _)| (n.clone(), d.clone(), s.clone())).collect();
    let data: Vec<u8> = tensors.iter().flat_map(|(.., bytes)| bytes.clone()).collect();
    framed(header(&lines).0, &data)
}

/// f32 values as a tensor of a file.
pub fn f32s(name: &str, shape: &[i64], values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.into(), "F32".into(), shape.to_vec(), bytes)
}

/// A tensor as it goes into a file, in bf16 or f32.
pub fn stored(name: &str, tensor: &Tensor, kind: Kind) -> Stored {
    let rounded = tensor.detach().to_device(Device::Cpu).to_kind(kind).to_kind(Kind::Float);
    let values = Vec::<f32>::try_from(rounded.contiguous().view([-1])).unwrap();
    let (dtype, bytes): (_, Vec<u8>) = match kind {
        Kind::Float => ("F32", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        // The upper half of an f32.
        Kind::BFloat16 => ("BF16", values.iter().flat_map(|v| v.to_le_bytes()[2..].to_vec()).collect()),
        _ => panic!("no {kind:?} here"),
    };
    (name.into(), dtype.into(), tensor.size(), bytes)
}

/// Every tensor of a store, sorted by name.
pub fn stored_all(vs: &VarStore, kind: Kind) -> Vec<Stored> {
    let variables: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
    variables.iter().map(|(name, tensor)| stored(name, tensor, kind)).collect()
}

/// The tensors of a store, sorted by name.
pub fn variables(vs: &VarStore) -> BTreeMap<String, Tensor> {
    vs.variables().into_iter().collect()
}

/// A file beneath a temporary folder, with the folder, which goes when it is dropped.
pub fn temp(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

/// Opens these bytes in both ways of access, which must be refused alike, under the file's name.
pub fn refused(bytes: impl AsRef<[u8]>) -> FileProblem {
    let (_folder, path) = temp("w.safetensors");
    std::fs::write(&path, bytes).unwrap();
    refused_at(&path)
}

/// As [`refused`], for a file that is there.
pub fn refused_at(path: &Path) -> FileProblem {
    let [one, other] = BOTH.map(|access| problem(Checkpoint::open(path, access), path));
    assert_eq!(one, other);
    one
}

/// What is wrong with the file `at`.
pub fn problem<T>(result: tch_flux::Result<T>, at: &Path) -> FileProblem {
    match result.err().expect("must be refused") {
        Error::File { path, problem } => {
            assert_eq!(path, at);
            targets::check_message(&problem);
            problem
        }
        other => panic!("{other:?}"),
    }
}

/// A FLUX.1 that is small enough to be computed in a moment.
pub fn tiny() -> Flux1Params {
    Flux1Params {
        in_channels: 16,
        out_channels: 16,
        vec_in_dim: 24,
        context_in_dim: 40,
        hidden_size: 64,
        num_heads: 2,
        depth: 1,
        depth_single_blocks: 1,
        axes_dim: [8, 12, 12],
        ..Flux1Params::DEV
    }
}
