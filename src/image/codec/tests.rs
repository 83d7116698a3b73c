use std::path::Path;

use super::*;

fn decoded(file: &[u8]) -> Result<Decoded, DecodeError> {
    decode(file, &mut within_bounds)
}

/// What scripts/export_pictures.py wrote: files by their names, and what Pillow reads of them.
fn fixture() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pictures/decoded.safetensors");
    std::fs::read(path).unwrap()
}

/// JPEGs and what needs no arithmetic have Pillow's levels; on white, and in a lossy WebP, a level or two may be rounded
/// otherwise.
#[test]
fn pictures_are_those_that_pillow_reads() {
    let fixture = fixture();
    let tensors = safetensors::SafeTensors::deserialize(&fixture).unwrap();
    let mut counts = BTreeMap::<&str, usize>::new();
    for name in tensors.names().into_iter().filter(|name| !name.ends_with(".rgb")) {
        let pillow = tensors.tensor(&format!("{name}.rgb")).unwrap();
        let [height, width, 3] = *pillow.shape() else { panic!("{name}: {:?}", pillow.shape()) };
        let image = decoded(tensors.tensor(name).unwrap().data())
            .unwrap_or_else(|problem| panic!("{name}: {problem}"));
        let image = image.into_image();
        assert_eq!((image.width as usize, image.height as usize), (width, height), "{name}");
        let apart = image.rgb.iter().zip(pillow.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let most = match name {
            _ if name.starts_with("webp/lossy") => 2,
            _ if ["alpha", "clear", "key"].iter().any(|word| name.contains(word)) => 1,
            _ => 0,
        };
        assert!(apart <= most, "{name}: {apart} levels apart");
        *counts.entry(name.split('/').next().unwrap()).or_default() += 1;
    }
    for (group, least) in [("exif", 60), ("jpeg", 110), ("png", 20)] {
        assert!(counts[group] >= least, "{counts:?}");
    }
}

#[test]
fn no_beginning_of_a_picture_is_one_and_damage_never_panics() {
    let fixture = fixture();
    let tensors = safetensors::SafeTensors::deserialize(&fixture).unwrap();
    let mut seed = 1u32;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    for name in [
        "jpeg/420-3x13-progressive",
        "jpeg/420-14x14",
        "jpeg/restart_marker_blocks",
        "jpeg/cmyk",
        "png/rgba",
        "png/palette-4",
        "png/interlaced",
        "webp/lossless-alpha",
        "webp/lossy-alpha",
        "webp/lossy-opaque",
        "webp/animated",
    ] {
        let file = tensors.tensor(name).unwrap_or_else(|_| panic!("{name}")).data().to_vec();
        for len in 0..file.len() {
            assert!(decoded(&file[..len]).is_err(), "{name}: {len} of {} bytes", file.len());
        }
        for _ in 0..400 {
            let mut file = file.clone();
            for _ in 0..1 + random(6) {
                let at = random(file.len());
                file[at] = random(256) as u8;
            }
            let _ = decoded(&file);
        }
    }
}

/// The frames of a webcam or of a video in Motion JPEG have no Huffman tables of their own.
#[test]
fn a_jpeg_without_huffman_tables_has_the_usual_ones() {
    let fixture = fixture();
    let tensors = safetensors::SafeTensors::deserialize(&fixture).unwrap();
    for name in ["jpeg/420-14x14", "jpeg/cmyk", "jpeg/restart_marker_blocks"] {
        let file = tensors.tensor(name).unwrap_or_else(|_| panic!("{name}")).data();
        let (mut frame, mut at, mut tables) = (file[..2].to_vec(), 2, 0);
        while file[at + 1] != 0xda {
            let end = at + 2 + usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
            match file[at + 1] {
                0xc4 => tables += 1,
                _ => frame.extend_from_slice(&file[at..end]),
            }
            at = end;
        }
        frame.extend_from_slice(&file[at..]);
        assert!(tables > 0, "{name}");
        assert_eq!(decoded(&frame), decoded(file), "{name}");
    }
}

/// Of a text that is a few bytes in the file, and hundreds of megabytes in memory, nothing is kept.
#[test]
fn texts_that_swell_are_left_aside() {
    let mut file = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut file, 1, 1);
    encoder.set_color(::png::ColorType::Grayscale);
    encoder.add_text_chunk("short".into(), "kept".into()).unwrap();
    encoder.add_ztxt_chunk("long".into(), "x".repeat(20 << 20)).unwrap();
    for i in 0..5 {
        encoder.add_ztxt_chunk(format!("some {i}"), "x".repeat(5 << 20)).unwrap();
    }
    encoder.write_header().unwrap().write_image_data(&[7]).unwrap();
    let texts = decoded(&file).unwrap().texts;
    assert_eq!(texts.keys().collect::<Vec<_>>(), ["short", "some 0", "some 1", "some 2"]);
}

