//! Files that are wrong, cut short, damaged or something else: each gives an error that names it and says what is
//! wrong, and none a panic, an abort, a hang or a read past an end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::{Access, Checkpoint, Header, LoadOptions, Loaded};
use tch_flux::generation::{Parts, Pipeline, Settings};
use tch_flux::image::Image;
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};
use tch_flux::models::flux1::{Flux1, Flux1Params};
use tch_flux::nn::{declare, is_placeholder};
use tch_flux::{FileProblem, Mismatch};

use crate::support::{
    BOTH, Stored, f32s, file_bytes, framed, header, layout, problem, refused, refused_at, temp, variables,
    write_file, write_sparse,
};

fn entry(name: &str, dtype: &str, shape: &str, begin: &str, end: &str) -> String {
    format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
}

/// A file with these entries and `len` bytes of data.
fn with_entries(entries: &[String], len: usize) -> Vec<u8> {
    framed(format!("{{{}}}", entries.join(",")), &vec![0; len])
}

/// What is wrong with a file of one entry of 4 bytes of data.
fn one_entry(dtype: &str, shape: &str, begin: &str, end: &str) -> FileProblem {
    refused(with_entries(&[entry("t", dtype, shape, begin, end)], 4))
}

/// A model of a matrix `a.weight` [4, 6] and a vector `a.bias` [4].
fn store() -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    let _ = declare(&(vs.root() / "a"), "weight", &[4, 6]);
    let _ = declare(&(vs.root() / "a"), "bias", &[4]);
    vs
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 * 0.5 - 3.0).collect()
}

/// The file that [`store`] asks for.
fn right() -> Vec<Stored> {
    vec![f32s("a.bias", &[4], &ramp(4)), f32s("a.weight", &[4, 6], &ramp(24))]
}

fn load(tensors: &[Stored], vs: &VarStore) -> tch_flux::Result<Loaded> {
    let (_folder, path) = temp("w.safetensors");
    write_file(&path, tensors);
    Checkpoint::open(&path, Access::Map)?.load(vs, LoadOptions::default())
}

/// How the file differs from the model; nothing of the model may be filled.
fn mismatch(tensors: &[Stored], vs: &VarStore) -> Mismatch {
    let found = mismatched(load(tensors, vs));
    assert!(variables(vs).values().all(is_placeholder), "nothing is filled");
    found
}

fn mismatched<T>(result: tch_flux::Result<T>) -> Mismatch {
    match result.err().expect("must be refused") {
        Error::Mismatch(mismatch) => {
            assert_eq!(mismatch.files.len(), 1);
            assert!(mismatch.to_string().starts_with(&mismatch.files[0].display().to_string()));
            assert!(mismatch.to_string().contains(&mismatch.looks_like));
            *mismatch
        }
        other => panic!("{other:?}"),
    }
}

/// The result, unless it takes too long to be anything but a hang.
fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(run()));
    receive.recv_timeout(Duration::from_secs(60)).expect("neither hangs nor panics")
}

#[test]
fn the_file_that_the_others_are_made_from_is_right() {
    let vs = store();
    assert_eq!(load(&right(), &vs).unwrap().tensors, 2);
}

// Framing.

#[test]
fn an_empty_file_is_refused_with_its_length() {
    assert_eq!(refused([]), FileProblem::TooShort { len: 0 });
}

#[test]
fn a_file_of_fewer_than_eight_bytes_is_refused_with_its_length() {
    for len in 1..8u8 {
        assert_eq!(refused(vec![1; len.into()]), FileProblem::TooShort { len: len.into() });
    }
}

#[test]
fn a_header_of_length_zero_is_refused() {
    assert_eq!(refused(framed("", &[0; 8])), FileProblem::HeaderPastEnd { len: 0, file_len: 16 });
}

#[test]
fn a_header_longer_than_the_format_allows_is_refused_with_the_length() {
    for len in [100_000_001, 1 << 63, u64::MAX] {
        let bytes = [&len.to_le_bytes()[..], b"{}      "].concat();
        assert_eq!(refused(bytes), FileProblem::HeaderTooLong { len });
    }
}

#[test]
fn a_header_that_reaches_past_the_end_is_refused_with_both_lengths() {
    let bytes = [&100_000_000u64.to_le_bytes()[..], b"{}      "].concat();
    assert_eq!(refused(bytes), FileProblem::HeaderPastEnd { len: 100_000_000, file_len: 16 });
    let bytes = [&9u64.to_le_bytes()[..], b"{}      "].concat();
    assert_eq!(refused(bytes), FileProblem::HeaderPastEnd { len: 9, file_len: 16 });
}

#[test]
fn a_header_that_is_not_utf8_is_refused_with_the_place() {
    assert_eq!(refused(framed(b"{\"\xff\":1}", &[])), FileProblem::HeaderNotUtf8 { at: 2 });
}

#[test]
fn a_header_that_is_not_json_is_refused() {
    for header in ["{ ", "{]", "hello, world", "[]", "\"t\"", "{}{}", "{\"t\":1}", "{\"t\":{}}", " {}", "nul"]
    {
        assert!(matches!(refused(framed(header, &[])), FileProblem::HeaderNotJson { .. }), "{header}");
    }
}

#[test]
fn a_field_that_the_format_does_not_know_is_refused_by_name() {
    let header = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"offset":9}}"#;
    let FileProblem::HeaderNotJson { reason } = refused(framed(header, &[0; 4])) else { panic!() };
    assert!(reason.contains("offset"), "{reason}");
}

#[test]
fn a_field_that_is_missing_or_stands_twice_is_refused_by_name() {
    for header in [
        r#"{"t":{"dtype":"F32","data_offsets":[0,4]}}"#,
        r#"{"t":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}"#,
    ] {
        let FileProblem::HeaderNotJson { reason } = refused(framed(header, &[0; 4])) else { panic!() };
        assert!(reason.contains("shape"), "{reason}");
    }
}

#[test]
fn deep_nesting_is_refused_without_exhausting_the_stack() {
    let deep = "[".repeat(100_000);
    for header in [
        deep.clone(),
        format!("{{\"t\":{deep}"),
        format!("{{\"t\":{{\"shape\":{deep}"),
        format!("{{\"__metadata__\":{{\"a\":{deep}"),
        "{\"t\":".repeat(100_000),
    ] {
        assert!(matches!(refused(framed(header, &[])), FileProblem::HeaderNotJson { .. }));
    }
}

#[test]
fn a_header_of_99_megabytes_of_metadata_loads() {
    let text = "x".repeat(99_000_000);
    let header = format!("{{\"__metadata__\":{{\"a\":\"{text}\"}},{}}}", entry("t", "F32", "[1]", "0", "4"));
    let (_folder, path) = temp("w.safetensors");
    std::fs::write(&path, framed(header, &[0; 4])).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    assert_eq!(checkpoint.headers()[0].metadata["a"].len(), 99_000_000);
    assert_eq!(f32::try_from(checkpoint.tensor("t").unwrap()).unwrap(), 0.0);
}

