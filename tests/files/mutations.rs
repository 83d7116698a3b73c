//! Right files with something changed in them: read, each either keeps the promises of `support/targets.rs` or is refused
//! with an error of a file, and none panics or takes long. The same changes in every run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tch_flux::Error;
use tch_flux::checkpoint::{Access, Checkpoint};

use crate::support::{BOTH, f32s, file_bytes, targets, temp, write_file};

/// What a number that lies is likely to be.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    7,
    255,
    1 << 15,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 60,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// A generator of numbers that are random enough (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    /// A file with one to three changes.
    fn change(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..=self.below(3) {
            self.change_once(&mut bytes);
        }
        bytes
    }

    fn change_once(&mut self, bytes: &mut Vec<u8>) {
        let (at, other) = (self.below(bytes.len()), self.below(bytes.len()));
        let len = self.below(32).min(bytes.len() - at.max(other));
        if bytes.is_empty() {
            return;
        }
        match self.below(8) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => bytes.copy_within(other..other + len, at),
            5 => {
                let copy = bytes[other..other + len].to_vec();
                bytes.splice(at..at, copy);
            }
            6 => {
                let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                let len = [4, 8][self.below(2)].min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&number[..len]);
            }
            _ => self.change_digits(bytes, at),
        }
    }

    /// Puts another number in the place of the next one that is written in digits.
    fn change_digits(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(begin) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else { return };
        let end = (begin..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
        let number = NUMBERS[self.below(NUMBERS.len())].to_string();
        let number = [&number[..], "-1", "1e400", "0.5"][self.below(4)];
        bytes.splice(begin..end, number.bytes());
    }
}

fn fixture(path: &str) -> PathBuf {
    crate::support::root().join("fixtures").join(path)
}

fn safetensors() -> Vec<Vec<u8>> {
    let ramp: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let tensors = [f32s("a.bias", &[4], &ramp[..4]), f32s("a.weight", &[4, 6], &ramp)];
    let header =
        r#"{"__metadata__":{"format":"pt"},"q":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}}"#;
    vec![
        file_bytes(&tensors),
        crate::support::framed(header, &[0; 4]),
        crate::support::framed("{}", &[]),
        std::fs::read(fixture("gguf/values.safetensors")).unwrap(),
    ]
}

fn ggufs() -> Vec<Vec<u8>> {
    let files = ["plain", "blocks", "metadata", "comfy", "empty"];
    files.map(|name| std::fs::read(fixture(&format!("gguf/{name}.gguf"))).unwrap()).to_vec()
}

fn indexes() -> Vec<Vec<u8>> {
    let index = r#"{"metadata":{"total_size":112},"weight_map":{"a.bias":"one","a.weight":"two"}}"#;
    vec![index.into(), br#"{"weight_map":{}}"#.to_vec()]
}

/// Hands `count` changed files to the target; the slowest must not be slow.
fn change(wholes: &[Vec<u8>], count: usize, target: fn(&[u8])) {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for whole in wholes {
        target(whole);
        for _ in 0..count / wholes.len() {
            let bytes = random.change(whole);
            let begun = Instant::now();
            target(&bytes);
            assert!(begun.elapsed() < Duration::from_secs(5), "{bytes:?}");
        }
    }
}

#[test]
fn changed_safetensors_files_keep_the_promises() {
    change(&safetensors(), 100_000, targets::safetensors_header);
}

#[test]
fn changed_gguf_files_keep_the_promises() {
    change(&ggufs(), 100_000, targets::gguf);
}

#[test]
fn changed_indexes_keep_the_promises() {
    change(&indexes(), 100_000, targets::index);
}

#[test]
fn changed_pictures_keep_the_promises() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/picture");
    let files = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let wholes: Vec<_> = files.into_iter().map(|file| std::fs::read(file).unwrap()).collect();
    change(&wholes, 20_000, targets::picture);
}

/// The files of `fuzz/corpus`, with those among them that once broke a promise.
#[test]
fn what_the_fuzzers_begin_with_keeps_the_promises() {
    let corpus = crate::support::root().join("fuzz/corpus");
    for (name, target) in [
        ("safetensors_header", targets::safetensors_header as fn(&[u8])),
        ("gguf", targets::gguf),
        ("index", targets::index),
        ("lora_names", targets::lora_names),
        ("picture", targets::picture),
    ] {
        let files: Vec<_> = std::fs::read_dir(corpus.join(name)).unwrap().collect();
        assert!(files.len() > 10, "{name}");
        files.into_iter().for_each(|file| target(&std::fs::read(file.unwrap().path()).unwrap()));
    }
}

/// Opens changed files and takes every tensor out of those that open.
fn open_changed(name: &str, wholes: &[Vec<u8>], count: usize) -> (usize, usize) {
    let (folder, path) = temp(name);
    let ramp: Vec<f32> = (0..24).map(|i| i as f32).collect();
    write_file(&folder.path().join("one"), &[f32s("a.bias", &[4], &ramp[..4])]);
    write_file(&folder.path().join("two"), &[f32s("a.weight", &[4, 6], &ramp)]);
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let (mut good, mut bad) = (0, 0);
    for i in 0..count {
        std::fs::write(&path, random.change(&wholes[i % wholes.len()])).unwrap();
        for access in BOTH {
            match read_all(&path, access) {
                Ok(()) => good += 1,
                Err(Error::File { .. }) => bad += 1,
                // A shard of another name.
                Err(Error::Io { path: named, .. }) => {
                    assert_eq!(named.parent(), path.parent());
                    bad += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    (good, bad)
}

fn read_all(path: &Path, access: Access) -> tch_flux::Result<()> {
    let checkpoint = Checkpoint::open(path, access)?;
    let _ = (checkpoint.family(), checkpoint.bytes(), checkpoint.parameters(), checkpoint.main_kind());
    for name in checkpoint.names() {
        match checkpoint.tensor(name) {
            Ok(tensor) => assert_eq!(Some(tensor.size()), checkpoint.shape(name)),
            // An encoding that libtorch has no kind for.
            Err(Error::File { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

#[test]
fn changed_files_open_whole_or_are_refused_by_name() {
    for (name, wholes) in
        [("w.safetensors", safetensors()), ("w.gguf", ggufs()), ("w.safetensors.index.json", indexes())]
    {
        let (good, bad) = open_changed(name, &wholes, 1000);
        assert!(good > 50 && bad > 50, "{name}: {good} opened, {bad} refused");
    }
}
