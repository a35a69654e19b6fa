//! The network on a GPU: images stay (B, C, H, W), convolutions are cuDNN's, and batch norm with its ReLU, weight norm and
//! the input are one kernel each way.

use super::{ResNet, WeightNormConv};
use crate::bijections::batch_norm::NetBatchNorm;
use crate::core::{Ctx, Gradients, Mode};
use crate::ops::kernels::{self, Norm};
use crate::ops::precision;
use crate::ops::reference::{conv_nchw, conv_nchw_backward};
use candle_core::{DType, Result, Tensor, bail};

/// What a convolution's way back needs: its input, its kernel and 1/|v|.
struct ConvPass {
    x: Tensor,
    w: Tensor,
    inverse: Option<Tensor>,
}

impl WeightNormConv {
    /// The result in `to`.
    fn on_gpu(&self, x: &Tensor, to: DType) -> Result<(Tensor, ConvPass)> {
        let v = self.direction.value();
        let (w, inverse) = match &self.magnitude {
            Some(g) => {
                let (w, inverse) = kernels::weight_norm(v, g.value())?;
                (w, Some(inverse))
            }
            None => (v.clone(), None),
        };
        let w = w.to_dtype(x.dtype())?;
        let y = conv_nchw(x, &w)?.to_dtype(to)?;
        let y = kernels::act_norm(&y, Some(self.bias.value()), None, 0., false)?;
        Ok((y, ConvPass { x: x.clone(), w, inverse }))
    }

    fn on_gpu_back(&self, pass: ConvPass, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        grads.add(&self.bias, kernels::bias_backward(gy)?)?;
        let (gx, gw) = conv_nchw_backward(&pass.x, &pass.w, &gy.to_dtype(pass.x.dtype())?)?;
        let v = self.direction.value();
        let gw = gw.to_dtype(v.dtype())?;
        match (&self.magnitude, &pass.inverse) {
            (Some(g), Some(inverse)) => {
                let (gv, gg) = kernels::weight_norm_backward(&gw, v, g.value(), inverse)?;
                grads.add(&self.direction, gv)?;
                grads.add(g, gg)?;
            }
            _ => grads.add(&self.direction, gw)?,
        }
        Ok(gx)
    }
}

/// What the way back of a normalisation with its ReLU, or of ReLU alone, needs: the input, or the output.
enum NormPass {
    Norm(Tensor, Norm),
    Relu(Tensor),
}

fn norm_relu(norm: Option<&NetBatchNorm>, h: Tensor, mode: Mode) -> Result<(Tensor, NormPass)> {
    match norm {
        Some(n) => {
            let norm = n.on_gpu(&h, mode)?;
            Ok((norm.forward(&h, true)?, NormPass::Norm(h, norm)))
        }
        None => {
            let y = kernels::act_norm(&h, None, None, 0., true)?;
            Ok((y.clone(), NormPass::Relu(y)))
        }
    }
}

fn norm_relu_back(
    norm: Option<&NetBatchNorm>,
    pass: NormPass,
    gy: &Tensor,
    grads: &mut Gradients,
) -> Result<Tensor> {
    match (norm, pass) {
        (Some(n), NormPass::Norm(x, norm)) => {
            let (gx, ggamma, gbeta) = norm.backward(&x, gy, true)?;
            let [gamma, beta] = n.gamma_beta();
            grads.add(gamma, ggamma)?;
            grads.add(beta, gbeta)?;
            Ok(gx)
        }
        (_, NormPass::Relu(y)) => kernels::relu_backward(&y, gy),
        (None, NormPass::Norm(..)) => unreachable!("kept by a layer that has a norm"),
    }
}

struct BlockPass {
    norm1: NormPass,
    conv1: ConvPass,
    norm2: NormPass,
    conv2: ConvPass,
    skip: Option<ConvPass>,
}

pub(super) struct Pass {
    channels: usize,
    first: ConvPass,
    skip: Option<ConvPass>,
    blocks: Vec<BlockPass>,
    norm: NormPass,
    last: ConvPass,
}

impl ResNet {
    /// The output, and what the way back needs.
    pub(super) fn on_gpu(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Pass)> {
        let (channels, inside) = (x.dim(1)?, precision::inside(x));
        if channels != self.cfg.inputs {
            bail!("a residual network for {} channels met {:?}", self.cfg.inputs, x.shape());
        }
        let u = kernels::signed_input(&x.detach(), self.cfg.signed_input, self.mask.as_ref())?;
        let (mut h, first) = self.first.on_gpu(&u.to_dtype(inside)?, inside)?;
        let with = |conv: &Option<WeightNormConv>, h: &Tensor| {
            conv.as_ref().map(|conv| conv.on_gpu(h, inside)).transpose()
        };
        let (mut sum, skip) = with(&self.skip, &h)?.unzip();
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let (r, norm1) = norm_relu(block.norm1.as_ref(), h.clone(), ctx.mode)?;
            let (r, conv1) = block.conv1.on_gpu(&r, inside)?;
            let (r, norm2) = norm_relu(block.norm2.as_ref(), r, ctx.mode)?;
            let (r, conv2) = block.conv2.on_gpu(&r, inside)?;
            h = (h + r)?;
            let (s, skip) = with(&block.skip, &h)?.unzip();
            sum = match (sum, s) {
                (Some(sum), Some(s)) => Some((sum + s)?),
                (sum, _) => sum,
            };
            blocks.push(BlockPass { norm1, conv1, norm2, conv2, skip });
        }
        let (h, norm) = norm_relu(self.norm.as_ref(), sum.unwrap_or(h), ctx.mode)?;
        let (y, last) = self.last.on_gpu(&h, x.dtype())?;
        Ok((y, Pass { channels, first, skip, blocks, norm, last }))
    }

    pub(super) fn on_gpu_back(&self, pass: Pass, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let Pass { channels, first, skip, blocks, norm, last } = pass;
        let g = self.last.on_gpu_back(last, gy, grads)?;
        // The gradient of the sum of skips, or without skips that of the residual stream.
        let g = norm_relu_back(self.norm.as_ref(), norm, &g, grads)?;
        let mut of_stream = if self.skip.is_some() { None } else { Some(g.clone()) };
        for (block, pass) in self.blocks.iter().zip(blocks).rev() {
            if let (Some(conv), Some(pass)) = (&block.skip, pass.skip) {
                of_stream = plus(of_stream, conv.on_gpu_back(pass, &g, grads)?)?;
            }
            let Some(gh) = of_stream else { unreachable!("a block has a skip where the network has one") };
            let r = block.conv2.on_gpu_back(pass.conv2, &gh, grads)?;
            let r = norm_relu_back(block.norm2.as_ref(), pass.norm2, &r, grads)?;
            let r = block.conv1.on_gpu_back(pass.conv1, &r, grads)?;
            let r = norm_relu_back(block.norm1.as_ref(), pass.norm1, &r, grads)?;
            of_stream = Some((gh + r)?);
        }
        if let (Some(conv), Some(pass)) = (&self.skip, skip) {
            of_stream = plus(of_stream, conv.on_gpu_back(pass, &g, grads)?)?;
        }
        let Some(gh) = of_stream else { unreachable!("without a skip the stream is the output") };
        let gu = self.first.on_gpu_back(first, &gh, grads)?.to_dtype(gy.dtype())?;
        kernels::signed_input_backward(&gu, channels, self.cfg.signed_input)
    }
}

fn plus(a: Option<Tensor>, b: Tensor) -> Result<Option<Tensor>> {
    Ok(Some(match a {
        Some(a) => (a + b)?,
        None => b,
    }))
}
