//! Matrix products on host slices, over the `gemm` crate that candle uses, with its AVX-512 kernels turned on.

pub(crate) mod bf16;

use crate::real::Real;
use crate::simd::{Transpose, wide};
use gemm::Parallelism;

/// A matrix to read: a slice with a row and a column stride.
pub(crate) struct Mat<'a, T> {
    data: &'a [T],
    row: usize,
    col: usize,
}

// Derived, they would ask for the same of the numbers.
impl<T> Clone for Mat<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Mat<'_, T> {}

impl<'a, T> Mat<'a, T> {
    /// Row-major with `stride` elements from row to row.
    pub fn rows(data: &'a [T], stride: usize) -> Self {
        Self { data, row: stride, col: 1 }
    }

    /// The transpose of the row-major matrix with `stride`.
    pub fn transposed(data: &'a [T], stride: usize) -> Self {
        Self { data, row: 1, col: stride }
    }

    /// Its columns from `at` on.
    pub(crate) fn skip_columns(self, at: usize) -> Self {
        Self { data: &self.data[(at * self.col).min(self.data.len())..], ..self }
    }

    fn covers(&self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.row + (n - 1) * self.col < self.data.len()
    }
}

/// A row-major matrix to write.
pub(crate) struct MatMut<'a, T> {
    data: *mut T,
    len: usize,
    row: usize,
    _life: std::marker::PhantomData<&'a mut [T]>,
}

impl<'a, T> MatMut<'a, T> {
    /// Row-major with `stride` elements from row to row.
    pub fn rows(data: &'a mut [T], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), row: stride, _life: std::marker::PhantomData }
    }

    /// Row-major over raw memory.
    ///
    /// # Safety
    /// `data` must be valid for `len` elements, and no other thread may touch the elements (i * stride + j) that the
    /// product writes. It exists so that threads can write disjoint column blocks of one matrix.
    pub(crate) unsafe fn raw(data: *mut T, len: usize, stride: usize) -> Self {
        Self { data, len, row: stride, _life: std::marker::PhantomData }
    }
}

/// dst = alpha a b (+ dst if `add`), with a of m x k, b of k x n; `threads` = 1 stays on the calling thread.
///
/// Panics if a slice is shorter than its matrix: the sizes come from our own callers, never from input.
pub(crate) fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Mat<T>,
    b: Mat<T>,
    dst: MatMut<T>,
    alpha: T,
    add: bool,
    threads: usize,
) {
    assert!(a.covers(m, k) && b.covers(k, n), "gemm reads past its operands");
    assert!(m == 0 || n == 0 || (m - 1) * dst.row + n <= dst.len, "gemm writes past its result");
    let par = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the asserts above bound every access; `dst` is exclusively borrowed or covered by `raw`'s contract.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data,
            1,
            dst.row as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            T::of(1.),
            alpha,
            false,
            false,
            false,
            par,
        );
    }
}

/// dst += a b^T on the calling thread: a (m, k) and b (n, k), both row-major with their strides.
///
/// The `gemm` crate would pack b element by element, which costs as much as half the product; b is turned in squares of
/// vectors instead, as many columns at a time as the second-level cache holds.
pub(crate) fn gemm_abt<T: Real>(
    (m, n, k): (usize, usize, usize),
    (a, a_stride): (&[T], usize),
    (b, b_stride): (&[T], usize),
    (dst, stride): (&mut [T], usize),
    scratch: &mut Vec<T>,
) {
    let step = (98_304 / n.max(1)).clamp(64, 4096).min(k.max(1));
    if scratch.len() < step * n {
        scratch.resize(step * n, T::default());
    }
    for at in (0..k).step_by(step) {
        let len = step.min(k - at);
        let turned = &mut scratch[..len * n];
        wide(Transpose { x: &b[at..], stride: b_stride, rows: n, cols: len, out: turned });
        let (a, b) = (Mat::rows(&a[at..], a_stride), Mat::rows(turned, n));
        gemm((m, n, len), a, b, MatMut::rows(dst, stride), T::of(1.), true, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gemm_agrees_with_the_triple_loop() {
        let (m, n, k) = (7, 33, 19);
        let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.7).sin()).collect();
        let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.3).cos()).collect();
        let bt: Vec<f64> = (0..k * n).map(|i| b[(i % k) * n + i / k]).collect();
        let mut want = vec![1.; m * n];
        for (i, w) in want.iter_mut().enumerate() {
            *w += 2. * (0..k).map(|p| a[(i / n) * k + p] * b[p * n + i % n]).sum::<f64>();
        }
        for (b, threads) in [(Mat::rows(&b, n), 1), (Mat::transposed(&bt, k), 2)] {
            let mut c = vec![1.; m * n];
            gemm((m, n, k), Mat::rows(&a, k), b, MatMut::rows(&mut c, n), 2., true, threads);
            for (x, y) in c.iter().zip(&want) {
                assert!((x - y).abs() < 1e-12);
            }
        }
        let mut c = vec![0.5; m * n];
        gemm_abt((m, n, k), (&a, k), (&bt, k), (&mut c, n), &mut Vec::new());
        for (x, y) in c.iter().zip(&want) {
            assert!((x - 0.5 - (y - 1.) / 2.).abs() < 1e-12);
        }
    }
}
