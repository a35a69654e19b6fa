//! The numbers that the kernels for the processor compute with, f32 and f64, and slices of tensors.

use crate::simd::Element;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// What a tensor of the host may hold.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// The slice of a storage.
    fn slice(s: &CpuStorage) -> Option<&[Self]>;
    /// A tensor that owns `v`.
    fn tensor(v: Vec<Self>, shape: Shape) -> Result<Tensor>;
}

macro_rules! stored {
    ($t:ty, $variant:ident) => {
        impl Stored for $t {
            fn slice(s: &CpuStorage) -> Option<&[Self]> {
                match s {
                    CpuStorage::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn tensor(v: Vec<Self>, shape: Shape) -> Result<Tensor> {
                Tensor::from_vec(v, shape, &Device::Cpu)
            }
        }
    };
}
stored!(f32, F32);
stored!(f64, F64);
stored!(half::bf16, BF16);

/// What the kernels are written for: f32 and f64.
pub(crate) trait Real:
    Element
    + Stored
    + PartialOrd
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
{
    /// From f64, rounded.
    fn of(v: f64) -> Self;
    /// To f64, exact.
    fn f64(self) -> f64;
    /// e^self.
    fn exp(self) -> Self;
    /// e^self in arithmetic that loops turn into vectors: within 2 units in the last place for f32 (0 below -87), the
    /// standard library's for f64.
    fn exp_in_loop(self) -> Self;
    /// log(1 + self) for 0 <= self <= 1, as [`Real::exp_in_loop`].
    fn ln_1p_in_loop(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The mutable slice of a storage.
    fn slice_mut(s: &mut CpuStorage) -> Option<&mut [Self]>;
    /// A storage that owns `v`.
    fn storage(v: Vec<Self>) -> CpuStorage;
}

macro_rules! real {
    ($t:ident, $variant:ident, $exp:path, $ln_1p:path) => {
        impl Real for $t {
            #[inline(always)]
            fn of(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $t::exp(self)
            }
            #[inline(always)]
            fn exp_in_loop(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln_1p_in_loop(self) -> Self {
                $ln_1p(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn slice_mut(s: &mut CpuStorage) -> Option<&mut [Self]> {
                match s {
                    CpuStorage::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn storage(v: Vec<Self>) -> CpuStorage {
                CpuStorage::$variant(v)
            }
        }
    };
}
real!(f32, F32, exp_f32, ln_1p_f32);
real!(f64, F64, f64::exp, f64::ln_1p);

/// 2^n e^r with n the nearest integer to x / ln 2 and a polynomial in r, |r| <= ln 2 / 2.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Adding and subtracting 1.5 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.;
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts: n times the first is exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    // Taylor's coefficients: the next term is below 6e-9.
    let p = 1. / 5040.;
    let p = p * r + 1. / 720.;
    let p = p * r + 1. / 120.;
    let p = p * r + 1. / 24.;
    let p = p * r + 1. / 6.;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.;
    // Outside the exponents would wrap; inside, 2^n may be infinite where e^x is not, and two factors reach it.
    let n = if n > 128. { 128. } else { n };
    let n = if n < -126. { -126. } else { n };
    let half = (n as i32) >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let y = p * power(half) * power(n as i32 - half);
    let y = if x > 88.72 { f32::INFINITY } else { y };
    let y = if x < -87.3 { 0. } else { y };
    // A NaN stays one.
    if x.is_nan() { x } else { y }
}

/// 2 artanh(x / (2 + x)) by its series; the next term is below 1e-8 of the sum.
#[inline(always)]
fn ln_1p_f32(x: f32) -> f32 {
    let s = x / (2. + x);
    let q = s * s;
    let p = 1. / 15.;
    let p = p * q + 1. / 13.;
    let p = p * q + 1. / 11.;
    let p = p * q + 1. / 9.;
    let p = p * q + 1. / 7.;
    let p = p * q + 0.2;
    let p = p * q + 1. / 3.;
    2. * (s + s * q * p)
}

/// e^x in arithmetic that loops turn into vectors, within 2 units in the last place for |x| <= 690; beyond, that of the end.
#[inline(always)]
pub(crate) fn exp_f64(x: f64) -> f64 {
    // Adding 1.5 2^52 rounds to an integer, which the last bits then hold.
    const ROUND: f64 = 6_755_399_441_055_744.;
    let x = if x > 690. { 690. } else { x };
    let x = if x < -690. { -690. } else { x };
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's coefficients: the next term is below 5e-18.
    let p = polynomial(
        r,
        [
            0.5,
            1. / 6.,
            1. / 24.,
            1. / 120.,
            1. / 720.,
            1. / 5040.,
            1. / 40_320.,
            1. / 362_880.,
            1. / 3_628_800.,
            1. / 39_916_800.,
            1. / 479_001_600.,
            1. / 6_227_020_800.,
        ],
    );
    (p * r * r + r + 1.) * f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52)
}

/// log x of a positive normal number, as [`exp_f64`]: 2^n m with m in [sqrt(1/2), sqrt 2), and 2 artanh((m - 1) / (m + 1)).
#[inline(always)]
pub(crate) fn ln_f64(x: f64) -> f64 {
    // The bits of sqrt(1/2) are taken away before the exponent is read, and so m begins there.
    const ROOT: u64 = 0x3fe6_a09e_667f_3bcd;
    let above = x.to_bits().wrapping_sub(ROOT);
    // The exponent with 2048 added, between the last bits of 2^52.
    let n = f64::from_bits((above.wrapping_add(1 << 63) >> 52) | 0x4330_0000_0000_0000)
        - (4_503_599_627_370_496. + 2048.);
    let m = f64::from_bits((above & 0x000f_ffff_ffff_ffff).wrapping_add(ROOT));
    let s = (m - 1.) / (m + 1.);
    let q = s * s;
    let series = [3., 5., 7., 9., 11., 13., 15., 17., 19., 21., 23., 25.];
    let p = polynomial(q, series.map(|odd| 1. / odd));
    let y = n * LN_2_HIGH + (2. * (s + s * q * p) + n * LN_2_LOW);
    if x.is_nan() { x } else { y }
}

/// c_0 + c_1 x + c_2 x^2 + .., in pairs, fours and eights (Estrin): terms one after the other would each wait for the last.
#[inline(always)]
fn polynomial(x: f64, c: [f64; 12]) -> f64 {
    let x2 = x * x;
    let x4 = x2 * x2;
    let four = |i: usize| (c[i] + c[i + 1] * x) + (c[i + 2] + c[i + 3] * x) * x2;
    (four(0) + four(4) * x4) + four(8) * (x4 * x4)
}

/// log 2 in two parts: an exponent times the first is exact.
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// A contiguous tensor of the host, to read.
pub(crate) struct View<'a> {
    storage: Box<dyn std::ops::Deref<Target = Storage> + 'a>,
    range: std::ops::Range<usize>,
}

impl<'a> View<'a> {
    /// Errors where `t` is not contiguous.
    pub(crate) fn of(op: &str, t: &'a Tensor) -> Result<Self> {
        let (storage, layout) = t.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{op} needs contiguous tensors, got strides {:?}", layout.stride())
        };
        Ok(Self { storage: Box::new(storage), range: start..end })
    }

    /// The numbers; errors where they are of another type or on another device.
    pub(crate) fn get<T: Stored>(&self, op: &str) -> Result<&[T]> {
        match &**self.storage {
            Storage::Cpu(s) => match T::slice(s) {
                // The offset of an empty tensor may lie past its storage.
                Some(v) => Ok(if self.range.is_empty() { &[] } else { &v[self.range.clone()] }),
                None => bail!("{op}: the dtypes of its tensors differ"),
            },
            _ => bail!("{op} has no kernel for this device"),
        }
    }
}

/// A tensor that owns `v`.
pub(crate) fn tensor<T: Stored>(v: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    T::tensor(v, shape.into())
}

/// The contiguous slice that a storage and layout describe.
pub(crate) fn contiguous<'a, T: Real>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op} needs contiguous tensors, got strides {:?}", layout.stride())
    };
    match T::slice(storage) {
        // The offset of an empty tensor may lie past its storage.
        Some(v) => Ok(if start < end { &v[start..end] } else { &[] }),
        None => bail!("{op}: the dtypes of its tensors differ"),
    }
}

/// Runs `$body` with `$t` bound to f32 or f64.
macro_rules! dispatch {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            d => candle_core::bail!("{} works in f32 and f64, not {d:?}", $op),
        }
    };
}
pub(crate) use dispatch;

