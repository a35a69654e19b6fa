//! The mixture in candle's operations.

use super::spec::{LARGEST_LOG_SCALE, MOST_STEPS, MixtureSpec};
use crate::autodiff::gradients;
use crate::elementwise::softplus;
use crate::rows::{column, log_sum_exp, row, rows};
use candle_core::{DType, Result, Tensor};

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

fn components(mixture: &MixtureSpec, h: &Tensor) -> Result<Components> {
    let k = mixture.components;
    let h = rows(h, mixture.params())?;
    let weight = h.narrow(0, 0, k)?;
    let log_weight = weight.broadcast_sub(&log_sum_exp(&weight)?)?;
    let factors: Vec<f64> = (0..k).map(|i| mixture.mean_factor(i)).collect();
    let mean = h.narrow(0, k, k)?.broadcast_mul(&column(&factors, &h)?)?;
    let log_scale = bounded(&h.narrow(0, 2 * k, k)?)?;
    let (a, b) = (bounded(&h.narrow(0, 3 * k, 1)?)?, h.narrow(0, 3 * k + 1, 1)?);
    Ok(Components { log_weight, mean, log_scale, a, b })
}

/// [`MixtureSpec::forward`].
pub(crate) fn forward(mixture: &MixtureSpec, x: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
    let c = components(mixture, h)?;
    let (u, log_slope) = c.logit_cdf(&row(x)?)?;
    let y = ((u * c.a.exp()?)? + &c.b)?;
    Ok((y.reshape(x.shape())?, (log_slope + c.a)?.reshape(x.shape())?))
}

/// [`MixtureSpec::inverse`]. On candle's graph a step of Newton's method from the solution has the gradient:
/// x - (logit F(x) - u) / (logit F)'(x), where x and the derivative are constants.
pub(crate) fn inverse(mixture: &MixtureSpec, y: &Tensor, h: &Tensor) -> Result<Tensor> {
    let c = components(mixture, h)?;
    let u = ((row(y)? - &c.b)? * c.a.neg()?.exp()?)?;
    let x = c.detach().solve(&u.detach())?;
    if !u.track_op() {
        return x.reshape(y.shape());
    }
    let (value, log_slope) = c.logit_cdf(&x)?;
    (&x - ((value - u)? * log_slope.detach().neg()?.exp()?)?)?.reshape(y.shape())
}

/// [`MixtureSpec::backward`].
pub(crate) fn backward(
    mixture: &MixtureSpec,
    (x, h): (&Tensor, &Tensor),
    (gy, gs): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor)> {
    let mut both = gradients(&[x, h], &[gy, gs], |v| {
        forward(mixture, &v[0], &v[1]).map(|(y, log_slope)| vec![y, log_slope])
    })?;
    let gh = both.pop().expect("one for each input");
    Ok((both.pop().expect("one for each input"), gh))
}
