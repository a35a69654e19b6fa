//! The affine coupling law, fused: scale, shift and log-det in one pass, and their gradients in another.
//!
//! ```text
//! y = (x + t) e^s  (shift first)  or  x e^s + t,     log-det_b = sum s
//! ```
//!
//! with s = h (exp) or s = log sigmoid(h + 2), from the network's output (t, h).
//!
//! **Shapes.** x (B, N), the network's output (B, 2 N), shifts first, both contiguous; the result is flat: y, then the B
//! log-dets. f32 and f64.

use super::gemm::{Real, contiguous, dispatch, dtype};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Which s, and whether the shift comes before the scale.
#[derive(Clone, Copy, Debug)]
pub struct Law {
    /// s = log sigmoid(h + 2) instead of s = h.
    pub sigmoid: bool,
    /// (x + t) e^s instead of x e^s + t.
    pub shift_first: bool,
}

/// y (B, N) and the log-det (B,).
pub fn affine(x: &Tensor, net: &Tensor, law: Law) -> Result<(Tensor, Tensor)> {
    let (b, n) = x.dims2()?;
    let flat = x.contiguous()?.apply_op2(&net.contiguous()?, law)?;
    Ok((flat.narrow(0, 0, b * n)?.reshape((b, n))?, flat.narrow(0, b * n, b)?))
}

/// s and ds/dh.
#[inline(always)]
fn log_scale<T: Real>(h: T, sigmoid: bool) -> (T, T) {
    if !sigmoid {
        return (h, T::of(1.));
    }
    // log sigmoid(a) = min(a, 0) - log(1 + e^-|a|), and its derivative is 1 - sigmoid(a) = sigmoid(-a).
    let a = h + T::of(2.);
    let zero = T::default();
    let e = (if a > zero { -a } else { a }).exp();
    let one = T::of(1.);
    let s = (if a < zero { a } else { zero }) - e.ln_1p();
    (s, if a > zero { e / (one + e) } else { one / (one + e) })
}

fn sizes(l1: &Layout, l2: &Layout) -> Result<(usize, usize)> {
    let (b, n) = l1.shape().dims2()?;
    if l2.shape().dims() != [b, 2 * n] {
        bail!(
            "the coupling law of {:?} needs ({b}, {}) from its network, got {:?}",
            l1.shape(),
            2 * n,
            l2.shape()
        );
    }
    Ok((b, n))
}

impl CustomOp2 for Law {
    fn name(&self) -> &'static str {
        "coupling_law"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, n) = sizes(l1, l2)?;
        let law = *self;
        dispatch!("coupling_law", dtype(s1), T => {
            let x = contiguous::<T>("coupling_law", s1, l1)?;
            let net = contiguous::<T>("coupling_law", s2, l2)?;
            let mut out = vec![T::default(); b * n + b];
            let (y, ld) = out.split_at_mut(b * n);
            y.par_chunks_mut(n.max(1)).zip(ld.par_iter_mut()).enumerate().for_each(|(i, (y, ld))| {
                let x = &x[i * n..][..n];
                let (t, h) = net[2 * i * n..][..2 * n].split_at(n);
                let mut sum = 0.;
                for k in 0..n {
                    let (s, _) = log_scale(h[k], law.sigmoid);
                    let e = s.exp();
                    y[k] = if law.shift_first { (x[k] + t[k]) * e } else { x[k] * e + t[k] };
                    sum += s.f64();
                }
                *ld = T::of(sum);
            });
            let len = out.len();
            Ok((T::storage(out), len.into()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        net: &Tensor,
        _flat: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (b, n) = x.dims2()?;
        let back = LawBack(*self);
        let all = x.detach().apply_op3_no_bwd(&net.detach(), &g.contiguous()?, &back)?;
        let gx = all.narrow(0, 0, b * n)?.reshape((b, n))?;
        Ok((Some(gx), Some(all.narrow(0, b * n, 2 * b * n)?.reshape((b, 2 * n))?)))
    }
}

/// One flat result: the gradient of x, then that of the network's output.
struct LawBack(Law);

impl CustomOp3 for LawBack {
    fn name(&self) -> &'static str {
        "coupling_law_back"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, n) = sizes(l1, l2)?;
        let law = self.0;
        dispatch!("coupling_law", dtype(s1), T => {
            let x = contiguous::<T>("coupling_law", s1, l1)?;
            let net = contiguous::<T>("coupling_law", s2, l2)?;
            let (gy, gld) = contiguous::<T>("coupling_law", s3, l3)?.split_at(b * n);
            let mut out = vec![T::default(); 3 * b * n];
            let (gx, gnet) = out.split_at_mut(b * n);
            let m = n.max(1);
            gx.par_chunks_mut(m).zip(gnet.par_chunks_mut(2 * m)).enumerate().for_each(|(i, (gx, gnet))| {
                let (x, gy) = (&x[i * n..][..n], &gy[i * n..][..n]);
                let (t, h) = net[2 * i * n..][..2 * n].split_at(n);
                let (gt, gh) = gnet.split_at_mut(n);
                for k in 0..n {
                    let (s, ds) = log_scale(h[k], law.sigmoid);
                    let ge = gy[k] * s.exp();
                    gx[k] = ge;
                    gt[k] = if law.shift_first { ge } else { gy[k] };
                    let inner = if law.shift_first { x[k] + t[k] } else { x[k] };
                    gh[k] = (ge * inner + gld[i]) * ds;
                }
            });
            let len = out.len();
            Ok((T::storage(out), len.into()))
        })
    }
}
