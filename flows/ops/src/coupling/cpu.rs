//! The affine coupling on the CPU.

use super::spec::{AffineGrads, AffineSpec, ScaleFn};
use crate::real::{Real, View, dispatch, tensor};
use crate::simd::{Job, Width, wide};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// s, e^s and ds/dh of the network's raw output.
#[inline(always)]
fn scale<T: Real>(h: T, scale: ScaleFn, gain: T) -> (T, T, T) {
    let (zero, one) = (T::default(), T::of(1.));
    match scale {
        ScaleFn::Zero => (zero, one, zero),
        ScaleFn::Exp => (h, h.exp_in_loop(), one),
        ScaleFn::Sigmoid => {
            // log sigmoid(a) = min(a, 0) - log(1 + e^-|a|), and its derivative is 1 - sigmoid(a) = sigmoid(-a).
            let a = h + T::of(2.);
            let positive = a > zero;
            let e = (if positive { -a } else { a }).exp_in_loop();
            let s = (if positive { zero } else { a }) - e.ln_1p_in_loop();
            let (large, small) = (one / (one + e), e / (one + e));
            if positive { (s, large, small) } else { (s, small, large) }
        }
        ScaleFn::Tanh => {
            let t = h.tanh();
            (gain * t, (gain * t).exp_in_loop(), gain * (one - t * t))
        }
    }
}

/// Elements that are taken at once: their s are summed in vectors before they join the sum in f64.
const BLOCK: usize = 256;

/// One example's changed part, as the jobs below read it; `h` is empty for [`ScaleFn::Zero`], `mask` where there is none.
struct Example<'a, T> {
    scale: ScaleFn,
    gain: T,
    shift_first: bool,
    x: &'a [T],
    t: &'a [T],
    h: &'a [T],
    mask: &'a [T],
}

impl<'a, T: Real> Example<'a, T> {
    /// The blocks: (x, t, h, 1 where changed).
    #[inline(always)]
    fn blocks(&self) -> impl Iterator<Item = (&'a [T], &'a [T], &'a [T], &'a [T])> + use<'a, T> {
        let (x, t, h, mask) = (self.x, self.t, self.h, self.mask);
        let part = |v: &'a [T], start: usize, n: usize| if v.is_empty() { v } else { &v[start..start + n] };
        (0..x.len()).step_by(BLOCK).map(move |start| {
            let n = BLOCK.min(x.len() - start);
            (part(x, start, n), part(t, start, n), part(h, start, n), part(mask, start, n))
        })
    }
}

/// y, and the sum of s.
struct Forward<'a, T> {
    e: Example<'a, T>,
    y: &'a mut [T],
    sum: &'a mut f64,
}

/// x from y, which `e.x` holds.
struct Inverse<'a, T> {
    e: Example<'a, T>,
    x: &'a mut [T],
}

/// The gradients of x (in place of that of y), t, h; the sum for that of the gain.
struct Backward<'a, T> {
    e: Example<'a, T>,
    g: &'a mut [T],
    gt: &'a mut [T],
    gh: &'a mut [T],
    grad_log_det: T,
    ggain: &'a mut f64,
}

/// Runs `$body` with `$f` a compile-time constant copy of the scale, so that each loop holds one of them only.
macro_rules! by_scale {
    ($scale:expr, $f:ident => $body:expr) => {
        by_scale!($scale, $f => $body, Zero Exp Sigmoid Tanh)
    };
    ($scale:expr, $f:ident => $body:expr, $($one:ident)*) => {
        match $scale {
            $(ScaleFn::$one => {
                const $f: ScaleFn = ScaleFn::$one;
                $body
            })*
        }
    };
}

/// h's element, or 0 where the network gives shifts alone.
#[inline(always)]
fn at<T: Real>(h: &[T], k: usize) -> T {
    if h.is_empty() { T::default() } else { h[k] }
}

#[inline(always)]
fn total<T: Real>(v: &[T]) -> f64 {
    let mut lanes = [T::default(); 16];
    let (chunks, rest) = v.as_chunks::<16>();
    for c in chunks {
        for k in 0..16 {
            lanes[k] += c[k];
        }
    }
    lanes.iter().chain(rest).map(|v| v.f64()).sum()
}

