//! The spline in candle's operations. An input outside [-B, B] is replaced by 0 before any arithmetic, so that the branch which is not
//! taken has a finite gradient.

use super::spec::SplineSpec;
use crate::elementwise::softplus;
use crate::rows::{column, count_up_to, partial_sums, row, rows, softmax};
use candle_core::{Result, Tensor};

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

/// Whether each element is within the bound, and the elements with 0 for those that are not, (1, N).
fn inside(spline: &SplineSpec, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let x = row(x)?;
    let inside = x.detach().abs()?.le(spline.bound)?;
    let within = inside.where_cond(&x, &x.zeros_like()?)?;
    Ok((inside, within))
}

/// The positions of all K + 1 knots along the x axis and along the y axis, from the network's 2 K numbers for them.
fn knots(spline: &SplineSpec, h: &Tensor) -> Result<(Tensor, Tensor)> {
    let (k, n) = (spline.bins, h.dim(1)?);
    let least = [spline.min_width, spline.min_height];
    let rest = least.map(|least| 1. - least * k as f64);
    let of_axis = |values: &[f64]| column(values, h)?.unsqueeze(2);
    let share = softmax(&h.reshape((2, k, n))?)?;
    let share = share.broadcast_mul(&of_axis(&rest)?)?.broadcast_add(&of_axis(&least)?)?;
    let inner = partial_sums(&share)?.affine(2. * spline.bound, -spline.bound)?;
    let end = h.detach().narrow(0, 0, 1)?.zeros_like()?;
    let axis = |i: usize| {
        let inner = inner.get(i)?.narrow(0, 0, k - 1)?;
        Tensor::cat(&[&(&end - spline.bound)?, &inner, &(&end + spline.bound)?], 0)
    };
    Ok((axis(0)?, axis(1)?))
}

/// The pieces that the elements `at` (1, N) are in, along the y axis if `inverse`, and otherwise along the x axis.
fn pieces(spline: &SplineSpec, at: &Tensor, h: &Tensor, inverse: bool) -> Result<Piece> {
    let k = spline.bins;
    let h = rows(h, spline.params())?;
    let (xs, ys) = knots(spline, &h.narrow(0, 0, 2 * k)?)?;
    let c = spline.slope_shift();
    let inner = (softplus(&(h.narrow(0, 2 * k, k - 1)? + c)?)? + spline.min_slope)?;
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

/// [`SplineSpec::forward`].
pub(crate) fn forward(spline: &SplineSpec, x: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
    let (inside, within) = inside(spline, x)?;
    let p = pieces(spline, &within, h, false)?;
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

/// [`SplineSpec::inverse`]. With r = y - y_k: a t^2 + b t + c = 0 where a = h (s - d_k) + r bend, b = h d_k - r bend, c = -s r (section 3.1, and
/// appendix A.3).
pub(crate) fn inverse(spline: &SplineSpec, y: &Tensor, h: &Tensor) -> Result<Tensor> {
    let (inside, within) = inside(spline, y)?;
    let p = pieces(spline, &within, h, true)?;
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
