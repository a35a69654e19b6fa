//! Actnorm in candle's operations.

use crate::elementwise::along;
use candle_core::{Result, Tensor};

/// [`super::act_norm`].
pub(crate) fn act_norm(x: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    x.broadcast_add(&along(bias, x, 1)?)?.broadcast_mul(&along(&(logs * factor)?.exp()?, x, 1)?)
}

/// [`super::act_norm_inverse`].
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    z.broadcast_mul(&along(&(logs * -factor)?.exp()?, z, 1)?)?.broadcast_sub(&along(bias, z, 1)?)
}

/// [`super::act_norm_backward`].
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let scale = (logs * factor)?.exp()?;
    let sum = |x: &Tensor| x.transpose(0, 1)?.flatten_from(1)?.sum(1);
    let (gb, gl) = (sum(gz)?, (sum(&(gz * z)?)? * factor)?);
    let gx = act_norm(gz, &scale.zeros_like()?, logs, factor)?;
    Ok((gx, (gb * scale)?, gl))
}
