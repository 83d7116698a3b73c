//! How fast each recipe is beside a copy of as many bytes; not run with the other tests, since it needs the machine for
//! itself: `cargo test --release --lib quant::speed -- --ignored --nocapture`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use tch::Kind;

use super::*;
use crate::error::{Error, Result};

const COUNT: usize = 1 << 28;

struct OnDisk(File);

impl Source for OnDisk {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(out, at).map_err(Error::io("a file of random bytes"))
    }
}

/// One of every sort, for `COUNT` numbers.
fn recipes() -> impl Iterator<Item = Code> {
    let plain =
        [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Float8e4m3fn, Kind::Float8e5m2].map(Code::Plain);
    let kind = Kind::Float8e4m3fn;
    let scale = |row: usize| vec![0.5; COUNT.div_ceil(row)];
    let others = [
        Code::Scaled { kind, scale: scale(COUNT), row: COUNT },
        Code::Scaled { kind, scale: scale(3072), row: 3072 },
        Code::FourBit { table: std::array::from_fn(|i| i as f32 - 8.0), absmax: scale(64), block: 64 },
        Code::Int8 { scale: scale(3072), row: 3072 },
    ];
    plain.into_iter().chain(others).chain(BlockType::ALL.map(Code::Blocks))
}

/// The least seconds of several runs.
fn least(mut run: impl FnMut() -> f64) -> f64 {
    (0..7).map(|_| run()).fold(f64::MAX, f64::min)
}

fn seconds(run: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    run();
    begin.elapsed().as_secs_f64()
}

/// From a file that is in memory already, on all cores, into a fresh tensor: read and written bytes in a second.
#[test]
#[ignore = "measures"]
fn beside_a_copy() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let random: Vec<u8> = (0..1 << 20).map(|_| random()).collect();
    (0..COUNT * 4 / random.len()).for_each(|_| path.as_file().write_all(&random).unwrap());
    path.as_file().sync_all().unwrap();
    let source = OnDisk(path.reopen().unwrap());
    for to in [Kind::BFloat16, Kind::Float] {
        for code in recipes() {
            let (read, written) = (code.bytes(COUNT), COUNT * to.elt_size_in_bytes());
            let copy = least(|| copy_seconds((read + written) as u64 / 2).unwrap());
            let ours = least(|| {
                let mut out = None;
                let seconds = seconds(|| {
                    let part = Part::new(&source, 0..read as u64, &code, COUNT, 0..COUNT).unwrap();
                    out = Some(decode(part, &[COUNT as i64], to).unwrap());
                });
                drop(out);
                seconds
            });
            let bytes = (read + written) as f64 / 1e9;
            let (speed, bar) = (bytes / ours, bytes / copy);
            let share = 100.0 * copy / ours;
            println!(
                "{:28} to {to:9?} {speed:6.2} GB/s, a copy {bar:6.2} GB/s: {share:3.0} %",
                code.to_string()
            );
        }
    }
}

/// From a core's own cache into it: numbers in a second, in every way that this processor knows.
#[test]
#[ignore = "measures"]
fn in_cache() {
    let count = 1 << 15;
    let src = vec![0x35; count * 4];
    let mut out = vec![0; count * 4 + 64];
    // As tensors are.
    let aligned = out.as_ptr().align_offset(64);
    let out = &mut out[aligned..];
    for code in recipes() {
        for to in [Kind::BFloat16, Kind::Float] {
            print!("{:28} to {to:9?}", code.to_string());
            for way in lanes::Processor::ways() {
                let (src, out) = (&src[..code.bytes(count)], &mut out[..count * to.elt_size_in_bytes()]);
                let mut run = || (0..100).for_each(|_| code.decode_on(way, src, 0, to, out));
                print!(" {:6.2} G/s", 100.0 * count as f64 / 1e9 / least(|| seconds(&mut run)));
            }
            println!();
        }
    }
}

/// From a core's own cache into it: numbers in a second.
#[test]
#[ignore = "measures"]
fn encoding() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let count = 1 << 15;
        let numbers = tch::Tensor::randn([count], (kind, tch::Device::Cpu));
        let speed =
            |run: &dyn Fn()| 100.0 * count as f64 / 1e9 / least(|| seconds(|| (0..100).for_each(|_| run())));
        let raw = speed(&|| drop(to_e4m3(&numbers).unwrap()));
        let scaled = speed(&|| drop(to_scaled_e4m3(&numbers).unwrap()));
        println!("{kind:?} to e4m3: {raw:.2} G/s, scaled {scaled:.2} G/s");
    }
}
