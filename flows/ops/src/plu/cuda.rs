//! The kernels of a matrix given by its PLU factors.

use crate::cuda::launch::{Args, Ptr, blocks, channels, count, fresh, launch, layout};
use candle_core::{DType, Result, Tensor};

#[repr(C)]
#[derive(Clone, Copy)]
struct PluArgs {
    packed: Ptr,
    sign: Ptr,
    perm: Ptr,
    w: Ptr,
    log_det: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for PluArgs {}
layout!(PluArgs, 48, n, 40);

#[repr(C)]
#[derive(Clone, Copy)]
struct PluBack {
    packed: Ptr,
    sign: Ptr,
    gw: Ptr,
    grad_log_det: Ptr,
    place: Ptr,
    out: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for PluBack {}
layout!(PluBack, 56, n, 48);

/// [`super::plu`]; `perm` (C,) in u32, `sign` (C,) in the type of `packed`.
pub(crate) fn plu(packed: &Tensor, perm: &Tensor, sign: &Tensor) -> Result<(Tensor, Tensor)> {
    let n = packed.dim(0)?;
    channels(n, &[Some(perm), Some(sign)])?;
    let (w, log_det) =
        (fresh((n, n), packed.dtype(), packed.device())?, fresh((), packed.dtype(), packed.device())?);
    let args = PluArgs {
        packed: Ptr::of(packed)?,
        sign: Ptr::of(sign)?,
        perm: Ptr::of(perm)?,
        w: Ptr::of(&w)?,
        log_det: Ptr::of(&log_det)?,
        n: count(n)?,
    };
    launch(packed.device(), "plu", Some(packed.dtype()), blocks(n * n), &args)?;
    Ok((w, log_det))
}

/// [`super::plu_backward`]; `place` is the inverse of the permutation.
pub(crate) fn plu_backward(
    packed: &Tensor,
    place: &Tensor,
    sign: &Tensor,
    gw: &Tensor,
    grad_log_det: &Tensor,
) -> Result<Tensor> {
    let n = packed.dim(0)?;
    channels(n, &[Some(place), Some(sign)])?;
    let (gw, grad_log_det) = (gw.contiguous()?, grad_log_det.contiguous()?);
    let out = fresh((n, n), packed.dtype(), packed.device())?;
    let args = PluBack {
        packed: Ptr::of(packed)?,
        sign: Ptr::of(sign)?,
        gw: Ptr::of(&gw)?,
        grad_log_det: Ptr::of(&grad_log_det)?,
        place: Ptr::of(place)?,
        out: Ptr::of(&out)?,
        n: count(n)?,
    };
    launch(packed.device(), "plu_back", Some(packed.dtype()), blocks(n * n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PluInverse {
    packed: Ptr,
    sign: Ptr,
    perm: Ptr,
    work: Ptr,
    out: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for PluInverse {}
layout!(PluInverse, 48, n, 40);

/// W^-1, from the same tensors as [`plu`].
pub(crate) fn plu_inverse(packed: &Tensor, perm: &Tensor, sign: &Tensor) -> Result<Tensor> {
    let n = packed.dim(0)?;
    channels(n, &[Some(perm), Some(sign)])?;
    let work = fresh((n, n), DType::F64, packed.device())?;
    let out = fresh((n, n), packed.dtype(), packed.device())?;
    let args = PluInverse {
        packed: Ptr::of(packed)?,
        sign: Ptr::of(sign)?,
        perm: Ptr::of(perm)?,
        work: Ptr::of(&work)?,
        out: Ptr::of(&out)?,
        n: count(n)?,
    };
    launch(packed.device(), "plu_inverse", Some(packed.dtype()), blocks(n), &args)?;
    Ok(out)
}
