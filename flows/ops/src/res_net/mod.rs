//! RealNVP's residual network as one op, forward and backward.
//!
//! ```text
//! h_0 = w * u + b,    c_i = w_i1 * r(h_i) + b_i1,    h_{i+1} = h_i + w_i2 * r(c_i) + b_i2,    r(x) = relu(bn(x))
//! s = sum_i (v_i h_i + d_i),     y = v r(s) + d         (without skips, s is the last h)
//! ```
//!
//! As separate ops each of the network's 64 x 16384 activations is written and read some ten times a step. Here batch norm
//! and ReLU are applied as a convolution reads its input, bias and the residual sum as it writes its output, and what is kept
//! for the backward is h_i and c_i alone: r of them is computed again where it is needed, which costs less than reading it.
//!
//! **Shapes.** x (B, C, H, W), y (B, O, H, W); f32 and f64. On the CPU activations are channel-major, (C, B H W). On a GPU
//! channels come last inside the network, convolutions are cuDNN's, and batch norm with its ReLU, weight norm and the input are one kernel
//! each way.

mod cpu;
mod cuda;
pub(crate) mod kernels;
mod spec;

pub use spec::{Conv, Norm, Output, ResNetGradients, ResNetParams, SavedState};

use crate::device::Path;
use candle_core::{Result, Tensor, bail};

/// Whether the network has a fused pass for `x`.
pub fn is_fused(x: &Tensor) -> bool {
    Path::of(&[&x.detach()]) != Path::Candle
}

/// y (B, O, H, W), outside any graph, and with `keep` what [`backward`] needs.
///
/// # Errors
/// If the channels or dtypes differ.
pub fn forward(params: &ResNetParams, x: &Tensor, keep: bool) -> Result<Output> {
    let x = x.detach().contiguous()?;
    params.check(&x)?;
    match Path::of(&[&x]) {
        Path::Cpu => cpu::forward(params, &x, keep),
        Path::Kernel => cuda::forward(params, &x, keep),
        Path::Candle => bail!("a residual network has no fused pass for {:?}", x.device().location()),
    }
}

/// The gradients of x and of the parameters, from that of y.
///
/// # Errors
/// If the gradient has another shape or dtype than y.
pub fn backward(params: &ResNetParams, saved: SavedState, gy: &Tensor) -> Result<ResNetGradients> {
    let gy = gy.detach().contiguous()?;
    match Path::of(&[&gy]) {
        Path::Cpu => cpu::backward(params, saved, &gy),
        _ => cuda::backward(params, saved, &gy),
    }
}
