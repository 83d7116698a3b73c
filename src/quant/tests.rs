//! Every recipe against the package that writes such files, bit for bit: `fixtures/quant`, made by
//! `scripts/export_quant.py`. The casts are compared with the libtorch that this is linked with.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use tch::{Cuda, Device, Kind, Tensor};

use super::lanes::Processor;
use super::*;
use crate::numerics::empty;

/// A file of `fixtures/quant`.
struct Fixture(Vec<u8>);

impl Fixture {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/quant/{name}.safetensors"));
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn find(&self, name: &str) -> Option<(Vec<i64>, &[u8])> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        Some((tensor.shape().iter().map(|&d| d as i64).collect(), tensor.data()))
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.find(name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        floats(self.bytes(name))
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The bytes of a tensor of this test's.
fn stored(tensor: &Tensor) -> &[u8] {
    // SAFETY: nothing writes to the tensors that are compared here.
    unsafe { crate::shim::bytes(tensor) }
}

/// What a recipe makes of bytes from number `first` on.
fn decoded_on(way: Processor, code: &Code, bytes: &[u8], numbers: Range<usize>, to: Kind) -> Vec<u8> {
    let mut out = vec![0xaa; numbers.len() * to.elt_size_in_bytes()];
    code.decode_on(way, &bytes[code.bytes(numbers.start)..], numbers.start, to, &mut out);
    out
}

/// What a recipe makes of bytes in one go.
fn decoded(code: &Code, bytes: &[u8], count: usize, to: Kind) -> Vec<u8> {
    assert_eq!(code.check(count, bytes.len()), Ok(()));
    decoded_on(Processor::best(), code, bytes, 0..count, to)
}

/// The same bits; one NaN is as good as another.
#[track_caller]
fn assert_same_bits(found: &[u8], expected: &[f32]) {
    let found = floats(found);
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(f.to_bits() == e.to_bits() || f.is_nan() && e.is_nan(), "number {i} is {f:e}, not {e:e}");
    }
}

/// All of it at once, and from every unit on, in every way that this processor knows; and by operations of tensors, on
/// the CPU and on CUDA where it is.
fn check_recipe(code: &Code, bytes: &[u8], numbers: &[f32]) {
    assert_eq!(code.check(numbers.len(), bytes.len()), Ok(()));
    let count = numbers.len();
    let cuda = (Cuda::device_count() > 0).then_some(Device::Cuda(0));
    for device in [Device::Cpu].into_iter().chain(cuda) {
        let there = device::numbers(code, &Tensor::from_slice(bytes).to_device(device), count).unwrap();
        assert_same_bits(stored(&there.to_device(Device::Cpu)), numbers);
    }
    for way in Processor::ways() {
        for first in (0..count).step_by(code.unit().0).take(40) {
            assert_same_bits(&decoded_on(way, code, bytes, first..count, Kind::Float), &numbers[first..]);
        }
        // And rounded, as libtorch rounds what was just compared.
        let theirs = Tensor::from_slice(numbers);
        for to in [Kind::BFloat16, Kind::Half, Kind::Double] {
            let ours = decoded_on(way, code, bytes, 0..count, to);
            assert_same_numbers(&ours, &theirs.to_kind(to));
        }
    }
}

/// The same numbers as those of the tensor, in its kind, with the same signs; one NaN is as good as another.
#[track_caller]
fn assert_same_numbers(ours: &[u8], theirs: &Tensor) {
    let ours = Tensor::f_from_data_size(ours, &theirs.size(), theirs.kind()).unwrap();
    let same = ours.eq_tensor(theirs).logical_and(&ours.signbit().eq_tensor(&theirs.signbit()));
    let nan = ours.isnan().logical_and(&theirs.isnan());
    assert!(bool::try_from(same.logical_or(&nan).all()).unwrap(), "to {:?}", theirs.kind());
}

fn check_block(block: BlockType) {
    let fixture = Fixture::open("gguf");
    let numbers = fixture.floats(&format!("{block:?}.numbers"));
    check_recipe(&Code::Blocks(block), fixture.bytes(&format!("{block:?}.bytes")), &numbers);
}

macro_rules! blocks_match_gguf {
    ($($name:ident $block:ident)*) => {
        $(
            #[test]
            fn $name() {
                check_block(BlockType::$block);
            }
        )*
    };
}

blocks_match_gguf! {
    q4_0_matches_gguf Q4_0
    q4_1_matches_gguf Q4_1
    q5_0_matches_gguf Q5_0
    q5_1_matches_gguf Q5_1
    q8_0_matches_gguf Q8_0
    q2_k_matches_gguf Q2_K
    q3_k_matches_gguf Q3_K
    q4_k_matches_gguf Q4_K
    q5_k_matches_gguf Q5_K
    q6_k_matches_gguf Q6_K
    iq4_nl_matches_gguf IQ4_NL
    iq4_xs_matches_gguf IQ4_XS
}

fn check_four_bit(name: &str) {
    let fixture = Fixture::open("bitsandbytes");
    let find = |end: &str| fixture.find(&format!("{name}.weight.{end}")).map(|(_, bytes)| bytes);
    let companions = QuantState {
        absmax: find("absmax").unwrap(),
        quant_map: find("quant_map").unwrap(),
        nested_absmax: find("nested_absmax"),
        nested_quant_map: find("nested_quant_map"),
    };
    let kind = name.split('.').next().unwrap();
    let state = find(&format!("quant_state.bitsandbytes__{kind}")).unwrap();
    let state = serde_json::from_slice(state).unwrap();
    let (code, shape) = four_bit(companions, &state).unwrap();
    assert_eq!(shape, fixture.find(&format!("{name}.numbers")).unwrap().0);
    let mut numbers = fixture.floats(&format!("{name}.numbers"));
    let bytes = fixture.bytes(&format!("{name}.weight"));
    if kind == "fp4" {
        // The kernels of bitsandbytes disagree about the sign of fp4's second zero; the file's map has none.
        numbers.iter_mut().for_each(|number| *number += 0.0);
        let signless =
            floats(&decoded(&code, bytes, numbers.len(), Kind::Float)).into_iter().map(|n| n + 0.0);
        assert!(signless.eq(numbers));
    } else {
        check_recipe(&code, bytes, &numbers);
    }
}

#[test]
fn nf4_matches_bitsandbytes() {
    check_four_bit("nf4.plain");
    check_four_bit("nf4.odd");
}

#[test]
fn nf4_with_double_quantisation_matches_bitsandbytes() {
    check_four_bit("nf4.nested");
    check_four_bit("nf4.odd_nested");
}

#[test]
fn fp4_matches_bitsandbytes() {
    check_four_bit("fp4.plain");
    check_four_bit("fp4.odd");
}

#[test]
fn fp4_with_double_quantisation_matches_bitsandbytes() {
    check_four_bit("fp4.nested");
    check_four_bit("fp4.odd_nested");
}

#[test]
fn int8_matches_bitsandbytes() {
    let fixture = Fixture::open("bitsandbytes");
    let (shape, bytes) = fixture.find("int8.weight").unwrap();
    let code = Code::Int8 { scale: fixture.floats("int8.SCB"), row: shape[1] as usize };
    check_recipe(&code, bytes, &fixture.floats("int8.numbers"));
}

const EVERY_BYTE: [u8; 256] = {
    let mut every = [0; 256];
    let mut i = 0;
    while i < 256 {
        every[i] = i as u8;
        i += 1;
    }
    every
};

#[test]
fn e4m3_matches_torch() {
    let numbers = Fixture::open("fp8").floats("e4m3.numbers");
    check_recipe(&Code::Plain(Kind::Float8e4m3fn), &EVERY_BYTE, &numbers);
}

#[test]
fn e5m2_matches_torch() {
    let numbers = Fixture::open("fp8").floats("e5m2.numbers");
    check_recipe(&Code::Plain(Kind::Float8e5m2), &EVERY_BYTE, &numbers);
}

#[test]
fn fp8_is_multiplied_by_the_scale_of_its_row_in_f32() {
    let fixture = Fixture::open("fp8");
    for (kind, name) in [(Kind::Float8e4m3fn, "e4m3.numbers"), (Kind::Float8e5m2, "e5m2.numbers")] {
        for scale in [vec![0.017_f32], vec![0.3, -1.7e-3, 7.0, 1e-9]] {
            let row = 256 / scale.len();
            let numbers = fixture.floats(name);
            let numbers: Vec<f32> = numbers.iter().enumerate().map(|(i, n)| n * scale[i / row]).collect();
            check_recipe(&Code::Scaled { kind, scale, row }, &EVERY_BYTE, &numbers);
        }
    }
}

/// All f16 and bf16, and f32 of every exponent on both sides of where they round.
#[test]
fn casts_match_libtorch() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut singles: Vec<f32> = Vec::new();
    for exponent in 0..=255u32 {
        for mantissa in
            [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0x1_7fff, 0x1_ffff]
        {
            for top in [0, 0x0002_0000, 0x0030_0000, 0x0070_0000, 0x007e_0000] {
                let bits = exponent << 23 | (mantissa | top);
                singles.extend([f32::from_bits(bits), f32::from_bits(bits | 1 << 31)]);
            }
        }
    }
    let doubles: Vec<f64> = singles.iter().map(|&v| f64::from(v) * 1.000_000_01).collect();
    let singles: Vec<u8> = singles.iter().flat_map(|v| v.to_le_bytes()).collect();
    let doubles: Vec<u8> = doubles.iter().flat_map(|v| v.to_le_bytes()).collect();
    let kinds = [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double];
    for (from, bytes) in kinds.iter().zip([&halves, &halves, &singles, &doubles]) {
        for to in kinds {
            let count = bytes.len() / from.elt_size_in_bytes();
            let theirs = Tensor::f_from_data_size(bytes, &[count as i64], *from).unwrap().to_kind(to);
            for way in Processor::ways() {
                let ours = decoded_on(way, &Code::Plain(*from), bytes, 0..count, to);
                assert_same_numbers(&ours, &theirs);
            }
        }
    }
}

