//! NICE's network (section 5.1): fully connected layers with ReLU.

use crate::core::{Ctx, Gradients, Net, SavedState};
use crate::ops::linear::{linear, linear_backward};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor};

/// A fully connected network with ReLU.
///
/// ```text
/// h_0 = x,   h_i = max(h_{i-1} W_i^T + b_i, 0),   out = h_n W^T + b
/// ```
///
/// **Shapes.** (B, D_in) to (B, D_out); parameters `<i>.weight` (out, in), `<i>.bias` (out,).
pub struct Mlp {
    layers: Vec<(Param, Param)>,
}

/// The initial values of the layers.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Weights U(-a, a), biases zero (the released code of NICE: a = .01).
    Uniform(f64),
    /// Weights U(+-1/sqrt(fan in)), the last layer zero: the coupling starts as the identity.
    Identity,
}

impl Mlp {
    /// Layers of the given widths between `inputs` and `outputs`.
    ///
    /// # Errors
    /// When `vb` has no such tensors.
    pub fn new(
        inputs: usize,
        hidden: &[usize],
        outputs: usize,
        start: Start,
        vb: &ParamBuilder,
    ) -> Result<Self> {
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

    /// Keeps every layer's input, and the output.
    fn forward_saved(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, SavedState)> {
        let mut kept = vec![x.detach()];
        for (i, (w, b)) in self.layers.iter().enumerate() {
            kept.push(linear(&kept[i], w.value(), b.value(), i + 1 < self.layers.len())?);
        }
        Ok((kept[self.layers.len()].clone(), SavedState::new(kept)))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let mut kept: Vec<Tensor> = saved.take().expect("kept by forward_saved");
        let mut y = kept.pop().expect("the output");
        let mut g = gy.clone();
        for (i, (w, b)) in self.layers.iter().enumerate().rev() {
            let x = kept.pop().expect("one for each layer");
            let (gx, gw, gb) = linear_backward(&x, w.value(), &y, &g, i + 1 < self.layers.len())?;
            grads.add(w, gw)?;
            grads.add(b, gb)?;
            (g, y) = (gx, x);
        }
        Ok(g)
    }
}
