//! Convolution, stride 1, same padding, kernels 1x1 and 3x3, channel-major.
//!
//! ```text
//! y[o, b, i, j] = sum_{c, u, v} w[o, c, u, v] x[c, b, i + u - 1, j + v - 1]        (zero outside the image)
//! ```
//!
//! **Shapes.** x (C, B, H, W), w (O, C, k, k), y (O, B, H, W), all contiguous; f32 and f64.
//!
//! Where both sides have channels enough, 3x3 kernels go the way of the module `winograd`. Everything else is one GEMM a
//! block of columns, and the nine shifted copies that a 3x3 kernel needs ("im2col") are always
//! made of the side with *fewer* channels:
//!
//! - C <= O: columns of x (9 C rows), multiplied by w.
//! - C > O: w (9 O rows) multiplies x directly, and the nine results are shifted and added.
//!
//! Flows are full of lopsided convolutions (6 channels into 512 and back to 12), where this is the difference between
//! packing 54 rows and packing 4608. The backward for the input is the forward with the kernel flipped and transposed;
//! the one for the weight is the same product with columns of x or of the gradient, again whichever has fewer rows.
//!
//! Columns are split over the threads in fixed ranges and partial sums are added in order, so a result depends on the
//! number of threads and on nothing else.

use super::gemm::{Mat, MatMut, Real, contiguous, dispatch, dtype, gemm, gemm_abt};
use super::reference;
use super::simd::{Job, Width, wide};
use super::winograd::{self, Kernel, KernelGrad, Plane, Scratch, Sink, Tiles};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// y = w * x, stride 1, same padding; see the module for shapes.
///
/// Errors if the kernel is neither 1x1 nor 3x3, or if the channels differ.
pub fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::conv2d(x, w);
    }
    x.apply_op2(w, Conv)
}

/// The gradients of x and of w, from that of y; see [`conv2d`].
pub fn conv2d_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let d = Dims::of(x.shape(), w.shape())?;
    if gy.dims() != [d.o, d.b, d.h, d.w] {
        bail!("conv2d: the gradient of an output {:?} was given as {:?}", [d.o, d.b, d.h, d.w], gy.shape());
    }
    if !crate::ops::on_cpu(x) {
        let mut g = reference::gradients(&[x, w], &[gy], |v| Ok(vec![reference::conv2d(&v[0], &v[1])?]))?;
        let gw = g.pop().expect("two");
        return Ok((g.pop().expect("two"), gw));
    }
    let (x, gy) = (x.detach(), gy.detach().contiguous()?);
    let gx = gy.apply_op2_no_bwd(&w.detach(), &ConvBackInput)?;
    Ok((gx, x.apply_op2_no_bwd(&gy, &ConvBackWeight { k: w.dim(2)? })?))
}

/// y[b, :, p] = w x[b, :, p] for x (B, C, ...) and w (C, C): the 1x1 convolution of a flow, in the layout of its input.
///
/// The channels are few, so each image is one small GEMM and nothing is transposed.
pub fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::channel_mix(x, w);
    }
    x.contiguous()?.apply_op2(&w.contiguous()?, ChannelMix)
}

/// The gradients of x and of w, from that of y; see [`channel_mix`].
pub(crate) fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    if !crate::ops::on_cpu(x) {
        return reference::channel_mix_backward(x, w, gy);
    }
    let gy = gy.contiguous()?;
    let gx = gy.apply_op2_no_bwd(&w.t()?.contiguous()?, &ChannelMix)?;
    Ok((gx, gy.apply_op2_no_bwd(&x.contiguous()?, &ChannelOuter)?))
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(crate) c: usize,
    pub(crate) o: usize,
    pub(crate) b: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) k: usize,
}

impl Dims {
    fn of(x: &Shape, weight: &Shape) -> Result<Self> {
        let (c, b, h, w) = x.dims4()?;
        let (o, wc, k, k2) = weight.dims4()?;
        if k != k2 || (k != 1 && k != 3) {
            bail!("conv2d takes 1x1 and 3x3 kernels, got {k}x{k2}");
        }
        if wc != c {
            bail!("conv2d: the input has {c} channels, the kernel takes {wc}");
        }
        if c * o * b * h * w == 0 {
            bail!("conv2d: an input {x:?} or a kernel {weight:?} is empty");
        }
        Ok(Self { c, o, b, h, w, k })
    }

