//! 3x3 convolution in bf16 by AMX tiles, without copies of the shifted image.
//!
//! ```text
//! y[o, q] = sum_t sum_c w_t[o, c] x[c, q + s_t],        t = 3 u + v,  s_t = (u - 1) pitch + (v - 1)
//! ```
//!
//! Rows of pixels lie one after the other with a zero between them, and a row of zeros between images: then every tap t is one and
//! the same shift of all positions q, and the nine products are one sum over taps and channels that stays in the registers. A
//! tile of x is read where it is shifted to, from words of two channels each. Positions between the rows are computed and
//! left out: 6 % of them for rows of 32 pixels, 27 % for images of 8 x 8.
//!
//! The gradient of the weights is the sum over positions of products of y's gradient and x shifted; its words hold two positions of
//! x, and since shifts are even and odd there are two copies of them.
//!
//! A tile that does not start with a line of the cache takes 1.5 times as long to multiply. Copies of x for the shifts by a pixel,
//! which would all start there, cost more than that: 1084 GFLOP/s instead of 1400 for 64 channels, 3x3, 32x32, batch 16, on
//! two cores.

use super::rows::{Sink, Source, Tiles};
use crate::gemm::bf16::pack::Panel;
use crate::gemm::bf16::tiles::{BLOCK, ROWS, STEP, TILE, Walk, block, within};
use crate::inner::Inner;
use crate::simd::{Job, Width, wide};
use half::bf16;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

/// Taps of a kernel.
const TAPS: usize = 9;

/// Kernels (O, C, 3, 3), rounded.
pub(crate) struct Kernel {
    /// (9, O, C).
    taps: Vec<bf16>,
    o: usize,
    c: usize,
    /// Tiles, forward and back, from their first use on.
    packed: [OnceLock<Vec<u32>>; 2],
}

impl Kernel {
    /// Of w (O, C, 3, 3).
    pub(crate) fn new(w: &[f32], o: usize, c: usize) -> Self {
        let mut taps = vec![bf16::ZERO; w.len()];
        for (i, w) in w.chunks_exact(TAPS).enumerate() {
            for (t, &v) in w.iter().enumerate() {
                taps[t * o * c + i] = <bf16 as Inner>::from_real(v);
            }
        }
        Self { taps, o, c, packed: [OnceLock::new(), OnceLock::new()] }
    }

    /// For each block of outputs, tap and step of the inputs: the tiles of the rows of the block. With `back` the kernel is turned
    /// and transposed.
    fn packed(&self, back: bool) -> &[u32] {
        self.packed[usize::from(back)].get_or_init(|| {
            let (o, c) = if back { (self.c, self.o) } else { (self.o, self.c) };
            let (rows, steps) = (o.div_ceil(ROWS), c.div_ceil(STEP));
            let mut out = vec![0; rows * TAPS * steps * TILE];
            for tile in 0..rows {
                let first = tile / 2 * 2;
                let tiles = (rows - first).min(2);
                for t in 0..TAPS {
                    let tap = &self.taps[if back { TAPS - 1 - t } else { t } * self.o * self.c..];
                    let (step, deep) = if back { (1, self.c) } else { (self.c, 1) };
                    let x = tap[tile * ROWS * step..].as_ptr();
                    let panel = Panel { x, step, deep, n: ROWS.min(o - tile * ROWS), k: c };
                    let at = (first * TAPS + t * tiles) * steps + tile - first;
                    // SAFETY: kernels are made for tiles only where the processor has them, and with them AVX512-BF16.
                    unsafe { panel.pack_rows(tiles * TILE, out[at * TILE..].as_mut_ptr()) };
                }
            }
            out
        })
    }
}

/// Some rows of pixels, with those above and below.
struct Lines {
    /// From one row to the next.
    pitch: usize,
    /// Image and row, `None` for a row of zeros.
    lines: Vec<Option<(usize, usize)>>,
    /// Of the rows that are computed: which of `lines`, image and row.
    inner: Vec<(usize, usize, usize)>,
    /// Numbers of a channel: all lines, and as many more as a shifted block may read. An odd number of lines of the cache.
    len: usize,
}

