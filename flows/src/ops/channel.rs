//! Fused per-channel maps on channel-major activations (C, B, H, W).
//!
//! ```text
//! affine:      y = act(scale_c x + shift_c)
//! batch norm:  y = act(gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c),    mean, var over B, H, W
//! ```
//!
//! with act the identity or ReLU. One pass forward and one (batch norm: two) backward, instead of a tensor for each
//! sub-expression: at width 512 these activations are the largest tensors of a Glow. A channel is a contiguous row, so
//! the threads take channels, every sum runs over one row in order, and no result depends on the number of threads.

use super::gemm::{Real, View, contiguous, dispatch, dtype, tensor};
use super::reference;
use super::simd::{Job, Width, wide};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// y = act(scale_c x + shift_c); x (C, ...), scale and shift (C,).
pub fn affine(x: &Tensor, scale: &Tensor, shift: &Tensor, relu: bool) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::affine(x, scale, shift, relu);
    }
    x.apply_op3(scale, shift, Affine { relu })
}

/// Batch norm with the batch's own statistics; x (C, ...), gamma and beta (C,).
pub fn batch_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64, relu: bool) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::batch_norm(x, gamma, beta, eps, relu);
    }
    x.apply_op3(gamma, beta, BatchNorm { eps, relu })
}

/// Mean and biased variance of each channel, (2, C), outside any graph; x (C, ...).
pub fn moments(x: &Tensor) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::moments(x);
    }
    x.detach().contiguous()?.apply_op1_no_bwd(&Moments)
}

fn rows(s: &Shape) -> Result<(usize, usize)> {
    match s.dims() {
        [c, rest @ ..] => Ok((*c, rest.iter().product())),
        [] => bail!("expected (C, ...), got a scalar"),
    }
}

fn check(c: usize, l: &Layout) -> Result<()> {
    if l.shape().dims() != [c] {
        bail!("a per-channel vector of {:?} met {c} channels", l.shape());
    }
    Ok(())
}

/// Partial sums side by side, so that they become vectors.
const LANES: usize = 16;
/// Numbers that are summed in the tensor's own type before they join the sum in f64.
const BLOCK: usize = 1024;

/// The two sums that a backward needs of each row, with f64 accumulation over fixed blocks.
fn row_sums<T: Real>(n: usize, f: impl Fn(usize) -> (T, T)) -> (f64, f64) {
    let (mut s, mut q) = (0., 0.);
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let (mut a, mut b) = ([T::default(); LANES], [T::default(); LANES]);
        let mut i = start;
        while i + LANES <= end {
            for l in 0..LANES {
                let (u, v) = f(i + l);
                a[l] += u;
                b[l] += v;
            }
            i += LANES;
        }
        while i < end {
            let (u, v) = f(i);
            a[0] += u;
            b[0] += v;
            i += 1;
        }
        s += a.iter().map(|v| v.f64()).sum::<f64>();
        q += b.iter().map(|v| v.f64()).sum::<f64>();
    }
    (s, q)
}

fn mean_var<T: Real>(x: &[T]) -> (f64, f64) {
    let n = x.len().max(1) as f64;
    let mut sums = (0., 0.);
    wide(Sums { x, about: T::default(), sums: &mut sums });
    let mean = sums.0 / n;
    let mut about = (0., 0.);
    wide(Sums { x, about: T::of(mean), sums: &mut about });
    // The rounding of the mean to T is taken out again.
    (mean, (about.1 / n - (about.0 / n).powi(2)).max(0.))
}

struct Moments;

impl CustomOp1 for Moments {
    fn name(&self) -> &'static str {
        "channel_moments"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (c, n) = rows(l.shape())?;
        dispatch!("channel_moments", dtype(s), T => {
            let x = contiguous::<T>("channel_moments", s, l)?;
            let mv: Vec<(f64, f64)> = x.par_chunks(n.max(1)).map(mean_var).collect();
            let out = mv.iter().map(|m| T::of(m.0)).chain(mv.iter().map(|m| T::of(m.1))).collect();
            Ok((T::storage(out), (2, c).into()))
        })
    }
}

