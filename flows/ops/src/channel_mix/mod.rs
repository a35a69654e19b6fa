//! One matrix applied at each position: the 1x1 convolution of a flow, in the layout of its input.
//!
//! ```text
//! y[b, :, p] = w x[b, :, p]
//! ```
//!
//! **Shapes.** x and y (B, C, ...), w (C, C). The channels are few, so on the CPU each image is one small GEMM and nothing is
//! transposed.

mod cpu;
pub(crate) mod cuda;
pub(crate) mod reference;

use crate::device::Path;
use candle_core::{Result, Tensor};

/// y of x and w; see the module.
///
/// # Errors
/// If the channels or dtypes differ.
pub fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    match Path::of(&[x, w]) {
        Path::Cpu => cpu::channel_mix(x, w),
        Path::Kernel => cuda::channel_mix(x, w),
        Path::Candle => reference::channel_mix(x, w),
    }
}

/// The gradients of x and of w, from that of y.
///
/// # Errors
/// If the channels or dtypes differ.
pub fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, w, gy) = (&x.detach(), &w.detach(), &gy.detach());
    match Path::of(&[x, w, gy]) {
        Path::Cpu => cpu::channel_mix_backward(x, w, gy),
        Path::Kernel => cuda::channel_mix_backward(x, w, gy),
        Path::Candle => reference::channel_mix_backward(x, w, gy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{max_diff, wave};
    use candle_core::Var;

    #[test]
    fn channel_mix_is_a_matrix_at_each_pixel() -> Result<()> {
        let x = Var::from_tensor(&wave(&[3, 4, 2, 5], 0.3))?;
        let w = Var::from_tensor(&wave(&[4, 4], 0.7))?;
        let want = w.unsqueeze(0)?.broadcast_matmul(&x.flatten_from(2)?)?.reshape((3, 4, 2, 5))?;
        let y = channel_mix(&x, &w)?;
        assert!(max_diff(&y, &want) < 1e-13);
        let g = wave(&[3, 4, 2, 5], 0.9);
        let ours = (y * &g)?.sum_all()?.backward()?;
        let theirs = (want * &g)?.sum_all()?.backward()?;
        for v in [x.as_tensor(), w.as_tensor()] {
            assert!(max_diff(ours.get(v).unwrap(), theirs.get(v).unwrap()) < 1e-12);
        }
        Ok(())
    }
}
