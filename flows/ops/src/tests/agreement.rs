//! The ops on the CPU against candle's operations.

use super::{max_diff, wave};
use crate::autodiff::gradients;
use crate::coupling::{AffineSpec, ScaleFn};
use crate::mixture::{MixtureSpec, reference as mixture};
use crate::spline::{SplineSpec, reference as spline};
use crate::update::RuleStep;
use crate::{act_norm, batch_norm, channel_mix, conv, coupling, linear, plu, update};
use candle_core::{DType, Device, Result, Tensor, Var};

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
    for scale in [ScaleFn::Zero, ScaleFn::Exp, ScaleFn::Sigmoid, ScaleFn::Tanh] {
        let gain = (scale == ScaleFn::Tanh).then_some(&gain);
        for (changed, mask) in [(0..2, None), (1..4, None), (0..4, Some(&checkers))] {
            for shift_first in [false, true] {
                let times = if scale == ScaleFn::Zero { 1 } else { 2 };
                let net = wave(&[2, times * changed.len(), 3, 5], 0.91);
                let law = AffineSpec { scale, gain, shift_first, changed: changed.clone(), mask };
                let (y, log_det) = law.forward(&x, &net)?;
                let (want, want_log_det) = coupling::reference::forward(&law, &x, &net)?;
                near("y", &y, &want);
                near("log-det", &log_det, &want_log_det);
                near("inverse", &law.inverse(&y, &net)?, &x);
                near("reference's inverse", &coupling::reference::inverse(&law, &y, &net)?, &x);
                let (gy, grad_log_det) = (wave(&[2, 4, 3, 5], 0.53), wave(&[2], 1.7));
                let (a, b) = (
                    law.backward(&x, &net, &gy, &grad_log_det)?,
                    coupling::reference::backward(&law, &x, &net, &gy, &grad_log_det)?,
                );
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
    let z = act_norm::act_norm(&x, &bias, &logs, 3.)?;
    near("act_norm", &z, &act_norm::reference::act_norm(&x, &bias, &logs, 3.)?);
    near("its inverse", &act_norm::act_norm_inverse(&z, &bias, &logs, 3.)?, &x);
    near("the reference's", &act_norm::reference::act_norm_inverse(&z, &bias, &logs, 3.)?, &x);
    let (gx, gb, gl) = act_norm::act_norm_backward(&z, &g, &logs, 3.)?;
    let of = |v: &[Var]| Ok(vec![act_norm::reference::act_norm(&v[0], &v[1], &v[2], 3.)?]);
    for (a, b) in [gx, gb, gl].iter().zip(gradients(&[&x, &bias, &logs], &[&g], of)?) {
        near("act_norm's gradients", a, &b);
    }

    let w = wave(&[4, 4], 0.7);
    near("channel_mix", &channel_mix::channel_mix(&x, &w)?, &channel_mix::reference::channel_mix(&x, &w)?);
    let v = wave(&[3, 4], 0.2);
    near(
        "channel_mix of vectors",
        &channel_mix::channel_mix(&v, &w)?,
        &channel_mix::reference::channel_mix(&v, &w)?,
    );
    let (gx, gw) = channel_mix::channel_mix_backward(&x, &w, &g)?;
    let of = |v: &[Var]| Ok(vec![channel_mix::reference::channel_mix(&v[0], &v[1])?]);
    for (a, b) in [gx, gw].iter().zip(gradients(&[&x, &w], &[&g], of)?) {
        near("channel_mix's gradients", a, &b);
    }

    let (packed, perm, sign) = (wave(&[5, 5], 0.9), [3, 0, 4, 1, 2], [1., -1., -1., 1., 1.]);
    let rows = plu::Rows::new(perm.to_vec(), sign.to_vec(), &packed)?;
    let (a, b) = (plu::plu(&packed, &rows)?, plu::reference::plu(&packed, &perm, &sign)?);
    near("plu", &a.0, &b.0);
    near("plu's log-det", &a.1, &b.1);
    let (gw, grad_log_det) = (wave(&[5, 5], 0.31), wave(&[1], 0.4).reshape(())?);
    let of = |v: &[Var]| plu::reference::plu(&v[0], &perm, &sign).map(|(w, l)| vec![w, l]);
    let want = gradients(&[&packed], &[&gw, &grad_log_det], of)?;
    near("plu's gradient", &plu::plu_backward(&packed, &rows, &gw, &grad_log_det)?, &want[0]);

    let (x, w, b) = (wave(&[5, 7], 0.3), wave(&[4, 7], 0.7), wave(&[4], 1.1));
    let g = wave(&[5, 4], 0.9);
    for relu in [false, true] {
        let y = linear::linear(&x, &w, &b, relu)?;
        let (gx, gw, gb) = linear::linear_backward(&x, &w, &y, &g, relu)?;
        let of = |v: &[Var]| Ok(vec![linear::reference::linear(&v[0], &v[1], &v[2], relu)?]);
        for (a, b) in [gx, gw, gb].iter().zip(gradients(&[&x, &w, &b], &[&g], of)?) {
            near("linear's gradients", a, &b);
        }
    }
    let x = wave(&[3, 2, 4, 5], 0.4);
    near("moments", &batch_norm::moments(&x)?, &batch_norm::reference::moments(&x)?);
    near(
        "conv2d",
        &conv::conv2d(&x, &wave(&[2, 3, 3, 3], 0.8))?,
        &conv::reference::conv2d(&x, &wave(&[2, 3, 3, 3], 0.8))?,
    );
    Ok(())
}

#[test]
fn updates() -> Result<()> {
    let copy = |t: &Tensor| Tensor::from_vec(t.flatten_all()?.to_vec1::<f64>()?, t.shape(), &Device::Cpu);
    for step in [
        RuleStep::Adam { b1: 0.9, b2: 0.99, a: 0.1, c: 1.2, eps: 1e-3 },
        RuleStep::Adamax { b1: 0.9, b2: 0.99, a: 0.1, eps: 1e-3 },
        RuleStep::RmsProp { rho: 0.9, momentum: 0.5, lr: 0.1, eps: 1e-3 },
    ] {
        let (p, g) = (wave(&[2, 3], 0.3), wave(&[2, 3], 0.8));
        let state = (wave(&[2, 6], 0.2) + 2.)?;
        let (q, other) = (copy(&p)?, copy(&state)?);
        update::step(&p, &state, &g, 0.5, 0.97, step)?;
        update::average(&p, &g, 0.9)?;
        update::reference::step(&q, &other, &g, 0.5, 0.97, step)?;
        update::reference::average(&q, &g, 0.9)?;
        near("state", &state, &other);
        near("parameter", &p, &q);
    }
    Ok(())
}

/// The state of a parameter that has no gradient any more ends at zero, not at subnormal numbers, which are slow.
#[test]
fn state_without_gradient() -> Result<()> {
    let zeros = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    for step in [
        RuleStep::Adam { b1: 0.9, b2: 0.9, a: 0.1, c: 1.2, eps: 1e-3 },
        RuleStep::Adamax { b1: 0.9, b2: 0.9, a: 0.1, eps: 1e-3 },
        RuleStep::RmsProp { rho: 0.9, momentum: 0.9, lr: 0.1, eps: 1e-3 },
    ] {
        let (p, state) = (zeros.copy()?, Tensor::ones((2, 3), DType::F32, &Device::Cpu)?);
        for _ in 0..1000 {
            update::step(&p, &state, &zeros, 1., 1., step)?;
            let small = |x: &f32| x.is_subnormal();
            assert!(!state.flatten_all()?.to_vec1::<f32>()?.iter().any(small), "{step:?}");
        }
        assert_eq!(state.flatten_all()?.to_vec1::<f32>()?, [0.; 6], "{step:?}");
        let nan = (&zeros * f64::NAN)?;
        update::step(&p, &state, &nan, 1., 1., step)?;
        assert!(state.get(0)?.to_vec1::<f32>()?.iter().all(|m| m.is_nan()), "{step:?}");
    }
    Ok(())
}

/// Elements inside and far outside, at the ends and at no number's; parameters up to extreme ones; few elements of many examples, and
/// many of few.
#[test]
fn splines() -> Result<()> {
    let spec = SplineSpec { bins: 5, bound: 2., min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 };
    for (shape, size) in [([40, 1, 1], 1.), ([3, 2, 17], 1.), ([7, 5, 3], 6.)] {
        let [b, c, n] = shape;
        let mut x = (wave(&shape, 0.37) * 2.5)?.flatten_all()?.to_vec1::<f64>()?;
        for (x, v) in x.iter_mut().zip([-2., 2., 1e6, -1e6, 2. + 1e-12, 0.]) {
            *x = v;
        }
        let x = Tensor::from_vec(x, (b, c, n), &Device::Cpu)?;
        let h = (wave(&[b, spec.params() * c, n], 0.91) * size)?;
        let ((y, slope), want) = (spec.forward(&x, &h)?, spline::forward(&spec, &x, &h)?);
        near("y", &y, &want.0);
        near("log-slope", &slope, &want.1);
        near("inverse", &spec.inverse(&y, &h)?, &spline::inverse(&spec, &y, &h)?);
        let (gy, gs) = (wave(&shape, 0.53), wave(&shape, 1.7));
        let (gx, gh) = spec.backward(&x, &h, &gy, &gs)?;
        let of = |v: &[Var]| spline::forward(&spec, &v[0], &v[1]).map(|(y, s)| vec![y, s]);
        let want = gradients(&[&x, &h], &[&gy, &gs], of)?;
        // Steep pieces have large gradients.
        for (what, a, b) in [("gx", gx, &want[0]), ("gh", gh, &want[1])] {
            let most = b.abs()?.max_all()?.to_scalar::<f64>()?.max(1.);
            near(what, &(a / most)?, &(b / most)?);
        }
        let (x, h) = (x.to_dtype(DType::F32)?, h.to_dtype(DType::F32)?);
        let (small, _) = spec.forward(&x, &h)?;
        let d = max_diff(&small.to_dtype(DType::F64)?, &y);
        // Beside the numbers of a million, which an f32 holds to .03.
        assert!(d < 1e-4, "f32: {d:e}");
    }
    let nan = Tensor::new(&[[f64::NAN]], &Device::Cpu)?;
    let h = wave(&[1, spec.params()], 0.3);
    let (gx, gh) = spec.backward(&nan, &h, &nan.ones_like()?, &nan.ones_like()?)?;
    assert!(spec.forward(&nan, &h)?.0.flatten_all()?.to_vec1::<f64>()?[0].is_nan());
    assert_eq!(gx.flatten_all()?.to_vec1::<f64>()?, [1.]);
    assert!(gh.flatten_all()?.to_vec1::<f64>()?.iter().all(|g| *g == 0.));
    Ok(())
}

/// max |a - b| / (1 + |b| + beside).
fn max_relative(a: &Tensor, b: &Tensor, beside: &Tensor) -> Result<f64> {
    ((a - b)?.abs()? / ((b.abs()? + beside)? + 1.)?)?.flatten_all()?.max(0)?.to_scalar()
}

/// max |a - b| over max |b|, or 1 if that is less.
fn max_of_largest(a: &Tensor, b: &Tensor) -> Result<f64> {
    let most = b.abs()?.max_all()?.to_scalar::<f64>()?.max(1.);
    Ok(max_diff(&(a / most)?, &(b / most)?))
}

/// Widths of a spline that put its knots at inputs.
#[test]
fn splines_at_their_knots() -> Result<()> {
    let spec = SplineSpec { bins: 5, bound: 2., min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 };
    let x = Tensor::new(&[-1.2, -0.4, 0.4, 1.2, 0.4, -1.2], &Device::Cpu)?.unsqueeze(1)?;
    let h = Tensor::cat(&[Tensor::zeros((6, 5), DType::F64, &Device::Cpu)?, wave(&[6, 9], 0.7)], 1)?;
    for h in [&h, &(&h * 6.)?] {
        let ((y, slope), want) = (spec.forward(&x, h)?, spline::forward(&spec, &x, h)?);
        near("y", &y, &want.0);
        near("log-slope", &slope, &want.1);
        near("inverse", &spec.inverse(&y, h)?, &x);
    }
    Ok(())
}

/// Gaps between f32's and f64's results of the same numbers: y, log-slope, then x through both ways, times the slope where that is
/// below 1 and beside y, which was rounded; gradients of x and of h.
fn of_f32(
    (x, h): (&Tensor, &Tensor),
    forward: impl Fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)>,
    inverse: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    backward: impl Fn([&Tensor; 4]) -> Result<(Tensor, Tensor)>,
) -> Result<[f64; 5]> {
    let small = |t: &Tensor| t.to_dtype(DType::F32);
    let large = |t: &Tensor| t.to_dtype(DType::F64);
    let (x, h) = (small(x)?, small(h)?);
    let (gy, gs) = (small(&wave(x.dims(), 0.53))?, small(&wave(x.dims(), 1.7))?);
    let (y, slope) = forward(&x, &h)?;
    let (gx, gh) = backward([&x, &h, &gy, &gs])?;
    let back = large(&inverse(&y, &h)?)?;
    let (x, h) = (large(&x)?, large(&h)?);
    let (want_y, want_slope) = forward(&x, &h)?;
    let (want_gx, want_gh) = backward([&x, &h, &large(&gy)?, &large(&gs)?])?;
    let zero = x.zeros_like()?;
    let flat = want_slope.minimum(0.)?.exp()?;
    let off = (&x + ((back - &x)? * flat)?)?;
    Ok([
        max_relative(&large(&y)?, &want_y, &zero)?,
        max_relative(&large(&slope)?, &want_slope, &zero)?,
        max_relative(&off, &x, &want_y.abs()?)?,
        max_of_largest(&large(&gx)?, &want_gx)?,
        max_of_largest(&large(&gh)?, &want_gh)?,
    ])
}

#[test]
fn splines_in_f32() -> Result<()> {
    let spec = SplineSpec { bins: 8, bound: 5., min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 };
    for (shape, size) in [([40, 1, 1], 1.), ([3, 2, 17], 1.), ([70, 5, 3], 6.)] {
        let x = (wave(&shape, 0.37) * 5.5)?;
        let h = (wave(&[shape[0], spec.params() * shape[1], shape[2]], 0.91) * size)?;
        let gaps = of_f32(
            (&x, &h),
            |x, h| spec.forward(x, h),
            |y, h| spec.inverse(y, h),
            |[x, h, gy, gs]| spec.backward(x, h, gy, gs),
        )?;
        println!("f32, h of {size}: {gaps:?}");
        // What is computed in f64 is rounded once.
        assert!(gaps.iter().all(|g| *g <= f64::from(f32::EPSILON)), "h of {size}: {gaps:?}");
    }
    Ok(())
}

/// Elements between and far beyond the components, of few examples and of many; parameters up to extreme ones.
#[test]
fn mixtures() -> Result<()> {
    for (components, shape, size, far) in
        [(8, [40, 1, 1], 1., 1e6), (3, [3, 2, 17], 1., 3.), (5, [7, 5, 3], 6., 30.), (1, [2, 1, 9], 3., 10.)]
    {
        let spec = MixtureSpec { components };
        let [b, c, n] = shape;
        let mut x = (wave(&shape, 0.37) * 2.5)?.flatten_all()?.to_vec1::<f64>()?;
        for (x, v) in x.iter_mut().zip([far, -far, 0., 0.5 * far]) {
            *x = v;
        }
        let x = Tensor::from_vec(x, (b, c, n), &Device::Cpu)?;
        let h = (wave(&[b, spec.params() * c, n], 0.91) * size)?;
        // The reference subtracts numbers of (x - mu) / s.
        let beside = (x.abs()? * 4.)?;
        let close = |what: &str, a: &Tensor, b: &Tensor| -> Result<()> {
            let d = max_relative(a, b, &beside)?;
            println!("{components} components, h of {size}, {what}: {d:.1e}");
            assert!(d < 1e-12, "{components} components, {what}: {d:e}");
            Ok(())
        };
        let ((y, slope), want) = (spec.forward(&x, &h)?, mixture::forward(&spec, &x, &h)?);
        close("y", &y, &want.0)?;
        close("log-slope", &slope, &want.1)?;
        close("inverse", &spec.inverse(&y, &h)?, &mixture::inverse(&spec, &y, &h)?)?;
        let (gy, gs) = (wave(&shape, 0.53), wave(&shape, 1.7));
        let (gx, gh) = spec.backward(&x, &h, &gy, &gs)?;
        let want = mixture::backward(&spec, (&x, &h), (&gy, &gs))?;
        for (what, a, b) in [("gx", gx, want.0), ("gh", gh, want.1)] {
            let d = max_of_largest(&a, &b)?;
            println!("{components} components, h of {size}, {what}: {d:.1e}");
            assert!(d < 1e-12, "{components} components, {what}: {d:e}");
        }
        let gaps = of_f32(
            (&x, &h),
            |x, h| spec.forward(x, h),
            |y, h| spec.inverse(y, h),
            |[x, h, gy, gs]| spec.backward(x, h, gy, gs),
        )?;
        println!("f32: {gaps:?}");
        // What is computed in f64 is rounded once.
        assert!(gaps.iter().all(|g| *g <= 4e-6), "f32: {gaps:?}");
        for i in [0, 1, 3, 4] {
            assert!(gaps[i] <= f64::from(f32::EPSILON), "f32: {gaps:?}");
        }
    }
    Ok(())
}

/// A number that is none, of the input or of any parameter, gives none both ways.
#[test]
fn mixtures_of_no_number() -> Result<()> {
    let spec = MixtureSpec { components: 2 };
    for wrong in 0..=spec.params() {
        let mut h = wave(&[1, spec.params()], 0.3).flatten_all()?.to_vec1::<f64>()?;
        let mut x = 0.3;
        *h.get_mut(wrong).unwrap_or(&mut x) = f64::NAN;
        let (x, h) =
            (Tensor::new(&[[x]], &Device::Cpu)?, Tensor::new(h.as_slice(), &Device::Cpu)?.unsqueeze(0)?);
        let back = spec.inverse(&x, &h)?;
        for t in [spec.forward(&x, &h)?.0, back] {
            assert!(t.flatten_all()?.to_vec1::<f64>()?[0].is_nan(), "parameter {wrong}: {t}");
        }
    }
    Ok(())
}
