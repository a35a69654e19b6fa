//! Glow's network (section 4 and the released code): 3x3, 1x1, 3x3, the last one zero at first.

use super::act_norm::NetActNorm;
use crate::core::{Ctx, Gradients, Mode, Net, SavedState, net_backward, net_forward_saved};
use crate::ops::conv::{conv2d, edge_columns};
use crate::ops::conv_net::{self, ConvLayer, ConvNetParams};
use crate::ops::elementwise::{self, from_channel_major, to_channel_major};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor};
use std::sync::Mutex;

/// A 3x3 convolution with Glow's optional edge-bias channel: a channel that is 1 on the padding and 0 inside, so that the
/// network can tell the border from a zero. Its contribution is the same for every image, so the kernel of that
/// channel is a parameter of its own (`edge`, (O, 9)), and its output is added as one (O, H W) map.
struct Conv3x3 {
    weight: Param,
    edge: Option<Param>,
}

impl Conv3x3 {
    fn new(inputs: usize, outputs: usize, edge_bias: bool, std: f64, vb: &ParamBuilder) -> Result<Self> {
        let init = || if std > 0. { Init::Normal(std) } else { Init::Const(0.) };
        Ok(Self {
            weight: vb.get((outputs, inputs, 3, 3), "weight", init())?,
            edge: edge_bias.then(|| vb.get((outputs, 9), "edge", init())).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, columns: Option<&Tensor>, ctx: Ctx) -> Result<Tensor> {
        let y = conv2d(x, self.weight.get(ctx.grad))?;
        match (&self.edge, columns) {
            (Some(edge), Some(columns)) => {
                elementwise::add_per_image(&y, &edge.get(ctx.grad).matmul(columns)?)
            }
            _ => Ok(y),
        }
    }
}

/// Glow's zero convolution (section 3.3):
///
/// ```text
/// y = (w * x + bias) exp(3 logs)
/// ```
///
/// all zero at first, so the layer it feeds starts as the identity. Channel-major.
struct ZeroConv {
    conv: Conv3x3,
    bias: Param,
    logs: Param,
}

impl ZeroConv {
    fn new(inputs: usize, outputs: usize, edge_bias: bool, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            conv: Conv3x3::new(inputs, outputs, edge_bias, 0., vb)?,
            bias: vb.get(outputs, "bias", Init::Const(0.))?,
            logs: vb.get(outputs, "logs", Init::Const(0.))?,
        })
    }

    fn forward(&self, x: &Tensor, columns: Option<&Tensor>, ctx: Ctx) -> Result<Tensor> {
        let gain = (self.logs.get(ctx.grad) * 3.)?.exp()?;
        let shift = (self.bias.get(ctx.grad) * &gain)?;
        elementwise::affine(&self.conv.forward(x, columns, ctx)?, &gain, &shift, false)
    }
}

/// Glow's convolutional network: 3x3, 1x1 and 3x3, the last one zero at first.
///
/// ```text
/// h = relu(actnorm(w1 * x)),   h = relu(actnorm(w2 h)),   out = zero_conv(h)
/// ```
///
/// with w1 3x3, w2 1x1, both N(0, .05^2) and without bias. With `width` 0 it is the zero convolution alone, which is
/// Glow's learned split prior.
///
/// **Shapes.** (B, C_in, H, W) to (B, C_out, H, W).
pub struct ConvNet {
    hidden: Option<(Conv3x3, NetActNorm, Param, NetActNorm)>,
    last: ZeroConv,
    /// The (9, H W) indicator of the padding, of the last size met.
    columns: Mutex<Option<(usize, usize, Tensor)>>,
}

impl ConvNet {
    /// Parameters `conv1`, `norm1`, `conv2`, `norm2`, `zero` under `vb`.
    ///
    /// # Errors
    /// When `vb` has no such tensors.
    pub fn new(
        inputs: usize,
        width: usize,
        outputs: usize,
        edge_bias: bool,
        vb: &ParamBuilder,
    ) -> Result<Self> {
        let hidden = if width > 0 {
            let second = vb.pp("conv2").get((width, width, 1, 1), "weight", Init::Normal(0.05))?;
            Some((
                Conv3x3::new(inputs, width, edge_bias, 0.05, &vb.pp("conv1"))?,
                NetActNorm::new(width, 3., &vb.pp("norm1"))?,
                second,
                NetActNorm::new(width, 3., &vb.pp("norm2"))?,
            ))
        } else {
            None
        };
        let inputs = if width > 0 { width } else { inputs };
        let last = ZeroConv::new(inputs, outputs, edge_bias, &vb.pp("zero"))?;
        Ok(Self { hidden, last, columns: Mutex::new(None) })
    }
}

/// The parameters of one layer, as [`ConvLayer`] has their values.
struct LayerParams<'a> {
    weight: &'a Param,
    edge: Option<&'a Param>,
    bias: &'a Param,
    logs: &'a Param,
}