impl Lines {
    /// Of the rows of tiles `range`.
    fn new(t: Tiles, range: &Range<usize>) -> Self {
        let (mut lines, mut inner) = (Vec::new(), Vec::new());
        let line = |image: usize, i: usize| (i < t.h).then_some((image, i));
        for r in range.clone() {
            let (image, i) = (r / t.rows(), 2 * (r % t.rows()));
            if lines.is_empty() {
                lines.push(line(image, i.wrapping_sub(1)));
            }
            for i in i..(i + 2).min(t.h) {
                inner.push((lines.len(), image, i));
                lines.push(line(image, i));
            }
            if r + 1 == range.end || (r + 1) % t.rows() == 0 {
                lines.push(line(image, i + 2));
            }
        }
        let pitch = t.w + 1;
        let len = odd(1 + lines.len() * pitch + 1 + BLOCK);
        Self { pitch, lines, inner, len }
    }

    /// Where a line's first pixel is.
    fn at(&self, line: usize) -> usize {
        1 + line * self.pitch
    }

    /// Positions to compute, from the first pixel of the second line on: a multiple of [`BLOCK`].
    fn positions(&self) -> usize {
        ((self.lines.len() - 2) * self.pitch).next_multiple_of(BLOCK)
    }
}

/// At least n, in halves an odd number of lines of the cache, so that rows do not share its sets.
fn odd(n: usize) -> usize {
    n.div_ceil(32) / 2 * 64 + 32
}

/// Rows of pixels of some channels, to (channels, positions).
struct Fill<'a, S> {
    source: &'a S,
    lines: &'a Lines,
    channels: Range<usize>,
    w: usize,
    out: &'a mut [f32],
}

impl<S: Source<f32>> Job for Fill<'_, S> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { source, lines, channels, w, out } = self;
        for (channel, out) in channels.zip(out.chunks_exact_mut(lines.len)) {
            for (i, line) in lines.lines.iter().enumerate() {
                if let Some((image, y)) = *line {
                    source.row(channel, image, y, &mut out[lines.at(i)..][..w]);
                }
            }
        }
    }
}

/// Rows that are computed, rounded, to (channels, positions) from the first pixel of them on.
struct Round<'a, S> {
    source: &'a S,
    lines: &'a Lines,
    channels: usize,
    row: &'a mut [f32],
    out: &'a mut [bf16],
}

impl<S: Source<f32>> Job for Round<'_, S> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { source, lines, channels, row, out } = self;
        for (channel, out) in (0..channels).zip(out.chunks_exact_mut(lines.len)) {
            for &(line, image, y) in &lines.inner {
                source.row(channel, image, y, row);
                for (o, &v) in out[(line - 1) * lines.pitch..].iter_mut().zip(&*row) {
                    *o = <bf16 as Inner>::from_real(v);
                }
            }
        }
    }
}

/// Rows of results.
struct Drain<'a, S> {
    sink: &'a mut S,
    lines: &'a Lines,
    channels: usize,
    w: usize,
    stride: usize,
    y: &'a [f32],
}

impl<S: Sink<f32>> Job for Drain<'_, S> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { sink, lines, channels, w, stride, y } = self;
        for o in 0..channels {
            for &(line, image, i) in &lines.inner {
                sink.row(o, image, i, &y[o * stride + (line - 1) * lines.pitch..][..w]);
            }
        }
    }
}

/// A thread's buffers.
#[derive(Default)]
struct Buffers {
    row: Vec<f32>,
    x: Vec<f32>,
    g: Vec<bf16>,
    words: [Vec<u32>; 2],
    sums: Vec<f32>,
}

thread_local!(static BUFFERS: RefCell<Buffers> = RefCell::default());

/// `n` zeros.
fn zeros<T: Clone + Default>(v: &mut Vec<T>, n: usize) -> &mut [T] {
    v.clear();
    v.resize(n, T::default());
    v
}

/// `n` numbers of any value.
fn some<T: Clone + Default>(v: &mut Vec<T>, n: usize) -> &mut [T] {
    if v.len() < n {
        v.resize(n, T::default());
    }
    &mut v[..n]
}

