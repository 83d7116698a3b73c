//! fp8: raw, and scaled in every spelling; kept as it is, or cast.

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Checkpoint, LoadOptions};
use tch_flux::models::Model;
use tch_flux::models::flux1::Flux1Params;
use tch_flux::nn::init;
use tch_flux::{Error, FileProblem};

use super::{bf16, flux1, fnv, kept_is_as_cast, load_as, of, refused, rows, store_for, try_of, velocity};
use crate::support::{
    Stored, f32s, file_bytes, framed, header, stored_all, temp, tiny, variables, write_file,
};

/// The formats with the bits of their mantissa and the bias of their exponent.
const FORMATS: [(&str, u32, i32); 2] = [("F8_E4M3", 3, 7), ("F8_E5M2", 2, 15)];

/// The number of a byte that is neither infinite nor NaN.
fn number(byte: u8, (_, mantissa, bias): (&str, u32, i32)) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(byte & 0x7f) >> mantissa;
    let fraction = f32::from(byte & ((1 << mantissa) - 1)) / (1 << mantissa) as f32;
    let (whole, exponent) = if exponent == 0 { (0.0, 1) } else { (1.0, exponent) };
    sign * (whole + fraction) * 2f32.powi(exponent - bias)
}

/// Bytes that differ from name to name and are finite in both formats.
fn some(name: &str, count: i64) -> Vec<u8> {
    let start = fnv(name.as_bytes());
    (0..count as u64).map(|i| ((start.wrapping_add(i * 37)) % 0x7b) as u8 | ((i % 2) as u8) << 7).collect()
}

fn fp8(name: &str, dtype: &str, shape: &[i64]) -> Stored {
    (name.into(), dtype.into(), shape.to_vec(), some(name, shape.iter().product()))
}

/// The numbers of [`fp8`], each multiplied by the scale of its row.
fn scaled(name: &str, format: (&str, u32, i32), shape: &[i64], scales: &[f32]) -> Vec<f32> {
    let count = shape.iter().product::<i64>();
    let row = (count as usize) / scales.len();
    some(name, count).iter().enumerate().map(|(i, &b)| number(b, format) * scales[i / row]).collect()
}

fn marker(prefix: &str, dtype: &str) -> Stored {
    (format!("{prefix}scaled_fp8"), dtype.into(), vec![0], vec![])
}

fn note(layer: &str, format: &str) -> Stored {
    let text = json!({ "format": format, "full_precision_matrix_mult": true }).to_string();
    (format!("{layer}.comfy_quant"), "U8".into(), vec![text.len() as i64], text.into_bytes())
}

/// A file with metadata.
fn write_with(path: &std::path::Path, tensors: &[Stored], key: &str, value: &str) {
    let lines: Vec<_> = tensors.iter().map(|(n, d, s, _)| (n.clone(), d.clone(), s.clone())).collect();
    let json = header(&lines).0;
    let entries = json.trim_end().strip_prefix('{').unwrap();
    let data: Vec<u8> = tensors.iter().flat_map(|(.., bytes)| bytes.clone()).collect();
    let text = format!("{{\"__metadata__\":{},{entries}", json!({ key: value }));
    std::fs::write(path, framed(text, &data)).unwrap();
}

/// Checks `a.weight` in f32, in bf16 rounded once, and what else is there.
fn holds(checkpoint: &Checkpoint, expected: &[f32], names: &[&str]) {
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), names);
    let vs = store_for(checkpoint);
    load_as(checkpoint, &vs, Kind::Float);
    assert_eq!(super::values(&variables(&vs)["a.weight"]), expected);
    load_as(checkpoint, &vs, Kind::BFloat16);
    let rounded: Vec<f32> = expected.iter().map(|&v| bf16(v)).collect();
    assert_eq!(super::values(&variables(&vs)["a.weight"]), rounded);
}

#[test]
fn every_finite_byte_of_a_raw_cast_is_its_number() {
    for format in FORMATS {
        let finite = if format.1 == 3 { 0x7f } else { 0x7c };
        let bytes: Vec<u8> = (0..=255).filter(|b| b & 0x7f < finite).collect();
        let shape = [2, bytes.len() as i64 / 2];
        let expected: Vec<f32> = bytes.iter().map(|&b| number(b, format)).collect();
        let checkpoint = of(&[("a.weight".into(), format.0.into(), shape.to_vec(), bytes)]);
        holds(&checkpoint, &expected, &["a.weight"]);
        assert_eq!(checkpoint.types().keys().collect::<Vec<_>>(), [format.0]);
    }
}