impl<T: Real> Job for Forward<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let mut s = [T::default(); BLOCK];
        let (first, gain) = (self.e.shift_first, self.e.gain);
        for ((x, t, h, mask), y) in self.e.blocks().zip(self.y.chunks_mut(BLOCK)) {
            let (n, s) = (x.len(), &mut s[..x.len()]);
            let (t, y) = (&t[..n], &mut y[..n]);
            by_scale!(self.e.scale, SCALE => for k in 0..n {
                let (log, e, _) = scale(at(h, k), SCALE, gain);
                s[k] = log;
                y[k] = if first { (x[k] + t[k]) * e } else { x[k] * e + t[k] };
            });
            for k in 0..mask.len() {
                if mask[k] != T::default() {
                    (s[k], y[k]) = (T::default(), x[k]);
                }
            }
            *self.sum += total(s);
        }
    }
}

impl<T: Real> Job for Inverse<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let (first, gain) = (self.e.shift_first, self.e.gain);
        for ((y, t, h, mask), x) in self.e.blocks().zip(self.x.chunks_mut(BLOCK)) {
            let n = y.len();
            let (t, x) = (&t[..n], &mut x[..n]);
            by_scale!(self.e.scale, SCALE => for k in 0..n {
                let (_, e, _) = scale(at(h, k), SCALE, gain);
                x[k] = if first { y[k] / e - t[k] } else { (y[k] - t[k]) / e };
            });
            for k in 0..mask.len() {
                if mask[k] != T::default() {
                    x[k] = y[k];
                }
            }
        }
    }
}

impl<T: Real> Job for Backward<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let (first, gain, grad_log_det) = (self.e.shift_first, self.e.gain, self.grad_log_det);
        let outs = self.g.chunks_mut(BLOCK).zip(self.gt.chunks_mut(BLOCK)).enumerate();
        for ((x, t, h, mask), (b, (g, gt))) in self.e.blocks().zip(outs) {
            let n = x.len();
            let (t, g, gt) = (&t[..n], &mut g[..n], &mut gt[..n]);
            let gh = match self.gh.is_empty() {
                true => &mut [],
                false => &mut self.gh[b * BLOCK..][..n],
            };
            let mut before = [T::default(); BLOCK];
            if !mask.is_empty() {
                before[..n].copy_from_slice(g);
            }
            by_scale!(self.e.scale, SCALE => for k in 0..n {
                let (_, e, ds) = scale(at(h, k), SCALE, gain);
                let ge = g[k] * e;
                gt[k] = if first { ge } else { g[k] };
                if !gh.is_empty() {
                    let inner = if first { x[k] + t[k] } else { x[k] };
                    gh[k] = (ge * inner + grad_log_det) * ds;
                }
                g[k] = ge;
            });
            for k in 0..mask.len() {
                if mask[k] != T::default() {
                    (g[k], gt[k]) = (before[k], T::default());
                    if !gh.is_empty() {
                        gh[k] = T::default();
                    }
                }
            }
            if self.e.scale == ScaleFn::Tanh {
                // gh = gs gain (1 - tanh^2): the gain's gradient needs gs tanh, masked as gh is.
                for k in 0..n {
                    if mask.is_empty() || mask[k] == T::default() {
                        let inner = if first { x[k] + t[k] } else { x[k] };
                        let gs = g[k] * inner + grad_log_det;
                        *self.ggain += (gs * h[k].tanh()).f64();
                    }
                }
            }
        }
    }
}

/// The value of the learned gain.
fn gain<T: Real>(s: &AffineSpec) -> Result<T> {
    s.check_gain()?;
    match s.gain {
        Some(gain) if s.scale == ScaleFn::Tanh => {
            let gain = gain.flatten_all()?.to_dtype(candle_core::DType::F64)?;
            Ok(T::of(gain.squeeze(0)?.to_scalar()?))
        }
        _ => Ok(T::default()),
    }
}

/// One number for each changed element of an example; none without a mask.
fn mask<T: Real>(s: &AffineSpec, x: &Tensor) -> Result<Vec<T>> {
    let Some(mask) = s.mask else { return Ok(Vec::new()) };
    let shape = &x.dims()[1..];
    let mask = mask.squeeze(0)?.broadcast_as(shape)?.narrow(0, s.changed.start, s.changed.len())?;
    let mask = mask.contiguous()?;
    let view = View::of("coupling", &mask)?;
    Ok(view.get::<T>("coupling")?.to_vec())
}

