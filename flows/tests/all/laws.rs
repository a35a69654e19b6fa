//! One table over every bijection and every model: inverse, log-det against the autodiff Jacobian, gradients against
//! central differences; f64, evaluation, at most 64 dimensions, parameters perturbed by N(0, .1^2). A new layer is a row. The rows
//! of elementwise transforms and of autoregressive layers are in transforms.rs.

use crate::device;
use crate::small_models::*;
use candle_core::{DType, Result, Tensor};
use flows::bijections::*;
use flows::models::{ContextConfig, Dequantize, GlowConfig, NiceConfig, Preprocess, PriorConfig, glow, nice};
use flows::nets::{ConvNet, Mlp, ResNet, ResNetConfig, Start};
use flows::ops::conv::conv2d_backward;
use flows::params::Init;
use flows::priors::{Gaussian, Logistic};
use flows::testing::{Deviation, check, normal};
use flows::transforms::{Additive, Affine, Partition, Scale, Transform, checkerboard};
use flows::{
    Bijection, Context, Ctx, Flow, Memory, Mode, Model, ModelConfig, ParamBuilder, ParamStore, Prior,
};

fn params() -> ParamStore {
    ParamStore::seeded(3, DType::F64, &device())
}

pub(crate) fn gaussian(shape: &[usize]) -> Tensor {
    normal(shape, 1, &device()).unwrap()
}

/// Numbers in (0, 1).
fn unit(shape: &[usize]) -> Tensor {
    let t = gaussian(shape);
    // tanh(x)/2.2 + .5
    ((t.tanh().unwrap() / 2.2).unwrap() + 0.5).unwrap()
}

/// Small pixel values with noise that no step of a difference takes to another value.
fn noisy(shape: &[usize]) -> Tensor {
    let n = (unit(shape) * 3.).and_then(|t| t.floor()).unwrap();
    let noise = normal(shape, 2, &device()).and_then(|t| (t.tanh()? / 4.)? + 0.5).unwrap();
    (n + noise).unwrap()
}

/// A bijection's name, how it is made, and an input.
pub(crate) type Row = (&'static str, Build, Tensor);

pub(crate) type Build = Box<dyn Fn(&ParamBuilder) -> Result<Box<dyn Bijection>>>;

pub(crate) fn layer<B: Bijection + 'static>(f: impl Fn(&ParamBuilder) -> Result<B> + 'static) -> Build {
    Box::new(move |vb| Ok(Box::new(f(vb)?)))
}

pub(crate) fn tanh(vb: &ParamBuilder) -> Result<Scale> {
    Ok(Scale::Tanh { gain: vb.get(1, "gain", Init::Const(0.7))? })
}

fn mlp_coupling(
    vb: &ParamBuilder,
    d: usize,
    swap: bool,
    transform: impl Transform + 'static,
) -> Result<Coupling> {
    let (kept, changed) = if swap { (d - d / 2, d / 2) } else { (d / 2, d - d / 2) };
    let outputs = transform.params_per_element() * changed;
    let net = Mlp::new(kept, &[7, 6], outputs, Start::Identity, &vb.pp("net"))?;
    Ok(Coupling::new(Partition::Halves { swap }, net, transform))
}

/// The mask that keeps the first of three channels, (1, 3, 1, 1).
pub(crate) fn channel_mask(vb: &ParamBuilder) -> Result<Tensor> {
    Tensor::new(&[1f64, 0., 0.], vb.device())?.reshape((1, 3, 1, 1))?.to_dtype(vb.dtype())
}

/// A transform without its fused kernel, as one of a user's own is.
struct Plain<T>(T);

impl<T: Transform> Transform for Plain<T> {
    fn params_per_element(&self) -> usize {
        self.0.params_per_element()
    }

    fn forward(&self, x: &Tensor, h: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        self.0.forward(x, h, ctx)
    }

    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        self.0.inverse(y, h)
    }
}

