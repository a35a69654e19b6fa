//! A fully connected layer in candle's operations.

use candle_core::{Result, Tensor};

/// [`super::linear`].
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    let y = x.matmul(&w.t()?)?.broadcast_add(b)?;
    if relu { y.relu() } else { Ok(y) }
}

/// [`super::linear_backward`].
pub(crate) fn linear_backward(
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    gy: &Tensor,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let g = if relu { (gy * y.gt(0.)?.to_dtype(gy.dtype())?)? } else { gy.clone() };
    Ok((g.matmul(w)?, g.t()?.matmul(x)?, g.sum(0)?))
}
