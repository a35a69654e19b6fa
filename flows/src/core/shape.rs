//! Shapes that layers compute with: one number for each example, one for each channel.

use candle_core::{Result, Tensor, bail};

/// A log-det of zero for each example of `x`, (B,).
///
/// # Errors
/// When `x` has no dimension.
pub fn zeros_per_example(x: &Tensor) -> Result<Tensor> {
    let b = x.dim(0)?;
    Tensor::zeros(b, x.dtype(), x.device())
}

/// The same log-det, a tensor of one number that stays in candle's graph, for each example of `x`, (B,).
///
/// # Errors
/// When `log_det` is not one number.
pub fn same_per_example(log_det: &Tensor, x: &Tensor) -> Result<Tensor> {
    log_det.reshape(1)?.expand(x.dim(0)?)
}

/// The sum over everything but the batch, (B,).
///
/// # Errors
/// When `t` has no dimension beside the batch.
pub fn sum_per_example(t: &Tensor) -> Result<Tensor> {
    t.flatten_from(1)?.sum(1)
}

/// The number of positions that share one channel: 1 for (B, D), H W for (B, C, H, W).
pub(crate) fn positions(x: &Tensor) -> Result<usize> {
    if x.rank() < 2 {
        bail!("expected (B, D) or (B, C, H, W), got shape {:?}", x.shape());
    }
    Ok(x.dims()[2..].iter().product())
}

/// The shape in which one number for each channel broadcasts against `x`: (1, C) or (1, C, 1, 1).
pub(crate) fn channel_shape(x: &Tensor) -> Result<Vec<usize>> {
    positions(x)?;
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    Ok(shape)
}

/// z (B, D) cut into tensors of the given shapes.
pub(crate) fn split_levels(z: &Tensor, shapes: &[[usize; 3]]) -> Result<Vec<Tensor>> {
    let (b, d) = z.dims2()?;
    let want: usize = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
    if d != want {
        bail!("this model's latent has {want} dimensions, got {d}");
    }
    let mut at = 0;
    let mut out = Vec::new();
    for &[c, h, w] in shapes {
        out.push(z.narrow(1, at, c * h * w)?.reshape((b, c, h, w))?);
        at += c * h * w;
    }
    Ok(out)
}