#[test]
fn both_spellings_of_a_scale_are_applied_by_tensor_and_by_row() {
    let by_row = [0.1f32, 3.0, 1e-3, 0.7];
    for format in FORMATS {
        let weight = || fp8("a.weight", format.0, &[4, 6]);
        for (end, input, old) in
            [("scale_weight", "scale_input", true), ("weight_scale", "input_scale", false)]
        {
            for (scale_shape, scales) in
                [(&[][..], &by_row[..1]), (&[1], &by_row[..1]), (&[4], &by_row[..]), (&[4, 1], &by_row[..])]
            {
                let mut tensors = vec![
                    weight(),
                    f32s(&format!("a.{end}"), scale_shape, scales),
                    f32s("a.bias", &[4], &by_row),
                ];
                let expected = scaled("a.weight", format, &[4, 6], scales);
                holds(&of(&tensors), &expected, &["a.bias", "a.weight"]);
                // The scale of activations and the mark of the file change nothing.
                tensors.push(f32s(&format!("a.{input}"), &[], &[0.3]));
                if old {
                    tensors.push(marker("", format.0));
                } else {
                    let name = if format.1 == 3 { "float8_e4m3fn" } else { "float8_e5m2" };
                    tensors.push(note("a", name));
                }
                let checkpoint = of(&tensors);
                holds(&checkpoint, &expected, &["a.bias", "a.weight"]);
                assert_eq!(checkpoint.stored_as("a.weight"), Some(format!("{} scaled", format.0)));
            }
        }
    }
}

#[test]
fn a_scale_in_bf16_counts_as_it_is() {
    let scale = ("a.weight_scale".to_string(), "BF16".to_string(), vec![], 0x3e4du16.to_le_bytes().to_vec());
    let expected = scaled("a.weight", FORMATS[0], &[4, 6], &[f32::from_bits(0x3e4d_0000)]);
    holds(&of(&[fp8("a.weight", "F8_E4M3", &[4, 6]), scale]), &expected, &["a.weight"]);
}

#[test]
fn a_note_in_the_header_is_read_as_one_beside_the_layer() {
    let (_folder, path) = temp("w.safetensors");
    let tensors = [fp8("a.weight", "F8_E4M3", &[4, 6]), f32s("a.weight_scale", &[], &[0.25])];
    let notes = |format: &str| {
        json!({ "format_version": "1.0", "layers": { "a": { "format": format } } }).to_string()
    };
    write_with(&path, &tensors, "_quantization_metadata", &notes("float8_e4m3fn"));
    holds(&super::open(&path), &scaled("a.weight", FORMATS[0], &[4, 6], &[0.25]), &["a.weight"]);
    let refused = |tensors: &[Stored], format: &str| {
        write_with(&path, tensors, "_quantization_metadata", &notes(format));
        match Checkpoint::open(&path, super::Access::Map) {
            Err(Error::File { problem: FileProblem::Tensor { name, reason }, .. }) => (name, reason),
            other => panic!("{other:?}"),
        }
    };
    let (name, reason) = refused(&tensors, "mxfp8");
    assert!(name == "a.weight" && reason.contains("mxfp8"), "{name}: {reason}");
    let (name, reason) = refused(&tensors, "float8_e5m2");
    assert!(name == "a.weight" && reason.contains("F8_E4M3"), "{name}: {reason}");
    let (name, reason) = refused(&tensors[..1], "float8_e4m3fn");
    assert!(name == "a.weight" && reason.contains("scale"), "{name}: {reason}");
    let (name, _) = refused(&[f32s("b.weight", &[1], &[1.0])], "float8_e4m3fn");
    assert_eq!(name, "a.weight");
}

