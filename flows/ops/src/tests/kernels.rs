//! Each kernel, emulated, against the reference in candle's own operations.

use super::{max_diff, wave};
use crate::act_norm::cuda::{act_norm, act_norm_backward, bias_backward};
use crate::autodiff::gradients;
use crate::channel_mix::cuda::{channel_mix, channel_mix_backward};
use crate::coupling::cuda::{add_part, take_part};
use crate::coupling::{AffineSpec, ScaleFn};
use crate::cuda::network;
use crate::linalg::invert;
use crate::plu::cuda::{plu, plu_backward, plu_inverse};
use crate::res_net::kernels::{signed_input, signed_input_backward};
use crate::squeeze::kernel as squeeze;
use crate::{act_norm as an, batch_norm as bn, channel_mix as mix, coupling, elementwise};
use candle_core::{DType, Device, Result, Tensor, Var};

fn near(what: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    let d = max_diff(&a.to_dtype(DType::F64).unwrap(), &b.to_dtype(DType::F64).unwrap());
    let bound = if a.dtype() == DType::F64 { 1e-12 } else { 1e-5 };
    assert!(d < bound, "{what} in {:?}: {d:e}", a.dtype());
}

/// The test in both types.
fn both(test: impl Fn(&dyn Fn(&Tensor) -> Tensor) -> Result<()>) -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        test(&|t: &Tensor| t.to_dtype(dtype).unwrap())?;
    }
    Ok(())
}

#[test]
fn coupling_laws() -> Result<()> {
    both(|to| {
        let checkers = wave(&[1, 1, 3, 5], 3.).gt(0.)?.to_dtype(DType::F64)?;
        let each = wave(&[1, 4, 3, 5], 5.).gt(0.)?.to_dtype(DType::F64)?;
        let whole = wave(&[4, 1, 1], 2.).gt(0.)?.to_dtype(DType::F64)?;
        let masks = [checkers, each, whole].map(|m| to(&m));
        let (x, gain) = (to(&wave(&[2, 4, 3, 5], 0.37)), to(&Tensor::new(&[0.7], &Device::Cpu)?));
        for scale in [ScaleFn::Zero, ScaleFn::Exp, ScaleFn::Sigmoid, ScaleFn::Tanh] {
            let gain = (scale == ScaleFn::Tanh).then_some(&gain);
            let masked = masks.iter().map(|m| (0..4, Some(m)));
            for (changed, mask) in [(0..2, None), (1..4, None)].into_iter().chain(masked) {
                for shift_first in [false, true] {
                    let times = if scale == ScaleFn::Zero { 1 } else { 2 };
                    let net = to(&wave(&[2, times * changed.len(), 3, 5], 0.91));
                    let law = AffineSpec { scale, gain, shift_first, changed: changed.clone(), mask };
                    let (y, log_det) = coupling::cuda::forward(&law, &x, &net)?;
                    let (want, want_log_det) = coupling::reference::forward(&law, &x, &net)?;
                    near("y", &y, &want);
                    near("log-det", &log_det, &want_log_det);
                    near("inverse", &coupling::cuda::inverse(&law, &y, &net)?, &x);
                    let (gy, grad_log_det) = (to(&wave(&[2, 4, 3, 5], 0.53)), to(&wave(&[2], 1.7)));
                    let a = coupling::cuda::backward(&law, &x, &net, &gy, &grad_log_det)?;
                    let b = coupling::reference::backward(&law, &x, &net, &gy, &grad_log_det)?;
                    near("gx", &a.gx, &b.gx);
                    near("gnet", &a.gnet, &b.gnet);
                    assert_eq!(a.ggain.is_some(), gain.is_some());
                    for (a, b) in a.ggain.iter().zip(&b.ggain) {
                        near("ggain", a, b);
                    }
                }
            }
        }
        let part = to(&wave(&[2, 2, 3, 5], 0.2));
        near("take_part", &take_part(&x, 1, 2, None)?, &x.narrow(1, 1, 2)?);
        near("take_part of a mask", &take_part(&x, 0, 4, Some(&masks[0]))?, &x.broadcast_mul(&masks[0])?);
        let middle = (x.narrow(1, 1, 2)? + &part)?;
        let want = Tensor::cat(&[x.narrow(1, 0, 1)?, middle, x.narrow(1, 3, 1)?], 1)?;
        near("add_part", &add_part(&x, &part, 1, None)?, &want);
        let want = (&x + x.broadcast_mul(&masks[1])?)?;
        near("add_part of a mask", &add_part(&x, &x, 0, Some(&masks[1]))?, &want);
        Ok(())
    })
}

