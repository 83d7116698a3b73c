#![no_main]

use libfuzzer_sys::fuzz_target;
use tch_flux_fuzz::{run, targets};

fuzz_target!(|data: &[u8]| run(data, targets::picture));
