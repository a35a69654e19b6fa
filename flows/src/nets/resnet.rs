//! RealNVP's network (section 4.1): a residual network with weight norm, batch norm and skip connections.

use super::batch_norm::NetBatchNorm;
use crate::core::{Ctx, Gradients, Net, SavedState, net_backward, net_forward_saved};
use crate::ops::conv::conv2d;
use crate::ops::elementwise::{self, from_channel_major, relu, to_channel_major};
use crate::ops::res_net::{self, Conv, Output, ResNetParams};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor};

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
    /// A k x k convolution; `norm` asks for weight norm.
    fn new([inputs, outputs, k]: [usize; 3], start: Start, norm: bool, vb: &ParamBuilder) -> Result<Self> {
        let std = (2. / (inputs * k * k) as f64).sqrt();
        let (std, gain) = match start {
            Start::He => (std, 1.),
            // With weight norm the magnitude is zero: a zero direction has no norm to divide by.
            Start::Zero => (if norm { std } else { 0. }, 0.),
        };
        let bias = vb.get(outputs, "bias", Init::Const(0.))?;
        Ok(Self {
            direction: vb.get((outputs, inputs, k, k), "weight", Init::Normal(std))?,
            magnitude: norm.then(|| vb.get(outputs, "magnitude", Init::Const(gain))).transpose()?,
            ones: bias.value().ones_like()?,
            bias,
        })
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let v = self.direction.get(ctx.grad);
        let y = match &self.magnitude {
            Some(g) => {
                let norm = (v.flatten_from(1)?.sqr()?.sum(1)? + 1e-12)?.sqrt()?;
                conv2d(x, &elementwise::gain(v, &(g.get(ctx.grad) / norm)?)?)?
            }
            None => conv2d(x, v)?,
        };
        elementwise::affine(&y, &self.ones, self.bias.get(ctx.grad), false)
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

/// RealNVP's residual network.
///
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
    ///
    /// # Errors
    /// When `vb` has no such tensors.
    pub fn new(cfg: ResNetConfig, mask: Option<Tensor>, vb: &ParamBuilder) -> Result<Self> {
        let wn = cfg.weight_norm;
        let f = cfg.features;
        let inputs = cfg.inputs * if cfg.signed_input { 2 } else { 1 } + usize::from(mask.is_some());
        let batch_norm =
            |channels: usize, vb: ParamBuilder| NetBatchNorm::new(channels, cfg.eps, cfg.momentum, &vb);
        let norm = |vb: ParamBuilder| cfg.batch_norm.then(|| batch_norm(f, vb)).transpose();
        let conv = |k: usize, vb: ParamBuilder| WeightNormConv::new([f, f, k], Start::He, wn, &vb);
        let skip = |vb: ParamBuilder| cfg.skip.then(|| conv(1, vb)).transpose();
        let mut blocks = Vec::new();
        for i in 0..cfg.blocks {
            let vb = vb.pp(format!("block{i}"));
            blocks.push(Block {
                norm1: norm(vb.pp("norm1"))?,
                conv1: conv(3, vb.pp("conv1"))?,
                norm2: norm(vb.pp("norm2"))?,
                conv2: conv(3, vb.pp("conv2"))?,
                skip: skip(vb.pp("skip"))?,
            });
        }
        let gains = || vb.get(cfg.outputs / 2, "gains", Init::Const(1.));
        Ok(Self {
            input: cfg.norm_input.then(|| batch_norm(cfg.inputs, vb.pp("input"))).transpose()?,
            gains: cfg.channel_gains.then(gains).transpose()?,
            first: WeightNormConv::new([inputs, f, 3], Start::He, wn, &vb.pp("first"))?,
            skip: skip(vb.pp("skip"))?,
            blocks,
            norm: norm(vb.pp("norm"))?,
            last: WeightNormConv::new([f, cfg.outputs, 1], Start::Zero, wn, &vb.pp("last"))?,
            mask,
            cfg,
        })
    }
}

fn norm_relu(norm: &Option<NetBatchNorm>, h: &Tensor, ctx: Ctx) -> Result<Tensor> {
    match norm {
        Some(n) => n.forward(h, ctx, true),
        None => relu(h),
    }
}

