//! Matrix products of bf16 factors with sums in f32: both factors are rounded to nearest, each product is exact.
//!
//! Processors with AVX512-BF16 multiply pairs: one instruction adds a[i, 2p] b[2p, j] + a[i, 2p + 1] b[2p + 1, j] to sixteen
//! sums, twice as many products as one on f32. Both factors are packed so that the two numbers of a pair lie in one word:
//! a in panels of [`ROWS`] rows, b in panels of at most [`COLS`] columns, [`DEPTH`] numbers deep, which a core's first-level
//! cache holds; a tile of `ROWS` x `COLS` sums stays in registers. Sums are those of one product to the next in a fixed order
//! that depends on k alone.
//!
//! Other processors round both factors and multiply them in f32: the same products, added in another order, and no faster.
//! Intel's AMX is not used: its intrinsics are not stable in Rust 1.95 (`x86_amx_intrinsics`).

use super::{Mat, MatMut, gemm};
use crate::simd::multiplies_bf16;
use half::bf16;

/// Rows of a tile.
const ROWS: usize = 8;
/// Columns of a tile at most: 8 x 48 sums, three vectors of b and one of a are 28 of 32 registers.
const COLS: usize = 48;
/// Of the sum, how much is packed at once at most.
const DEPTH: usize = 256;

/// What a factor's numbers are before they are packed.
pub(crate) trait Factor: Copy + Send + Sync + 'static {
    /// Rounded to bf16, as f32.
    fn rounded(self) -> f32;
    /// Sixteen bf16 from `x`, zero where `mask` is.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16, and the numbers of the mask must be readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(x: *const Self, mask: u16) -> std::arch::x86_64::__m256i;
}

impl Factor for f32 {
    fn rounded(self) -> f32 {
        bf16::from_f32(self).to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(x: *const Self, mask: u16) -> std::arch::x86_64::__m256i {
        use std::arch::x86_64::{_mm512_cvtneps_pbh, _mm512_maskz_loadu_ps};
        // SAFETY: the caller's; both types are 32 bytes of bits.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x))) }
    }
}

impl Factor for bf16 {
    fn rounded(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(x: *const Self, mask: u16) -> std::arch::x86_64::__m256i {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm256_maskz_loadu_epi16(mask, x.cast()) }
    }
}

/// A left factor (m, k), packed once for many products.
pub(crate) enum Packed {
    /// Panels of pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs(Vec<u32>),
    /// Rounded, row by row.
    Rounded(Vec<f32>),
}

impl Packed {
    /// Packs a (m, k).
    pub(crate) fn new<A: Factor>(a: Mat<A>, m: usize, k: usize) -> Self {
        assert!(a.covers(m, k), "a packed factor is longer than its numbers");
        #[cfg(target_arch = "x86_64")]
        if multiplies_bf16() {
            let mut pairs = Vec::new();
            // SAFETY: the processor has what it takes, and `a` covers m x k.
            unsafe { pairs::left(a, m, 0..k, &mut pairs) };
            return Packed::Pairs(pairs);
        }
        Packed::Rounded(rounded(a, m, k))
    }
}

/// The numbers of a (m, k), rounded, row by row.
fn rounded<A: Factor>(a: Mat<A>, m: usize, k: usize) -> Vec<f32> {
    (0..m * k).map(|i| a.data[i / k * a.row + i % k * a.col].rounded()).collect()
}

/// dst = a b (+ dst if `add`) on the calling thread, with a of m x k packed, b of k x n.
pub(crate) fn product<B: Factor>(
    (m, n, k): (usize, usize, usize),
    a: &Packed,
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    check((m, n, k), b, &dst);
    match a {
        #[cfg(target_arch = "x86_64")]
        Packed::Pairs(a) => {
            assert!(a.len() >= pairs::len(m, k), "a product reads past its packed factor");
            // SAFETY: only a processor that has what it takes packs pairs; the checks above bound every access.
            unsafe { pairs::product((m, n, k), a, b, dst, add) }
        }
        Packed::Rounded(a) => in_f32((m, n, k), a, b, dst, add),
    }
}

/// As [`product`], with a factor that is used once.
pub(crate) fn product_once<A: Factor, B: Factor>(
    (m, n, k): (usize, usize, usize),
    a: Mat<A>,
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    check((m, n, k), b, &dst);
    assert!(a.covers(m, k), "a product reads past its factors");
    #[cfg(target_arch = "x86_64")]
    if multiplies_bf16() {
        // SAFETY: as in `product`.
        return unsafe { pairs::product_once((m, n, k), a, b, dst, add) };
    }
    in_f32((m, n, k), &rounded(a, m, k), b, dst, add);
}

fn check<B>((m, n, k): (usize, usize, usize), b: Mat<B>, dst: &MatMut<f32>) {
    assert!(b.covers(k, n), "a product reads past its factors");
    assert!(m == 0 || n == 0 || (m - 1) * dst.row + n <= dst.len, "a product writes past its result");
}

fn in_f32<B: Factor>((m, n, k): (usize, usize, usize), a: &[f32], b: Mat<B>, dst: MatMut<f32>, add: bool) {
    let b = rounded(b, k, n);
    gemm((m, n, k), Mat::rows(a, k), Mat::rows(&b, n), dst, 1., add, 1);
}

/// The kernel on pairs.
#[cfg(target_arch = "x86_64")]
mod pairs {
    use super::{COLS, DEPTH, Factor, Mat, MatMut, ROWS};
    use std::arch::x86_64::*;
    use std::cell::RefCell;
    use std::ops::Range;

