//! Batch norm's statistics and maps, on channel-major activations (C, ...).
//!
//! ```text
//! y = act(gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c),    mean, var over all but the channels
//! ```
//!
//! with act the identity or ReLU. A channel is a contiguous row, so the threads take channels, every sum runs over one row in
//! order, and no result depends on the number of threads.

pub(crate) mod cpu;
mod cuda;
pub(crate) mod reference;

pub use reference::batch_norm;

use crate::device::{Path, runs_kernels};
use candle_core::{Result, Tensor};

/// Mean and biased variance of each channel, (2, C), outside any graph; x (C, ...).
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn moments(x: &Tensor) -> Result<Tensor> {
    let x = x.detach();
    match Path::of(&[&x]) {
        Path::Cpu => cpu::moments(&x),
        _ => reference::moments(&x),
    }
}

/// Mixes a batch's moments (2, C) into running ones (C,), in place: (1 - share) running + share batch. Returns false, having
/// done nothing, where no kernels run.
///
/// # Errors
/// If the channels or dtypes differ.
pub fn mix_moments(mean: &Tensor, var: &Tensor, batch: &Tensor, share: f64) -> Result<bool> {
    if !runs_kernels(mean.device()) {
        return Ok(false);
    }
    cuda::mix_moments(mean, var, batch, share)?;
    Ok(true)
}
