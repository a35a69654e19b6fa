//! Convolution on the CPU: by columns, or 3x3 ones of many channels by [`Three`].

use super::rows::{Plane, Sink, Tiles};
use super::spec::Dims;
use super::three::{Scratch, Three};
use crate::gemm::{Mat, MatMut};
use crate::inner::dispatch_inner;
use crate::precision::rounds;
use crate::real::{Real, View, contiguous, dtype, tensor};
use crate::simd::{Job, Width, wide};
use crate::threads::{Shared, add_in_order, ranges, unwritten};
use candle_core::{CpuStorage, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// y (O, B, H, W) of x and w.
pub(crate) fn conv2d(
    (s1, l1): (&CpuStorage, &Layout),
    (s2, l2): (&CpuStorage, &Layout),
) -> Result<(CpuStorage, Shape)> {
    let d = Dims::of(l1.shape(), l2.shape())?;
    dispatch_inner!("conv2d", dtype(s1), rounds(dtype(s1)), I => {
        let x = contiguous("conv2d", s1, l1)?;
        let w = contiguous("conv2d", s2, l2)?;
        Ok((Real::storage(forward::<_, I>(x, w, d)), (d.o, d.b, d.h, d.w).into()))
    })
}

/// The gradient of x (C, B, H, W), from that of y.
pub(crate) fn input_gradient(w: &Tensor, gy: &Tensor, d: Dims) -> Result<Tensor> {
    dispatch_inner!("conv2d", gy.dtype(), rounds(gy.dtype()), I => {
        let (vw, vg) = (View::of("conv2d", w)?, View::of("conv2d", gy)?);
        tensor(backward_input::<_, I>(vg.get("conv2d")?, vw.get("conv2d")?, d), (d.c, d.b, d.h, d.w))
    })
}

/// The gradient of w (O, C, k, k), from that of y.
pub(crate) fn weight_gradient(x: &Tensor, gy: &Tensor, d: Dims) -> Result<Tensor> {
    dispatch_inner!("conv2d", gy.dtype(), rounds(gy.dtype()), I => {
        let (vx, vg) = (View::of("conv2d", x)?, View::of("conv2d", gy)?);
        tensor(backward_weight::<_, I>(vx.get("conv2d")?, vg.get("conv2d")?, d), (d.o, d.c, d.k, d.k))
    })
}

/// The gradient of x from that of y = w * x; `d` is that convolution's.
pub(crate) fn backward_input<T: Real, I: Three<Real = T>>(gy: &[T], w: &[T], d: Dims) -> Vec<T> {
    // As a convolution from O channels to C.
    let turned = Dims { c: d.o, o: d.c, ..d };
    if d.k == 1 {
        return pointwise::<T, I>(gy, Mat::transposed(w, d.c), turned);
    }
    if many(d) {
        // SAFETY: tiles cover all rows of all images.
        let mut out = unsafe { unwritten(d.c * d.cols()) };
        all_rows::<T, I>(&I::kernel(w, d.o, d.c), true, gy, turned, &Shared::new(&mut out));
        return out;
    }
    forward::<T, I>(gy, &flip_transpose(w, d.o, d.c, 9), turned)
}

/// w[o, c, t] to w'[c, o, taps - 1 - t].
fn flip_transpose<T: Real>(w: &[T], o: usize, c: usize, taps: usize) -> Vec<T> {
    let mut out = vec![T::default(); w.len()];
    for i in 0..o {
        for j in 0..c {
            for t in 0..taps {
                out[(j * o + i) * taps + taps - 1 - t] = w[(i * c + j) * taps + t];
            }
        }
    }
    out
}

/// How many units of `unit` columns make a block of about `want` columns.
fn block(unit: usize, want: usize) -> usize {
    (want / unit.max(1)).max(1)
}

/// Enough columns to amortise packing the weights, few enough for the columns to stay in the cache.
fn columns_per_block(rows: usize) -> usize {
    (262_144 / rows.max(1)).clamp(192, 2048)
}

/// Whether both sides have channels enough for [`Three`].
pub(crate) fn many(d: Dims) -> bool {
    d.k == 3 && d.c.min(d.o) >= 16 && d.h.min(d.w) >= 2
}

/// Rows of one result that threads write, each its own.
pub(crate) struct Rows<'a, T> {
    pub(crate) out: &'a Shared<T>,
    pub(crate) t: Tiles,
    pub(crate) images: usize,
}