#[test]
fn layers() -> Result<()> {
    both(|to| {
        let (x, g) = (to(&wave(&[3, 4, 2, 5], 0.37)), to(&wave(&[3, 4, 2, 5], 0.53)));
        let (bias, logs) = (to(&wave(&[4], 1.3)), to(&wave(&[4], 2.1)));
        let z = act_norm(&x, None, &bias, Some(&logs), 0.8, false)?;
        near("act_norm", &z, &an::reference::act_norm(&x, &bias, &logs, 0.8)?);
        near("its inverse", &act_norm(&z, None, &bias, Some(&logs), 0.8, true)?, &x);
        let each = bias.reshape((1, 4, 1, 1))?;
        near("bias", &act_norm(&x, None, &bias, None, 0., false)?, &x.broadcast_add(&each)?);
        let map = to(&wave(&[4, 10], 0.7));
        let with_map = x.broadcast_add(&map.reshape((1, 4, 2, 5))?)?;
        let want = an::reference::act_norm(&with_map, &bias, &logs, 0.8)?;
        near("a map", &act_norm(&x, Some(&map), &bias, Some(&logs), 0.8, false)?, &want);
        let (mean, var, batch) = (logs.copy()?, bias.copy()?, to(&wave(&[2, 4], 0.3)));
        assert!(crate::device::emulate(|| crate::batch_norm::mix_moments(&mean, &var, &batch, 0.1))?);
        near("running mean", &mean, &((&logs * 0.9)? + (batch.get(0)? * 0.1)?)?);
        near("running variance", &var, &((&bias * 0.9)? + (batch.get(1)? * 0.1)?)?);
        let (kept, broken) = (mean.copy()?, (&batch * f64::NAN)?);
        crate::device::emulate(|| crate::batch_norm::mix_moments(&mean, &var, &broken, 0.1))?;
        near("running mean after a batch that is not finite", &mean, &kept);

        let w = to(&wave(&[4, 4], 0.7));
        near("channel_mix", &channel_mix(&x, &w)?, &mix::reference::channel_mix(&x, &w)?);
        let (gx, gw) = channel_mix_backward(&x, &w, &g)?;
        let of = |v: &[Var]| Ok(vec![mix::reference::channel_mix(&v[0], &v[1])?]);
        for (a, b) in [gx, gw].iter().zip(gradients(&[&x, &w], &[&g], of)?) {
            near("channel_mix's gradients", a, &b);
        }
        let v = to(&wave(&[3, 4], 0.2));
        near("channel_mix of vectors", &channel_mix(&v, &w)?, &mix::reference::channel_mix(&v, &w)?);

        let x = to(&wave(&[2, 3, 4, 6], 0.3));
        let z = squeeze(&x, false)?;
        let want = x.reshape(&[2, 3, 2, 2, 3, 2])?.permute((0, 1, 3, 5, 2, 4))?.reshape((2, 12, 2, 3))?;
        near("squeeze", &z, &want);
        near("its inverse", &squeeze(&z, true)?, &x);

        let mask = to(&wave(&[1, 1, 4, 6], 0.7));
        let u = signed_input(&x, true, Some(&mask))?;
        let row = mask.expand((2, 1, 4, 6))?.contiguous()?;
        near("signed_input", &u, &Tensor::cat(&[&x, &x.neg()?, &row], 1)?);
        near("one sign", &signed_input(&x, false, None)?, &x);
        let gu = to(&wave(&[2, 7, 4, 6], 0.9));
        let want = (gu.narrow(1, 0, 3)? - gu.narrow(1, 3, 3)?)?;
        near("its gradient", &signed_input_backward(&gu, 3, true)?, &want);
        let want = gu.narrow(1, 0, 3)?.contiguous()?;
        near("one sign's gradient", &signed_input_backward(&gu, 3, false)?, &want);
        Ok(())
    })
}

