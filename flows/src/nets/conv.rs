//! Glow's network (section 4 and the released code): 3x3, 1x1, 3x3, the last one zero at first.

use crate::bijection::{Ctx, Mode};
use crate::bijections::{ActNorm, Net};
use crate::ops::conv::{conv2d, edge_columns};
use crate::ops::{channel, conv_net, from_channel_major, to_channel_major};
use crate::params::{Init, Param, Vb};
use candle_core::{Result, Tensor};
use std::sync::Mutex;

/// A 3x3 convolution with Glow's optional edge-bias channel: a channel that is 1 on the padding and 0 inside, so that the
/// network can tell the border from a zero. Its contribution is the same for every image, so the kernel's share is kept
/// apart (`edge`, (O, 9)) and added as one (O, H W) map.
struct Conv3x3 {
    weight: Param,
    edge: Option<Param>,
    /// The (9, H W) indicator of the last size met.
    columns: Mutex<Option<(usize, usize, Tensor)>>,
}

impl Conv3x3 {
    fn new(inputs: usize, outputs: usize, edge_bias: bool, std: f64, vb: &Vb) -> Result<Self> {
        let init = || if std > 0. { Init::Normal(std) } else { Init::Const(0.) };
        Ok(Self {
            weight: vb.get((outputs, inputs, 3, 3), "weight", init())?,
            edge: if edge_bias { Some(vb.get((outputs, 9), "edge", init())?) } else { None },
            columns: Mutex::new(None),
        })
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let y = conv2d(x, self.weight.get(ctx.grad))?;
        let (_, _, h, w) = x.dims4()?;
        match self.edge_map((h, w), x, ctx)? {
            Some(map) => channel::add_per_image(&y, &map),
            None => Ok(y),
        }
    }

