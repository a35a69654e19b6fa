//! Batch norm on the CPU.

use crate::inner::Inner;
use crate::real::{Real, View, dispatch, tensor};
use crate::simd::{Job, Width, wide};
use crate::sums::{BLOCK, LANES, mean_vars};
use crate::threads::unwritten;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// [`super::moments`].
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let (x, c) = (x.contiguous()?, x.dim(0)?);
    dispatch!("moments", x.dtype(), T => {
        let view = View::of("moments", &x)?;
        let all = mean_vars(view.get::<T>("moments")?, x.elem_count() / c.max(1));
        let out: Vec<T> = all.iter().map(|m| T::of(m.0)).chain(all.iter().map(|m| T::of(m.1))).collect();
        tensor(out, (2, c))
    })
}

/// How one pass normalises each channel of (C, ...) before its ReLU:
///
/// ```text
/// r(x) = relu((x - mean) scale + shift),     scale = gamma / sqrt(var + eps),   shift = beta
/// ```
pub(crate) struct Norm<T> {
    mean: Vec<T>,
    scale: Vec<T>,
    shift: Vec<T>,
    /// 1 / sqrt(var + eps).
    inverse: Vec<T>,
    /// Whether mean and variance are x's own, so that gradients pass through them.
    own: bool,
}

/// The gradients of gamma and beta.
pub(crate) struct NormGrad<T> {
    pub(crate) gamma: Vec<T>,
    pub(crate) beta: Vec<T>,
}

impl<T: Real> Norm<T> {
    /// r = relu alone.
    pub(crate) fn identity(channels: usize) -> Self {
        let v = |x| vec![T::of(x); channels];
        Self { mean: v(0.), scale: v(1.), shift: v(0.), inverse: v(1.), own: false }
    }

    /// With given statistics; `own` if they are those of the x at hand.
    pub(crate) fn new(mean_var: &[(f64, f64)], gamma: &[T], beta: &[T], eps: f64, own: bool) -> Self {
        let inverse: Vec<T> = mean_var.iter().map(|m| T::of(1. / (m.1 + eps).sqrt())).collect();
        Self {
            mean: mean_var.iter().map(|m| T::of(m.0)).collect(),
            scale: gamma.iter().zip(&inverse).map(|(&g, &i)| g * i).collect(),
            shift: beta.to_vec(),
            inverse,
            own,
        }
    }

    /// (mean, scale, shift) of channel c.
    #[inline(always)]
    pub(crate) fn of(&self, c: usize) -> (T, T, T) {
        (self.mean[c], self.scale[c], self.shift[c])
    }

    /// r(x).
    pub(crate) fn apply<I: Inner<Real = T>>(&self, x: &[I]) -> Vec<T> {
        let n = (x.len() / self.mean.len().max(1)).max(1);
        // SAFETY: the rows of all channels are written whole.
        let mut out = unsafe { unwritten(x.len()) };
        out.par_chunks_mut(n)
            .zip(x.par_chunks(n))
            .enumerate()
            .for_each(|(c, (out, x))| wide(Activate { x, out, by: self.of(c) }));
        out
    }

    /// The gradient of x in place of that of r(x).
    pub(crate) fn backward<I: Inner<Real = T>>(&self, g: &mut [T], x: &[I]) -> NormGrad<T> {
        let n = (x.len() / self.mean.len().max(1)).max(1);
        let sums: Vec<(f64, f64)> = g
            .par_chunks_mut(n)
            .zip(x.par_chunks(n))
            .enumerate()
            .map(|(c, (g, x))| {
                let mut sums = (0., 0.);
                wide(ActivateBack { x, g, norm: self, c, sums: &mut sums });
                sums
            })
            .collect();
        let column = |f: fn(&(f64, f64)) -> f64| sums.iter().map(|s| T::of(f(s))).collect();
        NormGrad { gamma: column(|s| s.1), beta: column(|s| s.0) }
    }
}

struct Activate<'a, I: Inner> {
    x: &'a [I],
    out: &'a mut [I::Real],
    by: (I::Real, I::Real, I::Real),
}

impl<I: Inner> Job for Activate<'_, I> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let (m, a, b) = self.by;
        for (o, &v) in self.out.iter_mut().zip(self.x) {
            let u = (v.to_real() - m) * a + b;
            *o = if u < I::Real::default() { I::Real::default() } else { u };
        }
    }
}

/// One channel's backward pass; `sums` are sum g and sum g xhat of the gated g.
struct ActivateBack<'a, I: Inner> {
    x: &'a [I],
    g: &'a mut [I::Real],
    norm: &'a Norm<I::Real>,
    c: usize,
    sums: &'a mut (f64, f64),
}

impl<I: Inner> Job for ActivateBack<'_, I> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let (m, a, b) = self.norm.of(self.c);
        let inverse = self.norm.inverse[self.c];
        let zero = I::Real::default();
        for (g, x) in self.g.chunks_mut(BLOCK).zip(self.x.chunks(BLOCK)) {
            let (mut s, mut q) = ([zero; LANES], [zero; LANES]);
            let (gs, g_rest) = g.as_chunks_mut::<LANES>();
            let (xs, x_rest) = x.as_chunks::<LANES>();
            for (g, x) in gs.iter_mut().zip(xs) {
                for k in 0..LANES {
                    let d = x[k].to_real() - m;
                    let v = if d * a + b > zero { g[k] } else { zero };
                    g[k] = v;
                    s[k] += v;
                    q[k] += v * (d * inverse);
                }
            }
            for (g, &x) in g_rest.iter_mut().zip(x_rest) {
                let d = x.to_real() - m;
                let v = if d * a + b > zero { *g } else { zero };
                *g = v;
                s[0] += v;
                q[0] += v * (d * inverse);
            }
            self.sums.0 += s.iter().map(|v| v.f64()).sum::<f64>();
            self.sums.1 += q.iter().map(|v| v.f64()).sum::<f64>();
        }
        if !self.norm.own {
            self.g.iter_mut().for_each(|g| *g = a * *g);
            return;
        }
        let n = self.x.len().max(1) as f64;
        let (mg, mgx) = (I::Real::of(self.sums.0 / n), I::Real::of(self.sums.1 / n));
        for (g, &x) in self.g.iter_mut().zip(self.x) {
            *g = a * (*g - mg - (x.to_real() - m) * inverse * mgx);
        }
    }
}
