//! Flow++'s mixture of logistics (Ho, Chen, Srinivas, Duan, Abbeel 2019, arXiv 1902.00275, section 3.2).

use super::transform::Transform;
use crate::core::{Ctx, Gradients};
use crate::ops::mixture::MixtureSpec;
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// The distribution function of a mixture of K logistics, then the logit, then a scale and a shift (section 3.2):
///
/// ```text
/// F(x) = sum_k pi_k sigmoid((x - mu_k) / s_k),     y = exp(a) logit F(x) + b
/// log dy/dx = a + log F'(x) - log F(x) - log (1 - F(x))
/// ```
///
/// The network gives 3 K + 2 numbers for each element: K for pi, by softmax; K for mu; K for log s; a and b. log s and a are
/// c tanh(h / c) with c = 7, so that no scale reaches zero (the released code has -7 as the smallest log s).
///
/// **At h = 0** it is the identity: all components are the same, and the logit undoes the sigmoid. Components that are the same
/// have the same gradient, and would remain one for ever; therefore mu_k = g_k h with fixed factors g = 1/K, -2/K, 3/K, ..,
/// which all differ. (The released code draws the last layer's weights at random instead, and has no identity.)
///
/// **Inverse.** x lies between the smallest and the largest mu_k + s_k u with u = (y - b) exp(-a), since F is there at most and
/// at least sigmoid(u). From this bracket Newton's method, with bisection where a step leaves the bracket and at every third
/// step. The bracket shrinks around a change of sign of the computed function; its middle is returned once it is no longer than
/// 8 eps (1 + |x|), eps being the distance from 1 to the next number of the dtype. That bounds the error, up to the rounding of
/// F itself. The kernels are in [`flows_ops::mixture`](crate::ops::mixture).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureOfLogistics {
    /// Components K.
    pub components: usize,
}

/// The released code has 32 for images; 8 bend the densities of vectors as far as a spline of as many pieces.
impl Default for MixtureOfLogistics {
    fn default() -> Self {
        Self { components: 8 }
    }
}

impl MixtureOfLogistics {
    /// The most components that are accepted.
    const MOST_COMPONENTS: usize = 1024;

    fn spec(&self) -> Result<MixtureSpec> {
        self.check()?;
        Ok(MixtureSpec { components: self.components })
    }
}

impl Transform for MixtureOfLogistics {
    fn params_per_element(&self) -> usize {
        3 * self.components + 2
    }

    fn check(&self) -> Result<()> {
        let (k, most) = (self.components, Self::MOST_COMPONENTS);
        if !(1..=most).contains(&k) {
            bail!("`components` = {k}: a mixture has from 1 to {most}");
        }
        Ok(())
    }

    fn forward(&self, x: &Tensor, h: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        self.spec()?.forward(x, h)
    }

    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        self.spec()?.inverse(y, h)
    }

    fn backward(
        &self,
        (x, h): (&Tensor, &Tensor),
        (gy, grad_log_slope): (&Tensor, &Tensor),
        _ctx: Ctx,
        _grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        self.spec()?.backward(x, h, gy, grad_log_slope)
    }
}
