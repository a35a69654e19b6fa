//! Glow's coupling network as one op: three convolutions, two actnorms with ReLU, one gain, forward and backward.
//!
//! ```text
//! h1 = relu((w1 * x + e1 + b1) exp(3 l1)),   h2 = relu((w2 h1 + b2) exp(3 l2)),   y = (w3 * h2 + e3 + b3) exp(3 l3)
//! ```
//!
//! with w1, w3 3x3, w2 1x1, and e1, e3 the optional maps of the edge-bias channel.
//!
//! As separate ops, every hidden activation would be written to memory and read from it some ten times a step. Here a thread
//! takes a block of images through the whole network while they are in the cache. The backward pass needs only h1 and h2:
//! for y = (u + b) exp(3 l) the gradient of l is 3 sum g y and that of b is exp(3 l) sum g.
//!
//! **Shapes.** x (B, C, H, W), y (B, O, H, W); f32 and f64.
//!
//! Threads take fixed ranges of images, and their parameter gradients are added in order.
//!
//! On a GPU channels come last inside the network, convolutions are cuDNN's, and all that lies between two of them is one kernel.

mod cpu;
mod cuda;
mod spec;

pub use spec::{ConvLayer, ConvNetParams, SavedState};

use crate::device::Path;
use candle_core::{Result, Tensor, bail};

/// Whether a network of so many layers has a fused pass for `x`: three layers on the CPU, any number through kernels.
pub fn is_fused(layers: usize, x: &Tensor) -> bool {
    match Path::of(&[&x.detach()]) {
        Path::Cpu => layers == 3,
        Path::Kernel => true,
        Path::Candle => false,
    }
}

/// y (B, O, H, W), outside any graph, and with `keep` what [`backward`] needs.
///
/// # Errors
/// If the channels or dtypes differ, or the pass is not fused ([`is_fused`]).
pub fn forward(params: &ConvNetParams, x: &Tensor, keep: bool) -> Result<(Tensor, Option<SavedState>)> {
    let inputs = params.layers[0].weight.dim(1)?;
    if x.rank() != 4 || x.dim(1)? != inputs {
        bail!("a network for {inputs} channels met {:?}", x.shape());
    }
    if !is_fused(params.layers.len(), x) {
        bail!(
            "a network of {} layers has no fused pass for {:?}",
            params.layers.len(),
            x.device().location()
        );
    }
    let x = x.detach().contiguous()?;
    match Path::of(&[&x]) {
        Path::Cpu => cpu::forward(params, x, keep),
        _ => cuda::forward(params, &x, keep),
    }
}

/// The gradients of x and of each layer's parameters, from that of y.
///
/// # Errors
/// If the gradient has another shape or dtype than y.
pub fn backward(params: &ConvNetParams, saved: SavedState, gy: &Tensor) -> Result<(Tensor, Vec<ConvLayer>)> {
    let gy = gy.detach().contiguous()?;
    match Path::of(&[&gy]) {
        Path::Cpu => cpu::backward(params, saved, &gy),
        _ => cuda::backward(params, saved, &gy),
    }
}
