//! A matrix at each position on the CPU.

use crate::gemm::{Mat, MatMut, gemm};
use crate::real::{Real, View, dispatch, tensor};
use crate::threads::{add_in_order, ranges};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// (B, C, positions) of x, which `w` is a matrix for.
fn sizes(x: &Tensor, w: &Tensor) -> Result<(usize, usize, usize)> {
    let [b, c, rest @ ..] = x.dims() else { bail!("expected (B, C, ...), got {:?}", x.shape()) };
    if w.dims() != [*c, *c] {
        bail!("a 1x1 convolution of {:?} met {c} channels", w.shape());
    }
    Ok((*b, *c, rest.iter().product()))
}

/// [`super::channel_mix`].
pub(crate) fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((_, c, p), x, w) = (sizes(x, w)?, x.contiguous()?, w.contiguous()?);
    dispatch!("channel_mix", x.dtype(), T => {
        let (vx, vw) = (View::of("channel_mix", &x)?, View::of("channel_mix", &w)?);
        tensor(mix::<T>(vx.get("channel_mix")?, Mat::rows(vw.get("channel_mix")?, c), (c, p)), x.shape())
    })
}

/// w x for each image of c rows of p numbers.
fn mix<T: Real>(x: &[T], w: Mat<T>, (c, p): (usize, usize)) -> Vec<T> {
    let mut out = vec![T::default(); x.len()];
    let n = (c * p).max(1);
    out.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(1 + 16_384 / n).for_each(|(y, x)| {
        gemm((c, p, c), w, Mat::rows(x, p), MatMut::rows(y, p), T::of(1.), false, 1);
    });
    out
}

/// [`super::channel_mix_backward`]: g_x = w^T g_y, and g_w the sum of g_y[b, :, p] x[b, :, p]^T.
pub(crate) fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((b, c, p), x) = (sizes(x, w)?, x.contiguous()?);
    let (wt, gy) = (w.t()?.contiguous()?, gy.contiguous()?);
    if gy.shape() != x.shape() {
        bail!("the gradient of {:?} was given as {:?}", x.shape(), gy.shape());
    }
    dispatch!("channel_mix", x.dtype(), T => {
        let (vx, vw) = (View::of("channel_mix", &x)?, View::of("channel_mix", &wt)?);
        let vg = View::of("channel_mix", &gy)?;
        let (xs, wt, gs) = (vx.get::<T>("channel_mix")?, vw.get("channel_mix")?, vg.get::<T>("channel_mix")?);
        let gx = mix(gs, Mat::rows(wt, c), (c, p));
        let n = c * p;
        let parts: Vec<Vec<T>> = ranges(b)
            .into_par_iter()
            .map(|r| {
                let mut acc = vec![T::default(); c * c];
                for i in r {
                    let (g, x) = (&gs[i * n..][..n], &xs[i * n..][..n]);
                    let dst = MatMut::rows(&mut acc, c);
                    gemm((c, c, p), Mat::rows(g, p), Mat::transposed(x, p), dst, T::of(1.), true, 1);
                }
                acc
            })
            .collect();
        Ok((tensor(gx, x.shape())?, tensor(add_in_order(parts, c * c), (c, c))?))
    })
}
