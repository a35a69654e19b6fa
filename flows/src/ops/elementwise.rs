//! Elementwise functions that neither overflow nor cancel, of candle's operations.

use candle_core::{Result, Tensor};

/// log(1 + exp(a)) = max(a, 0) + log(1 + exp(-|a|)).
///
/// # Errors
/// When `a` is of integers.
pub fn softplus(a: &Tensor) -> Result<Tensor> {
    a.relu()? + (a.abs()?.neg()?.exp()? + 1.)?.log()?
}

/// log sigmoid(a) = -(max(-a, 0) + log(1 + exp(-|a|))).
///
/// # Errors
/// When `a` is of integers.
pub fn log_sigmoid(a: &Tensor) -> Result<Tensor> {
    softplus(&a.neg()?)?.neg()
}