#[test]
fn a_header_padded_to_99_megabytes_loads() {
    let header = format!("{{{}}}", entry("t", "F32", "[1]", "0", "4"));
    let bytes = framed(header.clone() + &" ".repeat(99_000_000 - header.len()), &[0; 4]);
    assert_eq!(Header::parse(&bytes[8..bytes.len() - 4], bytes.len() as u64).unwrap().entries.len(), 1);
}

#[test]
fn a_message_does_not_repeat_megabytes_of_the_header() {
    let long = "x".repeat(10_000_000);
    for header in [
        format!("{{{}}}", entry(&long, "F32", "[1]", "0", "4")),
        format!("{{{}}}", entry("t", &long, "[1]", "0", "4")),
        format!("{{\"t\":{{\"dtype\":\"F32\",\"shape\":\"{long}\",\"data_offsets\":[0,4]}}}}"),
        format!("{{\"t\":{{\"{long}\":0}}}}"),
        format!("{{\"t\":\"{long}\"}}"),
        format!("{{\"{long}\":1,\"{long}\":1}}"),
        format!("{{{0},{0}}}", entry(&long, "F32", "[1]", "0", "4")),
    ] {
        refused(framed(header, &[0; 4])); // which looks at the message's length
    }
    let many = format!("[{}1]", "1,".repeat(5_000_000));
    assert!(matches!(one_entry("F32", &many, "0", "4"), FileProblem::Tensor { .. }));
}

