//! Neal's funnel in ten dimensions (Neal 2003, section 8), fitted by the reverse KL divergence:
//!
//! ```text
//! v ~ N(0, 3^2),     x_i ~ N(0, e^v),  i = 1 .. 9
//! ```
//!
//! Its neck is e^-4 times as wide as its mouth, which stops samplers with one step size; a coupling that keeps v maps it to a
//! Gaussian. The density has its constant, so log Z is 0.
//!
//! `cargo run --release --example funnel`

use candle_core::{DType, Device, Result, Tensor};
use flows::bijections::{ActNorm, Coupling};
use flows::nets::{Mlp, Start};
use flows::optim::{Optimizer, Rule};
use flows::params::{Init, rng_for};
use flows::priors::Gaussian;
use flows::transforms::{Affine, Partition, Scale};
use flows::{Chain, Flow, Gradients, ParamStore};

const TO: (DType, &Device) = (DType::F64, &Device::Cpu);
const DIMS: usize = 10;

/// log p of samples (N, 10), (N,).
fn log_target(x: &Tensor) -> Result<Tensor> {
    let (v, rest) = (x.narrow(1, 0, 1)?.squeeze(1)?, x.narrow(1, 1, DIMS - 1)?);
    let n = (DIMS - 1) as f64;
    let of_v = ((&v / 3.)?.sqr()? * -0.5)?;
    let of_rest = ((rest.sqr()?.sum(1)? * v.neg()?.exp()?)? * -0.5)? - (v * (n / 2.))?;
    let constant = 0.5 * DIMS as f64 * (2. * std::f64::consts::PI).ln() + 3f64.ln();
    (of_v + of_rest?)? - constant
}

fn flow(params: &ParamStore) -> Result<Flow> {
    let mut chain = Chain::new();
    for i in 0..6 {
        let vb = params.vb().pp(i);
        let scale = Scale::Tanh { gain: vb.get(1, "gain", Init::Const(3.))? };
        let transform = Box::new(Affine { scale, shift_first: false });
        let net = |inputs, outputs| Mlp::new(inputs, &[64], outputs, Start::Identity, &vb.pp("net"));
        chain.push(format!("norm{i}"), ActNorm::new(DIMS, 1., &vb.pp("norm"))?);
        let partition = Partition::Halves { swap: i % 2 == 1 };
        chain.push(format!("coupling{i}"), Coupling::with_net(partition, transform, DIMS, net)?);
    }
    Ok(Flow::new(chain, Gaussian, &[DIMS]))
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
        optimizer.step(&grads.into_grads(), 3e-3 * (1. - f64::from(step) / f64::from(steps)), 1.)?;
        if step % 300 == 0 {
            println!("step {step:4}: KL {:.3}", loss.to_scalar::<f64>()?);
        }
    }
    let found = flow.log_z(100_000, log_target, &mut rng_for(2, "samples"), TO)?;
    println!(
        "log Z {:.4} ± {:.4}, known 0; {:.0} of {} samples are effective",
        found.log_z, found.std_err, found.effective_samples, found.samples
    );
    let v = flow.sample(20_000, 1., &mut rng_for(3, "samples"), None, TO)?.narrow(1, 0, 1)?;
    let spread = v.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt();
    println!("v spreads by {spread:.2}, by 3 in the funnel");
    assert!(found.log_z.abs() < 0.05 && spread > 2.5);
    Ok(())
}
