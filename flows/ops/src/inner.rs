//! How the numbers inside a network are kept and multiplied on the CPU: as they are, or rounded to bf16 ([`crate::precision`]).

use crate::gemm::bf16::{Factor, Packed, product, product_once};
use crate::gemm::{Mat, MatMut, gemm, gemm_abt};
use crate::real::{Real, Stored};
use crate::simd::{Job, Transpose, Width, wide};
use crate::threads::{Shared, ranges, unwritten};
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;

/// What activations are kept as. Sums, and all that is done to one number at a time, are [`Inner::Real`]; the factors of
/// products are rounded to this.
pub(crate) trait Inner: Stored + Default {
    /// What it is computed in.
    type Real: Real;
    /// A left factor made ready for many products.
    type Packed: Send + Sync;

    /// Rounded.
    fn from_real(v: Self::Real) -> Self;
    /// As it is computed with; exact.
    fn to_real(self) -> Self::Real;
    /// All of them as they are computed with.
    fn reals(x: &[Self]) -> Cow<'_, [Self::Real]>;
    /// All of them rounded.
    fn all(v: Vec<Self::Real>) -> Vec<Self>;
    /// Where activations that `kept` is to hold are computed: there, or in `scratch` where that is another type or `kept` is
    /// empty; [`Inner::keep`] comes after.
    fn work<'a>(kept: &'a mut [Self], scratch: &'a mut [Self::Real]) -> &'a mut [Self::Real];
    /// Rounds what was computed in `scratch`.
    fn keep(kept: &mut [Self], scratch: &[Self::Real]);

    /// Packs a (m, k).
    fn pack(a: Mat<Self::Real>, m: usize, k: usize) -> Self::Packed;
    /// dst = a b (+ dst if `add`) on the calling thread: (m, n, k) as in [`gemm`], with a and what [`Inner::pack`] made of it.
    fn product(
        size: (usize, usize, usize),
        a: (Mat<Self::Real>, &Self::Packed),
        b: Mat<Self::Real>,
        dst: MatMut<Self::Real>,
        add: bool,
    );
    /// out = a b with all threads.
    fn product_in_parallel(
        size: (usize, usize, usize),
        a: Mat<Self::Real>,
        b: Mat<Self::Real>,
        out: &mut [Self::Real],
    );
    /// out = a b^T with all threads: a (m, k) and b (n, k), both row by row.
    fn rows_by_rows(
        (m, n, k): (usize, usize, usize),
        a: &[Self::Real],
        b: &[Self::Real],
        out: &mut [Self::Real],
    ) {
        Self::product_in_parallel((m, n, k), Mat::rows(a, k), Mat::transposed(b, k), out);
    }
    /// dst += a b^T on the calling thread, as [`gemm_abt`].
    fn add_abt(
        size: (usize, usize, usize),
        a: (&[Self::Real], usize),
        b: (&[Self::Real], usize),
        dst: (&mut [Self::Real], usize),
        scratch: &mut Vec<Self::Real>,
    );
    /// The same where b was kept.
    fn add_abt_kept(
        size: (usize, usize, usize),
        a: (&[Self::Real], usize),
        b: (&[Self], usize),
        dst: (&mut [Self::Real], usize),
        scratch: &mut Vec<Self::Real>,
    );
}

impl<T: Real> Inner for T {
    type Real = T;
    type Packed = ();

