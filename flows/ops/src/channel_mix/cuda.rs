//! The kernels of a matrix at each position.

use crate::cuda::launch::{Args, Ptr, blocks, count, fresh, launch, layout, sizes};
use crate::cuda::slices::Slices;
use candle_core::{Result, Tensor, bail};

#[repr(C)]
#[derive(Clone, Copy)]
struct MixArgs {
    x: Ptr,
    w: Ptr,
    out: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
    transpose: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for MixArgs {}
layout!(MixArgs, 40, transpose, 36);

#[repr(C)]
#[derive(Clone, Copy)]
struct Outer {
    x: Ptr,
    gy: Ptr,
    partial: Ptr,
    batch: u32,
    channels: u32,
    positions: u32,
    slices: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Outer {}
layout!(Outer, 40, slices, 36);

fn mix(x: &Tensor, w: &Tensor, transpose: bool) -> Result<Tensor> {
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let (_, c, p) = sizes(&x)?;
    if w.dims() != [c, c] {
        bail!("a matrix of {:?} met {c} channels", w.shape());
    }
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = MixArgs {
        x: Ptr::of(&x)?,
        w: Ptr::of(&w)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        positions: count(p)?,
        total: count(n)?,
        transpose: transpose.into(),
    };
    launch(x.device(), "channel_mix", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

/// [`super::channel_mix`], never in a reduced precision.
pub(crate) fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    mix(x, w, false)
}

/// The gradients of x and w.
pub(crate) fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, gy) = (x.contiguous()?, gy.contiguous()?);
    let gx = mix(&gy, w, true)?;
    let (b, c, p) = sizes(&x)?;
    let gw = fresh((c, c), x.dtype(), x.device())?;
    let slices = Slices::of_numbers(c * c, c * c, b * p, x.device())?;
    let args = Outer {
        x: Ptr::of(&x)?,
        gy: Ptr::of(&gy)?,
        partial: slices.partial()?,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        slices: count(slices.slices)?,
    };
    launch(x.device(), "channel_outer", Some(x.dtype()), c * c * slices.slices, &args)?;
    slices.add_up(&gw)?;
    Ok((gx, gw))
}