    /// The parts of a sum of k that are packed at once, all but the last of one even length.
    fn parts(k: usize) -> impl Iterator<Item = Range<usize>> {
        let len = k.div_ceil(k.div_ceil(DEPTH).max(1)).next_multiple_of(2).max(2);
        (0..k).step_by(len).map(move |at| at..(at + len).min(k))
    }

    /// Words of a packed left factor.
    pub(super) fn len(m: usize, k: usize) -> usize {
        parts(k).map(|r| r.len().div_ceil(2) * m.next_multiple_of(ROWS)).sum()
    }

    /// The first x of sixteen lanes.
    #[inline(always)]
    fn lanes(x: usize) -> u16 {
        if x >= 16 { u16::MAX } else { (1 << x) - 1 }
    }

    /// Pairs of a factor: the number (i, p) lies at i `step` + p `deep` from `x`, one of which is 1. Words go to
    /// `out[pair][i]`, `width` of them a pair, zero from `n` on.
    #[derive(Clone, Copy)]
    struct Panel<A> {
        x: *const A,
        step: usize,
        deep: usize,
        n: usize,
        k: usize,
        width: usize,
    }

    impl<A: Factor> Panel<A> {
        /// # Safety
        /// The processor must have AVX512-BF16, every number must be readable, and `out` must hold the words.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
        unsafe fn pack(self, out: *mut u32) {
            // SAFETY: the caller's.
            unsafe { if self.step == 1 { self.interleave(out) } else { self.turn(out) } }
        }