pub(crate) fn resnet(inputs: usize, outputs: usize, plain: bool) -> ResNetConfig {
    ResNetConfig {
        inputs,
        features: 4,
        outputs,
        blocks: 2,
        signed_input: !plain,
        weight_norm: !plain,
        batch_norm: !plain,
        skip: !plain,
        norm_input: false,
        channel_gains: false,
        eps: 1e-4,
        momentum: 0.1,
    }
}

pub(crate) fn rows() -> Vec<Row> {
    let image = [2, 3, 4, 4];
    let affine = |scale, shift_first| Affine { scale, shift_first };
    vec![
        ("diagonal", layer(|vb| Diagonal::new(6, vb)), gaussian(&[3, 6])),
        ("actnorm, vectors", layer(|vb| ActNorm::new(5, 3., vb)), gaussian(&[3, 5])),
        ("actnorm, images", layer(|vb| ActNorm::new(3, 1., vb)), gaussian(&image)),
        (
            "batch norm, vectors",
            layer(|vb| BatchNorm::new(5, 1e-4, 0.1, BatchStatistics::Batch, vb)),
            gaussian(&[3, 5]),
        ),
        (
            "batch norm, images, appendix E",
            layer(|vb| BatchNorm::new(3, 1e-4, 0.1, BatchStatistics::Running, vb)),
            gaussian(&image),
        ),
        ("1x1 convolution, PLU", layer(|vb| Conv1x1::new(3, Weight::Plu, vb)), gaussian(&image)),
        ("1x1 convolution, plain", layer(|vb| Conv1x1::new(3, Weight::Plain, vb)), gaussian(&image)),
        ("1x1 convolution, PLU, vectors", layer(|vb| Conv1x1::new(7, Weight::Plu, vb)), gaussian(&[3, 7])),
        (
            "1x1 convolution, plain, vectors",
            layer(|vb| Conv1x1::new(7, Weight::Plain, vb)),
            gaussian(&[3, 7]),
        ),
        ("even/odd", layer(|vb| Permute::even_odd(7, vb)), gaussian(&[3, 7])),
        ("reverse", layer(|vb| Permute::reverse(3, vb)), gaussian(&image)),
        ("shuffle", layer(|vb| Permute::shuffle(7, vb)), gaussian(&[3, 7])),
        ("squeeze", layer(|_| Ok(Squeeze)), gaussian(&[2, 2, 4, 6])),
        ("flatten", layer(|_| Ok(Flatten::new(&[2, 3, 4]))), gaussian(&[2, 2, 3, 4])),
        ("rescale", layer(|_| Rescale::new(-0.3, 2.)), gaussian(&image)),
        ("logit, paper", layer(|_| Logit::new(0.05, LogitScale::Paper)), unit(&image)),
        ("logit, code", layer(|_| Logit::new(0.05, LogitScale::Code)), unit(&image)),
        ("logit, dark", layer(|_| Logit::new(1e-6, LogitScale::Code)), unit(&image)),
        (
            "variational dequantization",
            layer(|vb| VariationalDequantization::new(1, 8, 3, 5, vb)),
            noisy(&[2, 1, 4, 6]),
        ),
        (
            "variational dequantization, one bit",
            layer(|vb| VariationalDequantization::new(3, 1, 2, 4, vb)),
            noisy(&[2, 3, 2, 4]),
        ),
        (
            "whitening",
            layer(|vb| {
                let w = Whiten::new(6, 1e-3, vb)?;
                w.fit(&gaussian(&[40, 6]).matmul(&normal(&[6, 6], 8, &device())?)?)?;
                Ok(w)
            }),
            gaussian(&[3, 6]),
        ),
        (
            "standardisation",
            layer(|vb| {
                let s = Standardize::new(6, vb)?;
                s.fit(&gaussian(&[40, 6]).affine(3., -7.)?)?;
                Ok(s)
            }),
            gaussian(&[3, 6]),
        ),
        ("coupling, additive, vectors", layer(|vb| mlp_coupling(vb, 5, false, Additive)), gaussian(&[3, 5])),
        (
            "coupling, exp, swapped, odd size",
            layer(move |vb| mlp_coupling(vb, 5, true, affine(Scale::Exp, false))),
            gaussian(&[3, 5]),
        ),
        (
            "coupling, tanh, shift first",
            layer(move |vb| mlp_coupling(vb, 6, false, affine(tanh(vb)?, true))),
            gaussian(&[3, 6]),
        ),
        (
            "coupling, sigmoid, conv net, edge bias",
            layer(move |vb| {
                let net = ConvNet::new(2, 5, 4, true, &vb.pp("net"))?;
                let partition = Partition::Halves { swap: false };
                Ok(Coupling::new(partition, net, affine(Scale::Sigmoid, true)))
            }),
            gaussian(&[2, 4, 3, 4]),
        ),
        (
            "coupling, additive, conv net, odd channels",
            layer(|vb| {
                let net = ConvNet::new(2, 5, 1, false, &vb.pp("net"))?;
                let partition = Partition::Halves { swap: true };
                Ok(Coupling::new(partition, net, Additive))
            }),
            gaussian(&[2, 3, 4, 4]),
        ),
        (
            "coupling, checkerboard, residual network",
            layer(move |vb| {
                let gain = vb.get(1, "gain", Init::Const(0.7))?;
                let mask = checkerboard(4, 4, true, vb)?;
                let net = ResNet::new(resnet(2, 4, false), Some(mask.clone()), &vb.pp("net"))?;
                let transform = affine(Scale::Tanh { gain }, true);
                Ok(Coupling::new(Partition::Mask(mask), net, transform))
            }),
            gaussian(&[2, 2, 4, 4]),
        ),
        (
            "coupling, channel mask, plain residual network",
            layer(move |vb| {
                let gain = vb.get(1, "gain", Init::Const(0.7))?;
                let mask = channel_mask(vb)?;
                let net = ResNet::new(resnet(3, 6, true), None, &vb.pp("net"))?;
                let transform = affine(Scale::Tanh { gain }, false);
                Ok(Coupling::new(Partition::Mask(mask), net, transform))
            }),
            gaussian(&image),
        ),
        (
            "coupling, transform without a kernel, swapped, odd size",
            layer(move |vb| mlp_coupling(vb, 5, true, Plain(affine(tanh(vb)?, true)))),
            gaussian(&[3, 5]),
        ),
        (
            "coupling, transform without a kernel, additive",
            layer(|vb| mlp_coupling(vb, 5, false, Plain(Additive))),
            gaussian(&[3, 5]),
        ),
        (
            "coupling, transform without a kernel, checkerboard",
            layer(move |vb| {
                let mask = checkerboard(4, 4, true, vb)?;
                let net = ResNet::new(resnet(2, 4, false), Some(mask.clone()), &vb.pp("net"))?;
                Ok(Coupling::new(Partition::Mask(mask), net, Plain(affine(tanh(vb)?, false))))
            }),
            gaussian(&[2, 2, 4, 4]),
        ),
        (
            "coupling, transform without a kernel, channel mask",
            layer(move |vb| {
                let mask = channel_mask(vb)?;
                let net = ResNet::new(resnet(3, 6, true), None, &vb.pp("net"))?;
                Ok(Coupling::new(Partition::Mask(mask), net, Plain(affine(Scale::Sigmoid, true))))
            }),
            gaussian(&image),
        ),
        (
            "learned split prior",
            layer(move |vb| {
                let net = ConvNet::new(2, 0, 4, true, &vb.pp("net"))?;
                let partition = Partition::Halves { swap: false };
                Ok(Coupling::new(partition, net, affine(Scale::Exp, true)))
            }),
            gaussian(&[2, 4, 3, 4]),
        ),
        ("learned top prior", layer(|vb| ChannelPrior::new(3, None, vb)), gaussian(&image)),
        ("learned latent", layer(|vb| DiagonalPrior::new(6, None, vb)), gaussian(&[3, 6])),
        (
            "multiscale",
            layer(|vb| {
                let a = Conv1x1::new(3, Weight::Plu, &vb.pp("a"))?;
                let b = ActNorm::new(1, 3., &vb.pp("b"))?;
                Multiscale::new(vec![Box::new(a), Box::new(b)], &[[3, 4, 4], [1, 4, 4]])
            }),
            gaussian(&image),
        ),
    ]
}

