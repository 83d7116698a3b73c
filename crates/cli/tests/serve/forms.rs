//! Edits: forms with pictures.

use std::io::Cursor;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tch_flux::image::{Format, Image};

use crate::client::{Answer, EDITS, edit, events, form, generate, metric, send};
use crate::{CIRCLE, shared, small};

/// A PNG of one colour, with alpha or without.
fn png(width: u32, height: u32, pixel: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(Cursor::new(&mut file), width, height);
    encoder.set_color(if pixel.len() == 4 { png::ColorType::Rgba } else { png::ColorType::Rgb });
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixel.repeat((width * height) as usize)).unwrap();
    writer.finish().unwrap();
    file
}

/// A PNG that promises pixels and has none.
fn bomb(side: u32) -> Vec<u8> {
    let mut file = png(1, 1, &[0; 3]);
    file[16..20].copy_from_slice(&side.to_be_bytes());
    file[20..24].copy_from_slice(&side.to_be_bytes());
    // The checksum of the header, as it is now.
    let crc = !file[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    file[29..33].copy_from_slice(&crc.to_be_bytes());
    file
}

fn red() -> Vec<u8> {
    png(64, 64, &[200, 30, 30])
}

fn with_image(image: &[u8], more: &[(&str, Option<&str>, &[u8])]) -> Answer {
    let parts = [&[("prompt", None, CIRCLE.as_bytes()), ("image", Some("a.png"), image)][..], more].concat();
    edit(shared(), &parts)
}

const STEPS: (&str, Option<&str>, &[u8]) = ("num_inference_steps", None, b"2");

#[test]
fn an_edit_begins_with_its_picture() {
    let draw = |strength: &str| {
        let fields = [
            ("strength", None, strength.as_bytes()),
            ("seed", None, b"3"),
            ("num_inference_steps", None, b"10"),
        ];
        let answer = with_image(&red(), &fields);
        let body = answer.json();
        assert_eq!((&body["size"], &body["data"][0]["seed"]), (&Value::from("64x64"), &Value::from(3)));
        assert_eq!(body["usage"]["input_tokens_details"]["image_tokens"], 16);
        let file = answer.pictures().remove(0);
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let far = |(i, byte): (usize, &u8)| f64::from(byte.abs_diff([200, 30, 30][i % 3]));
        pixels.iter().enumerate().map(far).sum::<f64>() / pixels.len() as f64
    };
    let (near, far) = (draw("0.1"), draw("1"));
    assert!(near * 2.0 < far, "{near} {far}");
}

#[test]
fn all_fields_come_as_text_and_are_checked() {
    let fields: [(&str, Option<&str>, &[u8]); 8] = [
        ("n", None, b"2"),
        ("size", None, b"96x64"),
        ("output_format", None, b"jpeg"),
        ("output_compression", None, b"80"),
        ("model", None, b""),
        ("input_fidelity", None, b"high"),
        ("stream", None, b"false"),
        STEPS,
    ];
    let answer = with_image(&red(), &fields);
    assert_eq!(answer.pictures().len(), 2);
    assert_eq!(answer.json()["size"], "96x64");
    for (name, value) in [
        ("n", "0"),
        ("n", "two"),
        ("n", ""),
        ("strength", "0"),
        ("strength", "1.1"),
        ("strength", "NaN"),
        ("size", "1x1"),
        ("seed", "-1"),
        ("stream", "yes"),
        ("partial_images", "9"),
    ] {
        with_image(&red(), &[(name, None, value.as_bytes())]).is_error(400, name);
    }
    with_image(&red(), &[("user", None, b"\xff")]).is_error(400, "user");
    with_image(&red(), &[("strenght", None, b"1")]).is_error(400, "strenght");
    edit(shared(), &[("image", Some("a.png"), &red())]).is_error(400, "prompt");
    edit(shared(), &[("prompt", None, b"a")]).is_error(400, "image");
}

/// Which of two is meant cannot be known, and a word is no picture although base64 has its letters.
#[test]
fn a_field_comes_once_and_a_word_is_no_picture() {
    let error = with_image(&red(), &[("seed", None, b"1"), ("seed", None, b"2")]).is_error(400, "seed");
    assert!(error["message"].as_str().unwrap().contains("twice"), "{error}");
    for word in [&b"null"[..], b"undefined", b"none", b"true", b"dGV4dA=="] {
        let error = with_image(&red(), &[("mask", None, word)]).is_error(400, "mask");
        assert!(error["message"].as_str().unwrap().contains("text"), "{error}");
    }
}

#[test]
fn an_edit_can_be_a_stream() {
    let answer = with_image(
        &red(),
        &[("stream", None, b"true"), ("partial_images", None, b"1"), ("strength", None, b"1")],
    );
    let names: Vec<_> = events(&answer.text()).into_iter().map(|event| event.name.unwrap()).collect();
    assert_eq!(names, ["image_edit.partial_image", "image_edit.completed"]);
}

#[test]
fn a_form_without_a_boundary_is_refused() {
    let (_, body) = form(&[("prompt", None, b"a"), ("image", Some("a.png"), &red())]);
    for content_type in
        ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary"]
    {
        let answer = send(shared(), "POST", EDITS, &[("content-type", content_type)], &body);
        assert_eq!(answer.is_error(400, "")["code"], "invalid_form", "{content_type}");
    }
    // Another than the body's, a body that ends in its middle, and none at all.
    let (content_type, body) = form(&[("prompt", None, b"a"), ("image", Some("a.png"), &red())]);
    for body in [&body[..body.len() / 2], &body[..body.len() - 10], b"", b"nonsense"] {
        let answer = send(shared(), "POST", EDITS, &[("content-type", &content_type)], body);
        assert_eq!((answer.status, answer.error()["type"].as_str()), (400, Some("invalid_request_error")));
    }
    send(shared(), "POST", EDITS, &[("content-type", "application/json")], b"{}").is_error(415, "");
}

#[test]
fn seventeen_images_are_refused() {
    let image = red();
    for name in ["image", "image[]"] {
        let parts =
            [vec![("prompt", None, CIRCLE.as_bytes())], vec![(name, Some("a.png"), &image[..]); 17]].concat();
        let error = edit(shared(), &parts).is_error(400, "image");
        assert_eq!(error["code"], "too_many_images");
    }
    let error = with_image(&image, &[("image[]", Some("b.png"), &image)]).is_error(400, "image");
    assert!(error["message"].as_str().unwrap().contains("at most 1"), "as many as the model takes: {error}");
    let many: Vec<(&str, Option<&str>, &[u8])> = vec![("user", None, b"a"); 70];
    assert_eq!(with_image(&image, &many).is_error(400, "")["code"], "invalid_form");
}

#[test]
fn a_picture_comes_in_whatever_its_client_calls_a_list() {
    let image = red();
    let draw = |name: &str| {
        edit(shared(), &[("prompt", None, b"a"), (name, Some("a.png"), &image), ("seed", None, b"1"), STEPS])
    };
    let plain = draw("image").pictures();
    for name in ["image[]", "image[0]", "image[1]", "image[15]"] {
        assert_eq!(draw(name).pictures(), plain, "{name}");
    }
    for name in [
        "images",
        "images[]",
        "images[0]",
        "image_1",
        "image_0",
        "image1",
        "image.0",
        "Image",
        "file",
        "files",
        "files[]",
        "init_image",
        "input_image",
        "picture",
        "image[a]",
        "image_url",
        "reference_images",
    ] {
        let error = draw(name).is_error(400, name);
        assert_eq!(error["code"], "unknown_parameter");
        let text = error["message"].as_str().unwrap();
        assert!(text.contains("`image`") && text.contains("`image[]`") && !text.contains("UTF-8"), "{text}");
    }
    let error = draw("mask_image").is_error(400, "mask_image");
    assert!(error["message"].as_str().unwrap().contains("`mask`"), "{error}");
    let error = draw("prompt").is_error(400, "prompt");
    assert!(error["message"].as_str().unwrap().contains("prompt is text"), "{error}");
}

#[test]
fn pictures_with_places_are_in_their_order() {
    let (first, second) = (png(64, 64, &[200, 30, 30]), png(64, 64, &[30, 30, 200]));
    let draw = |parts: &[(&str, &[u8])]| {
        let files = parts.iter().map(|(name, file)| (*name, Some("a.png"), *file));
        let fields = [
            ("prompt", None, &b"a"[..]),
            ("as", None, b"reference"),
            ("size", None, b"64x64"),
            ("seed", None, b"1"),
            STEPS,
        ];
        edit(shared(), &fields.into_iter().chain(files).collect::<Vec<_>>()).pictures()
    };
    let right = draw(&[("image", &first), ("image", &second)]);
    assert_eq!(draw(&[("image[0]", &first), ("image[1]", &second)]), right);
    assert_eq!(draw(&[("image[1]", &second), ("image[0]", &first)]), right);
    assert_ne!(draw(&[("image[0]", &second), ("image[1]", &first)]), right);
}

#[test]
fn lists_of_numbers_may_have_places_too() {
    let sigmas = |parts: &[(&str, &str)]| {
        let fields = parts.iter().map(|(name, text)| (*name, None, text.as_bytes()));
        with_image(
            &red(),
            &fields.chain([("strength", None, &b"1"[..]), ("seed", None, b"1")]).collect::<Vec<_>>(),
        )
    };
    let right = sigmas(&[("sigmas", "1,0.5")]).pictures();
    assert_eq!(sigmas(&[("sigmas[0]", "1"), ("sigmas[1]", "0.5")]).pictures(), right);
    assert_eq!(sigmas(&[("sigmas[]", "1"), ("sigmas[]", "0.5")]).pictures(), right);
    let error = sigmas(&[("sigmas[1]", "0.5"), ("sigmas[0]", "1")]).is_error(400, "sigmas");
    assert!(error["message"].as_str().unwrap().contains("sigmas[0] is expected"), "{error}");
    sigmas(&[("prompt[0]", "b")]).is_error(400, "prompt[0]");
}

#[test]
fn truncated_and_damaged_pictures_are_refused() {
    let whole = png(64, 64, &[1, 2, 3]);
    for file in [
        &whole[..whole.len() / 2],
        &whole[..40],
        &whole[..8],
        b"",
        b"GIF89a........",
        b"\xff\xd8\xff\xe0",
        b"RIFF\0\0\0\0WEBP",
    ] {
        assert_eq!(with_image(file, &[]).is_error(400, "image")["code"], "invalid_image");
    }
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    with_image(&damaged, &[]).is_error(400, "image");
    with_image(&red(), &[("mask", Some("m.png"), &whole[..50])]).is_error(400, "mask");
}

#[test]
fn a_bomb_of_a_png_is_refused_before_it_is_decoded() {
    let before = metric(shared(), "process_resident_memory_bytes");
    for side in [30_000, 16_384, 65_535] {
        let error = with_image(&bomb(side), &[]).is_error(400, "image");
        assert!(error["message"].as_str().unwrap().contains(&format!("{side}x{side}")), "{error}");
    }
    with_image(&bomb(0), &[]).is_error(400, "image");
    with_image(&bomb(u32::MAX), &[]).is_error(400, "image");
    let after = metric(shared(), "process_resident_memory_bytes");
    // 30,000² pixels are 2.7 GB.
    assert!(after - before < 1.5e9, "{before} {after}");
}

#[test]
fn a_mask_says_what_is_drawn_anew_and_must_fit() {
    let mask = |pixel: &[u8]| png(64, 64, pixel);
    let answer = with_image(&red(), &[("mask", Some("m.png"), &mask(&[0, 0, 0, 0])), STEPS]);
    assert_eq!(answer.pictures().len(), 1);
    let error = with_image(&red(), &[("mask", Some("m.png"), &png(32, 64, &[0; 4]))]).is_error(400, "mask");
    assert!(error["message"].as_str().unwrap().contains("32x64"), "{error}");
    let error = with_image(&red(), &[("mask", Some("m.png"), &mask(&[0; 3]))]).is_error(400, "mask");
    assert!(error["message"].as_str().unwrap().contains("alpha"), "{error}");
}

#[test]
fn other_formats_are_read() {
    for format in ["jpeg", "webp", "png"] {
        let request = crate::with(small(2), "output_format", format.into());
        let file = generate(shared(), &request).pictures().remove(0);
        assert_eq!(with_image(&file, &[STEPS]).pictures().len(), 1, "{format}");
    }
}

/// A file and the pixels that Pillow reads of it, as scripts/export_pictures.py wrote them.
fn of_pillow(name: &str) -> (Vec<u8>, Image) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/pictures/decoded.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let pixels = tensors.tensor(&format!("{name}.rgb")).unwrap();
    let [height, width, 3] = *pixels.shape() else { panic!("{name}") };
    let image = Image { width: width as u32, height: height as u32, rgb: pixels.data().to_vec() };
    (tensors.tensor(name).unwrap().data().to_vec(), image)
}

