//! Elementwise maps and changes of layout in candle's operations, on any device and on candle's graph.
//!
//! **Channel-major.** Inside a network activations have the shape (C, B, H, W), channels first. One channel is then one
//! contiguous row of B H W numbers: a 1x1 convolution is a single GEMM without any packing of its own, the GEMM of a 3x3
//! convolution writes its result where the next layer reads it, and per-channel layers read contiguous rows. The price is a
//! transposition of the few channels that enter and leave the network, which costs nothing beside the hidden layers.

use crate::real::Real;
use candle_core::{Result, Tensor};

/// (B, C, H, W) to (C, B, H, W), contiguous.
///
/// # Errors
/// If x has fewer than two dimensions.
pub fn to_channel_major(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// (C, B, H, W) to (B, C, H, W), contiguous.
///
/// # Errors
/// If x has fewer than two dimensions.
pub fn from_channel_major(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// (A, B, n) to (B, A, n).
pub(crate) fn swap_axes<T: Real>(x: &[T], a: usize, b: usize) -> Vec<T> {
    let n = x.len() / (a * b).max(1);
    let mut out = Vec::with_capacity(x.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&x[(i * b + j) * n..][..n]);
        }
    }
    out
}

/// ReLU, y = max(x, 0), a NaN passing through: damaged weights must not look like good ones.
///
/// # Errors
/// If the dtype has no order.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.le(0.)?.where_cond(&x.zeros_like()?, x)
}

/// y = act(scale_c x + shift_c) with act the identity or ReLU; x (C, ...), scale and shift (C,).
///
/// # Errors
/// If the channels differ.
pub fn affine(x: &Tensor, scale: &Tensor, shift: &Tensor, act_relu: bool) -> Result<Tensor> {
    let y = x.broadcast_mul(&along(scale, x, 0)?)?.broadcast_add(&along(shift, x, 0)?)?;
    if act_relu { relu(&y) } else { Ok(y) }
}

/// The vector `v` with the rank of `x`, along its dimension `dim`.
pub(crate) fn along(v: &Tensor, x: &Tensor, dim: usize) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[dim] = x.dim(dim)?;
    v.reshape(shape)
}

/// x[c, b, p] + e[c, p] for x (C, B, H, W) and e (C, H W): the share of an edge-bias channel, which is the same for every
/// image.
///
/// # Errors
/// If the sizes differ.
pub fn add_per_image(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    let (c, _, h, w) = x.dims4()?;
    x.broadcast_add(&e.reshape((c, 1, h, w))?)
}

/// `w[o, ...] g[o]` for w (O, ...) and g (O,): the gain of weight norm.
///
/// # Errors
/// If the sizes differ.
pub fn gain(w: &Tensor, g: &Tensor) -> Result<Tensor> {
    w.broadcast_mul(&along(g, w, 0)?)
}

/// log sigmoid(a) = -(max(-a, 0) + log(1 + exp(-|a|))), which neither overflows nor cancels.
///
/// # Errors
/// If the dtype is no float.
pub fn log_sigmoid(a: &Tensor) -> Result<Tensor> {
    softplus(&a.neg()?)?.neg()
}

/// log(1 + exp(a)) = max(a, 0) + log(1 + exp(-|a|)).
///
/// # Errors
/// If the dtype is no float.
pub fn softplus(a: &Tensor) -> Result<Tensor> {
    a.relu()? + (a.abs()?.neg()?.exp()? + 1.)?.log()?
}
