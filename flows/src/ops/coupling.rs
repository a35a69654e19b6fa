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
use super::reference;
use super::simd::{Job, Width, wide};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// The log-scale s of the network's output h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogScale {
    /// s = 0: the network gives shifts alone.
    Zero,
    /// s = h.
    Exp,
    /// s = log sigmoid(h + 2).
    Sigmoid,
    /// s = gain tanh(h).
    Tanh,
}

/// The law and the part that it changes.
#[derive(Clone, Debug)]
pub struct Law<'a> {
    /// s.
    pub scale: LogScale,
    /// The learned gain of [`LogScale::Tanh`]: a tensor of one number, because on a GPU reading it would make the processor
    /// wait for all that was launched before.
    pub gain: Option<&'a Tensor>,
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
    /// That of the gain, (1,), where there is one.
    pub ggain: Option<Tensor>,
}

/// [`LogScale`] with the gain's value.
#[derive(Clone, Copy)]
enum Kind {
    Zero,
    Exp,
    Sigmoid,
    Tanh { gain: f64 },
}

/// s, e^s and ds/dh of the network's raw output.
#[inline(always)]
fn scale<T: Real>(h: T, kind: Kind) -> (T, T, T) {
    let (zero, one) = (T::default(), T::of(1.));
    match kind {
        Kind::Zero => (zero, one, zero),
        Kind::Exp => (h, h.exp_in_loop(), one),
        Kind::Sigmoid => {
            // log sigmoid(a) = min(a, 0) - log(1 + e^-|a|), and its derivative is 1 - sigmoid(a) = sigmoid(-a).
            let a = h + T::of(2.);
            let positive = a > zero;
            let e = (if positive { -a } else { a }).exp_in_loop();
            let s = (if positive { zero } else { a }) - e.ln_1p_in_loop();
            let (large, small) = (one / (one + e), e / (one + e));
            if positive { (s, large, small) } else { (s, small, large) }
        }
        Kind::Tanh { gain } => {
            let (t, g) = (h.tanh(), T::of(gain));
            (g * t, (g * t).exp_in_loop(), g * (one - t * t))
        }
    }
}

/// Elements that are taken at once: their s are summed in vectors before they join the sum in f64.
const BLOCK: usize = 256;

/// One example's changed part, as the jobs below read it; `h` is empty for [`Kind::Zero`], `mask` where there is none.
struct Example<'a, T> {
    kind: Kind,
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
    gld: T,
    ggain: &'a mut f64,
}

