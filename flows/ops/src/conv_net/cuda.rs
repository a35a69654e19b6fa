//! The convolutional network through kernels, in the precision set for networks.

use super::spec::{ConvLayer, ConvNetParams, FACTOR, SavedState};
use crate::act_norm::cuda::{act_norm, act_norm_backward};
use crate::conv::reference::{conv_nchw, conv_nchw_backward};
use crate::precision;
use candle_core::{Result, Tensor};

/// [`super::forward`].
pub(crate) fn forward(
    params: &ConvNetParams,
    x: &Tensor,
    keep: bool,
) -> Result<(Tensor, Option<SavedState>)> {
    let last = params.layers.len() - 1;
    let mut outputs = vec![x.to_dtype(precision::inside(x))?];
    for (i, layer) in params.layers.iter().enumerate() {
        let h = &outputs[i];
        let mut y = conv_nchw(h, &layer.weight.to_dtype(h.dtype())?)?;
        if i == last {
            y = y.to_dtype(x.dtype())?;
        }
        let (_, o, height, width) = y.dims4()?;
        if let Some(map) = params.edge_map(layer)? {
            y = y.broadcast_add(&map.reshape((1, o, height, width))?.to_dtype(y.dtype())?)?;
        }
        outputs.push(act_norm(&y, Some(&layer.bias), Some(&layer.logs), FACTOR, i < last)?);
    }
    let y = outputs[last + 1].clone();
    Ok((y, keep.then_some(SavedState(outputs))))
}

/// [`super::backward`].
pub(crate) fn backward(
    params: &ConvNetParams,
    saved: SavedState,
    gy: &Tensor,
) -> Result<(Tensor, Vec<ConvLayer>)> {
    let (mut outputs, mut g) = (saved.0, gy.clone());
    let mut gradients = Vec::new();
    for (i, layer) in params.layers.iter().enumerate().rev() {
        // Dropped when the layer is done with: its memory serves the next one.
        let z = outputs.pop().expect("an output for each layer");
        let h = outputs.last().expect("and the input");
        let relu = i + 1 < params.layers.len();
        let (gc, bias, logs) = act_norm_backward(&z, &g, &layer.logs, FACTOR, relu)?;
        let weight = &layer.weight;
        let edge = match layer.edge {
            Some(_) => {
                let (_, o, height, width) = gc.dims4()?;
                params.edge_gradient(&gc.to_dtype(weight.dtype())?.sum(0)?.reshape((o, height * width))?)?
            }
            None => None,
        };
        let (gx, gw) = conv_nchw_backward(h, &weight.to_dtype(h.dtype())?, &gc.to_dtype(h.dtype())?)?;
        gradients.push(ConvLayer { weight: gw.to_dtype(weight.dtype())?, edge, bias, logs });
        g = gx;
    }
    gradients.reverse();
    Ok((g.to_dtype(gy.dtype())?, gradients))
}
