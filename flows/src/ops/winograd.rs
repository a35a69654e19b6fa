//! 3x3 convolution by Winograd's F(2x2, 3x3) (Lavin and Gray 2015), the fast path where both sides have many channels.
//!
//! ```text
//! Y = A^T [ (G w G^T) . (B^T d B) ] A
//! ```
//!
//! for each 2x2 tile Y of the output and the 4x4 patch d under it: 16 products a tile and channel pair where the sum has 36.
//! Over channels and tiles that is 16 matrix products, and what is written around them is 4 values a pixel where columns
//! ("im2col") are 9. B and A hold 0 and ±1, G halves, so rounding errors stay those of the direct sum within a small factor;
//! F(4x4) would save more and lose two digits, which a flow's inverse cannot spare.
//!
//! The gradient of the weights is the adjoint: with M = A g A^T for each tile g of the output's gradient, that of
//! G w G^T is the product of M and B^T d B over tiles; the gradient of the input is the convolution with the kernel turned
//! and transposed.
//!
//! A block is a few rows of tiles, sized for a core's second-level cache; each thread has its own blocks and buffers.

use super::gemm::{Mat, MatMut, Real, gemm};
use super::simd::{Job, wide};
use rayon::prelude::*;
use std::ops::Range;

/// Positions of the transformed 4x4 patch.
const N: usize = 16;

/// Elements from one position's products to the next's: a few lines more than the products themselves, for sixteen streams
/// a power of two apart would fight for the same lines of the first-level cache.
fn step(channels: usize, tiles: usize) -> usize {
    channels * tiles + 48
}

/// G w G^T of every pair of channels: (O, 16, C).
pub(super) struct Kernel<T> {
    u: Vec<T>,
    o: usize,
    c: usize,
}

/// G w G^T of one output channel's kernels w (C, 9), to (16, C).
struct KernelRow<'a, T> {
    w: &'a [T],
    u: &'a mut [T],
}

impl<T: Real> Job for KernelRow<'_, T> {
    #[inline(always)]
    fn run(self) {
        let half = T::of(0.5);
        // G has rows (1,0,0), (1,1,1)/2, (1,-1,1)/2, (0,0,1).
        let g = |a: T, b: T, c: T| [a, (a + b + c) * half, (a - b + c) * half, c];
        let c = self.u.len() / N;
        let mut rows = self.u.chunks_exact_mut(c);
        let u: [&mut [T]; N] = std::array::from_fn(|_| rows.next().expect("sixteen"));
        for (j, w) in self.w.chunks_exact(9).enumerate() {
            let cols: [[T; 4]; 3] = std::array::from_fn(|k| g(w[k], w[3 + k], w[6 + k]));
            for i in 0..4 {
                let row = g(cols[0][i], cols[1][i], cols[2][i]);
                for k in 0..4 {
                    u[4 * i + k][j] = row[k];
                }
            }
        }
    }
}

/// G^T u G of one output channel's u (16, C), to (C, 9): the adjoint.
struct KernelRowBack<'a, T> {
    u: &'a [T],
    w: &'a mut [T],
}

impl<T: Real> Job for KernelRowBack<'_, T> {
    #[inline(always)]
    fn run(self) {
        let half = T::of(0.5);
        let g = |a: T, b: T, c: T, d: T| [a + (b + c) * half, (b - c) * half, (b + c) * half + d];
        let c = self.u.len() / N;
        for (j, w) in self.w.chunks_exact_mut(9).enumerate() {
            let at = |i: usize, k: usize| self.u[(4 * i + k) * c + j];
            let cols: [[T; 3]; 4] = std::array::from_fn(|k| g(at(0, k), at(1, k), at(2, k), at(3, k)));
            for i in 0..3 {
                let row = g(cols[0][i], cols[1][i], cols[2][i], cols[3][i]);
                w[3 * i..3 * i + 3].copy_from_slice(&row);
            }
        }
    }
}

impl<T: Real> Kernel<T> {
    /// Of w (O, C, 3, 3).
    pub(super) fn new(w: &[T], o: usize, c: usize) -> Self {
        let mut u = vec![T::default(); N * o * c];
        u.par_chunks_mut((N * c).max(1))
            .zip(w.par_chunks((9 * c).max(1)))
            .with_min_len(1 + (1 << 12) / c.max(1))
            .for_each(|(u, w)| wide(KernelRow { w, u }));
        Self { u, o, c }
    }
}

/// An image's sides and the tiles that cover it.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) h: usize,
    pub(super) w: usize,
}

impl Tiles {
    /// Rows of tiles of an image.
    pub(super) fn rows(self) -> usize {
        self.h.div_ceil(2)
    }

    /// Tiles of a row.
    fn cols(self) -> usize {
        self.w.div_ceil(2)
    }

