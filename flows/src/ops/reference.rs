//! The ops in candle's own operations: on any device, and on candle's graph. What a device without a kernel of ours runs, and
//! what kernels are tested against.

use super::coupling::{Back, Law, LogScale};
use super::elementwise::log_sigmoid;
use super::update::{Accumulate, Apply, set};
use candle_core::{Result, Tensor, Var, bail};

/// Returns what the kernels make of it where they take all of these tensors.
macro_rules! kernel {
    ([$($t:expr),*], $call:expr) => {
        #[cfg(kernels)]
        if crate::ops::kernels::take(&[$($t),*]) {
            return $call;
        }
    };
}
pub(crate) use kernel;

/// The gradients of `inputs` through `f`, given those of its outputs.
pub(crate) fn gradients(
    inputs: &[&Tensor],
    of_outputs: &[&Tensor],
    f: impl FnOnce(&[Var]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(|t| Var::from_tensor(&t.detach())).collect::<Result<Vec<_>>>()?;
    let mut sum: Option<Tensor> = None;
    for (y, g) in f(&vars)?.iter().zip(of_outputs) {
        let term = (y * *g)?.sum_all()?;
        sum = Some(match sum {
            Some(s) => (s + term)?,
            None => term,
        });
    }
    let mut store = sum.expect("at least one output").backward()?;
    vars.iter().map(|v| store.remove(v).map_or_else(|| v.zeros_like(), |g| Ok(g.detach()))).collect()
}

/// [`super::conv::conv2d`].
pub(crate) fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    conv_nchw(&x.transpose(0, 1)?.contiguous()?, w)?.transpose(0, 1)?.contiguous()
}

/// y (B, O, H, W) = w * x for x (B, C, H, W), in the type of x.
pub(crate) fn conv_nchw(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    // candle's own gradients of a convolution on a GPU are those of its naive transposed convolution, with cuDNN, too.
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return super::cudnn::conv2d(x, w);
    }
    x.conv2d(w, w.dim(2)? / 2, 1, 1, 1)
}

/// The gradients of x and w.
#[cfg(kernels)]
pub(crate) fn conv_nchw_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return super::cudnn::conv2d_backward(x, w, gy);
    }
    let mut g = gradients(&[x, w], &[gy], |v| Ok(vec![conv_nchw(&v[0], &v[1])?]))?;
    let gw = g.pop().expect("two");
    Ok((g.pop().expect("two"), gw))
}

/// [`super::conv::channel_mix`].
pub(crate) fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    kernel!([x, w], super::kernels::channel_mix(x, w));
    if x.rank() == 2 {
        return x.matmul(&w.t()?);
    }
    w.unsqueeze(0)?.broadcast_matmul(&x.flatten_from(2)?)?.reshape(x.shape())
}

/// (C, 1, ..) for x (C, ..).
fn leading(v: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = x.dim(0)?;
    v.reshape(shape)
}

/// (1, C, 1, ..) for x (B, C, ..).
fn second(v: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    v.reshape(shape)
}

/// [`super::channel::affine`].
pub(crate) fn affine(x: &Tensor, scale: &Tensor, shift: &Tensor, relu: bool) -> Result<Tensor> {
    let y = x.broadcast_mul(&leading(scale, x)?)?.broadcast_add(&leading(shift, x)?)?;
    if relu { y.relu() } else { Ok(y) }
}

/// Mean and biased variance of each channel of x (C, ..), (C, 1) each.
fn mean_var(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let flat = x.flatten_from(1)?;
    let mean = flat.mean_keepdim(1)?;
    let var = flat.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?;
    Ok((mean, var))
}

/// [`super::channel::act_norm_backward`].
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    kernel!([z, gz, logs], super::kernels::act_norm_backward(z, gz, logs, factor, false));
    let scale = (logs * factor)?.exp()?;
    let sum = |x: &Tensor| x.transpose(0, 1)?.flatten_from(1)?.sum(1);
    let (gb, gl) = (sum(gz)?, (sum(&(gz * z)?)? * factor)?);
    let gx = act_norm(gz, &scale.zeros_like()?, logs, factor)?;
    Ok((gx, (gb * scale)?, gl))
}

/// [`super::conv::channel_mix_backward`].
pub(crate) fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    kernel!([x, w, gy], super::kernels::channel_mix_backward(x, w, gy));
    let mut g = gradients(&[x, w], &[gy], |v| Ok(vec![channel_mix(&v[0], &v[1])?]))?;
    let gw = g.pop().expect("two");
    Ok((g.pop().expect("two"), gw))
}