struct Affine {
    relu: bool,
}

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "channel_affine"
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
        let (c, n) = rows(l1.shape())?;
        check(c, l2)?;
        check(c, l3)?;
        dispatch!("channel_affine", dtype(s1), T => {
            let x = contiguous::<T>("channel_affine", s1, l1)?;
            let scale = contiguous::<T>("channel_affine", s2, l2)?;
            let shift = contiguous::<T>("channel_affine", s3, l3)?;
            let out = map_rows(x, n, |ch, x| {
                let (a, b) = (scale[ch], shift[ch]);
                (move |v: T| a * v + b, x)
            }, self.relu);
            Ok((T::storage(out), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _shift: &Tensor,
        y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (x, scale) = (x.detach(), scale.detach());
        let gx =
            gy.contiguous()?.apply_op3_no_bwd(&y.detach(), &scale, &AffineBackInput { relu: self.relu })?;
        let sums =
            gy.contiguous()?.apply_op3_no_bwd(&y.detach(), &x, &AffineBackParams { relu: self.relu })?;
        Ok((Some(gx), Some(sums.get(1)?), Some(sums.get(0)?)))
    }
}

/// Applies a row's function and ReLU in one pass, threads over rows.
fn map_rows<'a, T: Real, F: Fn(T) -> T>(
    x: &'a [T],
    n: usize,
    f: impl Fn(usize, &'a [T]) -> (F, &'a [T]) + Sync,
    relu: bool,
) -> Vec<T> {
    let mut out = vec![T::default(); x.len()];
    let n = n.max(1);
    out.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(ch, (y, x))| {
        let (g, x) = f(ch, x);
        if relu {
            for (y, &v) in y.iter_mut().zip(x) {
                let u = g(v);
                *y = if u < T::default() { T::default() } else { u };
            }
        } else {
            for (y, &v) in y.iter_mut().zip(x) {
                *y = g(v);
            }
        }
    });
    out
}

/// The gradient before the activation: ReLU passes it where its output is positive.
#[inline(always)]
fn gate<T: Real>(relu: bool, y: T, g: T) -> T {
    if !relu || y > T::default() { g } else { T::default() }
}

struct AffineBackInput {
    relu: bool,
}

impl CustomOp3 for AffineBackInput {
    fn name(&self) -> &'static str {
        "channel_affine_back_input"
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
        let (_, n) = rows(l1.shape())?;
        dispatch!("channel_affine", dtype(s1), T => {
            let g = contiguous::<T>("channel_affine", s1, l1)?;
            let y = contiguous::<T>("channel_affine", s2, l2)?;
            let scale = contiguous::<T>("channel_affine", s3, l3)?;
            let mut out = vec![T::default(); g.len()];
            let n = n.max(1);
            let relu = self.relu;
            out.par_chunks_mut(n).zip(g.par_chunks(n)).zip(y.par_chunks(n)).enumerate().for_each(
                |(ch, ((o, g), y))| {
                    let a = scale[ch];
                    for ((o, &g), &y) in o.iter_mut().zip(g).zip(y) {
                        *o = a * gate(relu, y, g);
                    }
                },
            );
            Ok((T::storage(out), l1.shape().clone()))
        })
    }
}

/// (2, C): sum g and sum g x, with g gated.
struct AffineBackParams {
    relu: bool,
}

