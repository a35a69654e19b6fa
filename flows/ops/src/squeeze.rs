//! Space to channels, 2x2, as a copy.
//!
//! ```text
//! z[b, 4 c + 2 u + v, i, j] = x[b, c, 2 i + u, 2 j + v]
//! ```

use crate::cuda::launch::{Args, Ptr, blocks, count, fresh, launch, layout};
use crate::device::Path;
use candle_core::{Result, Tensor};

/// (B, C, H, W) to (B, 4 C, H/2, W/2); both sides are even.
///
/// # Errors
/// If x has another rank.
pub fn squeeze(x: &Tensor) -> Result<Tensor> {
    if Path::of(&[x]) == Path::Kernel {
        return kernel(x, false);
    }
    let (b, c, h, w) = x.dims4()?;
    let z = x.reshape(&[b, c, h / 2, 2, w / 2, 2])?.permute((0, 1, 3, 5, 2, 4))?;
    z.reshape((b, 4 * c, h / 2, w / 2))
}

/// (B, 4 C, H, W) to (B, C, 2 H, 2 W).
///
/// # Errors
/// If z has another rank.
pub fn unsqueeze(z: &Tensor) -> Result<Tensor> {
    if Path::of(&[z]) == Path::Kernel {
        return kernel(z, true);
    }
    let (b, c, h, w) = z.dims4()?;
    let x = z.reshape(&[b, c / 4, 2, 2, h, w])?.permute((0, 1, 4, 2, 5, 3))?;
    x.reshape((b, c / 4, 2 * h, 2 * w))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SqueezeArgs {
    x: Ptr,
    out: Ptr,
    channels: u32,
    h: u32,
    w: u32,
    total: u32,
    inverse: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for SqueezeArgs {}
layout!(SqueezeArgs, 40, inverse, 32);

/// (B, C, H, W) to (B, 4 C, H/2, W/2), or back; the caller has checked the sizes.
pub(crate) fn kernel(x: &Tensor, inverse: bool) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, h, w) = x.dims4()?;
    let (c, h, w) = if inverse { (c / 4, h, w) } else { (c, h / 2, w / 2) };
    let shape = if inverse { (b, c, 2 * h, 2 * w) } else { (b, 4 * c, h, w) };
    let out = fresh(shape, x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = SqueezeArgs {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        h: count(h)?,
        w: count(w)?,
        total: count(n)?,
        inverse: inverse.into(),
    };
    launch(x.device(), "squeeze", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}
