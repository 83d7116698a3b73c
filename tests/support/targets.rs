//! What every reader promises of any bytes at all: it returns, and what it lets through holds together. `mutations.rs`
//! and the programs in `fuzz/` look for bytes that break a promise.

use tch_flux::FileProblem;
use tch_flux::checkpoint::lora::parse_names;
use tch_flux::checkpoint::{Header, Index};
use tch_flux::image::{DecodeError, decode, describe, orientation};
use tch_flux::quant::Encoding;

/// A whole safetensors file.
pub fn safetensors_header(data: &[u8]) {
    let Some((first, rest)) = data.split_first_chunk() else { return };
    let file_len = data.len() as u64;
    let json = match Header::length(*first, file_len) {
        Ok(len) => &rest[..len as usize],
        Err(problem) => {
            check_message(&problem);
            rest
        }
    };
    match Header::parse(json, file_len) {
        Ok(header) => check_header(&header, file_len),
        Err(problem) => check_message(&problem),
    }
}

/// A whole GGUF file.
pub fn gguf(data: &[u8]) {
    let file_len = data.len() as u64;
    let whole = Header::parse_gguf(data, file_len);
    match &whole {
        Ok(Some(header)) => check_header(header, file_len),
        Ok(None) => panic!("the whole file is not enough"),
        Err(problem) => check_message(problem),
    }
    // A part of the file is either enough, and then says the same, or asks for more.
    let half = Header::parse_gguf(&data[..data.len() / 2], file_len);
    assert!(half == Ok(None) || half == whole, "{half:?}\n{whole:?}");
    if let Ok(Some(_)) = Header::parse_gguf(data, u64::MAX) {
        panic!("almost all of the file belongs to no tensor");
    }
}

/// An index of shards.
pub fn index(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Index::parse(text) {
        Ok(index) => {
            for shard in index.shards() {
                assert!(!shard.is_empty() && shard != "." && shard != "..", "{shard}");
                assert!(!shard.contains(['/', '\\', ':', '\0']), "{shard}");
                assert_eq!(std::path::Path::new(shard).file_name(), Some(shard.as_ref()));
            }
        }
        Err(problem) => check_message(&problem),
    }
}

/// The keys of a LoRA file, one a line: each is either part of one change or counted among the unknown.
pub fn lora_names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let sorted = parse_names(text.lines());
    let mut places: Vec<&str> = sorted.unknown.iter().map(String::as_str).collect();
    for (module, group) in &sorted.groups {
        assert!(!group.parts.is_empty() && !group.target.module.is_empty(), "{module:?}");
        for key in group.parts.values() {
            assert!(key.starts_with(module), "{key:?} is no key of {module:?}");
            places.push(key);
        }
    }
    let mut names: Vec<&str> = text.lines().collect();
    places.sort_unstable();
    names.sort_unstable();
    assert_eq!(places, names);
    assert!(sorted.maker.is_some() || sorted.groups.is_empty());
}

/// A picture, of which there are as many bytes as its size says; EXIF; and what is neither.
pub fn picture(data: &[u8]) {
    const MOST: u32 = 1 << 20;
    let mut admit = |width: u32, height: u32| match width.checked_mul(height) {
        Some(pixels) if pixels <= MOST => Ok(()),
        _ => Err(DecodeError::Size(format!("{width}x{height}"))),
    };
    match decode(data, &mut admit) {
        Ok(picture) => {
            let pixels = picture.width as usize * picture.height as usize;
            assert!(pixels > 0 && (1..=4).contains(&picture.channels), "{} channels", picture.channels);
            assert_eq!(picture.samples.len(), pixels * picture.channels);
            assert_eq!(picture.alpha().map(|alpha| alpha.len()), picture.has_alpha().then_some(pixels));
            assert_eq!(picture.into_image().rgb.len(), pixels * 3);
        }
        Err(problem) => check_text(&problem.to_string()),
    }
    assert!(orientation(data).is_none_or(|orientation| (1..=8).contains(&orientation)));
    check_text(&describe(data).to_string());
}

/// Every tensor lies in the file, apart from the others, in just as many bytes as its shape takes.
pub fn check_header(header: &Header, file_len: u64) {
    let mut places = Vec::new();
    for (name, entry) in &header.entries {
        assert_eq!(*name, entry.name);
        assert!(!name.is_empty() && !name.contains(['/', '\\', '\0']), "{name:?}");
        assert!(entry.begin <= entry.end && entry.end <= file_len, "{entry:?}");
        assert!(entry.shape.iter().all(|&d| d >= 0), "{entry:?}");
        let numbers = entry.shape.iter().map(|&d| i128::from(d)).product::<i128>();
        assert_eq!(numbers, i128::from(entry.numel()), "{entry:?}");
        let bits = match entry.encoding {
            Encoding::Plain(dtype) => numbers * dtype.bitsize() as i128,
            Encoding::Blocks(block) => {
                assert_eq!(numbers % block.elements() as i128, 0, "{entry:?}");
                numbers / block.elements() as i128 * block.bytes() as i128 * 8
            }
        };
        assert_eq!(bits, 8 * i128::from(entry.end - entry.begin), "{entry:?}");
        places.push((entry.begin, entry.end));
    }
    places.sort();
    assert!(places.windows(2).all(|two| two[0].1 <= two[1].0), "{places:?}");
}

/// A message is for a terminal: neither long nor able to steer it.
pub fn check_message(problem: &FileProblem) {
    check_text(&problem.to_string());
}

fn check_text(text: &str) {
    assert!(text.len() < 2000, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
