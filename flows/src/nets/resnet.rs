//! RealNVP's network (section 4.1): a residual network with weight norm, batch norm and skip connections.

use crate::bijections::batch_norm::NetBatchNorm;
use crate::core::{Ctx, Gradients, Net, Saved, net_backward, net_forward_saved};
use crate::ops::channel::Norm;
use crate::ops::conv::{Dims, conv2d};
use crate::ops::gemm::{Real, View, dispatch, tensor};
use crate::ops::res_net::{self, Kept, Layer, Layers, NetGrad};
use crate::ops::{channel, from_channel_major, swap_axes, to_channel_major};
use crate::params::{Init, Param, Vb};
use candle_core::{Result, Tensor, bail};

#[cfg(kernels)]
mod gpu;

/// Sizes and switches of a [`ResNet`].
#[derive(Clone, Debug)]
pub struct ResNetConfig {
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the residual stream.
    pub features: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Residual blocks.
    pub blocks: usize,
    /// Whether [x, -x] is the input, as in the released code, or x alone.
    pub signed_input: bool,
    /// w = g v / |v| for each output channel.
    pub weight_norm: bool,
    /// Batch norm before each ReLU.
    pub batch_norm: bool,
    /// A 1x1 convolution from every block to the output.
    pub skip: bool,
    /// Batch norm of x, and a ReLU before the first convolution.
    pub norm_input: bool,
    /// The second half of the output becomes g tanh(h), with one learned g for each channel.
    pub channel_gains: bool,
    /// Added to variances.
    pub eps: f64,
    /// The batch's share in the running averages.
    pub momentum: f64,
}

/// w = g v / |v| over all but the output channel (Salimans and Kingma 2016), or w itself.
struct WeightNormConv {
    direction: Param,
    magnitude: Option<Param>,
    bias: Param,
    /// The scale of a layer that only adds its bias.
    ones: Tensor,
}

impl WeightNormConv {
    fn new(inputs: usize, outputs: usize, k: usize, start: Start, norm: bool, vb: &Vb) -> Result<Self> {
        let std = (2. / (inputs * k * k) as f64).sqrt();
        let (std, gain) = match start {
            Start::He => (std, 1.),
            // With weight norm the magnitude carries the zero: a zero direction has no norm to divide by.
            Start::Zero => (if norm { std } else { 0. }, 0.),
        };
        let bias = vb.get(outputs, "bias", Init::Const(0.))?;
        Ok(Self {
            direction: vb.get((outputs, inputs, k, k), "weight", Init::Normal(std))?,
            magnitude: match norm {
                true => Some(vb.get(outputs, "magnitude", Init::Const(gain))?),
                false => None,
            },
            ones: bias.value().ones_like()?,
            bias,
        })
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let v = self.direction.get(ctx.grad);
        let y = match &self.magnitude {
            Some(g) => {
                let norm = (v.flatten_from(1)?.sqr()?.sum(1)? + 1e-12)?.sqrt()?;
                conv2d(x, &channel::gain(v, &(g.get(ctx.grad) / norm)?)?)?
            }
            None => conv2d(x, v)?,
        };
        channel::affine(&y, &self.ones, self.bias.get(ctx.grad), false)
    }
}

#[derive(Clone, Copy)]
enum Start {
    /// N(0, 2 / fan in).
    He,
    /// The output is zero at first.
    Zero,
}

struct Block {
    norm1: Option<NetBatchNorm>,
    conv1: WeightNormConv,
    norm2: Option<NetBatchNorm>,
    conv2: WeightNormConv,
    skip: Option<WeightNormConv>,
}

/// ```text
/// u = [x, -x, mask];   h = conv3x3(u);   h <- h + conv3x3(relu(bn(conv3x3(relu(bn(h))))));   out = conv1x1(relu(bn(s)))
/// ```
///
/// with s the sum of 1x1 convolutions of h after each block (`skip`), or h itself. With `norm_input` u is
/// relu([bn(x), -bn(x), mask]), with `channel_gains` the second half of the output is g tanh(out): both as in the released
/// code, and on candle's graph, without the fused passes.
///
/// **Shapes.** (B, C_in, H, W) to (B, C_out, H, W). The mask, where there is one, enters as one more channel, (1, 1, H, W).
pub struct ResNet {
    cfg: ResNetConfig,
    mask: Option<Tensor>,
    input: Option<NetBatchNorm>,
    gains: Option<Param>,
    first: WeightNormConv,
    skip: Option<WeightNormConv>,
    blocks: Vec<Block>,
    norm: Option<NetBatchNorm>,
    last: WeightNormConv,
}

