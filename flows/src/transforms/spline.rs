//! Rational-quadratic splines (Durkan, Bekasov, Murray, Papamakarios 2019, "Neural Spline Flows", arXiv 1906.04032).

use super::rows::{column, count_up_to, partial_sums, row, rows, softmax};
use super::transform::Transform;
use crate::core::Ctx;
use crate::ops::elementwise::softplus;
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
/// computed. An input outside [-B, B] is replaced by 0 before any arithmetic of the spline, so that the branch which is not taken
/// has a finite gradient.
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

/// The piece that each element is in, (1, N) each.
struct Piece {
    /// x_k and w_k.
    x: Tensor,
    width: Tensor,
    /// y_k and h_k.
    y: Tensor,
    height: Tensor,
    /// h_k / w_k.
    slope: Tensor,
    /// d_k.
    left: Tensor,
    /// d_k+1 + d_k - 2 s_k.
    bend: Tensor,
}

impl RationalQuadraticSpline {
    /// The most pieces that are accepted.
    const MOST_BINS: usize = 1024;

    /// Whether each element is within the bound, and the elements with 0 for those that are not, (1, N).
    fn inside(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = row(x)?;
        let inside = x.detach().abs()?.le(self.bound)?;
        let within = inside.where_cond(&x, &x.zeros_like()?)?;
        Ok((inside, within))
    }

    /// The positions of all K + 1 knots along the x axis and along the y axis, from the network's 2 K numbers for them.
    fn knots(&self, h: &Tensor) -> Result<(Tensor, Tensor)> {
        let (k, n) = (self.bins, h.dim(1)?);
        let least = [self.min_width, self.min_height];
        let rest = least.map(|least| 1. - least * k as f64);
        let of_axis = |values: &[f64]| column(values, h)?.unsqueeze(2);
        let share = softmax(&h.reshape((2, k, n))?)?;
        let share = share.broadcast_mul(&of_axis(&rest)?)?.broadcast_add(&of_axis(&least)?)?;
        let inner = partial_sums(&share)?.affine(2. * self.bound, -self.bound)?;
        let end = h.detach().narrow(0, 0, 1)?.zeros_like()?;
        let axis = |i: usize| {
            let inner = inner.get(i)?.narrow(0, 0, k - 1)?;
            Tensor::cat(&[&(&end - self.bound)?, &inner, &(&end + self.bound)?], 0)
        };
        Ok((axis(0)?, axis(1)?))
    }

    /// The pieces that the elements `at` (1, N) are in, along the y axis if `inverse`, and otherwise along the x axis.
    fn pieces(&self, at: &Tensor, h: &Tensor, inverse: bool) -> Result<Piece> {
        let k = self.bins;
        let h = rows(h, self.params_per_element())?;
        let (xs, ys) = self.knots(&h.narrow(0, 0, 2 * k)?)?;
        // softplus(c) = 1 - min_slope.
        let c = (1. - self.min_slope).exp_m1().ln();
        let inner = (softplus(&(h.narrow(0, 2 * k, k - 1)? + c)?)? + self.min_slope)?;
        let one = inner.narrow(0, 0, 1)?.detach().ones_like()?;
        let slopes = Tensor::cat(&[&one, &inner, &one], 0)?;
        let inner_knots = if inverse { &ys } else { &xs }.narrow(0, 1, k - 1)?;
        let left = count_up_to(&inner_knots, at)?;
        let right = (&left + left.ones_like()?)?;
        let (x, y, d) = (xs.gather(&left, 0)?, ys.gather(&left, 0)?, slopes.gather(&left, 0)?);
        let width = (xs.gather(&right, 0)? - &x)?;
        let height = (ys.gather(&right, 0)? - &y)?;
        let slope = (&height / &width)?;
        let bend = ((slopes.gather(&right, 0)? + &d)? - (&slope * 2.)?)?;
        Ok(Piece { x, width, y, height, slope, left: d, bend })
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
        self.check()?;
        let (inside, within) = self.inside(x)?;
        let p = self.pieces(&within, h, false)?;
        let t = ((&within - &p.x)? / &p.width)?;
        let rest = (1. - &t)?;
        let both = (&t * &rest)?;
        let denominator = (&p.slope + (&p.bend * &both)?)?;
        let numerator = ((&p.slope * t.sqr()?)? + (&p.left * &both)?)?;
        let y = (&p.y + (&p.height * (numerator / &denominator)?)?)?;
        // d_k+1 t^2 + 2 s t (1 - t) + d_k (1 - t)^2, with d_k+1 = bend + 2 s - d_k.
        let right = ((&p.bend - &p.left)? + (&p.slope * 2.)?)?;
        let slopes = (((right * t.sqr()?)? + ((&p.slope * 2.)? * &both)?)? + (&p.left * rest.sqr()?)?)?;
        let log_slope = ((slopes.log()? + (p.slope.log()? * 2.)?)? - (denominator.log()? * 2.)?)?;
        let y = inside.where_cond(&y, &row(x)?)?.reshape(x.shape())?;
        let log_slope = inside.where_cond(&log_slope, &log_slope.zeros_like()?)?.reshape(x.shape())?;
        Ok((y, log_slope))
    }

    /// With r = y - y_k: a t^2 + b t + c = 0 where a = h (s - d_k) + r bend, b = h d_k - r bend, c = -s r (section 3.1, and
    /// appendix A.3).
    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        self.check()?;
        let (inside, within) = self.inside(y)?;
        let p = self.pieces(&within, h, true)?;
        let r = (&within - &p.y)?;
        let bent = (&r * &p.bend)?;
        let a = ((&p.height * (&p.slope - &p.left)?)? + &bent)?;
        let b = ((&p.height * &p.left)? - &bent)?;
        let c = (&p.slope * &r)?.neg()?;
        let root = (b.sqr()? - ((&a * &c)? * 4.)?)?.relu()?.sqrt()?;
        // t = 2 c / (-b - root) = (-b + root) / (2 a): where b is negative, the first form would subtract what is nearly equal.
        let positive = b.detach().ge(0.)?;
        let q = (positive.where_cond(&(&b + &root)?, &(&b - &root)?)? * -0.5)?;
        let t = (positive.where_cond(&c, &q)? / positive.where_cond(&q, &a)?)?;
        let x = (&p.x + (t * &p.width)?)?;
        inside.where_cond(&x, &row(y)?)?.reshape(y.shape())
    }
}
