//! SIMD: loops compiled for AVX-512 and AVX2, chosen at run time, and explicit vectors where the compiler does not vectorise.
//!
//! The crate `pulp`, which `gemm` brings, would replace the 25 lines that choose at run time and little else: it has one width for
//! each instruction set, where rows of 4 and 8 tiles need narrower vectors, takes even and odd elements apart in an order of its
//! own, and has no products of bf16.

/// A piece of work whose `run` is inlined (`#[inline(always)]`) into a function compiled for the machine's vectors. A
/// closure would not do: nothing makes the compiler inline one, and left alone it is compiled for any x86-64.
pub(crate) trait Job {
    /// Does it, with vectors of `W`.
    fn run<W: Width>(self);
}

/// The widest vectors of an instruction set, by element.
pub(crate) trait Width {
    /// Of f32: 16, 8 or 4 of them, then narrower ones for what is left of a row.
    type F32: Steps<f32>;
}

/// What a vector holds.
pub(crate) trait Element:
    Copy + Default + std::ops::Add<Output = Self> + std::ops::Sub<Output = Self>
{
    /// Its vectors at a width.
    type Steps<W: Width>: Steps<Self>;
}

impl Element for f32 {
    type Steps<W: Width> = W::F32;
}

/// Tests and references alone compute in f64: one number at a time.
impl Element for f64 {
    type Steps<W: Width> = One<f64>;
}

/// Vectors of falling width for rows of any length.
pub(crate) trait Steps<T> {
    /// The widest.
    type Wide: Vector<T>;
    /// Eight at most.
    type Eight: Vector<T>;
    /// Four at most.
    type Four: Vector<T>;
}

/// A few numbers at once.
pub(crate) trait Vector<T>: Copy {
    /// How many.
    const LANES: usize;
    /// The first [`Vector::LANES`] numbers of `x`.
    fn load(x: &[T]) -> Self;
    /// To the first [`Vector::LANES`] numbers of `x`.
    fn store(self, x: &mut [T]);
    /// Sum.
    fn add(self, o: Self) -> Self;
    /// Difference.
    fn sub(self, o: Self) -> Self;
    /// The even and the odd ones of twice as many numbers.
    fn split(x: &[T]) -> (Self, Self);
    /// (a0, b0, a1, b1, ..), in two vectors.
    fn interleave(a: Self, b: Self) -> (Self, Self);
    /// The inverse of [`Vector::split`].
    #[inline(always)]
    fn weave(even: Self, odd: Self, x: &mut [T]) {
        let (a, b) = Self::interleave(even, odd);
        a.store(x);
        b.store(&mut x[Self::LANES..]);
    }
}

/// One number: any element on any machine.
#[derive(Clone, Copy)]
pub(crate) struct One<T>(T);

impl<T: Element> Vector<T> for One<T> {
    const LANES: usize = 1;
    #[inline(always)]
    fn load(x: &[T]) -> Self {
        Self(x[0])
    }
    #[inline(always)]
    fn store(self, x: &mut [T]) {
        x[0] = self.0;
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Self(self.0 + o.0)
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Self(self.0 - o.0)
    }
    #[inline(always)]
    fn split(x: &[T]) -> (Self, Self) {
        (Self(x[0]), Self(x[1]))
    }
    #[inline(always)]
    fn interleave(a: Self, b: Self) -> (Self, Self) {
        (a, b)
    }
}

impl<T: Element> Steps<T> for One<T> {
    type Wide = Self;
    type Eight = Self;
    type Four = Self;
}

/// What every machine has.
pub(crate) struct Plain;