impl<T: Real> Sink<T> for Rows<'_, T> {
    #[inline(always)]
    fn row(&mut self, o: usize, image: usize, i: usize, row: &[T]) {
        let at = ((o * self.images + image) * self.t.h + i) * self.t.w;
        // SAFETY: this thread alone writes the rows under its tiles.
        unsafe { self.out.part(at, row.len()) }.copy_from_slice(row);
    }
}

/// The 3x3 convolution of all images, or its gradient of the input.
fn all_rows<T: Real, I: Three<Real = T>>(kernel: &I::Kernel, back: bool, x: &[T], d: Dims, out: &Shared<T>) {
    let t = Tiles { h: d.h, w: d.w };
    let source = Plane { x, t, images: d.b };
    ranges(d.b * t.rows()).into_par_iter().for_each(|r| {
        let mut sink = Rows { out, t, images: d.b };
        I::convolve(kernel, back, t, r, &mut Scratch::new(), &source, &mut sink);
    });
}

/// y = w x for w (O, C) as `w` reads it.
pub(crate) fn pointwise<T: Real, I: Three<Real = T>>(x: &[T], w: Mat<T>, d: Dims) -> Vec<T> {
    // SAFETY: the product writes all of it.
    let mut out = unsafe { unwritten(d.o * d.cols()) };
    columns::<T, I>(&mut out, x, w, d, false);
    out
}

/// y += w x.
pub(crate) fn pointwise_add<T: Real, I: Three<Real = T>>(y: &mut [T], x: &[T], w: Mat<T>, d: Dims) {
    columns::<T, I>(y, x, w, d, true);
}

fn columns<T: Real, I: Three<Real = T>>(y: &mut [T], x: &[T], w: Mat<T>, d: Dims, add: bool) {
    let n = d.cols();
    let shared = &Shared::new(y);
    let packed = &I::pack(w, d.o, d.c);
    ranges(n).into_par_iter().filter(|r| !r.is_empty()).for_each(|r| {
        // SAFETY: this thread alone writes columns `r` of every row.
        let dst = unsafe { MatMut::raw(shared.ptr.add(r.start), shared.len - r.start, n) };
        I::product((d.o, r.len(), d.c), (w, packed), Mat::rows(&x[r.start..], n), dst, add);
    });
}