        /// Prefetches the `i`-th of `n` shares of the numbers: packing would wait for a factor that is larger than the caches.
        #[inline(always)]
        fn prefetch(self, i: usize, n: usize) {
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

        /// Where numbers of one p lie side by side.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
        unsafe fn interleave(self, out: *mut u32) {
            for pair in 0..self.k.div_ceil(2) {
                for i in (0..self.width).step_by(16) {
                    let (mask, to) = (lanes(self.n.saturating_sub(i)), lanes(self.width - i));
                    let second = if 2 * pair + 1 < self.k { mask } else { 0 };
                    let x = self.x.wrapping_add(2 * pair * self.deep + i);
                    // SAFETY: the masks keep to n and k, and to the width.
                    unsafe {
                        let low = _mm512_cvtepu16_epi32(A::load(x, mask));
                        let high = _mm512_cvtepu16_epi32(A::load(x.wrapping_add(self.deep), second));
                        let words = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                        _mm512_mask_storeu_epi32(out.add(pair * self.width + i).cast(), to, words);
                    }
                }
            }
        }

        /// Where the numbers of a pair lie side by side: words are turned in squares of 16.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
        unsafe fn turn(self, out: *mut u32) {
            let pairs = self.k.div_ceil(2);
            for i in (0..self.width).step_by(16) {
                let (rows, to) = (self.n.saturating_sub(i).min(16), lanes(self.width - i));
                for pair in (0..pairs).step_by(16) {
                    let left = self.k - 2 * pair;
                    let (first, second) = (lanes(left), lanes(left.saturating_sub(16)));
                    let mut words = [_mm512_setzero_si512(); 16];
                    for (j, words) in words.iter_mut().enumerate().take(rows) {
                        let x = self.x.wrapping_add((i + j) * self.step + 2 * pair);
                        // SAFETY: the masks keep to k, the rows to n.
                        let (low, high) = unsafe { (A::load(x, first), A::load(x.wrapping_add(16), second)) };
                        *words = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
                    }
                    let words = square(words);
                    for (j, words) in words.into_iter().enumerate().take(pairs - pair) {
                        let at = (pair + j) * self.width + i;
                        // SAFETY: `out` holds pairs x width words, and the mask keeps to the width.
                        unsafe { _mm512_mask_storeu_epi32(out.add(at).cast(), to, words) };
                    }
                }
            }
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

    /// Appends panels of `ROWS` rows of a (m, ..) for each part of `k` to `out`.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16, and `a` must cover m x k's end.
    pub(super) unsafe fn left<A: Factor>(a: Mat<A>, m: usize, k: Range<usize>, out: &mut Vec<u32>) {
        for part in parts(k.len()) {
            let part = k.start + part.start..k.start + part.end;
            let words = part.len().div_ceil(2) * ROWS;
            for i in (0..m).step_by(ROWS) {
                out.reserve(words);
                let panel = Panel {
                    x: a.data.as_ptr().wrapping_add(i * a.row + part.start * a.col),
                    step: a.row,
                    deep: a.col,
                    n: ROWS.min(m - i),
                    k: part.len(),
                    width: ROWS,
                };
                // SAFETY: the words are reserved, and `pack` writes each of them.
                unsafe {
                    panel.pack(out.as_mut_ptr().add(out.len()));
                    out.set_len(out.len() + words);
                }
            }
        }
    }

    /// See [`super::product`].
    ///
    /// # Safety
    /// The processor must have AVX512-BF16, and the sizes must be those of the factors and the result.
    pub(super) unsafe fn product<B: Factor>(
        (m, n, k): (usize, usize, usize),
        a: &[u32],
        b: Mat<B>,
        dst: MatMut<f32>,
        add: bool,
    ) {
        let mut at = 0;
        for part in parts(k) {
            let add = add || part.start > 0;
            // SAFETY: the caller's; `a` holds this part's panels from `at` on.
            unsafe { sweep((m, n), part.clone(), a.as_ptr().add(at), b, &dst, add) };
            at += part.len().div_ceil(2) * m.next_multiple_of(ROWS);
        }
        if k == 0 && !add {
            // SAFETY: the caller's.
            (0..m).for_each(|i| {
                unsafe { std::slice::from_raw_parts_mut(dst.data.add(i * dst.row), n) }.fill(0.)
            });
        }
    }

    /// See [`super::product_once`]: a part of the left factor is packed at a time.
    ///
    /// # Safety
    /// As [`product`].
    pub(super) unsafe fn product_once<A: Factor, B: Factor>(
        (m, n, k): (usize, usize, usize),
        a: Mat<A>,
        b: Mat<B>,
        dst: MatMut<f32>,
        add: bool,
    ) {
        thread_local!(static PANELS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) });
        PANELS.with_borrow_mut(|panels| {
            for part in parts(k) {
                panels.clear();
                // SAFETY: the caller's.
                unsafe {
                    left(a, m, part.clone(), panels);
                    sweep((m, n), part.clone(), panels.as_ptr(), b, &dst, add || part.start > 0);
                }
            }
        });
        if k == 0 {
            // SAFETY: the caller's.
            unsafe { product((m, n, 0), &[], b, dst, add) };
        }
    }

    /// The words of a panel of b, at the start of a line of the cache.
    #[repr(align(64))]
    struct Words([std::mem::MaybeUninit<u32>; COLS * DEPTH / 2]);

