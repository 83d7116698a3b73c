//! GGUF files that lie about a length, a count or a place, or are damaged: each gives an error that names the key or the
//! tensor and says what is wrong, and none a panic, an abort, a hang or a read past an end.

use std::io::Write;
use std::time::{Duration, Instant};

use tch_flux::FileProblem;
use tch_flux::checkpoint::{Access, Checkpoint, Header};

use crate::support::gguf::{
    ARRAY, BOOL, F32, F64, I8, I32, I64, Q4_0, Q4_K, STRING, U8, U32, U64, array, file, header, key, start,
    tensor, text,
};
use crate::support::{BOTH, refused, refused_at, targets, temp};

/// The header of a file that is all there.
fn opened(bytes: &[u8]) -> Header {
    let (_folder, path) = temp("w.gguf");
    std::fs::write(&path, bytes).unwrap();
    let [one, other] = BOTH.map(|access| Checkpoint::open(&path, access).unwrap().headers()[0].clone());
    assert_eq!(one, other);
    targets::check_header(&one, bytes.len() as u64);
    one
}

/// One tensor `t` of eight f32, in one axis.
fn eight() -> Vec<Vec<u8>> {
    vec![tensor("t", &[8], F32, 0)]
}

/// What is wrong with a file of [`eight`] and this key; it must be this key that is named.
fn bad_key(name: &str, value_type: u32, value: impl AsRef<[u8]>) -> String {
    match refused(file(&[key(name, value_type, value)], &eight(), 32)) {
        FileProblem::Metadata { key, reason } => {
            assert_eq!(key, name);
            reason
        }
        other => panic!("{other:?}"),
    }
}

/// What is wrong with a file of one tensor `t` and `len` bytes of data; it must be the tensor that is named.
fn bad_tensor(dims: &[u64], tensor_type: u32, offset: u64, len: usize) -> String {
    match refused(file(&[], &[tensor("t", dims, tensor_type, offset)], len)) {
        FileProblem::Tensor { name, reason } => {
            assert_eq!(name, "t");
            reason
        }
        other => panic!("{other:?}"),
    }
}

/// What the header has no room for, with how many bytes it would take and how many there are.
fn cut(bytes: impl AsRef<[u8]>) -> (String, u64, u64) {
    match refused(bytes) {
        FileProblem::HeaderCut { what, len, left } => (what, len, left),
        other => panic!("{other:?}"),
    }
}