    #[inline(always)]
    fn from_real(v: T) -> T {
        v
    }
    #[inline(always)]
    fn to_real(self) -> T {
        self
    }
    fn reals(x: &[T]) -> Cow<'_, [T]> {
        x.into()
    }
    fn all(v: Vec<T>) -> Vec<T> {
        v
    }
    fn work<'a>(kept: &'a mut [T], scratch: &'a mut [T]) -> &'a mut [T] {
        if kept.is_empty() { scratch } else { kept }
    }
    fn keep(_: &mut [T], _: &[T]) {}

    fn pack(_: Mat<T>, _: usize, _: usize) {}
    fn product(size: (usize, usize, usize), (a, ()): (Mat<T>, &()), b: Mat<T>, dst: MatMut<T>, add: bool) {
        gemm(size, a, b, dst, T::of(1.), add, 1);
    }
    fn product_in_parallel(size: (usize, usize, usize), a: Mat<T>, b: Mat<T>, out: &mut [T]) {
        let dst = MatMut::rows(out, size.1);
        gemm(size, a, b, dst, T::of(1.), false, rayon::current_num_threads());
    }
    /// Where b has more rows than a, b a^T is computed and then transposed, because the `gemm` crate packs a transposed b one
    /// element at a time.
    fn rows_by_rows((m, n, k): (usize, usize, usize), a: &[T], b: &[T], out: &mut [T]) {
        if n < m || k < 64 {
            return Self::product_in_parallel((m, n, k), Mat::rows(a, k), Mat::transposed(b, k), out);
        }
        // SAFETY: turning writes all of the first, the products all of the second.
        let (mut turned, mut product) = unsafe { (unwritten::<T>(k * m), unwritten::<T>(n * m)) };
        turn(a, (m, k), &mut turned);
        let rows = n.div_ceil(rayon::current_num_threads());
        product.par_chunks_mut((rows * m).max(1)).zip(b.par_chunks(rows * k)).for_each(|(out, b)| {
            let (a, size) = (Mat::rows(&turned, m), (b.len() / k, m, k));
            gemm(size, Mat::rows(b, k), a, MatMut::rows(out, m), T::of(1.), false, 1);
        });
        turn(&product, (n, m), out);
    }
    fn add_abt(
        size: (usize, usize, usize),
        a: (&[T], usize),
        b: (&[T], usize),
        dst: (&mut [T], usize),
        scratch: &mut Vec<T>,
    ) {
        gemm_abt(size, a, b, dst, scratch);
    }
    fn add_abt_kept(
        size: (usize, usize, usize),
        a: (&[T], usize),
        b: (&[T], usize),
        dst: (&mut [T], usize),
        scratch: &mut Vec<T>,
    ) {
        gemm_abt(size, a, b, dst, scratch);
    }
}

/// The transpose of x (rows, cols) with all threads.
fn turn<T: Real>(x: &[T], (rows, cols): (usize, usize), out: &mut [T]) {
    let (step, stride) = (cols.div_ceil(rayon::current_num_threads()).next_multiple_of(16), cols);
    out.par_chunks_mut((step * rows).max(1)).enumerate().for_each(|(i, out)| {
        let cols = out.len() / rows.max(1);
        wide(Transpose { x: &x[i * step..], stride, rows, cols, out });
    });
}

impl Inner for bf16 {
    type Real = f32;
    type Packed = Packed;

    /// To nearest, ties to even, in arithmetic that loops turn into vectors.
    #[inline(always)]
    fn from_real(v: f32) -> Self {
        let bits = v.to_bits();
        let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        // A NaN stays one.
        bf16::from_bits(if v.is_nan() { (bits >> 16) as u16 | 0x40 } else { nearest })
    }
    #[inline(always)]
    fn to_real(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    fn reals(x: &[Self]) -> Cow<'_, [f32]> {
        // SAFETY: each number is written below.
        let mut out = unsafe { unwritten(x.len()) };
        out.par_chunks_mut(1 << 15).zip(x.par_chunks(1 << 15)).for_each(|(out, x)| wide(Widen { x, out }));
        out.into()
    }
    fn all(v: Vec<f32>) -> Vec<Self> {
        // SAFETY: each number is written below.
        let mut out: Vec<Self> = unsafe { unwritten(v.len()) };
        out.par_chunks_mut(1 << 15).zip(v.par_chunks(1 << 15)).for_each(|(o, v)| Self::keep(o, v));
        out
    }
    fn work<'a>(_: &'a mut [Self], scratch: &'a mut [f32]) -> &'a mut [f32] {
        scratch
    }
    fn keep(kept: &mut [Self], scratch: &[f32]) {
        wide(Round { x: scratch, out: kept });
    }

