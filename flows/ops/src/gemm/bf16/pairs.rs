//! The kernel on AVX512-BF16, one vector of pairs at a time.

use super::blocked::Kernel;
use super::factor::Factor;
use super::pack::{Panel, lanes};
use crate::gemm::{Mat, MatMut};
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a tile.
const ROWS: usize = 8;
/// Columns of a tile at most: 8 x 48 sums, three vectors of b and one of a are 28 of 32 registers.
const COLS: usize = 48;

/// a in panels of [`ROWS`] rows, b in panels of at most [`COLS`] columns, which a core's first-level cache holds.
pub(super) struct Pairs;

impl Kernel for Pairs {
    const DEPTH: usize = 256;
    const UNIT: usize = 2;

    fn words(m: usize, k: usize) -> usize {
        k.div_ceil(2) * m.next_multiple_of(ROWS)
    }

    unsafe fn left<A: Factor>(a: Mat<A>, m: usize, part: Range<usize>, out: *mut u32) {
        let pairs = part.len().div_ceil(2);
        for i in (0..m).step_by(ROWS) {
            let panel = Panel::rows(a, i, ROWS.min(m - i), &part);
            // SAFETY: the caller's.
            unsafe { panel.pack(ROWS, out.add(i * pairs)) };
        }
    }

    unsafe fn sweep<B: Factor>(
        size: (usize, usize),
        part: Range<usize>,
        a: *const u32,
        b: Mat<B>,
        dst: &MatMut<f32>,
        add: bool,
    ) {
        // SAFETY: the caller's.
        unsafe { sweep(size, part, a, b, dst, add) };
    }
}

/// The words of a panel of b, at the start of a line of the cache.
#[repr(align(64))]
struct Words([std::mem::MaybeUninit<u32>; COLS * Pairs::DEPTH / 2]);

/// One part of the sums: each panel of b meets all of a while it is in the cache.
///
/// # Safety
/// As [`Kernel::sweep`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn sweep<B: Factor>(
    (m, n): (usize, usize),
    part: Range<usize>,
    a: *const u32,
    b: Mat<B>,
    dst: &MatMut<f32>,
    add: bool,
) {
    let mut words = Words([std::mem::MaybeUninit::uninit(); COLS * Pairs::DEPTH / 2]);
    let words = words.0.as_mut_ptr().cast::<u32>();
    let pairs = part.len().div_ceil(2);
    // Panels of about one width: a narrow last one would wait for its sums.
    let wide = n.div_ceil(n.div_ceil(COLS).max(1)).next_multiple_of(16);
    for j in (0..n).step_by(wide.max(16)) {
        let cols = wide.min(n - j);
        let width = cols.next_multiple_of(16);
        let panel = Panel::columns(b, j, cols, &part);
        // SAFETY: b covers the part, and the words are as many as a panel has at most.
        unsafe { panel.pack(width, words) };
        let after = n - j - cols;
        let next = Panel { x: panel.x.wrapping_add(wide * b.col), n: wide.min(after), ..panel };
        for i in (0..m).step_by(ROWS) {
            next.prefetch(i / ROWS, m.div_ceil(ROWS));
            let rows = ROWS.min(m - i);
            // SAFETY: a tile inside the result; panels of a are pairs x ROWS words.
            unsafe {
                let (a, c) = (a.add(i * pairs), dst.data.add(i * dst.row + j));
                match width / 16 {
                    1 => tile::<1>(pairs, a, words, (c, dst.row), (rows, cols), add),
                    2 => tile::<2>(pairs, a, words, (c, dst.row), (rows, cols), add),
                    _ => tile::<3>(pairs, a, words, (c, dst.row), (rows, cols), add),
                }
            }
        }
    }
}

/// c = a b (+ c) for `ROWS` x 16 V sums, of which `rows` x `cols` are stored.
///
/// # Safety
/// As [`sweep`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tile<const V: usize>(
    pairs: usize,
    a: *const u32,
    b: *const u32,
    (c, stride): (*mut f32, usize),
    (rows, cols): (usize, usize),
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
    // A large result is not in the caches: it is fetched while the sums are computed.
    for i in 0..rows {
        for v in 0..V + 1 {
            _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(i * stride + 16 * v).cast());
        }
    }
    for p in 0..pairs {
        // SAFETY: both panels have this pair. A vector of words is one of pairs of bf16.
        unsafe {
            let mut y = [_mm512_setzero_si512(); V];
            for (v, y) in y.iter_mut().enumerate() {
                *y = _mm512_load_si512(b.add((p * V + v) * 16).cast());
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*a.add(p * ROWS + i) as i32);
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        std::mem::transmute::<__m512i, __m512bh>(x),
                        std::mem::transmute::<__m512i, __m512bh>(y),
                    );
                }
            }
        }
    }
    // By the index and not up to `rows`: the sums stay in registers.
    for (i, sums) in sums.into_iter().enumerate() {
        if i < rows {
            for (v, sum) in sums.into_iter().enumerate() {
                let mask = lanes(cols.saturating_sub(16 * v));
                // SAFETY: inside the result by `rows` and the mask.
                unsafe {
                    let c = c.wrapping_add(i * stride + 16 * v);
                    let sum = if add { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c)) } else { sum };
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }
}
