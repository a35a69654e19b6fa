//! The kernels of a matrix at each position.

use crate::cuda::launch::{Args, Ptr, blocks, count, fresh, launch, sizes};
use crate::cuda::slices::{Slices, groups, wide};
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

#[repr(C)]
#[derive(Clone, Copy)]
struct Outer {
    x: Ptr,
    gy: Ptr,
    gw: Ptr,
    partial: Ptr,
    batch: u32,
    channels: u32,
    positions: u32,
    slices: u32,
    wide: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Outer {}

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
    let (of_x, of_gy) = (Ptr::of(&x)?, Ptr::of(&gy)?);
    let wide = wide(p, &[of_x, of_gy]);
    let slices = Slices::new(c * c, groups(b * p, wide), 1, x.device())?;
    let args = Outer {
        x: of_x,
        gy: of_gy,
        gw: Ptr::of(&gw)?,
        partial: slices.partial()?,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        slices: count(slices.slices)?,
        wide: wide.into(),
    };
    launch(x.device(), "channel_outer", Some(x.dtype()), c * c * slices.slices, &args)?;
    slices.add_up(&gw)?;
    Ok((gx, gw))
}
