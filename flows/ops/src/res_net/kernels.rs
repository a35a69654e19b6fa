//! The kernels of the network's input.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, layout};
use candle_core::{Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct Signed {
    x: Ptr,
    mask: Ptr,
    out: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
    signs: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Signed {}
layout!(Signed, 40, signs, 36);

#[repr(C)]
#[derive(Clone, Copy)]
struct SignedBack {
    gu: Ptr,
    gx: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
    signs: u32,
    rows: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for SignedBack {}
layout!(SignedBack, 40, rows, 32);

/// [x, -x, mask] along the channels of x (B, C, H, W); -x if `signed`, a mask of H W numbers if there is one.
pub(crate) fn signed_input(x: &Tensor, signed: bool, mask: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, h, w) = x.dims4()?;
    channels(h * w, &[mask])?;
    let signs = 1 + usize::from(signed);
    let out = fresh((b, signs * c + usize::from(mask.is_some()), h, w), x.dtype(), x.device())?;
    let n = out.elem_count();
    let args = Signed {
        x: Ptr::of(&x)?,
        mask: Ptr::maybe(mask)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        positions: count(h * w)?,
        total: count(n)?,
        signs: count(signs)?,
    };
    launch(x.device(), "signed_input", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

/// The gradient of x (B, `c`, H, W) from that of [x, -x, mask].
pub(crate) fn signed_input_backward(gu: &Tensor, c: usize, signed: bool) -> Result<Tensor> {
    let gu = gu.contiguous()?;
    let (b, rows, h, w) = gu.dims4()?;
    let gx = fresh((b, c, h, w), gu.dtype(), gu.device())?;
    let n = gx.elem_count();
    let args = SignedBack {
        gu: Ptr::of(&gu)?,
        gx: Ptr::of(&gx)?,
        channels: count(c)?,
        positions: count(h * w)?,
        total: count(n)?,
        signs: 1 + u32::from(signed),
        rows: count(rows)?,
    };
    launch(gu.device(), "signed_input_back", Some(gu.dtype()), blocks(n), &args)?;
    Ok(gx)
}
