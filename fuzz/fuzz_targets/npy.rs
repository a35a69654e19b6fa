//! .npy and .npz.
#![no_main]

use flows_fuzz::data::npy::{parse_npy, parse_npz};
use flows_fuzz::tell;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tell(parse_npy(bytes, "N"));
    tell(parse_npz(bytes, "Z"));
});
