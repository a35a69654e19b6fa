//! The kernel of running moments; those of a network's batch norm are in `cuda::network`.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, launch, layout};
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct Mixed {
    mean: Ptr,
    var: Ptr,
    batch: Ptr,
    share: f64,
    channels: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Mixed {}
layout!(Mixed, 40, channels, 32);

/// [`super::mix_moments`].
pub(super) fn mix_moments(mean: &Tensor, var: &Tensor, batch: &Tensor, share: f64) -> Result<()> {
    let c = mean.elem_count();
    channels(c, &[Some(var)])?;
    channels(2 * c, &[Some(batch)])?;
    if batch.dtype() != mean.dtype() || var.dtype() != mean.dtype() {
        candle_core::bail!("moments in {:?} met running ones in {:?}", batch.dtype(), mean.dtype());
    }
    let args = Mixed {
        mean: Ptr::of(mean)?,
        var: Ptr::of(var)?,
        batch: Ptr::of(batch)?,
        share,
        channels: count(c)?,
    };
    launch(mean.device(), "mix_moments", Some(mean.dtype()), blocks(2 * c), &args)
}
