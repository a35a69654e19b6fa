//! Products inside networks in bf16 on the CPU. A program of its own: the precision is the process's, and other tests compute
//! in full.

use candle_core::{DType, Device, Result, Tensor};
use flows::models::{GlowConfig, NiceConfig, Preprocess, RealNvpConfig};
use flows::ops::precision::{Precision, within};
use flows::params::rng_for;
use flows::{Ctx, Drift, Grads, Memory, Model, ModelConfig};
use rand::Rng;

/// Each kind of network: convolutional with an edge channel, residual by Winograd's products and by columns, fully connected.
fn models() -> Vec<(&'static str, ModelConfig)> {
    let glow = GlowConfig { shape: [3, 16, 16], levels: 2, depth: 3, width: 32, ..GlowConfig::cifar_code() };
    let nvp = RealNvpConfig { shape: [3, 16, 16], features: 16, blocks: 2, ..RealNvpConfig::cifar_paper() };
    let thin = RealNvpConfig { shape: [3, 8, 8], features: 4, blocks: 1, ..RealNvpConfig::cifar_code() };
    let nice = NiceConfig {
        shape: vec![1, 8, 8],
        preprocess: Preprocess::Unit {},
        hidden: vec![vec![40; 3]; 4],
        ..NiceConfig::mnist_paper()
    };
    vec![
        ("Glow", ModelConfig::Glow(glow)),
        ("RealNVP", ModelConfig::RealNvp(nvp)),
        ("thin RealNVP", ModelConfig::RealNvp(thin)),
        ("NICE", ModelConfig::Nice(nice)),
    ]
}

fn pixels(shape: &[usize]) -> Result<Tensor> {
    let all: Vec<usize> = [8].iter().chain(shape).copied().collect();
    let mut rng = rng_for(5, "pixels");
    let v: Vec<f32> = (0..all.iter().product()).map(|_| 256. * rng.random::<f32>()).collect();
    Tensor::from_vec(v, all, &Device::Cpu)
}

/// The model, initialised and perturbed, with its pixels.
fn build(config: &ModelConfig) -> Result<(Model, Tensor)> {
    let model = Model::new(config.clone(), 1, DType::F32, &Device::Cpu)?;
    let x = pixels(config.shape())?;
    model.init(&x, None)?;
    model.params().perturb(2, 0.02)?;
    Ok((model, x))
}

fn gradients(model: &Model, x: &Tensor, memory: Memory) -> Result<Grads> {
    let scale = -1. / (model.dims() as f64 * 2f64.ln());
    Ok(model.gradients(x, Ctx::train(), memory, |lp| lp.mean_all()? * scale)?.1)
}

/// |a - b| and |b| over all parameters.
fn distance(a: &Grads, b: &Grads) -> Result<(f64, f64)> {
    let (mut off, mut size) = (0., 0.);
    for (name, b) in b {
        let (a, b) = (a[name].to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
        off += (a - &b)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        size += b.sqr()?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok((off.sqrt(), size.sqrt()))
}

/// Rounding costs a little likelihood and leaves the gradient's direction; the same pass gives the same bits. The inverse
/// rounds as the pass did: it returns far nearer than one in full precision, though not as near as in f32, for an activation
/// that is off in its last bit may round to the next number of bf16.
fn a_rounded_network_is_near_and_inverted() -> Result<()> {
    for (name, config) in models() {
        let (model, x) = build(&config)?;
        let bits = || model.bits_per_dim(&x, None)?.to_vec1::<f32>();
        let other = build(&config)?.0;
        let full = (bits()?, gradients(&build(&config)?.0, &x, Memory::Store)?);
        let (rounded, again, grads, z, back) = within(Precision::Bf16, || -> Result<_> {
            let z = model.encode(&x, None)?;
            let back = model.decode(&z, None)?;
            // Batch norm moves its running statistics with each pass of training: each has its own model.
            let grads = gradients(&other, &x, Memory::Store)?;
            Ok((bits()?, bits()?, grads, z, back))
        })?;
        let off = |back: &Tensor| (back - &x)?.abs()?.mean_all()?.to_scalar::<f32>();
        let (error, in_full) = (off(&back)?, off(&model.decode(&z, None)?)?);
        assert_eq!(rounded, again, "{name}");
        assert_ne!(rounded, full.0, "{name}: nothing was rounded");
        for (a, b) in rounded.iter().zip(&full.0) {
            assert!((a - b).abs() < 0.05, "{name}: {a} against {b}");
        }
        // What rounding the weights alone does to the gradient in full precision is the measure.
        let (coarse, _) = build(&config)?;
        for (_, p) in coarse.params().all() {
            p.set(&p.value().to_dtype(DType::BF16)?.to_dtype(p.value().dtype())?)?;
        }
        let (least, size) = distance(&gradients(&coarse, &x, Memory::Store)?, &full.1)?;
        let (off, _) = distance(&grads, &full.1)?;
        let (least, off) = (least / size, off / size);
        println!(
            "{name:<13} reconstruction {error:.1e} grey levels, in full {in_full:.1e}; gradient {off:.1e}, rounded weights {least:.1e}"
        );
        assert!(
            off < 4. * least,
            "{name}: a gradient is off by {off:e} of itself, by rounded weights {least:e}"
        );
        assert!(error < 0.1 * in_full, "{name}: off by {error} grey levels, in full precision by {in_full}");
        assert_eq!(bits()?, full.0, "{name}: the precision before is back");
    }
    Ok(())
}

/// Inputs are reconstructed with the products that they were made with.
fn reconstructed_inputs_give_the_same_gradient() -> Result<()> {
    for (name, config) in models() {
        within(Precision::Bf16, || -> Result<()> {
            let (model, x) = build(&config)?;
            let drift = model.drift(&x, Ctx::train(), Drift::BOUND)?;
            model.store(&drift.over());
            let (other, _) = build(&config)?;
            let (off, size) =
                distance(&gradients(&model, &x, Memory::Recompute)?, &gradients(&other, &x, Memory::Store)?)?;
            println!(
                "{name:<13} reconstructed: off by {:.1e} of itself, {} stored",
                off / size,
                drift.over().len()
            );
            assert!(off < 5e-3 * size, "{name}: a gradient of size {size:e} is off by {off:e}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn networks_in_bf16() -> Result<()> {
    a_rounded_network_is_near_and_inverted()?;
    reconstructed_inputs_give_the_same_gradient()
}