#[test]
fn a_jpeg_of_endless_scans_is_refused() {
    let fixture = fixture();
    let tensors = safetensors::SafeTensors::deserialize(&fixture).unwrap();
    let file = tensors.tensor("jpeg/420-3x13-progressive").unwrap().data();
    let last = file.windows(2).rposition(|marker| marker == b"\xff\xda").unwrap();
    let (start, scan) = (&file[..last], &file[last..file.len() - 2]);
    let times = |count: usize| [start, &scan.repeat(count), b"\xff\xd9"].concat();
    assert!(decoded(&times(1)).is_ok() && decoded(&times(80)).is_ok());
    let problem = decoded(&times(200)).unwrap_err().to_string();
    assert!(problem.contains("more than 100 scans"), "{problem}");
}

/// A PNG of one row.
fn png(
    colour: ::png::ColorType,
    depth: ::png::BitDepth,
    width: u32,
    trns: Option<&[u8]>,
    bytes: &[u8],
) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut file, width, 1);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if let Some(trns) = trns {
        encoder.set_trns(trns.to_vec());
    }
    encoder.write_header().unwrap().write_image_data(bytes).unwrap();
    file
}

#[test]
fn hidden_colours_do_not_shine_through() {
    use ::png::{BitDepth, ColorType};
    let rgb = |file: &[u8]| decoded(file).unwrap().into_image().rgb;
    let pixels = [9, 8, 7, 0, 9, 8, 7, 255, 0, 0, 0, 128, 255, 0, 100, 127];
    let white = [255, 255, 255, 9, 8, 7, 127, 127, 127, 255, 128, 178];
    assert_eq!(rgb(&png(ColorType::Rgba, BitDepth::Eight, 4, None, &pixels)), white);
    assert_eq!(
        rgb(&png(ColorType::GrayscaleAlpha, BitDepth::Eight, 2, None, &[9, 0, 9, 255])),
        [255, 255, 255, 9, 9, 9]
    );
    // A key of 16 bits counts before they become 8, and one of 2 bits before they become 8.
    let wide = png(ColorType::Grayscale, BitDepth::Sixteen, 2, Some(&[7, 1]), &[7, 1, 7, 2]);
    assert_eq!(rgb(&wide), [255, 255, 255, 7, 7, 7]);
    let narrow = png(ColorType::Grayscale, BitDepth::Two, 4, Some(&[0, 1]), &[0b00_01_10_11]);
    assert_eq!(rgb(&narrow), [0, 0, 0, 255, 255, 255, 170, 170, 170, 255, 255, 255]);
}

#[test]
fn a_mask_is_light_and_has_no_transparency() {
    use ::png::{BitDepth, ColorType};
    let mask = |bytes: &[u8]| {
        decoded(&png(ColorType::GrayscaleAlpha, BitDepth::Eight, 2, None, bytes)).unwrap().into_mask()
    };
    assert_eq!(mask(&[200, 255, 3, 255]).unwrap().chosen, [200, 3]);
    assert_eq!(mask(&[200, 255, 3, 254]).unwrap_err(), DecodeError::TransparentMask);
}

