//! Batch norm's kernels.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, parameters, sizes};
use crate::cuda::slices::{Slices, groups, wide};
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct Moments {
    x: Ptr,
    out: Ptr,
    partial: Ptr,
    batch: u32,
    channels: u32,
    positions: u32,
    slices: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Moments {}

/// Mean and biased variance of each channel of x (B, C, ...), (2, C).
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, p) = sizes(&x)?;
    let (out, at) = (fresh((2, c), parameters(x.dtype()), x.device())?, Ptr::of(&x)?);
    let wide = wide(p, &[at]);
    let slices = Slices::new(c, groups(b * p, wide), 2, x.device())?;
    count(x.elem_count())?;
    let args = Moments {
        x: at,
        out: Ptr::of(&out)?,
        partial: slices.partial()?,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        slices: count(slices.slices)?,
        wide: wide.into(),
    };
    launch(x.device(), "moments", Some(x.dtype()), c * slices.slices, &args)?;
    launch(x.device(), "moments_end", Some(x.dtype()), blocks(c), &args)?;
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
    groups: u32,
    relu: u32,
    wide: u32,
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
    sums: Ptr,
    partial: Ptr,
    eps: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    groups: u32,
    relu: u32,
    own: u32,
    slices: u32,
    wide: u32,
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
        let (_, c, p) = sizes(&x)?;
        self.check(c)?;
        let out = fresh(x.shape(), x.dtype(), x.device())?;
        let (at, of_out) = (Ptr::of(&x)?, Ptr::of(&out)?);
        let wide = wide(p, &[at, of_out]);
        let n = groups(x.elem_count(), wide);
        count(x.elem_count())?;
        let args = NormArgs {
            x: at,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            out: of_out,
            eps: self.eps,
            channels: count(c)?,
            positions: count(p)?,
            groups: count(n)?,
            relu: relu.into(),
            wide: wide.into(),
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
        let sums = fresh((2, c), parameters(x.dtype()), x.device())?;
        let (at, of_gy, of_gx) = (Ptr::of(&x)?, Ptr::of(&gy)?, Ptr::of(&gx)?);
        let wide = wide(p, &[at, of_gy, of_gx]);
        let n = groups(x.elem_count(), wide);
        let slices = Slices::new(c, groups(b * p, wide), 2, x.device())?;
        count(x.elem_count())?;
        let args = NormBack {
            x: at,
            gy: of_gy,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            gx: of_gx,
            sums: Ptr::of(&sums)?,
            partial: slices.partial()?,
            eps: self.eps,
            batch: count(b)?,
            channels: count(c)?,
            positions: count(p)?,
            groups: count(n)?,
            relu: relu.into(),
            own: self.own.into(),
            slices: count(slices.slices)?,
            wide: wide.into(),
        };
        launch(x.device(), "norm_back_sums", Some(x.dtype()), c * slices.slices, &args)?;
        slices.add_up(&sums)?;
        launch(x.device(), "norm_back", Some(x.dtype()), blocks(n), &args)?;
        Ok((gx, sums.get(1)?, sums.get(0)?))
    }
}
