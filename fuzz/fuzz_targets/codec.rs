//! Files of compressed images: as they are; and changes of a good one, its checksum put right, which would keep them from the decoder.
#![no_main]

use candle_core::{DType, Device, Tensor};
use flows::codec::{Options, decode, encode};
use flows::models::{NiceConfig, Preprocess};
use flows::{Model, ModelConfig};
use flows_fuzz::tell;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let config = NiceConfig {
        shape: vec![1, 2, 2],
        hidden: vec![vec![3]; 2],
        preprocess: Preprocess::Unit {},
        ..NiceConfig::mnist_paper()
    };
    Model::new(ModelConfig::Nice(config), 1, DType::F32, &Device::Cpu).expect("the config is one")
});

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let images = Tensor::from_vec((0..12).map(|i| i * 20).collect::<Vec<u8>>(), (3, 1, 2, 2), &Device::Cpu);
    let o = Options { streams: Some(2), ..Options::default() };
    encode(&MODEL, &images.expect("twelve pixels"), None, &o).expect("it can be coded").bytes
});

fuzz_target!(|bytes: &[u8]| {
    tell(decode(&MODEL, bytes, None));
    let mut file = FILE.clone();
    // Three bytes are a place and a change.
    for change in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % file.len();
        file[at] ^= change[2];
    }
    let at = file.len() - 8;
    let sum = Sha256::digest(&file[..at]);
    file[at..].copy_from_slice(&sum[..8]);
    tell(decode(&MODEL, &file, None));
});