#[test]
fn sizes_are_asked_for_before_there_is_memory() {
    use ::png::{BitDepth, ColorType};
    let file = png(ColorType::Grayscale, BitDepth::Eight, 3, None, &[1, 2, 3]);
    let refused = decode(&file, &mut |width, height| Err(DecodeError::Size(format!("{width} by {height}"))));
    assert_eq!(refused.unwrap_err(), DecodeError::Size("3 by 1".into()));
    assert!(within_bounds(MAX_SIDE, MAX_SIDE).is_ok() && within_bounds(MAX_SIDE + 1, 1).is_err());
    // A JPEG of 65,535 pixels a side, which would take 12 GB.
    let huge = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0\x03\x11\0";
    assert_eq!(decoded(huge).unwrap_err().to_string(), "65535x65535 is more than 16384 pixels a side");
    assert_eq!(
        decoded(b"\xff\xd8\xff\xc0\0\x11\x08\0\x07\0\0\x03\x01\x11\0\x02\x11\0\x03\x11\0")
            .unwrap_err()
            .to_string(),
        "it has no pixels"
    );
}

#[test]
fn jpegs_that_are_not_read_say_why() {
    let frame =
        |marker: u8, rest: &[u8]| [b"\xff\xd8\xff", &[marker, 0, rest.len() as u8 + 2][..], rest].concat();
    let three = |precision: u8, height: u8, first: u8| {
        [precision, 0, height, 0, 7, 3, 1, first, 0, 2, 0x21, 0, 3, 0x11, 0]
    };
    for (file, says) in [
        (frame(0xc9, &three(8, 7, 0x11)), "arithmetic coding"),
        (frame(0xca, &three(8, 7, 0x11)), "arithmetic coding"),
        (frame(0xc3, &three(8, 7, 0x11)), "lossless"),
        (frame(0xc5, &three(8, 7, 0x11)), "hierarchical"),
        (frame(0xf7, &three(8, 7, 0x11)), "JPEG-LS"),
        (frame(0xc1, &three(12, 7, 0x11)), "12 bits"),
        (frame(0xc0, &three(8, 0, 0x11)), "a height that follows"),
        (frame(0xc0, &three(8, 7, 0x31)), "whole fractions"),
        (frame(0xc0, &[8, 0, 7, 0, 7, 2, 1, 0x11, 0, 2, 0x11, 0]), "a number of channels"),
    ] {
        let problem = decoded(&file).unwrap_err();
        assert!(
            matches!(problem, DecodeError::Unsupported { .. }) && problem.to_string().contains(says),
            "{problem}"
        );
    }
}

/// The formats that are written with the features of this build.
fn written() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| cfg!(feature = "webp") || *format != Format::Webp)
}

#[test]
fn what_is_written_is_read_with_its_texts() {
    let image = Image { width: 37, height: 21, rgb: (0..37 * 21 * 3).map(|i| (i / 9 % 256) as u8).collect() };
    let short = [("parameters", "a red circle, 円"), ("tch-flux", "{\"seed\":1}")];
    // Longer than a segment of a JPEG.
    let long = "prompt ".repeat(30_000);
    for texts in [&short[..0], &short[..1], &short, &[("parameters", &long[..]), ("tch-flux", &long)]] {
        let texts =
            BTreeMap::from_iter(texts.iter().map(|(key, text)| (key.to_string(), text.trim().to_string())));
        for format in written() {
            let file = image.encode(format, 95, &texts).unwrap();
            assert_eq!(Format::of_bytes(&file), Some(format));
            let read = decoded(&file).unwrap();
            assert!(read.texts == texts, "{format:?}");
            let psnr = read.into_image().psnr(&image);
            assert!(psnr.is_none_or(|psnr| format != Format::Png && psnr > 30.0), "{format:?}: {psnr:?}");
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let of =
        |width: u32, height: u32| Image { width, height, rgb: vec![0; 3 * width as usize * height as usize] };
    let encode = |image: &Image, format| image.encode(format, 90, &BTreeMap::new());
    for format in written().filter(|format| *format != Format::Png) {
        let side = format.max_side() + 1;
        let problem = encode(&of(side, 1), format).unwrap_err().to_string();
        assert!(problem.contains(&format!("{} pixels a side", side - 1)), "{problem}");
        assert!(encode(&of(1, side - 1), format).is_ok());
        assert!(encode(&of(0, 0), format).is_err());
        assert!(encode(&Image { rgb: vec![0; 3], ..of(64, 64) }, format).is_err());
    }
}
