//! RealNVP's and Glow's affine transform.

use super::partition::Changed;
use super::transform::Transform;
use crate::core::{Ctx, Gradients, Pieces};
use crate::ops::coupling::{AffineSpec, ScaleFn};
use crate::ops::elementwise::log_sigmoid;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor, bail};

/// A shift t and a log-scale s:
///
/// ```text
/// y = x exp(s) + t,  or with `shift_first`  y = (x + t) exp(s),     log dy/dx = s
/// ```
///
/// (RealNVP, section 3.2; the released codes of both papers shift first.) The network gives the shifts and the raw scales
/// that [`Scale`] turns into s.
pub struct Affine {
    /// How s comes from the network's raw scale.
    pub scale: Scale,
    /// Shift before scaling.
    pub shift_first: bool,
}

/// The log-scale s as a function of the network's raw scale h.
pub enum Scale {
    /// s = h.
    Exp,
    /// s = gain tanh(h) with a learned gain (RealNVP section 4.1), one number.
    Tanh {
        /// The learned gain, (1,).
        gain: Param,
    },
    /// s = log sigmoid(h + 2) (Glow's code): scales in (0, 1), .88 at first.
    Sigmoid,
}

impl Affine {
    /// Numbers that the network gives for each element: t and h.
    pub const PARAMS: usize = 2;

    /// x exp(g tanh(h)) + t with a learned gain g, the parameter `gain`, which starts at 1.
    ///
    /// # Errors
    /// When `vb` has no such tensor.
    pub fn tanh(vb: &ParamBuilder) -> Result<Self> {
        Ok(Self { scale: Scale::Tanh { gain: vb.get(1, "gain", Init::Const(1.))? }, shift_first: false })
    }

    /// t and s of the network's output.
    fn shift_log_scale(&self, h: &Tensor, grad: bool) -> Result<(Tensor, Tensor)> {
        let c = h.dim(1)? / 2;
        let (t, h) = (h.narrow(1, 0, c)?, h.narrow(1, c, c)?);
        let s = match &self.scale {
            Scale::Exp => h,
            Scale::Sigmoid => log_sigmoid(&(h + 2.)?)?,
            Scale::Tanh { gain } => {
                if gain.value().elem_count() != 1 {
                    bail!("a coupling's learned gain is one number, got {:?}", gain.value().shape());
                }
                h.tanh()?.broadcast_mul(&gain.get(grad).reshape(1)?)?
            }
        };
        Ok((t, s))
    }

    fn spec<'a>(&'a self, changed: &Changed<'a>) -> AffineSpec<'a> {
        let (scale, gain) = match &self.scale {
            Scale::Exp => (ScaleFn::Exp, None),
            Scale::Sigmoid => (ScaleFn::Sigmoid, None),
            Scale::Tanh { gain } => (ScaleFn::Tanh, Some(gain.value())),
        };
        let Changed { channels, mask } = changed.clone();
        AffineSpec { scale, gain, shift_first: self.shift_first, changed: channels, mask }
    }
}

impl Transform for Affine {
    fn params_per_element(&self) -> usize {
        Self::PARAMS
    }

    fn forward(&self, x: &Tensor, h: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let (t, s) = self.shift_log_scale(h, ctx.grad)?;
        let y = if self.shift_first { (x + t)? * s.exp()? } else { (x * s.exp()?)? + t };
        Ok((y?, s))
    }

    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        let (t, s) = self.shift_log_scale(h, false)?;
        if self.shift_first { (y / s.exp()?)? - t } else { (y - t)? / s.exp()? }
    }

    fn pieces(&self) -> Pieces {
        Pieces::Line
    }

    fn forward_whole(&self, x: &Tensor, h: &Tensor, changed: &Changed, _: Ctx) -> Result<(Tensor, Tensor)> {
        self.spec(changed).forward(x, h)
    }

    fn inverse_whole(&self, y: &Tensor, h: &Tensor, changed: &Changed) -> Result<Tensor> {
        self.spec(changed).inverse(y, h)
    }

    fn backward_whole(
        &self,
        (x, h): (&Tensor, &Tensor),
        changed: &Changed,
        (gy, grad_log_det): (&Tensor, &Tensor),
        _ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let back = self.spec(changed).backward(x, h, gy, grad_log_det)?;
        if let (Scale::Tanh { gain }, Some(g)) = (&self.scale, back.ggain) {
            grads.add(gain, g.reshape(gain.value().shape())?)?;
        }
        Ok((back.gx, back.gnet))
    }
}
