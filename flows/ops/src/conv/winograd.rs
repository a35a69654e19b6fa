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
//! In bf16 the factors that are rounded are the sums B^T d B, A g A^T and the kernel's transform: for 64 and for 128 channels
//! results and gradients are off by 2.0 to 2.1 times, in the root mean square, what rounding w, x and g themselves gives (a
//! test of `cpu` measures it where there are no tiles), for 2.25 times fewer products.
//!
//! The gradient of the weights is the adjoint: with M = A g A^T for each tile g of the output's gradient, that of
//! G w G^T is the product of M and B^T d B over tiles; the gradient of the input is the convolution with the kernel turned
//! and transposed.
//!
//! A block is a few rows of tiles, sized for a core's second-level cache; each thread has its own blocks and buffers.

// Small arrays of vectors share their indices.
#![allow(clippy::needless_range_loop)]

use super::rows::{Sink, Source, Tiles};
use crate::gemm::{Mat, MatMut};
use crate::inner::Inner;
use crate::real::Real;
use crate::simd::{self, Element, Job, One, Steps, Vector, Width, wide};
use crate::threads::unwritten;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Positions of the transformed 4x4 patch.
const N: usize = 16;

/// Elements from one position's products to the next's. The 48 extra ones keep the sixteen streams from being a power of two
/// apart, where they would share lines of the first-level cache.
fn step(channels: usize, tiles: usize) -> usize {
    channels * tiles + 48
}

/// G w G^T of every pair of channels: (O, 16, C).
pub(crate) struct Kernel<I: Inner> {
    u: Vec<I::Real>,
    o: usize,
    c: usize,
    /// The 16 factors, forward and back, from their first use on.
    packed: [OnceLock<Vec<I::Packed>>; 2],
}

/// G w G^T of one output channel's kernels w (C, 9), to (16, C).
struct KernelRow<'a, T> {
    w: &'a [T],
    u: &'a mut [T],
}

impl<T: Real> Job for KernelRow<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let half = T::of(0.5);
        // G has rows (1,0,0), (1,1,1)/2, (1,-1,1)/2, (0,0,1).
        let g = |a: T, b: T, c: T| [a, (a + b + c) * half, (a - b + c) * half, c];
        const L: usize = 16;
        let c = self.u.len() / N;
        let mut at = 0;
        while at < c {
            let m = L.min(c - at);
            let mut w = [[T::default(); L]; 9];
            for j in 0..m {
                for t in 0..9 {
                    w[t][j] = self.w[(at + j) * 9 + t];
                }
            }
            let mut cols = [[[T::default(); L]; 4]; 3];
            for k in 0..3 {
                for j in 0..L {
                    let v = g(w[k][j], w[3 + k][j], w[6 + k][j]);
                    for i in 0..4 {
                        cols[k][i][j] = v[i];
                    }
                }
            }
            for i in 0..4 {
                let mut rows = [[T::default(); L]; 4];
                for j in 0..L {
                    let v = g(cols[0][i][j], cols[1][i][j], cols[2][i][j]);
                    for k in 0..4 {
                        rows[k][j] = v[k];
                    }
                }
                for k in 0..4 {
                    self.u[(4 * i + k) * c + at..][..m].copy_from_slice(&rows[k][..m]);
                }
            }
            at += m;
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
    fn run<W: Width>(self) {
        let half = T::of(0.5);
        let g = |a: T, b: T, c: T, d: T| [a + (b + c) * half, (b - c) * half, (b + c) * half + d];
        const L: usize = 16;
        let c = self.u.len() / N;
        let mut at = 0;
        while at < c {
            let m = L.min(c - at);
            let mut u = [[T::default(); L]; N];
            for (k, u) in u.iter_mut().enumerate() {
                u[..m].copy_from_slice(&self.u[k * c + at..][..m]);
            }
            let mut cols = [[[T::default(); L]; 3]; 4];
            for k in 0..4 {
                for j in 0..L {
                    let v = g(u[k][j], u[4 + k][j], u[8 + k][j], u[12 + k][j]);
                    for i in 0..3 {
                        cols[k][i][j] = v[i];
                    }
                }
            }
            for i in 0..3 {
                for j in 0..m {
                    let v = g(cols[0][i][j], cols[1][i][j], cols[2][i][j], cols[3][i][j]);
                    self.w[(at + j) * 9 + 3 * i..][..3].copy_from_slice(&v);
                }
            }
            at += m;
        }
    }
}

