//! The convolutional network through kernels, in the precision set for networks.

use super::spec::{ConvLayer, ConvNetParams, FACTOR, SavedState};
use crate::act_norm::cuda::{Pass, act_norm_backward, map_backward};
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
        let map = params.edge_map(layer)?;
        let (map, bias, logs) = (map.as_ref(), Some(&layer.bias), Some(&layer.logs));
        outputs.push(Pass { map, bias, logs, factor: FACTOR, relu: i < last, add: None }.run(&y)?);
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
            Some(_) => params.edge_gradient(&map_backward(&gc)?)?,
            None => None,
        };
        let (gx, gw) = conv_nchw_backward(h, &weight.to_dtype(h.dtype())?, &gc.to_dtype(h.dtype())?)?;
        gradients.push(ConvLayer { weight: gw.to_dtype(weight.dtype())?, edge, bias, logs });
        g = gx;
    }
    gradients.reverse();
    Ok((g.to_dtype(gy.dtype())?, gradients))
}
