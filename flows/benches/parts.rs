//! What a training step is made of, each part alone (criterion); whole steps beside PyTorch are in peers.rs.
//!
//! Absolute figures of a shared machine say little; compare two runs of one afternoon, or ratios within one run.

use candle_core::{DType, Device, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flows::bijections::{ActNorm, Conv1x1, Coupling, Weight};
use flows::nets::{ConvNet, ResNet, ResNetConfig};
use flows::ops::conv::{conv2d, conv2d_backward};
use flows::optim::{Optimizer, Rule};
use flows::params::Init;
use flows::testing::normal;
use flows::transforms::{Affine, MixtureOfLogistics, Partition, RationalQuadraticSpline, Scale, Transform};
use flows::{Bijection, Ctx, Gradients, Grads, Memory, Net, ParamStore};

fn f32s(shape: &[usize]) -> Tensor {
    normal(shape, 1, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

/// Batch 16: floating-point operations a second, of the forward and of both gradients.
fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("convolution");
    for (i, o, k, side) in
        [(64, 64, 3, 32), (512, 512, 3, 8), (512, 512, 1, 16), (6, 512, 3, 16), (512, 12, 3, 16)]
    {
        let (x, w) = (f32s(&[i, 16, side, side]), f32s(&[o, i, k, k]));
        let gy = f32s(&[o, 16, side, side]);
        let flops = (2 * i * o * k * k * side * side * 16) as u64;
        let name = format!("{i}to{o}_{k}x{k}_{side}");
        group.throughput(Throughput::Elements(flops));
        group.bench_function(BenchmarkId::new("forward", &name), |b| b.iter(|| conv2d(&x, &w).unwrap()));
        group.throughput(Throughput::Elements(2 * flops));
        group.bench_function(BenchmarkId::new("backward", &name), |b| {
            b.iter(|| conv2d_backward(&x, &w, &gy).unwrap())
        });
    }
    group.finish();
}

/// The networks of Glow and RealNVP, forward and backward, images a second.
fn nets(c: &mut Criterion) {
    let mut group = c.benchmark_group("net");
    let batch = 16;
    group.throughput(Throughput::Elements(batch));
    let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
    let conv = ConvNet::new(6, 512, 12, false, &params.vb().pp("conv")).unwrap();
    let cfg = ResNetConfig {
        inputs: 3,
        features: 64,
        outputs: 6,
        blocks: 8,
        signed_input: true,
        weight_norm: true,
        batch_norm: true,
        skip: true,
        norm_input: false,
        channel_gains: false,
        eps: 1e-4,
        momentum: 0.1,
    };
    let res = ResNet::new(cfg, None, &params.vb().pp("res")).unwrap();
    let nets: [(&str, &dyn Net, usize, usize); 2] = [("conv_512", &conv, 6, 16), ("res_64", &res, 3, 32)];
    for (name, net, channels, side) in nets {
        let x = f32s(&[batch as usize, channels, side, side]);
        group.bench_function(BenchmarkId::new("forward", name), |b| {
            b.iter(|| net.forward(&x, Ctx::eval()).unwrap())
        });
        group.bench_function(BenchmarkId::new("both", name), |b| {
            b.iter(|| {
                let (y, saved) = net.forward_saved(&x, Ctx::train()).unwrap();
                net.backward(saved, &y, &mut Gradients::new(&params)).unwrap()
            })
        });
    }
    group.finish();
}

/// The layers between networks, forward and backward, on (16, 12, 16, 16), images a second.
fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer");
    group.throughput(Throughput::Elements(16));
    let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
    let vb = params.vb();
    let layers: [(&str, Box<dyn Bijection>); 3] = [
        ("actnorm", Box::new(ActNorm::new(12, 3., &vb.pp("actnorm")).unwrap())),
        ("conv1x1", Box::new(Conv1x1::new(12, Weight::Plu, &vb.pp("conv1x1")).unwrap())),
        (
            "coupling",
            Box::new(Coupling::new(
                Partition::Halves { swap: false },
                ConvNet::new(6, 8, 12, false, &vb.pp("net")).unwrap(),
                Affine { scale: Scale::Sigmoid, shift_first: true },
            )),
        ),
    ];
    let x = f32s(&[16, 12, 16, 16]);
    for (name, layer) in &layers {
        for memory in [Memory::Store, Memory::Recompute] {
            group.bench_function(BenchmarkId::new(*name, format!("{memory:?}")), |b| {
                b.iter(|| {
                    let ctx = Ctx::train();
                    let (z, log_det, saved) = layer.forward_saved(&x, ctx, memory).unwrap();
                    let mut grads = Gradients::new(&params);
                    layer.backward(&z, saved, (&z, &log_det), ctx, &mut grads).unwrap()
                })
            });
        }
    }
    group.finish();
}

/// Splines and mixtures of eight, by their kernels and on candle's graph, which the reference builds for tracked tensors; elements
/// a second. Vectors, and half the channels of images.
fn transforms(c: &mut Criterion) {
    let mut group = c.benchmark_group("transform");
    let both: [(&str, Box<dyn Transform>); 2] = [
        ("spline", Box::new(RationalQuadraticSpline::default())),
        ("mixture", Box::new(MixtureOfLogistics::default())),
    ];
    let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
    for (name, transform) in &both {
        for shape in [vec![256, 8], vec![16, 6, 16, 16]] {
            let (x, gy) = (f32s(&shape), f32s(&shape));
            let gs = gy.ones_like().unwrap();
            let mut of_h = shape.clone();
            of_h[1] *= transform.params_per_element();
            let h = f32s(&of_h);
            let (y, _) = transform.forward(&x, &h, Ctx::eval()).unwrap();
            let name = |what: &str| BenchmarkId::new(format!("{name}/{what}"), format!("{shape:?}"));
            group.throughput(Throughput::Elements(x.elem_count() as u64));
            let var = |t: &Tensor| Var::from_tensor(t).unwrap();
            group.bench_function(name("forward"), |b| {
                b.iter(|| transform.forward(&x, &h, Ctx::eval()).unwrap())
            });
            group.bench_function(name("forward, graph"), |b| {
                b.iter(|| transform.forward(&var(&x), &var(&h), Ctx::eval()).unwrap())
            });
            group.bench_function(name("backward"), |b| {
                let mut grads = Gradients::new(&params);
                b.iter(|| transform.backward((&x, &h), (&gy, &gs), Ctx::train(), &mut grads).unwrap())
            });
            group.bench_function(name("backward, graph"), |b| {
                b.iter(|| {
                    let (y, s) = transform.forward(&var(&x), &var(&h), Ctx::train()).unwrap();
                    ((y * &gy).unwrap() + (s * &gs).unwrap()).unwrap().sum_all().unwrap().backward().unwrap()
                })
            });
            group.bench_function(name("inverse"), |b| b.iter(|| transform.inverse(&y, &h).unwrap()));
            group.bench_function(name("inverse, graph"), |b| {
                b.iter(|| transform.inverse(&var(&y), &var(&h)).unwrap())
            });
        }
    }
    group.finish();
}

/// One step of each rule on ten million numbers.
fn optimisers(c: &mut Criterion) {
    let mut group = c.benchmark_group("optimiser");
    let n = 10_000_000;
    group.throughput(Throughput::Elements(n as u64));
    let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
    params.vb().get(n, "p", Init::Const(0.)).unwrap();
    let grads = Grads::from([("p".to_string(), Tensor::ones(n, DType::F32, &Device::Cpu).unwrap())]);
    for (name, rule) in [
        ("adam", Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }),
        ("adamax", Rule::Adamax { b1: 0.9, b2: 0.999, eps: 1e-8, adam_correction: true }),
    ] {
        let mut opt = Optimizer::new(rule, &params).unwrap();
        group.bench_function(name, |b| b.iter(|| opt.step(&grads, 1e-6, 1.).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, convolutions, nets, layers, transforms, optimisers);
criterion_main!(benches);