impl ResNet {
    /// Parameters under `vb`; `mask` is (1, 1, H, W) and adds an input channel.
    pub fn new(cfg: ResNetConfig, mask: Option<Tensor>, vb: &Vb) -> Result<Self> {
        let wn = cfg.weight_norm;
        let f = cfg.features;
        let inputs = cfg.inputs * if cfg.signed_input { 2 } else { 1 } + usize::from(mask.is_some());
        let norm = |vb: Vb| match cfg.batch_norm {
            true => NetBatchNorm::new(f, cfg.eps, cfg.momentum, &vb).map(Some),
            false => Ok(None),
        };
        let skip = |vb: Vb| match cfg.skip {
            true => WeightNormConv::new(f, f, 1, Start::He, wn, &vb).map(Some),
            false => Ok(None),
        };
        let mut blocks = Vec::new();
        for i in 0..cfg.blocks {
            let vb = vb.pp(format!("block{i}"));
            blocks.push(Block {
                norm1: norm(vb.pp("norm1"))?,
                conv1: WeightNormConv::new(f, f, 3, Start::He, wn, &vb.pp("conv1"))?,
                norm2: norm(vb.pp("norm2"))?,
                conv2: WeightNormConv::new(f, f, 3, Start::He, wn, &vb.pp("conv2"))?,
                skip: skip(vb.pp("skip"))?,
            });
        }
        let input = match cfg.norm_input {
            true => Some(NetBatchNorm::new(cfg.inputs, cfg.eps, cfg.momentum, &vb.pp("input"))?),
            false => None,
        };
        let gains = match cfg.channel_gains {
            true => Some(vb.get(cfg.outputs / 2, "gains", Init::Const(0.))?),
            false => None,
        };
        Ok(Self {
            input,
            gains,
            first: WeightNormConv::new(inputs, f, 3, Start::He, wn, &vb.pp("first"))?,
            skip: skip(vb.pp("skip"))?,
            blocks,
            norm: norm(vb.pp("norm"))?,
            last: WeightNormConv::new(f, cfg.outputs, 1, Start::Zero, wn, &vb.pp("last"))?,
            mask,
            cfg,
        })
    }
}

fn norm_relu(norm: &Option<NetBatchNorm>, h: &Tensor, ctx: Ctx) -> Result<Tensor> {
    match norm {
        Some(n) => n.channel_major(h, ctx, true),
        None => channel::relu(h),
    }
}

/// What a fused pass keeps: the effective layers and each direction's 1/|v|, in the order of `ResNet::convs`.
struct Pass<T> {
    layers: Layers<T>,
    inverse: Vec<Vec<f64>>,
    kept: Kept<T>,
    shape: [usize; 4],
}

impl ResNet {
    /// Whether it is the network of the paper: what the released code adds has no passes of its own.
    fn is_plain(&self) -> bool {
        self.input.is_none() && self.gains.is_none()
    }

    /// Whether passes on this tensor's device are fused.
    fn fused(&self, x: &Tensor) -> bool {
        crate::ops::on_cpu(x) && self.is_plain()
    }

    /// Every convolution in the order first, skip, (conv1, conv2, skip) of each block, last.
    fn convs(&self) -> Vec<&WeightNormConv> {
        let mut all = vec![&self.first];
        all.extend(&self.skip);
        for b in &self.blocks {
            all.extend([&b.conv1, &b.conv2]);
            all.extend(&b.skip);
        }
        all.push(&self.last);
        all
    }

    /// Every normalisation in the order of the pass.
    fn norms(&self) -> Vec<Option<&NetBatchNorm>> {
        let blocks = self.blocks.iter().flat_map(|b| [b.norm1.as_ref(), b.norm2.as_ref()]);
        blocks.chain([self.norm.as_ref()]).collect()
    }

    /// The effective layers for images of (B, _, H, W), and 1/|v| of each.
    fn layers<T: Real>(&self, [b, _, h, w]: [usize; 4]) -> Result<(Layers<T>, Vec<Vec<f64>>)> {
        let mut inverse = Vec::new();
        let mut layers = Vec::new();
        for conv in self.convs() {
            let (o, c, k, _) = conv.direction.value().dims4()?;
            let v = View::of("res_net", conv.direction.value())?;
            let v = v.get::<T>("res_net")?;
            let (kernel, inv) = match &conv.magnitude {
                Some(g) => {
                    let g = View::of("res_net", g.value())?;
                    res_net::weight_norm(v, g.get::<T>("res_net")?)
                }
                None => (v.to_vec(), Vec::new()),
            };
            inverse.push(inv);
            let bias = View::of("res_net", conv.bias.value())?;
            let bias = bias.get::<T>("res_net")?.to_vec();
            layers.push(Layer::new(kernel, bias, Dims { c, o, b, h, w, k }));
        }
        let mut next = layers.into_iter();
        let mut take = || next.next().expect("as many as there are convolutions");
        let first = take();
        let skip = self.skip.is_some().then(&mut take);
        let blocks = self
            .blocks
            .iter()
            .map(|block| {
                let (conv1, conv2) = (take(), take());
                res_net::Block { conv1, conv2, skip: block.skip.is_some().then(&mut take) }
            })
            .collect();
        let last = take();
        Ok((Layers { first, skip, blocks, last }, inverse))
    }