impl ConvNet {
    fn layers(&self) -> Vec<LayerParams<'_>> {
        let mut layers = Vec::new();
        if let Some((conv1, norm1, conv2, norm2)) = &self.hidden {
            let (weight, edge) = (&conv1.weight, conv1.edge.as_ref());
            layers.push(LayerParams { weight, edge, bias: &norm1.bias, logs: &norm1.logs });
            layers.push(LayerParams { weight: conv2, edge: None, bias: &norm2.bias, logs: &norm2.logs });
        }
        let ZeroConv { conv, bias, logs } = &self.last;
        layers.push(LayerParams { weight: &conv.weight, edge: conv.edge.as_ref(), bias, logs });
        layers
    }

    /// The indicator of the padding for x (B, C, H, W), where there is an edge-bias channel.
    fn columns(&self, x: &Tensor) -> Result<Option<Tensor>> {
        if self.last.conv.edge.is_none() {
            return Ok(None);
        }
        let (_, _, h, w) = x.dims4()?;
        let mut kept = self.columns.lock().unwrap();
        match &*kept {
            Some((kh, kw, t)) if (*kh, *kw) == (h, w) => Ok(Some(t.clone())),
            _ => {
                let t = edge_columns(h, w, self.last.bias.value())?;
                *kept = Some((h, w, t.clone()));
                Ok(Some(t))
            }
        }
    }

    fn params(&self, x: &Tensor) -> Result<ConvNetParams> {
        let values = |l: LayerParams| ConvLayer {
            weight: l.weight.value().clone(),
            edge: l.edge.map(|edge| edge.value().clone()),
            bias: l.bias.value().clone(),
            logs: l.logs.value().clone(),
        };
        let layers = self.layers().into_iter().map(values).collect();
        Ok(ConvNetParams { layers, columns: self.columns(x)? })
    }

    fn is_fused(&self, x: &Tensor, ctx: Ctx) -> bool {
        ctx.mode != Mode::Init && conv_net::is_fused(if self.hidden.is_some() { 3 } else { 1 }, x)
    }

    /// The same network layer by layer, on candle's graph where it is asked for: for initialisation, and for the zero
    /// convolution alone.
    fn layered(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let columns = self.columns(x)?;
        let mut h = to_channel_major(x)?;
        if let Some((conv1, norm1, conv2, norm2)) = &self.hidden {
            h = norm1.forward(&conv1.forward(&h, columns.as_ref(), ctx)?, ctx, true)?;
            h = norm2.forward(&conv2d(&h, conv2.get(ctx.grad))?, ctx, true)?;
        }
        from_channel_major(&self.last.forward(&h, columns.as_ref(), ctx)?)
    }
}

/// What a fused pass saves for the backward pass.
struct Pass {
    params: ConvNetParams,
    saved: conv_net::SavedState,
}

impl Net for ConvNet {
    /// Initialisation goes layer by layer: each actnorm is set from what the one before gives.
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        if ctx.grad || x.track_op() || !self.is_fused(x, ctx) {
            return self.layered(x, ctx);
        }
        Ok(conv_net::forward(&self.params(x)?, x, false)?.0)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        if !self.is_fused(x, ctx) {
            return net_forward_saved(self, x, ctx);
        }
        let params = self.params(x)?;
        let (y, saved) = conv_net::forward(&params, x, true)?;
        Ok((y, SavedState::new(Pass { params, saved: saved.expect("it was asked for") })))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        if !saved.is::<Pass>() {
            return net_backward(saved, gy, grads);
        }
        let Pass { params, saved } = saved.take().expect("just asked");
        let (gx, layers) = conv_net::backward(&params, saved, gy)?;
        for (p, g) in self.layers().into_iter().zip(layers) {
            grads.add(p.weight, g.weight)?;
            grads.add(p.bias, g.bias)?;
            grads.add(p.logs, g.logs)?;
            if let (Some(edge), Some(g)) = (p.edge, g.edge) {
                grads.add(edge, g)?;
            }
        }
        Ok(gx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use candle_core::{DType, Device};

    /// The fused op against the layers it fuses, over several blocks a thread and a ragged last one: output and the
    /// gradient of the input and of every parameter.
    #[test]
    fn fused_agrees_with_its_layers() -> Result<()> {
        for (edge, width, batch, side) in [(false, 96, 37, 8), (true, 33, 5, 16), (true, 7, 3, 1)] {
            let params = ParamStore::seeded(1, DType::F64, &Device::Cpu);
            let net = ConvNet::new(3, width, 4, edge, &params.vb())?;
            params.perturb(2, 0.1)?;
            crate::testing::check_net(&net, &[batch, 3, side, side], &params, 1e-12)?;
        }
        Ok(())
    }
}