    /// Columns in all: one for each pixel of each image.
    pub(super) fn cols(&self) -> usize {
        self.b * self.h * self.w
    }
}

struct Conv;

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let d = Dims::of(l1.shape(), l2.shape())?;
        dispatch!("conv2d", dtype(s1), T => {
            let x = contiguous::<T>("conv2d", s1, l1)?;
            let w = contiguous::<T>("conv2d", s2, l2)?;
            Ok((T::storage(forward(x, w, d)), (d.o, d.b, d.h, d.w).into()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gy = gy.contiguous()?;
        let gx = if x.track_op() { Some(gy.apply_op2_no_bwd(&w.detach(), &ConvBackInput)?) } else { None };
        let gw = if w.track_op() {
            let k = w.dim(2)?;
            Some(x.detach().apply_op2_no_bwd(&gy, &ConvBackWeight { k })?)
        } else {
            None
        };
        Ok((gx, gw))
    }
}

struct ConvBackInput;

impl CustomOp2 for ConvBackInput {
    fn name(&self) -> &'static str {
        "conv2d_back_input"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (o, b, h, w) = l1.shape().dims4()?;
        let (_, c, k, _) = l2.shape().dims4()?;
        let d = Dims { c, o, b, h, w, k };
        dispatch!("conv2d", dtype(s1), T => {
            let gy = contiguous::<T>("conv2d", s1, l1)?;
            let wt = contiguous::<T>("conv2d", s2, l2)?;
            Ok((T::storage(backward_input(gy, wt, d)), (c, b, h, w).into()))
        })
    }
}

struct ConvBackWeight {
    k: usize,
}

impl CustomOp2 for ConvBackWeight {
    fn name(&self) -> &'static str {
        "conv2d_back_weight"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (c, b, h, w) = l1.shape().dims4()?;
        let o = l2.shape().dims()[0];
        let d = Dims { c, o, b, h, w, k: self.k };
        dispatch!("conv2d", dtype(s1), T => {
            let x = contiguous::<T>("conv2d", s1, l1)?;
            let gy = contiguous::<T>("conv2d", s2, l2)?;
            Ok((T::storage(backward_weight(x, gy, d)), (o, c, d.k, d.k).into()))
        })
    }
}

/// The gradient of x from that of y = w * x; `d` is that convolution's.
pub(super) fn backward_input<T: Real>(gy: &[T], w: &[T], d: Dims) -> Vec<T> {
    // As a convolution from O channels to C.
    let turned = Dims { c: d.o, o: d.c, ..d };
    if d.k == 1 {
        return pointwise(gy, Mat::transposed(w, d.c), turned);
    }
    if winograd(d) {
        let mut out = vec![T::default(); d.c * d.cols()];
        winograd_all(&Kernel::new(w, d.o, d.c), true, gy, turned, &Shared::new(&mut out));
        return out;
    }
    forward(gy, &flip_transpose(w, d.o, d.c, 9), turned)
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

/// A pointer that threads write disjoint parts of one result through.
pub(super) struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: each thread writes only its own columns; see the uses.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(v: &mut [T]) -> Self {
        Self { ptr: v.as_mut_ptr(), len: v.len() }
    }

    /// `len` elements from `at`.
    ///
    /// # Safety
    /// No two threads may hold parts that overlap, and nobody may use the result meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "a part reaches past its result");
        // SAFETY: inside the result; the caller answers for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), len) }
    }
}

/// Fixed contiguous ranges of `n` units, one a thread.
pub(super) fn ranges(n: usize) -> Vec<Range<usize>> {
    let t = rayon::current_num_threads().clamp(1, n.max(1));
    (0..t).map(|i| n * i / t..n * (i + 1) / t).collect()
}

/// How many units of `unit` columns make a block of about `want` columns.
fn block(unit: usize, want: usize) -> usize {
    (want / unit.max(1)).max(1)
}

/// Enough columns to amortise packing the weights, few enough for the columns to stay in the cache.
fn columns_per_block(rows: usize) -> usize {
    (262_144 / rows.max(1)).clamp(192, 2048)
}

/// Whether Winograd's products beat columns.
pub(super) fn winograd(d: Dims) -> bool {
    d.k == 3 && d.c.min(d.o) >= 16 && d.h.min(d.w) >= 2
}

/// Rows of one result that threads write, each its own.
pub(super) struct Rows<'a, T> {
    pub(super) out: &'a Shared<T>,
    pub(super) t: Tiles,
    pub(super) images: usize,
}

