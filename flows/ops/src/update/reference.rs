//! Updates of parameters in candle's operations.

use super::spec::{Accumulate, Apply};
use candle_core::{Result, Tensor};

/// [`super::accumulate`].
pub(crate) fn accumulate(state: &Tensor, g: &Tensor, clip: f64, rule: Accumulate) -> Result<()> {
    let g = (g.flatten_all()? * clip)?;
    let (m, v) = (state.get(0)?, state.get(1)?);
    let mix = |a: &Tensor, d: f64, b: &Tensor| (a * d)? + (b * (1. - d))?;
    let (m, v) = match rule {
        Accumulate::Adam { b1, b2 } => (mix(&m, b1, &g)?, mix(&v, b2, &g.sqr()?)?),
        Accumulate::Adamax { b1, b2 } => (mix(&m, b1, &g)?, (v * b2)?.maximum(&g.abs()?)?),
        Accumulate::RmsProp { rho, mu, lr, eps } => {
            let v = mix(&v, rho, &g.sqr()?)?;
            let step = ((&g * lr)? / (&v + eps)?.sqrt()?)?;
            (((m * mu)? + step)?, v)
        }
    };
    state.slice_set(&Tensor::stack(&[m, v], 0)?, 0, 0)
}

/// [`super::apply`].
pub(crate) fn apply(p: &Tensor, state: &Tensor, rule: Apply) -> Result<()> {
    let (m, v) = (state.get(0)?, state.get(1)?);
    let step = match rule {
        Apply::Adam { a, c, eps } => ((m * a)? / ((v.sqrt()? * c)? + eps)?)?,
        Apply::Adamax { a, c, eps } => ((m * a)? / ((v * c)? + eps)?)?,
        Apply::Momentum => m,
    };
    set(p, &(p.flatten_all()? - step)?.reshape(p.shape())?)
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
