//! Coupling: a partition, a network and a transform (NICE section 3.2, RealNVP sections 3.2 to 3.4, Glow section 3.3).
//!
//! ```text
//! y_a = x_a,     y_b = T(x_b; net(x_a))
//! ```
//!
//! The Jacobian is triangular, so its log-det is the sum of the logs of the diagonal of T, and the inverse needs the
//! network's output, never its inverse. NICE, RealNVP and Glow differ only in which three.

use crate::backward::{self, Gradients, Memory, Saved};
use crate::bijection::{Bijection, Ctx, sum_per_example, zeros_per_example};
use crate::latents::Inside;
use crate::ops::coupling::{self, AffineSpec, ScaleFn};
use crate::ops::elementwise::log_sigmoid;
use crate::params::{Param, Vb};
use candle_core::{Result, Tensor, bail};

/// The network of a coupling: any function of the kept part.
///
/// It sees (B, D_a) or (B, C_a, H, W), for a mask the whole input with the changed part zeroed, and gives the shift and,
/// for an affine transform, the raw scale: shape (B, C_b, ..) or (B, 2 C_b, ..), shifts first.
pub trait Net: Send + Sync {
    /// The transform's parameters.
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor>;

    /// The same outside any graph, keeping what [`Net::backward`] needs. The default keeps candle's graph.
    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Saved)> {
        backward::net_forward_saved(self, x, ctx)
    }

    /// The gradient of the input, from that of the output and what was kept; parameters' gradients go to `grads`.
    fn backward(&self, saved: Saved, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        backward::net_backward(saved, gy, grads)
    }
}

/// Which part is kept.
#[derive(Clone, Debug)]
pub enum Partition {
    /// The first floor(C / 2) channels are kept and the others changed; with `swap` the other way round.
    Halves {
        /// Keep the second part instead of the first.
        swap: bool,
    },
    /// 1 where kept, 0 where changed; broadcasts against (B, D) or (B, C, H, W).
    Mask(Tensor),
}

/// How the changed part is transformed.
pub enum Transform {
    /// y = x + t: volume-preserving (NICE, section 3.2).
    Additive,
    /// y = x exp(s) + t (RealNVP, section 3.2), or y = (x + t) exp(s) with `shift_first` (the released codes).
    Affine {
        /// How s comes from the network's raw output.
        scale: Scale,
        /// Shift before scaling.
        shift_first: bool,
    },
}

/// The log-scale s as a function of the network's raw output h.
pub enum Scale {
    /// s = h.
    Exp,
    /// s = gain tanh(h) with a learned gain (RealNVP section 4.1), one number.
    Tanh {
        /// The learned gain.
        gain: Param,
    },
    /// s = log sigmoid(h + 2) (Glow's code): scales in (0, 1), .88 at first.
    Sigmoid,
}

impl Scale {
    fn log_scale(&self, h: &Tensor, grad: bool) -> Result<Tensor> {
        match self {
            Scale::Exp => Ok(h.clone()),
            Scale::Tanh { gain } => h.tanh()?.broadcast_mul(&gain.get(grad).reshape(1).map_err(|e| {
                e.context(format!("a coupling's learned gain is one number, got {:?}", gain.value().shape()))
            })?),
            Scale::Sigmoid => log_sigmoid(&(h + 2.)?),
        }
    }
}

/// A coupling layer; see the module for the equation.
///
/// **Errors** where the input has fewer than two channels to halve, or the network's output has the wrong size.
pub struct Coupling {
    /// Which part is kept.
    pub partition: Partition,
    /// The network.
    pub net: Box<dyn Net>,
    /// How the other part is changed.
    pub transform: Transform,
}

impl Coupling {
    /// (kept, changed) of a halved tensor.
    fn split(x: &Tensor, swap: bool) -> Result<(Tensor, Tensor)> {
        if x.rank() < 2 || x.dim(1)? < 2 {
            bail!("cannot halve {:?}: a coupling needs at least two channels", x.shape());
        }
        let c = x.dim(1)?;
        let (a, b) = (x.narrow(1, 0, c / 2)?, x.narrow(1, c / 2, c - c / 2)?);
        Ok(if swap { (b, a) } else { (a, b) })
    }

    fn join(kept: &Tensor, changed: &Tensor, swap: bool) -> Result<Tensor> {
        if swap { Tensor::cat(&[changed, kept], 1) } else { Tensor::cat(&[kept, changed], 1) }
    }

