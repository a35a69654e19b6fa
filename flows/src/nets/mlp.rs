//! NICE's network (section 5.1): fully connected layers with ReLU.

use crate::bijection::Ctx;
use crate::bijections::Net;
use crate::ops::linear::linear;
use crate::params::{Init, Param, Vb};
use candle_core::{Result, Tensor};

/// ```text
/// h_0 = x,   h_i = max(h_{i-1} W_i^T + b_i, 0),   out = h_n W^T + b
/// ```
///
/// **Shapes.** (B, D_in) to (B, D_out); parameters `<i>.weight` (out, in), `<i>.bias` (out,).
pub struct Mlp {
    layers: Vec<(Param, Param)>,
}

/// How the layers start.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Weights U(-a, a), biases zero (the released code of NICE: a = .01).
    Uniform(f64),
    /// Weights U(+-1/sqrt(fan in)), the last layer zero: the coupling starts as the identity.
    Identity,
}

impl Mlp {
    /// Layers of the given widths between `inputs` and `outputs`.
    pub fn new(inputs: usize, hidden: &[usize], outputs: usize, start: Start, vb: &Vb) -> Result<Self> {
        let mut layers = Vec::new();
        let mut n = inputs;
        for (i, &m) in hidden.iter().chain([&outputs]).enumerate() {
            let vb = vb.pp(i);
            let init = match start {
                Start::Uniform(a) => Init::Uniform(a),
                Start::Identity if i == hidden.len() => Init::Const(0.),
                Start::Identity => Init::Uniform((n as f64).powf(-0.5)),
            };
            layers.push((vb.get((m, n), "weight", init)?, vb.get(m, "bias", Init::Const(0.))?));
            n = m;
        }
        Ok(Self { layers })
    }
}

impl Net for Mlp {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let mut h = x.clone();
        for (i, (w, b)) in self.layers.iter().enumerate() {
            h = linear(&h, w.get(ctx.grad), b.get(ctx.grad), i + 1 < self.layers.len())?;
        }
        Ok(h)
    }
}