#[test]
fn scales_that_do_not_fit_are_refused_by_name() {
    let weight = || fp8("a.weight", "F8_E4M3", &[4, 6]);
    let scale = |shape: &[i64]| {
        let count = shape.iter().product::<i64>() as usize;
        f32s("a.weight_scale", shape, &vec![0.5; count])
    };
    let is = |tensors: &[Stored], name: &str, says: &str| {
        let (named, reason) = refused(tensors);
        assert!(named == name && reason.contains(says), "{named}: {reason}");
    };
    for shape in [&[6][..], &[2], &[4, 2], &[2, 2], &[1, 4], &[0], &[4, 6], &[24]] {
        is(&[weight(), scale(shape)], "a.weight_scale", "one for each of the 4 rows");
    }
    let integer = ("a.weight_scale".into(), "I32".into(), vec![], vec![1, 0, 0, 0]);
    is(&[weight(), integer], "a.weight_scale", "one number");
    // No fp8 to scale.
    is(&[scale(&[])], "a.weight_scale", "a.weight");
    is(&[f32s("a.weight", &[1], &[1.0]), scale(&[])], "a.weight_scale", "no fp8");
    is(&[f32s("a.weight", &[1], &[1.0]), f32s("a.input_scale", &[], &[1.0])], "a.input_scale", "no fp8");
    is(&[f32s("a.scale_input", &[], &[1.0])], "a.scale_input", "no fp8");
    // A second one.
    let (name, reason) = refused(&[weight(), scale(&[]), f32s("a.scale_weight", &[], &[0.5])]);
    assert!(name.starts_with("a.") && reason.contains("second"), "{name}: {reason}");
    // None, where the file promises one, or others have one.
    is(&[weight(), marker("", "F8_E4M3")], "a.weight", "missing");
    is(&[weight(), scale(&[]), fp8("b.weight", "F8_E4M3", &[2, 2])], "b.weight", "missing");
    is(&[weight(), note("a", "float8_e4m3fn")], "a.weight", "missing");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let weight = || fp8("a.weight", "F8_E4M3", &[4, 6]);
    let packed = ("a.weight".to_string(), "U8".to_string(), vec![4, 3], vec![0; 12]);
    let second = f32s("a.weight_scale_2", &[], &[1.0]);
    let (name, reason) = refused(&[packed, fp8("a.weight_scale", "F8_E4M3", &[4, 1]), second]);
    assert!(name == "a.weight_scale_2" && reason.contains("nvfp4"), "{name}: {reason}");
    let (name, reason) = refused(&[weight(), f32s("a.weight_scale", &[], &[1.0]), note("a", "mxfp8")]);
    assert!(name == "a.weight" && reason.contains("mxfp8"), "{name}: {reason}");
    let whole = ("a.weight".to_string(), "I8".to_string(), vec![4, 6], vec![1; 24]);
    let (name, reason) = refused(&[whole, f32s("a.weight_scale", &[], &[1.0]), note("a", "int8_tensorwise")]);
    assert!(name == "a.weight" && reason.contains("int8_tensorwise"), "{name}: {reason}");
    // A note that is no JSON, or not of this form.
    for text in ["", "{", "[]", "{}", r#"{"format":1}"#] {
        let note = ("a.comfy_quant".into(), "U8".into(), vec![text.len() as i64], text.as_bytes().to_vec());
        assert_eq!(
            refused(&[weight(), f32s("a.weight_scale", &[], &[1.0]), note]).0,
            "a.comfy_quant",
            "{text}"
        );
    }
}