    /// What the edge channel adds to each image, (O, H W).
    fn edge_map(&self, (h, w): (usize, usize), x: &Tensor, ctx: Ctx) -> Result<Option<Tensor>> {
        let Some(edge) = &self.edge else { return Ok(None) };
        let columns = {
            let mut kept = self.columns.lock().unwrap();
            match &*kept {
                Some((kh, kw, t)) if (*kh, *kw) == (h, w) => t.clone(),
                _ => {
                    let t = edge_columns(h, w, x)?;
                    *kept = Some((h, w, t.clone()));
                    t
                }
            }
        };
        edge.get(ctx.grad).matmul(&columns).map(Some)
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
    fn new(inputs: usize, outputs: usize, edge_bias: bool, vb: &Vb) -> Result<Self> {
        Ok(Self {
            conv: Conv3x3::new(inputs, outputs, edge_bias, 0., vb)?,
            bias: vb.get(outputs, "bias", Init::Const(0.))?,
            logs: vb.get(outputs, "logs", Init::Const(0.))?,
        })
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let gain = (self.logs.get(ctx.grad) * 3.)?.exp()?;
        let shift = (self.bias.get(ctx.grad) * &gain)?;
        channel::affine(&self.conv.forward(x, ctx)?, &gain, &shift, false)
    }
}

/// ```text
/// h = relu(actnorm(w1 * x)),   h = relu(actnorm(w2 h)),   out = zero_conv(h)
/// ```
///
/// with w1 3x3, w2 1x1, both N(0, .05^2) and without bias. With `width` 0 it is the zero convolution alone, which is
/// Glow's learned split prior.
///
/// **Shapes.** (B, C_in, H, W) to (B, C_out, H, W).
pub struct ConvNet {
    hidden: Option<(Conv3x3, ActNorm, Param, ActNorm)>,
    last: ZeroConv,
}

impl ConvNet {
    /// Parameters `conv1`, `norm1`, `conv2`, `norm2`, `zero` under `vb`.
    pub fn new(inputs: usize, width: usize, outputs: usize, edge_bias: bool, vb: &Vb) -> Result<Self> {
        let hidden = if width > 0 {
            let second = vb.pp("conv2").get((width, width, 1, 1), "weight", Init::Normal(0.05))?;
            Some((
                Conv3x3::new(inputs, width, edge_bias, 0.05, &vb.pp("conv1"))?,
                ActNorm::new(width, 3., &vb.pp("norm1"))?,
                second,
                ActNorm::new(width, 3., &vb.pp("norm2"))?,
            ))
        } else {
            None
        };
        let inputs = if width > 0 { width } else { inputs };
        Ok(Self { hidden, last: ZeroConv::new(inputs, outputs, edge_bias, &vb.pp("zero"))? })
    }
}

impl ConvNet {
    /// The whole network as one op, with all parameters as one flat tensor.
    fn fused(&self, x: &Tensor, ctx: Ctx) -> Result<Option<Tensor>> {
        let Some((conv1, norm1, conv2, norm2)) = &self.hidden else { return Ok(None) };
        // Initialisation goes layer by layer: each actnorm is set from what the one before gives.
        if ctx.mode == Mode::Init {
            return Ok(None);
        }
        let (_, c, h, w) = x.dims4()?;
        let (conv3, last) = (&self.last.conv, &self.last);
        let mut parts = Vec::new();
        for p in [&conv1.weight, norm1.bias(), norm1.logs(), conv2, norm2.bias(), norm2.logs()]
            .into_iter()
            .chain([&conv3.weight, &last.bias, &last.logs])
        {
            parts.push(p.get(ctx.grad).flatten_all()?);
        }
        for conv in [conv1, conv3] {
            if let Some(map) = conv.edge_map((h, w), x, ctx)? {
                parts.push(map.flatten_all()?);
            }
        }
        let sizes = conv_net::Sizes {
            inputs: c,
            width: conv2.value().dim(0)?,
            outputs: last.bias.value().dim(0)?,
            edge: if conv1.edge.is_some() { h * w } else { 0 },
        };
        let keep = ctx.grad || x.track_op();
        conv_net::conv_net(x, &Tensor::cat(&parts, 0)?, sizes, keep).map(Some)
    }
}

impl ConvNet {
    /// The same network layer by layer: for initialisation, where each actnorm is set from what comes before, and for the
    /// zero convolution alone.
    fn layered(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let mut h = to_channel_major(x)?;
        if let Some((conv1, norm1, conv2, norm2)) = &self.hidden {
            h = norm1.channel_major(&conv1.forward(&h, ctx)?, ctx, true)?;
            h = norm2.channel_major(&conv2d(&h, conv2.get(ctx.grad))?, ctx, true)?;
        }
        from_channel_major(&self.last.forward(&h, ctx)?)
    }
}

impl Net for ConvNet {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        match self.fused(x, ctx)? {
            Some(y) => Ok(y),
            None => self.layered(x, ctx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Params;
    use crate::testing::normal;
    use candle_core::{DType, Device, Var};

    /// The fused op against the layers it fuses, over several blocks a thread and a ragged last one: output and the
    /// gradient of the input and of every parameter.
    #[test]
    fn fused_agrees_with_its_layers() -> Result<()> {
        for (edge, width, batch, side) in [(false, 96, 37, 8), (true, 33, 5, 16), (true, 7, 3, 1)] {
            let params = Params::seeded(1, DType::F64, &Device::Cpu);
            let net = ConvNet::new(3, width, 4, edge, &params.vb())?;
            params.shake(2, 0.1)?;
            let x = Var::from_tensor(&normal(&[batch, 3, side, side], 3, &Device::Cpu)?)?;
            let ctx = Ctx::eval().with_grad(true);
            let (a, b) = (net.fused(&x, ctx)?.expect("it has hidden layers"), net.layered(&x, ctx)?);
            let g = normal(a.dims(), 4, &Device::Cpu)?;
            let (ga, gb) = ((&a * &g)?.sum_all()?.backward()?, (&b * &g)?.sum_all()?.backward()?);
            let mut pairs = vec![("y".to_string(), a, b)];
            let leaf =
                |n: &str, v: &Var| (n.to_string(), ga.get(v).unwrap().clone(), gb.get(v).unwrap().clone());
            pairs.push(leaf("x", &x));
            pairs.extend(params.trained().iter().map(|(n, p)| leaf(n, p.var())));
            for (name, a, b) in pairs {
                let size = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                let off = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                assert!(off <= 1e-12 * (1. + size), "{name} at width {width}: {off:e} of {size:e}");
            }
        }
        Ok(())
    }
}
