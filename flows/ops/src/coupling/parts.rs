//! Parts of a tensor (B, C, ...): a range of channels, or what a mask leaves.

use super::{cuda, reference};
use crate::device::Path;
use crate::real::{View, dispatch, tensor};
use candle_core::{Result, Tensor};

/// `n` channels from `start` of x (B, C, ...), contiguous.
///
/// # Errors
/// If x has too few channels.
pub fn take_part(x: &Tensor, start: usize, n: usize) -> Result<Tensor> {
    match Path::of(&[x]) {
        Path::Kernel => cuda::take_part(x, start, n, None),
        _ => x.narrow(1, start, n)?.contiguous(),
    }
}

/// x times the mask.
///
/// # Errors
/// If the mask does not broadcast to x.
pub fn masked(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    match Path::of(&[x, mask]) {
        Path::Kernel => cuda::take_part(x, 0, x.dim(1)?, Some(mask)),
        _ => x.broadcast_mul(mask),
    }
}

/// x + part where the mask is 1, x elsewhere.
///
/// # Errors
/// If the mask does not broadcast to x.
pub fn add_masked(x: &Tensor, part: &Tensor, mask: &Tensor) -> Result<Tensor> {
    match Path::of(&[x, part, mask]) {
        Path::Kernel => cuda::add_part(x, part, 0, Some(mask)),
        _ => x + part.broadcast_mul(mask)?,
    }
}

/// Adds `part` (B, C', ...) to the channels from `start` of `whole` (B, C, ...).
///
/// # Errors
/// If `whole` has too few channels.
pub fn add_part(whole: &Tensor, part: &Tensor, start: usize) -> Result<Tensor> {
    match Path::of(&[whole, part]) {
        Path::Cpu => {}
        Path::Kernel => return cuda::add_part(whole, part, start, None),
        Path::Candle => return reference::add_part(whole, part, start),
    }
    dispatch!("coupling", whole.dtype(), T => {
        let part = part.contiguous()?;
        let (vw, vp) = (View::of("coupling", whole)?, View::of("coupling", &part)?);
        let mut out = vw.get::<T>("coupling")?.to_vec();
        let small = vp.get::<T>("coupling")?;
        let b = whole.dim(0)?.max(1);
        let (n, m) = (out.len() / b, small.len() / b);
        let at = start * (n / whole.dim(1)?.max(1));
        for (w, s) in out.chunks_exact_mut(n.max(1)).zip(small.chunks_exact(m.max(1))) {
            for (w, &s) in w[at..at + m].iter_mut().zip(s) {
                *w += s;
            }
        }
        tensor(out, whole.shape())
    })
}