/// [`super::coupling::add_part`].
pub(crate) fn add_part(whole: &Tensor, part: &Tensor, start: usize) -> Result<Tensor> {
    kernel!([whole, part], super::kernels::add_part(whole, part, start, None));
    let (n, end) = (whole.dim(1)?, start + part.dim(1)?);
    let mut parts = Vec::new();
    if start > 0 {
        parts.push(whole.narrow(1, 0, start)?);
    }
    parts.push((whole.narrow(1, start, end - start)? + part)?);
    if end < n {
        parts.push(whole.narrow(1, end, n - end)?);
    }
    Tensor::cat(&parts, 1)
}

/// [`super::channel::moments`].
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let (mean, var) = mean_var(&x.detach())?;
    Tensor::cat(&[mean, var], 1)?.t()?.contiguous()
}

/// [`super::channel::batch_norm`].
pub(crate) fn batch_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64, relu: bool) -> Result<Tensor> {
    let (mean, var) = mean_var(x)?;
    let xhat = x.flatten_from(1)?.broadcast_sub(&mean)?.broadcast_div(&(var + eps)?.sqrt()?)?;
    affine(&xhat.reshape(x.shape())?, gamma, beta, relu)
}

/// [`super::channel::act_norm`].
pub(crate) fn act_norm(x: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    kernel!([x, bias, logs], super::kernels::act_norm(x, Some(bias), Some(logs), factor, false));
    x.broadcast_add(&second(bias, x)?)?.broadcast_mul(&second(&(logs * factor)?.exp()?, x)?)
}

/// [`super::channel::act_norm_inverse`].
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    kernel!([z, bias, logs], super::kernels::act_norm_inverse(z, bias, logs, factor));
    z.broadcast_mul(&second(&(logs * -factor)?.exp()?, z)?)?.broadcast_sub(&second(bias, z)?)
}

/// [`super::linear::linear`].
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    let y = x.matmul(&w.t()?)?.broadcast_add(b)?;
    if relu { y.relu() } else { Ok(y) }
}

/// [`super::plu::plu`].
pub(crate) fn plu(packed: &Tensor, perm: &[u32], sign: &[f64]) -> Result<(Tensor, Tensor)> {
    let (n, dtype, device) = (packed.dim(0)?, packed.dtype(), packed.device());
    let eye = Tensor::eye(n, dtype, device)?;
    let upper = (Tensor::triu2(n, dtype, device)? - &eye)?;
    let lower = (Tensor::tril2(n, dtype, device)? - &eye)?;
    let logs = (packed * &eye)?.sum(1)?;
    let diagonal = (logs.exp()? * Tensor::new(sign, device)?.to_dtype(dtype)?)?;
    let l = ((packed * lower)? + &eye)?;
    let u = ((packed * upper)? + eye.broadcast_mul(&diagonal)?)?;
    let rows = Tensor::new(perm, device)?;
    Ok((l.matmul(&u)?.index_select(&rows, 0)?, logs.sum_all()?))
}