impl Width for Plain {
    #[cfg(target_arch = "x86_64")]
    type F32 = x86::Sse;
    #[cfg(not(target_arch = "x86_64"))]
    type F32 = One<f32>;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Steps, Vector, Width};
    use std::arch::x86_64::*;

    /// SSE2, which any x86-64 has.
    pub(crate) struct Sse;
    /// AVX2.
    pub(crate) struct Avx2;
    /// AVX-512.
    pub(crate) struct Avx512;

    impl Steps<f32> for Sse {
        type Wide = __m128;
        type Eight = __m128;
        type Four = __m128;
    }
    impl Steps<f32> for Avx2 {
        type Wide = __m256;
        type Eight = __m256;
        type Four = __m128;
    }
    impl Steps<f32> for Avx512 {
        type Wide = __m512;
        type Eight = __m256;
        type Four = __m128;
    }
    impl Width for Avx2 {
        type F32 = Avx2;
    }
    impl Width for Avx512 {
        type F32 = Avx512;
    }

    macro_rules! vector {
        ($v:ty, $lanes:literal, $load:ident, $store:ident, $add:ident, $sub:ident, ($sa:ident, $sb:ident) => $split:expr, ($we:ident, $wo:ident) => $weave:expr) => {
            impl Vector<f32> for $v {
                const LANES: usize = $lanes;
                #[inline(always)]
                fn load(x: &[f32]) -> Self {
                    assert!(x.len() >= $lanes);
                    // SAFETY: the slice is long enough; only jobs run by `wide` name this type, where the processor has it.
                    unsafe { $load(x.as_ptr()) }
                }
                #[inline(always)]
                fn store(self, x: &mut [f32]) {
                    assert!(x.len() >= $lanes);
                    // SAFETY: as in `load`.
                    unsafe { $store(x.as_mut_ptr(), self) }
                }
                #[inline(always)]
                fn add(self, o: Self) -> Self {
                    // SAFETY: as in `load`.
                    unsafe { $add(self, o) }
                }
                #[inline(always)]
                fn sub(self, o: Self) -> Self {
                    // SAFETY: as in `load`.
                    unsafe { $sub(self, o) }
                }
                #[inline(always)]
                fn split(x: &[f32]) -> (Self, Self) {
                    let ($sa, $sb) = (Self::load(x), Self::load(&x[$lanes..]));
                    // SAFETY: as in `load`.
                    unsafe { $split }
                }
                #[inline(always)]
                fn interleave($we: Self, $wo: Self) -> (Self, Self) {
                    // SAFETY: as in `load`.
                    unsafe { $weave }
                }
            }
        };
    }

    vector!(
        __m128,
        4,
        _mm_loadu_ps,
        _mm_storeu_ps,
        _mm_add_ps,
        _mm_sub_ps,
        (a, b) => (_mm_shuffle_ps::<0x88>(a, b), _mm_shuffle_ps::<0xdd>(a, b)),
        (e, o) => (_mm_unpacklo_ps(e, o), _mm_unpackhi_ps(e, o))
    );
    vector!(
        __m256,
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        (a, b) => {
            let (l, h) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            (_mm256_shuffle_ps::<0x88>(l, h), _mm256_shuffle_ps::<0xdd>(l, h))
        },
        (e, o) => {
            let (l, h) = (_mm256_unpacklo_ps(e, o), _mm256_unpackhi_ps(e, o));
            (_mm256_permute2f128_ps::<0x20>(l, h), _mm256_permute2f128_ps::<0x31>(l, h))
        }
    );
    vector!(
        __m512,
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        (a, b) => {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        },
        (e, o) => {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(e, low, o), _mm512_permutex2var_ps(e, high, o))
        }
    );
}

/// Runs `job` compiled for AVX-512 or AVX2 where the processor has them: plain loops become the compiler's own vectors,
/// with no change to what is computed (nothing is fused or reordered). The crate itself is built for any x86-64, whose
/// vectors are a quarter as wide.
pub(crate) fn wide<J: Job>(job: J) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi1,bmi2")]
        fn avx512<J: Job>(job: J) {
            job.run::<x86::Avx512>();
        }
        #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
        fn avx2<J: Job>(job: J) {
            job.run::<x86::Avx2>();
        }
        let v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        let v4 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        // SAFETY: the processor has the features, as just asked.
        if v3 && v4 {
            return unsafe { avx512(job) };
        }
        if v3 {
            return unsafe { avx2(job) };
        }
    }
    job.run::<Plain>();
}

/// out = f(a, b), elementwise. Blocks are copied to arrays, so that the compiler needs no check at run time whether the slices
/// overlap.
#[inline(always)]
pub(crate) fn zip<A: Copy, B: Copy, O: Copy + Default>(
    out: &mut [O],
    a: &[A],
    b: &[B],
    f: impl Fn(A, B) -> O,
) {
    const L: usize = 16;
    let (os, o_rest) = out.as_chunks_mut::<L>();
    let ((xs, x_rest), (ys, y_rest)) = (a.as_chunks::<L>(), b.as_chunks::<L>());
    for ((o, x), y) in os.iter_mut().zip(xs).zip(ys) {
        let (x, y) = (*x, *y);
        let mut v = [O::default(); L];
        for k in 0..L {
            v[k] = f(x[k], y[k]);
        }
        *o = v;
    }
    for ((o, &x), &y) in o_rest.iter_mut().zip(x_rest).zip(y_rest) {
        *o = f(x, y);
    }
}

/// out = f(a), elementwise, in vectors.
#[inline(always)]
pub(crate) fn map<A: Copy, O: Copy + Default>(out: &mut [O], a: &[A], f: impl Fn(A) -> O) {
    zip(out, a, a, |x, _| f(x));
}