#[test]
fn a_message_holds_no_control_characters_of_the_header() {
    for header in [r#"{"t":{"\u001b[2J\u0007":0}}"#, r#"{"t":"\u001b[2J"}"#, r#"{"\u001b[2J":1}"#] {
        refused(framed(header, &[])); // which looks for them
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let whole = file_bytes(&right());
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for len in 0..whole.len() {
        let problem = refused(&whole[..len]);
        match len {
            0..8 => assert_eq!(problem, FileProblem::TooShort { len: len as u64 }),
            _ if len < header_end => assert!(matches!(problem, FileProblem::HeaderPastEnd { .. }), "{len}"),
            _ => assert!(matches!(problem, FileProblem::TensorPastEnd { .. }), "{len}: {problem:?}"),
        }
    }
}

#[test]
fn a_truncated_file_is_refused_with_its_lengths() {
    let whole = file_bytes(&right());
    let problem = refused(&whole[..whole.len() - 1]);
    assert_eq!(problem, FileProblem::TensorPastEnd { name: "a.weight".into(), end: 112, len: 111 });
    assert!(problem.to_string().contains("cut short"));
}

#[test]
fn trailing_bytes_are_refused_with_their_count() {
    let mut bytes = file_bytes(&right());
    bytes.extend([0; 3]);
    assert_eq!(refused(bytes), FileProblem::TrailingBytes { bytes: 3 });
    assert_eq!(refused(framed("{}", &[0; 5])), FileProblem::TrailingBytes { bytes: 5 });
}

#[test]
fn a_file_without_tensors_opens_and_says_so() {
    let (_folder, path) = temp("w.safetensors");
    write_file(&path, &[]);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    let mismatch = mismatched(checkpoint.load(&store(), LoadOptions::default()));
    assert_eq!((mismatch.missing.len(), &mismatch.looks_like[..]), (2, "this holds no tensors"));
}

// Offsets and shapes.

#[test]
fn overlapping_tensors_are_refused_by_name() {
    let entries = [entry("a", "F32", "[2]", "0", "8"), entry("b", "F32", "[2]", "4", "12")];
    assert_eq!(refused(with_entries(&entries, 12)), FileProblem::Overlap { name: "b".into() });
    let entries = [entry("a", "F32", "[2]", "0", "8"), entry("b", "F32", "[2]", "0", "8")];
    assert_eq!(refused(with_entries(&entries, 8)), FileProblem::Overlap { name: "b".into() });
}

#[test]
fn a_hole_is_refused_with_its_bytes() {
    let entries = [entry("a", "F32", "[1]", "0", "4"), entry("b", "F32", "[1]", "8", "12")];
    assert_eq!(refused(with_entries(&entries, 12)), FileProblem::Hole { before: "b".into(), bytes: 4 });
    let entries = [entry("a", "F32", "[1]", "4", "8")];
    assert_eq!(refused(with_entries(&entries, 8)), FileProblem::Hole { before: "a".into(), bytes: 4 });
}

#[test]
fn entries_in_another_order_than_their_bytes_load() {
    let entries = [entry("a.weight", "F32", "[4,6]", "16", "112"), entry("a.bias", "F32", "[4]", "0", "16")];
    let data: Vec<u8> = ramp(28).iter().flat_map(|v| v.to_le_bytes()).collect();
    let (_folder, path) = temp("w.safetensors");
    std::fs::write(&path, framed(format!("{{{}}}", entries.join(",")), &data)).unwrap();
    for access in BOTH {
        let vs = store();
        Checkpoint::open(&path, access).unwrap().load(&vs, LoadOptions::default()).unwrap();
        assert_eq!(Vec::<f32>::try_from(&variables(&vs)["a.bias"]).unwrap(), ramp(28)[..4]);
        let weight = variables(&vs)["a.weight"].view([-1]);
        assert_eq!(Vec::<f32>::try_from(weight).unwrap(), ramp(28)[4..]);
    }
}

#[test]
fn reversed_offsets_are_refused() {
    assert!(matches!(one_entry("F32", "[1]", "4", "0"), FileProblem::Tensor { name, .. } if name == "t"));
}

#[test]
fn negative_fractional_and_huge_offsets_are_refused() {
    for (begin, end) in
        [("-4", "0"), ("0", "-4"), ("0", "4.0"), ("0", "1e400"), ("0", "18446744073709551616")]
    {
        assert!(
            matches!(one_entry("F32", "[1]", begin, end), FileProblem::HeaderNotJson { .. }),
            "{begin} {end}"
        );
    }
}

#[test]
fn offsets_near_the_largest_number_are_refused() {
    let (begin, end) = ("18446744073709551611", "18446744073709551615");
    assert!(matches!(one_entry("F32", "[1]", begin, end), FileProblem::TensorPastEnd { .. }));
}

#[test]
fn offsets_that_do_not_fit_the_shape_are_refused_by_name() {
    for (shape, end) in [("[2]", "4"), ("[1]", "3"), ("[]", "0"), ("[0]", "4")] {
        assert!(matches!(one_entry("F32", shape, "0", end), FileProblem::Tensor { name, .. } if name == "t"));
    }
}

#[test]
fn a_negative_or_fractional_size_is_refused() {
    for shape in ["[-1]", "[1.0]", "[null]", "1", "[[1]]", "[true]", "[18446744073709551616]"] {
        assert!(matches!(one_entry("F32", shape, "0", "4"), FileProblem::HeaderNotJson { .. }), "{shape}");
    }
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    for shape in [
        "[4294967296,4294967296]",
        "[4611686018427387904,4]",
        "[18446744073709551615]",
        "[4294967297,4294967297]",
    ] {
        let FileProblem::Tensor { reason, .. } = one_entry("F32", shape, "0", "4") else { panic!("{shape}") };
        assert!(reason.contains("overflow"), "{reason}");
    }
}

#[test]
fn an_empty_shape_with_a_size_beyond_i64_is_refused() {
    for shape in ["[0,9223372036854775808]", "[9223372036854775808,0]"] {
        assert!(matches!(one_entry("F32", shape, "0", "0"), FileProblem::Tensor { name, .. } if name == "t"));
    }
}

#[test]
fn an_empty_tensor_with_enormous_sizes_never_panics() {
    for shape in
        ["[0,9223372036854775807]", "[0,9223372036854775807,9223372036854775807]", "[4611686018427387904,0]"]
    {
        let (_folder, path) = temp("w.safetensors");
        std::fs::write(&path, with_entries(&[entry("t", "F32", shape, "0", "0")], 0)).unwrap();
        for access in BOTH {
            if let Ok(checkpoint) = Checkpoint::open(&path, access)
                && let Ok(tensor) = checkpoint.tensor("t")
            {
                assert_eq!(tensor.numel(), 0);
            }
        }
    }
}

#[test]
fn nine_axes_are_refused_and_eight_are_not() {
    assert!(matches!(one_entry("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4"), FileProblem::Tensor { .. }));
    let (_folder, path) = temp("w.safetensors");
    std::fs::write(&path, with_entries(&[entry("t", "F32", "[1,1,1,1,1,1,1,1]", "0", "4")], 4)).unwrap();
    assert_eq!(Checkpoint::open(&path, Access::Map).unwrap().tensor("t").unwrap().size(), [1; 8]);
}

#[test]
fn an_unknown_dtype_is_refused_by_name() {
    for dtype in ["F31", "f32", "", "FLOAT", "\\u0000"] {
        let FileProblem::Tensor { name, reason } = one_entry(dtype, "[1]", "0", "4") else {
            panic!("{dtype}")
        };
        assert!(name == "t" && reason.contains("unknown type"), "{reason}");
    }
    assert!(matches!(
        refused(framed(r#"{"t":{"dtype":7,"shape":[1],"data_offsets":[0,4]}}"#, &[0; 4])),
        FileProblem::HeaderNotJson { .. }
    ));
}

#[test]
fn a_type_of_half_bytes_is_refused_on_loading_by_name() {
    let (_folder, path) = temp("w.safetensors");
    std::fs::write(&path, with_entries(&[entry("t", "F4", "[8]", "0", "4")], 4)).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let _ = declare(&vs.root(), "t", &[8]);
    for access in BOTH {
        let checkpoint = Checkpoint::open(&path, access).unwrap();
        let mismatch = mismatched(
            checkpoint.load(&vs, LoadOptions { kind: Some(Kind::BFloat16), ..Default::default() }),
        );
        assert_eq!(mismatch.of_another_kind.len(), 1);
        assert!(mismatch.of_another_kind[0].1.contains("F4"));
        let problem = problem(checkpoint.tensor("t"), &path);
        assert!(
            matches!(problem, FileProblem::Tensor { name, reason } if name == "t" && reason.contains("F4"))
        );
    }
}

#[test]
fn half_bytes_that_fill_no_whole_byte_are_refused() {
    let bytes = with_entries(&[entry("t", "F4", "[7]", "0", "4")], 4);
    assert!(matches!(refused(bytes), FileProblem::Tensor { .. }));
}

#[test]
fn unaligned_data_load_with_the_right_values() {
    for pad in 0..8 {
        let (json, _) = header(&[
            ("a.bias".into(), "F32".into(), vec![4]),
            ("a.weight".into(), "F32".into(), vec![4, 6]),
        ]);
        let json = format!("{json}{}", " ".repeat(pad));
        let data: Vec<u8> = ramp(28).iter().flat_map(|v| v.to_le_bytes()).collect();
        let (_folder, path) = temp("w.safetensors");
        std::fs::write(&path, framed(json, &data)).unwrap();
        for access in BOTH {
            let vs = store();
            let loaded = Checkpoint::open(&path, access).unwrap().load(&vs, LoadOptions::default()).unwrap();
            let aligned = access == Access::Map && pad % 4 == 0;
            assert_eq!(loaded.borrowed, if aligned { 2 } else { 0 }, "{access:?} {pad}");
            assert_eq!(Vec::<f32>::try_from(&variables(&vs)["a.bias"]).unwrap(), ramp(28)[..4]);
            let weight = variables(&vs)["a.weight"].view([-1]);
            assert_eq!(Vec::<f32>::try_from(weight).unwrap(), ramp(28)[4..]);
        }
    }
}

#[test]
fn a_name_that_stands_twice_is_refused_by_name() {
    let entries = [entry("twin", "F32", "[1]", "0", "4"), entry("twin", "F32", "[1]", "4", "8")];
    let FileProblem::HeaderNotJson { reason } = refused(with_entries(&entries, 8)) else { panic!() };
    assert!(reason.contains("twin") && reason.contains("twice"), "{reason}");
    let header = r#"{"__metadata__":{},"__metadata__":{}}"#;
    assert!(matches!(refused(framed(header, &[])), FileProblem::HeaderNotJson { .. }));
}

#[test]
fn names_with_nul_with_paths_or_without_letters_are_refused() {
    for name in ["a\\u0000b", "../a", "a/b", "..\\\\a", "/etc/a", "", "\\n", "\\u001b[31m"] {
        let bytes = with_entries(&[entry(name, "F32", "[1]", "0", "4")], 4);
        assert!(matches!(refused(bytes), FileProblem::Tensor { .. }), "{name}");
    }
}

#[test]
fn a_name_of_a_megabyte_is_refused_in_a_short_message() {
    let bytes = with_entries(&[entry(&"n".repeat(1 << 20), "F32", "[1]", "0", "4")], 4);
    let problem = refused(bytes);
    assert!(matches!(&problem, FileProblem::Tensor { reason, .. } if reason.contains("1048576")));
    assert!(problem.to_string().len() < 300);
}

#[test]
fn metadata_that_are_no_map_of_strings_are_refused() {
    for metadata in ["1", "[]", "\"text\"", "null", "{\"a\":1}", "{\"a\":null}", "{\"a\":{\"b\":\"c\"}}"] {
        let problem = refused(framed(format!("{{\"__metadata__\":{metadata}}}"), &[]));
        assert!(matches!(problem, FileProblem::HeaderNotJson { .. }), "{metadata}");
    }
}

#[test]
fn flipped_bits_give_a_result_or_an_error_and_never_a_panic() {
    let whole = file_bytes(&right());
    let (_folder, path) = temp("w.safetensors");
    // xorshift64
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut good, mut bad) = (0, 0);
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(3) {
            bytes[random(whole.len())] ^= 1 << random(8);
        }
        std::fs::write(&path, &bytes).unwrap();
        for access in BOTH {
            let vs = store();
            let loaded = Checkpoint::open(&path, access).and_then(|c| c.load(&vs, LoadOptions::default()));
            match loaded {
                Ok(loaded) => {
                    assert_eq!(loaded.tensors, 2);
                    variables(&vs).values().for_each(|t| assert!(f64::try_from(t.sum(Kind::Float)).is_ok()));
                    good += 1;
                }
                Err(Error::File { path: named, .. }) => {
                    assert_eq!(named, path);
                    bad += 1;
                }
                Err(Error::Mismatch(_)) => bad += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(good > 100 && bad > 100, "{good} loaded, {bad} refused");
}

#[test]
fn every_byte_of_the_header_may_be_any_other() {
    let whole = file_bytes(&right());
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 8..header_end {
        for byte in [0, b'"', b'0', b'9', b'-', b'{', b'}', b'[', b',', b'.', b'e', b'\\', 0x7f, 0xff] {
            let mut json = whole[8..header_end].to_vec();
            json[at - 8] = byte;
            // Whether it can be read or not: it returns.
            let _ = Header::parse(&json, whole.len() as u64);
        }
    }
}

// Content.

#[test]
fn integers_are_refused_by_name_and_type() {
    for (dtype, bytes) in [("I64", 8), ("U8", 1), ("BOOL", 1), ("I32", 4)] {
        let mut tensors = right();
        tensors[0] = ("a.bias".into(), dtype.into(), vec![4], vec![0; 4 * bytes]);
        let mismatch = mismatch(&tensors, &store());
        assert!(
            mismatch.missing.is_empty() && mismatch.unexpected.is_empty() && mismatch.misshapen.is_empty()
        );
        let [(name, why)] = &mismatch.of_another_kind[..] else { panic!() };
        assert!(name == "a.bias" && why.contains(dtype), "{why}");
    }
}

#[test]
fn fp8_weights_without_the_scales_that_the_file_promises_are_refused_by_name() {
    for dtype in ["F8_E4M3", "F8_E5M2"] {
        let file: Vec<Stored> = vec![
            ("a.weight".into(), dtype.into(), vec![4, 6], vec![0; 24]),
            ("scaled_fp8".into(), dtype.into(), vec![0], vec![]),
        ];
        let (_folder, path) = temp("w.safetensors");
        write_file(&path, &file);
        match Checkpoint::open(&path, Access::Map) {
            Err(Error::File { problem: FileProblem::Tensor { name, reason }, .. }) => {
                assert!(name == "a.weight" && reason.contains("scale is missing"), "{name} {reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_vector_of_another_rank_or_length_is_misshapen() {
    for shape in [vec![1], vec![1, 4], vec![4, 1], vec![], vec![5]] {
        let mut tensors = right();
        let count = shape.iter().product::<i64>() as usize;
        tensors[0] = f32s("a.bias", &shape, &ramp(count));
        let mismatch = mismatch(&tensors, &store());
        assert_eq!(mismatch.misshapen, [("a.bias".to_string(), vec![4], shape)]);
    }
}

#[test]
fn a_transposed_matrix_is_misshapen() {
    let mut tensors = right();
    tensors[1] = f32s("a.weight", &[6, 4], &ramp(24));
    let mismatch = mismatch(&tensors, &store());
    assert_eq!(mismatch.misshapen, [("a.weight".to_string(), vec![4, 6], vec![6, 4])]);
    assert!(mismatch.to_string().contains("a.weight is [6, 4], not [4, 6]"), "{mismatch}");
}

#[test]
fn a_transposed_square_cannot_be_told_and_loads_as_it_stands() {
    let vs = VarStore::new(Device::Cpu);
    let _ = declare(&vs.root(), "square", &[3, 3]);
    let (square, transposed) = ([1., 2., 3., 4., 5., 6., 7., 8., 9.], [1., 4., 7., 2., 5., 8., 3., 6., 9.]);
    for values in [square, transposed] {
        load(&[f32s("square", &[3, 3], &values)], &vs).unwrap();
        assert_eq!(Vec::<f32>::try_from(variables(&vs)["square"].view([-1])).unwrap(), values);
    }
}

#[test]
fn everything_that_differs_is_listed_at_once() {
    let vs = store();
    let _ = declare(&(vs.root() / "b"), "weight", &[2]);
    let _ = declare(&(vs.root() / "c"), "weight", &[2]);
    let tensors = [
        ("a.bias".into(), "I64".into(), vec![4], vec![0; 32]),
        f32s("a.weight", &[6, 4], &ramp(24)),
        f32s("b.weight", &[2], &ramp(2)),
        f32s("d.weight", &[2], &ramp(2)),
    ];
    let mismatch = mismatch(&tensors, &vs);
    assert_eq!(mismatch.missing, ["c.weight"]);
    assert_eq!(mismatch.unexpected, ["d.weight"]);
    assert_eq!(mismatch.misshapen.len(), 1);
    assert_eq!(mismatch.of_another_kind.len(), 1);
    let text = mismatch.to_string();
    for part in ["missing (1): c.weight", "unexpected (1): d.weight", "misshapen (1)", "of another kind (1)"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_tensor_that_is_asked_for_by_a_wrong_name_is_missing() {
    let (_folder, path) = temp("w.safetensors");
    write_file(&path, &right());
    let mismatch = mismatched(Checkpoint::open(&path, Access::Map).unwrap().tensor("weight"));
    assert_eq!(mismatch.missing, ["weight"]);
}

#[test]
fn a_long_list_of_names_is_cut_in_the_message_and_whole_in_the_value() {
    let mut tensors = right();
    tensors.extend((0..1000).map(|i| f32s(&format!("extra.{i:04}"), &[1], &[0.0])));
    let mismatch = mismatch(&tensors, &store());
    assert_eq!(mismatch.unexpected.len(), 1000);
    assert!(mismatch.to_string().contains("unexpected (1000): extra.0000"));
    assert!(mismatch.to_string().len() < 1000);
}

/// Loads a file of this layout, whose data are a hole, into FLUX.1 dev.
fn into_dev(lines: &[crate::support::Line]) -> Mismatch {
    let (_folder, path) = temp("flux1-dev.safetensors");
    write_sparse(&path, lines);
    let vs = VarStore::new(Device::Cpu);
    Flux1::new(vs.root(), &Flux1Params::DEV).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    let mismatch = mismatched(checkpoint.load(&vs, LoadOptions::default()));
    assert!(variables(&vs).values().all(is_placeholder), "nothing is filled");
    mismatch
}

fn prefixed(name: &str, prefix: &str) -> Vec<crate::support::Line> {
    layout(name).into_iter().map(|(name, dtype, shape)| (format!("{prefix}{name}"), dtype, shape)).collect()
}

#[test]
fn prefixed_names_are_recognised_and_listed() {
    let mismatch = into_dev(&prefixed("flux1-dev", "model.diffusion_model."));
    assert_eq!((mismatch.missing.len(), mismatch.unexpected.len()), (780, 780));
    assert!(mismatch.looks_like.contains("FLUX.1 dev, in ComfyUI's names"), "{}", mismatch.looks_like);
}

#[test]
fn a_prefix_of_training_code_is_said() {
    let mismatch = into_dev(&prefixed("flux1-dev", "module."));
    assert_eq!((mismatch.missing.len(), mismatch.unexpected.len()), (780, 780));
    let said = &mismatch.looks_like;
    assert!(said.contains("FLUX.1 dev, in the official names") && said.contains("\"module.\""), "{said}");
}

#[test]
fn prefixed_names_load_once_the_prefix_is_taken_off() {
    let (_folder, path) = temp("flux1-dev.safetensors");
    write_sparse(&path, &prefixed("flux1-dev", "model.diffusion_model."));
    let vs = VarStore::new(Device::Cpu);
    Flux1::new(vs.root(), &Flux1Params::DEV).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().under("model.diffusion_model.");
    assert_eq!(checkpoint.load(&vs, LoadOptions::default()).unwrap().borrowed, 780);
}

#[test]
fn schnell_for_dev_lacks_the_guidance() {
    let mismatch = into_dev(&layout("flux1-schnell"));
    assert_eq!(mismatch.missing.len(), 4);
    assert!(mismatch.missing.iter().all(|name| name.starts_with("guidance_in.")));
    assert!(mismatch.unexpected.is_empty() && mismatch.misshapen.is_empty());
    assert!(mismatch.looks_like.contains("FLUX.1 schnell"), "{}", mismatch.looks_like);
    assert!(mismatch.looks_like.contains("without guidance_in"), "{}", mismatch.looks_like);
}

#[test]
fn fill_for_dev_has_other_inputs() {
    let mismatch = into_dev(&layout("flux1-fill-dev"));
    assert_eq!(mismatch.misshapen, [("img_in.weight".to_string(), vec![3072, 64], vec![3072, 384])]);
    assert!(mismatch.missing.is_empty() && mismatch.unexpected.is_empty());
    let text = mismatch.to_string();
    assert!(text.contains("FLUX.1 Fill") && text.contains("384"), "{text}");
}

#[test]
fn canny_for_dev_has_other_inputs() {
    let text = into_dev(&layout("flux1-canny-dev")).to_string();
    assert!(text.contains("Canny or Depth") && text.contains("128"), "{text}");
}

#[test]
fn diffusers_names_without_renaming_are_recognised() {
    let mismatch = into_dev(&layout("flux1-dev.diffusers"));
    assert_eq!((mismatch.missing.len(), mismatch.unexpected.len()), (780, 1160));
    assert!(mismatch.looks_like.contains("FLUX.1 dev, in diffusers' names"), "{}", mismatch.looks_like);
}

#[test]
fn diffusers_autoencoder_without_renaming_is_recognised() {
    let (_folder, path) = temp("ae.safetensors");
    write_sparse(&path, &layout("ae.diffusers"));
    let vs = VarStore::new(Device::Cpu);
    AutoEncoder::new(vs.root(), &AutoEncoderParams::flux1()).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
    let mismatch = mismatched(checkpoint.load(&vs, LoadOptions::default()));
    assert_eq!(mismatch.looks_like, "this is FLUX.1's autoencoder, in diffusers' names");
}

fn lora() -> Vec<crate::support::Line> {
    let name =
        |i: usize, end: &str| format!("transformer.single_transformer_blocks.{i}.attn.to_q.{end}.weight");
    (0..38)
        .flat_map(|i| {
            [
                (name(i, "lora_A"), "BF16".into(), vec![16, 3072]),
                (name(i, "lora_B"), "BF16".into(), vec![3072, 16]),
            ]
        })
        .collect()
}

/// What is no transformer, and what is said of it.
fn not_transformers() -> Vec<(&'static str, Vec<crate::support::Line>)> {
    vec![
        ("LoRA", lora()),
        ("FLUX.1's autoencoder", layout("ae")),
        ("FLUX.1's autoencoder, in diffusers' names", layout("ae.diffusers")),
        ("T5 encoder", layout("t5-xxl-encoder")),
        ("CLIP text model", layout("clip-l-text")),
        ("SigLIP vision model", layout("siglip-so400m")),
        ("FLUX.1 Redux", layout("flux1-redux-dev")),
        (
            "several models",
            [prefixed("flux1-dev", "model.diffusion_model."), prefixed("ae", "vae.")].concat(),
        ),
        ("holds no tensors", vec![]),
        ("conv1.weight", vec![("conv1.weight".into(), "F32".into(), vec![3, 3])]),
    ]
}

#[test]
fn what_is_no_transformer_is_named_when_it_is_loaded_as_one() {
    for (what, lines) in not_transformers() {
        let mismatch = into_dev(&lines);
        assert_eq!(mismatch.missing.len(), 780, "{what}");
        assert!(mismatch.looks_like.contains(what), "{}", mismatch.looks_like);
    }
}

/// Parts of which only the transformer exists.
fn only_transformer(path: &Path) -> Parts {
    let none = PathBuf::from("none");
    Parts {
        base: None,
        transformer: path.to_path_buf(),
        autoencoder: none.clone(),
        clip: none.clone(),
        t5: none.clone(),
        clip_tokenizer: none.clone(),
        t5_tokenizer: none,
        redux: None,
        image_encoder: None,
        preview: None,
        depth: None,
        scheduler: None,
        model_index: None,
    }
}

#[test]
fn what_is_no_transformer_is_named_when_a_pipeline_opens_it() {
    // Of several models in a file, the transformer is taken.
    for (what, lines) in not_transformers().into_iter().filter(|(what, _)| *what != "several models") {
        let (_folder, path) = temp("flux1-dev.safetensors");
        write_sparse(&path, &lines);
        let text = match Pipeline::open(only_transformer(&path), Settings::default()) {
            Err(error @ Error::File { problem: FileProblem::OtherModel { .. }, .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(text.contains(what) && text.contains(&path.display().to_string()), "{text}");
    }
}

#[test]
fn a_transformer_of_senseless_sizes_never_panics() {
    let big = 1i64 << 62;
    let names = |sizes: [i64; 2], norm: i64| -> Vec<crate::support::Line> {
        let line = |name: &str, shape: &[i64]| (name.to_string(), "BF16".to_string(), shape.to_vec());
        vec![
            line("img_in.weight", &sizes),
            line("txt_in.weight", &sizes),
            line("vector_in.in_layer.weight", &sizes),
            line("final_layer.linear.weight", &sizes),
            line("double_blocks.0.img_attn.qkv.weight", &sizes),
            line("double_blocks.0.img_mlp.0.weight", &sizes),
            line("double_blocks.0.img_attn.norm.key_norm.scale", &[norm]),
            line("single_blocks.0.linear1.weight", &sizes),
            line("single_blocks.0.norm.key_norm.scale", &[norm]),
        ]
    };
    for sizes in [[big, 0], [0, big], [0, 0], [i64::MAX, 0], [1 << 40, 0], [i64::MAX - 63, 0]] {
        for norm in [0, 16, 32, 128] {
            for first in [0, 5] {
                let mut lines = names(sizes, norm);
                // Without double blocks the single ones say the sizes.
                lines.retain(|(name, ..)| first == 0 || !name.starts_with("double_blocks.0.img_attn.qkv"));
                let (_folder, path) = temp("flux1-dev.safetensors");
                write_sparse(&path, &lines);
                let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
                if let Ok(params) = Flux1Params::from_shapes(|name| checkpoint.shape(name)) {
                    let vs = VarStore::new(Device::Cpu);
                    assert!(
                        Flux1::new(vs.root(), &params).is_err()
                            || checkpoint.load(&vs, LoadOptions::default()).is_err()
                    );
                }
            }
        }
    }
}

#[test]
fn an_autoencoder_of_senseless_sizes_never_panics() {
    for size in [1i64 << 62, i64::MAX, 1 << 40, 0] {
        for kernel in [[size, 0, 3, 3], [0, size, 3, 3], [128, size, 0, 3], [size, size, 0, 0]] {
            let lines = [
                "encoder.conv_in.weight",
                "decoder.conv_out.weight",
                "decoder.conv_in.weight",
                "encoder.down.0.block.0.conv1.weight",
            ]
            .map(|name| (name.to_string(), kernel.to_vec()));
            let shape = |name: &str| lines.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
            if let Ok(params) = AutoEncoderParams::from_shapes(shape) {
                let vs = VarStore::new(Device::Cpu);
                let _ = AutoEncoder::new(vs.root(), &params);
            }
        }
    }
}

#[test]
fn nan_and_infinity_in_weights_load_as_they_are() {
    let mut values = ramp(4);
    (values[1], values[2]) = (f32::NAN, f32::NEG_INFINITY);
    let tensors = [f32s("a.bias", &[4], &values), right().swap_remove(1)];
    let vs = store();
    load(&tensors, &vs).unwrap();
    let bias = Vec::<f32>::try_from(&variables(&vs)["a.bias"]).unwrap();
    assert!(bias[1].is_nan() && bias[2] == f32::NEG_INFINITY);
    assert!(!is_placeholder(&variables(&vs)["a.bias"]));
}

#[test]
fn a_model_filled_with_nan_alone_counts_as_filled() {
    let tensors = [f32s("a.bias", &[4], &[f32::NAN; 4]), f32s("a.weight", &[4, 6], &[f32::NAN; 24])];
    let vs = store();
    load(&tensors, &vs).unwrap();
    assert!(!variables(&vs).values().any(is_placeholder));
}

#[test]
fn a_picture_with_nan_or_infinity_is_refused() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let picture = Tensor::zeros([3, 4, 4], (kind, Device::Cpu));
            let _ = picture.get(1).get(2).narrow(0, 3, 1).fill_(bad);
            assert!(matches!(Image::from_tensor(&picture), Err(Error::NotFinite { .. })), "{bad} {kind:?}");
        }
    }
}

// Files.

/// What other format the file is said to be.
fn other_format(bytes: impl AsRef<[u8]>) -> &'static str {
    match refused(bytes) {
        FileProblem::OtherFormat { kind } => kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_git_lfs_pointer_is_named_with_what_to_do() {
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 23802932552\n",
        "0".repeat(64)
    );
    assert!(other_format(pointer).contains("git lfs pull"));
}

#[test]
fn a_web_page_is_named() {
    for page in
        ["<!DOCTYPE html>\n<html><body>Log in</body></html>", "<html lang=\"en\">…</html>", "\n <HTML>……"]
    {
        assert!(other_format(page).contains("web page"));
    }
}

#[test]
fn a_pickle_is_named_and_never_read() {
    for protocol in 2..=5 {
        let pickle = [&[0x80, protocol][..], b"}q\x00(X\x06\x00\x00\x00weightcos\nsystem\n"].concat();
        assert!(other_format(pickle).contains("pickle"));
    }
}

#[test]
fn a_renamed_zip_of_pytorch_is_named() {
    let kind = other_format(b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl");
    assert!(kind.contains("zip") && kind.contains("pickle"));
}

#[test]
fn other_formats_are_named_by_their_first_bytes() {
    let onnx = [&[0x08, 0x08, 0x12, 0x07][..], b"pytorch\x1a\x052.5.1:\x80"].concat();
    let numpy = [b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", &[0; 8][..]].concat();
    let sidecar = [&[0, 5, 0x16, 7, 0, 2, 0, 0][..], b"Mac OS X        "].concat();
    let cases: [(&[u8], &str); 15] = [
        (&onnx, "ONNX"),
        (&numpy, "NumPy"),
        (&sidecar, "macOS"),
        (b"ftrt\x00\x00\x00\x00\x01\x00\x00\x00", "TensorRT"),
        (b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00", "HDF5"),
        (b"SQLite format 3\0\x10\x00\x01\x01", "Draw Things"),
        (b"\x1c\x00\x00\x00TFL3\x14\x00\x20\x00", "TensorFlow Lite"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "archive"),
        (b"tjgg\x03\x00\x00\x00\x00\x7d\x00\x00", "before GGUF"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "picture"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
        (b"{\"_class_name\": \"FluxTransformer2DModel\"}", "config.json"),
        (b"{\"abcd\":{\"e\":1}}", "config.json"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"Invalid username or password.", "failed download"),
    ];
    for (bytes, what) in cases {
        assert!(other_format(bytes).contains(what), "{what}: {}", other_format(bytes));
    }
}

#[test]
fn a_missing_file_is_named() {
    let (_folder, path) = temp("none.safetensors");
    for access in BOTH {
        let Err(Error::Io { path: named, source }) = Checkpoint::open(&path, access) else { panic!() };
        assert_eq!((named, source.kind()), (path.clone(), std::io::ErrorKind::NotFound));
    }
}

#[test]
fn a_folder_without_weights_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), "").unwrap();
    let Err(Error::MissingPart { path, expected, .. }) = Checkpoint::open(folder.path(), Access::Map) else {
        panic!()
    };
    assert_eq!(path, folder.path());
    assert!(expected.contains("*.safetensors"));
    let Err(Error::MissingPart { path, part, expected }) = Parts::find(folder.path()) else { panic!() };
    assert_eq!((path, part), (folder.path().to_path_buf(), "transformer"));
    assert!(expected.contains("flux1-*.safetensors"));
}

#[test]
fn a_folder_with_several_weight_files_asks_which() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one.safetensors", "two.safetensors"] {
        write_file(&folder.path().join(name), &right());
    }
    let problem = problem(Checkpoint::open(folder.path(), Access::Map), folder.path());
    assert!(problem.to_string().contains("one.safetensors, two.safetensors"), "{problem}");
    write_file(&folder.path().join("model.safetensors"), &right());
    let found = Checkpoint::open(folder.path(), Access::Map).unwrap();
    assert!(
        found.files()[0].ends_with("model.safetensors"),
        "the usual name is meant, the others are variants"
    );
}

#[test]
fn a_folder_under_the_name_of_a_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("w.safetensors");
    std::fs::create_dir(&inner).unwrap();
    assert_eq!(problem(Checkpoint::open(folder.path(), Access::Map), &inner), FileProblem::Directory);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_waiting_for_a_writer() {
    for name in ["w.safetensors", "w.safetensors.index.json"] {
        let (_folder, path) = temp(name);
        match std::process::Command::new("mkfifo").arg(&path).status() {
            Ok(status) if status.success() => {}
            other => {
                let why = format!("no pipe can be made here: {other:?}");
                return crate::support::require::require("pipes", Err::<(), _>(&*why)).unwrap_or_default();
            }
        }
        let at = path.clone();
        let found = in_time(move || refused_at(&at));
        assert_eq!(found, FileProblem::NotAFile);
    }
}

#[cfg(unix)]
#[test]
fn a_device_without_an_end_is_refused() {
    if !Path::new("/dev/zero").exists() {
        return crate::support::require::require("devices", Err::<(), _>("there is no /dev/zero"))
            .unwrap_or_default();
    }
    assert_eq!(in_time(|| refused_at(Path::new("/dev/zero"))), FileProblem::NotAFile);
}

#[cfg(unix)]
#[test]
fn a_file_without_permission_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = temp("w.safetensors");
    write_file(&path, &right());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&path).is_ok() {
        let why = "this user may read every file";
        return crate::support::require::require("permissions", Err::<(), _>(why)).unwrap_or_default();
    }
    let Err(Error::Io { path: named, source }) = Checkpoint::open(&path, Access::Map) else { panic!() };
    assert_eq!((named, source.kind()), (path.clone(), std::io::ErrorKind::PermissionDenied));
}

#[cfg(unix)]
#[test]
fn a_loop_of_links_is_named() {
    let (folder, path) = temp("w.safetensors");
    let other = folder.path().join("other");
    std::os::unix::fs::symlink(&path, &other).unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    for access in BOTH {
        let Err(Error::Io { path: named, .. }) = Checkpoint::open(&path, access) else { panic!() };
        assert_eq!(named, path);
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_a_file_loads() {
    let (folder, path) = temp("w.safetensors");
    write_file(&folder.path().join("blob"), &right());
    std::os::unix::fs::symlink("blob", &path).unwrap();
    assert!(Checkpoint::open(&path, Access::Map).unwrap().load(&store(), LoadOptions::default()).is_ok());
}

/// An index over two shards, `one` with the bias and `two` with the weight, and this map of names.
fn index(weight_map: &str) -> (tempfile::TempDir, PathBuf) {
    let (folder, path) = temp("w.safetensors.index.json");
    write_file(&folder.path().join("one"), &right()[..1]);
    write_file(&folder.path().join("two"), &right()[1..]);
    std::fs::write(&path, format!("{{\"metadata\":{{\"total_size\":112}},\"weight_map\":{weight_map}}}"))
        .unwrap();
    (folder, path)
}

fn index_refused(weight_map: &str) -> String {
    let (_folder, path) = index(weight_map);
    match refused_at(&path) {
        FileProblem::Index { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_index_of_two_shards_loads() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"two"}"#);
    for at in [path.as_path(), folder.path()] {
        let vs = store();
        Checkpoint::open(at, Access::Map).unwrap().load(&vs, LoadOptions::default()).unwrap();
        assert_eq!(Vec::<f32>::try_from(&variables(&vs)["a.bias"]).unwrap(), ramp(4));
    }
}

#[test]
fn an_index_that_leads_out_of_its_folder_is_refused() {
    for shard in ["/etc/passwd", "../two", "sub/two", "..", ".", "", "..\\\\two", "C:two", "C:\\\\two"] {
        let reason = index_refused(&format!(r#"{{"a.bias":"one","a.weight":"{shard}"}}"#));
        assert!(reason.contains("no plain name"), "{shard}: {reason}");
    }
}

#[test]
fn a_shard_of_a_senseless_name_is_refused_in_a_short_message() {
    for shard in ["a\\u0000b", "a\\nb", "\\u001b[2J", &"s".repeat(256), &"s".repeat(1 << 20)] {
        let reason = index_refused(&format!(r#"{{"a.bias":"one","a.weight":"{shard}"}}"#));
        assert!(reason.contains("no plain name"), "{reason}");
    }
}

#[test]
fn an_index_that_names_itself_is_refused() {
    let (_folder, path) = index(r#"{"a.bias":"one","a.weight":"w.safetensors.index.json"}"#);
    assert!(matches!(refused_at(&path), FileProblem::OtherFormat { kind } if kind.contains("JSON")));
}

#[test]
fn a_shard_that_is_a_folder_is_named() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"three"}"#);
    let shard = folder.path().join("three");
    std::fs::create_dir(&shard).unwrap();
    assert_eq!(problem(Checkpoint::open(&path, Access::Map), &shard), FileProblem::Directory);
}

#[cfg(unix)]
#[test]
fn a_shard_that_is_a_pipe_is_refused_without_waiting_for_a_writer() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"three"}"#);
    let shard = folder.path().join("three");
    match std::process::Command::new("mkfifo").arg(&shard).status() {
        Ok(status) if status.success() => {}
        other => {
            let why = format!("no pipe can be made here: {other:?}");
            return crate::support::require::require("pipes", Err::<(), _>(&*why)).unwrap_or_default();
        }
    }
    let found = in_time(move || problem(Checkpoint::open(&path, Access::Map), &shard));
    assert_eq!(found, FileProblem::NotAFile);
}

#[cfg(unix)]
#[test]
fn shards_that_are_links_as_in_the_cache_of_the_hub_load() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"two"}"#);
    let blobs = tempfile::tempdir().unwrap();
    for shard in ["one", "two"] {
        std::fs::rename(folder.path().join(shard), blobs.path().join(shard)).unwrap();
        std::os::unix::fs::symlink(blobs.path().join(shard), folder.path().join(shard)).unwrap();
    }
    assert!(Checkpoint::open(&path, Access::Map).unwrap().load(&store(), LoadOptions::default()).is_ok());
}

#[test]
fn a_missing_shard_is_named() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"three"}"#);
    let Err(Error::Io { path: named, source }) = Checkpoint::open(&path, Access::Map) else { panic!() };
    assert_eq!((named, source.kind()), (folder.path().join("three"), std::io::ErrorKind::NotFound));
}

#[test]
fn a_damaged_shard_is_named() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"two"}"#);
    let shard = folder.path().join("two");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let problem = problem(Checkpoint::open(&path, Access::Map), &shard);
    assert!(matches!(problem, FileProblem::TensorPastEnd { .. }));
}

#[test]
fn a_tensor_in_two_shards_is_refused_by_name() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"two"}"#);
    write_file(&folder.path().join("two"), &right());
    let problem = refused_at(&path);
    assert!(matches!(&problem, FileProblem::Index { reason } if reason.contains("a.bias")), "{problem}");
}

#[test]
fn a_name_that_stands_twice_in_the_index_is_refused() {
    let reason = index_refused(r#"{"a.bias":"one","a.weight":"one","a.weight":"two"}"#);
    assert!(reason.contains("a.weight") && reason.contains("twice"), "{reason}");
}

#[test]
fn a_tensor_that_the_index_does_not_name_is_refused_by_name() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"two"}"#);
    write_file(&folder.path().join("one"), &[right().remove(0), f32s("stray", &[1], &[0.0])]);
    let problem = refused_at(&path);
    assert!(matches!(&problem, FileProblem::Index { reason } if reason.contains("stray")), "{problem}");
}

#[test]
fn a_tensor_that_is_not_in_the_shard_of_the_index_is_refused_by_name() {
    for map in [r#"{"a.bias":"two","a.weight":"two"}"#, r#"{"a.bias":"one","a.weight":"two","b":"two"}"#] {
        let reason = index_refused(map);
        assert!(reason.contains("not in two"), "{reason}");
    }
}

#[test]
fn an_index_that_is_no_map_of_strings_is_refused() {
    for map in ["[]", "1", "null", "{\"a\":1}", "{\"a\":[\"one\"]}", "{", "{}}"] {
        index_refused(map);
    }
    let (_folder, path) = temp("w.safetensors.index.json");
    for text in ["", "{}", "[[[[", "not json"] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(refused_at(&path), FileProblem::Index { .. }), "{text}");
    }
    std::fs::write(&path, "[".repeat(100_000)).unwrap();
    assert!(matches!(refused_at(&path), FileProblem::Index { .. }));
}