/// y and the log-scales of [`Law`], 0 where a mask keeps.
fn law(
    l: &Law,
    x: &Tensor,
    net: &Tensor,
    gain: Option<&Tensor>,
    inverse: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (start, c) = (l.changed.start, l.changed.len());
    let part = x.narrow(1, start, c)?;
    let (t, h) = match l.scale {
        LogScale::Zero => (net.clone(), None),
        _ => (net.narrow(1, 0, c)?, Some(net.narrow(1, c, c)?)),
    };
    let s = match (l.scale, h) {
        (LogScale::Exp, Some(h)) => Some(h),
        (LogScale::Sigmoid, Some(h)) => Some(log_sigmoid(&(h + 2.)?)?),
        (LogScale::Tanh, Some(h)) => {
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
    let end = start + c;
    let mut parts = Vec::new();
    if start > 0 {
        parts.push(x.narrow(1, 0, start)?);
    }
    parts.push(y);
    if end < x.dim(1)? {
        parts.push(x.narrow(1, end, x.dim(1)? - end)?);
    }
    Ok((Tensor::cat(&parts, 1)?, s))
}

fn law_forward(l: &Law, x: &Tensor, net: &Tensor, gain: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let (y, s) = law(l, x, net, gain, false)?;
    let log_det = match s {
        Some(s) => s.flatten_from(1)?.sum(1)?,
        None => Tensor::zeros(x.dim(0)?, x.dtype(), x.device())?,
    };
    Ok((y, log_det))
}

/// [`Law::forward`].
pub(crate) fn coupling(l: &Law, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
    kernel!([x, net], super::kernels::coupling(l, x, net));
    law_forward(l, x, net, l.gain)
}

/// [`Law::inverse`].
pub(crate) fn coupling_inverse(l: &Law, y: &Tensor, net: &Tensor) -> Result<Tensor> {
    kernel!([y, net], super::kernels::coupling_inverse(l, y, net));
    Ok(law(l, y, net, l.gain, true)?.0)
}

/// [`Law::backward`].
pub(crate) fn coupling_backward(
    l: &Law,
    x: &Tensor,
    net: &Tensor,
    gy: &Tensor,
    gld: &Tensor,
) -> Result<Back> {
    kernel!([x, net, gy, gld], super::kernels::coupling_backward(l, x, net, gy, gld));
    let learned: Vec<&Tensor> = l.gain.into_iter().collect();
    let mut g = gradients(&[&[x, net], learned.as_slice()].concat(), &[gy, gld], |v| {
        let (y, log_det) = law_forward(l, &v[0], &v[1], v.get(2).map(Var::as_tensor))?;
        Ok(vec![y, log_det])
    })?;
    let ggain = match l.gain {
        Some(_) => Some(g.pop().expect("three").reshape(1)?),
        None => None,
    };
    let (gnet, gx) = (g.pop().expect("two"), g.pop().expect("two"));
    Ok(Back { gx, gnet, ggain })
}

/// [`super::update::accumulate`].
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

/// [`super::update::apply`].
pub(crate) fn apply(p: &Tensor, state: &Tensor, rule: Apply) -> Result<()> {
    let (m, v) = (state.get(0)?, state.get(1)?);
    let step = match rule {
        Apply::Adam { a, c, eps } => ((m * a)? / ((v.sqrt()? * c)? + eps)?)?,
        Apply::Adamax { a, c, eps } => ((m * a)? / ((v * c)? + eps)?)?,
        Apply::Momentum => m,
    };
    set(p, &(p.flatten_all()? - step)?.reshape(p.shape())?)
}

/// [`super::update::average`].
pub(crate) fn average(e: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    set(e, &((e * decay)? + (p * (1. - decay))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_tensors::{max_diff, wave};
    use crate::ops::{channel, conv, coupling, linear, plu, update};
    use candle_core::{DType, Device};

    fn near(what: &str, a: &Tensor, b: &Tensor) {
        assert_eq!(a.shape(), b.shape(), "{what}");
        let d = max_diff(a, b);
        assert!(d < 1e-12, "{what}: {d:e}");
    }

    #[test]
    fn coupling_laws() -> Result<()> {
        let checkers = wave(&[1, 1, 3, 5], 3.).gt(0.)?.to_dtype(DType::F64)?;
        let x = wave(&[2, 4, 3, 5], 0.37);
        let gain = Tensor::new(&[0.7], &Device::Cpu)?;
        for scale in [LogScale::Zero, LogScale::Exp, LogScale::Sigmoid, LogScale::Tanh] {
            let gain = (scale == LogScale::Tanh).then_some(&gain);
            for (changed, mask) in [(0..2, None), (1..4, None), (0..4, Some(&checkers))] {
                for shift_first in [false, true] {
                    let times = if scale == LogScale::Zero { 1 } else { 2 };
                    let net = wave(&[2, times * changed.len(), 3, 5], 0.91);
                    let law = Law { scale, gain, shift_first, changed: changed.clone(), mask };
                    let (y, log_det) = law.forward(&x, &net)?;
                    let (want, want_log_det) = coupling(&law, &x, &net)?;
                    near("y", &y, &want);
                    near("log-det", &log_det, &want_log_det);
                    near("inverse", &law.inverse(&y, &net)?, &x);
                    near("reference's inverse", &coupling_inverse(&law, &y, &net)?, &x);
                    let (gy, gld) = (wave(&[2, 4, 3, 5], 0.53), wave(&[2], 1.7));
                    let (a, b) =
                        (law.backward(&x, &net, &gy, &gld)?, coupling_backward(&law, &x, &net, &gy, &gld)?);
                    near("gx", &a.gx, &b.gx);
                    near("gnet", &a.gnet, &b.gnet);
                    for (a, b) in a.ggain.iter().zip(&b.ggain) {
                        near("ggain", a, b);
                    }
                    assert_eq!(a.ggain.is_some(), gain.is_some());
                }
            }
        }
        let part = wave(&[2, 2, 3, 5], 0.2);
        let want = Tensor::cat(&[x.narrow(1, 0, 1)?, (x.narrow(1, 1, 2)? + &part)?, x.narrow(1, 3, 1)?], 1)?;
        near("add_part", &coupling::add_part(&x, &part, 1)?, &want);
        Ok(())
    }

    #[test]
    fn layers() -> Result<()> {
        let (x, g) = (wave(&[3, 4, 2, 5], 0.37), wave(&[3, 4, 2, 5], 0.53));
        let (bias, logs) = (wave(&[4], 1.3), wave(&[4], 2.1));
        let z = channel::act_norm(&x, &bias, &logs, 3.)?;
        near("act_norm", &z, &act_norm(&x, &bias, &logs, 3.)?);
        near("its inverse", &channel::act_norm_inverse(&z, &bias, &logs, 3.)?, &x);
        near("the reference's", &act_norm_inverse(&z, &bias, &logs, 3.)?, &x);
        let (gx, gb, gl) = channel::act_norm_backward(&z, &g, &logs, 3.)?;
        let of = |v: &[Var]| Ok(vec![act_norm(&v[0], &v[1], &v[2], 3.)?]);
        for (a, b) in [gx, gb, gl].iter().zip(gradients(&[&x, &bias, &logs], &[&g], of)?) {
            near("act_norm's gradients", a, &b);
        }

        let w = wave(&[4, 4], 0.7);
        near("channel_mix", &conv::channel_mix(&x, &w)?, &channel_mix(&x, &w)?);
        let v = wave(&[3, 4], 0.2);
        near("channel_mix of vectors", &conv::channel_mix(&v, &w)?, &channel_mix(&v, &w)?);
        let (gx, gw) = conv::channel_mix_backward(&x, &w, &g)?;
        let of = |v: &[Var]| Ok(vec![channel_mix(&v[0], &v[1])?]);
        for (a, b) in [gx, gw].iter().zip(gradients(&[&x, &w], &[&g], of)?) {
            near("channel_mix's gradients", a, &b);
        }

        let (packed, perm, sign) = (wave(&[5, 5], 0.9), [3, 0, 4, 1, 2], [1., -1., -1., 1., 1.]);
        let rows = plu::Rows::new(perm.to_vec(), sign.to_vec(), &packed)?;
        let (a, b) = (plu::plu(&packed, &rows)?, plu(&packed, &perm, &sign)?);
        near("plu", &a.0, &b.0);
        near("plu's log-det", &a.1, &b.1);
        let (gw, gld) = (wave(&[5, 5], 0.31), wave(&[1], 0.4).reshape(())?);
        let of = |v: &[Var]| plu(&v[0], &perm, &sign).map(|(w, l)| vec![w, l]);
        let want = gradients(&[&packed], &[&gw, &gld], of)?;
        near("plu's gradient", &plu::plu_backward(&packed, &rows, &gw, &gld)?, &want[0]);

        let (x, w, b) = (wave(&[5, 7], 0.3), wave(&[4, 7], 0.7), wave(&[4], 1.1));
        let g = wave(&[5, 4], 0.9);
        for relu in [false, true] {
            let y = linear::linear(&x, &w, &b, relu)?;
            let (gx, gw, gb) = linear::linear_backward(&x, &w, &y, &g, relu)?;
            let of = |v: &[Var]| Ok(vec![linear(&v[0], &v[1], &v[2], relu)?]);
            for (a, b) in [gx, gw, gb].iter().zip(gradients(&[&x, &w, &b], &[&g], of)?) {
                near("linear's gradients", a, &b);
            }
        }
        let x = wave(&[3, 2, 4, 5], 0.4);
        near("moments", &channel::moments(&x)?, &moments(&x)?);
        near(
            "conv2d",
            &conv::conv2d(&x, &wave(&[2, 3, 3, 3], 0.8))?,
            &conv2d(&x, &wave(&[2, 3, 3, 3], 0.8))?,
        );
        Ok(())
    }

    #[test]
    fn optimisers() -> Result<()> {
        let copy = |t: &Tensor| Tensor::from_vec(t.flatten_all()?.to_vec1::<f64>()?, t.shape(), &Device::Cpu);
        for (how, then) in [
            (Accumulate::Adam { b1: 0.9, b2: 0.99 }, Apply::Adam { a: 0.1, c: 1.2, eps: 1e-3 }),
            (Accumulate::Adamax { b1: 0.9, b2: 0.99 }, Apply::Adamax { a: 0.1, c: 1., eps: 1e-3 }),
            (Accumulate::RmsProp { rho: 0.9, mu: 0.5, lr: 0.1, eps: 1e-3 }, Apply::Momentum),
        ] {
            let (p, g) = (wave(&[2, 3], 0.3), wave(&[2, 3], 0.8));
            let state = (wave(&[2, 6], 0.2) + 2.)?;
            let (q, other) = (copy(&p)?, copy(&state)?);
            update::accumulate(&state, &g, 0.5, how)?;
            update::apply(&p, &state, then)?;
            update::average(&p, &g, 0.9)?;
            accumulate(&other, &g, 0.5, how)?;
            apply(&q, &other, then)?;
            average(&q, &g, 0.9)?;
            near("state", &state, &other);
            near("parameter", &p, &q);
        }
        Ok(())
    }
}