#[test]
fn what_is_not_scaled_by_its_makers_needs_no_scale() {
    // ComfyUI scales linear layers; tables that are looked up in, and vectors, stay as they are.
    let tensors = [
        fp8("a.weight", "F8_E4M3", &[4, 6]),
        f32s("a.scale_weight", &[], &[2.0]),
        fp8("shared.weight", "F8_E4M3", &[4, 6]),
        fp8("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "F8_E4M3", &[4, 2]),
        fp8("norm.scale", "F8_E4M3", &[4]),
        marker("", "F8_E4M3"),
    ];
    let checkpoint = of(&tensors);
    assert_eq!(rows(&checkpoint, &["shared.weight"]), scaled("shared.weight", FORMATS[0], &[4, 6], &[1.0]));
    assert_eq!(rows(&checkpoint, &["a.weight"]), scaled("a.weight", FORMATS[0], &[4, 6], &[2.0]));
}

/// Each of q, k and v has its own bytes, and its own scale for all of it, for each row, or none.
fn split(scales: [&[f32]; 3]) -> (Vec<Stored>, Vec<f32>) {
    let (mut tensors, mut joined) = (Vec::new(), Vec::new());
    for (which, scales) in ["q", "k", "v"].into_iter().zip(scales) {
        let name = format!("transformer_blocks.0.attn.to_{which}");
        let weight = format!("{name}.weight");
        joined.extend(scaled(&weight, FORMATS[0], &[4, 4], if scales.is_empty() { &[1.0] } else { scales }));
        tensors.push(fp8(&weight, "F8_E4M3", &[4, 4]));
        if !scales.is_empty() {
            tensors.push(f32s(&format!("{name}.weight_scale"), &[scales.len() as i64], scales));
        }
    }
    tensors.push(f32s("transformer_blocks.0.attn.norm_added_k.weight", &[4], &[1.0; 4]));
    (tensors, joined)
}

#[test]
fn q_k_and_v_with_a_scale_each_are_joined_to_the_right_matrix() {
    let by_row = [0.5f32, 0.1, 7.0, 1e-4];
    for scales in [[&[0.5f32][..], &[0.1], &[7.0]], [&by_row, &[3.0], &by_row], [&[], &[], &[]]] {
        let (tensors, expected) = split(scales);
        let checkpoint = of(&tensors).official();
        let name = "double_blocks.0.img_attn.qkv.weight";
        assert_eq!(rows(&checkpoint, &[name]), expected);
        // Without a kind, too: what is quantised comes in f32.
        assert_eq!(checkpoint.tensor(name).unwrap().kind(), Kind::Float);
        assert_eq!(super::values(&checkpoint.tensor(name).unwrap()), expected);
        let rounded: Vec<f32> = expected.iter().map(|&v| bf16(v)).collect();
        assert_eq!(super::values(&checkpoint.tensor_as(name, Kind::BFloat16).unwrap()), rounded);
    }
}

/// A small model with every matrix in fp8, beside a scale for it or for each of its rows.
pub fn model_in_fp8(format: &str, prefix: &str, scales: Option<bool>) -> Vec<Stored> {
    let (_model, vs) = flux1(&Flux1Params { axes_dim: [4, 14, 14], ..tiny() });
    init(&vs, 5).unwrap();
    in_fp8(stored_all(&vs, Kind::Float), format, prefix, scales)
}

/// These tensors with every matrix in fp8; `scales`: of each row, or of each tensor.
pub fn in_fp8(tensors: Vec<Stored>, format: &str, prefix: &str, scales: Option<bool>) -> Vec<Stored> {
    let kind = if format == "F8_E4M3" { Kind::Float8e4m3fn } else { Kind::Float8e5m2 };
    let mut out = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let &[rows, columns] = &shape[..] else {
            out.push((format!("{prefix}{name}"), dtype, shape, bytes));
            continue;
        };
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let matrix = Tensor::from_slice(&values).view([rows, columns]);
        let scale = match scales {
            None => Tensor::ones([1, 1], (Kind::Float, Device::Cpu)),
            Some(true) => matrix.abs().amax([1], true) / 400.0,
            Some(false) => matrix.abs().max().view([1, 1]) / 400.0,
        };
        let stored = (matrix / &scale).to_kind(kind).view_dtype(Kind::Uint8).flatten(0, -1);
        out.push((format!("{prefix}{name}"), format.into(), shape, Vec::try_from(stored).unwrap()));
        if scales.is_some() {
            let scale = super::values(&scale);
            let name = format!("{prefix}{}.scale_weight", name.strip_suffix(".weight").unwrap());
            out.push(f32s(&name, &[scale.len() as i64], &scale));
        }
    }
    if scales.is_some() {
        out.push(marker(prefix, format));
    }
    out
}

#[test]
fn a_model_that_is_kept_gives_the_bits_of_one_that_is_cast() {
    for format in ["F8_E4M3", "F8_E5M2"] {
        for scales in [None, Some(false), Some(true)] {
            let checkpoint = of(&model_in_fp8(format, "", scales));
            for kind in [Kind::BFloat16, Kind::Float, Kind::Half] {
                kept_is_as_cast(&checkpoint, kind);
            }
        }
    }
}

#[test]
fn a_scaled_model_behind_comfys_prefix_is_the_same_model() {
    let prefix = "model.diffusion_model.";
    let plain = of(&model_in_fp8("F8_E4M3", "", Some(false)));
    let mut tensors = model_in_fp8("F8_E4M3", prefix, Some(false));
    // Another model of the file is in fp8 without scales: that of the first is none of its business.
    tensors.push(fp8(
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
        "F8_E4M3",
        &[4, 4],
    ));
    tensors.push(f32s("text_encoders.t5xxl.transformer.shared.weight", &[1, 1], &[1.0]));
    let whole = of(&tensors);
    let found = whole.contained();
    let transformer = found.iter().find(|model| model.prefix == prefix).unwrap();
    let checkpoint = whole.part(&transformer.prefix, &transformer.family);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), plain.names().collect::<Vec<_>>());
    for name in plain.names() {
        assert_eq!(rows(&checkpoint, &[name]), rows(&plain, &[name]), "{name}");
    }
    kept_is_as_cast(&checkpoint, Kind::BFloat16);

    // Within one model, a scale that is missing is found behind the prefix, too.
    tensors.retain(|(name, ..)| *name != format!("{prefix}img_in.scale_weight"));
    assert_eq!(refused(&tensors).0, format!("{prefix}img_in.weight"));
}