/// The dtype of a storage.
pub(crate) fn dtype(s: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    s.dtype()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_for_loops_are_accurate() {
        let (mut worst_exp, mut worst_log) = (0f64, 0f64);
        for i in 0..200_001 {
            // From -87.3 to 88.72: all of f32's normal results.
            let x = (i as f32 / 200_000.) * (88.72 + 87.3) - 87.3;
            let want = f64::from(x).exp();
            worst_exp = worst_exp.max((f64::from(exp_f32(x)) - want).abs() / want);
            let e = i as f32 / 200_000.;
            let want = f64::from(e).ln_1p();
            if e > 0. {
                worst_log = worst_log.max((f64::from(ln_1p_f32(e)) - want).abs() / want);
            }
        }
        println!("exp {worst_exp:.1e}, ln_1p {worst_log:.1e}");
        for i in 0..200_001 {
            let x = f64::from(i) / 200_000. * 1380. - 690.;
            let (e, want) = (exp_f64(x), x.exp());
            assert!((e - want).abs() <= 2. * f64::EPSILON * want, "exp {x}: {e:e} {want:e}");
            // Near 1, too, where the logarithm is small.
            for v in [want, 1. + x * 1e-9, 1. + x * 1e-3] {
                let (log, want) = (ln_f64(v), v.ln());
                assert!(
                    v <= 0. || (log - want).abs() <= 2. * f64::EPSILON * want.abs(),
                    "log {v:e}: {log:e} {want:e}"
                );
            }
        }
        assert_eq!((exp_f64(-1e9), exp_f64(1e9), exp_f64(0.)), (exp_f64(-690.), exp_f64(690.), 1.));
        assert!(exp_f64(f64::NAN).is_nan() && ln_f64(f64::NAN).is_nan() && ln_f64(1.) == 0.);
        // Two units in the last place are what the functions promise.
        let two = 2. * f64::from(f32::EPSILON);
        assert!(worst_exp < two && worst_log < two, "{worst_exp:e} {worst_log:e}");
        assert_eq!((exp_f32(f32::NEG_INFINITY), exp_f32(-200.), exp_f32(0.)), (0., 0., 1.));
        assert_eq!((exp_f32(f32::INFINITY), exp_f32(100.)), (f32::INFINITY, f32::INFINITY));
        assert!(exp_f32(f32::NAN).is_nan() && ln_1p_f32(0.) == 0.);
    }
}