impl<T: Real> Sink<T> for Rows<'_, T> {
    #[inline(always)]
    fn row(&mut self, o: usize, image: usize, i: usize, row: &[T]) {
        let at = ((o * self.images + image) * self.t.h + i) * self.t.w;
        // SAFETY: this thread alone writes the rows under its tiles.
        unsafe { self.out.part(at, row.len()) }.copy_from_slice(row);
    }
}

/// Winograd's convolution of all images, or its way back to the input.
fn winograd_all<T: Real>(kernel: &Kernel<T>, back: bool, x: &[T], d: Dims, out: &Shared<T>) {
    let t = Tiles { h: d.h, w: d.w };
    let source = Plane { x, t, images: d.b };
    ranges(d.b * t.rows()).into_par_iter().for_each(|r| {
        let mut sink = Rows { out, t, images: d.b };
        winograd::convolve(kernel, back, t, r, &mut Scratch::new(), &source, &mut sink);
    });
}

/// y = w x for w (O, C) as `w` reads it.
fn pointwise<T: Real>(x: &[T], w: Mat<T>, d: Dims) -> Vec<T> {
    let mut out = vec![T::default(); d.o * d.cols()];
    columns(&mut out, x, w, d, false);
    out
}

/// y += w x.
pub(super) fn pointwise_add<T: Real>(y: &mut [T], x: &[T], w: Mat<T>, d: Dims) {
    columns(y, x, w, d, true);
}

fn columns<T: Real>(y: &mut [T], x: &[T], w: Mat<T>, d: Dims, add: bool) {
    let n = d.cols();
    let shared = &Shared::new(y);
    ranges(n).into_par_iter().filter(|r| !r.is_empty()).for_each(|r| {
        // SAFETY: this thread alone writes columns `r` of every row.
        let dst = unsafe { MatMut::raw(shared.ptr.add(r.start), shared.len - r.start, n) };
        gemm((d.o, r.len(), d.c), w, Mat::rows(&x[r.start..], n), dst, T::of(1.), add, 1);
    });
}

