//! A flow fitted to an energy instead of to data: the two modes of Rezende and Mohamed (2015, arXiv 1505.05770, table 1), whose
//! partition function a sum over a grid gives, too.
//!
//! ```text
//! p(x) = exp(-E(x)) / Z,     E(x) = ((|x| - 2) / .4)^2 / 2 - log(exp(-((x_1 - 2) / .6)^2 / 2) + exp(-((x_1 + 2) / .6)^2 / 2))
//! ```
//!
//! `cargo run --release --example energy`

use candle_core::{DType, Device, Result, Tensor};
use flows::bijections::{ActNorm, Coupling, Permute};
use flows::nets::{Mlp, Start};
use flows::optim::{Optimizer, Rule};
use flows::params::{Init, rng_for};
use flows::priors::Gaussian;
use flows::transforms::{Affine, Partition, Scale};
use flows::{Chain, Flow, Gradients, ParamStore};

const TO: (DType, &Device) = (DType::F64, &Device::Cpu);

/// -E(x) of samples (N, 2), (N,).
fn log_target(x: &Tensor) -> Result<Tensor> {
    let ring = (((x.sqr()?.sum(1)?.sqrt()? - 2.)? / 0.4)?.sqr()? * -0.5)?;
    let first = x.narrow(1, 0, 1)?.squeeze(1)?;
    let mode = |at: f64| (((&first - at)? / 0.6)?.sqr()? * -0.5)?.exp();
    ring + (mode(2.)? + mode(-2.)?)?.log()?
}

/// log Z by midpoints of [-5, 5]^2.
fn by_grid() -> Result<f64> {
    let (n, side) = (1000, 10.);
    let at = |i: usize| side * ((i as f64 + 0.5) / n as f64 - 0.5);
    let points: Vec<f64> = (0..n * n).flat_map(|k| [at(k / n), at(k % n)]).collect();
    let sum = log_target(&Tensor::from_vec(points, (n * n, 2), &Device::Cpu)?)?.exp()?.sum_all()?;
    Ok((sum.to_scalar::<f64>()? * (side / n as f64).powi(2)).ln())
}

/// Twelve affine couplings that change the two dimensions in turn.
fn flow(params: &ParamStore) -> Result<Flow> {
    let mut chain = Chain::new();
    for i in 0..12 {
        let vb = params.vb().pp(i);
        let scale = Scale::Tanh { gain: vb.get(1, "gain", Init::Const(1.))? };
        let transform = Box::new(Affine { scale, shift_first: false });
        let net = |inputs, outputs| Mlp::new(inputs, &[32, 32], outputs, Start::Identity, &vb.pp("net"));
        chain.push(format!("norm{i}"), ActNorm::new(2, 1., &vb.pp("norm"))?);
        chain.push(
            format!("coupling{i}"),
            Coupling::with_net(Partition::Halves { swap: false }, transform, 2, net)?,
        );
        chain.push(format!("reverse{i}"), Permute::reverse(2, &vb.pp("reverse"))?);
    }
    Ok(Flow::new(chain, Gaussian, &[2]))
}

fn main() -> Result<()> {
    let params = ParamStore::seeded(0, TO.0, TO.1);
    let flow = flow(&params)?;
    let mut optimizer = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.99, eps: 1e-8 }, &params)?;
    let (steps, mut rng) = (1500, rng_for(1, "samples"));
    for step in 0..steps {
        let loss = flow.reverse_kl(256, log_target, &mut rng, None, TO)?;
        let mut grads = Gradients::new(&params);
        grads.add_all(&loss.backward()?)?;
        optimizer.step(&grads.into_grads(), 5e-3 * (1. - f64::from(step) / f64::from(steps)), 1.)?;
        if step % 300 == 0 {
            println!("step {step:4}: KL - log Z {:.3}", loss.to_scalar::<f64>()?);
        }
    }
    let (found, known) = (flow.log_z(100_000, log_target, &mut rng_for(2, "samples"), TO)?, by_grid()?);
    println!(
        "log Z {:.4} ± {:.4}, by a grid {known:.4}; {:.0} of {} samples are effective",
        found.log_z, found.std_err, found.effective_samples, found.samples
    );
    assert!((found.log_z - known).abs() < 0.01);
    Ok(())
}