    /// One part of the sums: each panel of b meets all of a while it is in the cache.
    ///
    /// # Safety
    /// As [`product`]; `a` holds the part's panels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn sweep<B: Factor>(
        (m, n): (usize, usize),
        part: Range<usize>,
        a: *const u32,
        b: Mat<B>,
        dst: &MatMut<f32>,
        add: bool,
    ) {
        let mut words = Words([std::mem::MaybeUninit::uninit(); COLS * DEPTH / 2]);
        let words = words.0.as_mut_ptr().cast::<u32>();
        let pairs = part.len().div_ceil(2);
        // Panels of about one width: a narrow last one would wait for its sums.
        let wide = n.div_ceil(n.div_ceil(COLS).max(1)).next_multiple_of(16);
        for j in (0..n).step_by(wide.max(16)) {
            let cols = wide.min(n - j);
            let width = cols.next_multiple_of(16);
            let panel = Panel {
                x: b.data.as_ptr().wrapping_add(part.start * b.row + j * b.col),
                step: b.col,
                deep: b.row,
                n: cols,
                k: part.len(),
                width,
            };
            // SAFETY: b covers the part, and the words are as many as a panel has at most.
            unsafe { panel.pack(words) };
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In both layouts of both factors, from f32 and from bf16, with ragged edges and several parts of the sum: the sum of
    /// products of rounded factors, to f32's own rounding; and that is off the sum of exact factors by what rounding both
    /// gives.
    #[test]
    fn products_are_those_of_rounded_factors() {
        let number = |i: usize, f: f64| (i as f64 * f).sin() as f32;
        for (m, n, k) in
            [(1, 1, 1), (7, 33, 19), (8, 48, 256), (20, 100, 517), (54, 64, 300), (3, 17, 31), (4, 5, 0)]
        {
            let a: Vec<f32> = (0..m * k).map(|i| number(i, 0.7)).collect();
            let b: Vec<f32> = (0..k * n).map(|i| number(i, 0.3)).collect();
            let at: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
            let bt: Vec<f32> = (0..k * n).map(|i| b[i % k.max(1) * n + i / k.max(1)]).collect();
            let half = |x: &[f32]| x.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
            let (ha, hbt) = (half(&a), half(&bt));
            let run = |how: usize, c: &mut [f32]| {
                let (dims, c) = ((m, n, k), MatMut::rows(c, n));
                match how {
                    0 => product(dims, &Packed::new(Mat::rows(&a, k), m, k), Mat::rows(&b, n), c, true),
                    1 => product(
                        dims,
                        &Packed::new(Mat::transposed(&at, m), m, k),
                        Mat::transposed(&hbt, k),
                        c,
                        true,
                    ),
                    2 => product_once(dims, Mat::rows(&ha, k), Mat::transposed(&bt, k), c, true),
                    3 => product_once(dims, Mat::transposed(&at, m), Mat::rows(&b, n), c, true),
                    _ => in_f32(dims, &rounded(Mat::rows(&a, k), m, k), Mat::rows(&b, n), c, true),
                }
            };
            for how in 0..5 {
                let mut c = vec![0.5; m * n];
                run(how, &mut c);
                for (e, c) in c.iter().enumerate() {
                    let pair = |p: usize| (a[e / n * k + p], b[p * n + e % n]);
                    let want: f64 =
                        (0..k).map(pair).map(|(x, y)| f64::from(x.rounded()) * f64::from(y.rounded())).sum();
                    let exact: f64 = (0..k).map(pair).map(|(x, y)| f64::from(x) * f64::from(y)).sum();
                    let size: f64 = (0..k).map(pair).map(|(x, y)| f64::from(x * y).abs()).sum::<f64>() + 0.5;
                    let (own, unit) = ((k + 3) as f64 * 0.5f64.powi(24) * size, 0.5f64.powi(9));
                    assert!((f64::from(*c) - 0.5 - want).abs() <= own, "{m} {n} {k} {how}: {c} {want}");
                    let bound = (2. * unit + unit * unit) * size + own;
                    assert!((f64::from(*c) - 0.5 - exact).abs() <= bound, "{m} {n} {k} {how}: {c} {exact}");
                }
            }
            let mut c = vec![0.5; m * n];
            product_once((m, n, k), Mat::rows(&a, k), Mat::rows(&b, n), MatMut::rows(&mut c, n), false);
            let mut again = vec![f32::NAN; m * n];
            product(
                (m, n, k),
                &Packed::new(Mat::rows(&a, k), m, k),
                Mat::rows(&b, n),
                MatMut::rows(&mut again, n),
                false,
            );
            assert_eq!(c, again);
        }
    }

    /// A column's sums do not depend on how many columns a thread has.
    #[test]
    fn bits_do_not_depend_on_the_split() {
        let (m, n, k) = (12, 100, 400);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.3).cos()).collect();
        let mut whole = vec![0.; m * n];
        product_once((m, n, k), Mat::rows(&a, k), Mat::rows(&b, n), MatMut::rows(&mut whole, n), false);
        let mut last = vec![0.; m * n];
        product_once(
            (m, 37, k),
            Mat::rows(&a, k),
            Mat::rows(&b[63..], n),
            MatMut::rows(&mut last[63..], n),
            false,
        );
        for i in 0..m {
            assert_eq!(whole[i * n + 63..(i + 1) * n], last[i * n + 63..(i + 1) * n]);
        }
    }
}
