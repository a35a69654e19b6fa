//! Factors as the kernels read them: rounded to bf16, two numbers in a word.

use super::factor::Factor;
use crate::gemm::Mat;
use std::arch::x86_64::*;
use std::ops::Range;

/// The parts of a sum of k that are packed at once: at most `depth` numbers, all parts but the last a multiple of `unit`.
pub(super) fn parts(k: usize, depth: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let len = k.div_ceil(k.div_ceil(depth).max(1)).next_multiple_of(unit).max(unit);
    (0..k).step_by(len).map(move |at| at..(at + len).min(k))
}

/// The first x of sixteen lanes.
#[inline(always)]
pub(super) fn lanes(x: usize) -> u16 {
    if x >= 16 { u16::MAX } else { (1 << x) - 1 }
}

/// `n` rows or columns of a factor: the number (i, p) lies at i `step` + p `deep` from `x`, one of which is 1, for p below `k`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<A> {
    pub(crate) x: *const A,
    pub(crate) step: usize,
    pub(crate) deep: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl<A: Factor> Panel<A> {
    /// `n` rows of a from the `i`-th on, of its columns `part`.
    pub(super) fn rows(a: Mat<A>, i: usize, n: usize, part: &Range<usize>) -> Self {
        let x = a.data.as_ptr().wrapping_add(i * a.row + part.start * a.col);
        Self { x, step: a.row, deep: a.col, n, k: part.len() }
    }

    /// `n` columns of b from the `j`-th on, of its rows `part`.
    pub(super) fn columns(b: Mat<A>, j: usize, n: usize, part: &Range<usize>) -> Self {
        let x = b.data.as_ptr().wrapping_add(part.start * b.row + j * b.col);
        Self { x, step: b.col, deep: b.row, n, k: part.len() }
    }

    /// Writes pairs side by side: words to `out[pair][i]`, `width` of them a pair, zero from `n` on.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16, every number must be readable, and `out` must hold the words.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(crate) unsafe fn pack(self, width: usize, out: *mut u32) {
        // SAFETY: the caller's.
        unsafe { if self.step == 1 { self.interleave(width, out) } else { self.turn(width, out) } }
    }

    /// Writes sixteen rows side by side: for each sixteen pairs the words `out[i][pair]`, `stride` words from one such tile to the
    /// next, zero from `n` and from `k` on.
    ///
    /// # Safety
    /// As [`Panel::pack`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(crate) unsafe fn pack_rows(self, stride: usize, out: *mut u32) {
        for (tile, pair) in (0..self.k.div_ceil(2)).step_by(16).enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let words = if self.step == 1 { square(self.across(pair)) } else { self.along(0, pair) };
                for (i, words) in words.into_iter().enumerate() {
                    _mm512_storeu_si512(out.add(tile * stride + 16 * i).cast(), words);
                }
            }
        }
    }

    /// Prefetches the `i`-th of `n` shares of the numbers: packing would wait for a factor that is larger than the caches.
    #[inline(always)]
    pub(super) fn prefetch(self, i: usize, n: usize) {
        let (rows, stride, len) = match self.step {
            1 => (self.k, self.deep, self.n),
            step => (self.n, step, self.k),
        };
        let line = 64 / size_of::<A>();
        for row in rows * i / n..rows * (i + 1) / n {
            for at in (0..len + line - 1).step_by(line) {
                let x = self.x.wrapping_add(row * stride + at);
                // SAFETY: a prefetch of any address does nothing but that.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(x.cast()) };
            }
        }
    }

    /// [`Panel::pack`] where numbers of one p lie side by side.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn interleave(self, width: usize, out: *mut u32) {
        for pair in 0..self.k.div_ceil(2) {
            for i in (0..width).step_by(16) {
                // SAFETY: the masks keep to n and k, and to the width.
                unsafe {
                    let at = out.add(pair * width + i).cast();
                    _mm512_mask_storeu_epi32(at, lanes(width - i), self.words(i, pair));
                }
            }
        }
    }

    /// [`Panel::pack`] where the numbers of a pair lie side by side: words are turned in squares of 16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn turn(self, width: usize, out: *mut u32) {
        let pairs = self.k.div_ceil(2);
        for i in (0..width).step_by(16) {
            for pair in (0..pairs).step_by(16) {
                // SAFETY: the caller's.
                let words = square(unsafe { self.along(i, pair) });
                for (j, words) in words.into_iter().enumerate().take(pairs - pair) {
                    // SAFETY: `out` holds pairs x width words, and the mask keeps to the width.
                    unsafe {
                        let at = out.add((pair + j) * width + i).cast();
                        _mm512_mask_storeu_epi32(at, lanes(width - i), words);
                    }
                }
            }
        }
    }

    /// The words (i.., pair) where numbers of one p lie side by side, zero outside of n and k.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    unsafe fn words(self, i: usize, pair: usize) -> __m512i {
        let of = |p: usize| if p < self.k { lanes(self.n.saturating_sub(i)) } else { 0 };
        let x = self.x.wrapping_add(2 * pair * self.deep + i);
        // SAFETY: the masks keep to n and k.
        unsafe {
            let low = _mm512_cvtepu16_epi32(A::load(x, of(2 * pair)));
            let high = _mm512_cvtepu16_epi32(A::load(x.wrapping_add(self.deep), of(2 * pair + 1)));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }

    /// The words of sixteen pairs of the first sixteen i, pair by pair, where numbers of one p lie side by side.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    unsafe fn across(self, pair: usize) -> [__m512i; 16] {
        let mut words = [_mm512_setzero_si512(); 16];
        for (j, words) in words.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *words = unsafe { self.words(0, pair + j) };
        }
        words
    }

    /// The words of sixteen i, each with its sixteen pairs, where the numbers of a pair lie side by side.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    unsafe fn along(self, i: usize, pair: usize) -> [__m512i; 16] {
        let left = self.k - 2 * pair;
        let (first, second) = (lanes(left), lanes(left.saturating_sub(16)));
        let mut words = [_mm512_setzero_si512(); 16];
        for (j, words) in words.iter_mut().enumerate().take(self.n.saturating_sub(i)) {
            let x = self.x.wrapping_add((i + j) * self.step + 2 * pair);
            // SAFETY: the masks keep to k, the rows to n.
            let (low, high) = unsafe { (A::load(x, first), A::load(x.wrapping_add(16), second)) };
            *words = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        }
        words
    }
}

/// A square of words turned, by four rounds of interleaving row i with row i + 8.
#[target_feature(enable = "avx512f")]
#[inline]
fn square(mut v: [__m512i; 16]) -> [__m512i; 16] {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for _ in 0..4 {
        let before = v;
        for i in 0..8 {
            v[2 * i] = _mm512_permutex2var_epi32(before[i], low, before[i + 8]);
            v[2 * i + 1] = _mm512_permutex2var_epi32(before[i], high, before[i + 8]);
        }
    }
    v
}