/// Runs `$body` with `$k` a compile-time constant copy of the scale's kind, so that each loop holds one of them only.
macro_rules! by_kind {
    ($scale:expr, $k:ident => $body:expr) => {
        match $scale {
            Kind::Zero => {
                let $k = Kind::Zero;
                $body
            }
            Kind::Exp => {
                let $k = Kind::Exp;
                $body
            }
            Kind::Sigmoid => {
                let $k = Kind::Sigmoid;
                $body
            }
            Kind::Tanh { gain } => {
                let $k = Kind::Tanh { gain };
                $body
            }
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
        let first = self.e.shift_first;
        for ((x, t, h, mask), y) in self.e.blocks().zip(self.y.chunks_mut(BLOCK)) {
            let (n, s) = (x.len(), &mut s[..x.len()]);
            let (t, y) = (&t[..n], &mut y[..n]);
            by_kind!(self.e.kind, kind => for k in 0..n {
                let (log, e, _) = scale(at(h, k), kind);
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
        let first = self.e.shift_first;
        for ((y, t, h, mask), x) in self.e.blocks().zip(self.x.chunks_mut(BLOCK)) {
            let n = y.len();
            let (t, x) = (&t[..n], &mut x[..n]);
            by_kind!(self.e.kind, kind => for k in 0..n {
                let (_, e, _) = scale(at(h, k), kind);
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
        let (first, gld) = (self.e.shift_first, self.gld);
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
            by_kind!(self.e.kind, kind => for k in 0..n {
                let (_, e, ds) = scale(at(h, k), kind);
                let ge = g[k] * e;
                gt[k] = if first { ge } else { g[k] };
                if !gh.is_empty() {
                    let inner = if first { x[k] + t[k] } else { x[k] };
                    gh[k] = (ge * inner + gld) * ds;
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
            if let Kind::Tanh { .. } = self.e.kind {
                // gh = gs gain (1 - tanh^2): the gain's gradient needs gs tanh, masked as gh is.
                for k in 0..n {
                    if mask.is_empty() || mask[k] == T::default() {
                        let inner = if first { x[k] + t[k] } else { x[k] };
                        let gs = g[k] * inner + gld;
                        *self.ggain += (gs * h[k].tanh()).f64();
                    }
                }
            }
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

    fn kind(&self) -> Result<Kind> {
        Ok(match (self.scale, self.gain) {
            (LogScale::Zero, _) => Kind::Zero,
            (LogScale::Exp, _) => Kind::Exp,
            (LogScale::Sigmoid, _) => Kind::Sigmoid,
            (LogScale::Tanh, Some(gain)) if gain.elem_count() == 1 => {
                let gain = gain.flatten_all()?.to_dtype(candle_core::DType::F64)?;
                Kind::Tanh { gain: gain.squeeze(0)?.to_scalar()? }
            }
            (LogScale::Tanh, gain) => {
                bail!("a coupling's learned gain is one number, got {:?}", gain.map(Tensor::shape))
            }
        })
    }

    /// One number for each changed element of an example; none without a mask.
    fn mask<T: Real>(&self, x: &Tensor) -> Result<Vec<T>> {
        let Some(mask) = self.mask else { return Ok(Vec::new()) };
        let shape = &x.dims()[1..];
        let mask = mask.squeeze(0)?.broadcast_as(shape)?.narrow(0, self.changed.start, self.changed.len())?;
        let mask = mask.contiguous()?;
        let view = View::of("coupling", &mask)?;
        Ok(view.get::<T>("coupling")?.to_vec())
    }

    /// A copy of x whose changed parts `each` writes, with a number for each example.
    fn map<T: Real>(
        &self,
        x: &Tensor,
        net: &Tensor,
        each: impl Fn(Example<T>, &mut [T], &mut f64) + Sync,
    ) -> Result<(Tensor, Vec<f64>)> {
        let p = self.plan(x, net)?;
        let (vx, vn) = (View::of("coupling", x)?, View::of("coupling", net)?);
        let (xs, ns) = (vx.get::<T>("coupling")?, vn.get::<T>("coupling")?);
        let (kind, shift_first) = (self.kind()?, self.shift_first);
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
                each(
                    Example { kind, shift_first, x, t, h, mask: &mask },
                    &mut out[p.start..p.start + p.len],
                    sum,
                );
            });
        Ok((tensor(out, x.shape())?, sums))
    }

    /// y, and log-dets (B,).
    pub fn forward(&self, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
        if !crate::ops::on_cpu(x) {
            self.plan(x, net)?;
            return reference::coupling(self, x, net);
        }
        dispatch!("coupling", x.dtype(), T => {
            let (y, sums) = self.map::<T>(x, net, |e, y, sum| wide(Forward { e, y, sum }))?;
            let sums: Vec<T> = sums.into_iter().map(T::of).collect();
            let b = sums.len();
            Ok((y, tensor(sums, b)?))
        })
    }

    /// x from y and the network's output.
    pub fn inverse(&self, y: &Tensor, net: &Tensor) -> Result<Tensor> {
        if !crate::ops::on_cpu(y) {
            self.plan(y, net)?;
            return reference::coupling_inverse(self, y, net);
        }
        dispatch!("coupling", y.dtype(), T => {
            Ok(self.map::<T>(y, net, |e, x, _| wide(Inverse { e, x }))?.0)
        })
    }

    /// The gradients of x, of the network's output and of the gain, from those of y and of the log-dets.
    pub fn backward(&self, x: &Tensor, net: &Tensor, gy: &Tensor, gld: &Tensor) -> Result<Back> {
        let p = self.plan(x, net)?;
        if !crate::ops::on_cpu(x) {
            return reference::coupling_backward(self, x, net, gy, gld);
        }
        dispatch!("coupling", x.dtype(), T => {
            let (vx, vn) = (View::of("coupling", x)?, View::of("coupling", net)?);
            let gy = gy.contiguous()?;
            let gld = gld.contiguous()?;
            let (vg, vl) = (View::of("coupling", &gy)?, View::of("coupling", &gld)?);
            let (xs, ns) = (vx.get::<T>("coupling")?, vn.get::<T>("coupling")?);
            let (gys, glds) = (vg.get::<T>("coupling")?, vl.get::<T>("coupling")?);
            let (kind, shift_first) = (self.kind()?, self.shift_first);
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
                    let e = Example { kind, shift_first, x, t, h, mask: &mask };
                    let g = &mut gx[p.start..p.start + p.len];
                    wide(Backward { e, g, gt, gh, gld: glds[i], ggain });
                });
            Ok(Back {
                gx: tensor(gx, x.shape())?,
                gnet: tensor(gnet, net.shape())?,
                ggain: match self.scale {
                    LogScale::Tanh => Some(tensor(vec![T::of(ggain.into_iter().sum())], 1)?),
                    _ => None,
                },
            })
        })
    }
}

/// `n` channels from `start` of x (B, C, ...), contiguous.
pub(crate) fn take_part(x: &Tensor, start: usize, n: usize) -> Result<Tensor> {
    reference::kernel!([x], super::kernels::take_part(x, start, n, None));
    x.narrow(1, start, n)?.contiguous()
}

/// x with 0 where the mask is 0.
pub(crate) fn masked(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    reference::kernel!([x, mask], super::kernels::take_part(x, 0, x.dim(1)?, Some(mask)));
    x.broadcast_mul(mask)
}

/// x + part where the mask is 1, x elsewhere.
pub(crate) fn add_masked(x: &Tensor, part: &Tensor, mask: &Tensor) -> Result<Tensor> {
    reference::kernel!([x, part, mask], super::kernels::add_part(x, part, 0, Some(mask)));
    x + part.broadcast_mul(mask)?
}

/// Adds `part` (B, C', ...) to the channels from `start` of `whole` (B, C, ...), or, with a mask, `part` where the mask is 1.
pub fn add_part(whole: &Tensor, part: &Tensor, start: usize) -> Result<Tensor> {
    if !crate::ops::on_cpu(whole) {
        return reference::add_part(whole, part, start);
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