    /// Shift and log-scale for a changed part of shape `like`.
    fn shift_scale(&self, h: &Tensor, like: &Tensor, grad: bool) -> Result<(Tensor, Option<Tensor>)> {
        self.check(h, like)?;
        let c = like.dim(1)?;
        match &self.transform {
            Transform::Additive => Ok((h.clone(), None)),
            Transform::Affine { scale, .. } => {
                let s = scale.log_scale(&h.narrow(1, c, c)?, grad)?;
                Ok((h.narrow(1, 0, c)?, Some(s)))
            }
        }
    }

    /// Errors if the network's output `h` does not fit a changed part of shape `like`.
    fn check(&self, h: &Tensor, like: &Tensor) -> Result<()> {
        let mut want = like.dims().to_vec();
        want[1] *= if matches!(self.transform, Transform::Additive) { 1 } else { 2 };
        if h.dims() != want {
            bail!("the coupling's network gave {:?}, {want:?} are needed", h.shape());
        }
        Ok(())
    }

    /// The law as one fused op, for a tensor of `c` channels; a mask is one of the partition's.
    fn law(&self, c: usize) -> Result<AffineSpec<'_>> {
        if c < 2 && matches!(self.partition, Partition::Halves { .. }) {
            bail!("cannot halve {c} channel: a coupling needs at least two channels");
        }
        let (changed, mask) = match &self.partition {
            Partition::Halves { swap: false } => (c / 2..c, None),
            Partition::Halves { swap: true } => (0..c / 2, None),
            Partition::Mask(mask) => (0..c, Some(mask)),
        };
        let (scale, gain) = match &self.transform {
            Transform::Additive => (ScaleFn::Zero, None),
            Transform::Affine { scale: Scale::Exp, .. } => (ScaleFn::Exp, None),
            Transform::Affine { scale: Scale::Sigmoid, .. } => (ScaleFn::Sigmoid, None),
            Transform::Affine { scale: Scale::Tanh { gain }, .. } => (ScaleFn::Tanh, Some(gain.value())),
        };
        Ok(AffineSpec { scale, gain, shift_first: self.shift_first(), changed, mask })
    }

    /// What the network sees: the kept part, or the input with its changed part zeroed.
    fn seen(&self, x: &Tensor) -> Result<Tensor> {
        match &self.partition {
            Partition::Halves { swap } => {
                let c = x.dim(1)?;
                let (start, n) = if *swap { (c / 2, c - c / 2) } else { (0, c / 2) };
                coupling::take_part(x, start, n)
            }
            Partition::Mask(mask) => coupling::masked(x, mask),
        }
    }

    fn shift_first(&self) -> bool {
        matches!(self.transform, Transform::Affine { shift_first: true, .. })
    }

    fn change(&self, x: &Tensor, t: &Tensor, s: Option<&Tensor>) -> Result<Tensor> {
        match s {
            None => x + t,
            Some(s) if self.shift_first() => (x + t)? * s.exp()?,
            Some(s) => (x * s.exp()?)? + t,
        }
    }

    /// Shift and log-scale under a mask: both zero where the input is kept.
    fn masked(&self, x: &Tensor, mask: &Tensor, ctx: Ctx) -> Result<(Tensor, Option<Tensor>)> {
        let h = self.net.forward(&x.broadcast_mul(mask)?, ctx)?;
        let (t, s) = self.shift_scale(&h, x, ctx.grad)?;
        let changed = (1. - mask)?;
        let s = s.map(|s| s.broadcast_mul(&changed)).transpose()?;
        Ok((t.broadcast_mul(&changed)?, s))
    }
}

/// What [`Memory::Store`] keeps of a pass.
struct Kept {
    x: Tensor,
    h: Tensor,
    net: Saved,
}