impl CustomOp3 for AffineBackParams {
    fn name(&self) -> &'static str {
        "channel_affine_back_params"
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
        let (c, n) = rows(l1.shape())?;
        dispatch!("channel_affine", dtype(s1), T => {
            let g = contiguous::<T>("channel_affine", s1, l1)?;
            let y = contiguous::<T>("channel_affine", s2, l2)?;
            let x = contiguous::<T>("channel_affine", s3, l3)?;
            let relu = self.relu;
            let sums: Vec<(f64, f64)> = (0..c)
                .into_par_iter()
                .map(|ch| {
                    let (g, y, x) = (&g[ch * n..][..n], &y[ch * n..][..n], &x[ch * n..][..n]);
                    row_sums(n, |i| {
                        let v = gate(relu, y[i], g[i]);
                        (v, v * x[i])
                    })
                })
                .collect();
            let out = sums.iter().map(|s| T::of(s.0)).chain(sums.iter().map(|s| T::of(s.1)));
            Ok((T::storage(out.collect()), (2, c).into()))
        })
    }
}

struct BatchNorm {
    eps: f64,
    relu: bool,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
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
        let (c, n) = rows(l1.shape())?;
        check(c, l2)?;
        check(c, l3)?;
        dispatch!("batch_norm", dtype(s1), T => {
            let x = contiguous::<T>("batch_norm", s1, l1)?;
            let gamma = contiguous::<T>("batch_norm", s2, l2)?;
            let beta = contiguous::<T>("batch_norm", s3, l3)?;
            let eps = self.eps;
            let out = map_rows(x, n, |ch, x| {
                let (mean, var) = mean_var(x);
                let m = T::of(mean);
                let a = gamma[ch] * T::of(1. / (var + eps).sqrt());
                let b = beta[ch];
                (move |v: T| a * (v - m) + b, x)
            }, self.relu);
            Ok((T::storage(out), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _beta: &Tensor,
        y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = BatchNormBack {
            eps: self.eps,
            relu: self.relu,
            gamma: gamma.detach().to_dtype(candle_core::DType::F64)?.to_vec1()?,
        };
        let (c, n) = rows(x.shape())?;
        let all = gy.contiguous()?.apply_op3_no_bwd(&y.detach(), &x.detach(), &back)?;
        let gx = all.narrow(0, 0, c * n)?.reshape(x.shape())?;
        let g_gamma = all.narrow(0, c * n, c)?;
        let g_beta = all.narrow(0, c * n + c, c)?;
        Ok((Some(gx), Some(g_gamma), Some(g_beta)))
    }
}

/// One flat result: the gradient of x, then of gamma, then of beta.
struct BatchNormBack {
    eps: f64,
    relu: bool,
    gamma: Vec<f64>,
}

impl CustomOp3 for BatchNormBack {
    fn name(&self) -> &'static str {
        "batch_norm_back"
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
        let (c, n) = rows(l1.shape())?;
        let (eps, relu) = (self.eps, self.relu);
        dispatch!("batch_norm", dtype(s1), T => {
            let g = contiguous::<T>("batch_norm", s1, l1)?;
            let y = contiguous::<T>("batch_norm", s2, l2)?;
            let x = contiguous::<T>("batch_norm", s3, l3)?;
            let mut out = vec![T::default(); c * n + 2 * c];
            let (gx, gp) = out.split_at_mut(c * n);
            let step = n.max(1);
            let sums: Vec<(f64, f64)> = gx
                .par_chunks_mut(step)
                .enumerate()
                .map(|(ch, gx)| {
                    let (g, y, x) = (&g[ch * n..][..n], &y[ch * n..][..n], &x[ch * n..][..n]);
                    let (mean, var) = mean_var(x);
                    let inv = 1. / (var + eps).sqrt();
                    let (m, i) = (T::of(mean), T::of(inv));
                    let (sg, sgx) = row_sums(n, |k| {
                        let v = gate(relu, y[k], g[k]);
                        (v, v * ((x[k] - m) * i))
                    });
                    let a = T::of(self.gamma[ch] * inv);
                    let (mg, mgx) = (T::of(sg / n as f64), T::of(sgx / n as f64));
                    for k in 0..n {
                        let v = gate(relu, y[k], g[k]);
                        gx[k] = a * (v - mg - (x[k] - m) * i * mgx);
                    }
                    (sgx, sg)
                })
                .collect();
            for (ch, (a, b)) in sums.into_iter().enumerate() {
                gp[ch] = T::of(a);
                gp[c + ch] = T::of(b);
            }
            let len = out.len();
            Ok((T::storage(out), len.into()))
        })
    }
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
    pub(crate) fn apply(&self, x: &[T]) -> Vec<T> {
        let n = (x.len() / self.mean.len().max(1)).max(1);
        let mut out = vec![T::default(); x.len()];
        out.par_chunks_mut(n)
            .zip(x.par_chunks(n))
            .enumerate()
            .for_each(|(c, (out, x))| wide(Activate { x, out, by: self.of(c) }));
        out
    }

    /// The gradient of x in place of that of r(x).
    pub(crate) fn backward(&self, g: &mut [T], x: &[T]) -> NormGrad<T> {
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

struct Activate<'a, T> {
    x: &'a [T],
    out: &'a mut [T],
    by: (T, T, T),
}

impl<T: Real> Job for Activate<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let (m, a, b) = self.by;
        for (o, &v) in self.out.iter_mut().zip(self.x) {
            let u = (v - m) * a + b;
            *o = if u < T::default() { T::default() } else { u };
        }
    }
}

/// One channel's way back; `sums` are sum g and sum g xhat of the gated g.
struct ActivateBack<'a, T> {
    x: &'a [T],
    g: &'a mut [T],
    norm: &'a Norm<T>,
    c: usize,
    sums: &'a mut (f64, f64),
}

