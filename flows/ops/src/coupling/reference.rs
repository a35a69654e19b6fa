//! The affine coupling in candle's operations.

use super::spec::{AffineGrads, AffineSpec, ScaleFn};
use crate::autodiff::gradients;
use crate::elementwise::log_sigmoid;
use candle_core::{Result, Tensor, Var, bail};

/// x (B, C, ...) with `part` in the place of its channels from `start`.
fn replace(x: &Tensor, part: Tensor, start: usize) -> Result<Tensor> {
    let (n, end) = (x.dim(1)?, start + part.dim(1)?);
    let mut parts = Vec::new();
    if start > 0 {
        parts.push(x.narrow(1, 0, start)?);
    }
    parts.push(part);
    if end < n {
        parts.push(x.narrow(1, end, n - end)?);
    }
    Tensor::cat(&parts, 1)
}

/// [`super::add_part`].
pub(crate) fn add_part(whole: &Tensor, part: &Tensor, start: usize) -> Result<Tensor> {
    replace(whole, (whole.narrow(1, start, part.dim(1)?)? + part)?, start)
}

/// y and the log-scales, 0 where a mask keeps.
fn map(
    l: &AffineSpec,
    x: &Tensor,
    net: &Tensor,
    gain: Option<&Tensor>,
    inverse: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (start, c) = (l.changed.start, l.changed.len());
    let part = x.narrow(1, start, c)?;
    let (t, h) = match l.scale {
        ScaleFn::Zero => (net.clone(), None),
        _ => (net.narrow(1, 0, c)?, Some(net.narrow(1, c, c)?)),
    };
    let s = match (l.scale, h) {
        (ScaleFn::Exp, Some(h)) => Some(h),
        (ScaleFn::Sigmoid, Some(h)) => Some(log_sigmoid(&(h + 2.)?)?),
        (ScaleFn::Tanh, Some(h)) => {
            let Some(gain) = gain else { bail!("a coupling's learned gain is missing") };
            Some(h.tanh()?.broadcast_mul(&gain.reshape(1)?)?)
        }
        _ => None,
    };
    let keep = |v: Tensor| match l.mask {
        Some(mask) => v.broadcast_mul(&(1. - mask)?),
        None => Ok(v),
    };
    let (t, s) = (keep(t)?, s.map(keep).transpose()?);
    let y = match (&s, l.shift_first, inverse) {
        (None, _, false) => (part + t)?,
        (None, _, true) => (part - t)?,
        (Some(s), true, false) => ((part + t)? * s.exp()?)?,
        (Some(s), false, false) => ((part * s.exp()?)? + t)?,
        (Some(s), true, true) => ((part * s.neg()?.exp()?)? - t)?,
        (Some(s), false, true) => ((part - t)? * s.neg()?.exp()?)?,
    };
    Ok((replace(x, y, start)?, s))
}

fn forward_with(l: &AffineSpec, x: &Tensor, net: &Tensor, gain: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let (y, s) = map(l, x, net, gain, false)?;
    let log_det = match s {
        Some(s) => s.flatten_from(1)?.sum(1)?,
        None => Tensor::zeros(x.dim(0)?, x.dtype(), x.device())?,
    };
    Ok((y, log_det))
}

/// [`AffineSpec::forward`].
pub(crate) fn forward(l: &AffineSpec, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
    forward_with(l, x, net, l.gain)
}

/// [`AffineSpec::inverse`].
pub(crate) fn inverse(l: &AffineSpec, y: &Tensor, net: &Tensor) -> Result<Tensor> {
    Ok(map(l, y, net, l.gain, true)?.0)
}

/// [`AffineSpec::backward`].
pub(crate) fn backward(
    l: &AffineSpec,
    x: &Tensor,
    net: &Tensor,
    gy: &Tensor,
    grad_log_det: &Tensor,
) -> Result<AffineGrads> {
    let learned: Vec<&Tensor> = l.gain.into_iter().collect();
    let mut g = gradients(&[&[x, net], learned.as_slice()].concat(), &[gy, grad_log_det], |v| {
        let (y, log_det) = forward_with(l, &v[0], &v[1], v.get(2).map(Var::as_tensor))?;
        Ok(vec![y, log_det])
    })?;
    let ggain = match l.gain {
        Some(_) => Some(g.pop().expect("three").reshape(1)?),
        None => None,
    };
    let (gnet, gx) = (g.pop().expect("two"), g.pop().expect("two"));
    Ok(AffineGrads { gx, gnet, ggain })
}