pub(crate) fn forward<T: Real, I: Three<Real = T>>(x: &[T], w: &[T], d: Dims) -> Vec<T> {
    if d.k == 1 {
        return pointwise::<T, I>(x, Mat::rows(w, d.c), d);
    }
    let n = d.cols();
    let hw = d.h * d.w;
    if n == 0 || d.c == 0 {
        return vec![T::default(); d.o * n];
    }
    let mut out = if many(d) || d.c <= d.o {
        // SAFETY: tiles or blocks cover all rows of all images.
        unsafe { unwritten(d.o * n) }
    } else {
        // Taps are added up in it.
        vec![T::default(); d.o * n]
    };
    let shared = Shared::new(&mut out);
    let shared = &shared;
    if many(d) {
        all_rows::<T, I>(&I::kernel(w, d.o, d.c), false, x, d, shared);
    } else if d.c <= d.o {
        // Units of image rows.
        let step = block(d.w, columns_per_block(9 * d.c));
        let w = Mat::rows(w, 9 * d.c);
        let packed = &I::pack(w, d.o, 9 * d.c);
        ranges(d.b * d.h).into_par_iter().for_each(|r| {
            let mut cols = vec![T::default(); 9 * d.c * (step * d.w).min(r.len() * d.w)];
            for start in r.clone().step_by(step) {
                let rows = start..(start + step).min(r.end);
                let m = rows.len() * d.w;
                im2col(x, d.c, d, rows, &mut cols, m, false);
                let at = start * d.w;
                // SAFETY: this thread alone writes the columns of its image rows.
                let dst = unsafe { MatMut::raw(shared.ptr.add(at), shared.len - at, n) };
                I::product((d.o, m, 9 * d.c), (w, packed), Mat::rows(&cols, m), dst, false);
            }
        });
    } else {
        // w as (tap, o, c), so that each tap's O rows lie together.
        let mut taps = vec![T::default(); w.len()];
        for o in 0..d.o {
            for c in 0..d.c {
                for t in 0..9 {
                    taps[(t * d.o + o) * d.c + c] = w[(o * d.c + c) * 9 + t];
                }
            }
        }
        // Units of whole images: the shifts then never leave the block.
        let step = block(hw, columns_per_block(9 * d.o));
        let taps = Mat::rows(&taps, d.c);
        let packed = &I::pack(taps, 9 * d.o, d.c);
        ranges(d.b).into_par_iter().for_each(|r| {
            let mut y = vec![T::default(); 9 * d.o * (step * hw).min(r.len() * hw)];
            for start in r.clone().step_by(step) {
                let images = (start + step).min(r.end) - start;
                let m = images * hw;
                let at = start * hw;
                let (x, dst) = (Mat::rows(&x[at..], n), MatMut::rows(&mut y, m));
                I::product((9 * d.o, m, d.c), (taps, packed), x, dst, false);
                for o in 0..d.o {
                    // SAFETY: this thread alone writes the columns of its images.
                    let dst = unsafe { shared.part(o * n + at, m) };
                    for t in 0..9 {
                        let src = &y[(t * d.o + o) * m..][..m];
                        shift_add(src, dst, d, images, t);
                    }
                }
            }
        });
    }
    out
}

/// dst[i, j] += src[i + u - 1, j + v - 1] for each image, tap t = 3 u + v.
pub(crate) fn shift_add<T: Real>(src: &[T], dst: &mut [T], d: Dims, images: usize, t: usize) {
    wide(ShiftAdd { src, dst, d, images, t });
}

struct ShiftAdd<'a, T> {
    src: &'a [T],
    dst: &'a mut [T],
    d: Dims,
    images: usize,
    t: usize,
}

impl<T: Real> Job for ShiftAdd<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { src, dst, d, images, t } = self;
        let (dy, dx) = (t as isize / 3 - 1, t as isize % 3 - 1);
        let (j0, j1) = valid(d.w, dx);
        for b in 0..images {
            for i in 0..d.h {
                let si = i as isize + dy;
                if si < 0 || si >= d.h as isize || j0 >= j1 {
                    continue;
                }
                let s = &src[(b * d.h + si as usize) * d.w..][..d.w];
                let q = &mut dst[(b * d.h + i) * d.w..][..d.w];
                let from = (j0 as isize + dx) as usize;
                for (a, v) in q[j0..j1].iter_mut().zip(&s[from..from + (j1 - j0)]) {
                    *a += *v;
                }
            }
        }
    }
}

/// The positions j in 0..w with 0 <= j + dx < w.
fn valid(w: usize, dx: isize) -> (usize, usize) {
    ((-dx).max(0) as usize, (w as isize - dx.max(0)).max(0) as usize)
}

