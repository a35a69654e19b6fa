//! config.json and the index of shards, alone and beside weights that are good.
#![no_main]

use flows::models::file;
use flows::storage::{self, CONFIG, WEIGHTS};
use flows_fuzz::{folder, tell};
use libfuzzer_sys::fuzz_target;
use std::sync::Once;

const GOOD: &[u8] = include_bytes!("../../flows/tests/golden/glow_classes/model.safetensors");

fuzz_target!(|bytes: &[u8]| {
    tell(storage::parse_index(bytes));
    let config = file::parse_config(bytes);
    // What is no config never reaches the weights.
    if config.is_ok() {
        static WRITE: Once = Once::new();
        WRITE.call_once(|| std::fs::write(folder().join(WEIGHTS), GOOD).expect("it can be written"));
        std::fs::write(folder().join(CONFIG), bytes).expect("it can be written");
        tell(flows::load(folder(), &candle_core::Device::Cpu));
    }
    tell(config);
});