/// (B, C, H, W) with channels last.
fn last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

/// Channels that are added up in one slice and in several, in groups of neighbours and one by one, fewer and more of them than
/// a block has threads, whether or not the slices divide the rows.
#[test]
fn between_convolutions() -> Result<()> {
    both(|to| {
        for shape in
            [[6, 3, 20, 20], [5, 8, 9, 21], [30, 20, 7, 7], [9, 1, 23, 23], [3, 40, 3, 5], [2, 3, 1, 1]]
        {
            let [b, c, h, w] = shape;
            let (x, g) = (to(&(wave(&shape, 0.37) + 3.)?), to(&wave(&shape, 0.53)));
            let (x_last, g_last) = (last(&x), last(&g));
            near("to_last", &network::to_last(&x, x.dtype())?, &x_last);
            near("from_last", &network::from_last(&x_last, x.dtype())?, &x);
            let (bias, logs) = (to(&wave(&[c], 1.3)), to(&wave(&[c], 2.1)));
            // Sums of b h w numbers, in f64 and in f32 alike, relative to their size.
            let scale = (b * h * w) as f64;
            let near =
                |what: &str, a: &Tensor, b: &Tensor| near(what, &(a / scale).unwrap(), &(b / scale).unwrap());
            let sums = g.sum((0, 2, 3))?;
            near("bias_backward", &bias_backward(&g)?, &sums);
            near("bias_backward, channels last", &network::bias_backward(&g_last)?, &sums);
            near("map_backward", &network::map_backward(&g)?, &g.sum(0)?);
            let w_of = to(&wave(&[c, c], 0.4));
            let want =
                gradients(&[&x, &w_of], &[&g], |v| Ok(vec![mix::reference::channel_mix(&v[0], &v[1])?]))?;
            let (gx, gw) = channel_mix_backward(&x, &w_of, &g)?;
            for (a, b) in [gx, gw].iter().zip(&want) {
                near("channel_mix's gradients", a, b);
            }
            for relu in [false, true] {
                let plain = |v: &[Var]| {
                    let z = an::reference::act_norm(&v[0], &v[1], &v[2], 0.8)?;
                    Ok(vec![if relu { z.relu()? } else { z }])
                };
                let mut want = gradients(&[&x, &bias, &logs], &[&g], plain)?;
                let z = plain(&[&x, &bias, &logs].map(|t| Var::from_tensor(t).unwrap()))?[0].detach();
                if !relu {
                    let (gx, gb, gl) = act_norm_backward(&z, &g, &logs, 0.8)?;
                    for (a, b) in [gx, gb, gl].iter().zip(&want) {
                        near("act_norm's gradients", a, b);
                    }
                }
                let act = network::Act {
                    bias: Some(&bias),
                    logs: Some(&logs),
                    factor: 0.8,
                    relu,
                    ..Default::default()
                };
                near("act", &act.run(&x_last)?, &last(&z));
                want[0] = last(&want[0]);
                let (gx, gb, gl) = network::act_backward(&last(&z), &g_last, &logs, 0.8, relu)?;
                for (a, b) in [gx, gb, gl].iter().zip(&want) {
                    near("act's gradients", a, b);
                }
                let map = to(&wave(&[c, h * w], 0.7));
                let with_map = x.broadcast_add(&map.reshape((1, c, h, w))?)?;
                let z = an::reference::act_norm(&with_map, &bias, &logs, 0.8)?;
                let want = (if relu { z.relu()? } else { z } + &g)?;
                let map = map.t()?.contiguous()?;
                let all = network::Act { map: Some(&map), add: Some(&g_last), ..act };
                near("a map and a sum", &all.run(&x_last)?, &last(&want));
            }
            let relu = network::Act { relu: true, ..Default::default() };
            let y = relu.run(&g_last)?;
            near("relu", &y, &last(&g.relu()?));
            let want = last(&(&x * g.gt(0.)?.to_dtype(g.dtype())?)?);
            near("relu_backward", &network::relu_backward(&y, &x_last)?, &want);

            let m = network::moments(&x_last)?;
            near("moments", &m, &bn::reference::moments(&x.transpose(0, 1)?)?);
            let (mean, var) = (m.get(0)?, m.get(1)?);
            for (own, relu) in [(true, true), (true, false), (false, true), (false, false)] {
                let norm = network::Norm {
                    mean: mean.clone(),
                    var: var.clone(),
                    gamma: bias.clone(),
                    beta: logs.clone(),
                    eps: 1e-2,
                    own,
                };
                let other = |v: &[Var]| {
                    let x = v[0].transpose(0, 1)?;
                    let y = match own {
                        true => bn::batch_norm(&x, &v[1], &v[2], 1e-2, relu)?,
                        false => {
                            let scale = (v[1].as_tensor() / (&var + 1e-2)?.sqrt()?)?;
                            let shift = (v[2].as_tensor() - (&mean * &scale)?)?;
                            elementwise::affine(&x, &scale, &shift, relu)?
                        }
                    };
                    Ok(vec![y.transpose(0, 1)?])
                };
                let vars = [&x, &bias, &logs].map(|t| Var::from_tensor(t).unwrap());
                near("norm", &norm.forward(&x_last, relu)?, &last(&other(&vars)?[0].detach()));
                let mut want = gradients(&[&x, &bias, &logs], &[&g], other)?;
                want[0] = last(&want[0]);
                let (gx, gg, gb) = norm.backward(&x_last, &g_last, relu)?;
                for (a, b) in [gx, gg, gb].iter().zip(&want) {
                    near("norm's gradients", a, b);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn matrices() -> Result<()> {
    both(|to| {
        let n = 20;
        let (packed, gw) = (to(&wave(&[n, n], 0.9)), to(&wave(&[n, n], 0.31)));
        let grad_log_det = to(&wave(&[1], 0.4)).reshape(())?;
        let perm: Vec<u32> = (0..n as u32).map(|i| (i * 7 + 3) % n as u32).collect();
        let mut place = vec![0u32; n];
        perm.iter().enumerate().for_each(|(r, &i)| place[i as usize] = r as u32);
        let sign: Vec<f64> = (0..n).map(|i| if i % 3 == 0 { -1. } else { 1. }).collect();
        let here = |v: &[u32]| Tensor::new(v, &Device::Cpu);
        let signs = to(&Tensor::new(sign.as_slice(), &Device::Cpu)?);
        let (w, log_det) = plu(&packed, &here(&perm)?, &signs)?;
        let (want, want_log_det) = crate::plu::reference::plu(&packed, &perm, &sign)?;
        near("plu", &w, &want);
        near("plu's log-det", &log_det, &want_log_det);
        // A matrix that is not ill-conditioned: its off-diagonal parts are small.
        let small = to(&(wave(&[n, n], 0.9) * 0.1)?);
        let (w, _) = plu(&small, &here(&perm)?, &signs)?;
        let product = plu_inverse(&small, &here(&perm)?, &signs)?.matmul(&w)?;
        near("plu_inverse", &product, &to(&Tensor::eye(n, DType::F64, &Device::Cpu)?));
        let of = |v: &[Var]| crate::plu::reference::plu(&v[0], &perm, &sign).map(|(w, l)| vec![w, l]);
        let want = gradients(&[&packed], &[&gw, &grad_log_det], of)?;
        near("plu's gradient", &plu_backward(&packed, &here(&place)?, &signs, &gw, &grad_log_det)?, &want[0]);

        // Its first pivot is not on the diagonal, and more rows than threads.
        for n in [1usize, 2, 5, 19] {
            let m = (wave(&[n, n], 0.9)
                + Tensor::eye(n, DType::F64, &Device::Cpu)?.roll(1, 0)?.affine(3., 0.)?)?;
            let w = to(&m);
            let (inverse, log_det) = invert(&w)?;
            let (want, want_log_det) = crate::linalg::inverse_log_det(&w)?;
            near("invert", &inverse, &want);
            near("invert's log-det", &log_det, &want_log_det);
        }

        let (v, g, gw) = (to(&wave(&[3, 2, 3, 3], 0.6)), to(&wave(&[3], 1.1)), to(&wave(&[3, 2, 3, 3], 0.8)));
        let of = |v: &Tensor, g: &Tensor| {
            let norm = (v.flatten_from(1)?.sqr()?.sum(1)? + 1e-12)?.sqrt()?;
            v.broadcast_mul(&(g / norm)?.reshape((3, 1, 1, 1))?)
        };
        let (w, inverse) = network::weight_norm(&v, &g, v.dtype())?;
        near("weight_norm", &w, &last(&of(&v, &g)?));
        let (gv, gg) = network::weight_norm_backward(&last(&gw), &v, &g, &inverse)?;
        let want = gradients(&[&v, &g], &[&gw], |t| Ok(vec![of(&t[0], &t[1])?]))?;
        near("weight_norm's gradient", &gv, &want[0]);
        near("that of the magnitude", &gg, &want[1]);
        Ok(())
    })
}

/// bf16 rounds to nearest, ties to even, and the kernels agree with those in f32 to its precision.
#[test]
fn half_precision() -> Result<()> {
    use network::{Act, act_backward, from_last, to_last};
    let (x, g) =
        (wave(&[3, 2, 5, 4], 0.37).to_dtype(DType::F32)?, wave(&[3, 2, 5, 4], 0.53).to_dtype(DType::F32)?);
    let round = |t: &Tensor| t.to_dtype(DType::BF16);
    let same = |a: &Tensor, b: &Tensor| -> Result<()> {
        let bits = |t: &Tensor| t.flatten_all()?.to_vec1::<half::bf16>();
        assert_eq!(bits(a)?, bits(b)?);
        Ok(())
    };
    same(&Act::default().run(&round(&x)?)?, &round(&x)?)?;
    same(&to_last(&x, DType::BF16)?, &round(&last(&x))?)?;
    near("from bf16", &from_last(&round(&last(&x))?, DType::F32)?, &round(&x)?.to_dtype(DType::F32)?);
    let (bias, logs) = (wave(&[4], 1.3).to_dtype(DType::F32)?, wave(&[4], 2.1).to_dtype(DType::F32)?);
    let act = Act { bias: Some(&bias), logs: Some(&logs), factor: 0.8, relu: true, ..Default::default() };
    let z = act.run(&round(&x)?)?;
    let f32s = |t: &Tensor| t.to_dtype(DType::F32);
    same(&z, &round(&act.run(&f32s(&round(&x)?)?)?)?)?;
    let (gx, gb, gl) = act_backward(&z, &round(&g)?, &logs, 0.8, true)?;
    let (fx, fb, fl) = act_backward(&f32s(&z)?, &f32s(&round(&g)?)?, &logs, 0.8, true)?;
    near("gb", &gb, &fb);
    near("gl", &gl, &fl);
    same(&gx, &round(&fx)?)
}

/// A NaN passes ReLU, forward and back.
#[test]
fn a_nan_is_seen() -> Result<()> {
    let x = Tensor::new(&[[1f32, f32::NAN, -1.]], &Device::Cpu)?;
    let y = network::Act { relu: true, ..Default::default() }.run(&x)?;
    let y2 = y.to_vec2::<f32>()?;
    assert!(y2[0][1].is_nan() && y2[0][2] == 0.);
    let g = network::relu_backward(&y, &x.ones_like()?)?.to_vec2::<f32>()?;
    assert_eq!((g[0][0], g[0][2]), (1., 0.));
    Ok(())
}