/// Cuts rows of tiles into blocks of about `positions` pixels.
fn blocks(t: Tiles, range: Range<usize>, positions: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (positions / (2 * (t.w + 1))).max(1);
    range.clone().step_by(most).map(move |at| at..(at + most).min(range.end))
}

/// See [`super::three::Three::convolve`].
pub(crate) fn convolve(
    kernel: &Kernel,
    back: bool,
    t: Tiles,
    range: Range<usize>,
    source: &impl Source<f32>,
    sink: &mut impl Sink<f32>,
) {
    let (c, o) = if back { (kernel.o, kernel.c) } else { (kernel.c, kernel.o) };
    let packed = kernel.packed(back);
    BUFFERS.with_borrow_mut(|s| {
        // A quarter of a core's second-level cache for what is read, as much for what is written.
        for rows in blocks(t, range, (1 << 19) / (2 * c + 4 * o)) {
            let lines = &Lines::new(t, &rows);
            let stride = odd(lines.positions());
            let Buffers { x, words: [words, _], sums, .. } = &mut *s;
            let words = fill_words(source, lines, (c, t.w), x, words);
            let y = some(sums, o.next_multiple_of(ROWS) * stride);
            products(packed, words, lines, (c, o), (y, stride));
            wide(Drain { sink: &mut *sink, lines, channels: o, w: t.w, stride, y });
        }
    });
}

/// x as words of two channels, (C / 2, positions), zero from C on to the next multiple of [`STEP`].
fn fill_words<'a>(
    source: &impl Source<f32>,
    lines: &Lines,
    (c, w): (usize, usize),
    two: &mut Vec<f32>,
    words: &'a mut Vec<u32>,
) -> &'a [u32] {
    let two = zeros(two, 2 * lines.len);
    let words = some(words, c.next_multiple_of(STEP) / 2 * lines.len);
    for (pair, words) in words.chunks_exact_mut(lines.len).enumerate() {
        let channels = (2 * pair).min(c)..(2 * pair + 2).min(c);
        let k = channels.len();
        if k == 0 {
            words.fill(0);
            continue;
        }
        wide(Fill { source, lines, channels, w, out: two });
        let panel = Panel { x: two.as_ptr(), step: 1, deep: lines.len, n: lines.len, k };
        // SAFETY: a kernel of tiles is made only where there are tiles, and with them AVX512-BF16.
        unsafe { panel.pack(lines.len, words.as_mut_ptr()) };
    }
    words
}

/// y (O, positions) of packed kernels and words of x.
fn products(
    packed: &[u32],
    words: &[u32],
    lines: &Lines,
    (c, o): (usize, usize),
    (y, stride): (&mut [f32], usize),
) {
    let (steps, rows) = (c.div_ceil(STEP), o.div_ceil(ROWS));
    let shift = |t: usize| t / 3 * lines.pitch + t % 3;
    let b_steps: Vec<usize> = (0..TAPS * steps)
        .map(|i| (i % steps * STEP / 2 * lines.len + shift(i / steps)) * size_of::<u32>())
        .collect();
    let mut blocks = || {
        for q in (0..lines.positions()).step_by(BLOCK) {
            for row in (0..rows).step_by(2) {
                let tiles = (rows - row).min(2);
                let walk = Walk {
                    a: packed[row * TAPS * steps * TILE..].as_ptr().cast(),
                    a_row: STEP * size_of::<bf16>(),
                    a_below: TILE * size_of::<u32>(),
                    a_step: tiles * TILE * size_of::<u32>(),
                    b: words[q..].as_ptr().cast(),
                    b_row: lines.len * size_of::<u32>(),
                    b_steps: &b_steps,
                };
                let to = y[row * ROWS * stride + q..].as_mut_ptr();
                // SAFETY: `Lines::len` has what a shifted block reads, and y the rows of whole tiles.
                unsafe { block(walk, (to, stride), tiles == 2, false) };
            }
        }
    };
    // SAFETY: as in `convolve`.
    unsafe { within(&mut blocks) };
}

