//! The numerical core: candle custom ops with their own backward.
//!
//! candle's own convolution is the reason this room exists: its backward goes through a naive transposed convolution, and
//! its forward packs more than it multiplies. This is the only place in the library with `unsafe`.
//!
//! **Channel-major.** Inside a network activations have the shape (C, B, H, W), channels first. One channel is then one
//! contiguous row of B H W numbers: a 1x1 convolution is a single GEMM without any packing of its own, the GEMM of a 3x3
//! convolution writes its result where the next layer reads it, and per-channel layers (actnorm, batch norm) walk
//! contiguous rows. The price is a transposition of the few channels that enter and leave the network, which costs
//! nothing beside the hidden layers: [`to_channel_major`], [`from_channel_major`].
//!
//! **What was tried**, for 64 channels, 3x3, 32x32, batch 16, forward, two threads of an AVX-512 machine, where PyTorch
//! (oneDNN) does 410 to 440 GFLOP/s:
//!
//! - candle's own convolution: 16.
//! - GEMM on packed columns, over the `gemm` crate with its AVX-512 kernels: 346. It remains for few channels.
//! - Winograd's F(2x2, 3x3) with transforms left to the compiler: 170 (beside other work) as closures, which are compiled for any x86-64; 290 as
//!   arrays, which it spills; 406 as loops over slices.
//! - The same with the transforms in vectors, and streams that are not a power of two apart: 620. This is what runs.
//! - The product with a transposed factor, which every gradient of weights is: the `gemm` crate packs that factor element by
//!   element. Turning it first in squares of vectors took a Glow of width 64 from 945 to 1148 images/s a training step.
//! - oneDNN itself is a C++ library outside cargo; PyTorch's figure is what it would give.
//!
//! `just bench` measures all of it again, beside PyTorch.

pub mod channel;
pub mod conv;
pub mod conv_net;
pub mod coupling;
#[cfg(feature = "cudnn")]
mod cudnn;
pub mod elementwise;
pub(crate) mod gemm;
#[cfg(kernels)]
pub mod kernels;
pub mod linear;
pub mod plu;
pub mod precision;
pub(crate) mod reference;
pub(crate) mod res_net;
mod simd;
pub(crate) mod squeeze;
pub(crate) mod update;
mod winograd;

use candle_core::{Result, Tensor};

/// Whether the ops written for the processor take `t`: the others run candle's operations or the kernels for GPUs.
pub(crate) fn on_cpu(t: &Tensor) -> bool {
    #[cfg(feature = "emulate")]
    if kernels::emulating() {
        return false;
    }
    t.device().is_cpu()
}

/// (B, C, H, W) to (C, B, H, W), contiguous.
pub fn to_channel_major(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// (C, B, H, W) to (B, C, H, W), contiguous.
pub fn from_channel_major(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// (A, B, n) to (B, A, n).
pub(crate) fn swap_axes<T: gemm::Real>(x: &[T], a: usize, b: usize) -> Vec<T> {
    let n = x.len() / (a * b).max(1);
    let mut out = Vec::with_capacity(x.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&x[(i * b + j) * n..][..n]);
        }
    }
    out
}

/// What the tests of several ops compute with.
#[cfg(test)]
mod test_tensors {
    use candle_core::{DType, Device, Tensor};

    /// sin(f i + .1) in f64.
    pub(super) fn wave(shape: &[usize], f: f64) -> Tensor {
        let n: usize = shape.iter().product();
        let v: Vec<f64> = (0..n).map(|i| (i as f64 * f + 0.1).sin()).collect();
        Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
    }

    /// max |a - b|.
    pub(super) fn max_diff(a: &Tensor, b: &Tensor) -> f64 {
        let d = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        d.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }
}
