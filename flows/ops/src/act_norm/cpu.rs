//! Actnorm on the CPU.

use crate::real::{Real, View, dispatch, tensor};
use crate::simd::{Job, Width, wide};
use crate::sums::LANES;
use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// (B, C, positions).
fn images(s: &Shape) -> Result<(usize, usize, usize)> {
    match s.dims() {
        [b, c, rest @ ..] => Ok((*b, *c, rest.iter().product())),
        _ => bail!("expected (B, C, ...), got {s:?}"),
    }
}

/// [`super::act_norm`].
pub(crate) fn act_norm(x: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    let (_, c, p) = images(x.shape())?;
    let x = x.contiguous()?;
    dispatch!("act_norm", x.dtype(), T => {
        let (vx, vb, vl) = (View::of("act_norm", &x)?, View::of("act_norm", bias)?, View::of("act_norm", logs)?);
        let (xs, bias) = (vx.get::<T>("act_norm")?, vb.get::<T>("act_norm")?);
        let scale: Vec<T> = scales(vl.get::<T>("act_norm")?, factor);
        if bias.len() != c || scale.len() != c {
            bail!("an actnorm of {} channels met {:?}", bias.len(), x.shape());
        }
        let mut out = vec![T::default(); xs.len()];
        let n = (c * p).max(1);
        out.par_chunks_mut(n).zip(xs.par_chunks(n)).with_min_len(1 + (1 << 14) / n).for_each(|(z, x)| {
            for (ch, (z, x)) in z.chunks_mut(p.max(1)).zip(x.chunks(p.max(1))).enumerate() {
                let (b, a) = (bias[ch], scale[ch]);
                for (z, &x) in z.iter_mut().zip(x) {
                    *z = (x + b) * a;
                }
            }
        });
        tensor(out, x.shape())
    })
}

/// [`super::act_norm_inverse`].
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
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

/// [`super::act_norm_backward`].
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
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

/// One image's backward pass: g exp(k l), and for each channel sum g and sum g z.
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

fn scales<T: Real>(logs: &[T], factor: f64) -> Vec<T> {
    logs.iter().map(|&l| (T::of(factor) * l).exp()).collect()
}
