//! `just bench`: what a training step is made of, and whole steps, in images/s.
//!
//! Absolute figures of a shared machine say little; compare two runs of one afternoon, or ratios within one run.

use candle_core::{DType, Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flows::models::{GlowConfig, NiceConfig, RealNvpConfig};
use flows::ops::conv::conv2d;
use flows::optim::{Optimizer, Rule, collect_grads, global_norm};
use flows::testing::normal;
use flows::{Ctx, Model, ModelConfig};

fn f32s(shape: &[usize]) -> Tensor {
    normal(shape, 1, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

/// (channels in and out, kernel, side), batch 16: throughput in multiply-adds times two, forward, then both gradients.
fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("convolution");
    for (i, o, k, side) in [
        (64, 64, 3, 32),
        (512, 512, 3, 8),
        (512, 512, 1, 8),
        (512, 512, 1, 16),
        (6, 512, 3, 16),
        (512, 12, 3, 16),
    ] {
        let x = Var::from_tensor(&f32s(&[i, 16, side, side])).unwrap();
        let w = Var::from_tensor(&f32s(&[o, i, k, k])).unwrap();
        let flops = (2 * i * o * k * k * side * side * 16) as u64;
        let name = format!("{i}to{o}_{k}x{k}_{side}");
        group.throughput(Throughput::Elements(flops));
        group.bench_function(format!("{name}_forward"), |b| {
            b.iter(|| conv2d(&x.as_tensor().detach(), &w.as_tensor().detach()).unwrap())
        });
        group.throughput(Throughput::Elements(3 * flops));
        group.bench_function(format!("{name}_both"), |b| {
            b.iter(|| conv2d(&x, &w).unwrap().sum_all().unwrap().backward().unwrap())
        });
    }
    group.finish();
}

/// One training step: forward, backward, clipping, Adam.
fn steps(c: &mut Criterion) {
    let glow = |levels, depth, width| {
        ModelConfig::Glow(GlowConfig { levels, depth, width, ..GlowConfig::cifar_paper() })
    };
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for (name, config, batch) in [
        ("glow_L2_K4_64", glow(2, 4, 64), 16),
        ("glow_L3_K8_128", glow(3, 8, 128), 16),
        ("glow_L3_K32_512", glow(3, 32, 512), 16),
        ("realnvp_cifar", ModelConfig::RealNvp(RealNvpConfig::cifar_paper()), 16),
        ("nice_mnist", ModelConfig::Nice(NiceConfig::mnist_paper()), 200),
    ] {
        let model = Model::new(config, 0, DType::F32, &Device::Cpu).unwrap();
        let mut shape = vec![batch];
        shape.extend(model.shape());
        let x = (((f32s(&shape).tanh().unwrap() / 2.2).unwrap() + 0.5).unwrap() * 256.).unwrap();
        model.init(&x, None).unwrap();
        let rule = Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 };
        let mut opt = Optimizer::new(rule, model.params()).unwrap();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let lp = model.terms(&x, Ctx::train()).unwrap().log_prob().unwrap();
                let loss = (lp.mean_all().unwrap() * (-1. / model.dims() as f64)).unwrap();
                let grads = collect_grads(model.params(), &loss.backward().unwrap());
                let norm = global_norm(&grads).unwrap();
                opt.step(&grads, 1e-4, 1f64.min(1. / norm)).unwrap();
            })
        });
    }
    group.finish();
}

criterion_group!(benches, convolutions, steps);
criterion_main!(benches);
