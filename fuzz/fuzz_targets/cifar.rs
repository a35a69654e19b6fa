//! A batch of CIFAR-10, and the tar archive of all batches.
#![no_main]

use flows_fuzz::data::cifar::{parse_archive, parse_batch};
use flows_fuzz::tell;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let records = bytes.len() / 3073;
    tell(parse_batch(bytes, records, "B", &mut Vec::new(), &mut Vec::new()));
    tell(parse_batch(bytes, usize::MAX, "B", &mut Vec::new(), &mut Vec::new()));
    tell(parse_archive(bytes, 1, "A").map(drop));
});
