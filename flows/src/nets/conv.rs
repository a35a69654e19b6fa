//! Glow's network (section 4 and the released code): 3x3, 1x1, 3x3, the last one zero at first.

use crate::bijections::ActNorm;
use crate::core::{Ctx, Gradients, Mode, Net, Saved, net_backward, net_forward_saved};
use crate::ops::conv::{conv2d, edge_columns};
use crate::ops::conv_net::{self, Kept, Parts, Sizes};
use crate::ops::gemm::{Real, View, dispatch, tensor};
use crate::ops::{channel, from_channel_major, to_channel_major};
use crate::params::{Init, Param, Vb};
use candle_core::{Result, Tensor, bail};
use std::sync::Mutex;

#[cfg(kernels)]
mod gpu;

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
    fn edge_map(&self, size: (usize, usize), x: &Tensor, ctx: Ctx) -> Result<Option<Tensor>> {
        let Some(edge) = &self.edge else { return Ok(None) };
        edge.get(ctx.grad).matmul(&self.columns(size, x)?).map(Some)
    }

    /// The (9, H W) indicator of the padding.
    fn columns(&self, (h, w): (usize, usize), x: &Tensor) -> Result<Tensor> {
        let mut kept = self.columns.lock().unwrap();
        match &*kept {
            Some((kh, kw, t)) if (*kh, *kw) == (h, w) => Ok(t.clone()),
            _ => {
                let t = edge_columns(h, w, x)?;
                *kept = Some((h, w, t.clone()));
                Ok(t)
            }
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

/// What a fused pass keeps.
struct Pass<T> {
    x: Tensor,
    kept: Kept<T>,
}

impl ConvNet {
    /// The two convolutions of three by three where there are hidden layers.
    fn edges(&self) -> Option<[&Conv3x3; 2]> {
        self.hidden.as_ref().map(|(conv1, ..)| [conv1, &self.last.conv])
    }

    /// Runs `f` on the parameters of the fused network and its sizes for `x`; `None` without hidden layers.
    fn with_parts<T: Real, R>(
        &self,
        x: &Tensor,
        f: impl FnOnce(Sizes, &Parts<&[T]>) -> Result<R>,
    ) -> Result<Option<R>> {
        let Some((conv1, norm1, conv2, norm2)) = &self.hidden else { return Ok(None) };
        let (b, c, h, w) = x.dims4()?;
        let (last, conv3) = (&self.last, &self.last.conv);
        let params = [&conv1.weight, norm1.bias(), norm1.logs(), conv2, norm2.bias(), norm2.logs()];
        let params = params.into_iter().chain([&conv3.weight, &last.bias, &last.logs]);
        let mut tensors: Vec<Tensor> = params.map(|p| p.value().clone()).collect();
        for conv in [conv1, conv3] {
            tensors.extend(conv.edge_map((h, w), x, Ctx::eval())?);
        }
        let views = tensors.iter().map(|t| View::of("conv_net", t)).collect::<Result<Vec<_>>>()?;
        let mut slices = Vec::new();
        for v in &views {
            slices.push(v.get::<T>("conv_net")?);
        }
        let inputs = conv1.weight.value().dim(1)?;
        if c != inputs {
            bail!("a network for {inputs} channels met {:?}", x.shape());
        }
        let (width, outputs) = (conv2.value().dim(0)?, last.bias.value().dim(0)?);
        let sizes = Sizes { inputs, width, outputs, images: [b, h, w] };
        let at = |i: usize| slices.get(i).copied().unwrap_or_default();
        let parts = Parts {
            w1: at(0),
            b1: at(1),
            l1: at(2),
            w2: at(3),
            b2: at(4),
            l2: at(5),
            w3: at(6),
            b3: at(7),
            l3: at(8),
            e1: at(9),
            e3: at(10),
        };
        f(sizes, &parts).map(Some)
    }

    fn fused<T: Real>(&self, x: &Tensor, keep: bool) -> Result<Option<(Tensor, Option<Pass<T>>)>> {
        let x = x.contiguous()?.detach();
        let run = self.with_parts::<T, _>(&x, |sizes, parts| {
            let view = View::of("conv_net", &x)?;
            let (y, kept) = conv_net::forward(sizes, view.get::<T>("conv_net")?, parts, keep);
            let [b, h, w] = sizes.images;
            Ok((tensor(y, (b, sizes.outputs, h, w))?, kept))
        })?;
        Ok(run.map(|(y, kept)| (y, kept.map(|kept| Pass { x, kept }))))
    }

    fn fused_back<T: Real>(&self, pass: &Pass<T>, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let x = &pass.x;
        let gy = gy.contiguous()?;
        let back = self.with_parts::<T, _>(x, |sizes, parts| {
            let (vx, vg) = (View::of("conv_net", x)?, View::of("conv_net", &gy)?);
            let (xs, gs) = (vx.get::<T>("conv_net")?, vg.get::<T>("conv_net")?);
            Ok(conv_net::backward(sizes, xs, parts, &pass.kept, gs))
        })?;
        let (gx, g) = back.expect("it ran forward");
        let (conv1, norm1, conv2, norm2) = self.hidden.as_ref().expect("it ran forward");
        let (last, (_, _, h, w)) = (&self.last, x.dims4()?);
        for (conv, map) in self.edges().into_iter().flatten().zip([g.e1, g.e3]) {
            if let Some(edge) = &conv.edge {
                let map = tensor(map, (edge.value().dim(0)?, h * w))?;
                grads.add(edge, map.matmul(&conv.columns((h, w), x)?.t()?)?)?;
            }
        }
        for (p, g) in [
            (&conv1.weight, g.w1),
            (norm1.bias(), g.b1),
            (norm1.logs(), g.l1),
            (conv2, g.w2),
            (norm2.bias(), g.b2),
            (norm2.logs(), g.l2),
            (&last.conv.weight, g.w3),
            (&last.bias, g.b3),
            (&last.logs, g.l3),
        ] {
            grads.add(p, tensor(g, p.value().shape())?)?;
        }
        tensor(gx, x.shape())
    }
}

impl ConvNet {
    /// The same network layer by layer, on candle's graph where it is asked for: for initialisation, and for the zero
    /// convolution alone.
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
    /// Initialisation goes layer by layer: each actnorm is set from what the one before gives.
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        if ctx.grad || x.track_op() || ctx.mode == Mode::Init {
            return self.layered(x, ctx);
        }
        #[cfg(kernels)]
        if crate::ops::kernels::take(&[x]) {
            return Ok(self.on_gpu(x)?.0);
        }
        if !crate::ops::on_cpu(x) {
            return self.layered(x, ctx);
        }
        let fused = dispatch!("conv_net", x.dtype(), T => self.fused::<T>(x, false)?.map(|(y, _)| y));
        fused.map_or_else(|| self.layered(x, ctx), Ok)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Saved)> {
        #[cfg(kernels)]
        if ctx.mode != Mode::Init && crate::ops::kernels::take(&[&x.detach()]) {
            let (y, pass) = self.on_gpu(x)?;
            return Ok((y, Saved::new(pass)));
        }
        if self.hidden.is_none() || ctx.mode == Mode::Init || !crate::ops::on_cpu(x) {
            return net_forward_saved(self, x, ctx);
        }
        dispatch!("conv_net", x.dtype(), T => {
            let (y, pass) = self.fused::<T>(x, true)?.expect("it has hidden layers");
            Ok((y, Saved::new(pass.expect("kept"))))
        })
    }

    fn backward(&self, saved: Saved, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        #[cfg(kernels)]
        if saved.is::<gpu::Pass>() {
            return self.on_gpu_back(saved.take().expect("just asked"), gy, grads);
        }
        dispatch!("conv_net", gy.dtype(), T => {
            if saved.is::<Pass<T>>() {
                return self.fused_back::<T>(&saved.take().expect("just asked"), gy, grads);
            }
        });
        net_backward(saved, gy, grads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Params;
    use candle_core::{DType, Device};

    /// The fused op against the layers it fuses, over several blocks a thread and a ragged last one: output and the
    /// gradient of the input and of every parameter.
    #[test]
    fn fused_agrees_with_its_layers() -> Result<()> {
        for (edge, width, batch, side) in [(false, 96, 37, 8), (true, 33, 5, 16), (true, 7, 3, 1)] {
            let params = Params::seeded(1, DType::F64, &Device::Cpu);
            let net = ConvNet::new(3, width, 4, edge, &params.vb())?;
            params.shake(2, 0.1)?;
            crate::testing::check_net(&net, &[batch, 3, side, side], &params, 1e-12)?;
        }
        Ok(())
    }
}
