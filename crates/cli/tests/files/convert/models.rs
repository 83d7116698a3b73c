//! Small models of every family, and files of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch_flux::checkpoint::{Header, Index};

use crate::support::{Line, Stored, framed, header, layout};

/// What a test writes into the header.
pub const METADATA: &str = r#"{"modelspec.title":"a model","format":"pt"}"#;

/// The names of an official file with the first blocks alone, and every width made small.
pub fn small(name: &str) -> Vec<Line> {
    let widths: &[(i64, i64)] = match name {
        "flux1-dev" => &[
            (3072, 64),
            (4096, 40),
            (6144, 128),
            (9216, 192),
            (12288, 256),
            (15360, 320),
            (18432, 384),
            (21504, 448),
            (768, 24),
            (128, 32),
            (64, 16),
        ],
        "flux2-dev" => &[
            (6144, 64),
            (12288, 128),
            (15360, 48),
            (18432, 192),
            (24576, 256),
            (36864, 384),
            (55296, 576),
            (128, 32),
        ],
        "ae" => &[(512, 128), (256, 64), (128, 32), (32, 8), (16, 4)],
        "flux2-ae" => &[(512, 128), (256, 64), (128, 32), (64, 16), (32, 8)],
        _ => &[(4096, 32), (10240, 48), (32128, 50), (3072, 64), (768, 16), (49408, 50), (77, 9)],
    };
    let block = |name: &str| {
        let numbers = ["double_blocks.", "single_blocks.", "encoder.block.", "text_model.encoder.layers."];
        let number =
            numbers.iter().find_map(|prefix| name.strip_prefix(prefix)?.split('.').next()?.parse().ok());
        number.unwrap_or(0usize)
    };
    let small = |size: i64| widths.iter().find(|(wide, _)| *wide == size).map_or(size, |(_, small)| *small);
    let lines = layout(name).into_iter().filter(|(name, ..)| block(name) < 2);
    lines.map(|(name, dtype, shape)| (name, dtype, shape.into_iter().map(small).collect())).collect()
}

/// Numbers of which none is NaN, and none beyond 2.
pub fn filled(lines: &[Line], seed: u64) -> Vec<Stored> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let mut tensor = |(name, dtype, shape): &Line| {
        let count = shape.iter().product::<i64>() as usize;
        // Exponents from -8 to 0.
        let mut top = || (next() & 0x80) | (0x3b + (next() & 3));
        let mut bytes = Vec::new();
        for _ in 0..count {
            match dtype.as_str() {
                "BF16" => bytes.extend([top().wrapping_mul(7), top()]),
                "F32" => bytes.extend([top(), top().wrapping_mul(11), top().wrapping_mul(13), top()]),
                "I64" => bytes.extend(7i64.to_le_bytes()),
                other => panic!("no {other} here"),
            }
        }
        (name.clone(), dtype.clone(), shape.clone(), bytes)
    };
    lines.iter().map(&mut tensor).collect()
}

/// A small model of an official layout.
pub fn model(name: &str) -> Vec<Stored> {
    filled(&small(name), name.len() as u64)
}

/// A file of these tensors with [`METADATA`].
pub fn write(path: &Path, tensors: &[Stored]) {
    write_with(path, tensors, METADATA);
}

/// A file of these tensors with metadata as JSON.
pub fn write_with(path: &Path, tensors: &[Stored], metadata: &str) {
    let lines: Vec<Line> = tensors.iter().map(|(n, d, s, _)| (n.clone(), d.clone(), s.clone())).collect();
    let (json, _) = header(&lines);
    let mut json = format!("{{\"__metadata__\":{metadata},{}", &json[1..]);
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let data: Vec<u8> = tensors.iter().flat_map(|(.., bytes)| bytes.clone()).collect();
    std::fs::write(path, framed(json, &data)).unwrap();
}

/// What is in a file, an index or a folder: types, shapes and bytes by name, and the metadata of each file.
#[derive(Debug, PartialEq)]
pub struct Contents {
    pub tensors: BTreeMap<String, (String, Vec<i64>, Vec<u8>)>,
    pub metadata: Vec<BTreeMap<String, String>>,
}

pub fn read(path: &Path) -> Contents {
    let mut files: Vec<PathBuf> = vec![path.to_path_buf()];
    if path.is_dir() {
        let all = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        files = all.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
        files.sort();
    } else if path.to_string_lossy().ends_with(".index.json") {
        let index = Index::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        files = index.shards().into_iter().map(|shard| path.with_file_name(shard)).collect();
    }
    let mut contents = Contents { tensors: BTreeMap::new(), metadata: Vec::new() };
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = Header::parse(&bytes[8..8 + len], bytes.len() as u64).unwrap();
        for (name, entry) in header.entries {
            let data = bytes[entry.begin as usize..entry.end as usize].to_vec();
            contents.tensors.insert(name, (entry.encoding.to_string(), entry.shape, data));
        }
        contents.metadata.push(header.metadata);
    }
    contents
}
