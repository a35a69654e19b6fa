//! Actnorm's kernels.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, layout, sizes};
use crate::cuda::slices::Slices;
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNorm {
    x: Ptr,
    map: Ptr,
    bias: Ptr,
    logs: Ptr,
    out: Ptr,
    factor: f64,
    channels: u32,
    positions: u32,
    total: u32,
    inverse: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNorm {}
layout!(ActNorm, 64, inverse, 60);

/// z = (x + map_{c,p} + bias_c) exp(factor logs_c) for x (B, C, ...), or its inverse; a map is (C, positions), and no map is
/// 0, as are no logs.
pub(crate) fn act_norm(
    x: &Tensor,
    map: Option<&Tensor>,
    bias: &Tensor,
    logs: Option<&Tensor>,
    factor: f64,
    inverse: bool,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (_, c, p) = sizes(&x)?;
    channels(c, &[Some(bias), logs])?;
    channels(c * p, &[map])?;
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = ActNorm {
        x: Ptr::of(&x)?,
        map: Ptr::maybe(map)?,
        bias: Ptr::of(bias)?,
        logs: Ptr::maybe(logs)?,
        out: Ptr::of(&out)?,
        factor,
        channels: count(c)?,
        positions: count(p)?,
        total: count(n)?,
        inverse: inverse.into(),
    };
    launch(x.device(), "act_norm", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNormBack {
    z: Ptr,
    gz: Ptr,
    logs: Ptr,
    gx: Ptr,
    partial: Ptr,
    factor: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    slices: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNormBack {}
layout!(ActNormBack, 64, slices, 60);

/// The sums of each channel, `sums` (1 or 2, C), and with logs the gradient of x.
fn back(z: Ptr, gz: &Tensor, logs: Option<(&Tensor, f64)>, gx: Ptr, sums: &Tensor) -> Result<()> {
    let (b, c, p) = sizes(gz)?;
    channels(c, &[logs.map(|l| l.0)])?;
    count(gz.elem_count())?;
    let slices = Slices::of_numbers(sums.elem_count(), c, b * p, gz.device())?;
    let args = ActNormBack {
        z,
        gz: Ptr::of(gz)?,
        logs: Ptr::maybe(logs.map(|l| l.0))?,
        gx,
        partial: slices.partial()?,
        factor: logs.map_or(0., |l| l.1),
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        slices: count(slices.slices)?,
    };
    launch(gz.device(), "act_norm_back", Some(gz.dtype()), c * slices.slices, &args)?;
    slices.add_up(sums)
}

/// The gradients of x, bias and logs from z and its gradient; without the log-det's share.
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (z, gz) = (z.contiguous()?, gz.contiguous()?);
    let (gx, sums) =
        (fresh(z.shape(), z.dtype(), z.device())?, fresh((2, sizes(&z)?.1), z.dtype(), z.device())?);
    back(Ptr::of(&z)?, &gz, Some((logs, factor)), Ptr::of(&gx)?, &sums)?;
    Ok((gx, sums.get(0)?, sums.get(1)?))
}

/// The gradient of a bias: the sum of g (B, C, ...) over all but the channels.
pub(crate) fn bias_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let sums = fresh(sizes(&g)?.1, g.dtype(), g.device())?;
    back(Ptr::NULL, &g, None, Ptr::NULL, &sums)?;
    Ok(sums)
}