impl<T: Real> Job for ActivateBack<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let (m, a, b) = self.norm.of(self.c);
        let inverse = self.norm.inverse[self.c];
        let zero = T::default();
        for (g, x) in self.g.chunks_mut(BLOCK).zip(self.x.chunks(BLOCK)) {
            let (mut s, mut q) = ([zero; LANES], [zero; LANES]);
            let (gs, g_rest) = g.as_chunks_mut::<LANES>();
            let (xs, x_rest) = x.as_chunks::<LANES>();
            for (g, x) in gs.iter_mut().zip(xs) {
                for k in 0..LANES {
                    let d = x[k] - m;
                    let v = if d * a + b > zero { g[k] } else { zero };
                    g[k] = v;
                    s[k] += v;
                    q[k] += v * (d * inverse);
                }
            }
            for (g, &x) in g_rest.iter_mut().zip(x_rest) {
                let d = x - m;
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
        let (mg, mgx) = (T::of(self.sums.0 / n), T::of(self.sums.1 / n));
        for (g, &x) in self.g.iter_mut().zip(self.x) {
            *g = a * (*g - mg - (x - m) * inverse * mgx);
        }
    }
}

/// Mean and biased variance of each row of n.
pub(crate) fn mean_vars<T: Real>(x: &[T], n: usize) -> Vec<(f64, f64)> {
    x.par_chunks(n.max(1)).map(mean_var).collect()
}

/// The sum of each row of n.
pub(crate) fn row_totals<T: Real>(x: &[T], n: usize) -> Vec<T> {
    let sum = |x: &[T]| {
        let mut sums = (0., 0.);
        wide(Sums { x, about: T::default(), sums: &mut sums });
        T::of(sums.0)
    };
    x.par_chunks(n.max(1)).map(sum).collect()
}

/// sum (x - about) and sum (x - about)^2.
struct Sums<'a, T> {
    x: &'a [T],
    about: T,
    sums: &'a mut (f64, f64),
}

impl<T: Real> Job for Sums<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        for x in self.x.chunks(BLOCK) {
            let (mut s, mut q) = ([T::default(); LANES], [T::default(); LANES]);
            let (xs, rest) = x.as_chunks::<LANES>();
            for x in xs {
                for k in 0..LANES {
                    let d = x[k] - self.about;
                    s[k] += d;
                    q[k] += d * d;
                }
            }
            for &x in rest {
                let d = x - self.about;
                s[0] += d;
                q[0] += d * d;
            }
            self.sums.0 += s.iter().map(|v| v.f64()).sum::<f64>();
            self.sums.1 += q.iter().map(|v| v.f64()).sum::<f64>();
        }
    }
}