/// Even and odd elements apart.
#[inline(always)]
pub(crate) fn split<T: Element, S: Steps<T>>(x: &[T], even: &mut [T], odd: &mut [T]) {
    let n = x.len() / 2;
    let l = S::Wide::LANES;
    let mut at = 0;
    while at + l <= n {
        let (e, o) = S::Wide::split(&x[2 * at..]);
        e.store(&mut even[at..]);
        o.store(&mut odd[at..]);
        at += l;
    }
    for at in at..n {
        even[at] = x[2 * at];
        odd[at] = x[2 * at + 1];
    }
}

/// The transpose of `rows` rows of `x`, `stride` apart, `cols` of each: `out` is (cols, rows).
///
/// A square of L x L turns by log2 L rounds of interleaving row i with row i + L / 2.
pub(crate) struct Transpose<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) out: &'a mut [T],
}

impl<T: Element> Job for Transpose<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { x, stride, rows, cols, out } = self;
        let l = <T::Steps<W> as Steps<T>>::Wide::LANES;
        let (r, c) = (rows / l * l, cols / l * l);
        for i in (0..r).step_by(l) {
            for j in (0..c).step_by(l) {
                square::<T, <T::Steps<W> as Steps<T>>::Wide>(
                    &x[i * stride + j..],
                    stride,
                    &mut out[j * rows + i..],
                    rows,
                );
            }
        }
        for i in 0..rows {
            for j in if i < r { c } else { 0 }..cols {
                out[j * rows + i] = x[i * stride + j];
            }
        }
    }
}

#[inline(always)]
fn square<T, V: Vector<T>>(x: &[T], stride: usize, out: &mut [T], to: usize) {
    let mut v = [V::load(x); 16];
    for (i, v) in v.iter_mut().enumerate().take(V::LANES) {
        *v = V::load(&x[i * stride..]);
    }
    let mut rounds = V::LANES;
    while rounds > 1 {
        let before = v;
        for i in 0..V::LANES / 2 {
            (v[2 * i], v[2 * i + 1]) = V::interleave(before[i], before[i + V::LANES / 2]);
        }
        rounds /= 2;
    }
    for (i, v) in v.into_iter().enumerate().take(V::LANES) {
        v.store(&mut out[i * to..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_turns_ragged_edges_too() {
        for (rows, cols, stride) in [(16, 16, 16), (33, 50, 61), (7, 3, 3), (1, 40, 40), (48, 20, 20)] {
            let x: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            let mut out = vec![0.; rows * cols];
            wide(Transpose { x: &x, stride, rows, cols, out: &mut out });
            let y: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let mut wide_out = vec![0.; rows * cols];
            wide(Transpose { x: &y, stride, rows, cols, out: &mut wide_out });
            for i in 0..rows {
                for j in 0..cols {
                    assert_eq!(out[j * rows + i], x[i * stride + j]);
                    assert_eq!(wide_out[j * rows + i], y[i * stride + j]);
                }
            }
        }
    }

    /// Every width that this machine can run, not only the widest, which is all that `wide` takes.
    #[test]
    fn every_width_computes_alike() {
        fn one<V: Vector<f32>>() {
            let l = V::LANES;
            let x: Vec<f32> = (0..2 * l).map(|i| (i * i) as f32 + 0.5).collect();
            let (even, odd) = V::split(&x);
            let mut y = vec![0.; 2 * l];
            V::weave(even, odd, &mut y);
            assert_eq!(x, y);
            let (mut e, mut o) = (vec![0.; l], vec![0.; l]);
            even.store(&mut e);
            odd.store(&mut o);
            let (mut sum, mut difference) = (vec![0.; l], vec![0.; l]);
            even.add(odd).store(&mut sum);
            even.sub(odd).store(&mut difference);
            for k in 0..l {
                assert_eq!((e[k], o[k]), (x[2 * k], x[2 * k + 1]));
                assert_eq!((sum[k], difference[k]), (e[k] + o[k], e[k] - o[k]));
            }
        }
        fn all<W: Width>() {
            one::<<W::F32 as Steps<f32>>::Wide>();
            one::<<W::F32 as Steps<f32>>::Eight>();
            one::<<W::F32 as Steps<f32>>::Four>();
            one::<One<f32>>();
            let x: Vec<f32> = (0..33 * 50).map(|i| i as f32).collect();
            let mut out = vec![0.; x.len()];
            Transpose { x: &x, stride: 50, rows: 33, cols: 50, out: &mut out }.run::<W>();
            assert!((0..x.len()).all(|i| out[(i % 50) * 33 + i / 50] == x[i]));
        }
        all::<Plain>();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                all::<x86::Avx2>();
            }
            if is_x86_feature_detected!("avx512f") {
                all::<x86::Avx512>();
            }
        }
    }
}