/// cols[(c, t), p] = x[c, p shifted by tap t] for the pixels p of image rows `rows` (counted over all images), m pixels a
/// row; `flip` shifts the other way.
pub(crate) fn im2col<T: Real>(
    x: &[T],
    c: usize,
    d: Dims,
    rows: Range<usize>,
    cols: &mut [T],
    m: usize,
    flip: bool,
) {
    let n = d.cols();
    for ch in 0..c {
        let src = &x[ch * n..(ch + 1) * n];
        for t in 0..9 {
            let t_src = if flip { 8 - t } else { t };
            let (dy, dx) = (t_src as isize / 3 - 1, t_src as isize % 3 - 1);
            let (j0, j1) = valid(d.w, dx);
            let dst = &mut cols[(ch * 9 + t) * m..][..m];
            for (q, row) in dst.chunks_exact_mut(d.w).zip(rows.clone()) {
                let i = (row % d.h) as isize + dy;
                if i < 0 || i >= d.h as isize || j0 >= j1 {
                    q.fill(T::default());
                    continue;
                }
                let s = &src[(row as isize + dy) as usize * d.w..][..d.w];
                let from = (j0 as isize + dx) as usize;
                q[..j0].fill(T::default());
                q[j0..j1].copy_from_slice(&s[from..from + (j1 - j0)]);
                q[j1..].fill(T::default());
            }
        }
    }
}

