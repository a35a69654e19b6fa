//! What the benchmark counts is what can be counted by hand, and what PyTorch counts.

#[path = "../../benches/peers/flops.rs"]
mod count;

use candle_core::{DType, Device};
use count::{Precision, forward_flops, peak};
use flows::models::{GlowConfig, NiceConfig, RealNvpConfig};
use flows::{Model, ModelConfig};

fn flops(config: ModelConfig) -> anyhow::Result<f64> {
    Ok(forward_flops(&Model::new(config, 0, DType::F32, &Device::Cpu)?)?)
}

#[test]
fn of_a_glow_by_hand() -> anyhow::Result<()> {
    // One level: 16x16 pixels, 12 channels; 6 -> 5 (3x3), 5 -> 5 (1x1), 5 -> 12 (3x3), and the 12x12 permutation.
    let config = GlowConfig { levels: 1, depth: 2, width: 5, ..GlowConfig::cifar_paper() };
    let step = 6 * 5 * 9 + 5 * 5 + 5 * 12 * 9 + 12 * 12;
    assert_eq!(flops(ModelConfig::Glow(config))?, (2 * 256 * 2 * step) as f64);
    // Two levels: the split's 6 -> 12 (3x3) at 16x16, then 24 channels at 8x8.
    let config = GlowConfig { levels: 2, depth: 1, width: 5, ..GlowConfig::cifar_paper() };
    let next = 12 * 5 * 9 + 5 * 5 + 5 * 24 * 9 + 24 * 24;
    let all = 2 * 256 * (step + 6 * 12 * 9) + 2 * 64 * next;
    assert_eq!(flops(ModelConfig::Glow(config))?, all as f64);
    Ok(())
}

#[test]
fn of_a_nice_by_hand() -> anyhow::Result<()> {
    // 4 couplings of 392 -> 1000 (x 5) -> 392.
    let coupling = 2 * 392 * 1000 + 4 * 1000 * 1000;
    assert_eq!(flops(ModelConfig::Nice(NiceConfig::mnist_paper()))?, (4 * 2 * coupling) as f64);
    Ok(())
}

#[test]
fn of_a_realnvp_by_hand() -> anyhow::Result<()> {
    // One residual block, 2 features; checkerboards see [x, -x, mask], channel-wise couplings [x, -x] of half the channels.
    let config = RealNvpConfig {
        features: 2,
        blocks: 1,
        checkerboard: 1,
        channelwise: 1,
        last_checkerboard: 1,
        ..RealNvpConfig::cifar_paper()
    };
    let net = |inputs, f, outputs| 9 * inputs * f + f * f + (2 * 9 * f * f + f * f) + f * outputs;
    let all = 1024 * net(7, 2, 6) + 256 * net(12, 4, 12) + 256 * net(13, 4, 12);
    assert_eq!(flops(ModelConfig::RealNvp(config))?, (2 * all) as f64);
    Ok(())
}

#[test]
fn a_matrix_without_a_rule_is_an_error() {
    // The released code's border has a kernel of its own.
    let config = GlowConfig { levels: 1, depth: 1, width: 2, ..GlowConfig::cifar_code() };
    let error = flops(ModelConfig::Glow(config)).unwrap_err().to_string();
    assert!(error.contains("no rule"), "{error}");
}

#[test]
fn peaks_by_name() {
    assert_eq!(peak("NVIDIA H200", Precision::Tf32), Some(494.7));
    assert_eq!(peak("NVIDIA H100 80GB HBM3", Precision::Bf16), Some(989.4));
    assert_eq!(peak("NVIDIA H100 PCIe", Precision::F32), Some(51.2));
    assert_eq!(peak("NVIDIA A100-SXM4-80GB", Precision::Bf16), Some(312.));
    assert_eq!(peak("NVIDIA GeForce RTX 4090", Precision::Tf32), Some(82.6));
    for other in ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA B200", "cpu"] {
        assert_eq!(peak(other, Precision::F32), None, "{other}");
    }
}
