//! NICE's additive transform (section 3.2).

use super::partition::Changed;
use super::transform::Transform;
use crate::core::{Ctx, Gradients};
use crate::ops::coupling::{AffineSpec, ScaleFn};
use candle_core::{Result, Tensor};

/// A shift, which preserves volume:
///
/// ```text
/// y = x + t,     log dy/dx = 0
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Additive;

impl Additive {
    /// Numbers that the network gives for each element: t.
    pub const PARAMS: usize = 1;

    fn spec<'a>(changed: &Changed<'a>) -> AffineSpec<'a> {
        let Changed { channels, mask } = changed.clone();
        AffineSpec { scale: ScaleFn::Zero, gain: None, shift_first: false, changed: channels, mask }
    }
}

impl Transform for Additive {
    fn params_per_element(&self) -> usize {
        Self::PARAMS
    }

    fn forward(&self, x: &Tensor, h: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        Ok(((x + h)?, x.zeros_like()?))
    }

    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        y - h
    }

    fn preserves_volume(&self) -> bool {
        true
    }

    fn forward_whole(&self, x: &Tensor, h: &Tensor, changed: &Changed, _: Ctx) -> Result<(Tensor, Tensor)> {
        Self::spec(changed).forward(x, h)
    }

    fn inverse_whole(&self, y: &Tensor, h: &Tensor, changed: &Changed) -> Result<Tensor> {
        Self::spec(changed).inverse(y, h)
    }

    fn backward_whole(
        &self,
        (x, h): (&Tensor, &Tensor),
        changed: &Changed,
        (gy, grad_log_det): (&Tensor, &Tensor),
        _ctx: Ctx,
        _grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let back = Self::spec(changed).backward(x, h, gy, grad_log_det)?;
        Ok((back.gx, back.gnet))
    }
}
