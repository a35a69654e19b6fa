//! Sums of log-dets: over layers, and over examples.
//!
//! They are few numbers, but every layer makes some, and on a GPU each addition is one more launch.

mod cuda;

use crate::device::Path;
use candle_core::{Result, Tensor};

/// The sum of vectors (B,), added in order from zero; each may be one number that is expanded.
///
/// # Errors
/// Without a vector, or if shapes or dtypes differ.
pub fn sum(vectors: &[Tensor]) -> Result<Tensor> {
    let Some(first) = vectors.first() else { candle_core::bail!("a sum of log-dets needs one") };
    match Path::of(&vectors.iter().collect::<Vec<_>>()) {
        Path::Kernel => cuda::sum(vectors),
        _ => vectors.iter().try_fold(first.zeros_like()?, |sum, v| sum + v),
    }
}

/// factor times the sum of all numbers of x.
///
/// # Errors
/// If the dtype is no float.
pub fn scaled_sum(x: &Tensor, factor: f64) -> Result<Tensor> {
    match Path::of(&[x]) {
        Path::Kernel => cuda::scaled_sum(x, factor),
        _ => x.sum_all()? * factor,
    }
}