#[test]
fn pictures_are_taken_as_they_are_to_be_seen() {
    let seed = [STEPS, ("seed", None, &b"3"[..])];
    let mut seen = Vec::new();
    for name in [
        "exif/jpeg-6",
        "exif/webp-6",
        "exif/webp-named",
        "exif/webp-long-big",
        "exif/png-late",
        "jpeg/420-3x13-progressive",
    ] {
        let (file, image) = of_pillow(name);
        let plain = with_image(&image.to_png(&Default::default()).unwrap(), &seed).pictures();
        assert!(with_image(&file, &seed).pictures() == plain, "{name}");
        // The same in base64, and as a data URL.
        let base64 = BASE64_STANDARD.encode(&file);
        assert!(with_image(base64.as_bytes(), &seed).pictures() == plain, "{name}");
        let url = format!("data:image/png;base64,{base64}");
        assert!(with_image(url.as_bytes(), &seed).pictures() == plain, "{name}");
        seen.push(plain);
    }
    // Both are the same pixels, which another picture is not.
    assert!(seen[1] == seen[2] && seen[1] != seen[5]);
}

#[test]
fn what_is_no_picture_is_named() {
    let heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic";
    let cases: [(&[u8], &str); 6] = [
        (b"<?xml version='1.0'?><svg/>", "an SVG"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (heic, "a HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ];
    for (file, name) in cases {
        for sent in [file.to_vec(), BASE64_STANDARD.encode(file).into_bytes()] {
            let error = with_image(&sent, &[]).is_error(400, "image");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(&format!("image: it is {name}")), "{message}");
            let error = with_image(&red(), &[("mask", Some("m.png"), &sent)]).is_error(400, "mask");
            assert!(error["message"].as_str().unwrap().contains(name), "{error}");
        }
    }
}

#[test]
fn every_format_says_how_it_was_drawn() {
    for format in Format::ALL {
        let request = crate::with(small(2), "output_format", format.name().into());
        let file = generate(shared(), &request).pictures().remove(0);
        assert_eq!(Format::of_bytes(&file), Some(format));
        let decoded = tch_flux::image::decode(&file, &mut tch_flux::image::within_bounds).unwrap();
        let provenance =
            tch_flux::generation::provenance::Provenance::from_texts(&decoded.texts).unwrap().unwrap();
        assert_eq!(provenance.request.prompts, [CIRCLE], "{format:?}");
    }
}

#[test]
fn without_a_size_the_picture_keeps_its_shape() {
    let answer = with_image(&png(300, 150, &[9, 9, 9]), &[STEPS]);
    assert_eq!(answer.json()["size"], "96x64");
}

#[test]
fn uploads_have_a_bound_together() {
    let options = tch_flux_server::Options { max_upload_bytes: 100_000, ..Default::default() };
    let served = crate::Served::start(options, 8);
    let (content_type, body) = form(&[("prompt", None, b"a"), ("image", Some("a.png"), &vec![7; 200_000])]);
    let answer = send(served.at, "POST", EDITS, &[("content-type", &content_type)], &body);
    assert_eq!(answer.error()["code"], "uploads_full");
    assert!(answer.status == 503 && answer.header("retry-after").is_some());
    // Few bytes that become many.
    let (content_type, body) =
        form(&[("prompt", None, b"a"), ("image", Some("a.png"), &png(200, 200, &[0; 3]))]);
    let answer = send(served.at, "POST", EDITS, &[("content-type", &content_type)], &body);
    assert_eq!(answer.error()["code"], "uploads_full");
    assert_eq!(metric(served.at, "tch_flux_upload_bytes"), 0.0);
}

#[test]
fn an_edit_that_is_too_long_is_refused() {
    let served = crate::Served::start(Default::default(), 8);
    let large = vec![0; 51 << 20];
    let (content_type, body) = form(&[("prompt", None, b"a"), ("image", Some("a.png"), &large)]);
    let answer = send(served.at, "POST", EDITS, &[("content-type", &content_type)], &body);
    assert_eq!(answer.is_error(413, "image")["code"], "part_too_large");
    let (content_type, body) =
        form(&[("prompt", None, b"a"), ("image", Some("a.png"), &[large, vec![0; 20 << 20]].concat())]);
    let answer = send(served.at, "POST", EDITS, &[("content-type", &content_type)], &body);
    assert_eq!(answer.is_error(413, "")["code"], "body_too_large");
    assert_eq!(metric(served.at, "tch_flux_upload_bytes"), 0.0);
}