#[test]
fn a_plain_checkpoint_over_kept_weights_counts() {
    let quantised = of(&model_in_fp8("F8_E4M3", "", None));
    let params = Flux1Params::from_shapes(|name| quantised.shape(name)).unwrap();
    let (other, other_vs) = flux1(&params);
    init(&other_vs, 9).unwrap();
    let plain = of(&stored_all(&other_vs, Kind::Float));
    for through_the_linears in [true, false] {
        let (model, vs) = flux1(&params);
        let keep = || LoadOptions {
            kind: Some(Kind::Float),
            keep_quantized: Some(model.linears()),
            ..Default::default()
        };
        quantised.load(&vs, keep()).unwrap();
        let before = velocity(&model, Kind::Float).unwrap();
        let options = if through_the_linears { keep() } else { LoadOptions::default() };
        assert_eq!(plain.load(&vs, options).unwrap().quantized, 0);
        assert!(model.linears().names().all(|name| !model.linears().is_stored(name)));
        assert!(velocity(&model, Kind::Float).unwrap().equal(&velocity(&other, Kind::Float).unwrap()));
        // And back again.
        quantised.load(&vs, keep()).unwrap();
        assert!(velocity(&model, Kind::Float).unwrap().equal(&before));
    }
}

#[test]
fn a_load_that_is_refused_leaves_kept_weights_as_they_are() {
    let tensors = model_in_fp8("F8_E4M3", "", None);
    let quantised = of(&tensors);
    let params = Flux1Params::from_shapes(|name| quantised.shape(name)).unwrap();
    let (model, vs) = flux1(&params);
    let keep = || LoadOptions {
        kind: Some(Kind::Float),
        keep_quantized: Some(model.linears()),
        ..Default::default()
    };
    assert!(matches!(velocity(&model, Kind::Float), Err(Error::Unfilled { count, .. }) if count == vs.len()));
    let damaged = of(&tensors[1..]);
    super::mismatch(damaged.load(&vs, keep()));
    assert!(matches!(velocity(&model, Kind::Float), Err(Error::Unfilled { count, .. }) if count == vs.len()));
    quantised.load(&vs, keep()).unwrap();
    let before = velocity(&model, Kind::Float).unwrap();
    super::mismatch(damaged.load(&vs, keep()));
    assert!(velocity(&model, Kind::Float).unwrap().equal(&before));
}

#[test]
fn kept_weights_outlive_the_checkpoint_and_the_name_of_the_file() {
    let (folder, path) = temp("w.safetensors");
    write_file(&path, &model_in_fp8("F8_E4M3", "", Some(true)));
    let checkpoint = super::open(&path);
    let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
    let (model, vs) = flux1(&params);
    checkpoint
        .load(&vs, LoadOptions { kind: None, keep_quantized: Some(model.linears()), ..Default::default() })
        .unwrap();
    let before = velocity(&model, Kind::BFloat16).unwrap();
    drop((checkpoint, vs));
    std::fs::remove_file(&path).unwrap();
    drop(folder);
    assert!(velocity(&model, Kind::BFloat16).unwrap().equal(&before));
}

#[test]
fn a_widened_matrix_in_fp8_has_zeros_behind_its_own_columns() {
    let tensors = [fp8("img_in.weight", "F8_E4M3", &[4, 6]), f32s("img_in.scale_weight", &[], &[0.5])];
    let checkpoint = of(&tensors).widened("img_in.weight", 9);
    let own = scaled("img_in.weight", FORMATS[0], &[4, 6], &[0.5]);
    let expected: Vec<f32> = own.chunks(6).flat_map(|row| [row, &[0.0; 3]].concat()).collect();
    assert_eq!(rows(&checkpoint, &["img_in.weight"]), expected);
    assert_eq!(super::values(&checkpoint.tensor("img_in.weight").unwrap()), expected);
    assert_eq!(super::sum(&checkpoint.types_in_memory(Kind::BFloat16, true)), 2 * 4 * 9);
}

#[test]
fn a_scale_in_another_shard_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let weight = fp8("a.weight", "F8_E4M3", &[4, 6]);
    let scale = f32s("a.weight_scale", &[], &[0.5]);
    std::fs::write(folder.path().join("a-1.safetensors"), file_bytes(&[weight])).unwrap();
    std::fs::write(folder.path().join("a-2.safetensors"), file_bytes(&[scale])).unwrap();
    let map = json!({ "weight_map": { "a.weight": "a-1.safetensors", "a.weight_scale": "a-2.safetensors" } });
    std::fs::write(folder.path().join("a.safetensors.index.json"), map.to_string()).unwrap();
    let checkpoint = super::open(folder.path());
    holds(&checkpoint, &scaled("a.weight", FORMATS[0], &[4, 6], &[0.5]), &["a.weight"]);
    assert!(try_of(&[fp8("a.weight", "F8_E4M3", &[4, 6])]).is_ok());
}
