//! The affine coupling, fused: shift, scale and log-det in one pass over the whole tensor, the inverse and the gradients in
//! one more each.
//!
//! ```text
//! y = (x + t) e^s  (shift first)  or  x e^s + t,     log-det_b = sum s
//! ```
//!
//! with s = 0 (additive), h, log sigmoid(h + 2) or gain tanh(h), from the network's output (t, h); where a mask is 1, and
//! outside the changed part, y = x.
//!
//! **Shapes.** x, y (B, C, ...); the changed part is a range of channels, whose elements lie together in each example; the
//! network's output has as many elements, or twice as many, shifts first; a mask one for each changed element of an
//! example. All contiguous, f32 and f64; log-dets are summed in f64.

mod cpu;
pub(crate) mod cuda;
mod parts;
pub(crate) mod reference;
mod spec;

pub use parts::{add_masked, add_part, masked, take_part};
pub use spec::{AffineGrads, AffineSpec, ScaleFn};

use crate::device::Path;
use candle_core::{Result, Tensor};

impl AffineSpec<'_> {
    /// y, and log-dets (B,).
    ///
    /// # Errors
    /// If the network's output `net` has the wrong size, or dtypes differ.
    pub fn forward(&self, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
        self.plan(x, net)?;
        match self.path(&[x, net]) {
            Path::Cpu => cpu::forward(self, x, net),
            Path::Kernel => cuda::forward(self, x, net),
            Path::Candle => reference::forward(self, x, net),
        }
    }

    /// x from y and the network's output.
    ///
    /// # Errors
    /// As [`AffineSpec::forward`].
    pub fn inverse(&self, y: &Tensor, net: &Tensor) -> Result<Tensor> {
        self.plan(y, net)?;
        match self.path(&[y, net]) {
            Path::Cpu => cpu::inverse(self, y, net),
            Path::Kernel => cuda::inverse(self, y, net),
            Path::Candle => reference::inverse(self, y, net),
        }
    }

    /// The gradients of x, of the network's output and of the gain, from those of y and of the log-dets.
    ///
    /// # Errors
    /// As [`AffineSpec::forward`].
    pub fn backward(
        &self,
        x: &Tensor,
        net: &Tensor,
        gy: &Tensor,
        grad_log_det: &Tensor,
    ) -> Result<AffineGrads> {
        self.plan(x, net)?;
        let (x, net, gy, grad_log_det) = (&x.detach(), &net.detach(), &gy.detach(), &grad_log_det.detach());
        match Path::of(&[x, net, gy, grad_log_det]) {
            Path::Cpu => cpu::backward(self, x, net, gy, grad_log_det),
            Path::Kernel => cuda::backward(self, x, net, gy, grad_log_det),
            Path::Candle => reference::backward(self, x, net, gy, grad_log_det),
        }
    }

    fn path(&self, tensors: &[&Tensor]) -> Path {
        match self.gain {
            Some(gain) if gain.track_op() => Path::Candle,
            _ => Path::of(tensors),
        }
    }
}