    /// Rows of tiles in a block that holds patches of `channels` channels. A product needs some 64 tiles to be worth its
    /// packing; up to there half a core's second-level cache is the measure.
    fn block(self, channels: usize) -> usize {
        let most = (640 << 10) / (N * channels * 4).max(1);
        // 128 where the cache holds too few: the transformed kernel, larger than all else, is then read less often.
        let tiles = if most >= 64 { most / 64 * 64 } else { 128 };
        (tiles / self.cols()).max(1)
    }
}

/// Where rows of pixels come from.
pub(super) trait Source<T>: Sync {
    /// Row i of channel c of an image. To be `#[inline(always)]`.
    fn row(&self, c: usize, image: usize, i: usize, out: &mut [T]);
}

/// Where rows of pixels go.
pub(super) trait Sink<T> {
    /// Row i of channel o of an image. To be `#[inline(always)]`.
    fn row(&mut self, o: usize, image: usize, i: usize, row: &[T]);
}

/// (C, B, H, W) in memory.
#[derive(Clone, Copy)]
pub(super) struct Plane<'a, T> {
    pub(super) x: &'a [T],
    pub(super) t: Tiles,
    pub(super) images: usize,
}

impl<'a, T> Plane<'a, T> {
    /// Row i of channel c of an image.
    #[inline(always)]
    pub(super) fn slice(&self, c: usize, image: usize, i: usize) -> &'a [T] {
        &self.x[((c * self.images + image) * self.t.h + i) * self.t.w..][..self.t.w]
    }
}

impl<T: Real> Source<T> for Plane<'_, T> {
    #[inline(always)]
    fn row(&self, c: usize, image: usize, i: usize, out: &mut [T]) {
        out.copy_from_slice(self.slice(c, image, i));
    }
}

/// A thread's buffers.
pub(super) struct Scratch<T> {
    v: Vec<T>,
    m: Vec<T>,
    rows: Vec<T>,
}

impl<T: Real> Scratch<T> {
    /// Empty; they grow to what is asked of them.
    pub(super) fn new() -> Self {
        Self { v: Vec::new(), m: Vec::new(), rows: Vec::new() }
    }

    fn grow(&mut self, t: Tiles, c: usize, o: usize, tiles: usize) {
        for (v, n) in [
            (&mut self.v, N * step(c, tiles)),
            (&mut self.m, N * step(o, tiles)),
            (&mut self.rows, 2 * t.cols() + 8 * (t.cols() + 1)),
        ] {
            if v.len() < n {
                v.resize(n, T::default());
            }
        }
    }
}

/// B^T d B of the patches of some rows of tiles, to v (16, C, tiles).
struct Patches<'a, T, S> {
    t: Tiles,
    c: usize,
    rows: Range<usize>,
    source: &'a S,
    buffer: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Real, S: Source<T>> Job for Patches<'_, T, S> {
    #[inline(always)]
    fn run(self) {
        let (t, n, per_image) = (self.t, self.t.cols(), self.t.rows());
        let tiles = self.rows.len() * n;
        let len = n + 1;
        let (raw, split) = self.buffer.split_at_mut(2 * n);
        let raw = &mut raw[..t.w];
        for c in 0..self.c {
            for (q, r) in self.rows.clone().enumerate() {
                let (image, y) = (r / per_image, 2 * (r % per_image));
                // Row y - 1 + k is in place (y - 1 + k) mod 4: of four rows a row of tiles shares two with the one above.
                let first = if q == 0 || y == 0 { 0 } else { 2 };
                for k in first..4 {
                    let slot = (y + k + 3) % 4;
                    let (e, o) = split[2 * slot * len..][..2 * len].split_at_mut(len);
                    let i = (y + k).wrapping_sub(1);
                    if i >= t.h {
                        e.fill(T::default());
                        o.fill(T::default());
                        continue;
                    }
                    self.source.row(c, image, i, raw);
                    // Even and odd columns from one before the image: e[j] = x[2j - 1], o[j] = x[2j].
                    e[0] = T::default();
                    for ((e, o), x) in e[1..].iter_mut().zip(o.iter_mut()).zip(raw.as_chunks::<2>().0) {
                        *o = x[0];
                        *e = x[1];
                    }
                    let pairs = t.w / 2;
                    o[pairs..].fill(T::default());
                    if t.w % 2 == 1 {
                        o[pairs] = raw[t.w - 1];
                        e[pairs + 1..].fill(T::default());
                    }
                }
                let row = |k: usize| split[2 * ((y + k + 3) % 4) * len..][..2 * len].split_at(len);
                for i in 0..4 {
                    // Row i of B^T: (1,0,-1,0), (0,1,1,0), (0,-1,1,0), (0,1,0,-1).
                    let (a, b, sign) = [(0, 2, -1.), (1, 2, 1.), (2, 1, -1.), (1, 3, -1.)][i];
                    let ((ea, oa), (eb, ob), sign) = (row(a), row(b), T::of(sign));
                    let step = step(self.c, tiles);
                    let mut out = self.v[4 * i * step + c * tiles..].chunks_mut(step);
                    let mut next = || &mut out.next().expect("four positions")[q * n..][..n];
                    let (v0, v1, v2, v3) = (next(), next(), next(), next());
                    let (ea, oa, eb, ob) = (&ea[..len], &oa[..len], &eb[..len], &ob[..len]);
                    for j in 0..n {
                        let (e0, o0) = (ea[j] + sign * eb[j], oa[j] + sign * ob[j]);
                        let (e1, o1) = (ea[j + 1] + sign * eb[j + 1], oa[j + 1] + sign * ob[j + 1]);
                        v0[j] = e0 - e1;
                        v1[j] = o0 + e1;
                        v2[j] = e1 - o0;
                        v3[j] = o0 - o1;
                    }
                }
            }
        }
    }
}