/// A copy of x whose changed parts `each` writes, with a number for each example.
fn map<T: Real>(
    s: &AffineSpec,
    x: &Tensor,
    net: &Tensor,
    each: impl Fn(Example<T>, &mut [T], &mut f64) + Sync,
) -> Result<(Tensor, Vec<f64>)> {
    let p = s.plan(x, net)?;
    let (vx, vn) = (View::of("coupling", x)?, View::of("coupling", net)?);
    let (xs, ns) = (vx.get::<T>("coupling")?, vn.get::<T>("coupling")?);
    let (scale, gain, shift_first) = (s.scale, gain::<T>(s)?, s.shift_first);
    let mask = mask::<T>(s, x)?;
    let mut out = xs.to_vec();
    let mut sums = vec![0.; p.batch];
    out.par_chunks_mut(p.example.max(1))
        .zip(sums.par_iter_mut())
        .enumerate()
        .with_min_len(1 + (1 << 12) / p.len.max(1))
        .for_each(|(i, (out, sum))| {
            let x = &xs[i * p.example + p.start..][..p.len];
            let (t, h) = ns[i * p.net..][..p.net].split_at(p.len);
            each(
                Example { scale, gain, shift_first, x, t, h, mask: &mask },
                &mut out[p.start..p.start + p.len],
                sum,
            );
        });
    Ok((tensor(out, x.shape())?, sums))
}

/// [`AffineSpec::forward`].
pub(crate) fn forward(s: &AffineSpec, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
    dispatch!("coupling", x.dtype(), T => {
        let (y, sums) = map::<T>(s, x, net, |e, y, sum| wide(Forward { e, y, sum }))?;
        let sums: Vec<T> = sums.into_iter().map(T::of).collect();
        let b = sums.len();
        Ok((y, tensor(sums, b)?))
    })
}

/// [`AffineSpec::inverse`].
pub(crate) fn inverse(s: &AffineSpec, y: &Tensor, net: &Tensor) -> Result<Tensor> {
    dispatch!("coupling", y.dtype(), T => {
        Ok(map::<T>(s, y, net, |e, x, _| wide(Inverse { e, x }))?.0)
    })
}

/// [`AffineSpec::backward`].
pub(crate) fn backward(
    s: &AffineSpec,
    x: &Tensor,
    net: &Tensor,
    gy: &Tensor,
    grad_log_det: &Tensor,
) -> Result<AffineGrads> {
    let p = s.plan(x, net)?;
    dispatch!("coupling", x.dtype(), T => {
        let (vx, vn) = (View::of("coupling", x)?, View::of("coupling", net)?);
        let gy = gy.contiguous()?;
        let grad_log_det = grad_log_det.contiguous()?;
        let (vg, vl) = (View::of("coupling", &gy)?, View::of("coupling", &grad_log_det)?);
        let (xs, ns) = (vx.get::<T>("coupling")?, vn.get::<T>("coupling")?);
        let (gys, glds) = (vg.get::<T>("coupling")?, vl.get::<T>("coupling")?);
        let (scale, gain, shift_first) = (s.scale, gain::<T>(s)?, s.shift_first);
        let mask = mask::<T>(s, x)?;
        let mut gx = gys.to_vec();
        let mut gnet = vec![T::default(); p.batch * p.net];
        let mut ggain = vec![0.; p.batch];
        gx.par_chunks_mut(p.example.max(1))
            .zip(gnet.par_chunks_mut(p.net.max(1)))
            .zip(ggain.par_iter_mut())
            .enumerate()
            .with_min_len(1 + (1 << 12) / p.len.max(1))
            .for_each(|(i, ((gx, gnet), ggain))| {
                let x = &xs[i * p.example + p.start..][..p.len];
                let (t, h) = ns[i * p.net..][..p.net].split_at(p.len);
                let (gt, gh) = gnet.split_at_mut(p.len);
                let e = Example { scale, gain, shift_first, x, t, h, mask: &mask };
                let g = &mut gx[p.start..p.start + p.len];
                wide(Backward { e, g, gt, gh, grad_log_det: glds[i], ggain });
            });
        Ok(AffineGrads {
            gx: tensor(gx, x.shape())?,
            gnet: tensor(gnet, net.shape())?,
            ggain: match s.scale {
                ScaleFn::Tanh => Some(tensor(vec![T::of(ggain.into_iter().sum())], 1)?),
                _ => None,
            },
        })
    })
}