/// Checks each row.
pub(crate) fn obey_the_law(rows: Vec<Row>) {
    let mut failed = vec![];
    for (name, build, x) in rows {
        let p = params();
        let run = || -> Result<Deviation> {
            let b = build(&p.vb())?;
            p.perturb(11, 0.1)?;
            check(b.as_ref(), &x, None, &p, Deviation::LAYER)
        };
        match run() {
            Ok(d) => println!("{name:48} {:.0e} {:.0e} {:.0e}", d.inverse, d.log_det, d.gradient),
            Err(e) => failed.push(format!("{name}: {e}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

twins! {
    fn every_bijection_obeys_the_law() {
        obey_the_law(rows());
        Ok(())
    }
}
/// A batch in the units a model takes.
pub(crate) fn input(config: &ModelConfig, batch: usize) -> Result<Tensor> {
    let mut shape = vec![batch];
    shape.extend(config.shape());
    match config.preprocess() {
        Preprocess::None {} | Preprocess::Standardize {} => Ok(gaussian(&shape)),
        _ if *config.dequantize() != Dequantize::default() => Ok(noisy(&shape)),
        _ => unit(&shape) * 256.,
    }
}

twins! {
    fn every_model_obeys_the_law() {
        for (name, config) in models().into_iter().chain(conditional()) {
            let m = Model::new(config, 3, DType::F64, &device())?;
            let labels = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0], &device())?;
            let features = features(m.config(), 16);
            // Shaken first: actnorm then normalises what the perturbed couplings give, as it does in training. The other way
            // round three levels of unnormalised networks compound to scales beyond f64.
            m.params().perturb(11, 0.1)?;
            let given = Context { labels: Some(&labels), features: features.as_ref() };
            m.init(&input(m.config(), 16)?, given)?;
            let cond = labels.narrow(0, 1, 2)?;
            let features = features.as_ref().map(|c| c.narrow(0, 1, 2)).transpose()?;
            let given = Context { labels: Some(&cond), features: features.as_ref() };
            let x = input(m.config(), 2)?;
            let d = check(m.bijection(), &x, given, m.params(), Deviation::MODEL)
                .map_err(|e| e.context(name))?;
            println!("{name:48} {:.0e} {:.0e} {:.0e}", d.inverse, d.log_det, d.gradient);
            // decode is the inverse of encode, and bits/dim is log p and nothing else.
            let back = m.decode(&m.encode(&x, given)?, given)?;
            let off = (back - &x)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
            assert!(off < 1e-6 * 257., "{name}: decode is off by {off}");
            let lp = m.log_prob(&x, given)?.to_vec1::<f64>()?;
            let bpd = m.bits_per_dim(&x, given)?.to_vec1::<f64>()?;
            for (l, b) in lp.iter().zip(bpd) {
                assert!((b + l / (m.dims() as f64 * 2f64.ln())).abs() < 1e-12);
            }
            // What is given matters, and what is missing is told.
            if *m.config().context() != ContextConfig::default() {
                let other = features.as_ref().map(|c| c * 2.).transpose()?;
                let swapped = Tensor::new(&[0u32, 0], &device())?;
                let changed = m.log_prob(&x, Context { labels: Some(&swapped), features: other.as_ref() })?;
                assert_ne!(changed.to_vec1::<f64>()?, lp, "{name}");
                let error = m.log_prob(&x, None).unwrap_err().to_string();
                assert!(error.contains("context"), "{name}: {error}");
            }
        }
        Ok(())
    }

    /// Training-mode batch norm: its own law, since the batch shares its statistics. The output has mean 0 and variance 1,
    /// the gradient agrees with central differences, and the running statistics move by the momentum (only in `Train`).
    fn batch_norm_in_training() {
        let x = gaussian(&[5, 2, 3, 2]);
        let rows = |t: &Tensor| t.transpose(0, 1)?.contiguous()?.flatten_from(1);
        for statistics in [BatchStatistics::Batch, BatchStatistics::Running] {
            let p = params();
            let bn = BatchNorm::new(2, 1e-4, 0.25, statistics, &p.vb())?;
            let replay = Ctx { mode: Mode::Replay, context: Context::none(), grad: true };
            let leaf = candle_core::Var::from_tensor(&x)?;
            let w = normal(&[5, 2, 3, 2], 4, &device())?;
            let objective = || -> Result<Tensor> {
                let (z, ld) = bn.forward(leaf.as_tensor(), replay)?;
                (z * &w)?.sum_all()? + ld.sum_all()?
            };
            let g = objective()?.backward()?.get(&leaf).unwrap().flatten_all()?.to_vec1::<f64>()?;
            let v = x.flatten_all()?.to_vec1::<f64>()?;
            for (i, g) in g.iter().enumerate() {
                let at = |h: f64| -> Result<f64> {
                    let mut m = v.clone();
                    m[i] += h;
                    leaf.set(&Tensor::from_vec(m, x.shape(), x.device())?)?;
                    objective()?.detach().to_scalar()
                };
                let d = (at(1e-5)? - at(-1e-5)?) / 2e-5;
                at(0.)?;
                assert!((d - g).abs() < 1e-6 * (1. + g.abs()), "{statistics:?} {i}: {d} {g}");
            }
            // Replay wrote nothing.
            let stat = |n: usize| p.all()[n].1.value().to_vec1::<f64>();
            assert_eq!((stat(0)?, stat(1)?), (vec![0.; 2], vec![1.; 2]));
            let (z, ld) = bn.forward(&x, Ctx::train())?;
            let mean = rows(&x)?.mean(1)?.to_vec1::<f64>()?;
            let var: Vec<f64> =
                rows(&x)?.broadcast_sub(&rows(&x)?.mean_keepdim(1)?)?.sqr()?.mean(1)?.to_vec1()?;
            for c in 0..2 {
                assert!((stat(0)?[c] - 0.25 * mean[c]).abs() < 1e-14);
                assert!((stat(1)?[c] - (0.75 + 0.25 * var[c])).abs() < 1e-14);
            }
            let (used_mean, used_var) = match statistics {
                BatchStatistics::Batch => (mean, var),
                BatchStatistics::Running => (stat(0)?, stat(1)?),
            };
            let want: f64 = used_var.iter().map(|v| -0.5 * 6. * (v + 1e-4).ln()).sum();
            assert!((ld.to_vec1::<f64>()?[0] - want).abs() < 1e-12);
            let (x0, z0) = (rows(&x)?.to_vec2::<f64>()?, rows(&z)?.to_vec2::<f64>()?);
            for c in 0..2 {
                let want = (x0[c][0] - used_mean[c]) / (used_var[c] + 1e-4).sqrt();
                assert!((z0[c][0] - want).abs() < 1e-12);
            }
        }
        Ok(())
    }

    /// One- and two-dimensional densities integrate to 1.
    fn densities_integrate_to_one() {
        // One dimension, after a learned diagonal and a shift; heavy tails are in `priors`.
        for logistic in [true, false] {
            let p = params();
            let mut chain = flows::Chain::new();
            chain.push("diagonal", Diagonal::new(1, &p.vb().pp("d"))?);
            chain.push("actnorm", ActNorm::new(1, 3., &p.vb().pp("a"))?);
            p.perturb(2, 0.2)?;
            let flow =
                if logistic { Flow::new(chain, Logistic, &[1]) } else { Flow::new(chain, Gaussian, &[1]) };
            let (n, lo, hi) = (40_000, -60., 60.);
            let h = (hi - lo) / n as f64;
            let x: Vec<f64> = (0..n).map(|i| lo + (i as f64 + 0.5) * h).collect();
            let lp = flow.log_prob(&Tensor::from_vec(x, (n, 1), &device())?, None)?;
            let mass = (lp.exp()?.sum_all()?.to_scalar::<f64>()?) * h;
            assert!((mass - 1.).abs() < 1e-9, "logistic {logistic}: {mass}");
        }
        // Two dimensions: an affine NICE with perturbed networks.
        let config = NiceConfig {
            shape: vec![2],
            preprocess: Preprocess::None {},
            law: nice::CouplingTransform::Affine,
            prior: PriorConfig::Gaussian {},
            init: 0.5,
            ..small_nice()
        };
        let m = Model::new(ModelConfig::Nice(config), 4, DType::F64, &device())?;
        m.params().perturb(5, 0.1)?;
        let (n, lo, hi) = (600, -15., 15.);
        let h = (hi - lo) / n as f64;
        let at = |i: usize| lo + (i as f64 + 0.5) * h;
        let x: Vec<f64> = (0..n * n).flat_map(|k| [at(k / n), at(k % n)]).collect();
        let lp = m.log_prob(&Tensor::from_vec(x, (n * n, 2), &device())?, None)?;
        let mass = lp.exp()?.sum_all()?.to_scalar::<f64>()? * h * h;
        assert!((mass - 1.).abs() < 1e-3, "{mass}");
        Ok(())
    }

    /// The constants of the papers, to the digits in which they are known.
    fn constants() {
        let at = |v: f64| Tensor::new(&[[v]], &device());
        let prior = |p: &dyn Prior| -> Result<f64> { p.log_prob(&at(0.)?, Ctx::eval())?.squeeze(0)?.to_scalar() };
        assert!((prior(&Logistic)? + 1.38629436).abs() < 1e-8);
        assert!((prior(&Gaussian)? + 0.91893853).abs() < 1e-8);
        let logit = Logit::new(0.05, LogitScale::Code)?;
        for (x, z, ld) in [(0., -2.94443898, 2.94166505), (0.1, -1.81528997, 2.01157523), (0.5, 0., 1.28093385)] {
            let (got, det) = logit.forward(&at(x)?, Ctx::eval())?;
            assert!((got.flatten_all()?.to_vec1::<f64>()?[0] - z).abs() < 1e-8, "logit({x})");
            assert!((det.to_vec1::<f64>()?[0] - ld).abs() < 1e-8, "log-det at {x}");
        }
        // bits/dim of z = 0 under N(0, 1) at 8 bits, where x / 256 is the latent.
        let flow = Flow::new(Rescale::new(1. / 256., 0.)?, Gaussian, &[1]);
        let bpd = flow.bits_per_dim(&at(0.)?, None)?.to_vec1::<f64>()?[0];
        assert!((bpd - 9.32574806).abs() < 1e-8, "{bpd}");
        // Glow's coupling at a zero network scales by sigmoid(2).
        let p = params();
        let net = ConvNet::new(1, 0, 2, false, &p.vb())?;
        let transform = Affine { scale: Scale::Sigmoid, shift_first: true };
        let glow = Coupling::new(Partition::Halves { swap: false }, net, transform);
        let (_, ld) = glow.forward(&gaussian(&[1, 2, 1, 1]), Ctx::eval())?;
        assert!((ld.to_vec1::<f64>()?[0] + 0.12692801).abs() < 1e-8);
        // Squeeze, nflows's order.
        let x = Tensor::arange(1f64, 17., &device())?.reshape((1, 1, 4, 4))?;
        let z = Squeeze.forward(&x, Ctx::eval())?.0.squeeze(0)?.to_vec3::<f64>()?;
        let want =
            [[[1., 3.], [9., 11.]], [[2., 4.], [10., 12.]], [[5., 7.], [13., 15.]], [[6., 8.], [14., 16.]]];
        assert_eq!(z, want.map(|m| m.map(|r| r.to_vec()).to_vec()).to_vec());
        Ok(())
    }

    /// A uniform density costs exactly `bits`: dequantised data under x / 2^bits and U(0, 1).
    fn uniform_density_costs_its_bits() {
        for bits in [8u8, 5] {
            let n = f64::from(1u32 << bits);
            let x = gaussian(&[2, 3]);
            let (_, ld) = Rescale::new(1. / n, 0.)?.forward(&x, Ctx::eval())?;
            // log p_U = 0, so -log p / (D ln 2) is the log-det alone.
            let bpd = -ld.to_vec1::<f64>()?[0] / (3. * 2f64.ln());
            assert!((bpd - f64::from(bits)).abs() < 1e-12);
        }
        Ok(())
    }

    /// Learned noise leaves P(n) as it is: the mean over noise of exp(log p) is the integral of p over the cell of the pixels n, with
    /// any q, and the mean of log p is below its logarithm. At first learned noise is uniform.
    fn learned_noise_bounds_the_same_likelihood() {
        let model = |dequantize, std| -> Result<Model> {
            let config = GlowConfig {
                shape: [1, 2, 2], bits: 1, levels: 1, depth: 2, width: 4, dequantize, ..GlowConfig::cifar_paper()
            };
            let m = Model::new(ModelConfig::Glow(config), 3, DType::F64, &device())?;
            m.params().perturb(11, std)?;
            Ok(m)
        };
        let n = Tensor::new(&[0f64, 1., 1., 0.], &device())?.reshape((1, 1, 2, 2))?;
        let draws = 40_000;
        let mut rng = flows::params::rng_for(0, "noise");
        let v: Vec<f64> = (0..4 * draws).map(|_| rand::Rng::random(&mut rng)).collect();
        let x = Tensor::from_vec(v, (draws, 1, 2, 2), &device())?.broadcast_add(&n)?;
        let measure = |m: &Model| -> Result<[f64; 3]> {
            let lp = m.log_prob(&x, None)?;
            let p = lp.exp()?.to_vec1::<f64>()?;
            let mean = p.iter().sum::<f64>() / draws as f64;
            let var = p.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / draws as f64;
            Ok([mean, (var / draws as f64).sqrt(), lp.mean_all()?.to_scalar()?])
        };
        let [exact, error, bound] = measure(&model(Dequantize::Uniform {}, 0.3)?)?;
        let [other, other_error, learned] = measure(&model(Dequantize::Variational { couplings: 3, width: 4 }, 0.3)?)?;
        println!("P = {exact:.3e} ± {error:.0e}, with learned noise {other:.3e} ± {other_error:.0e}");
        assert!(error.max(other_error) < 0.05 * exact);
        assert!((exact - other).abs() < 4. * error.hypot(other_error), "{exact} ± {error}, {other} ± {other_error}");
        assert!(bound < exact.ln() && learned < exact.ln());
        let [_, _, uniform] = measure(&model(Dequantize::Uniform {}, 0.)?)?;
        let [_, _, first] = measure(&model(Dequantize::Variational { couplings: 3, width: 4 }, 0.)?)?;
        assert!((uniform - first).abs() < 1e-3, "{uniform}, {first}");
        Ok(())
    }

    /// Actnorm gives mean 0 and variance 1 on the batch that sets it, and warns about a constant channel without infinities.
    fn actnorm_is_set_by_the_first_batch() {
        let p = params();
        let norm = ActNorm::new(3, 3., &p.vb())?;
        let x = ((gaussian(&[8, 3, 2, 2]) * 3.)? + 5.)?;
        let constant = Tensor::full(7f64, (8, 1, 2, 2), &device())?;
        let x = Tensor::cat(&[&x.narrow(1, 0, 2)?, &constant], 1)?;
        let (z, ld) = norm.forward(&x, Ctx::init())?;
        let rows = z.transpose(0, 1)?.contiguous()?.flatten_from(1)?;
        let mean = rows.mean(1)?.to_vec1::<f64>()?;
        let var = rows.sqr()?.mean(1)?.to_vec1::<f64>()?;
        for c in 0..2 {
            assert!(mean[c].abs() < 1e-12 && (var[c] - 1.).abs() < 1e-12);
        }
        assert_eq!((mean[2], var[2]), (0., 0.));
        assert!(ld.to_vec1::<f64>()?.iter().all(|v| v.is_finite()));
        Ok(())
    }
}

/// The parameter counts of the released code's models; 9 (2C)^2 is the top prior's kernel over zeros, which we leave out
/// (with the edge bias its edge kernel, 9 * 2C, too).
#[test]
fn parameter_counts() -> Result<()> {
    let count = |g: GlowConfig| -> Result<usize> {
        Ok(Model::new(ModelConfig::Glow(g), 0, DType::F32, &device())?.params().count())
    };
    let cifar = GlowConfig::cifar_paper();
    let top = 9 * 96 * 96;
    assert_eq!(top, 82_944);
    assert_eq!(count(cifar.clone())? + top, 44_135_856);
    assert_eq!(count(GlowConfig::cifar_code())? + top + 9 * 96, 44_603_604);
    let additive = GlowConfig { law: glow::CouplingTransform::Additive, ..cifar.clone() };
    assert_eq!(count(additive.clone())? + top, 37_940_016);
    assert_eq!(count(GlowConfig { edge_bias: true, ..additive })? + top + 9 * 96, 38_395_668);
    let grey = GlowConfig { shape: [1, 32, 32], ..cifar };
    assert_eq!(count(grey)? + 9 * 32 * 32, 31_579_584);
    // NICE on MNIST: 4 couplings of 392-1000^5-392 and the diagonal.
    let nice = Model::new(ModelConfig::Nice(NiceConfig::mnist_paper()), 0, DType::F32, &device())?;
    let coupling = 392 * 1000 + 1000 + 4 * (1000 * 1000 + 1000) + 1000 * 392 + 392;
    assert_eq!(nice.params().count(), 4 * coupling + 784);
    Ok(())
}

#[test]
fn wrong_sizes_are_said() -> Result<()> {
    let m = Model::new(ModelConfig::Glow(small_glow()), 0, DType::F64, &device())?;
    let e = m.log_prob(&gaussian(&[2, 3, 4, 6]), None).unwrap_err().to_string();
    assert!(e.contains("[3, 4, 4]"), "{e}");
    let odd = GlowConfig { shape: [3, 6, 6], ..small_glow() };
    let e = Model::new(ModelConfig::Glow(odd), 0, DType::F64, &device()).unwrap_err().to_string();
    assert!(e.contains("cannot squeeze 3x3"), "{e}");
    for config in [ModelConfig::Glow(small_glow()), ModelConfig::RealNvp(small_realnvp())] {
        let m = Model::new(config, 0, DType::F64, &device())?;
        let mut shape = vec![0];
        shape.extend(m.shape());
        let none = Tensor::zeros(shape, DType::F64, &device())?;
        for memory in [Memory::Store, Memory::Recompute] {
            let e = m.gradients(&none, Ctx::train(), memory, |lp| lp.mean_all()).unwrap_err().to_string();
            assert!(e.contains("at least one"), "{e}");
        }
        let e = m.log_prob(&none, None).unwrap_err().to_string();
        assert!(e.contains("at least one"), "{e}");
        let e = m.sample(0, 1., 1, None).unwrap_err().to_string();
        assert!(e.contains("at least one"), "{e}");
    }
    let (x, w) = (gaussian(&[16, 2, 4, 4]), gaussian(&[16, 16, 3, 3]));
    let e = conv2d_backward(&x, &w, &gaussian(&[16, 2, 8, 8])).unwrap_err().to_string();
    assert!(e.contains("[16, 2, 4, 4]") && e.contains("[16, 2, 8, 8]"), "{e}");
    let vb = params().vb();
    let gain = vb.get(2, "gain", Init::Const(0.5))?;
    let transform = Affine { scale: Scale::Tanh { gain }, shift_first: false };
    let two = mlp_coupling(&vb, 4, false, transform)?;
    for ctx in [Ctx::eval(), Ctx::train()] {
        let e = two.forward(&gaussian(&[3, 4]), ctx).unwrap_err().to_string();
        assert!(e.contains("gain is one number"), "{e}");
    }
    Ok(())
}
