//! Updates of parameters in candle's operations.

use super::spec::RuleStep;
use candle_core::{Result, Tensor};

/// [`super::step`].
pub(crate) fn step(
    p: &Tensor,
    state: &Tensor,
    g: &Tensor,
    factor: f64,
    keep: f64,
    step: RuleStep,
) -> Result<()> {
    let g = (g.flatten_all()? * factor)?;
    let (m, v) = (state.get(0)?, state.get(1)?);
    let mix = |a: &Tensor, d: f64, b: &Tensor| (a * d)? + (b * (1. - d))?;
    let (m, v, moved) = match step {
        RuleStep::Adam { b1, b2, a, c, eps } => {
            let (m, v) = (mix(&m, b1, &g)?, mix(&v, b2, &g.sqr()?)?);
            let moved = ((&m * a)? / ((v.sqrt()? * c)? + eps)?)?;
            (m, v, moved)
        }
        RuleStep::Adamax { b1, b2, a, eps } => {
            let (m, u) = (mix(&m, b1, &g)?, (v * b2)?.maximum(&g.abs()?)?);
            let moved = ((&m * a)? / (&u + eps)?)?;
            (m, u, moved)
        }
        RuleStep::RmsProp { rho, momentum, lr, eps } => {
            let v = mix(&v, rho, &g.sqr()?)?;
            let m = ((m * momentum)? + ((&g * lr)? / (&v + eps)?.sqrt()?)?)?;
            (m.clone(), v, m)
        }
    };
    state.slice_set(&Tensor::stack(&[m, v], 0)?, 0, 0)?;
    set(p, &((p.flatten_all()? * keep)? - moved)?.reshape(p.shape())?)
}

/// [`super::average`].
pub(crate) fn average(e: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    set(e, &((e * decay)? + (p * (1. - decay))?)?)
}

/// Overwrites the values of `to`, which may be a scalar, in place.
///
/// # Errors
/// If shapes or dtypes differ.
pub fn set(to: &Tensor, from: &Tensor) -> Result<()> {
    if to.rank() == 0 {
        return to.reshape(1)?.slice_set(&from.reshape(1)?, 0, 0);
    }
    to.slice_set(&from.contiguous()?, 0, 0)
}