/// Actnorm on (B, C, ...): z = (x + b_c) exp(k l_c), bias and logs (C,).
pub fn act_norm(x: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::act_norm(x, bias, logs, factor);
    }
    x.contiguous()?.apply_op3(bias, logs, ActNorm { factor })
}

/// x from z: the inverse of [`act_norm`].
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    if !crate::ops::on_cpu(z) {
        return reference::act_norm_inverse(z, bias, logs, factor);
    }
    let (_, c, p) = images(z.shape())?;
    let z = z.contiguous()?;
    dispatch!("act_norm", z.dtype(), T => {
        let (vz, vb, vl) = (View::of("act_norm", &z)?, View::of("act_norm", bias)?, View::of("act_norm", logs)?);
        let (zs, bias) = (vz.get::<T>("act_norm")?, vb.get::<T>("act_norm")?);
        let scale: Vec<T> = scales(vl.get::<T>("act_norm")?, -factor);
        if bias.len() != c {
            bail!("an actnorm of {} channels met {:?}", bias.len(), z.shape());
        }
        let mut out = vec![T::default(); zs.len()];
        for (i, (x, z)) in out.chunks_exact_mut(p.max(1)).zip(zs.chunks_exact(p.max(1))).enumerate() {
            let (b, a) = (bias[i % c], scale[i % c]);
            x.iter_mut().zip(z).for_each(|(x, &z)| *x = z * a - b);
        }
        tensor(out, z.shape())
    })
}

/// The gradients of x, bias and logs, from z and its gradient, without the log-det's share.
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    if !crate::ops::on_cpu(z) {
        return reference::act_norm_backward(z, gz, logs, factor);
    }
    let (b, c, p) = images(z.shape())?;
    let (z, gz) = (z.contiguous()?, gz.contiguous()?);
    dispatch!("act_norm", z.dtype(), T => {
        let (vz, vg, vl) = (View::of("act_norm", &z)?, View::of("act_norm", &gz)?, View::of("act_norm", logs)?);
        let (zs, g) = (vz.get::<T>("act_norm")?, vg.get::<T>("act_norm")?);
        let scale: Vec<T> = scales(vl.get::<T>("act_norm")?, factor);
        if scale.len() != c || g.len() != zs.len() {
            bail!("an actnorm of {} channels met {:?}", scale.len(), z.shape());
        }
        let n = c * p;
        let mut gx = vec![T::default(); b * n];
        // The sums of each image, added over images in order: the same for any number of threads.
        let sums: Vec<Vec<(f64, f64)>> = gx
            .par_chunks_mut(n.max(1))
            .enumerate()
            .with_min_len(1 + (1 << 14) / n.max(1))
            .map(|(i, gx)| {
                let (g, z) = (&g[i * n..][..n], &zs[i * n..][..n]);
                let mut sums = vec![(0., 0.); c];
                wide(ActNormBack { g, z, gx, scale: &scale, sums: &mut sums });
                sums
            })
            .collect();
        let total = |ch: usize| sums.iter().fold((0., 0.), |a, v| (a.0 + v[ch].0, a.1 + v[ch].1));
        let gb = (0..c).map(|ch| scale[ch] * T::of(total(ch).0)).collect::<Vec<T>>();
        let gl = (0..c).map(|ch| T::of(factor * total(ch).1)).collect::<Vec<T>>();
        Ok((tensor(gx, z.shape())?, tensor(gb, c)?, tensor(gl, c)?))
    })
}

/// One image's way back: g exp(k l), and for each channel sum g and sum g z.
struct ActNormBack<'a, T> {
    g: &'a [T],
    z: &'a [T],
    gx: &'a mut [T],
    scale: &'a [T],
    sums: &'a mut [(f64, f64)],
}