    fn pack(a: Mat<f32>, m: usize, k: usize) -> Packed {
        Packed::new(a, m, k)
    }
    fn product(
        size: (usize, usize, usize),
        (_, a): (Mat<f32>, &Packed),
        b: Mat<f32>,
        dst: MatMut<f32>,
        add: bool,
    ) {
        product(size, a, b, dst, add);
    }
    fn product_in_parallel((m, n, k): (usize, usize, usize), a: Mat<f32>, b: Mat<f32>, out: &mut [f32]) {
        let out = &Shared::new(out);
        ranges(n).into_par_iter().filter(|r| !r.is_empty()).for_each(|r| {
            // SAFETY: this thread alone writes columns `r` of every row.
            let dst = unsafe { MatMut::raw(out.ptr.add(r.start), out.len - r.start, n) };
            product_once((m, r.len(), k), a, b.skip_columns(r.start), dst, false);
        });
    }
    fn add_abt(
        size: (usize, usize, usize),
        a: (&[f32], usize),
        b: (&[f32], usize),
        dst: (&mut [f32], usize),
        _: &mut Vec<f32>,
    ) {
        add_rounded_abt(size, a, b, dst);
    }
    fn add_abt_kept(
        size: (usize, usize, usize),
        a: (&[f32], usize),
        b: (&[Self], usize),
        dst: (&mut [f32], usize),
        _: &mut Vec<f32>,
    ) {
        add_rounded_abt(size, a, b, dst);
    }
}

/// dst += a b^T with factors rounded to bf16, of which b may be so already.
fn add_rounded_abt<B: Factor>(
    size: (usize, usize, usize),
    (a, a_stride): (&[f32], usize),
    (b, b_stride): (&[B], usize),
    (dst, stride): (&mut [f32], usize),
) {
    let (a, b) = (Mat::rows(a, a_stride), Mat::transposed(b, b_stride));
    product_once(size, a, b, MatMut::rows(dst, stride), true);
}

struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [bf16],
}

impl Job for Round<'_> {
    #[inline(always)]
    fn run<W: Width>(self) {
        for (o, &v) in self.out.iter_mut().zip(self.x) {
            *o = <bf16 as Inner>::from_real(v);
        }
    }
}

struct Widen<'a> {
    x: &'a [bf16],
    out: &'a mut [f32],
}

impl Job for Widen<'_> {
    #[inline(always)]
    fn run<W: Width>(self) {
        for (o, &v) in self.out.iter_mut().zip(self.x) {
            *o = v.to_real();
        }
    }
}

/// Runs `$body` with `$i` bound to what activations of a network are kept as: bf16 where the network computes in f32 and
/// `$rounds`, and f32 or f64 otherwise.
macro_rules! dispatch_inner {
    ($op:expr, $dtype:expr, $rounds:expr, $i:ident => $body:expr) => {
        match ($dtype, $rounds) {
            (candle_core::DType::F32, true) => {
                type $i = half::bf16;
                $body
            }
            (dtype, _) => crate::real::dispatch!($op, dtype, $i => $body),
        }
    };
}
pub(crate) use dispatch_inner;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_bf16() {
        let near = |v: f32| (-2i32..3).map(move |d| f32::from_bits(v.to_bits().wrapping_add_signed(d)));
        let halves =
            [1., 1. + 1. / 256., 1. + 3. / 256., -3. - 3. / 128., 3.4e38, f32::MIN_POSITIVE, 1e-40, 0.];
        for v in halves.into_iter().flat_map(near).chain([f32::INFINITY, f32::NEG_INFINITY]) {
            if !v.is_nan() {
                assert_eq!(<bf16 as Inner>::from_real(v).to_bits(), bf16::from_f32(v).to_bits(), "{v}");
            }
        }
        assert!(<bf16 as Inner>::from_real(f32::NAN).is_nan() && Inner::to_real(bf16::NAN).is_nan());
        let x: Vec<f32> = (0..100_003).map(|i| (i as f32 * 0.7).sin()).collect();
        let kept = bf16::all(x.clone());
        assert!(bf16::reals(&kept).iter().zip(&x).all(|(a, b)| (a - b).abs() <= b.abs() / 256.));
    }
}