    /// [x, -x, mask] channel-major.
    fn input<T: Real>(&self, x: &[T], [b, c, h, w]: [usize; 4]) -> Result<Vec<T>> {
        let mut u = swap_axes(x, b, c);
        if self.cfg.signed_input {
            u.extend_from_within(..);
            u[b * c * h * w..].iter_mut().for_each(|v| *v = -*v);
        }
        if let Some(mask) = &self.mask {
            let mask = View::of("res_net", mask)?;
            let mask = mask.get::<T>("res_net")?;
            for _ in 0..b {
                u.extend_from_slice(mask);
            }
        }
        Ok(u)
    }

    fn run<T: Real>(&self, x: &Tensor, ctx: Ctx, keep: bool) -> Result<(Tensor, Option<Pass<T>>)> {
        let x = x.contiguous()?;
        let (b, c, h, w) = x.dims4()?;
        let inputs = self.cfg.inputs;
        if c != inputs {
            bail!("a residual network for {inputs} channels met {:?}", x.shape());
        }
        let shape = [b, c, h, w];
        let view = View::of("res_net", &x)?;
        let u = self.input(view.get::<T>("res_net")?, shape)?;
        let (layers, inverse) = self.layers::<T>(shape)?;
        let norms = self.norms();
        let n = b * h * w;
        let (y, kept) = layers.forward(u, keep, |i, x| match norms[i] {
            Some(norm) => norm.norm(x, n, ctx.mode),
            None => Ok(Norm::identity(self.cfg.features)),
        })?;
        let y = tensor(swap_axes(&y, self.cfg.outputs, b), (b, self.cfg.outputs, h, w))?;
        Ok((y, kept.map(|kept| Pass { layers, inverse, kept, shape })))
    }

    fn run_back<T: Real>(&self, pass: Pass<T>, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let Pass { layers, inverse, kept, shape: [b, c, h, w] } = pass;
        let gy = gy.contiguous()?;
        let view = View::of("res_net", &gy)?;
        let gy = swap_axes(view.get::<T>("res_net")?, b, self.cfg.outputs);
        let NetGrad { u, layers, norms } = layers.backward(kept, &gy);
        for ((conv, mut g), inverse) in self.convs().into_iter().zip(layers).zip(&inverse) {
            let v = conv.direction.value();
            if let Some(magnitude) = &conv.magnitude {
                let (vv, mv) = (View::of("res_net", v)?, View::of("res_net", magnitude.value())?);
                let (v, m) = (vv.get::<T>("res_net")?, mv.get::<T>("res_net")?);
                let gm = res_net::weight_norm_back(&mut g.w, v, m, inverse);
                grads.add(magnitude, tensor(gm, magnitude.value().shape())?)?;
            }
            grads.add(&conv.direction, tensor(g.w, v.shape())?)?;
            grads.add(&conv.bias, tensor(g.bias, conv.bias.value().shape())?)?;
        }
        for (norm, g) in self.norms().into_iter().zip(norms) {
            if let Some(norm) = norm {
                let [gamma, beta] = norm.gamma_beta();
                grads.add(gamma, tensor(g.gamma, gamma.value().shape())?)?;
                grads.add(beta, tensor(g.beta, beta.value().shape())?)?;
            }
        }
        let n = b * c * h * w;
        let mut gx = u[..n].to_vec();
        if self.cfg.signed_input {
            gx.iter_mut().zip(&u[n..2 * n]).for_each(|(a, &b)| *a -= b);
        }
        tensor(swap_axes(&gx, c, b), (b, c, h, w))
    }
}

