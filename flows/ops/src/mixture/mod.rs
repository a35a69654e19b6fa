//! Flow++'s mixture of logistics (Ho et al. 2019, arXiv 1902.00275, section 3.2), each element with its own mixture.
//!
//! ```text
//! F(x) = sum_k pi_k sigmoid((x - mu_k) / s_k),     y = exp(a) logit F(x) + b
//! log dy/dx = a + log F'(x) - log F(x) - log (1 - F(x))
//! ```
//!
//! with pi = softmax of K numbers, mu_k = g_k h, log s_k and a = c tanh(h / c); g_k = 1/K, -2/K, 3/K, .. and c = 7.
//!
//! **Shapes.** x, y (B, C, ..), parameters h (B, (3 K + 2) C, ..): the first of all elements, then the second. K for pi, K for mu,
//! K for log s, then a and b. f32 and f64.
//!
//! On the CPU a block of sixteen elements passes at once, in f64 whatever the tensors' type is; on a GPU candle's operations run.
//!
//! **Far from all components** F or 1 - F is too small for any floating point number. Let u_k = (x - mu_k) / s_k, and d the smallest
//! |u_k| where all u_k have one sign, 0 otherwise. The kernel computes F e^d where all are negative, (1 - F) e^d where all are
//! positive, and F' e^d always. With brackets for what is computed
//!
//! ```text
//! logit F = log ([F] / [1 - F]) +- d,     (logit F)' = [F'] / ([F] [1 - F])
//! ```
//!
//! so that a component takes one exponential, exp(d - |u_k|), and an element two logarithms.

mod cpu;
pub(crate) mod reference;
mod spec;

pub use spec::MixtureSpec;

use crate::device::Path;
use crate::lanes;
use crate::rows::check_params;
use candle_core::{Result, Tensor};

impl MixtureSpec {
    /// y and log dy/dx of each element, both in x's shape.
    ///
    /// # Errors
    /// If h does not have 3 K + 2 numbers for each element of x, or dtypes differ.
    pub fn forward(&self, x: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check_shapes(x, h)?;
        match Path::of(&[x, h]) {
            Path::Cpu => lanes::forward(self, x, h),
            _ => reference::forward(self, x, h),
        }
    }

    /// x from y and the parameters: to 4 eps (1 + |x|), eps being the distance from 1 to the next number of the dtype, and to the
    /// rounding of F and y.
    ///
    /// # Errors
    /// As [`MixtureSpec::forward`].
    pub fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        self.check_shapes(y, h)?;
        match Path::of(&[y, h]) {
            Path::Cpu => lanes::inverse(self, y, h),
            _ => reference::inverse(self, y, h),
        }
    }

    /// The gradients of x and h, from those of y and of log dy/dx.
    ///
    /// # Errors
    /// As [`MixtureSpec::forward`].
    pub fn backward(&self, x: &Tensor, h: &Tensor, gy: &Tensor, gs: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check_shapes(x, h)?;
        let (x, h, gy, gs) = (&x.detach(), &h.detach(), &gy.detach(), &gs.detach());
        match Path::of(&[x, h, gy, gs]) {
            Path::Cpu => lanes::backward(self, (x, h), (gy, gs)),
            _ => reference::backward(self, (x, h), (gy, gs)),
        }
    }

    fn check_shapes(&self, x: &Tensor, h: &Tensor) -> Result<()> {
        check_params(&format!("a mixture of {}", self.components), self.params(), x, h)
    }
}
