//! NaN and infinity in weights: the error names the file and the tensor, whichever part holds them and however they are
//! stored.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Kind;
use tch_flux::checkpoint::{Access, Checkpoint};
use tch_flux::generation::{Control, Edit, LoraFile, PartOverrides, Parts, Pipeline, Request, Settings};
use tch_flux::image::Image;
use tch_flux::numerics::{Numerics, Quantize};
use tch_flux::{Error, FileProblem};

use super::fp8::in_fp8;
use crate::support::{Stored, f32s, stored, temp, write_file};

fn fixture(name: &str) -> PathBuf {
    crate::support::root().join("fixtures").join(name)
}

/// The tensors of a file, in f32.
fn tensors(part: &str) -> Vec<Stored> {
    let checkpoint = Checkpoint::open(fixture(part), Access::Map).unwrap();
    checkpoint.names().map(|name| stored(name, &checkpoint.tensor(name).unwrap(), Kind::Float)).collect()
}

/// Puts a number into a tensor of f32.
fn put(tensors: &mut [Stored], name: &str, at: usize, value: f32) {
    let (.., bytes) = tensors.iter_mut().find(|(n, ..)| n == name).unwrap();
    bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
}

fn request() -> Request {
    Request::new("a red circle on a blue background", 64, 64).seed(7).steps(2)
}

fn refused(pipeline: &mut Pipeline, request: &Request) -> (PathBuf, FileProblem) {
    match pipeline.generate(request, &mut |_| ControlFlow::Continue(())) {
        Err(Error::File { path, problem }) => (path, problem),
        other => panic!("{:?}", other.map(|drawn| drawn.len())),
    }
}

fn pipeline(parts: PartOverrides, settings: Settings) -> Pipeline {
    Pipeline::open(Parts::find_rest(parts, fixture("tiny")).unwrap(), settings).unwrap()
}

fn f32_settings() -> Settings {
    Settings { kind: Some(Kind::Float), ..Settings::default() }
}

#[test]
fn nan_in_any_part_is_found_with_its_place() {
    let of = |part: &str, path: &Path| {
        let own = Some(path.to_path_buf());
        match part {
            "transformer" => PartOverrides { transformer: own, ..PartOverrides::default() },
            "autoencoder" => PartOverrides { autoencoder: own, ..PartOverrides::default() },
            "clip" => PartOverrides { clip: own, ..PartOverrides::default() },
            _ => PartOverrides { t5: own, ..PartOverrides::default() },
        }
    };
    let cases = [
        ("transformer", "tiny/flux1-schnell.safetensors", "img_in.weight", vec![3, 5], 3 * 64 + 5, f32::NAN),
        (
            "transformer",
            "tiny/flux1-schnell.safetensors",
            "double_blocks.0.img_attn.qkv.weight",
            vec![200, 1],
            200 * 128 + 1,
            f32::NAN,
        ),
        (
            "transformer",
            "tiny/flux1-schnell.safetensors",
            "single_blocks.0.linear2.bias",
            vec![7],
            7,
            f32::INFINITY,
        ),
        (
            "transformer",
            "tiny/transformer/diffusion_pytorch_model.safetensors",
            "transformer_blocks.0.attn.to_k.weight",
            vec![0, 2],
            2,
            f32::NAN,
        ),
        ("autoencoder", "tiny/ae.safetensors", "decoder.conv_in.weight", vec![0, 0, 0, 1], 1, f32::NAN),
        (
            "clip",
            "tiny/text_encoder/model.safetensors",
            "final_layer_norm.weight",
            vec![4],
            4,
            f32::NEG_INFINITY,
        ),
        (
            "t5",
            "tiny/text_encoder_2/model.safetensors",
            "encoder.final_layer_norm.weight",
            vec![9],
            9,
            f32::NAN,
        ),
    ];
    for (part, from, name, first, at, value) in cases {
        let (folder, path) = temp("damaged.safetensors");
        let config = fixture(from).with_file_name("config.json");
        if config.is_file() {
            std::fs::copy(config, folder.path().join("config.json")).unwrap();
        }
        let mut tensors = tensors(from);
        put(&mut tensors, name, at, value);
        write_file(&path, &tensors);
        let found = refused(&mut pipeline(of(part, &path), f32_settings()), &request());
        let FileProblem::NotFinite { name: named, first: place, count, of } = &found.1 else {
            panic!("{found:?}")
        };
        assert_eq!((&found.0, named.as_str(), place, *count), (&path, name, &first, 1));
        let shape = &tensors.iter().find(|(n, ..)| n == name).unwrap().2;
        assert_eq!(*of as i64, shape.iter().product::<i64>());
    }
}