/// Whatever its bits: rounding must not carry one into the sign.
#[test]
fn nan_stays_nan() {
    let nan = f32::from_bits(0x7fff_ffff);
    let kind = Kind::Float8e4m3fn;
    let mut q4_1 = [0x55; 20];
    q4_1[..2].copy_from_slice(&0x7fff_u16.to_le_bytes());
    let cases: [(Code, &[u8]); 5] = [
        (Code::Scaled { kind, scale: vec![nan], row: 32 }, &[0x35; 32]),
        (Code::Int8 { scale: vec![nan], row: 32 }, &[0x35; 32]),
        (Code::FourBit { table: [nan; 16], absmax: vec![1.0], block: 32 }, &[0x35; 16]),
        (Code::FourBit { table: [1.0; 16], absmax: vec![nan], block: 32 }, &[0x35; 16]),
        (Code::Blocks(BlockType::Q4_1), &q4_1),
    ];
    for (code, bytes) in cases {
        for way in Processor::ways() {
            for to in [Kind::BFloat16, Kind::Half, Kind::Float, Kind::Double] {
                let numbers = decoded_on(way, &code, bytes, 0..32, to);
                let numbers = Tensor::f_from_data_size(&numbers, &[32], to).unwrap();
                assert!(bool::try_from(numbers.isnan().all()).unwrap(), "{code} to {to:?}");
            }
        }
    }
}