/// A sum of gradients of kernels.
pub(crate) struct KernelGrad {
    /// (9, O, C), O and C rounded up to whole blocks.
    u: Vec<f32>,
    o: usize,
    c: usize,
}

impl KernelGrad {
    /// Zero.
    pub(crate) fn new(o: usize, c: usize) -> Self {
        Self { u: vec![0.; TAPS * o.next_multiple_of(ROWS) * c.next_multiple_of(BLOCK)], o, c }
    }

    /// Adds the share of the rows of tiles `range`, from the convolution's input and the gradient of its output.
    pub(crate) fn add(
        &mut self,
        t: Tiles,
        range: Range<usize>,
        input: &impl Source<f32>,
        grad: &impl Source<f32>,
    ) {
        let (o, c) = (self.o, self.c);
        BUFFERS.with_borrow_mut(|s| {
            for rows in blocks(t, range, (1 << 19) / (4 * c + 2 * o)) {
                let lines = &Lines::new(t, &rows);
                let Buffers { row, x, g, words: [even, odd], .. } = &mut *s;
                let x = zeros(x, c * lines.len);
                wide(Fill { source: input, lines, channels: 0..c, w: t.w, out: x });
                let (row, g) = (some(row, t.w), zeros(g, o.next_multiple_of(ROWS) * lines.len));
                wide(Round { source: grad, lines, channels: o, row, out: g });
                let width = c.next_multiple_of(BLOCK);
                for (parity, words) in [&mut *even, &mut *odd].into_iter().enumerate() {
                    let k = lines.len - parity;
                    let words = some(words, k.div_ceil(2) * width);
                    let panel = Panel { x: x[parity..].as_ptr(), step: lines.len, deep: 1, n: c, k };
                    // SAFETY: as in `convolve`.
                    unsafe { panel.pack(width, words.as_mut_ptr()) };
                }
                self.products(lines, g, [even, odd]);
            }
        });
    }

    /// u += g x for each tap.
    fn products(&mut self, lines: &Lines, g: &[bf16], words: [&[u32]; 2]) {
        let (rows, width) = (self.o.div_ceil(ROWS), self.c.next_multiple_of(BLOCK));
        let step = STEP / 2 * width * size_of::<u32>();
        let b_steps: Vec<usize> = (0..lines.positions() / STEP).map(|i| i * step).collect();
        let mut blocks = || {
            for row in (0..rows).step_by(2) {
                for (t, c) in (0..TAPS).flat_map(|t| (0..width).step_by(BLOCK).map(move |c| (t, c))) {
                    let shift = t / 3 * lines.pitch + t % 3;
                    let walk = Walk {
                        a: g[row * ROWS * lines.len..].as_ptr().cast(),
                        a_row: lines.len * size_of::<bf16>(),
                        a_below: ROWS * lines.len * size_of::<bf16>(),
                        a_step: STEP * size_of::<bf16>(),
                        b: words[shift % 2][shift / 2 * width + c..].as_ptr().cast(),
                        b_row: width * size_of::<u32>(),
                        b_steps: &b_steps,
                    };
                    let to = self.u[(t * rows + row) * ROWS * width + c..].as_mut_ptr();
                    // SAFETY: `Lines::len` has what a shifted block reads, and u whole blocks.
                    unsafe { block(walk, (to, width), row + 1 < rows, true) };
                }
            }
        };
        // SAFETY: as in `convolve`.
        unsafe { within(&mut blocks) };
    }

    /// The gradient of w (O, C, 3, 3) from all shares, added in order.
    pub(crate) fn finish(parts: &[Self]) -> Vec<f32> {
        let (o, c) = parts.first().map_or((0, 0), |p| (p.o, p.c));
        let (rows, width) = (o.next_multiple_of(ROWS), c.next_multiple_of(BLOCK));
        let mut w = vec![0.; TAPS * o * c];
        for (i, w) in w.chunks_exact_mut(TAPS).enumerate() {
            for (t, w) in w.iter_mut().enumerate() {
                *w = parts.iter().map(|p| p.u[(t * rows + i / c) * width + i % c]).sum();
            }
        }
        w
    }
}