/// gw[o, c, t] = sum_p gy[o, p] x[c, p shifted by t].
pub(crate) fn backward_weight<T: Real, I: Three<Real = T>>(x: &[T], gy: &[T], d: Dims) -> Vec<T> {
    let n = d.cols();
    if many(d) {
        let t = Tiles { h: d.h, w: d.w };
        let plane = |x| Plane { x, t, images: d.b };
        let share = |r| I::kernel_grad((d.o, d.c), t, r, &mut Scratch::new(), &plane(x), &plane(gy));
        return I::finish(ranges(d.b * t.rows()).into_par_iter().map(share).collect());
    }
    let taps = d.k * d.k;
    let len = d.o * d.c * taps;
    let units = d.b * d.h;
    let by_gradient = d.k == 3 && d.o < d.c;
    let few = if by_gradient { d.o } else { d.c };
    let parts: Vec<Vec<T>> = ranges(units)
        .into_par_iter()
        .map(|r| {
            let (mut acc, mut turned) = (vec![T::default(); len], Vec::new());
            // A longer block reads and writes the accumulator less often.
            let want = if d.k == 1 { n.max(1) } else { columns_per_block(9 * few).max(d.o.min(d.c)) };
            let step = block(d.w, want).min(r.len().max(1));
            let mut cols = vec![T::default(); if d.k == 1 { 0 } else { 9 * few * step * d.w }];
            for start in r.clone().step_by(step) {
                let rows = start..(start + step).min(r.end);
                let m = rows.len() * d.w;
                let at = start * d.w;
                if d.k == 1 {
                    I::add_abt((d.o, d.c, m), (&gy[at..], n), (&x[at..], n), (&mut acc, d.c), &mut turned);
                } else if by_gradient {
                    im2col(gy, d.o, d, rows, &mut cols, m, true);
                    I::add_abt((9 * d.o, d.c, m), (&cols, m), (&x[at..], n), (&mut acc, d.c), &mut turned);
                } else {
                    im2col(x, d.c, d, rows, &mut cols, m, false);
                    I::add_abt(
                        (d.o, 9 * d.c, m),
                        (&gy[at..], n),
                        (&cols, m),
                        (&mut acc, 9 * d.c),
                        &mut turned,
                    );
                }
            }
            acc
        })
        .collect();
    let sum = add_in_order(parts, len);
    if !by_gradient {
        return sum;
    }
    // (o, t, c) to (o, c, t).
    let mut out = vec![T::default(); len];
    for o in 0..d.o {
        for t in 0..9 {
            for c in 0..d.c {
                out[(o * d.c + c) * 9 + t] = sum[(o * 9 + t) * d.c + c];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn numbers(n: usize, f: f64) -> Vec<f64> {
        // The sine of large numbers: neighbours are as good as independent, as Winograd's sums of them assume.
        (0..n).map(|i| ((i * i + 7 * i) as f64 * f).sin()).collect()
    }

    fn singles(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&v| v as f32).collect()
    }

    /// In bf16 y is off by at most what rounding both factors gives; through Winograd's products, whose factors are sums that
    /// are rounded, by a few times as much in the mean, for the result and for both gradients.
    #[test]
    fn bf16_is_off_by_the_rounding_of_its_factors() {
        for (c, o, k, h, w) in
            [(3, 40, 3, 7, 6), (40, 3, 3, 6, 7), (33, 20, 1, 5, 9), (64, 48, 3, 16, 16), (128, 128, 3, 8, 8)]
        {
            let d = Dims { c, o, b: 3, h, w, k };
            let (x, wt) = (numbers(c * d.cols(), 0.37), numbers(o * c * k * k, 0.91));
            let g = numbers(o * d.cols(), 0.53);
            let rounded = |x: &[f64]| {
                x.iter().map(|&v| f64::from(bf16::from_f32(v as f32).to_f32())).collect::<Vec<_>>()
            };
            let (fx, fw, fg) = (singles(&x), singles(&wt), singles(&g));
            type Three = [Vec<f64>; 3];
            let all = |x: &[f64], w: &[f64], g: &[f64]| -> Three {
                [
                    forward::<f64, f64>(x, w, d),
                    backward_input::<f64, f64>(g, w, d),
                    backward_weight::<f64, f64>(x, g, d),
                ]
            };
            let exact = all(&x, &wt, &g);
            let direct = all(&rounded(&x), &rounded(&wt), &rounded(&g));
            let abs = |x: &[f64]| x.iter().map(|v| v.abs()).collect::<Vec<_>>();
            let size = all(&abs(&x), &abs(&wt), &abs(&g));
            let ours = [
                forward::<f32, bf16>(&fx, &fw, d),
                backward_input::<f32, bf16>(&fg, &fw, d),
                backward_weight::<f32, bf16>(&fx, &fg, d),
            ];
            for (i, ours) in ours.iter().enumerate() {
                let rms = |x: &mut dyn Iterator<Item = f64>| {
                    (x.map(|v| v * v).sum::<f64>() / ours.len() as f64).sqrt()
                };
                let off = rms(&mut ours.iter().zip(&exact[i]).map(|(&a, b)| f64::from(a) - b));
                let least = rms(&mut direct[i].iter().zip(&exact[i]).map(|(a, b)| a - b));
                println!(
                    "{c} to {o}, {k}x{k}: {off:.2e} where rounded factors give {least:.2e}, {:.2}",
                    off / least
                );
                assert!(off < 2.5 * least, "{c} {o} {k}: {off:e} against {least:e}");
                if !many(d) {
                    // (1 + u)^2 - 1 with u = 2^-9, and the sums' own rounding.
                    let unit = 0.5f64.powi(9);
                    let bound =
                        2. * unit + unit * unit + (9 * c.max(o).max(d.cols())) as f64 * 0.5f64.powi(24);
                    for ((&a, b), s) in ours.iter().zip(&exact[i]).zip(&size[i]) {
                        assert!((f64::from(a) - b).abs() <= bound * s, "{c} {o} {k}: {a} against {b}");
                    }
                }
            }
        }
    }

    /// Winograd's products in bf16, which a processor with tiles does not use: within a hundredth of the exact sums in the root
    /// mean square.
    #[test]
    fn winograds_products_in_bf16() {
        use crate::conv::{three::Kernel, winograd};
        let d = Dims { c: 20, o: 17, b: 3, h: 7, w: 6, k: 3 };
        let (x, w) = (numbers(d.c * d.cols(), 0.37), numbers(d.o * d.c * 9, 0.91));
        let (fx, fw) = (singles(&x), singles(&w));
        let kernel = Kernel::Winograd(winograd::Kernel::new(&fw, d.o, d.c));
        let mut y = vec![0.; d.o * d.cols()];
        all_rows::<f32, bf16>(&kernel, false, &fx, d, &Shared::new(&mut y));
        let exact = forward::<f64, f64>(&x, &w, d);
        let square = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>();
        let off = square(&mut y.iter().zip(&exact).map(|(&a, b)| f64::from(a) - b));
        let size = square(&mut exact.iter().copied());
        assert!((off / size).sqrt() < 0.01, "{:e}", (off / size).sqrt());
    }
}