#[test]
fn nan_is_found_where_weights_are_kept_or_made_narrow() {
    let name = "double_blocks.0.img_mlp.0.weight";
    let (_folder, path) = temp("damaged.safetensors");
    let mut f32s = tensors("tiny/flux1-schnell.safetensors");
    put(&mut f32s, name, 130, f32::NAN);
    write_file(&path, &f32s);
    let own = || PartOverrides { transformer: Some(path.clone()), ..PartOverrides::default() };
    let fast = Settings { numerics: Numerics::Fast, ..f32_settings() };
    let bf16 = Settings { kind: Some(Kind::BFloat16), ..fast };
    for settings in [
        fast,
        bf16,
        Settings { quantize: Quantize::Int8, ..fast },
        Settings { quantize: Quantize::Int8, ..bf16 },
    ] {
        let (file, problem) = refused(&mut pipeline(own(), settings), &request());
        let FileProblem::NotFinite { name: named, first, .. } = &problem else { panic!("{problem:?}") };
        assert_eq!((&file, named.as_str(), first), (&path, name, &vec![1, 2]), "{settings:?}");
    }
    // NaN among numbers of fp8: 0x7f.
    for scales in [None, Some(true)] {
        let mut fp8 = in_fp8(tensors("tiny/flux1-schnell.safetensors"), "F8_E4M3", "", scales);
        let (.., bytes) = fp8.iter_mut().find(|(n, ..)| n == name).unwrap();
        bytes[131] = 0x7f;
        write_file(&path, &fp8);
        for keep_quantized in [false, true] {
            let settings = Settings { keep_quantized, ..f32_settings() };
            let (file, problem) = refused(&mut pipeline(own(), settings), &request());
            let FileProblem::NotFinite { name: named, first, count: 1, .. } = &problem else {
                panic!("{problem:?}")
            };
            assert_eq!((&file, named.as_str(), first), (&path, name, &vec![1, 3]));
        }
    }
}

#[test]
fn nan_in_what_is_put_on_the_transformer_is_found() {
    let (folder, path) = temp("lora.safetensors");
    let layer = "double_blocks.0.img_attn.proj";
    let mut up = vec![0.25; 256];
    up[9] = f32::NAN;
    let down = f32s(&format!("{layer}.lora_A.weight"), &[2, 128], &[0.5; 256]);
    write_file(&path, &[down, f32s(&format!("{layer}.lora_B.weight"), &[128, 2], &up)]);
    let mut with_lora = pipeline(PartOverrides::default(), f32_settings());
    with_lora.set_loras(&[LoraFile { path: path.clone(), strength: 1.0 }]).unwrap();
    let (file, problem) = refused(&mut with_lora, &request());
    assert_eq!(file, path);
    assert!(
        matches!(&problem, FileProblem::NotFinite { name, first, .. } if name.ends_with("lora_B.weight") && *first == [4, 1])
    );

    let net = "tiny-additions/controlnet-canny/diffusion_pytorch_model.safetensors";
    let mut tensors = tensors(net);
    put(&mut tensors, "controlnet_x_embedder.weight", 0, f32::INFINITY);
    let path = folder.path().join("net.safetensors");
    write_file(&path, &tensors);
    let mut with_net = pipeline(PartOverrides::default(), f32_settings());
    with_net.set_controlnets(std::slice::from_ref(&path)).unwrap();
    let image = Image { width: 64, height: 64, rgb: vec![200; 3 * 64 * 64] };
    let request = Request { controls: vec![Control::new(image)], ..request() };
    let (file, problem) = refused(&mut with_net, &request);
    assert_eq!(file, path);
    assert!(
        matches!(&problem, FileProblem::NotFinite { name, .. } if name == "controlnet_x_embedder.weight")
    );
}

#[test]
fn nan_in_the_encoder_is_found_when_a_picture_is_edited() {
    let (_folder, path) = temp("ae.safetensors");
    let mut tensors = tensors("tiny/ae.safetensors");
    put(&mut tensors, "encoder.conv_in.bias", 0, f32::NAN);
    write_file(&path, &tensors);
    let mut pipeline = pipeline(
        PartOverrides { autoencoder: Some(path.clone()), ..PartOverrides::default() },
        f32_settings(),
    );
    // Without a picture, the encoder has no part in it.
    assert_eq!(pipeline.generate(&request(), &mut |_| ControlFlow::Continue(())).unwrap().len(), 1);
    let image = Image { width: 64, height: 64, rgb: vec![200; 3 * 64 * 64] };
    let request =
        Request { edit: Some(Arc::new(Edit { strength: 0.9, ..Edit::new(vec![image]) })), ..request() };
    let (file, problem) = refused(&mut pipeline, &request);
    assert_eq!(file, path);
    assert!(matches!(&problem, FileProblem::NotFinite { name, .. } if name == "encoder.conv_in.bias"));
}

#[test]
fn a_weight_that_f16_does_not_hold_is_said_to_be_that() {
    let (_folder, path) = temp("large.safetensors");
    let mut tensors = tensors("tiny/flux1-schnell.safetensors");
    put(&mut tensors, "img_in.weight", 64, 1e5);
    write_file(&path, &tensors);
    let settings = Settings { kind: Some(Kind::Half), ..Settings::default() };
    let own = PartOverrides { transformer: Some(path.clone()), ..PartOverrides::default() };
    let (file, problem) = refused(&mut pipeline(own, settings), &request());
    assert_eq!(file, path);
    let FileProblem::Overflow { name, first, value, kind } = &problem else { panic!("{problem:?}") };
    assert_eq!((name.as_str(), first, *value, *kind), ("img_in.weight", &vec![1, 0], 1e5, "f16"));
}

#[test]
fn a_preview_of_nan_names_the_file_too() {
    let (_folder, path) = temp("damaged.safetensors");
    let mut tensors = tensors("tiny/flux1-schnell.safetensors");
    put(&mut tensors, "final_layer.linear.bias", 1, f32::NAN);
    write_file(&path, &tensors);
    let mut pipeline = pipeline(
        PartOverrides { transformer: Some(path.clone()), ..PartOverrides::default() },
        f32_settings(),
    );
    let (file, problem) = refused(&mut pipeline, &Request { previews: 1, ..request() });
    assert_eq!(file, path);
    assert!(matches!(&problem, FileProblem::NotFinite { name, .. } if name == "final_layer.linear.bias"));
}
