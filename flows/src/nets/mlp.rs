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
    layers: Vec<Layer>,
}

/// The parameters of a layer, and which of its weights count.
struct Layer {
    weight: Param,
    bias: Param,
    /// 1 where a weight counts, 0 where it does not; (out, in).
    mask: Option<Tensor>,
}

impl Layer {
    fn weight(&self, grad: bool) -> Result<Tensor> {
        let w = self.weight.get(grad);
        self.mask.as_ref().map_or_else(|| Ok(w.clone()), |mask| w * mask)
    }
}

/// The initial values of the layers.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Weights U(-a, a), biases zero (the released code of NICE: a = .01).
    Uniform(f64),
    /// Weights and biases U(+-1/sqrt(fan in)), so that the units of a layer bend at different places; the last layer zero: the
    /// coupling starts as the identity.
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
        let widths = [&[inputs], hidden, &[outputs]].concat();
        Self::masked(&widths, |_| Ok(None), start, vb)
    }

    /// Layers between the `widths`; layer i has the mask `mask(i)`.
    pub(super) fn masked(
        widths: &[usize],
        mask: impl Fn(usize) -> Result<Option<Tensor>>,
        start: Start,
        vb: &ParamBuilder,
    ) -> Result<Self> {
        let last = widths.len() - 2;
        let layer = |(i, ends): (usize, &[usize])| {
            let (n, m, vb) = (ends[0], ends[1], vb.pp(i));
            let (weights, biases) = match start {
                Start::Uniform(a) => (a, 0.),
                Start::Identity if i == last => (0., 0.),
                Start::Identity => ((n as f64).powf(-0.5), (n as f64).powf(-0.5)),
            };
            let init = |a| if a > 0. { Init::Uniform(a) } else { Init::Const(0.) };
            let (weight, bias) = (vb.get((m, n), "weight", init(weights))?, vb.get(m, "bias", init(biases))?);
            Ok(Layer { weight, bias, mask: mask(i)? })
        };
        let layers = widths.windows(2).enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    fn is_hidden(&self, i: usize) -> bool {
        i + 1 < self.layers.len()
    }
}

impl Net for Mlp {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let mut h = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            h = linear(&h, &layer.weight(ctx.grad)?, layer.bias.get(ctx.grad), self.is_hidden(i))?;
        }
        Ok(h)
    }

    /// Keeps every layer's input, and the output.
    fn forward_saved(&self, x: &Tensor, _: Ctx) -> Result<(Tensor, SavedState)> {
        let mut kept = vec![x.detach()];
        for (i, layer) in self.layers.iter().enumerate() {
            kept.push(linear(&kept[i], &layer.weight(false)?, layer.bias.value(), self.is_hidden(i))?);
        }
        Ok((kept[self.layers.len()].clone(), SavedState::new(kept)))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let mut kept: Vec<Tensor> = saved.take().expect("kept by forward_saved");
        let mut y = kept.pop().expect("the output");
        let mut g = gy.clone();
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let x = kept.pop().expect("one for each layer");
            let (gx, gw, gb) = linear_backward(&x, &layer.weight(false)?, &y, &g, self.is_hidden(i))?;
            let gw = layer.mask.as_ref().map_or_else(|| Ok(gw.clone()), |mask| &gw * mask)?;
            grads.add(&layer.weight, gw)?;
            grads.add(&layer.bias, gb)?;
            (g, y) = (gx, x);
        }
        Ok(g)
    }
}
