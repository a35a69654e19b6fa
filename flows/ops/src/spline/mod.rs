//! The rational-quadratic spline (Durkan et al. 2019, arXiv 1906.04032, section 3.1), each element with its own knots.
//!
//! ```text
//! in [x_k, x_k+1]:   t = (x - x_k) / w_k,   w_k = x_k+1 - x_k,   h_k = y_k+1 - y_k,   s_k = h_k / w_k
//!
//!            h_k (s_k t^2 + d_k t (1 - t))                       s_k^2 (d_k+1 t^2 + 2 s_k t (1 - t) + d_k (1 - t)^2)
//! y = y_k + ---------------------------------------,   dy/dx = -------------------------------------------------------
//!           s_k + (d_k+1 + d_k - 2 s_k) t (1 - t)                    (s_k + (d_k+1 + d_k - 2 s_k) t (1 - t))^2
//! ```
//!
//! and y = x outside [-B, B]. Widths and heights are shares of 2 B by softmax, inner slopes softplus(h + c) with the c that makes them 1 at
//! h = 0, the two outer ones 1.
//!
//! **Shapes.** x, y (B, C, ..), parameters h (B, (3 K - 1) C, ..): the first of all elements, then the second. f32 and f64.
//!
//! On the CPU a block of sixteen elements passes at once, in f64 whatever the tensors' type is: the inverse is then off by what
//! rounding y costs, and no more. On a GPU candle's operations run.

mod cpu;
pub(crate) mod reference;
mod spec;

pub use spec::SplineSpec;

use crate::autodiff::gradients;
use crate::device::Path;
use crate::lanes;
use candle_core::{Result, Tensor};

impl SplineSpec {
    /// y and log dy/dx of each element, both in x's shape.
    ///
    /// # Errors
    /// If h does not have 3 K - 1 numbers for each element of x, or dtypes differ.
    pub fn forward(&self, x: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check_shapes(x, h)?;
        match Path::of(&[x, h]) {
            Path::Cpu => lanes::forward(self, x, h),
            _ => reference::forward(self, x, h),
        }
    }

    /// x from y and the parameters.
    ///
    /// # Errors
    /// As [`SplineSpec::forward`].
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
    /// As [`SplineSpec::forward`].
    pub fn backward(
        &self,
        x: &Tensor,
        h: &Tensor,
        gy: &Tensor,
        grad_log_slope: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        self.check_shapes(x, h)?;
        let (x, h, gy, gs) = (&x.detach(), &h.detach(), &gy.detach(), &grad_log_slope.detach());
        if Path::of(&[x, h, gy, gs]) == Path::Cpu {
            return lanes::backward(self, (x, h), (gy, gs));
        }
        let of = |v: &[candle_core::Var]| {
            reference::forward(self, &v[0], &v[1]).map(|(y, log_slope)| vec![y, log_slope])
        };
        let mut both = gradients(&[x, h], &[gy, gs], of)?.into_iter();
        let mut next = || both.next().expect("one for each input");
        Ok((next(), next()))
    }
}