/// Enough for several threads, in three parts of which the last is of another kind, and out of order.
#[test]
fn parts_are_decoded_into_their_places_on_all_cores() {
    let fixture = Fixture::open("gguf");
    let block: Vec<u8> = fixture.bytes("Q4_K.bytes").repeat(400);
    let count = block.len() / 144 * 256;
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let (q4, plain) = (Code::Blocks(BlockType::Q4_K), Code::Plain(Kind::Half));
    for to in [Kind::Float, Kind::BFloat16, Kind::Half] {
        let source: &[u8] = &block;
        let other: &[u8] = &halves;
        let part = |elements| Part::new(&source, 0..block.len() as u64, &q4, count, elements).unwrap();
        let last = Part::new(&other, 0..halves.len() as u64, &plain, 65536, 5..1000).unwrap();
        let small = Part::new(&other, 0..halves.len() as u64, &plain, 65536, 0..7).unwrap();
        let out = empty(&[count as i64 + 995], to).unwrap();
        let second = empty(&[7], to).unwrap();
        let parts = vec![part(count / 2..count), part(0..count / 2), last];
        // SAFETY: both tensors are this test's.
        unsafe { decode_all(&[Job { out: &out, parts }, Job { out: &second, parts: vec![small] }]) }.unwrap();

        let all = decoded(&q4, &block, count, to);
        let middle = all.len() / 2;
        let halves = decoded(&plain, &halves, 65536, to);
        let width = to.elt_size_in_bytes();
        let expected = [&all[middle..], &all[..middle], &halves[5 * width..1000 * width]].concat();
        assert!(stored(&out) == expected, "{to:?}");
        assert_eq!(stored(&second), &halves[..7 * width]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let q4 = Code::Blocks(BlockType::Q4_K);
    let source: &[u8] = &[0; 288];
    let refused = |code: &Code, bytes, of, elements| Part::new(&source, bytes, code, of, elements).err();
    assert_eq!(refused(&q4, 0..288, 512, 0..512), None);
    assert_eq!(refused(&q4, 0..288, 512, 256..512), None);
    assert_eq!(refused(&q4, 0..288, 512, 512..512), None);
    assert_eq!(refused(&q4, 0..287, 512, 0..512).unwrap(), "512 numbers take 288 bytes, not 287");
    assert_eq!(refused(&q4, 0..288, 500, 0..256).unwrap(), "500 numbers are no whole blocks of 256");
    assert!(refused(&q4, 0..288, 512, 0..100).is_some());
    assert!(refused(&q4, 0..288, 512, 256..768).is_some());
    assert!(refused(&q4, 0..u64::MAX, usize::MAX, 0..usize::MAX).is_some());
    let rows = |row, count| Code::Int8 { scale: vec![1.0; count], row };
    assert_eq!(refused(&rows(72, 4), 0..288, 288, 0..288), None);
    assert!(refused(&rows(72, 3), 0..288, 288, 0..288).is_some());
    assert!(refused(&rows(0, 4), 0..288, 288, 0..288).is_some());
    assert!(refused(&Code::Plain(Kind::Int), 0..288, 72, 0..72).is_some());

    let part = |elements| Part::new(&source, 0..288, &q4, 512, elements).unwrap();
    let out = empty(&[2, 256], Kind::Float).unwrap();
    // SAFETY: the tensors are this test's.
    let fill = |out: &Tensor, parts| unsafe { decode_all(&[Job { out, parts }]) };
    assert!(fill(&out, vec![part(0..512)]).is_ok());
    assert!(fill(&out, vec![part(0..256)]).is_err());
    assert!(fill(&out.transpose(0, 1), vec![part(0..512)]).is_err());
    assert!(fill(&out.to_kind(Kind::Int), vec![part(0..512)]).is_err());
    let twice = |at| Job { out: at, parts: vec![part(0..512)] };
    // SAFETY: as above; that the two share memory is what must be refused.
    assert!(unsafe { decode_all(&[twice(&out), twice(&out.shallow_clone())]) }.is_err());
    // Bytes that the source turns out not to have.
    let short: &[u8] = &[0; 144];
    let part = Part::new(&short, 0..288, &q4, 512, 0..512).unwrap();
    assert!(fill(&out, vec![part]).is_err());
}

/// Every way in which what is beside a weight of four bits can be wrong has a reason, and takes no memory to find.
#[test]
fn senseless_companions_of_four_bits_are_refused() {
    let (absmax, map, state) = ([0; 4 * 4], [0; 64], "nf4");
    let good =
        serde_json::json!({"quant_type": state, "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]});
    let plain = QuantState { absmax: &absmax, quant_map: &map, ..QuantState::default() };
    assert!(four_bit(plain, &good).is_ok());
    let with = |key: &str, value: serde_json::Value| {
        let mut state = good.clone();
        state[key] = value;
        four_bit(plain, &state).unwrap_err()
    };
    for (key, value) in [
        ("quant_type", "int4".into()),
        ("quant_type", 4.into()),
        ("blocksize", 0.into()),
        ("blocksize", 63.into()),
        ("blocksize", (-64).into()),
        ("blocksize", 1e300.into()),
        ("dtype", 16.into()),
        ("shape", serde_json::Value::Null),
        ("shape", [4i64, -64].into()),
        ("shape", [4i64, 65].into()),
        ("shape", [i64::MAX, i64::MAX].into()),
        ("shape", [i64::MAX, 1].into()),
        ("shape", [u64::MAX].into()),
        ("shape", vec![1; 9].into()),
        ("shape", vec![i64::MAX; 1000].into()),
        ("unheard_of", 1.into()),
        (&"unheard_of\u{7}".repeat(1000), 1.into()),
    ] {
        let reason = with(key, value.clone());
        assert!(!reason.is_empty() && reason.len() < 300, "{key} {value}: {reason}");
    }
    assert!(four_bit(plain, &serde_json::Value::Null).is_err());
    assert!(four_bit(QuantState { absmax: &absmax[1..], ..plain }, &good).is_err());
    assert!(four_bit(QuantState { quant_map: &map[4..], ..plain }, &good).is_err());

    let (indices, inner, inner_map) = ([0u8; 4], [0; 4], [0; 1024]);
    let (nested_absmax, nested_quant_map) = (Some(&inner[..]), Some(&inner_map[..]));
    let twice = QuantState { absmax: &indices, quant_map: &map, nested_absmax, nested_quant_map };
    let mut state = good.clone();
    for (key, value) in
        [("nested_blocksize", 256.into()), ("nested_dtype", "float32".into()), ("nested_offset", 0.1.into())]
    {
        assert!(four_bit(twice, &state).is_err(), "without {key}");
        state[key] = value;
    }
    assert!(four_bit(twice, &state).is_ok());
    assert!(four_bit(QuantState { nested_absmax: None, ..twice }, &state).is_err());
    assert!(four_bit(QuantState { nested_quant_map: None, ..twice }, &state).is_err());
    assert!(four_bit(QuantState { nested_quant_map: Some(&inner_map[4..]), ..twice }, &state).is_err());
    assert!(four_bit(QuantState { absmax: &indices[1..], ..twice }, &state).is_err());
    for (key, value) in
        [("nested_blocksize", 0.into()), ("nested_blocksize", 1.into()), ("nested_dtype", "float16".into())]
    {
        let mut state = state.clone();
        state[key] = value;
        assert!(four_bit(twice, &state).is_err(), "{key}");
    }
}

#[test]
fn a_matrix_that_stays_as_stored_gives_the_numbers_of_decoding_at_once() {
    let fixture = Fixture::open("gguf");
    let bytes = fixture.bytes("Q6_K.bytes");
    let count = bytes.len() / 210 * 256;
    let code = Arc::new(Code::Blocks(BlockType::Q6_K));
    let piece = || Piece { bytes: Tensor::from_slice(bytes), code: Arc::clone(&code), elements: count };
    let matrix = Quantized { pieces: vec![piece(), piece()], shape: [count as i64 / 128, 256] };
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let matrix = is_send(matrix);
    assert_eq!(matrix.nbytes(), 2 * bytes.len());
    for kind in [Kind::BFloat16, Kind::Float] {
        let out = matrix.dequantize(kind, Device::Cpu).unwrap();
        assert_eq!((out.size(), out.kind()), (vec![count as i64 / 128, 256], kind));
        let one = decoded(&code, bytes, count, kind);
        assert!(stored(&out) == [one.clone(), one].concat());
        assert!(out.equal(&matrix.on_their_device(kind).unwrap()));
    }
    let piece = Piece { elements: count - 1, ..piece() };
    let matrix = Quantized { pieces: vec![piece], shape: [1, count as i64 - 1] };
    assert!(matrix.dequantize(Kind::Float, Device::Cpu).unwrap_err().to_string().contains("Q6_K"));
    assert!(matrix.on_their_device(Kind::Float).is_err());
}