impl<I: Inner> Kernel<I> {
    /// Of w (O, C, 3, 3).
    pub(crate) fn new(w: &[I::Real], o: usize, c: usize) -> Self {
        // SAFETY: each output channel's row is written whole.
        let mut u = unsafe { unwritten(N * o * c) };
        u.par_chunks_mut((N * c).max(1))
            .zip(w.par_chunks((9 * c).max(1)))
            .with_min_len(1 + (1 << 12) / c.max(1))
            .for_each(|(u, w)| wide(KernelRow { w, u }));
        Self { u, o, c, packed: [OnceLock::new(), OnceLock::new()] }
    }

    /// The factor of position p: (O, C), or with `back` (C, O).
    ///
    /// Turning a kernel permutes the rows of G w: (3, 1, 2, 0). So the gradient needs no other transform.
    fn factor(&self, back: bool, p: usize) -> Mat<'_, I::Real> {
        let turned = [3, 1, 2, 0];
        let p = if back { 4 * turned[p / 4] + turned[p % 4] } else { p };
        let (u, stride) = (&self.u[p * self.c..], N * self.c);
        if back { Mat::transposed(u, stride) } else { Mat::rows(u, stride) }
    }

    fn packed(&self, back: bool) -> &[I::Packed] {
        let (m, k) = if back { (self.c, self.o) } else { (self.o, self.c) };
        self.packed[usize::from(back)]
            .get_or_init(|| (0..N).map(|p| I::pack(self.factor(back, p), m, k)).collect())
    }
}

/// A thread's buffers.
pub(crate) struct Scratch<T> {
    v: Vec<T>,
    m: Vec<T>,
    rows: Vec<T>,
    turned: Vec<T>,
}

impl<T: Real> Scratch<T> {
    /// Empty; they grow to what is asked of them.
    pub(crate) fn new() -> Self {
        Self { v: Vec::new(), m: Vec::new(), rows: Vec::new(), turned: Vec::new() }
    }