/// A g A^T of the tiles of some rows of tiles, to m (16, O, tiles).
struct Spread<'a, T, S> {
    t: Tiles,
    o: usize,
    rows: Range<usize>,
    source: &'a S,
    buffer: &'a mut [T],
    m: &'a mut [T],
}

impl<T: Real, S: Source<T>> Job for Spread<'_, T, S> {
    #[inline(always)]
    fn run(self) {
        let (t, n, per_image) = (self.t, self.t.cols(), self.t.rows());
        let tiles = self.rows.len() * n;
        let (raw, split) = self.buffer.split_at_mut(2 * n);
        for o in 0..self.o {
            for (q, r) in self.rows.clone().enumerate() {
                let (image, y) = (r / per_image, 2 * (r % per_image));
                for k in 0..2 {
                    let (even, odd) = split[2 * k * n..][..2 * n].split_at_mut(n);
                    if y + k >= t.h {
                        even.fill(T::default());
                        odd.fill(T::default());
                        continue;
                    }
                    raw[2 * n - 1] = T::default();
                    self.source.row(o, image, y + k, &mut raw[..t.w]);
                    for ((e, d), x) in even.iter_mut().zip(odd.iter_mut()).zip(raw.as_chunks::<2>().0) {
                        *e = x[0];
                        *d = x[1];
                    }
                }
                let (e0, rest) = split.split_at(n);
                let (o0, rest) = rest.split_at(n);
                let (e1, rest) = rest.split_at(n);
                let o1 = &rest[..n];
                for i in 0..4 {
                    // Row i of A: (1,0), (1,1), (1,-1), (0,-1).
                    let (p, s) = [(1., 0.), (1., 1.), (1., -1.), (0., -1.)][i];
                    let (p, s) = (T::of(p), T::of(s));
                    let step = step(self.o, tiles);
                    let mut out = self.m[4 * i * step + o * tiles..].chunks_mut(step);
                    let mut next = || &mut out.next().expect("four positions")[q * n..][..n];
                    let (m0, m1, m2, m3) = (next(), next(), next(), next());
                    for j in 0..n {
                        let (e, d) = (p * e0[j] + s * e1[j], p * o0[j] + s * o1[j]);
                        m0[j] = e;
                        m1[j] = e + d;
                        m2[j] = e - d;
                        m3[j] = -d;
                    }
                }
            }
        }
    }
}

/// A^T m A of m (16, O, tiles), row by row to the sink.
struct Gather<'a, T, S> {
    t: Tiles,
    o: usize,
    rows: Range<usize>,
    m: &'a [T],
    buffer: &'a mut [T],
    sink: &'a mut S,
}

impl<T: Real, S: Sink<T>> Job for Gather<'_, T, S> {
    #[inline(always)]
    fn run(self) {
        let (t, n, per_image) = (self.t, self.t.cols(), self.t.rows());
        let tiles = self.rows.len() * n;
        let step = step(self.o, tiles);
        let out = &mut self.buffer[..2 * n];
        for o in 0..self.o {
            for (q, r) in self.rows.clone().enumerate() {
                let (image, y) = (r / per_image, 2 * (r % per_image));
                let m = |r: usize, c: usize| &self.m[(4 * r + c) * step + o * tiles + q * n..][..n];
                for i in 0..2.min(t.h - y) {
                    // Row i of A^T: (1,1,1,0), (0,1,-1,-1).
                    let (rows, sign) = [([0, 1, 2], 1.), ([1, 2, 3], -1.)][i];
                    let sign = T::of(sign);
                    let a: [&[T]; 4] = std::array::from_fn(|c| m(rows[0], c));
                    let b: [&[T]; 4] = std::array::from_fn(|c| m(rows[1], c));
                    let d: [&[T]; 4] = std::array::from_fn(|c| m(rows[2], c));
                    for (j, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        let s = |c: usize| a[c][j] + sign * (b[c][j] + d[c][j]);
                        let (s0, s1, s2, s3) = (s(0), s(1), s(2), s(3));
                        *pair = [s0 + s1 + s2, s1 - s2 - s3];
                    }
                    self.sink.row(o, image, y + i, &out[..t.w]);
                }
            }
        }
    }
}