impl Net for ResNet {
    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Saved)> {
        #[cfg(kernels)]
        if self.is_plain() && crate::ops::kernels::take(&[&x.detach()]) {
            let (y, pass) = self.on_gpu(x, ctx)?;
            return Ok((y, Saved::new(pass)));
        }
        if !self.fused(x) {
            return net_forward_saved(self, x, ctx);
        }
        dispatch!("res_net", x.dtype(), T => {
            let (y, pass) = self.run::<T>(x, ctx, true)?;
            Ok((y, Saved::new(pass.expect("kept"))))
        })
    }

    fn backward(&self, saved: Saved, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        #[cfg(kernels)]
        if saved.is::<gpu::Pass>() {
            return self.on_gpu_back(saved.take().expect("just asked"), gy, grads);
        }
        if !self.fused(gy) {
            return net_backward(saved, gy, grads);
        }
        dispatch!("res_net", gy.dtype(), T => {
            self.run_back(saved.take::<Pass<T>>().expect("kept by forward_saved"), gy, grads)
        })
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        #[cfg(kernels)]
        if !ctx.grad && self.is_plain() && crate::ops::kernels::take(&[x]) {
            return Ok(self.on_gpu(x, ctx)?.0);
        }
        if !ctx.grad && !x.track_op() && self.fused(x) {
            return dispatch!("res_net", x.dtype(), T => Ok(self.run::<T>(x, ctx, false)?.0));
        }
        let mut x = to_channel_major(x)?;
        if let Some(norm) = &self.input {
            x = norm.channel_major(&x, ctx, false)?;
        }
        let mut parts = vec![x.clone()];
        if self.cfg.signed_input {
            parts.push(x.neg()?);
        }
        if let Some(mask) = &self.mask {
            let (_, b, h, w) = x.dims4()?;
            parts.push(mask.reshape((1, 1, h, w))?.expand((1, b, h, w))?.contiguous()?);
        }
        let mut u = Tensor::cat(&parts, 0)?;
        if self.input.is_some() {
            u = channel::relu(&u)?;
        }
        let mut h = self.first.forward(&u, ctx)?;
        let mut out = match &self.skip {
            Some(skip) => Some(skip.forward(&h, ctx)?),
            None => None,
        };
        for block in &self.blocks {
            let r = block.conv1.forward(&norm_relu(&block.norm1, &h, ctx)?, ctx)?;
            let r = block.conv2.forward(&norm_relu(&block.norm2, &r, ctx)?, ctx)?;
            h = (h + r)?;
            if let (Some(sum), Some(skip)) = (out.take(), &block.skip) {
                out = Some((sum + skip.forward(&h, ctx)?)?);
            }
        }
        let h = norm_relu(&self.norm, &out.unwrap_or(h), ctx)?;
        let mut out = self.last.forward(&h, ctx)?;
        if let Some(gains) = &self.gains {
            let half = self.cfg.outputs / 2;
            let s = out.narrow(0, half, half)?.contiguous()?.tanh()?;
            let s = s.broadcast_mul(&gains.get(ctx.grad).reshape((half, 1, 1, 1))?)?;
            out = Tensor::cat(&[&out.narrow(0, 0, half)?.contiguous()?, &s], 0)?;
        }
        from_channel_major(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Params;
    use crate::transforms::checkerboard;
    use candle_core::{DType, Device};

    /// Damaged weights must not look like good ones: a NaN passes every ReLU.
    #[test]
    fn a_nan_reaches_the_output() -> Result<()> {
        let params = Params::seeded(1, DType::F32, &Device::Cpu);
        let cfg = ResNetConfig {
            inputs: 3,
            features: 16,
            outputs: 2,
            blocks: 1,
            signed_input: false,
            weight_norm: false,
            batch_norm: false,
            skip: false,
            norm_input: false,
            channel_gains: false,
            eps: 1e-4,
            momentum: 0.1,
        };
        let net = ResNet::new(cfg, None, &params.vb())?;
        params.shake(2, 0.1)?;
        let x = crate::testing::normal(&[2, 3, 4, 4], 3, &Device::Cpu)?.to_dtype(DType::F32)?;
        for (name, p) in params.trained() {
            let good = p.value().copy()?;
            p.set(&(p.value() * f64::NAN)?)?;
            let y = net.forward(&x, Ctx::eval())?.flatten_all()?.to_vec1::<f32>()?;
            assert!(y.iter().any(|v| v.is_nan()), "a NaN in {name} is hidden");
            p.set(&good)?;
        }
        Ok(())
    }

    /// The fused network against its layers, with enough features for the fast convolution, on odd sides, with and without
    /// each of its parts.
    #[test]
    fn fused_agrees_with_its_layers() -> Result<()> {
        for (norm, skip, features, [h, w]) in [
            (true, true, 18, [6, 8]),
            (true, false, 17, [5, 7]),
            (false, true, 16, [4, 4]),
            (true, true, 5, [6, 6]),
        ] {
            let params = Params::seeded(1, DType::F64, &Device::Cpu);
            let cfg = ResNetConfig {
                inputs: 3,
                features,
                outputs: 4,
                blocks: 2,
                signed_input: norm,
                weight_norm: norm,
                batch_norm: norm,
                skip,
                norm_input: false,
                channel_gains: false,
                eps: 1e-4,
                momentum: 0.1,
            };
            let mask = if norm { Some(checkerboard(h, w, false, &params.vb())?) } else { None };
            let net = ResNet::new(cfg, mask, &params.vb())?;
            params.shake(2, 0.1)?;
            crate::testing::check_net(&net, &[3, 3, h, w], &params, 1e-10)?;
        }
        Ok(())
    }
}