impl<T: Real> Job for ActNormBack<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let p = (self.g.len() / self.scale.len().max(1)).max(1);
        let rows = self.g.chunks_exact(p).zip(self.z.chunks_exact(p)).zip(self.gx.chunks_exact_mut(p));
        for ((((g, z), gx), sums), &a) in rows.zip(self.sums).zip(self.scale) {
            let (mut s, mut q) = ([T::default(); LANES], [T::default(); LANES]);
            let ((gs, g_rest), (zs, z_rest)) = (g.as_chunks::<LANES>(), z.as_chunks::<LANES>());
            let (os, o_rest) = gx.as_chunks_mut::<LANES>();
            for ((g, z), o) in gs.iter().zip(zs).zip(os) {
                for k in 0..LANES {
                    s[k] += g[k];
                    q[k] += g[k] * z[k];
                    o[k] = a * g[k];
                }
            }
            for ((&g, &z), o) in g_rest.iter().zip(z_rest).zip(o_rest) {
                s[0] += g;
                q[0] += g * z;
                *o = a * g;
            }
            *sums = (s.iter().map(|v| v.f64()).sum(), q.iter().map(|v| v.f64()).sum());
        }
    }
}

struct ActNorm {
    factor: f64,
}

/// (B, C, positions).
fn images(s: &Shape) -> Result<(usize, usize, usize)> {
    match s.dims() {
        [b, c, rest @ ..] => Ok((*b, *c, rest.iter().product())),
        _ => bail!("expected (B, C, ...), got {s:?}"),
    }
}