    fn grow(&mut self, t: Tiles, c: usize, o: usize, tiles: usize) {
        for (v, n) in [
            (&mut self.v, N * step(c, tiles)),
            (&mut self.m, N * step(o, tiles)),
            (&mut self.rows, 6 * (2 * tiles + 3 * t.cols()) + 4 * t.cols()),
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
    fn run<W: Width>(self) {
        let (t, n, per_image) = (self.t, self.t.cols(), self.t.rows());
        let tiles = self.rows.len() * n;
        let step = step(self.c, tiles);
        // Rows of pixels under these rows of tiles, one above and one below, each as its columns 2j - 1, 2j, 2j + 1, 2j + 2.
        let most = 2 * tiles + 2 * n;
        let (flat, split) = self.buffer.split_at_mut(2 * most + 2 * n);
        let (a, split) = split.split_at_mut(most);
        let (b, split) = split.split_at_mut(most);
        let (c, d) = split.split_at_mut(most);
        for channel in 0..self.c {
            let mut start = self.rows.start;
            while start < self.rows.end {
                // As many as belong to one image.
                let (image, first) = (start / per_image, start % per_image);
                let rows = (self.rows.end - start).min(per_image - first);
                let lines = 2 * rows + 2;
                for (k, line) in flat.chunks_exact_mut(2 * n).take(lines).enumerate() {
                    let i = (2 * first + k).wrapping_sub(1);
                    if i >= t.h {
                        line.fill(T::default());
                    } else {
                        line[2 * n - 1] = T::default();
                        self.source.row(channel, image, i, &mut line[..t.w]);
                    }
                }
                let len = lines * n;
                simd::split::<T, T::Steps<W>>(&flat[..2 * len], &mut b[..len], &mut c[..len]);
                a[1..len].copy_from_slice(&c[..len - 1]);
                d[..len - 1].copy_from_slice(&b[1..len]);
                for line in 0..lines {
                    a[line * n] = T::default();
                    d[line * n + n - 1] = T::default();
                }
                let x = [&a[..len], &b[..len], &c[..len], &d[..len]];
                let out = channel * tiles + (start - self.rows.start) * n;
                for q in 0..rows {
                    let at = 2 * q * n;
                    let mut j = 0;
                    while j < n {
                        let (from, to) = (at + j, out + q * n + j);
                        let l = n - j;
                        j += if l >= Wide::<T, W>::LANES {
                            patch::<T, Wide<T, W>>(&x, from, n, self.v, to, step)
                        } else if l >= Eight::<T, W>::LANES {
                            patch::<T, Eight<T, W>>(&x, from, n, self.v, to, step)
                        } else if l >= Four::<T, W>::LANES {
                            patch::<T, Four<T, W>>(&x, from, n, self.v, to, step)
                        } else {
                            patch::<T, One<T>>(&x, from, n, self.v, to, step)
                        };
                    }
                }
                start += rows;
            }
        }
    }
}

type Wide<T, W> = <<T as Element>::Steps<W> as Steps<T>>::Wide;
type Eight<T, W> = <<T as Element>::Steps<W> as Steps<T>>::Eight;
type Four<T, W> = <<T as Element>::Steps<W> as Steps<T>>::Four;

#[inline(always)]
fn load<T, V: Vector<T>, const N: usize>(x: &[&[T]; N], from: usize) -> [V; N] {
    let mut v = [V::load(&x[0][from..]); N];
    for k in 1..N {
        v[k] = V::load(&x[k][from..]);
    }
    v
}

#[inline(always)]
fn add<T, V: Vector<T>>(a: [V; 4], b: [V; 4]) -> [V; 4] {
    [a[0].add(b[0]), a[1].add(b[1]), a[2].add(b[2]), a[3].add(b[3])]
}

#[inline(always)]
fn sub<T, V: Vector<T>>(a: [V; 4], b: [V; 4]) -> [V; 4] {
    [a[0].sub(b[0]), a[1].sub(b[1]), a[2].sub(b[2]), a[3].sub(b[3])]
}

/// A^T v: A^T has rows (1,1,1,0), (0,1,-1,-1).
#[inline(always)]
fn ends<T, V: Vector<T>>(v: [V; 4]) -> [V; 2] {
    [v[0].add(v[1]).add(v[2]), v[1].sub(v[2]).sub(v[3])]
}

/// B^T d B of patches side by side: columns `x` of four rows, n apart from `from`, to `v` at `to`, positions `step` apart.
/// Returns how many.
#[inline(always)]
fn patch<T: Real, V: Vector<T>>(
    x: &[&[T]; 4],
    from: usize,
    n: usize,
    v: &mut [T],
    to: usize,
    step: usize,
) -> usize {
    // Functions and no closures from here on: see `Job`.
    let [d0, d1, d2, d3]: [[V; 4]; 4] =
        [load(x, from), load(x, from + n), load(x, from + 2 * n), load(x, from + 3 * n)];
    // B^T has rows (1,0,-1,0), (0,1,1,0), (0,-1,1,0), (0,1,0,-1).
    let rows = [sub(d0, d2), add(d1, d2), sub(d2, d1), sub(d1, d3)];
    for (i, w) in rows.into_iter().enumerate() {
        let out = [w[0].sub(w[2]), w[1].add(w[2]), w[2].sub(w[1]), w[1].sub(w[3])];
        for (k, u) in out.into_iter().enumerate() {
            u.store(&mut v[(4 * i + k) * step + to..]);
        }
    }
    V::LANES
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
    fn run<W: Width>(self) {
        let (t, n, per_image) = (self.t, self.t.cols(), self.t.rows());
        let tiles = self.rows.len() * n;
        let step = step(self.o, tiles);
        let (flat, split) = self.buffer.split_at_mut(4 * tiles);
        let (even, odd) = split.split_at_mut(2 * tiles);
        let odd = &mut odd[..2 * tiles];
        for o in 0..self.o {
            for (r, lines) in self.rows.clone().zip(flat.chunks_exact_mut(4 * n)) {
                let (image, y) = (r / per_image, 2 * (r % per_image));
                for (k, line) in lines.chunks_exact_mut(2 * n).enumerate() {
                    if y + k >= t.h {
                        line.fill(T::default());
                    } else {
                        line[2 * n - 1] = T::default();
                        self.source.row(o, image, y + k, &mut line[..t.w]);
                    }
                }
            }
            simd::split::<T, T::Steps<W>>(flat, even, odd);
            let x = [&even[..], &odd[..]];
            for q in 0..self.rows.len() {
                let mut j = 0;
                while j < n {
                    let (from, to) = (2 * q * n + j, o * tiles + q * n + j);
                    let l = n - j;
                    j += if l >= Wide::<T, W>::LANES {
                        spread::<T, Wide<T, W>>(&x, from, n, self.m, to, step)
                    } else if l >= Eight::<T, W>::LANES {
                        spread::<T, Eight<T, W>>(&x, from, n, self.m, to, step)
                    } else if l >= Four::<T, W>::LANES {
                        spread::<T, Four<T, W>>(&x, from, n, self.m, to, step)
                    } else {
                        spread::<T, One<T>>(&x, from, n, self.m, to, step)
                    };
                }
            }
        }
    }
}

/// A g A^T of tiles side by side: columns `x` of two rows, n apart from `from`, to `m` at `to`, positions `step` apart.
/// Returns how many.
#[inline(always)]
fn spread<T: Real, V: Vector<T>>(
    x: &[&[T]; 2],
    from: usize,
    n: usize,
    m: &mut [T],
    to: usize,
    step: usize,
) -> usize {
    let (a, b): ([V; 2], [V; 2]) = (load(x, from), load(x, from + n));
    let zero = a[0].sub(a[0]);
    // A has rows (1,0), (1,1), (1,-1), (0,-1).
    let rows = [
        a,
        [a[0].add(b[0]), a[1].add(b[1])],
        [a[0].sub(b[0]), a[1].sub(b[1])],
        [zero.sub(b[0]), zero.sub(b[1])],
    ];
    for (i, [e, d]) in rows.into_iter().enumerate() {
        for (k, u) in [e, e.add(d), e.sub(d), zero.sub(d)].into_iter().enumerate() {
            u.store(&mut m[(4 * i + k) * step + to..]);
        }
    }
    V::LANES
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
    fn run<W: Width>(self) {
        let (t, n, per_image) = (self.t, self.t.cols(), self.t.rows());
        let tiles = self.rows.len() * n;
        let step = step(self.o, tiles);
        let out = &mut self.buffer[..4 * n];
        for o in 0..self.o {
            for (q, r) in self.rows.clone().enumerate() {
                let (image, y) = (r / per_image, 2 * (r % per_image));
                let at = o * tiles + q * n;
                let mut j = 0;
                while j < n {
                    let l = n - j;
                    j += if l >= Wide::<T, W>::LANES {
                        gather::<T, Wide<T, W>>(self.m, at + j, step, out, j, n)
                    } else if l >= Eight::<T, W>::LANES {
                        gather::<T, Eight<T, W>>(self.m, at + j, step, out, j, n)
                    } else if l >= Four::<T, W>::LANES {
                        gather::<T, Four<T, W>>(self.m, at + j, step, out, j, n)
                    } else {
                        gather::<T, One<T>>(self.m, at + j, step, out, j, n)
                    };
                }
                let (above, below) = out.split_at(2 * n);
                self.sink.row(o, image, y, &above[..t.w]);
                if y + 1 < t.h {
                    self.sink.row(o, image, y + 1, &below[..t.w]);
                }
            }
        }
    }
}

/// A^T m A of tiles side by side from the j-th of a row, as two rows of pixels of 2n. Returns how many.
#[inline(always)]
fn gather<T: Real, V: Vector<T>>(
    m: &[T],
    at: usize,
    step: usize,
    out: &mut [T],
    j: usize,
    n: usize,
) -> usize {
    let mut s = [[V::load(&m[at..]); 2]; 4];
    for (c, s) in s.iter_mut().enumerate() {
        let at = at + c * step;
        *s = ends([
            V::load(&m[at..]),
            V::load(&m[at + 4 * step..]),
            V::load(&m[at + 8 * step..]),
            V::load(&m[at + 12 * step..]),
        ]);
    }
    for i in 0..2 {
        let [even, odd] = ends([s[0][i], s[1][i], s[2][i], s[3][i]]);
        V::weave(even, odd, &mut out[2 * (i * n + j)..]);
    }
    V::LANES
}

/// Rows of tiles in a block that holds patches of `channels` channels. A product needs some 64 tiles to be worth its
/// packing; up to there half a core's second-level cache is the measure.
fn block(t: Tiles, channels: usize) -> usize {
    let most = (640 << 10) / (N * channels * 4).max(1);
    // 128 where the cache holds too few: the transformed kernel, larger than all else, is then read less often.
    let tiles = if most >= 64 { most / 64 * 64 } else { 128 };
    (tiles / t.cols()).max(1)
}

/// The convolution of the rows of tiles `range` (counted over all images): from C channels to O, or, with `back`, what takes
/// the gradient of that convolution's output to its input's, from O to C.
pub(crate) fn convolve<T: Real, I: Inner<Real = T>>(
    kernel: &Kernel<I>,
    back: bool,
    t: Tiles,
    range: Range<usize>,
    s: &mut Scratch<T>,
    source: &impl Source<T>,
    sink: &mut impl Sink<T>,
) {
    let (inputs, outputs) = if back { (kernel.o, kernel.c) } else { (kernel.c, kernel.o) };
    let most = block(t, inputs + outputs);
    let packed = kernel.packed(back);
    let mut start = range.start;
    while start < range.end {
        let rows = start..(start + most).min(range.end);
        let tiles = rows.len() * t.cols();
        s.grow(t, inputs, outputs, tiles);
        let v = &mut s.v[..N * step(inputs, tiles)];
        wide(Patches { t, c: inputs, rows: rows.clone(), source, buffer: &mut s.rows, v });
        for p in 0..N {
            I::product(
                (outputs, tiles, inputs),
                (kernel.factor(back, p), &packed[p]),
                Mat::rows(&v[p * step(inputs, tiles)..][..inputs * tiles], tiles),
                MatMut::rows(&mut s.m[p * step(outputs, tiles)..][..outputs * tiles], tiles),
                false,
            );
        }
        let m = &s.m[..N * step(outputs, tiles)];
        wide(Gather { t, o: outputs, rows: rows.clone(), m, buffer: &mut s.rows, sink });
        start = rows.end;
    }
}

/// A sum of gradients of G w G^T, (O, 16, C).
pub(crate) struct KernelGrad<T> {
    u: Vec<T>,
    o: usize,
    c: usize,
}

impl<T: Real> KernelGrad<T> {
    /// Zero.
    pub(crate) fn new(o: usize, c: usize) -> Self {
        Self { u: vec![T::default(); N * o * c], o, c }
    }

    /// Adds the share of the rows of tiles `range`, from the convolution's input and the gradient of its output.
    pub(crate) fn add<I: Inner<Real = T>>(
        &mut self,
        t: Tiles,
        range: Range<usize>,
        s: &mut Scratch<T>,
        input: &impl Source<T>,
        grad: &impl Source<T>,
    ) {
        let (o, c) = (self.o, self.c);
        let most = block(t, c + o);
        let mut start = range.start;
        while start < range.end {
            let rows = start..(start + most).min(range.end);
            let tiles = rows.len() * t.cols();
            s.grow(t, c, o, tiles);
            let (v, m) = (&mut s.v[..N * step(c, tiles)], &mut s.m[..N * step(o, tiles)]);
            wide(Patches { t, c, rows: rows.clone(), source: input, buffer: &mut s.rows, v });
            wide(Spread { t, o, rows: rows.clone(), source: grad, buffer: &mut s.rows, m });
            for p in 0..N {
                I::add_abt(
                    (o, c, tiles),
                    (&m[p * step(o, tiles)..], tiles),
                    (&v[p * step(c, tiles)..], tiles),
                    (&mut self.u[p * c..], N * c),
                    &mut s.turned,
                );
            }
            start = rows.end;
        }
    }

    /// The gradient of w (O, C, 3, 3) from all sums, added in order.
    pub(crate) fn finish(parts: &[Self]) -> Vec<T> {
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
