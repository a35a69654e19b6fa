//! Files of compressed images: as they are; and changes of a good one, its checksum put right, which would keep them from the decoder.
#![no_main]

use candle_core::{DType, Device, Tensor};
use flows::codec::{Options, decode, encode};
use flows::models::{NiceConfig, Preprocess, PriorConfig};
use flows::{Model, ModelConfig};
use flows_fuzz::tell;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// A model for each way in which latents are coded, and a file of its.
static GOOD: LazyLock<Vec<(Model, Vec<u8>)>> = LazyLock::new(|| {
    let priors = [
        PriorConfig::Logistic {},
        PriorConfig::StudentT { df: 2., learned: false },
        PriorConfig::Mixture { components: 2 },
    ];
    let pixels = (0..12).map(|i| i * 20).collect::<Vec<u8>>();
    let images = Tensor::from_vec(pixels, (3, 1, 2, 2), &Device::Cpu).expect("twelve pixels");
    let good = |prior| {
        let config = NiceConfig {
            shape: vec![1, 2, 2],
            hidden: vec![vec![3]; 2],
            preprocess: Preprocess::Unit {},
            prior,
            ..NiceConfig::mnist_paper()
        };
        let model =
            Model::new(ModelConfig::Nice(config), 1, DType::F32, &Device::Cpu).expect("the config is one");
        let o = Options { streams: Some(2), ..Options::default() };
        let file = encode(&model, &images, None, &o).expect("it can be coded").bytes;
        (model, file)
    };
    priors.map(good).into()
});

fuzz_target!(|bytes: &[u8]| {
    for (model, file) in &*GOOD {
        tell(decode(model, bytes, None));
        let mut file = file.clone();
        // Three bytes are a place and a change.
        for change in bytes.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % file.len();
            file[at] ^= change[2];
        }
        let at = file.len() - 8;
        let sum = Sha256::digest(&file[..at]);
        file[at..].copy_from_slice(&sum[..8]);
        tell(decode(model, &file, None));
    }
});
