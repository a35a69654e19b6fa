//! The convolutional network through kernels, in the precision set for networks, channels last.

use super::spec::{ConvLayer, ConvNetParams, FACTOR, SavedState};
use crate::act_norm::cuda::{act_norm, act_norm_backward};
use crate::conv::reference::{conv_last, conv_last_backward};
use crate::cuda::network::{Act, act_backward, from_last, map_backward, to_last};
use crate::precision;
use candle_core::{Result, Tensor};

/// [`super::forward`]. Kept are the input and the output of each layer, channels last but for the last one.
pub(crate) fn forward(
    params: &ConvNetParams,
    x: &Tensor,
    keep: bool,
) -> Result<(Tensor, Option<SavedState>)> {
    let (last, inside) = (params.layers.len() - 1, precision::inside(x));
    let mut outputs = vec![to_last(x, inside)?];
    for layer in &params.layers[..last] {
        let y = conv_last(&outputs[outputs.len() - 1], &to_last(&layer.weight, inside)?)?;
        let map = params.edge_map(layer)?.map(|map| map.t()?.contiguous()).transpose()?;
        let (bias, logs) = (Some(&layer.bias), Some(&layer.logs));
        outputs.push(Act { map: map.as_ref(), bias, logs, factor: FACTOR, relu: true, add: None }.run(&y)?);
    }
    let layer = &params.layers[last];
    let y = from_last(&conv_last(&outputs[last], &to_last(&layer.weight, inside)?)?, x.dtype())?;
    let map = params.edge_map(layer)?;
    let y = act_norm(&y, map.as_ref(), &layer.bias, Some(&layer.logs), FACTOR, false)?;
    outputs.push(y.clone());
    Ok((y, keep.then_some(SavedState(outputs))))
}

/// [`super::backward`].
pub(crate) fn backward(
    params: &ConvNetParams,
    saved: SavedState,
    gy: &Tensor,
) -> Result<(Tensor, Vec<ConvLayer>)> {
    let mut outputs = saved.0;
    let y = outputs.pop().expect("an output for each layer");
    if gy.shape() != y.shape() || gy.dtype() != y.dtype() {
        let (got, want) = ((gy.shape(), gy.dtype()), (y.shape(), y.dtype()));
        candle_core::bail!("the gradient of an output {want:?} was given as {got:?}")
    }
    let inside = outputs[0].dtype();
    let Some((layer, hidden)) = params.layers.split_last() else {
        candle_core::bail!("a network of no layers")
    };
    let (g, bias, logs) = act_norm_backward(&y, gy, &layer.logs, FACTOR)?;
    let map = layer.edge.as_ref().map(|_| map_backward(&g)?.flatten_from(1)).transpose()?;
    let mut gradients = Vec::new();
    let mut back = |layer: &ConvLayer, x: &Tensor, g: &Tensor, map: Option<Tensor>, bias, logs| {
        let (gx, gw) = conv_last_backward(x, &to_last(&layer.weight, inside)?, g)?;
        let edge = map.map(|map| params.edge_gradient(&map)).transpose()?.flatten();
        gradients.push(ConvLayer { weight: from_last(&gw, layer.weight.dtype())?, edge, bias, logs });
        Result::Ok(gx)
    };
    let mut x = outputs.pop().expect("the input of each layer");
    let mut g = back(layer, &x, &to_last(&g, inside)?, map, bias, logs)?;
    for layer in hidden.iter().rev() {
        // Each input is the output of the layer before; its memory serves the next one when it is done with.
        let z = x;
        x = outputs.pop().expect("the input of each layer");
        let (gc, bias, logs) = act_backward(&z, &g, &layer.logs, FACTOR, true)?;
        let map = match &layer.edge {
            Some(_) => Some(map_backward(&gc)?.flatten_to(1)?.t()?.contiguous()?),
            None => None,
        };
        g = back(layer, &x, &gc, map, bias, logs)?;
    }
    gradients.reverse();
    Ok((from_last(&g, gy.dtype())?, gradients))
}