impl Bijection for Coupling {
    fn inside(&self, x: &Tensor, ctx: Ctx) -> Result<Inside> {
        if matches!(self.transform, Transform::Additive) {
            return Ok(Inside::Fixed);
        }
        let x = x.contiguous()?;
        let h = self.net.forward(&self.seen(&x)?, ctx.with_grad(false))?;
        let s = match &self.partition {
            Partition::Halves { swap } => self.shift_scale(&h, &Self::split(&x, *swap)?.1, false)?.1,
            Partition::Mask(mask) => match self.shift_scale(&h, &x, false)?.1 {
                Some(s) => Some(s.broadcast_mul(&(1. - mask)?)?),
                None => None,
            },
        };
        Ok(s.map_or(Inside::Fixed, Inside::Elements))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if !ctx.grad && !x.track_op() {
            let (z, log_det, _) = self.forward_saved(x, ctx, Memory::Recompute)?;
            return Ok((z, log_det));
        }
        let (z, s) = match &self.partition {
            Partition::Halves { swap } => {
                let (kept, changed) = Self::split(x, *swap)?;
                let h = self.net.forward(&kept.contiguous()?, ctx)?;
                let (t, s) = self.shift_scale(&h, &changed, ctx.grad)?;
                let y = self.change(&changed, &t, s.as_ref())?;
                (Self::join(&kept, &y, *swap)?, s)
            }
            Partition::Mask(mask) => {
                let (t, s) = self.masked(x, mask, ctx)?;
                (self.change(x, &t, s.as_ref())?, s)
            }
        };
        let log_det = match s {
            Some(s) => sum_per_example(&s)?,
            None => zeros_per_example(x)?,
        };
        Ok((z, log_det))
    }

    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        let z = z.contiguous()?;
        let law = self.law(z.dim(1)?)?;
        law.inverse(&z, &self.net.forward(&self.seen(&z)?, Ctx::eval().with_cond(cond))?.contiguous()?)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, Saved)> {
        let (x, ctx) = (x.detach().contiguous()?, ctx.with_grad(false));
        let law = self.law(x.dim(1)?)?;
        let seen = self.seen(&x)?;
        let (h, net) = match memory {
            Memory::Store => self.net.forward_saved(&seen, ctx)?,
            Memory::Recompute => (self.net.forward(&seen, ctx)?, Saved::nothing()),
        };
        let h = h.contiguous()?;
        let (z, log_det) = law.forward(&x, &h)?;
        let saved = match memory {
            Memory::Store => Saved::new(Kept { x, h, net }),
            Memory::Recompute => Saved::nothing(),
        };
        Ok((z, log_det, saved))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: Saved,
        (gz, gld): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let law = self.law(z.dim(1)?)?;
        let Kept { x, h, net } = match saved.take() {
            Some(kept) => kept,
            // The network's input is the same on both sides, so one run of it gives the inverse and the gradient.
            None => {
                let z = z.contiguous()?;
                let (h, net) = self.net.forward_saved(&self.seen(&z)?, ctx.replay().with_grad(false))?;
                let h = h.contiguous()?;
                Kept { x: law.inverse(&z, &h)?, h, net }
            }
        };
        let back = law.backward(&x, &h, gz, gld)?;
        drop(h);
        if let (Transform::Affine { scale: Scale::Tanh { gain }, .. }, Some(g)) =
            (&self.transform, back.ggain)
        {
            grads.add(gain, g.reshape(gain.value().shape())?)?;
        }
        let of_seen = self.net.backward(net, &back.gnet, grads)?;
        let gx = match &self.partition {
            Partition::Halves { swap } => {
                let start = if *swap { z.dim(1)? / 2 } else { 0 };
                coupling::add_part(&back.gx, &of_seen, start)?
            }
            Partition::Mask(mask) => coupling::add_masked(&back.gx, &of_seen, mask)?,
        };
        Ok((x, gx))
    }

    fn rebuild(&self, z: &Tensor, _saved: &Saved, ctx: Ctx) -> Result<Tensor> {
        let z = z.contiguous()?;
        let h = self.net.forward(&self.seen(&z)?, ctx.replay().with_grad(false))?;
        self.law(z.dim(1)?)?.inverse(&z, &h.contiguous()?)
    }
}

/// The checkerboard mask of RealNVP (figure 3): 1 where i + j is even, the other way round with `swap`; (1, 1, H, W).
pub fn checkerboard(h: usize, w: usize, swap: bool, vb: &Vb) -> Result<Tensor> {
    let v = (0..h * w).map(|p| f32::from(u8::from((p / w + p % w + usize::from(swap)).is_multiple_of(2))));
    mask(v.collect(), &[1, 1, h, w], vb)
}

/// The channel-wise mask of RealNVP: 1 for the first half of the channels, the other way round with `swap`;
/// (1, C, 1, 1).
pub fn channel_mask(c: usize, swap: bool, vb: &Vb) -> Result<Tensor> {
    let v = (0..c).map(|ch| f32::from(u8::from((ch < c / 2) != swap)));
    mask(v.collect(), &[1, c, 1, 1], vb)
}

fn mask(v: Vec<f32>, shape: &[usize], vb: &Vb) -> Result<Tensor> {
    Tensor::from_vec(v, shape, vb.device())?.to_dtype(vb.dtype())
}