/// The convolution of the rows of tiles `range` (counted over all images): from C channels to O, or, with `back`, what takes
/// the gradient of that convolution's output to its input's, from O to C.
///
/// Turning a kernel permutes the rows of G w: (3, 1, 2, 0). So the way back needs no other transform.
pub(super) fn convolve<T: Real>(
    kernel: &Kernel<T>,
    back: bool,
    t: Tiles,
    range: Range<usize>,
    s: &mut Scratch<T>,
    source: &impl Source<T>,
    sink: &mut impl Sink<T>,
) {
    let (inputs, outputs) = if back { (kernel.o, kernel.c) } else { (kernel.c, kernel.o) };
    let block = t.block(inputs + outputs);
    let mut start = range.start;
    while start < range.end {
        let rows = start..(start + block).min(range.end);
        let tiles = rows.len() * t.cols();
        s.grow(t, inputs, outputs, tiles);
        let v = &mut s.v[..N * step(inputs, tiles)];
        wide(Patches { t, c: inputs, rows: rows.clone(), source, buffer: &mut s.rows, v });
        for p in 0..N {
            let turned = [3, 1, 2, 0];
            let u = if back { 4 * turned[p / 4] + turned[p % 4] } else { p };
            let stride = N * kernel.c;
            let u = &kernel.u[u * kernel.c..];
            gemm(
                (outputs, tiles, inputs),
                if back { Mat::transposed(u, stride) } else { Mat::rows(u, stride) },
                Mat::rows(&v[p * step(inputs, tiles)..][..inputs * tiles], tiles),
                MatMut::rows(&mut s.m[p * step(outputs, tiles)..][..outputs * tiles], tiles),
                T::of(1.),
                false,
                1,
            );
        }
        let m = &s.m[..N * step(outputs, tiles)];
        wide(Gather { t, o: outputs, rows: rows.clone(), m, buffer: &mut s.rows, sink });
        start = rows.end;
    }
}

/// A sum of gradients of G w G^T, (O, 16, C).
pub(super) struct KernelGrad<T> {
    u: Vec<T>,
    o: usize,
    c: usize,
}

impl<T: Real> KernelGrad<T> {
    /// Zero.
    pub(super) fn new(o: usize, c: usize) -> Self {
        Self { u: vec![T::default(); N * o * c], o, c }
    }

    /// Adds the share of the rows of tiles `range`, from the convolution's input and the gradient of its output.
    pub(super) fn add(
        &mut self,
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<T>,
        input: &impl Source<T>,
        grad: &impl Source<T>,
    ) {
        let (o, c) = (self.o, self.c);
        let block = t.block(c + o);
        let mut start = range.start;
        while start < range.end {
            let rows = start..(start + block).min(range.end);
            let tiles = rows.len() * t.cols();
            s.grow(t, c, o, tiles);
            let (v, m) = (&mut s.v[..N * step(c, tiles)], &mut s.m[..N * step(o, tiles)]);
            wide(Patches { t, c, rows: rows.clone(), source: input, buffer: &mut s.rows, v });
            wide(Spread { t, o, rows: rows.clone(), source: grad, buffer: &mut s.rows, m });
            for p in 0..N {
                gemm(
                    (o, c, tiles),
                    Mat::rows(&m[p * step(o, tiles)..][..o * tiles], tiles),
                    Mat::transposed(&v[p * step(c, tiles)..][..c * tiles], tiles),
                    MatMut::rows(&mut self.u[p * c..], N * c),
                    T::of(1.),
                    true,
                    1,
                );
            }
            start = rows.end;
        }
    }

    /// The gradient of w (O, C, 3, 3) from all sums, added in order.
    pub(super) fn finish(parts: &[Self]) -> Vec<T> {
        let (o, c) = parts.first().map_or((0, 0), |p| (p.o, p.c));
        let mut w = vec![T::default(); 9 * o * c];
        w.par_chunks_mut((9 * c).max(1)).with_min_len(1 + (1 << 12) / c.max(1)).enumerate().for_each(
            |(i, w)| {
                let mut sum = vec![T::default(); N * c];
                for p in parts {
                    for (a, &b) in sum.iter_mut().zip(&p.u[i * N * c..][..N * c]) {
                        *a += b;
                    }
                }
                wide(KernelRowBack { u: &sum, w });
            },
        );
        w
    }
}
