//! model.safetensors beside a config that is good.
#![no_main]

use flows::storage::{self, CONFIG, WEIGHTS};
use flows_fuzz::{folder, tell};
use libfuzzer_sys::fuzz_target;
use std::sync::Once;

const GOOD: &[u8] = include_bytes!("../../flows/tests/golden/nice_zca/config.json");

fuzz_target!(|bytes: &[u8]| {
    let header = storage::read_header(&mut &bytes[..], bytes.len() as u64);
    if header.is_ok() {
        static WRITE: Once = Once::new();
        WRITE.call_once(|| std::fs::write(folder().join(CONFIG), GOOD).expect("it can be written"));
        std::fs::write(folder().join(WEIGHTS), bytes).expect("it can be written");
        tell(flows::load(folder(), &candle_core::Device::Cpu));
    }
    tell(header);
});
