//! What the tests of several ops compute with, and tests of all ops alike.

mod agreement;
#[cfg(feature = "emulate")]
mod kernels;

use candle_core::{DType, Device, Tensor};

/// sin(f i + .1) in f64.
pub(crate) fn wave(shape: &[usize], f: f64) -> Tensor {
    let n: usize = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|i| (i as f64 * f + 0.1).sin()).collect();
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
}

/// max |a - b|.
pub(crate) fn max_diff(a: &Tensor, b: &Tensor) -> f64 {
    let d = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    d.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}
