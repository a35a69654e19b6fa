//! Rational-quadratic splines (Durkan, Bekasov, Murray, Papamakarios 2019, "Neural Spline Flows", arXiv 1906.04032).

use super::transform::Transform;
use crate::core::{Ctx, Gradients};
use crate::ops::spline::SplineSpec;
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// A monotone spline of K rational-quadratic pieces on [-B, B], and the identity outside (section 3.1):
///
/// ```text
/// in [x_k, x_k+1]:   t = (x - x_k) / w_k,   w_k = x_k+1 - x_k,   h_k = y_k+1 - y_k,   s_k = h_k / w_k
///
///            h_k (s_k t^2 + d_k t (1 - t))                       s_k^2 (d_k+1 t^2 + 2 s_k t (1 - t) + d_k (1 - t)^2)
/// y = y_k + ---------------------------------------,   dy/dx = -------------------------------------------------------
///           s_k + (d_k+1 + d_k - 2 s_k) t (1 - t)                    (s_k + (d_k+1 + d_k - 2 s_k) t (1 - t))^2
/// ```
///
/// The network gives 3 K - 1 numbers for each element: K for the widths, K for the heights, both by softmax, and K - 1 for the
/// slopes d_1, .., d_K-1 at the inner knots, by softplus. The slopes at -B and B are 1, as those of the identity beyond.
///
/// h = 0 is the identity: slopes are softplus(h + c) with a constant c that makes them 1 there. nflows, which has the paper's
/// parameters otherwise, starts with inner slopes of .694.
///
/// The inverse solves a quadratic equation; of the two forms of its root the one that adds numbers of the same sign is
/// computed. The kernels are in [`flows_ops::spline`](crate::ops::spline).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RationalQuadraticSpline {
    /// Pieces K.
    pub bins: usize,
    /// B: the spline is the identity outside [-B, B].
    pub bound: f64,
    /// The smallest width of a piece, as a share of 2 B.
    pub min_width: f64,
    /// The smallest height of a piece, as a share of 2 B.
    pub min_height: f64,
    /// The smallest slope at a knot.
    pub min_slope: f64,
}

/// The paper's K and smallest sizes (appendix B). Its B is 3 for standardized data; 5 leaves fewer examples of heavy tails to the
/// identity, as in zuko.
impl Default for RationalQuadraticSpline {
    fn default() -> Self {
        Self { bins: 8, bound: 5., min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 }
    }
}

impl RationalQuadraticSpline {
    /// The most pieces that are accepted.
    const MOST_BINS: usize = 1024;

    fn spec(&self) -> Result<SplineSpec> {
        self.check()?;
        let Self { bins, bound, min_width, min_height, min_slope } = *self;
        Ok(SplineSpec { bins, bound, min_width, min_height, min_slope })
    }
}

impl Transform for RationalQuadraticSpline {
    fn params_per_element(&self) -> usize {
        3 * self.bins - 1
    }

    fn check(&self) -> Result<()> {
        let Self { bins, bound, min_width, min_height, min_slope } = *self;
        if !(2..=Self::MOST_BINS).contains(&bins) {
            bail!("`bins` = {bins}: a spline has from 2 to {} pieces", Self::MOST_BINS);
        }
        if !(bound > 0. && bound <= 1e6) {
            bail!("`bound` = {bound}: it must be above 0 and at most a million");
        }
        for (name, least) in [("min_width", min_width), ("min_height", min_height)] {
            if !(least >= 0. && least * (bins as f64) < 1.) {
                bail!(
                    "`{name}` = {least}: it must be at least 0 and below 1 / `bins`, which is {}",
                    1. / bins as f64
                );
            }
        }
        if !(min_slope > 0. && min_slope < 1.) {
            bail!("`min_slope` = {min_slope}: it must be above 0 and below 1");
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
