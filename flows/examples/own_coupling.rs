//! A transform of your own inside the library's coupling, with a network of candle-nn's layers: its inverse, log-det and
//! gradients are checked, then it is trained without stored activations.
//!
//! To be saved as a model or used in a recipe, such a transform has to become a variant in a model's config.
//!
//! `cargo run --release --example own_coupling`

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, linear};
use flows::bijections::Coupling;
use flows::optim::{Optimizer, Rule};
use flows::priors::Gaussian;
use flows::testing::{Deviation, check, normal};
use flows::transforms::{Partition, Transform};
use flows::{Chain, Ctx, Flow, Gradients, Memory, Net, ParamStore};

/// y = sinh(asinh(x) e^s + t), a map of the real line with heavier or lighter tails:
///
/// ```text
/// log dy/dx = s + log cosh(asinh(x) e^s + t) - log cosh(asinh(x))
/// ```
struct SinhAsinh;

impl Transform for SinhAsinh {
    fn params_per_element(&self) -> usize {
        2
    }

    fn forward(&self, x: &Tensor, h: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let params = h.chunk(2, 1)?;
        let (t, s) = (&params[0], &params[1]);
        let u = ((asinh(x)? * s.exp()?)? + t)?;
        let (y, cosh) = sinh_cosh(&u)?;
        let before = ((x.sqr()? + 1.)?.log()? / 2.)?;
        Ok((y, ((s + cosh.log()?)? - before)?))
    }

    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        let params = h.chunk(2, 1)?;
        let (t, s) = (&params[0], &params[1]);
        Ok(sinh_cosh(&((asinh(y)? - t)? * s.neg()?.exp()?)?)?.0)
    }
}

/// asinh(x) = log(x + sqrt(x^2 + 1)).
fn asinh(x: &Tensor) -> Result<Tensor> {
    (x + (x.sqr()? + 1.)?.sqrt()?)?.log()
}

fn sinh_cosh(u: &Tensor) -> Result<(Tensor, Tensor)> {
    let (p, m) = (u.exp()?, u.neg()?.exp()?);
    Ok((((&p - &m)? / 2.)?, ((p + m)? / 2.)?))
}

/// A network: any function from the kept part to the transform's parameters.
struct TanhNet(Linear, Linear);

impl Net for TanhNet {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<Tensor> {
        self.1.forward(&self.0.forward(x)?.tanh()?)
    }
}

fn main() -> Result<()> {
    let params = ParamStore::seeded(0, DType::F64, &Device::Cpu);
    let mut chain = Chain::new();
    for (name, swap) in [("first", false), ("second", true)] {
        let vb = params.vb().pp(name).candle();
        let outputs = 2 * SinhAsinh.params_per_element();
        let net = TanhNet(linear(2, 16, vb.pp("in"))?, linear(16, outputs, vb.pp("out"))?);
        chain.push(name, Coupling::new(Partition::Halves { swap }, net, SinhAsinh));
    }
    let met = check(&chain, &normal(&[3, 4], 2, &Device::Cpu)?, None, &params, Deviation::LAYER)?;
    println!(
        "checked: inverse off by {:.0e}, log-det by {:.0e}, gradient by {:.0e}",
        met.inverse, met.log_det, met.gradient
    );

    // Gaussian numbers, cubed: their tails are heavier than those of the prior.
    let flow = Flow::new(chain, Gaussian, &[4]);
    let mut optimizer = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }, &params)?;
    let nats = |x: &Tensor| flow.log_prob(x, None)?.mean_all()?.neg()?.to_scalar::<f64>();
    let test = normal(&[4000, 4], 0, &Device::Cpu)?.powf(3.)?;
    let before = nats(&test)?;
    for step in 1..=200 {
        let x = normal(&[256, 4], step, &Device::Cpu)?.powf(3.)?;
        let mut grads = Gradients::new(&params);
        flow.gradients(&x, Ctx::train(), Memory::Recompute, &mut grads, |log_prob| {
            log_prob.mean_all()?.neg()
        })?;
        optimizer.step(&grads.into_grads(), 1e-2, 1.)?;
    }
    let after = nats(&test)?;
    println!("held out: {before:.2} nats before, {after:.2} nats after 200 steps");
    assert!(after < before);
    Ok(())
}