pub(super) fn forward<T: Real>(x: &[T], w: &[T], d: Dims) -> Vec<T> {
    if d.k == 1 {
        return pointwise(x, Mat::rows(w, d.c), d);
    }
    let n = d.cols();
    let hw = d.h * d.w;
    let mut out = vec![T::default(); d.o * n];
    if n == 0 || d.c == 0 {
        return out;
    }
    let shared = Shared::new(&mut out);
    let shared = &shared;
    if winograd(d) {
        let kernel = Kernel::new(w, d.o, d.c);
        winograd_all(&kernel, false, x, d, shared);
    } else if d.c <= d.o {
        // Units of image rows.
        let step = block(d.w, columns_per_block(9 * d.c));
        ranges(d.b * d.h).into_par_iter().for_each(|r| {
            let mut cols = vec![T::default(); 9 * d.c * (step * d.w).min(r.len() * d.w)];
            for start in r.clone().step_by(step) {
                let rows = start..(start + step).min(r.end);
                let m = rows.len() * d.w;
                im2col(x, d.c, d, rows, &mut cols, m, false);
                let at = start * d.w;
                // SAFETY: this thread alone writes the columns of its image rows.
                let dst = unsafe { MatMut::raw(shared.ptr.add(at), shared.len - at, n) };
                gemm((d.o, m, 9 * d.c), Mat::rows(w, 9 * d.c), Mat::rows(&cols, m), dst, T::of(1.), false, 1);
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
        ranges(d.b).into_par_iter().for_each(|r| {
            let mut y = vec![T::default(); 9 * d.o * (step * hw).min(r.len() * hw)];
            for start in r.clone().step_by(step) {
                let images = (start + step).min(r.end) - start;
                let m = images * hw;
                let at = start * hw;
                gemm(
                    (9 * d.o, m, d.c),
                    Mat::rows(&taps, d.c),
                    Mat::rows(&x[at..], n),
                    MatMut::rows(&mut y, m),
                    T::of(1.),
                    false,
                    1,
                );
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
pub(super) fn shift_add<T: Real>(src: &[T], dst: &mut [T], d: Dims, images: usize, t: usize) {
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
pub(super) fn im2col<T: Real>(
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
pub(super) fn backward_weight<T: Real>(x: &[T], gy: &[T], d: Dims) -> Vec<T> {
    let n = d.cols();
    if winograd(d) {
        let t = Tiles { h: d.h, w: d.w };
        let plane = |x| Plane { x, t, images: d.b };
        let sum = |r| {
            let mut sum = KernelGrad::new(d.o, d.c);
            sum.add(t, r, &mut Scratch::new(), &plane(x), &plane(gy));
            sum
        };
        let parts: Vec<_> = ranges(d.b * t.rows()).into_par_iter().map(sum).collect();
        return KernelGrad::finish(&parts);
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
                    gemm_abt((d.o, d.c, m), (&gy[at..], n), (&x[at..], n), (&mut acc, d.c), &mut turned);
                } else if by_gradient {
                    im2col(gy, d.o, d, rows, &mut cols, m, true);
                    gemm_abt((9 * d.o, d.c, m), (&cols, m), (&x[at..], n), (&mut acc, d.c), &mut turned);
                } else {
                    im2col(x, d.c, d, rows, &mut cols, m, false);
                    gemm_abt((d.o, 9 * d.c, m), (&gy[at..], n), (&cols, m), (&mut acc, 9 * d.c), &mut turned);
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

pub(super) fn add_in_order<T: Real>(parts: Vec<Vec<T>>, len: usize) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![T::default(); len]);
    for p in parts {
        for (a, v) in sum.iter_mut().zip(p) {
            *a += v;
        }
    }
    sum
}

struct ChannelMix;

/// (B, C, positions) of a tensor of rank 2 or more.
fn split_channels(s: &Shape) -> Result<(usize, usize, usize)> {
    let d = s.dims();
    if d.len() < 2 {
        bail!("expected (B, C, ...), got {s:?}");
    }
    Ok((d[0], d[1], d[2..].iter().product()))
}

impl CustomOp2 for ChannelMix {
    fn name(&self) -> &'static str {
        "channel_mix"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, c, p) = split_channels(l1.shape())?;
        let (o, wc) = l2.shape().dims2()?;
        if wc != c || o != c {
            bail!("a 1x1 convolution of {o}x{wc} met {c} channels");
        }
        dispatch!("channel_mix", dtype(s1), T => {
            let x = contiguous::<T>("channel_mix", s1, l1)?;
            let w = contiguous::<T>("channel_mix", s2, l2)?;
            let mut out = vec![T::default(); x.len()];
            let n = (c * p).max(1);
            out.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(1 + 16_384 / n).for_each(|(y, x)| {
                gemm((c, p, c), Mat::rows(w, c), Mat::rows(x, p), MatMut::rows(y, p), T::of(1.), false, 1);
            });
            Ok((T::storage(out), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gy = gy.contiguous()?;
        let gx = match x.track_op() {
            true => Some(gy.apply_op2_no_bwd(&w.detach().t()?.contiguous()?, &ChannelMix)?),
            false => None,
        };
        let gw = match w.track_op() {
            true => Some(gy.apply_op2_no_bwd(&x.detach(), &ChannelOuter)?),
            false => None,
        };
        Ok((gx, gw))
    }
}

/// sum_{b, p} gy[b, :, p] x[b, :, p]^T.
struct ChannelOuter;

impl CustomOp2 for ChannelOuter {
    fn name(&self) -> &'static str {
        "channel_outer"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, c, p) = split_channels(l1.shape())?;
        dispatch!("channel_outer", dtype(s1), T => {
            let gy = contiguous::<T>("channel_outer", s1, l1)?;
            let x = contiguous::<T>("channel_outer", s2, l2)?;
            let n = c * p;
            let parts: Vec<Vec<T>> = ranges(b)
                .into_par_iter()
                .map(|r| {
                    let mut acc = vec![T::default(); c * c];
                    for i in r {
                        let (g, x) = (&gy[i * n..][..n], &x[i * n..][..n]);
                        let dst = MatMut::rows(&mut acc, c);
                        gemm((c, c, p), Mat::rows(g, p), Mat::transposed(x, p), dst, T::of(1.), true, 1);
                    }
                    acc
                })
                .collect();
            Ok((T::storage(add_in_order(parts, c * c)), (c, c).into()))
        })
    }
}

/// For each tap of a 3x3 kernel and each pixel, 1 where the tap falls outside the image: shape (9, H W).
///
/// Glow's code appends a channel that is 1 on the padding and 0 inside; its contribution is the kernel of that channel
/// times this matrix, which is the same for all images.
pub fn edge_columns(h: usize, w: usize, like: &Tensor) -> Result<Tensor> {
    let mut v = vec![0f32; 9 * h * w];
    for t in 0..9 {
        for i in 0..h {
            for j in 0..w {
                let (y, x) = (i as isize + t as isize / 3 - 1, j as isize + t as isize % 3 - 1);
                let inside = y >= 0 && x >= 0 && y < h as isize && x < w as isize;
                v[(t * h + i) * w + j] = if inside { 0. } else { 1. };
            }
        }
    }
    Tensor::from_vec(v, (9, h * w), like.device())?.to_dtype(like.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_tensors::{max_diff, wave};
    use candle_core::{DType, Var};

    /// Against candle's own convolution and its gradients, for every branch: 1x1, few to many, many to few, equal.
    #[test]
    fn agrees_with_candle() -> Result<()> {
        for (c, o, k, h, w) in [
            (3, 5, 1, 4, 6),
            (2, 7, 3, 5, 4),
            (7, 2, 3, 4, 5),
            (3, 3, 3, 1, 1),
            (2, 3, 3, 2, 1),
            (40, 48, 3, 8, 8),
            (16, 17, 3, 7, 5),
            (18, 16, 3, 3, 6),
            (64, 64, 3, 32, 32),
            (130, 140, 3, 8, 8),
        ] {
            let b = 3;
            let x = Var::from_tensor(&wave(&[c, b, h, w], 0.37))?;
            let wt = Var::from_tensor(&wave(&[o, c, k, k], 0.91))?;
            let y = conv2d(&x, &wt)?;
            let want = x.transpose(0, 1)?.conv2d(&wt, k / 2, 1, 1, 1)?.transpose(0, 1)?;
            assert!(max_diff(&y, &want) < 1e-12, "{c} {o} {k}");
            let g = wave(&[o, b, h, w], 0.53);
            let ours = (y * &g)?.sum_all()?.backward()?;
            let theirs = (want * &g)?.sum_all()?.backward()?;
            for v in [x.as_tensor(), wt.as_tensor()] {
                let d = max_diff(ours.get(v).unwrap(), theirs.get(v).unwrap());
                assert!(d < 1e-11, "{c} {o} {k}: {d}");
            }
            // In f32 a sum of n products is off by at most (n + 2) u sum |w x|, with the operands' own rounding in it.
            let f = |t: &Var| t.as_tensor().to_dtype(DType::F32).unwrap();
            let single = conv2d(&f(&x), &f(&wt))?.to_dtype(DType::F64)?;
            let bound = (conv2d(&x.abs()?, &wt.abs()?)? * ((c * k * k + 2) as f64 * 0.5f64.powi(24)))?;
            let over = ((single - conv2d(&x, &wt)?)?.abs()? - bound)?.flatten_all()?.max(0)?;
            assert!(over.to_scalar::<f64>()? <= 0., "{c} {o} {k}: f32 is off by more than rounding explains");
        }
        Ok(())
    }

    #[test]
    fn channel_mix_is_a_matrix_at_each_pixel() -> Result<()> {
        let x = Var::from_tensor(&wave(&[3, 4, 2, 5], 0.3))?;
        let w = Var::from_tensor(&wave(&[4, 4], 0.7))?;
        let want = w.unsqueeze(0)?.broadcast_matmul(&x.flatten_from(2)?)?.reshape((3, 4, 2, 5))?;
        let y = channel_mix(&x, &w)?;
        assert!(max_diff(&y, &want) < 1e-13);
        let g = wave(&[3, 4, 2, 5], 0.9);
        let ours = (y * &g)?.sum_all()?.backward()?;
        let theirs = (want * &g)?.sum_all()?.backward()?;
        for v in [x.as_tensor(), w.as_tensor()] {
            assert!(max_diff(ours.get(v).unwrap(), theirs.get(v).unwrap()) < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn wrong_sizes_are_named() {
        let e = conv2d(&wave(&[3, 1, 4, 4], 1.), &wave(&[5, 2, 3, 3], 1.)).unwrap_err().to_string();
        assert!(e.contains("3 channels") && e.contains("takes 2"), "{e}");
        assert!(conv2d(&wave(&[3, 1, 4, 4], 1.), &wave(&[5, 3, 5, 5], 1.)).is_err());
    }
}
