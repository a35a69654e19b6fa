//! The network on a GPU: images stay (B, C, H, W), convolutions are cuDNN's, and all that lies between two of them is one
//! kernel forward and one back.

use super::{Conv3x3, ConvNet};
use crate::core::{Ctx, Gradients};
use crate::ops::kernels;
use crate::ops::precision;
use crate::ops::reference::{conv_nchw, conv_nchw_backward};
use crate::params::Param;
use candle_core::{Result, Tensor, bail};

/// What a log-scale is multiplied by, in every layer of the network.
const FACTOR: f64 = 3.;

/// h = act((w * x + edge + bias) exp(3 logs)).
struct Layer<'a> {
    weight: &'a Param,
    edge: Option<&'a Conv3x3>,
    bias: &'a Param,
    logs: &'a Param,
    relu: bool,
}

/// The input and every layer's output.
pub(super) struct Pass(Vec<Tensor>);

impl ConvNet {
    fn gpu_layers(&self) -> Vec<Layer<'_>> {
        let mut layers = Vec::new();
        if let Some((conv1, norm1, conv2, norm2)) = &self.hidden {
            let edge = conv1.edge.is_some().then_some(conv1);
            let (bias, logs) = (norm1.bias(), norm1.logs());
            layers.push(Layer { weight: &conv1.weight, edge, bias, logs, relu: true });
            let (bias, logs) = (norm2.bias(), norm2.logs());
            layers.push(Layer { weight: conv2, edge: None, bias, logs, relu: true });
        }
        let (conv, bias, logs) = (&self.last.conv, &self.last.bias, &self.last.logs);
        let edge = conv.edge.is_some().then_some(conv);
        layers.push(Layer { weight: &conv.weight, edge, bias, logs, relu: false });
        layers
    }

    /// The output, and what the way back needs.
    pub(super) fn on_gpu(&self, x: &Tensor) -> Result<(Tensor, Pass)> {
        let (dtype, layers) = (x.dtype(), self.gpu_layers());
        let inputs = layers[0].weight.value().dim(1)?;
        if x.dim(1)? != inputs {
            bail!("a network for {inputs} channels met {:?}", x.shape());
        }
        let mut outputs = vec![x.detach().contiguous()?.to_dtype(precision::inside(x))?];
        for (i, layer) in layers.iter().enumerate() {
            let h = &outputs[i];
            let mut y = conv_nchw(h, &layer.weight.value().to_dtype(h.dtype())?)?;
            if i + 1 == layers.len() {
                y = y.to_dtype(dtype)?;
            }
            let (_, o, height, width) = y.dims4()?;
            if let Some(edge) = layer.edge
                && let Some(map) = edge.edge_map((height, width), x, Ctx::eval())?
            {
                y = y.broadcast_add(&map.reshape((1, o, height, width))?.to_dtype(y.dtype())?)?;
            }
            let (bias, logs) = (Some(layer.bias.value()), Some(layer.logs.value()));
            outputs.push(kernels::act_norm(&y, bias, logs, FACTOR, layer.relu)?);
        }
        Ok((outputs[layers.len()].clone(), Pass(outputs)))
    }

    pub(super) fn on_gpu_back(&self, pass: Pass, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let (mut outputs, mut g) = (pass.0, gy.contiguous()?);
        for layer in self.gpu_layers().iter().rev() {
            // Dropped when the layer is done with: its memory serves the next one.
            let z = outputs.pop().expect("an output for each layer");
            let h = outputs.last().expect("and the input");
            let (gc, gb, gl) = kernels::act_norm_backward(&z, &g, layer.logs.value(), FACTOR, layer.relu)?;
            grads.add(layer.bias, gb)?;
            grads.add(layer.logs, gl)?;
            let weight = layer.weight.value();
            if let Some(conv) = layer.edge
                && let Some(edge) = &conv.edge
            {
                let (_, o, height, width) = gc.dims4()?;
                let map = gc.to_dtype(weight.dtype())?.sum(0)?.reshape((o, height * width))?;
                grads.add(edge, map.matmul(&conv.columns((height, width), weight)?.t()?)?)?;
            }
            let (gx, gw) = conv_nchw_backward(h, &weight.to_dtype(h.dtype())?, &gc.to_dtype(h.dtype())?)?;
            grads.add(layer.weight, gw.to_dtype(weight.dtype())?)?;
            g = gx;
        }
        g.to_dtype(gy.dtype())
    }
}
