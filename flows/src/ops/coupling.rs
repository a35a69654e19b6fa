//! The coupling law, fused: shift, scale and log-det in one pass over the whole tensor, the inverse and the gradients in
//! one more each.
//!
//! ```text
//! y = (x + t) e^s  (shift first)  or  x e^s + t,     log-det_b = sum s
//! ```
//!
//! with s = 0 (additive), h, log sigmoid(h + 2) or gain tanh(h), from the network's output (t, h); where a mask is 1, and
//! outside the changed part, y = x.
//!
//! **Shapes.** x, y (B, C, ...); the changed part is a range of channels, whose elements lie together in each example; the
//! network's output has as many elements, or twice as many, shifts first; a mask one for each changed element of an
//! example. All contiguous, f32 and f64; log-dets are summed in f64.

use super::gemm::{Real, View, dispatch, tensor};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// The log-scale s of the network's output h.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogScale {
    /// s = 0: the network gives shifts alone.
    Zero,
    /// s = h.
    Exp,
    /// s = log sigmoid(h + 2).
    Sigmoid,
    /// s = gain tanh(h).
    Tanh {
        /// The learned gain.
        gain: f64,
    },
}

/// The law and the part that it changes.
#[derive(Clone, Debug)]
pub struct Law<'a> {
    /// s.
    pub scale: LogScale,
    /// (x + t) e^s instead of x e^s + t.
    pub shift_first: bool,
    /// The channels that are changed.
    pub changed: Range<usize>,
    /// 1 where an element of the changed channels is kept all the same; (1 or C, H, W) or (C,), as it broadcasts.
    pub mask: Option<&'a Tensor>,
}

/// What [`Law::backward`] finds.
pub struct Back {
    /// The gradient of x, without the network's share.
    pub gx: Tensor,
    /// That of the network's output.
    pub gnet: Tensor,
    /// That of the gain of [`LogScale::Tanh`]; 0 otherwise.
    pub ggain: f64,
}

/// s, and ds/dh.
#[inline(always)]
fn log_scale<T: Real>(h: T, scale: LogScale) -> (T, T) {
    let (zero, one) = (T::default(), T::of(1.));
    match scale {
        LogScale::Zero => (zero, zero),
        LogScale::Exp => (h, one),
        LogScale::Sigmoid => {
            // log sigmoid(a) = min(a, 0) - log(1 + e^-|a|), and its derivative is 1 - sigmoid(a) = sigmoid(-a).
            let a = h + T::of(2.);
            let e = (if a > zero { -a } else { a }).exp();
            let s = (if a < zero { a } else { zero }) - e.ln_1p();
            (s, if a > zero { e / (one + e) } else { one / (one + e) })
        }
        LogScale::Tanh { gain } => {
            let (t, g) = (h.tanh(), T::of(gain));
            (g * t, g * (one - t * t))
        }
    }
}

/// Sizes of one example, in elements.
#[derive(Clone, Copy)]
struct Plan {
    batch: usize,
    example: usize,
    start: usize,
    len: usize,
    /// Elements that the network gives.
    net: usize,
}

