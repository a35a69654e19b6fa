//! Actnorm on (B, C, ...), one shift and one log-scale for each channel.
//!
//! ```text
//! z = (x + b_c) exp(k l_c)
//! ```

mod cpu;
pub(crate) mod cuda;
pub(crate) mod reference;

use crate::device::Path;
use candle_core::{Result, Tensor};

/// z of x (B, C, ...); bias and logs (C,).
///
/// # Errors
/// If the channels or dtypes differ.
pub fn act_norm(x: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    match Path::of(&[x, bias, logs]) {
        Path::Cpu => cpu::act_norm(x, bias, logs, factor),
        Path::Kernel => cuda::act_norm(x, None, bias, Some(logs), factor, false),
        Path::Candle => reference::act_norm(x, bias, logs, factor),
    }
}

/// x from z: the inverse of [`act_norm`].
///
/// # Errors
/// If the channels or dtypes differ.
pub fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    match Path::of(&[z, bias, logs]) {
        Path::Cpu => cpu::act_norm_inverse(z, bias, logs, factor),
        Path::Kernel => cuda::act_norm(z, None, bias, Some(logs), factor, true),
        Path::Candle => reference::act_norm_inverse(z, bias, logs, factor),
    }
}

/// The gradients of x, bias and logs, from z and its gradient, without the log-det's share.
///
/// # Errors
/// If the channels or dtypes differ.
pub fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (z, gz, logs) = (&z.detach(), &gz.detach(), &logs.detach());
    match Path::of(&[z, gz, logs]) {
        Path::Cpu => cpu::act_norm_backward(z, gz, logs, factor),
        Path::Kernel => cuda::act_norm_backward(z, gz, logs, factor),
        Path::Candle => reference::act_norm_backward(z, gz, logs, factor),
    }
}
