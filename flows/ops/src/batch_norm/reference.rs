//! Batch norm in candle's operations.

use crate::elementwise::affine;
use candle_core::{Result, Tensor};

/// Mean and biased variance of each channel of x (C, ..), (C, 1) each.
fn mean_var(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let flat = x.flatten_from(1)?;
    let mean = flat.mean_keepdim(1)?;
    let var = flat.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?;
    Ok((mean, var))
}

/// [`super::moments`].
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let (mean, var) = mean_var(x)?;
    Tensor::cat(&[mean, var], 1)?.t()?.contiguous()
}

/// Batch norm with the batch's own statistics; x (C, ...), gamma and beta (C,).
///
/// # Errors
/// If the channels differ.
pub fn batch_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64, relu: bool) -> Result<Tensor> {
    let (mean, var) = mean_var(x)?;
    let xhat = x.flatten_from(1)?.broadcast_sub(&mean)?.broadcast_div(&(var + eps)?.sqrt()?)?;
    affine(&xhat.reshape(x.shape())?, gamma, beta, relu)
}