impl Law<'_> {
    fn plan(&self, x: &Tensor, net: &Tensor) -> Result<Plan> {
        let [batch, c, rest @ ..] = x.dims() else {
            bail!("a coupling takes (B, C, ...), got {:?}", x.shape())
        };
        let p: usize = rest.iter().product();
        let len = self.changed.len() * p;
        let times = if self.scale == LogScale::Zero { 1 } else { 2 };
        let mut want = vec![*batch, times * self.changed.len()];
        want.extend(rest);
        if self.changed.end > *c || net.dims() != want {
            bail!("the coupling's network gave {:?}, {want:?} are needed", net.shape());
        }
        Ok(Plan { batch: *batch, example: c * p, start: self.changed.start * p, len, net: times * len })
    }

    /// One number for each changed element of an example.
    fn mask<T: Real>(&self, x: &Tensor) -> Result<Option<Vec<T>>> {
        let Some(mask) = self.mask else { return Ok(None) };
        let shape = &x.dims()[1..];
        let mask = mask.squeeze(0)?.broadcast_as(shape)?.narrow(0, self.changed.start, self.changed.len())?;
        let mask = mask.contiguous()?;
        let view = View::of("coupling", &mask)?;
        Ok(Some(view.get::<T>("coupling")?.to_vec()))
    }

    /// Runs `each(example, (out, x, t, h, mask))` over the changed parts; what is kept is copied. `h` is empty for
    /// [`LogScale::Zero`].
    fn map<T: Real>(
        &self,
        x: &Tensor,
        net: &Tensor,
        each: impl Fn(&mut [T], &[T], &[T], &[T], Option<&[T]>) -> f64 + Sync,
    ) -> Result<(Tensor, Vec<f64>)> {
        let p = self.plan(x, net)?;
        let (vx, vn) = (View::of("coupling", x)?, View::of("coupling", net)?);
        let (xs, ns) = (vx.get::<T>("coupling")?, vn.get::<T>("coupling")?);
        let mask = self.mask::<T>(x)?;
        let mut out = xs.to_vec();
        let mut sums = vec![0.; p.batch];
        out.par_chunks_mut(p.example.max(1))
            .zip(sums.par_iter_mut())
            .enumerate()
            .with_min_len(1 + (1 << 12) / p.len.max(1))
            .for_each(|(i, (out, sum))| {
                let x = &xs[i * p.example + p.start..][..p.len];
                let (t, h) = ns[i * p.net..][..p.net].split_at(p.len);
                *sum = each(&mut out[p.start..p.start + p.len], x, t, h, mask.as_deref());
            });
        Ok((tensor(out, x.shape())?, sums))
    }

    /// y, and log-dets (B,).
    pub fn forward(&self, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
        dispatch!("coupling", x.dtype(), T => {
            let (y, sums) = self.map::<T>(x, net, |y, x, t, h, mask| {
                let mut sum = 0.;
                for k in 0..y.len() {
                    if kept(mask, k) {
                        continue;
                    }
                    let (s, _) = log_scale(raw(h, k), self.scale);
                    let e = s.exp();
                    y[k] = if self.shift_first { (x[k] + t[k]) * e } else { x[k] * e + t[k] };
                    sum += s.f64();
                }
                sum
            })?;
            let sums: Vec<T> = sums.into_iter().map(T::of).collect();
            let b = sums.len();
            Ok((y, tensor(sums, b)?))
        })
    }

    /// x from y and the network's output.
    pub fn inverse(&self, y: &Tensor, net: &Tensor) -> Result<Tensor> {
        dispatch!("coupling", y.dtype(), T => {
            let (x, _) = self.map::<T>(y, net, |x, y, t, h, mask| {
                for k in 0..x.len() {
                    if kept(mask, k) {
                        continue;
                    }
                    let e = (-log_scale(raw(h, k), self.scale).0).exp();
                    x[k] = if self.shift_first { y[k] * e - t[k] } else { (y[k] - t[k]) * e };
                }
                0.
            })?;
            Ok(x)
        })
    }

    /// The gradients of x, of the network's output and of the gain, from those of y and of the log-dets.
    pub fn backward(&self, x: &Tensor, net: &Tensor, gy: &Tensor, gld: &Tensor) -> Result<Back> {
        let p = self.plan(x, net)?;
        dispatch!("coupling", x.dtype(), T => {
            let (vx, vn) = (View::of("coupling", x)?, View::of("coupling", net)?);
            let gy = gy.contiguous()?;
            let gld = gld.contiguous()?;
            let (vg, vl) = (View::of("coupling", &gy)?, View::of("coupling", &gld)?);
            let (xs, ns) = (vx.get::<T>("coupling")?, vn.get::<T>("coupling")?);
            let (gys, glds) = (vg.get::<T>("coupling")?, vl.get::<T>("coupling")?);
            let mask = self.mask::<T>(x)?;
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
                    let gx = &mut gx[p.start..p.start + p.len];
                    for k in 0..p.len {
                        if kept(mask.as_deref(), k) {
                            continue;
                        }
                        let (s, ds) = log_scale(raw(h, k), self.scale);
                        let g = gx[k];
                        let ge = g * s.exp();
                        gx[k] = ge;
                        gt[k] = if self.shift_first { ge } else { g };
                        if !gh.is_empty() {
                            let inner = if self.shift_first { x[k] + t[k] } else { x[k] };
                            let gs = ge * inner + glds[i];
                            gh[k] = gs * ds;
                            if let LogScale::Tanh { .. } = self.scale {
                                *ggain += (gs * h[k].tanh()).f64();
                            }
                        }
                    }
                });
            Ok(Back {
                gx: tensor(gx, x.shape())?,
                gnet: tensor(gnet, net.shape())?,
                ggain: ggain.into_iter().sum(),
            })
        })
    }
}

#[inline(always)]
fn kept<T: Real>(mask: Option<&[T]>, k: usize) -> bool {
    mask.is_some_and(|m| m[k] != T::default())
}

/// h's element, or 0 where the network gives shifts alone.
#[inline(always)]
fn raw<T: Real>(h: &[T], k: usize) -> T {
    if h.is_empty() { T::default() } else { h[k] }
}

/// Adds `part` (B, C', ...) to the channels from `start` of `whole` (B, C, ...), or, with a mask, `part` where the mask is 1.
pub fn add_part(whole: &Tensor, part: &Tensor, start: usize) -> Result<Tensor> {
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