/// What a fused pass saves for the backward pass.
struct Pass {
    params: ResNetParams,
    saved: res_net::SavedState,
}

impl ResNet {
    /// Whether a pass is fused: what the released code adds to the paper's network is on candle's graph alone.
    fn is_fused(&self, x: &Tensor) -> bool {
        self.input.is_none() && self.gains.is_none() && res_net::is_fused(x)
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

    fn params(&self, ctx: Ctx) -> ResNetParams {
        let conv = |c: &WeightNormConv| Conv {
            weight: c.direction.value().clone(),
            magnitude: c.magnitude.as_ref().map(|m| m.value().clone()),
            bias: c.bias.value().clone(),
        };
        ResNetParams {
            convs: self.convs().into_iter().map(conv).collect(),
            norms: self.norms().into_iter().map(|n| n.map(NetBatchNorm::values)).collect(),
            skip: self.cfg.skip,
            signed_input: self.cfg.signed_input,
            mask: self.mask.clone(),
            eps: self.cfg.eps,
            batch_statistics: ctx.mode.uses_batch_statistics(),
        }
    }

    /// A fused pass; with `keep` what the backward pass needs.
    fn run(&self, x: &Tensor, ctx: Ctx, keep: bool) -> Result<(Tensor, Option<Pass>)> {
        let params = self.params(ctx);
        let Output { y, statistics, saved } = res_net::forward(&params, x, keep)?;
        for (norm, batch) in self.norms().into_iter().zip(statistics) {
            if let (Some(norm), Some(batch)) = (norm, batch) {
                norm.running.update(&batch, ctx.mode)?;
            }
        }
        Ok((y, saved.map(|saved| Pass { params, saved })))
    }

    /// The same network layer by layer, on candle's graph where it is asked for.
    fn layered(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let mut x = to_channel_major(x)?;
        if let Some(norm) = &self.input {
            x = norm.forward(&x, ctx, false)?;
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
            u = relu(&u)?;
        }
        let mut h = self.first.forward(&u, ctx)?;
        let mut out = self.skip.as_ref().map(|skip| skip.forward(&h, ctx)).transpose()?;
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

impl Net for ResNet {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        if ctx.grad || x.track_op() || !self.is_fused(x) {
            return self.layered(x, ctx);
        }
        Ok(self.run(x, ctx, false)?.0)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        if !self.is_fused(x) {
            return net_forward_saved(self, x, ctx);
        }
        let (y, pass) = self.run(x, ctx, true)?;
        Ok((y, SavedState::new(pass.expect("it was asked for"))))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        if !saved.is::<Pass>() {
            return net_backward(saved, gy, grads);
        }
        let Pass { params, saved } = saved.take().expect("just asked");
        let g = res_net::backward(&params, saved, gy)?;
        for (conv, g) in self.convs().into_iter().zip(g.convs) {
            if let (Some(magnitude), Some(g)) = (&conv.magnitude, g.magnitude) {
                grads.add(magnitude, g)?;
            }
            grads.add(&conv.direction, g.weight)?;
            grads.add(&conv.bias, g.bias)?;
        }
        for (norm, g) in self.norms().into_iter().zip(g.norms) {
            if let (Some(norm), Some([gamma, beta])) = (norm, g) {
                grads.add(&norm.gamma, gamma)?;
                grads.add(&norm.beta, beta)?;
            }
        }
        Ok(g.x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use crate::transforms::checkerboard;
    use candle_core::{DType, Device};

    /// Damaged weights must not look like good ones: a NaN passes every ReLU.
    #[test]
    fn a_nan_reaches_the_output() -> Result<()> {
        let params = ParamStore::seeded(1, DType::F32, &Device::Cpu);
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
        params.perturb(2, 0.1)?;
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
            let params = ParamStore::seeded(1, DType::F64, &Device::Cpu);
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
            params.perturb(2, 0.1)?;
            crate::testing::check_net(&net, &[3, 3, h, w], &params, 1e-10)?;
        }
        Ok(())
    }
}
