//! RealNVP's network (section 4.1): a residual network with weight norm, batch norm and skip connections.

use crate::bijection::Ctx;
use crate::bijections::Net;
use crate::bijections::batch_norm::NetBatchNorm;
use crate::ops::conv::conv2d;
use crate::ops::{channel, from_channel_major, to_channel_major};
use crate::params::{Init, Param, Vb};
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
/// with s the sum of 1x1 convolutions of h after each block (`skip`), or h itself.
///
/// **Shapes.** (B, C_in, H, W) to (B, C_out, H, W). The mask, where there is one, enters as one more channel, (1, 1, H, W).
pub struct ResNet {
    cfg: ResNetConfig,
    mask: Option<Tensor>,
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
        Ok(Self {
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

impl Net for ResNet {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let x = to_channel_major(x)?;
        let mut parts = vec![x.clone()];
        if self.cfg.signed_input {
            parts.push(x.neg()?);
        }
        if let Some(mask) = &self.mask {
            let (_, b, h, w) = x.dims4()?;
            parts.push(mask.reshape((1, 1, h, w))?.expand((1, b, h, w))?.contiguous()?);
        }
        let mut h = self.first.forward(&Tensor::cat(&parts, 0)?, ctx)?;
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
        from_channel_major(&self.last.forward(&h, ctx)?)
    }
}