impl CustomOp3 for ActNorm {
    fn name(&self) -> &'static str {
        "act_norm"
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
        let (_, c, p) = images(l1.shape())?;
        check(c, l2)?;
        check(c, l3)?;
        dispatch!("act_norm", dtype(s1), T => {
            let x = contiguous::<T>("act_norm", s1, l1)?;
            let bias = contiguous::<T>("act_norm", s2, l2)?;
            let scale: Vec<T> = scales(contiguous::<T>("act_norm", s3, l3)?, self.factor);
            let mut out = vec![T::default(); x.len()];
            let n = (c * p).max(1);
            out.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(1 + (1 << 14) / n).for_each(|(z, x)| {
                for (ch, (z, x)) in z.chunks_mut(p.max(1)).zip(x.chunks(p.max(1))).enumerate() {
                    let (b, a) = (bias[ch], scale[ch]);
                    for (z, &x) in z.iter_mut().zip(x) {
                        *z = (x + b) * a;
                    }
                }
            });
            Ok((T::storage(out), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _bias: &Tensor,
        logs: &Tensor,
        z: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (gx, gb, gl) = act_norm_backward(&z.detach(), g, &logs.detach(), self.factor)?;
        Ok((Some(gx), Some(gb), Some(gl)))
    }
}

fn scales<T: Real>(logs: &[T], factor: f64) -> Vec<T> {
    logs.iter().map(|&l| (T::of(factor) * l).exp()).collect()
}

/// Broadcasts one value per channel over (C, B, P): y = x + e[c, p]; used for the edge-bias channel, where the
/// contribution is the same for every image.
pub fn add_per_image(x: &Tensor, e: &Tensor) -> Result<Tensor> {
    let (c, _, h, w) = x.dims4()?;
    x.broadcast_add(&e.reshape((c, 1, h, w))?)
}

/// `w[o, ...] g[o]` for w (O, ...) and g (O,): the gain of weight norm and of zero convolutions.
pub fn gain(w: &Tensor, g: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; w.rank()];
    shape[0] = w.dim(0)?;
    w.broadcast_mul(&g.reshape(shape)?)
}

/// ReLU, y = max(x, 0), a NaN passing through, threaded, with a backward that reads only y.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return x.relu();
    }
    x.apply_op1(Relu)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        dispatch!("relu", dtype(s), T => {
            let x = contiguous::<T>("relu", s, l)?;
            let mut out = vec![T::default(); x.len()];
            out.par_chunks_mut(1 << 15).zip(x.par_chunks(1 << 15)).for_each(|(o, x)| {
                for (o, &v) in o.iter_mut().zip(x) {
                    *o = if v < T::default() { T::default() } else { v };
                }
            });
            Ok((T::storage(out), l.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.apply_op2_no_bwd(&y.detach(), &ReluBack)?))
    }
}

pub(super) struct ReluBack;

impl CustomOp2 for ReluBack {
    fn name(&self) -> &'static str {
        "relu_back"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        dispatch!("relu", dtype(s1), T => {
            let g = contiguous::<T>("relu", s1, l1)?;
            let y = contiguous::<T>("relu", s2, l2)?;
            let mut out = vec![T::default(); g.len()];
            out.par_chunks_mut(1 << 15)
                .zip(g.par_chunks(1 << 15))
                .zip(y.par_chunks(1 << 15))
                .for_each(|((o, g), y)| {
                    for ((o, &g), &y) in o.iter_mut().zip(g).zip(y) {
                        *o = gate(true, y, g);
                    }
                });
            Ok((T::storage(out), l1.shape().clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_tensors::{max_diff, wave};
    use candle_core::Var;

    fn compare(f: impl Fn(&[Var]) -> Tensor, g: impl Fn(&[Var]) -> Tensor) -> Result<()> {
        let vars = [
            Var::from_tensor(&wave(&[5, 3, 7, 31], 0.37))?,
            Var::from_tensor(&wave(&[5], 1.3))?,
            Var::from_tensor(&wave(&[5], 2.1))?,
        ];
        let (a, b) = (f(&vars), g(&vars));
        assert!(max_diff(&a, &b) < 1e-12);
        let w = wave(&[5, 3, 7, 31], 0.77);
        let (ga, gb) = ((a * &w)?.sum_all()?.backward()?, (b * &w)?.sum_all()?.backward()?);
        for v in &vars {
            let d = max_diff(ga.get(v).unwrap(), gb.get(v).unwrap());
            assert!(d < 1e-11, "{d}");
        }
        Ok(())
    }

    fn per_channel(t: &Tensor) -> Tensor {
        t.reshape((5, 1, 1, 1)).unwrap()
    }

    #[test]
    fn affine_agrees_with_broadcasting() -> Result<()> {
        for relu in [false, true] {
            compare(
                |v| affine(&v[0], &v[1], &v[2], relu).unwrap(),
                |v| {
                    let y = v[0].broadcast_mul(&per_channel(&v[1])).unwrap();
                    let y = y.broadcast_add(&per_channel(&v[2])).unwrap();
                    if relu { y.relu().unwrap() } else { y }
                },
            )?;
        }
        Ok(())
    }

    #[test]
    fn batch_norm_agrees_with_its_definition() -> Result<()> {
        for use_relu in [false, true] {
            compare(
                |v| batch_norm(&v[0], &v[1], &v[2], 1e-4, use_relu).unwrap(),
                |v| {
                    let flat = v[0].flatten_from(1).unwrap();
                    let mean = flat.mean_keepdim(1).unwrap();
                    let c = flat.broadcast_sub(&mean).unwrap();
                    let var = c.sqr().unwrap().mean_keepdim(1).unwrap();
                    let xhat = c.broadcast_div(&(var + 1e-4).unwrap().sqrt().unwrap()).unwrap();
                    let y = xhat.reshape(v[0].shape()).unwrap();
                    let y = y.broadcast_mul(&per_channel(&v[1])).unwrap();
                    let y = y.broadcast_add(&per_channel(&v[2])).unwrap();
                    if use_relu { relu(&y).unwrap() } else { y }
                },
            )?;
        }
        let m = moments(&wave(&[2, 3], 1.))?.to_vec2::<f64>()?;
        let x = wave(&[2, 3], 1.).to_vec2::<f64>()?;
        let mean = x[1].iter().sum::<f64>() / 3.;
        let var = x[1].iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 3.;
        assert!((m[0][1] - mean).abs() < 1e-14 && (m[1][1] - var).abs() < 1e-14);
        Ok(())
    }
}
