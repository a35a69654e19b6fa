//! Transforms that are elementwise alone and autoregressive layers: their rows of the law; inverses over the whole line, the
//! start, inputs that are no numbers, which output depends on which input, and context features.

use crate::device;
use crate::laws::{Row, channel_mask, gaussian, layer, obey_the_law, resnet, tanh};
use crate::small_models::{MIXTURE, SPLINE};
use candle_core::{DType, Result, Tensor, Var};
use flows::bijections::{Autoregressive, Conv1x1, Coupling, Inverted, Weight};
use flows::nets::{ConvNet, Features, Made, MadeConfig, Mlp, Order, ResNet, Start, WithFeatures};
use flows::testing::{Deviation, check, check_net, normal};
use flows::transforms::{
    Additive, Affine, MixtureOfLogistics, Partition, RationalQuadraticSpline, Scale, Transform, checkerboard,
};
use flows::{Bijection, Chain, Context, Ctx, Memory, Net, ParamBuilder, ParamStore};
use std::sync::Arc;

fn values(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn params() -> ParamStore {
    ParamStore::seeded(3, DType::F64, &device())
}

/// Inputs over the whole line: a grid on [-7, 7], the bound and its neighbours, and powers of ten to a million.
fn line(bound: f64) -> Vec<f64> {
    let grid = (-700..=700).map(|i| f64::from(i) / 100.);
    let near = [0., 1e-12, -1e-12, 1e-6, -1e-6].map(|d| bound * (1. + d));
    let far = (0..=6).map(|n| 10f64.powi(n));
    let mut all: Vec<f64> = grid.chain(near).chain(far).collect();
    all.extend(all.clone().iter().map(|x| -x));
    all
}

/// The largest |T^-1(T(x)) - x| / (1 + |x|) over the line, for parameters N(0, std^2); and the same times the slope where that is
/// below 1, because y is rounded: an inverse can be no nearer to x than the rounding of y over the slope.
fn inverse_errors(transform: &dyn Transform, x: &[f64], std: f64, dtype: DType) -> Result<(f64, f64)> {
    let x = Tensor::new(x, &device())?.unsqueeze(1)?;
    let h = (normal(&[x.elem_count(), transform.params_per_element()], 5, &device())? * std)?;
    let (x, h) = (x.to_dtype(dtype)?, h.to_dtype(dtype)?);
    let (y, log_slope) = transform.forward(&x, &h, Ctx::eval())?;
    let (x, back, log_slope) = (values(&x)?, values(&transform.inverse(&y, &h)?)?, values(&log_slope)?);
    assert!(log_slope.iter().chain(&back).all(|v| v.is_finite()));
    let off = |i: usize| (back[i] - x[i]).abs() / (1. + x[i].abs());
    let worst = |of: &dyn Fn(usize) -> f64| (0..x.len()).map(of).fold(0., f64::max);
    Ok((worst(&off), worst(&|i| off(i) * log_slope[i].min(0.).exp())))
}

/// Both transforms, which are no more than elementwise maps, by name.
fn transforms() -> [(&'static str, Box<dyn Transform>); 2] {
    let spline = RationalQuadraticSpline::default();
    [("spline", Box::new(spline)), ("mixture", Box::new(MixtureOfLogistics::default()))]
}

type MakeTransform = fn() -> Box<dyn Transform>;

/// The same with fewer parameters, by name.
const ELEMENTWISE: [(&str, MakeTransform); 2] =
    [("spline", || Box::new(SPLINE)), ("mixture", || Box::new(MIXTURE))];

/// An autoregressive layer of three hidden widths, given `features` context features.
fn autoregressive(
    vb: &ParamBuilder,
    transform: Box<dyn Transform>,
    (dims, features): (usize, usize),
    order: Order,
) -> Result<Autoregressive> {
    let params_per_element = transform.params_per_element();
    let sizes = MadeConfig { dims, features, hidden: &[9, 7, 8], params_per_element, order };
    Ok(Autoregressive::new(transform, Made::new(&sizes, Start::Uniform(0.6), &vb.pp("net"))?))
}

/// The new transforms under each partition, and every transform in autoregressive layers and their inverses.
pub(crate) fn rows() -> Vec<Row> {
    let mut all: Vec<Row> = vec![];
    let name = |text: String| -> &'static str { text.leak() };
    for (of, transform) in ELEMENTWISE {
        for swap in [false, true] {
            let coupling = move |vb: &ParamBuilder| {
                let net = |n, m| Mlp::new(n, &[7, 6], m, Start::Uniform(0.5), &vb.pp("net"));
                Coupling::with_net(Partition::Halves { swap }, transform(), 5, net)
            };
            let swapped = if swap { ", swapped" } else { "" };
            all.push((name(format!("coupling, {of}{swapped}")), layer(coupling), gaussian(&[3, 5])));
        }
        let coupling = move |vb: &ParamBuilder| {
            let net = |n, m| ConvNet::new(n, 5, m, true, &vb.pp("net"));
            Coupling::with_net(Partition::Halves { swap: true }, transform(), 3, net)
        };
        all.push((name(format!("coupling, {of}, conv net")), layer(coupling), gaussian(&[2, 3, 2, 2])));
        for (mask, of_mask) in [("checkerboard", true), ("channel mask", false)] {
            let coupling = move |vb: &ParamBuilder| {
                let mask = if of_mask { checkerboard(2, 4, true, vb)? } else { channel_mask(vb)? };
                let net = |n, m| {
                    ResNet::new(resnet(n, m, true), Some(mask.clone()).filter(|_| of_mask), &vb.pp("net"))
                };
                Coupling::with_net(Partition::Mask(mask.clone()), transform(), 3, net)
            };
            all.push((name(format!("coupling, {of}, {mask}")), layer(coupling), gaussian(&[2, 3, 2, 4])));
        }
    }
    let orders = [("natural", Order::Natural), ("reversed", Order::Reversed), ("random", Order::Random)];
    let transforms = ["additive", "affine", "spline", "mixture"];
    for (i, of) in transforms.into_iter().enumerate() {
        let transform = move |vb: &ParamBuilder| -> Result<Box<dyn Transform>> {
            Ok(match of {
                "additive" => Box::new(Additive),
                "affine" => Box::new(Affine { scale: tanh(vb)?, shift_first: false }),
                "spline" => Box::new(SPLINE),
                _ => Box::new(MIXTURE),
            })
        };
        let (order_name, order) = orders[i % 3];
        let build = move |vb: &ParamBuilder| autoregressive(vb, transform(vb)?, (4, 0), order);
        all.push((name(format!("autoregressive, {of}, {order_name}")), layer(build), gaussian(&[3, 4])));
        let build = move |vb: &ParamBuilder| Ok(Inverted(autoregressive(vb, transform(vb)?, (4, 0), order)?));
        all.push((name(format!("inverted autoregressive, {of}")), layer(build), gaussian(&[3, 4])));
    }
    let one = |vb: &ParamBuilder| autoregressive(vb, Box::new(SPLINE), (1, 0), Order::Natural);
    all.push(("autoregressive, one dimension", layer(one), gaussian(&[3, 1])));
    let twice = |vb: &ParamBuilder| Ok(Inverted(Inverted(Conv1x1::new(2, Weight::Plu, vb)?)));
    all.push(("inverted twice, images", layer(twice), gaussian(&[2, 2, 2, 2])));
    all
}

twins! {
    fn every_transform_obeys_the_law() {
        obey_the_law(rows());
        Ok(())
    }

    fn inverses_are_exact_over_the_whole_line() {
        for (name, transform) in transforms() {
            for (dtype, most, rounding) in [(DType::F64, 1e-9, 1e-14), (DType::F32, 1e-5, 4e-6)] {
                for std in [0.5, 1.] {
                    let (off, by_slope) = inverse_errors(transform.as_ref(), &line(5.), std, dtype)?;
                    println!("{name}, {dtype:?}, h of {std}: the inverse is off by {off:.1e}, times slope {by_slope:.1e}");
                    assert!(by_slope <= rounding, "{name}, {dtype:?}: {by_slope:e}");
                    assert!(off <= most || (dtype == DType::F32 && std == 1.), "{name}, {dtype:?}: {off:e}");
                }
            }
        }
        Ok(())
    }

    /// At every knot of a spline both sides meet, and the inverse finds the knot; a knot of one element is an input of another.
    fn knots_of_a_spline() {
        let spline = RationalQuadraticSpline { bins: 4, bound: 2., ..RationalQuadraticSpline::default() };
        let h = normal(&[1, 11], 8, &device())?;
        // The widths, as the network's first four numbers give them.
        let raw = values(&h)?[..4].to_vec();
        let sum: f64 = raw.iter().map(|r| r.exp()).sum();
        let mut at = -2.;
        let mut knots = vec![at];
        for r in &raw[..3] {
            at += 4. * (1e-3 + (1. - 4e-3) * r.exp() / sum);
            knots.push(at);
        }
        knots.push(2.);
        for knot in knots {
            let (mut ys, mut slopes) = (vec![], vec![]);
            for x in [knot - 1e-9, knot, knot + 1e-9] {
                let x = Tensor::new(&[[x]], &device())?;
                let (y, log_slope) = spline.forward(&x, &h, Ctx::eval())?;
                let back = values(&spline.inverse(&y, &h)?)?[0];
                assert!((back - values(&x)?[0]).abs() < 1e-12, "{back}");
                ys.push(values(&y)?[0]);
                slopes.push(values(&log_slope)?[0]);
            }
            assert!(ys[0] < ys[1] && ys[1] < ys[2] && ys[2] - ys[0] < 1e-6, "{knot}: {ys:?}");
            assert!(slopes.iter().all(|s| (s - slopes[1]).abs() < 1e-6), "{knot}: {slopes:?}");
        }
        Ok(())
    }

    /// Steep and flat splines, and mixtures whose components lie far apart.
    fn inverses_under_extreme_parameters() {
        for (name, transform) in transforms() {
            let (x, h) = (normal(&[400, 1], 6, &device())?, normal(&[400, transform.params_per_element()], 7, &device())?);
            let h = (h * 6.)?;
            let (y, _) = transform.forward(&(x * 3.)?, &h, Ctx::eval())?;
            let x = transform.inverse(&y, &h)?;
            let again = transform.forward(&x, &h, Ctx::eval())?.0;
            let off = values(&again)?.iter().zip(values(&y)?).map(|(a, b)| (a - b).abs() / (1. + b.abs())).fold(0., f64::max);
            println!("{name}: T(T^-1(y)) is off by {off:.1e}");
            assert!(off <= 1e-9, "{name}: {off:e}");
        }
        Ok(())
    }

    /// At h = 0 each is the identity, and every parameter of an element has a gradient of its own: components or pieces that
    /// share theirs would stay the same in training.
    fn they_start_as_the_identity_and_leave_it() {
        for (name, transform) in transforms() {
            for dtype in [DType::F64, DType::F32] {
                let x = Tensor::new(line(5.), &device())?.unsqueeze(1)?.to_dtype(dtype)?;
                let h = Tensor::zeros((x.elem_count(), transform.params_per_element()), dtype, &device())?;
                let (y, log_slope) = transform.forward(&x, &h, Ctx::eval())?;
                let most = if dtype == DType::F64 { 1e-14 } else { 2e-6 };
                for ((x, y), s) in values(&x)?.into_iter().zip(values(&y)?).zip(values(&log_slope)?) {
                    assert!((x - y).abs() <= most * (1. + x.abs()) && s.abs() <= most * (1. + x.abs()), "{name}: {x} {y} {s}");
                }
            }
            let h = Var::zeros((1, transform.params_per_element()), DType::F64, &device())?;
            let x = Tensor::new(&[[0.7]], &device())?;
            let (y, log_slope) = transform.forward(&x, &h, Ctx::eval())?;
            let g = values((y + log_slope)?.sum_all()?.backward()?.get(&h).expect("a gradient"))?;
            assert!(g.iter().all(|v| v.is_finite()));
            if name == "mixture" {
                let means = &g[8..16];
                let same = (0..8).any(|i| (0..i).any(|j| (means[i] - means[j]).abs() < 1e-6));
                assert!(!same, "{means:?}");
            }
        }
        Ok(())
    }

    /// Far outside a spline's interval gradients are those of the identity, not NaN; a NaN stays one.
    fn gradients_outside_a_splines_interval() {
        let spline = RationalQuadraticSpline::default();
        let x = Var::new(&[[1e30], [-1e30], [5.], [-5.], [0.1]], &device())?;
        let h = Var::from_tensor(&normal(&[5, spline.params_per_element()], 4, &device())?)?;
        let (y, log_slope) = spline.forward(&x, &h, Ctx::eval())?;
        let grads = (y.sum_all()? + log_slope.sum_all()?)?.backward()?;
        let gx = values(grads.get(&x).unwrap())?;
        assert_eq!(gx[..2], [1., 1.]);
        assert!(gx.iter().chain(&values(grads.get(&h).unwrap())?).all(|g| g.is_finite()), "{gx:?}");
        let back = spline.inverse(&x, &h)?;
        let grads = back.sum_all()?.backward()?;
        assert!(values(grads.get(&h).unwrap())?.iter().all(|g| g.is_finite()));
        for (name, transform) in transforms() {
            let x = Tensor::new(&[[f64::NAN]], &device())?;
            let h = Tensor::zeros((1, transform.params_per_element()), DType::F64, &device())?;
            assert!(values(&transform.forward(&x, &h, Ctx::eval())?.0)?[0].is_nan(), "{name}");
            assert!(values(&transform.inverse(&x, &h)?)?[0].is_nan(), "{name}");
        }
        Ok(())
    }

    /// Output i of a masked network depends on the inputs before i in the order, on all of them, and on no other; with context
    /// every output depends on the features.
    fn masked_networks_see_what_is_before() {
        for order in [Order::Natural, Order::Reversed, Order::Random] {
            for (features, hidden) in [(0, vec![12, 16]), (2, vec![12, 16]), (0, vec![]), (0, vec![4, 3])] {
                let p = params();
                let sizes = MadeConfig { dims: 5, features, hidden: &hidden, params_per_element: 3, order };
                let made = Made::new(&sizes, Start::Uniform(1.), &p.vb())?;
                p.perturb(2, 0.5)?;
                // A unit whose ReLU is off hides a dependence: many examples.
                let x = Var::from_tensor(&normal(&[64, 5], 1, &device())?)?;
                let c = Var::from_tensor(&normal(&[64, 2], 2, &device())?)?;
                let context = Context { labels: None, features: (features > 0).then(|| c.as_tensor()) };
                let order: Vec<usize> = made.order().to_vec();
                let place = |d: usize| order.iter().position(|&i| i == d).unwrap();
                let features = (features > 0).then(|| Arc::new(Features::given(&[features])));
                let net = WithFeatures { net: made, features };
                let y = net.forward(&x, Ctx::eval().with_context(context))?;
                for j in 0..15 {
                    let grads = y.narrow(1, j, 1)?.sum_all()?.backward()?;
                    let depends = |v: &Var| -> Result<Vec<bool>> {
                        let Some(g) = grads.get(v) else { return Ok(vec![false; v.dim(1)?]) };
                        Ok(values(&g.abs()?.max(0)?)?.iter().map(|g| *g > 0.).collect())
                    };
                    let all = hidden.len() != 2 || hidden[1] > 4;
                    for (i, depends) in depends(&x)?.into_iter().enumerate() {
                        let before = place(i) < place(j % 5);
                        assert!(if all { depends == before } else { !depends || before }, "{order:?} {j} {i}");
                    }
                    assert_eq!(depends(&c)?, vec![net.features.is_some(); 2], "{order:?} {j}");
                }
            }
        }
        Ok(())
    }

    /// The law with context features, and their gradients in both memory modes.
    fn conditional_layers_obey_the_law() {
        let features = normal(&[3, 2], 12, &device())?;
        let context = Context { labels: None, features: Some(&features) };
        let made = |p: &ParamStore, transform: Box<dyn Transform>| -> Result<Autoregressive> {
            let params_per_element = transform.params_per_element();
            let sizes = MadeConfig { dims: 4, features: 2, hidden: &[9, 8], params_per_element, order: Order::Random };
            Ok(Autoregressive::new(transform, Made::new(&sizes, Start::Uniform(0.5), &p.vb())?))
        };
        let affine = || Box::new(Affine { scale: Scale::Exp, shift_first: true });
        let p = params();
        let layer = made(&p, affine())?;
        p.perturb(11, 0.1)?;
        let x = normal(&[3, 4], 1, &device())?;
        check(&layer, &x, context, &p, Deviation::LAYER)?;
        for missing in [None, Some(normal(&[3, 3], 1, &device())?)] {
            let context = Context { labels: None, features: missing.as_ref() };
            let e = layer.forward(&x, Ctx::eval().with_context(context)).unwrap_err().to_string();
            assert!(e.contains("2 context features"), "{e}");
        }
        let p = params();
        let inverted = Inverted(made(&p, Box::new(MixtureOfLogistics { components: 2 }))?);
        p.perturb(11, 0.1)?;
        check(&inverted, &x, context, &p, Deviation::LAYER)?;
        let p = params();
        let net = |n, m| {
            let net = Mlp::new(n + 2, &[7, 6], m, Start::Uniform(0.5), &p.vb())?;
            Ok(WithFeatures { net, features: Some(Arc::new(Features::given(&[2]))) })
        };
        let coupling = Coupling::with_net(Partition::Halves { swap: true }, affine(), 5, net)?;
        p.perturb(11, 0.1)?;
        check(&coupling, &normal(&[3, 5], 1, &device())?, context, &p, Deviation::LAYER)?;
        Ok(())
    }

    /// A context network of one's own, and an embedding, that several layers share: their gradients are sums over the layers.
    fn context_networks_obey_the_law() {
        let c = normal(&[3, 2], 12, &device())?;
        let labels = Tensor::new(&[2u32, 0, 2], &device())?;
        let context = Context { labels: Some(&labels), features: Some(&c) };
        type Make = fn(&ParamBuilder) -> Result<Features>;
        let own: Make = |vb| Ok(Features::given(&[2]).through(Mlp::new(2, &[5], 3, Start::Uniform(0.5), vb)?, &[3]));
        let both: Make = |vb| {
            let net = Mlp::new(4, &[5], 3, Start::Uniform(0.5), vb)?;
            Ok(Features::embedded(3, 4, vb)?.through(net, &[3]))
        };
        for make in [own, both] {
            let p = params();
            let features = Arc::new(make(&p.vb().pp("context"))?);
            let mut chain = Chain::new();
            for (i, swap) in [false, true].into_iter().enumerate() {
                let vb = p.vb().pp(i);
                let net = |n, m| {
                    let net = Mlp::new(n + features.channels_at(&[])?, &[7], m, Start::Uniform(0.5), &vb)?;
                    Ok(WithFeatures { net, features: Some(features.clone()) })
                };
                let affine = Box::new(Affine { scale: Scale::Exp, shift_first: true });
                chain.push(format!("{i}"), Coupling::with_net(Partition::Halves { swap }, affine, 5, net)?);
            }
            p.perturb(11, 0.1)?;
            let d = check(&chain, &normal(&[3, 5], 1, &device())?, context, &p, Deviation::LAYER)?;
            println!("context network: {:.0e} {:.0e} {:.0e} {:.0e}", d.inverse, d.log_det, d.gradient, d.backward);
        }
        Ok(())
    }

    fn a_masked_networks_own_backward() {
        let p = params();
        let sizes = MadeConfig { dims: 6, features: 0, hidden: &[9, 8], params_per_element: 2, order: Order::Random };
        let made = Made::new(&sizes, Start::Uniform(0.5), &p.vb())?;
        p.perturb(11, 0.1)?;
        Ok(check_net(&made, &[5, 6], &p, 1e-12)?)
    }

    /// An autoregressive layer that recomputes keeps its input, which its inverse would take one pass a dimension to find.
    fn autoregressive_layers_keep_their_input() {
        let p = params();
        let sizes = MadeConfig { dims: 3, features: 0, hidden: &[5], params_per_element: 2, order: Order::Natural };
        let made = Made::new(&sizes, Start::Uniform(0.5), &p.vb())?;
        let layer = Autoregressive::new(Box::new(Affine { scale: Scale::Exp, shift_first: false }), made);
        let x = normal(&[4, 3], 1, &device())?;
        let (z, _, saved) = layer.forward_saved(&x, Ctx::train(), Memory::Recompute)?;
        assert_eq!(values(&layer.reconstruct(&z, &saved, Ctx::train())?)?, values(&x)?);
        Ok(())
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    let spline = RationalQuadraticSpline::default();
    for (wrong, name) in [
        (RationalQuadraticSpline { bins: 1, ..spline }, "`bins`"),
        (RationalQuadraticSpline { bins: usize::MAX, ..spline }, "`bins`"),
        (RationalQuadraticSpline { bound: 0., ..spline }, "`bound`"),
        (RationalQuadraticSpline { bound: f64::NAN, ..spline }, "`bound`"),
        (RationalQuadraticSpline { min_width: 0.125, ..spline }, "`min_width`"),
        (RationalQuadraticSpline { min_height: -0.1, ..spline }, "`min_height`"),
        (RationalQuadraticSpline { min_slope: 1., ..spline }, "`min_slope`"),
        (RationalQuadraticSpline { min_slope: 0., ..spline }, "`min_slope`"),
    ] {
        assert!(wrong.check().unwrap_err().to_string().contains(name), "{wrong:?}");
    }
    for components in [0, usize::MAX] {
        let wrong = MixtureOfLogistics { components };
        assert!(wrong.check().unwrap_err().to_string().contains("`components`"), "{wrong:?}");
    }
}