#[test]
fn an_index_of_more_than_100_megabytes_is_refused_unread() {
    let (_folder, path) = temp("w.safetensors.index.json");
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(refused_at(&path), FileProblem::Index { .. }));
}

#[test]
fn an_index_that_is_no_text_is_named() {
    let (_folder, path) = temp("w.safetensors.index.json");
    std::fs::write(&path, b"{\"weight_map\":\"\xff\xfe\"}").unwrap();
    match Checkpoint::open(&path, Access::Map) {
        Err(Error::Io { path: named, .. } | Error::File { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
}

/// Cuts the file to `len` bytes after it was opened.
fn cut_after_opening(access: Access, len: u64) -> (tempfile::TempDir, PathBuf, Checkpoint, u64) {
    let (folder, path) = temp("w.safetensors");
    write_file(&path, &right());
    let was = std::fs::metadata(&path).unwrap().len();
    let checkpoint = Checkpoint::open(&path, access).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    (folder, path, checkpoint, was)
}

#[test]
fn a_file_that_shrinks_while_it_is_open_is_refused_with_its_lengths() {
    for access in BOTH {
        for len in [0, 8, 100] {
            let (_folder, at, checkpoint, length) = cut_after_opening(access, len);
            let vs = store();
            for result in [
                checkpoint.load(&vs, LoadOptions::default()).map(drop),
                checkpoint.tensor("a.bias").map(drop),
                checkpoint.check_unchanged(),
            ] {
                let Err(Error::Changed { path, was, now }) = result else { panic!("{result:?}") };
                assert_eq!((path, was, now), (at.clone(), length, len));
            }
            assert!(variables(&vs).values().all(is_placeholder), "nothing is filled");
        }
    }
}

#[test]
fn a_file_that_grows_while_it_is_open_is_refused() {
    for access in BOTH {
        let (_folder, path, checkpoint, was) = cut_after_opening(access, 0);
        std::fs::write(&path, vec![0; was as usize + 1]).unwrap();
        assert!(matches!(checkpoint.load(&store(), LoadOptions::default()), Err(Error::Changed { .. })));
    }
}

#[test]
fn a_shard_that_shrinks_while_it_is_open_fills_nothing() {
    let (folder, path) = index(r#"{"a.bias":"one","a.weight":"two"}"#);
    for access in BOTH {
        write_file(&folder.path().join("two"), &right()[1..]);
        let checkpoint = Checkpoint::open(&path, access).unwrap();
        let shard = std::fs::OpenOptions::new().write(true).open(folder.path().join("two")).unwrap();
        shard.set_len(10).unwrap();
        let vs = store();
        let result = checkpoint.load(&vs, LoadOptions::default());
        assert!(matches!(result, Err(Error::Changed { path, .. }) if path.ends_with("two")));
        assert!(variables(&vs).values().all(is_placeholder), "nothing is filled");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_is_replaced_by_another_is_still_the_one_that_was_opened() {
    let (folder, path) = temp("w.safetensors");
    for access in BOTH {
        write_file(&path, &right());
        let checkpoint = Checkpoint::open(&path, access).unwrap();
        let beside = folder.path().join("new");
        std::fs::File::create(&beside).unwrap().write_all(b"something else").unwrap();
        std::fs::rename(&beside, &path).unwrap();
        let vs = store();
        checkpoint.load(&vs, LoadOptions::default()).unwrap();
        assert_eq!(Vec::<f32>::try_from(&variables(&vs)["a.bias"]).unwrap(), ramp(4));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_leaves_neither_a_picture_nor_a_part_of_one() {
    let (folder, path) = temp("picture.png");
    let image = Image::from_tensor(&Tensor::zeros([3, 64, 64], (Kind::Float, Device::Cpu))).unwrap();
    // Pictures are written beside their name first; there, a device that takes nothing stands in for a full disk.
    const NAMES: usize = 100;
    for i in 0..NAMES {
        let beside = folder.path().join(format!(".tch-flux.{}.{i}.part", std::process::id()));
        std::os::unix::fs::symlink("/dev/full", &beside).unwrap();
    }
    let Err(Error::Io { path: named, source }) = image.write_png(&path, &Default::default()) else {
        panic!()
    };
    assert_eq!((named.parent(), source.kind()), (path.parent(), std::io::ErrorKind::StorageFull));
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), NAMES - 1, "the part that failed is gone");
}

// Names that only other layouts bring.

/// Renames the names of a small file of f32 tensors and returns what it then holds.
fn renamed(lines: &[(&str, &[i64])], renames: &tch_flux::checkpoint::Renames) -> Vec<String> {
    let (_folder, path) = temp("w.safetensors");
    let lines: Vec<crate::support::Line> =
        lines.iter().map(|(name, shape)| (name.to_string(), "F32".into(), shape.to_vec())).collect();
    write_sparse(&path, &lines);
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().renamed(renames);
    checkpoint.names().map(str::to_string).collect()
}

#[test]
fn numbers_beyond_every_count_in_diffusers_names_never_panic() {
    use tch_flux::checkpoint::{AUTOENCODER_DIFFUSERS, FLUX1_DIFFUSERS};
    for number in ["18446744073709551615", "18446744073709551616", "007", ""] {
        for name in [
            format!("decoder.up_blocks.{number}.resnets.{number}.conv1.weight"),
            format!("decoder.mid_block.resnets.{number}.conv1.weight"),
            format!("transformer_blocks.{number}.norm1.linear.weight"),
        ] {
            for renames in [&AUTOENCODER_DIFFUSERS, &FLUX1_DIFFUSERS] {
                assert_eq!(renamed(&[(&name, &[1])], renames).len(), 1, "{name}");
            }
        }
    }
}

#[test]
fn parts_of_a_joined_tensor_that_do_not_fit_each_other_are_reported_before_anything_is_filled() {
    use tch_flux::checkpoint::FLUX1_DIFFUSERS;
    let vs = VarStore::new(Device::Cpu);
    let _ = declare(&(vs.root() / "double_blocks" / 0 / "img_attn" / "qkv"), "weight", &[12, 4]);
    for shapes in [[[4, 4], [4, 3], [4, 4]], [[4, 4], [1 << 62, 0], [1 << 62, 0]]] {
        let lines: Vec<crate::support::Line> = ["q", "k", "v"]
            .iter()
            .zip(shapes)
            .map(|(part, shape)| {
                (format!("transformer_blocks.0.attn.to_{part}.weight"), "F32".into(), shape.to_vec())
            })
            .collect();
        let (_folder, path) = temp("w.safetensors");
        write_sparse(&path, &lines);
        let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().renamed(&FLUX1_DIFFUSERS);
        mismatched(checkpoint.load(&vs, LoadOptions::default()));
        assert!(variables(&vs).values().all(is_placeholder), "nothing is filled");
    }
}
