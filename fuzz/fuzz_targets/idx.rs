//! An idx file as images and as labels, and a pair of them.
#![no_main]

use flows_fuzz::data::idx::{parse_idx, parse_pair};
use flows_fuzz::tell;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tell(parse_idx(bytes, 3, "I").map(drop));
    tell(parse_idx(bytes, 1, "L").map(drop));
    // The first byte says where the labels begin.
    if let Some((&at, rest)) = bytes.split_first() {
        let (images, labels) = rest.split_at(usize::from(at).min(rest.len()));
        tell(parse_pair((images, "I"), (labels, "L")));
    }
});
