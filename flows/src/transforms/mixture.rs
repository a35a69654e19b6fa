//! Flow++'s mixture of logistics (Ho, Chen, Srinivas, Duan, Abbeel 2019, arXiv 1902.00275, section 3.2).

use super::transform::Transform;
use crate::core::Ctx;
use crate::ops::elementwise::softplus;
use crate::ops::rows::{column, log_sum_exp, row, rows};
use candle_core::{DType, Result, Tensor, bail};
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
/// F itself.
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

/// The largest |log s| and |a|.
const LARGEST_LOG_SCALE: f64 = 7.;

/// The most steps of the inverse: a third of them halve a bracket below any tolerance, and Newton's method needs about ten.
const MOST_STEPS: usize = 300;

/// The parameters of each element, in columns.
struct Components {
    /// log pi, mu and log s, (K, N).
    log_weight: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    /// a and b, (1, N).
    a: Tensor,
    b: Tensor,
}

/// c tanh(h / c).
fn bounded(h: &Tensor) -> Result<Tensor> {
    (h / LARGEST_LOG_SCALE)?.tanh()? * LARGEST_LOG_SCALE
}

impl Components {
    fn detach(&self) -> Self {
        let Self { log_weight, mean, log_scale, a, b } = self;
        let [log_weight, mean, log_scale, a, b] = [log_weight, mean, log_scale, a, b].map(Tensor::detach);
        Self { log_weight, mean, log_scale, a, b }
    }

    /// logit F(x), and the log of its derivative, for a row x (1, N).
    ///
    /// With u_k = (x - mu_k) / s_k and p_k = softplus(-u_k): log sigmoid(u_k) = -p_k, log sigmoid(-u_k) = -u_k - p_k.
    fn logit_cdf(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let u = (x.broadcast_sub(&self.mean)? * self.log_scale.neg()?.exp()?)?;
        let p = softplus(&u.neg()?)?;
        let below = (&self.log_weight - &p)?;
        let density = log_sum_exp(&((&below - (&u + &p)?)? - &self.log_scale)?)?;
        let above = log_sum_exp(&((&self.log_weight - &p)? - &u)?)?;
        let below = log_sum_exp(&below)?;
        Ok(((&below - &above)?, ((density - below)? - above)?))
    }

    /// x with logit F(x) = u, outside candle's graph.
    fn solve(&self, u: &Tensor) -> Result<Tensor> {
        let ends = (self.log_scale.exp()?.broadcast_mul(u)? + &self.mean)?;
        let (mut lo, mut hi) = (ends.min_keepdim(0)?, ends.max_keepdim(0)?);
        let eps = if u.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let tolerance = |x: &Tensor| (x.abs()? + 1.)? * (8. * eps);
        let middle = |lo: &Tensor, hi: &Tensor| (lo + hi)? * 0.5;
        // All components the same: the ends are the solution up to rounding.
        let slack = tolerance(&middle(&lo, &hi)?)?;
        (lo, hi) = ((lo - (&slack * 0.5)?)?, (hi + (&slack * 0.5)?)?);
        let mut x = middle(&lo, &hi)?;
        for step in 1..=MOST_STEPS {
            let (value, log_slope) = self.logit_cdf(&x)?;
            let off = (value - u)?;
            let above = off.gt(0.)?;
            hi = above.where_cond(&x, &hi)?;
            lo = above.where_cond(&lo, &x)?;
            let tolerance = tolerance(&x)?;
            let open = (&hi - &lo)?.gt(&tolerance)?;
            if open.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? == 0 {
                break;
            }
            let halved = middle(&lo, &hi)?;
            // A little past the root, so that the bracket closes from both sides.
            let past = above.where_cond(&tolerance.neg()?, &tolerance)?;
            let newton = ((&x - (off * log_slope.neg()?.exp()?)?)? + (past * 0.5)?)?;
            let within = (newton.gt(&lo)? * newton.lt(&hi)?)?;
            x = if step % 3 == 0 { halved } else { within.where_cond(&newton, &halved)? };
        }
        middle(&lo, &hi)
    }
}

impl MixtureOfLogistics {
    /// The most components that are accepted.
    const MOST_COMPONENTS: usize = 1024;

    /// g_k, the factors of the means.
    fn mean_factors(&self) -> Vec<f64> {
        let sign = |i| if i % 2 == 0 { 1. } else { -1. };
        (0..self.components).map(|i| sign(i) * (i + 1) as f64 / self.components as f64).collect()
    }

    fn components(&self, h: &Tensor) -> Result<Components> {
        let k = self.components;
        let h = rows(h, self.params_per_element())?;
        let weight = h.narrow(0, 0, k)?;
        let log_weight = weight.broadcast_sub(&log_sum_exp(&weight)?)?;
        let mean = h.narrow(0, k, k)?.broadcast_mul(&column(&self.mean_factors(), &h)?)?;
        let log_scale = bounded(&h.narrow(0, 2 * k, k)?)?;
        let (a, b) = (bounded(&h.narrow(0, 3 * k, 1)?)?, h.narrow(0, 3 * k + 1, 1)?);
        Ok(Components { log_weight, mean, log_scale, a, b })
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
        self.check()?;
        let c = self.components(h)?;
        let (u, log_slope) = c.logit_cdf(&row(x)?)?;
        let y = ((u * c.a.exp()?)? + &c.b)?;
        Ok((y.reshape(x.shape())?, (log_slope + c.a)?.reshape(x.shape())?))
    }

    /// On candle's graph a step of Newton's method from the solution has the gradient: x - (logit F(x) - u) / (logit F)'(x), where
    /// x and the derivative are constants.
    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        self.check()?;
        let c = self.components(h)?;
        let u = ((row(y)? - &c.b)? * c.a.neg()?.exp()?)?;
        let x = c.detach().solve(&u.detach())?;
        if !u.track_op() {
            return x.reshape(y.shape());
        }
        let (value, log_slope) = c.logit_cdf(&x)?;
        (&x - ((value - u)? * log_slope.detach().neg()?.exp()?)?)?.reshape(y.shape())
    }
}
