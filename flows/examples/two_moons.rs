//! Two moons in 80 lines: eight affine couplings between small MLPs, trained for some seconds, saved and loaded.
//!
//! `cargo run --release --example two_moons`

use candle_core::{DType, Device, Result, Tensor};
use flows::bijections::{ActNorm, Coupling};
use flows::nets::{Mlp, Start};
use flows::optim::{Optimizer, Rule};
use flows::params::{Init, rng_for};
use flows::priors::Gaussian;
use flows::transforms::{Affine, Partition, Scale, Transform};
use flows::{Chain, Ctx, Flow, Gradients, Memory, ParamStore, SaveOptions};
use rand::Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// `n` points of two interleaved half circles with noise of .1.
fn moons(n: usize, seed: u64) -> Result<Tensor> {
    let mut rng = rng_for(seed, "moons");
    let mut v = Vec::with_capacity(2 * n);
    for i in 0..n {
        let a = rng.random_range(0.0..std::f64::consts::PI);
        let (x, y) = if i % 2 == 0 { (a.cos(), a.sin()) } else { (1. - a.cos(), 0.5 - a.sin()) };
        v.extend([x, y].map(|v| v + 0.1 * rng.sample::<f64, _>(StandardNormal)));
    }
    Tensor::from_vec(v, (n, 2), &Device::Cpu)?.to_dtype(DType::F32)
}

/// What the flow is built from; saved as config.json beside its tensors.
#[derive(Serialize, Deserialize)]
struct Config {
    couplings: usize,
    hidden: Vec<usize>,
}

fn build(config: &Config, params: &ParamStore) -> Result<Flow> {
    let mut chain = Chain::new();
    for i in 0..config.couplings {
        let vb = params.vb().pp(i);
        let scale = Scale::Tanh { gain: vb.get(1, "gain", Init::Const(1.))? };
        let transform = Affine { scale, shift_first: false };
        let outputs = transform.params_per_element();
        let net = Mlp::new(1, &config.hidden, outputs, Start::Identity, &vb.pp("net"))?;
        let partition = Partition::Halves { swap: i % 2 == 1 };
        chain.push(format!("norm{i}"), ActNorm::new(2, 1., &vb.pp("norm"))?);
        chain.push(format!("coupling{i}"), Coupling::new(partition, net, transform));
    }
    Ok(Flow::new(chain, Gaussian, &[2]))
}

fn main() -> Result<()> {
    let config = Config { couplings: 8, hidden: vec![64, 64] };
    let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
    let flow = build(&config, &params)?;
    flow.init(&moons(1024, 1)?, None)?;

    let mut opt = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }, &params)?;
    for step in 0..2000 {
        let x = moons(256, 100 + step)?;
        let mut grads = Gradients::new(&params);
        let loss = flow.gradients(&x, Ctx::train(), Memory::Store, &mut grads, |p| p.mean_all()?.neg())?;
        opt.step(&grads.into_grads(), 2e-3 * (1. - step as f64 / 2000.), 1.)?;
        if step % 500 == 0 {
            println!("step {step:4}: {:.3} nats", loss.to_scalar::<f32>()?);
        }
    }
    let dir = tempfile::tempdir()?;
    params.save(dir.path(), &config, &SaveOptions::default())?;
    let (flow, params) = ParamStore::load(dir.path(), None, &Device::Cpu, build)?;

    let test = moons(10_000, 2)?;
    let nats = flow.log_prob(&test, None)?.mean_all()?.neg()?.to_scalar::<f32>()?;
    println!("held out, saved and loaded: {nats:.3} nats a point; {} parameters", params.count());
    let samples = flow.sample(3, 1., &mut rng_for(3, "samples"), None, (DType::F32, &Device::Cpu))?;
    println!("three samples:\n{samples}");
    Ok(())
}