fn gguf(bytes: impl AsRef<[u8]>) -> String {
    match refused(bytes) {
        FileProblem::Gguf { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn numbers<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

#[test]
fn the_file_that_the_others_are_made_from_is_right() {
    let header = opened(&file(&[key("k", U32, [1, 0, 0, 0])], &eight(), 32));
    assert_eq!(header.metadata["k"], "1");
    assert_eq!(header.entries["t"].shape, [8]);
}

// Framing.

#[test]
fn a_file_that_ends_within_the_mark_is_no_gguf_file() {
    assert_eq!(refused(b"GGU"), FileProblem::TooShort { len: 3 });
}

#[test]
fn a_file_is_refused_at_every_length_with_what_is_missing() {
    let keys =
        [key("k", U32, [0; 4]), key("s", STRING, text("value")), key("a", ARRAY, array(U64, 9, [0; 72]))];
    let whole = file(&keys, &[tensor("t", &[8], F32, 0), tensor("u", &[2, 3], F64, 32)], 32 + 48);
    let header_end = header(&keys, &[tensor("t", &[8], F32, 0), tensor("u", &[2, 3], F64, 32)]).len();
    opened(&whole);
    for len in 4..whole.len() {
        let problem = refused(&whole[..len]);
        match problem {
            FileProblem::HeaderCut { left, .. } => assert!(len < header_end && left < len as u64, "{len}"),
            FileProblem::TensorPastEnd { .. } => assert!(len >= header_end, "{len}"),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn a_mark_alone_is_refused_with_what_is_missing() {
    assert_eq!(cut(b"GGUF"), ("the version".into(), 4, 0));
    assert_eq!(cut(&start(3, 0, 0)[..12]), ("the number of tensors".into(), 8, 4));
    assert_eq!(cut(&start(3, 0, 0)[..23]), ("the number of metadata".into(), 8, 7));
}

#[test]
fn other_versions_are_refused_by_number() {
    for version in [0, 4, 5, 0xffff, 0x1_0000, u32::MAX] {
        let reason = gguf(start(version, 0, 0));
        assert!(reason.contains(&format!("version {version},")), "{reason}");
    }
    assert!(gguf(start(1, 0, 0)).contains("version 1"));
}

#[test]
fn version_2_is_read_as_version_3() {
    let mut bytes = file(&[], &eight(), 32);
    bytes[4] = 2;
    opened(&bytes);
}

#[test]
fn a_big_endian_file_is_named_with_what_to_do() {
    for version in [2u32, 3] {
        let reason = gguf(start(version.swap_bytes(), 0, 0));
        assert!(reason.contains("big-endian") && reason.contains("gguf-convert-endian"), "{reason}");
    }
}

#[test]
fn more_tensors_than_the_file_has_room_for_are_refused_before_any_is_read() {
    for count in [2, 1 << 32, 1 << 59, 1 << 60, (1 << 61) + 1, 1 << 63, u64::MAX] {
        let (what, len, _) = cut([start(3, count, 0), vec![0; 40]].concat());
        assert_eq!((&what[..], len), ("the list of tensors", count.saturating_mul(24)), "{count}");
    }
}

#[test]
fn more_metadata_than_the_file_has_room_for_are_refused_before_any_is_read() {
    for count in [2, 1 << 32, 1 << 60, (1 << 61) + 1, 1 << 63, u64::MAX] {
        let (what, len, _) = cut([start(3, 0, count), vec![0; 25]].concat());
        assert_eq!((&what[..], len), ("the metadata", count.saturating_mul(13)), "{count}");
    }
}

#[test]
fn fewer_tensors_or_metadata_than_there_are_leave_bytes_that_belong_to_none() {
    let (keys, tensors) = ([key("k", U32, [0; 4])], [tensor("t", &[8], F32, 0), tensor("u", &[8], F32, 32)]);
    let mut bytes = file(&keys, &tensors, 64);
    bytes[8] = 1;
    assert!(matches!(refused(&bytes), FileProblem::TrailingBytes { .. }));
    let mut bytes = file(&keys, &tensors, 64);
    bytes[16] = 0;
    refused(&bytes);
}

#[test]
fn a_header_of_megabytes_loads() {
    let tokens: Vec<u8> = (0..200_000).flat_map(|i| text(format!("token{i}"))).collect();
    let keys = [key("tokenizer.ggml.tokens", ARRAY, array(STRING, 200_000, tokens))];
    let bytes = file(&keys, &eight(), 32);
    assert!(bytes.len() > 3_500_000);
    assert_eq!(opened(&bytes).metadata["tokenizer.ggml.tokens"], "[200000 strings]");
}

#[test]
fn a_header_of_99_megabytes_loads_and_one_of_more_than_100_is_refused() {
    let (_folder, path) = temp("w.gguf");
    for (len, fits) in [(99_000_000, true), (100_000_000, false), (1 << 40, false)] {
        let begin = [start(3, 0, 1), text("k"), ARRAY.to_le_bytes().to_vec(), array(U8, len, [])].concat();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&begin).unwrap();
        // The array is a hole of the file.
        file.set_len((begin.len() as u64 + len).next_multiple_of(32)).unwrap();
        if fits {
            let checkpoint = Checkpoint::open(&path, Access::Read).unwrap();
            assert_eq!(checkpoint.headers()[0].metadata["k"], "[99000000 u8]");
        } else {
            let problem = refused_at(&path);
            let FileProblem::Gguf { reason } = &problem else { panic!("{problem:?}") };
            assert!(reason.contains("\"k\"") && reason.contains("100000000"), "{reason}");
        }
    }
}

#[test]
fn an_empty_file_of_no_tensors_may_end_before_or_after_its_padding() {
    assert!(opened(&start(3, 0, 0)).entries.is_empty());
    assert!(opened(&file(&[], &[], 0)).entries.is_empty());
    assert_eq!(refused(file(&[], &[], 1)), FileProblem::TrailingBytes { bytes: 1 });
}

// Metadata.

#[test]
fn a_key_longer_than_the_file_is_refused() {
    for len in [100u64, 1 << 32, 1 << 63, u64::MAX - 7, u64::MAX] {
        let bytes = [start(3, 0, 1), numbers([len]), vec![b'k'; 50]].concat();
        assert_eq!(cut(bytes), ("the key of metadata 0".into(), len, 50));
    }
}

#[test]
fn a_text_longer_than_the_file_is_refused_by_its_key() {
    for len in [1u64, 1 << 32, 1 << 63, u64::MAX - 7, u64::MAX] {
        let bytes = [start(3, 0, 1), key("some.text", STRING, numbers([len]))].concat();
        assert_eq!(cut(bytes), ("metadata \"some.text\"".into(), len, 0));
    }
}

#[test]
fn an_array_longer_than_the_file_is_refused_by_its_key() {
    let sizes = [(U8, 1), (I8, 1), (U32, 4), (BOOL, 1), (U64, 8), (I64, 8), (STRING, 8), (ARRAY, 12)];
    for (value_type, size) in sizes {
        for count in [33, 1 << 32, 1 << 60, 1 << 61, (1 << 61) + 1, 1 << 63, u64::MAX] {
            let bytes = [start(3, 0, 1), key("list", ARRAY, array(value_type, count, [0; 32]))].concat();
            let (what, len, left) = cut(bytes);
            assert_eq!((&what[..], left), ("metadata \"list\"", 32));
            assert_eq!(len, count.saturating_mul(size), "{value_type} {count}");
        }
    }
}

#[test]
fn a_text_within_an_array_that_is_longer_than_the_file_is_refused_by_its_key() {
    for count in [2, 20] {
        let texts = [text("a"), numbers([u64::MAX]), vec![0; 200]].concat();
        let (what, len, _) = cut([start(3, 0, 1), key("list", ARRAY, array(STRING, count, texts))].concat());
        assert_eq!((&what[..], len), ("metadata \"list\"", u64::MAX));
    }
}

#[test]
fn an_unknown_type_of_metadata_is_refused_by_key_and_number() {
    for value_type in [13, 255, u32::MAX] {
        assert!(bad_key("k", value_type, [0; 8]).contains(&format!("type {value_type}")));
        assert!(bad_key("k", ARRAY, array(value_type, 1, [0; 8])).contains(&format!("type {value_type}")));
        assert!(bad_key("k", ARRAY, array(value_type, 0, [])).contains(&format!("type {value_type}")));
    }
}

#[test]
fn arrays_in_arrays_are_read_up_to_a_depth_and_refused_beyond() {
    let nested = |depth: u64| (1..depth).fold(array(U8, 1, [7]), |inner, _| array(ARRAY, 1, inner));
    let header = opened(&file(&[key("k", ARRAY, nested(4))], &eight(), 32));
    assert_eq!(header.metadata["k"], "[[[[7]]]]");
    assert!(bad_key("k", ARRAY, nested(5)).contains("more than 4 deep"));
}

#[test]
fn a_hundred_thousand_arrays_in_each_other_do_not_exhaust_the_stack() {
    for count in [1, 9] {
        let deep: Vec<u8> = (0..100_000).flat_map(|_| array(ARRAY, count, [])).collect();
        assert!(bad_key("k", ARRAY, deep).contains("more than 4 deep"));
    }
}

#[test]
fn many_empty_arrays_take_no_longer_than_their_bytes() {
    let (count, begun) = (1_000_000, Instant::now());
    let empty: Vec<u8> = (0..count).flat_map(|_| array(U8, 0, [])).collect();
    let header = opened(&file(&[key("k", ARRAY, array(ARRAY, count, empty))], &eight(), 32));
    assert_eq!(header.metadata["k"], "[1000000 arrays]");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_key_that_is_no_text_is_refused_by_its_place() {
    let reason = gguf(file(&[key("a", U8, [0]), key(b"b\xff", U8, [0])], &eight(), 32));
    assert_eq!(reason, "the key of metadata 1 is not UTF-8 after 1 bytes");
}

#[test]
fn a_value_that_is_no_text_is_refused_by_its_key() {
    let reason = gguf(file(&[key("a", STRING, text(b"ab\xc3"))], &eight(), 32));
    assert_eq!(reason, "metadata \"a\" is not UTF-8 after 2 bytes");
}

#[test]
fn empty_keys_and_keys_with_control_characters_are_refused() {
    for name in ["", "a\0b", "a\nb", "\u{1b}[2J", "\u{7f}"] {
        let problem = refused(file(&[key(name, U8, [0])], &eight(), 32));
        assert!(matches!(problem, FileProblem::Metadata { .. }), "{problem:?}");
    }
}

#[test]
fn a_key_of_a_megabyte_is_refused_in_a_short_message() {
    let problem = refused(file(&[key(vec![b'k'; 1 << 20], U8, [0])], &eight(), 32));
    assert!(matches!(&problem, FileProblem::Metadata { reason, .. } if reason.contains("1048576")));
    opened(&file(&[key(vec![b'k'; 65_535], U8, [0])], &eight(), 32));
}

#[test]
fn a_key_that_stands_twice_is_refused_by_name() {
    let problem = refused(file(&[key("twin", U8, [0]), key("twin", U32, [0; 4])], &eight(), 32));
    assert!(
        matches!(&problem, FileProblem::Metadata { key, reason } if key == "twin" && reason.contains("twice"))
    );
}

#[test]
fn a_truth_value_that_is_neither_is_refused_by_key() {
    assert!(bad_key("k", BOOL, [2]).contains('2'));
    assert!(bad_key("k", ARRAY, array(BOOL, 1, [255])).contains("255"));
}

#[test]
fn alignments_that_are_no_powers_of_two_up_to_a_megabyte_are_refused_by_key() {
    for alignment in [0u32, 3, 24, 33, 1 << 21, 1 << 31, u32::MAX] {
        let reason = bad_key("general.alignment", U32, alignment.to_le_bytes());
        assert!(reason.starts_with(&alignment.to_string()), "{reason}");
    }
    bad_key("general.alignment", U64, (1u64 << 63).to_le_bytes());
    bad_key("general.alignment", I32, (-32i32).to_le_bytes());
    bad_key("general.alignment", STRING, text("32"));
    bad_key("general.alignment", BOOL, [1]);
    bad_key("general.alignment", ARRAY, array(U32, 1, [32, 0, 0, 0]));
}

#[test]
fn alignments_from_1_to_a_megabyte_are_kept() {
    for alignment in [1u32, 2, 8, 64, 1 << 20] {
        let keys = [key("general.alignment", U32, alignment.to_le_bytes())];
        let alignment = alignment as usize;
        let second = 12usize.next_multiple_of(alignment);
        let tensors = [tensor("t", &[3], F32, 0), tensor("u", &[1], F32, second as u64)];
        let mut bytes = header(&keys, &tensors);
        bytes.resize(bytes.len().next_multiple_of(alignment) + second + 4, 0);
        assert_eq!(opened(&bytes).entries["u"].begin, bytes.len() as u64 - 4);
    }
}

#[test]
fn one_part_of_a_split_model_is_refused_with_what_to_do() {
    for (value_type, value) in [(U8, &[2][..]), (2, &[2, 0]), (U32, &[2, 0, 0, 0]), (I32, &[2, 0, 0, 0])] {
        let reason = bad_key("split.count", value_type, value);
        assert!(reason.contains("one of 2 parts") && reason.contains("llama-gguf-split --merge"), "{reason}");
    }
    opened(&file(&[key("split.count", U8, [1])], &eight(), 32));
}

#[test]
fn the_parts_of_a_split_model_are_read_together() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    for (name, tensor_name) in names.iter().zip(["a", "b"]) {
        let bytes = file(&[key("split.count", U8, [2])], &[tensor(tensor_name, &[8], F32, 0)], 32);
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    for path in [folder.path().join(names[1]), folder.path().to_path_buf()] {
        let checkpoint = Checkpoint::open(path, Access::Map).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.warnings().len(), 1);
    }
    std::fs::remove_file(folder.path().join(names[0])).unwrap();
    let error = Checkpoint::open(folder.path().join(names[1]), Access::Map).unwrap_err().to_string();
    assert!(error.contains("one of 2 shards") && error.contains("numbers 1 are missing"), "{error}");
}

#[test]
fn an_original_shape_that_does_not_fit_is_refused_by_tensor() {
    let key_of = |sizes: &[u64]| {
        let sizes: Vec<u8> = sizes.iter().flat_map(|s| s.to_le_bytes()).collect();
        key("comfy.gguf.orig_shape.t", ARRAY, array(U64, sizes.len() as u64 / 8, sizes))
    };
    let fits = opened(&file(&[key_of(&[2, 1, 4])], &eight(), 32));
    assert_eq!(fits.entries["t"].shape, [2, 1, 4]);
    for sizes in [&[][..], &[9], &[2, 3], &[0], &[1 << 63, 2, 8], &[1 << 32, 1 << 32], &[u64::MAX]] {
        let problem = refused(file(&[key_of(sizes)], &eight(), 32));
        assert!(
            matches!(&problem, FileProblem::Tensor { name, .. } if name == "t"),
            "{sizes:?}: {problem:?}"
        );
    }
}

#[test]
fn an_original_shape_that_is_none_is_refused_by_key() {
    let name = "comfy.gguf.orig_shape.t";
    bad_key(name, STRING, text("8"));
    bad_key(name, U32, [8, 0, 0, 0]);
    bad_key(name, ARRAY, array(STRING, 1, text("8")));
    bad_key(name, ARRAY, array(I32, 1, (-8i32).to_le_bytes()));
    bad_key(name, ARRAY, array(U8, 9, [1; 9]));
    bad_key(name, ARRAY, array(ARRAY, 1, array(U8, 1, [8])));
}

#[test]
fn an_original_shape_of_another_tensor_says_nothing() {
    opened(&file(&[key("comfy.gguf.orig_shape.u", STRING, text("8"))], &eight(), 32));
}

#[test]
fn metadata_with_long_texts_are_shortened_in_messages_only() {
    let long = "x".repeat(1 << 20);
    let header = opened(&file(&[key("k", STRING, text(&long))], &eight(), 32));
    assert_eq!(header.metadata["k"], long);
    bad_key("general.alignment", STRING, text(&long)); // which looks at the message's length
    bad_key("general.alignment", STRING, text("\u{1b}[2J"));
}

// Tensors.

#[test]
fn a_name_longer_than_the_file_is_refused_by_its_place() {
    for len in [100u64, 1 << 32, 1 << 63, u64::MAX - 7, u64::MAX] {
        let bytes = [start(3, 2, 0), tensor("t", &[8], F32, 0), numbers([len]), vec![b't'; 50]].concat();
        assert_eq!(cut(bytes), ("the name of tensor 1".into(), len, 50));
    }
}

#[test]
fn a_name_that_is_no_text_is_refused_by_its_place() {
    let reason = gguf(file(&[], &[tensor(b"\xfft", &[8], F32, 0)], 32));
    assert_eq!(reason, "the name of tensor 0 is not UTF-8 after 0 bytes");
}

#[test]
fn names_with_nul_with_paths_or_without_letters_are_refused() {
    for name in ["a\0b", "../a", "a/b", "..\\a", "/etc/a", "", "\n", "\u{1b}[31m"] {
        let problem = refused(file(&[], &[tensor(name, &[8], F32, 0)], 32));
        assert!(matches!(problem, FileProblem::Tensor { .. }), "{name}: {problem:?}");
    }
}

#[test]
fn a_name_of_a_megabyte_is_refused_in_a_short_message() {
    let problem = refused(file(&[], &[tensor(vec![b'n'; 1 << 20], &[8], F32, 0)], 32));
    assert!(matches!(&problem, FileProblem::Tensor { reason, .. } if reason.contains("1048576")));
    assert!(problem.to_string().len() < 300);
}

#[test]
fn a_name_that_stands_twice_is_refused_by_name() {
    for offset in [0, 32] {
        let twins = [tensor("twin", &[8], F32, 0), tensor("twin", &[8], F32, offset)];
        let problem = refused(file(&[], &twins, 64));
        assert!(
            matches!(&problem, FileProblem::Tensor { name, reason } if name == "twin" && reason.contains("twice"))
        );
    }
}

#[test]
fn five_axes_are_refused_and_none_to_four_are_not() {
    assert!(bad_tensor(&[8, 1, 1, 1, 1], F32, 0, 32).contains("5 axes"));
    for dims in [&[][..], &[1], &[1, 1], &[1, 1, 1], &[1, 1, 1, 1]] {
        assert_eq!(opened(&file(&[], &[tensor("t", dims, F32, 0)], 4)).entries["t"].shape.len(), dims.len());
    }
}

#[test]
fn billions_of_axes_are_refused_before_any_is_read() {
    let bytes = [start(3, 1, 0), text("t"), u32::MAX.to_le_bytes().to_vec(), vec![0; 64]].concat();
    let problem = refused(bytes);
    assert!(
        matches!(&problem, FileProblem::Tensor { name, reason } if name == "t" && reason.contains("4294967295"))
    );
}

#[test]
fn shapes_are_the_reverse_of_the_files_axes() {
    let header = opened(&file(&[], &[tensor("t", &[2, 3, 4, 5], F32, 0)], 480));
    assert_eq!(header.entries["t"].shape, [5, 4, 3, 2]);
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    for dims in [
        &[1 << 32, 1 << 32][..],
        &[1 << 62, 4],
        &[u64::MAX],
        &[(1 << 32) + 1, (1 << 32) + 1],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        &[1 << 63],
        &[2, 1 << 62],
    ] {
        assert!(bad_tensor(dims, F32, 0, 32).contains("overflow"), "{dims:?}");
    }
    assert!(bad_tensor(&[1 << 61], F64, 0, 32).contains("overflow"));
}

#[test]
fn an_empty_shape_with_a_size_beyond_i64_is_refused() {
    for dims in [&[0, 1 << 63][..], &[1 << 63, 0], &[0, 1 << 32, 1 << 32]] {
        assert!(bad_tensor(dims, F32, 0, 0).contains("overflow"), "{dims:?}");
    }
}

#[test]
fn an_empty_tensor_takes_no_bytes() {
    let tensors =
        [tensor("none", &[0, 3], F32, 0), tensor("some", &[1], F32, 0), tensor("last", &[0], Q4_K, 32)];
    let header = opened(&file(&[], &tensors, 32));
    assert_eq!(header.entries["none"].shape, [3, 0]);
    assert_eq!(header.entries["last"].numel(), 0);
}

#[test]
fn an_unknown_type_of_tensor_is_refused_by_name_and_number() {
    for tensor_type in [42, 255, 1 << 31, u32::MAX] {
        assert_eq!(bad_tensor(&[8], tensor_type, 0, 32), format!("unknown type {tensor_type}"));
    }
}

#[test]
fn every_type_of_ggml_that_is_not_read_is_refused_by_name() {
    for (number, name) in [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (29, "IQ1_M"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (41, "Q1_0"),
    ] {
        let reason = bad_tensor(&[256], number, 0, 256);
        assert!(reason.starts_with(&format!("type {name} is not supported")), "{reason}");
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    for (dims, tensor_type) in [
        (&[31, 32][..], Q4_0),
        (&[33], Q4_0),
        (&[128, 2], Q4_K),
        (&[1, 32], Q4_0),
        (&[], Q4_0),
        (&[16, 2, 1, 1], Q4_0),
    ] {
        let reason = bad_tensor(dims, tensor_type, 0, 1024);
        assert!(reason.contains("not whole blocks"), "{reason}");
    }
}

#[test]
fn offsets_that_are_not_aligned_are_refused() {
    for offset in [1, 4, 31, 33, u64::MAX] {
        let reason = bad_tensor(&[8], F32, offset, 64);
        assert!(
            reason.contains(&format!("begin at {offset},")) && reason.contains("alignment 32"),
            "{reason}"
        );
    }
}

#[test]
fn a_tensor_that_ends_after_the_file_is_refused_by_name() {
    for (dims, offset, len) in [
        (&[8][..], 0, 31),
        (&[9], 0, 32),
        (&[8], 32, 32),
        (&[8], 1 << 62, 32),
        (&[8], u64::MAX - 31, 32),
        (&[1 << 60], 0, 32),
        (&[1 << 60], 1 << 63, 32),
        // 2^64 - 16 bytes, and none once they are rounded up (llama.cpp #26978).
        (&[4, (1 << 30) - 1, (1 << 30) + 1], 0, 32),
    ] {
        let problem = refused(file(&[], &[tensor("t", dims, F32, offset)], len));
        assert!(matches!(&problem, FileProblem::TensorPastEnd { name, .. } if name == "t"), "{problem:?}");
    }
}

#[test]
fn overlapping_tensors_are_refused_by_name() {
    for offset in [0, 32] {
        let tensors = [tensor("a", &[16], F32, 0), tensor("b", &[16], F32, offset)];
        let problem = refused(file(&[], &tensors, 96));
        assert_eq!(problem, FileProblem::Overlap { name: "b".into() });
    }
}

#[test]
fn a_hole_is_refused_with_its_bytes_and_padding_is_none() {
    let two = |offset| [tensor("a", &[5], F32, 0), tensor("b", &[8], F32, offset)];
    opened(&file(&[], &two(32), 64));
    assert_eq!(refused(file(&[], &two(64), 96)), FileProblem::Hole { before: "b".into(), bytes: 32 });
    let first = [tensor("a", &[8], F32, 32)];
    assert_eq!(refused(file(&[], &first, 64)), FileProblem::Hole { before: "a".into(), bytes: 32 });
}

#[test]
fn tensors_in_another_order_than_their_bytes_load() {
    let header = opened(&file(&[], &[tensor("a", &[8], F32, 32), tensor("b", &[8], F32, 0)], 64));
    assert_eq!(header.entries["a"].begin, header.entries["b"].end);
}

#[test]
fn the_last_tensor_may_be_padded_and_nothing_may_follow() {
    let tensors = [tensor("t", &[5], F32, 0)];
    for len in 20..=32 {
        opened(&file(&[], &tensors, len));
    }
    assert_eq!(refused(file(&[], &tensors, 33)), FileProblem::TrailingBytes { bytes: 13 });
    assert_eq!(refused(file(&[], &eight(), 64)), FileProblem::TrailingBytes { bytes: 32 });
}

// Damage.

#[test]
fn every_byte_of_the_header_may_be_any_other() {
    let keys = [
        key("general.alignment", U32, [32, 0, 0, 0]),
        key("comfy.gguf.orig_shape.t", ARRAY, array(I32, 2, [2, 0, 0, 0, 4, 0, 0, 0])),
        key("s", STRING, text("value")),
    ];
    let whole = file(&keys, &[tensor("t", &[8], F32, 0), tensor("u", &[32, 3], Q4_0, 32)], 32 + 54);
    opened(&whole);
    for at in 0..whole.len() - 86 {
        for byte in 0..=255 {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            targets::gguf(&bytes);
        }
    }
}
