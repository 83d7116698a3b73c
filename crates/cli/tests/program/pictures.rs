//! Pictures as users have them: each gives the drawing that it should, or an error that says what to do.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use tch::{Device, Kind, Tensor};
use tch_flux::image::{Format, Image};

use crate::support::{stored, write_file};

const PROMPT: &str = "a red circle on a blue background";

struct Here(tempfile::TempDir);

impl Here {
    fn new() -> Self {
        let here = Self(tempfile::tempdir().unwrap());
        let ring = |x: u32, y: u32| [(x * 4) as u8, (y * 4) as u8, 255 - (x * 4) as u8];
        here.write("rgb.png", png::ColorType::Rgb, png::BitDepth::Eight, &pixels(ring));
        here
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A PNG of 64 × 64.
    fn write(&self, name: &str, colour: png::ColorType, depth: png::BitDepth, bytes: &[u8]) {
        let mut encoder = png::Encoder::new(fs::File::create(self.path(name)).unwrap(), 64, 64);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == png::ColorType::Indexed {
            encoder.set_palette((0..=255u8).flat_map(|i| [i, i / 2, 255 - i]).collect::<Vec<u8>>());
        }
        encoder.write_header().unwrap().write_image_data(bytes).unwrap();
    }

    fn run(&self, call: &[&str]) -> Output {
        let out = ["--seed", "1", "--steps", "4", "--force", "-o", "out.png"];
        let binary = env!("CARGO_BIN_EXE_tch-flux");
        Command::new(binary).current_dir(self.0.path()).args(call).args(out).output().unwrap()
    }

    fn draws(&self, call: &[&str]) -> (Image, String) {
        let output = self.run(call);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{call:?}: {said}");
        (Image::read_png(self.path("out.png")).unwrap().0, said)
    }

    fn refuses(&self, call: &[&str], code: i32, says: &str) {
        let output = self.run(call);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{call:?}: {said}");
        assert!(said.contains(says) && !said.contains("panicked"), "{call:?}: {said}");
        assert!(!self.path("out.png").exists(), "{call:?}");
    }
}

fn pixels<const N: usize>(of: impl Fn(u32, u32) -> [u8; N]) -> Vec<u8> {
    (0..64 * 64).flat_map(|i| of(i % 64, i / 64)).collect()
}

fn fixture(name: &str) -> String {
    let path = crate::support::root().join("fixtures/pictures").join(name);
    path.to_str().unwrap().to_string()
}

#[test]
fn pngs_of_every_kind_are_the_pictures_that_they_show() {
    let here = Here::new();
    let grey = |x: u32, y: u32| ((x + y) * 2) as u8;
    let colour = |x: u32, y: u32| [grey(x, y), grey(x, y) / 2, 255 - grey(x, y)];
    here.write("grey.png", png::ColorType::Grayscale, png::BitDepth::Eight, &pixels(|x, y| [grey(x, y)]));
    here.write(
        "grey16.png",
        png::ColorType::Grayscale,
        png::BitDepth::Sixteen,
        &pixels(|x, y| [grey(x, y), 77]),
    );
    here.write(
        "greyalpha.png",
        png::ColorType::GrayscaleAlpha,
        png::BitDepth::Eight,
        &pixels(|x, y| [grey(x, y), 9]),
    );
    here.write("palette.png", png::ColorType::Indexed, png::BitDepth::Eight, &pixels(|x, y| [grey(x, y)]));
    here.write(
        "alpha.png",
        png::ColorType::Rgba,
        png::BitDepth::Eight,
        &pixels(|x, y| {
            let [r, g, b] = colour(x, y);
            [r, g, b, 9]
        }),
    );
    here.write(
        "wide.png",
        png::ColorType::Rgb,
        png::BitDepth::Sixteen,
        &pixels(|x, y| {
            let [r, g, b] = colour(x, y);
            [r, 1, g, 2, b, 3]
        }),
    );
    let read = |name: &str| Image::read_png(here.path(name)).unwrap().0.rgb;
    let greys = pixels(|x, y| [grey(x, y); 3]);
    for name in ["grey.png", "grey16.png"] {
        assert_eq!(read(name), greys, "{name}");
    }
    for name in ["palette.png", "wide.png"] {
        assert_eq!(read(name), pixels(colour), "{name}");
    }
    // What is transparent stands on white.
    let on_white = |value: u8| ((u32::from(value) * 9 + 255 * 246 + 127) / 255) as u8;
    assert_eq!(read("greyalpha.png"), greys.iter().map(|value| on_white(*value)).collect::<Vec<_>>());
    assert_eq!(read("alpha.png"), pixels(colour).iter().map(|value| on_white(*value)).collect::<Vec<_>>());
    here.draws(&["edit", PROMPT, "--image", "palette.png"]);
}

#[test]
fn a_jpeg_is_set_upright_and_one_that_is_damaged_is_refused() {
    let here = Here::new();
    let edit = |name: &str| here.draws(&["edit", PROMPT, "--strength", "0.3", "--image", &fixture(name)]).0;
    let upright = edit("upright.jpg");
    for (name, most) in [("turned.jpg", 2.0), ("cmyk.jpg", 4.0)] {
        let drawn = edit(name);
        assert_eq!((drawn.width, drawn.height), (64, 32), "{name}");
        // Each was compressed by itself.
        let apart = drawn.rgb.iter().zip(&upright.rgb).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
        let apart = apart / (upright.rgb.len() as f64);
        assert!(apart < most, "{name}: {apart}");
    }

    fs::remove_file(here.path("out.png")).unwrap();
    let whole = fs::read(fixture("upright.jpg")).unwrap();
    fs::write(here.path("cut.jpg"), &whole[..whole.len() - 200]).unwrap();
    here.refuses(&["edit", PROMPT, "--image", "cut.jpg"], 1, "cut.jpg: the picture cannot be read");
}

#[test]
fn what_is_no_png_and_no_jpeg_is_named() {
    let here = Here::new();
    for (bytes, name) in [
        (&b"GIF89a"[..], "a GIF: make a PNG, JPEG or WebP of it"),
        (b"BM\0\0", "a BMP: make a PNG, JPEG or WebP of it"),
        (b"II*\0\x08\0\0\0", "a TIFF: make a PNG, JPEG or WebP of it"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "a HEIC: make a PNG, JPEG or WebP of it"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "an AVIF: make a PNG, JPEG or WebP of it"),
        (b"<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\"/>", "an SVG: draw it as a PNG"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page: a download that went wrong"),
        (b"%PDF-1.7", "a PDF: draw it as a PNG"),
        (b"hello", "text: a picture is wanted"),
        (b"", "empty"),
    ] {
        fs::write(here.path("x.png"), bytes).unwrap();
        here.refuses(
            &["edit", PROMPT, "--image", "x.png"],
            1,
            &format!("x.png: the picture cannot be read: it is {name}"),
        );
        here.refuses(&["edit", PROMPT, "--image", "rgb.png", "--mask", "x.png"], 1, &format!("it is {name}"));
    }
    fs::write(here.path("x.png"), b"RIFF\x10\0\0\0WEBPVP8 ").unwrap();
    here.refuses(&["edit", PROMPT, "--image", "x.png"], 1, "the WebP is damaged or incomplete");
    here.refuses(&["generate", "--from-image", "x.png"], 1, "x.png: the picture cannot be read");
}

/// What scripts/export_pictures.py wrote: each file draws what the pixels draw that Pillow reads of it.
#[test]
fn what_the_command_line_reads_is_what_pillow_reads() {
    let here = Here::new();
    let fixture = fs::read(fixture("decoded.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&fixture).unwrap();
    let draw = |name: &str, file: &[u8]| {
        fs::write(here.path(name), file).unwrap();
        here.draws(&["edit", PROMPT, "--strength", "0.3", "--width", "32", "--height", "32", "--image", name])
            .0
    };
    let mut seen = Vec::new();
    for (name, orientation) in [
        ("jpeg-long-big", 6),
        ("png-compressed-text", 6),
        ("webp-8", 8),
        ("webp-long-little", 6),
        ("webp-cut-to-13", 1),
    ] {
        let name = format!("exif/{name}");
        let pillow = tensors.tensor(&format!("{name}.rgb")).unwrap();
        let [height, width, 3] = *pillow.shape() else { panic!("{name}") };
        assert_eq!(width < height, orientation > 4, "{name}");
        let image = Image { width: width as u32, height: height as u32, rgb: pillow.data().to_vec() };
        let plain = draw("plain.png", &image.to_png(&Default::default()).unwrap());
        // The ending of a name says nothing.
        assert!(draw("x.png", tensors.tensor(&name).unwrap().data()) == plain, "{name}");
        seen.push(plain);
    }
    assert!(seen[0] != seen[4] && seen[2] != seen[3]);
}

#[test]
fn what_a_picture_hides_is_not_drawn_from() {
    let here = Here::new();
    let edit = |name: &str| here.draws(&["edit", PROMPT, "--strength", "0.5", "--image", name]).0;
    let shown = |x: u32, y: u32| [(x * 4) as u8, (y * 4) as u8, 99];
    for (name, hidden) in [("one.png", 0), ("other.png", 200)] {
        let pixel = |x: u32, y: u32| {
            let [r, g, b] = shown(x, y);
            if x < 32 { [hidden, hidden, hidden, 0] } else { [r, g, b, 255] }
        };
        here.write(name, png::ColorType::Rgba, png::BitDepth::Eight, &pixels(pixel));
    }
    let white = |x: u32, y: u32| if x < 32 { [255; 3] } else { shown(x, y) };
    here.write("white.png", png::ColorType::Rgb, png::BitDepth::Eight, &pixels(white));
    let drawn = edit("white.png");
    assert!(edit("one.png") == drawn && edit("other.png") == drawn);
    assert!(edit("rgb.png") != drawn);
    fs::remove_file(here.path("out.png")).unwrap();
    here.refuses(
        &["edit", PROMPT, "--image", "rgb.png", "--mask", "one.png"],
        1,
        "it has transparent pixels",
    );
}

#[test]
fn the_name_says_the_format_and_every_format_can_be_repeated() {
    let here = Here::new();
    let generate = |flags: &[&str]| {
        let call = [&["generate", PROMPT, "--seed", "1", "--steps", "4", "--force"][..], flags].concat();
        let binary = env!("CARGO_BIN_EXE_tch-flux");
        let output = Command::new(binary).current_dir(here.0.path()).args(call).output().unwrap();
        assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let format = |name: &str| Format::of_bytes(&fs::read(here.path(name)).unwrap());
    generate(&["-o", "plain.PNG"]);
    let plain = Image::read(here.path("plain.PNG")).unwrap().0;
    for (name, expected) in [("a.jpg", Format::Jpeg), ("b.JPEG", Format::Jpeg), ("c.webp", Format::Webp)] {
        generate(&["-o", name, "--grid", "sheet.webp", "--previews", "1"]);
        assert_eq!((format(name), format("sheet.webp")), (Some(expected), Some(Format::Webp)), "{name}");
        let (image, texts) = Image::read(here.path(name)).unwrap();
        let psnr = image.psnr(&plain).unwrap_or(f64::INFINITY);
        assert!(psnr > 30.0 && texts["parameters"].starts_with(PROMPT), "{name}: {psnr} dB, {texts:?}");
        let preview = fs::read_dir(here.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let stem = name.split_once('.').unwrap().0;
        let preview = preview
            .map(|file| file.into_string().unwrap())
            .find(|file| file.starts_with(&format!("{stem}.step-")));
        assert_eq!(format(&preview.unwrap()), Some(expected));
        assert!(here.draws(&["generate", "--from-image", name]).0 == plain, "{name}");
    }
    generate(&["-o", "low.jpg", "--output-quality", "10"]);
    assert!(
        fs::metadata(here.path("low.jpg")).unwrap().len() < fs::metadata(here.path("a.jpg")).unwrap().len()
    );
    // A picture that nobody says how to draw.
    fs::copy(fixture("upright.jpg"), here.path("camera.jpg")).unwrap();
    fs::remove_file(here.path("out.png")).unwrap();
    here.refuses(
        &["generate", "--from-image", "camera.jpg"],
        2,
        "camera.jpg: it does not say how it was drawn",
    );
}

#[test]
fn a_name_without_a_format_is_refused_before_anything_is_loaded() {
    let here = Here::new();
    let refused = |flags: &[&str]| {
        let call = [&["generate", PROMPT, "--model", "nowhere/", "--seed", "1"][..], flags].concat();
        let binary = env!("CARGO_BIN_EXE_tch-flux");
        let output = Command::new(binary).current_dir(here.0.path()).args(call).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for name in ["x.tiff", "x", "x.", "x.gif", "{index}", "png", "x.png.bak"] {
        let said = refused(&["-o", name]);
        assert!(said.contains(&format!("{name}: pictures are written as PNG, JPEG or WebP")), "{said}");
        assert!(refused(&["--grid", name]).contains("PNG, JPEG or WebP"));
    }
    assert!(
        refused(&["-o", "x.png", "--output-quality", "5"]).contains("--output-quality is for JPEG and WebP")
    );
    assert!(refused(&["-o", "x.jpg", "--output-quality", "101"]).contains("101"));
}

#[test]
fn a_mask_that_chooses_nothing_or_may_mean_either_is_refused() {
    let here = Here::new();
    let edit = |mask| ["edit", PROMPT, "--image", "rgb.png", "--mask", mask];
    here.write("black.png", png::ColorType::Grayscale, png::BitDepth::Eight, &[127; 64 * 64]);
    here.refuses(&edit("black.png"), 2, "the mask chooses nothing");
    let hole = |x: u32, _: u32| [0, 0, 0, if x < 32 { 0 } else { 255 }];
    here.write("clear.png", png::ColorType::Rgba, png::BitDepth::Eight, &pixels(hole));
    here.refuses(&edit("clear.png"), 1, "clear.png: the picture cannot be read: it has transparent pixels");
    let opaque = |x: u32, _: u32| [if x < 32 { 255 } else { 0 }, 255];
    here.write("opaque.png", png::ColorType::GrayscaleAlpha, png::BitDepth::Eight, &pixels(opaque));
    here.draws(&edit("opaque.png"));
}

#[test]
fn flags_that_would_change_nothing_are_refused_or_said() {
    let here = Here::new();
    let look = ["edit", PROMPT, "--image", "rgb.png", "--as", "reference"];
    here.refuses(
        &[&look[..], &["--strength", "0.3"]].concat(),
        2,
        "--strength is for a picture as `start`, and this model takes the picture as `reference`",
    );
    here.refuses(&[&look[..], &["--pad", "16,0,0,0"]].concat(), 2, "no mask and no room around it");
    let start = ["edit", PROMPT, "--image", "rgb.png"];
    here.refuses(&[&start[..], &["--keep-size"]].concat(), 2, "--keep-size is for a picture as `reference`");
    here.refuses(&[&start[..], &["--pad", "0,0,0,0"]].concat(), 2, "nothing to draw");
    here.refuses(&[&start[..], &["--pad", "16384,0,0,0"]].concat(), 2, "16448x64: more than 16384 a side");
    here.refuses(&["generate", PROMPT, "--grid", "out.png"], 2, "needs another name");
    let times = here.0.path().join("times.png");
    let call = ["generate", PROMPT, "--sigmas", "0", "-o", times.to_str().unwrap()];
    let said = Command::new(env!("CARGO_BIN_EXE_tch-flux")).args(call).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("--sigmas must fall from at most 1"), "{said:?}");
    let (_, said) = here.draws(&["generate", PROMPT, "--guidance", "3"]);
    assert!(said.contains("--guidance changes nothing"), "{said}");
    let (_, said) = here.draws(&["generate", PROMPT, "--negative-prompt", "x", "--true-cfg-scale", "1"]);
    assert!(said.contains("the negative prompt changes nothing"), "{said}");
}

#[test]
fn a_picture_says_when_what_it_was_begun_with_has_changed() {
    let here = Here::new();
    let (first, _) = here.draws(&["edit", PROMPT, "--image", "rgb.png"]);
    fs::rename(here.path("out.png"), here.path("first.png")).unwrap();
    let again = ["edit", "--from-image", "first.png"];
    let (same, said) = here.draws(&again);
    assert!(same == first && !said.contains("warning"), "{said}");
    here.write("rgb.png", png::ColorType::Rgb, png::BitDepth::Eight, &[77; 3 * 64 * 64]);
    let (other, said) = here.draws(&again);
    assert!(other != first && said.contains("rgb.png is not what it was when first.png was drawn"), "{said}");
    fs::remove_file(here.path("out.png")).unwrap();
    fs::remove_file(here.path("rgb.png")).unwrap();
    here.refuses(&again, 1, "rgb.png: ");
}

#[test]
fn a_repeat_takes_loras_along_and_says_when_the_model_is_another() {
    let here = Here::new();
    let matrix = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu)) * 0.1;
    let pair = [("lora_A", matrix([4, 64])), ("lora_B", matrix([128, 4]))];
    let pair =
        pair.map(|(name, t)| stored(&format!("transformer.x_embedder.{name}.weight"), &t, Kind::Float));
    write_file(&here.path("style.safetensors"), &pair);
    let (plain, _) = here.draws(&["generate", PROMPT]);
    let (first, _) = here.draws(&["generate", PROMPT, "--lora", "style.safetensors:0.7"]);
    assert!(first != plain);
    fs::rename(here.path("out.png"), here.path("first.png")).unwrap();
    let again = ["generate", "--from-image", "first.png"];
    let (same, said) = here.draws(&again);
    assert!(same == first && !said.contains("warning"), "{said}");
    let model = crate::support::root().join("fixtures/tiny/flux1-schnell.safetensors");
    fs::copy(model, here.path("other.safetensors")).unwrap();
    let (_, said) = here.draws(&[&again[..], &["--transformer", "other.safetensors"]].concat());
    let says = "first.png was drawn with flux1-schnell.safetensors, not with other.safetensors";
    assert!(said.contains(says), "{said}");
    fs::remove_file(here.path("out.png")).unwrap();
    fs::remove_file(here.path("style.safetensors")).unwrap();
    here.refuses(&again, 1, "style.safetensors: ");
}
