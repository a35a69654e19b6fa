//! Batch norm's kernels.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, parameters, sizes};
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct Moments {
    x: Ptr,
    out: Ptr,
    batch: u32,
    channels: u32,
    positions: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Moments {}

/// Mean and biased variance of each channel of x (B, C, ...), (2, C).
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, p) = sizes(&x)?;
    let out = fresh((2, c), parameters(x.dtype()), x.device())?;
    let args = Moments {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
    };
    launch(x.device(), "moments", Some(x.dtype()), c, &args)?;
    Ok(out)
}

/// A batch norm inside a network: vectors of C, and whether mean and variance are those of the batch at hand.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
    pub(crate) gamma: Tensor,
    pub(crate) beta: Tensor,
    pub(crate) eps: f64,
    pub(crate) own: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArgs {
    x: Ptr,
    mean: Ptr,
    var: Ptr,
    gamma: Ptr,
    beta: Ptr,
    out: Ptr,
    eps: f64,
    channels: u32,
    positions: u32,
    total: u32,
    relu: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NormArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormBack {
    x: Ptr,
    gy: Ptr,
    mean: Ptr,
    var: Ptr,
    gamma: Ptr,
    beta: Ptr,
    gx: Ptr,
    ggamma: Ptr,
    gbeta: Ptr,
    eps: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    relu: u32,
    own: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NormBack {}

impl Norm {
    fn check(&self, c: usize) -> Result<()> {
        channels(c, &[Some(&self.mean), Some(&self.var), Some(&self.gamma), Some(&self.beta)])
    }

    /// act(gamma (x - mean) / sqrt(var + eps) + beta) for x (B, C, ...).
    pub(crate) fn forward(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let x = x.contiguous()?;
        let ((_, c, p), n) = (sizes(&x)?, x.elem_count());
        self.check(c)?;
        let out = fresh(x.shape(), x.dtype(), x.device())?;
        let args = NormArgs {
            x: Ptr::of(&x)?,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            out: Ptr::of(&out)?,
            eps: self.eps,
            channels: count(c)?,
            positions: count(p)?,
            total: count(n)?,
            relu: relu.into(),
        };
        launch(x.device(), "norm", Some(x.dtype()), blocks(n), &args)?;
        Ok(out)
    }

    /// The gradients of x, gamma and beta.
    pub(crate) fn backward(&self, x: &Tensor, gy: &Tensor, relu: bool) -> Result<(Tensor, Tensor, Tensor)> {
        let (x, gy) = (x.contiguous()?, gy.contiguous()?);
        let (b, c, p) = sizes(&x)?;
        self.check(c)?;
        let gx = fresh(x.shape(), x.dtype(), x.device())?;
        let vector = || fresh(c, parameters(x.dtype()), x.device());
        let (ggamma, gbeta) = (vector()?, vector()?);
        let args = NormBack {
            x: Ptr::of(&x)?,
            gy: Ptr::of(&gy)?,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            gx: Ptr::of(&gx)?,
            ggamma: Ptr::of(&ggamma)?,
            gbeta: Ptr::of(&gbeta)?,
            eps: self.eps,
            batch: count(b)?,
            channels: count(c)?,
            positions: count(p)?,
            relu: relu.into(),
            own: self.own.into(),
        };
        launch(x.device(), "norm_back", Some(x.dtype()), c, &args)?;
        Ok((gx, ggamma, gbeta))
    }
}
