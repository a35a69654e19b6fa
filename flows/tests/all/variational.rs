//! Samples that are differentiable by the parameters, and log Z: every bijection of the table of laws, models, networks of
//! candle-nn, in f64.

use crate::{device, laws, small_models};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, linear};
use flows::bijections::{ActNorm, Coupling, Diagonal};
use flows::nets::{Mlp, Start};
use flows::optim::{Optimizer, Rule};
use flows::params::rng_for;
use flows::priors::{DiagonalGaussian, Gaussian, Mixture};
use flows::testing::normal;
use flows::transforms::{Affine, Partition, Scale};
use flows::{Bijection, Chain, Context, Ctx, Flow, Gradients, Model, Net, ParamStore};

/// Any bijection with latents of (B, D), whose own have the shape `latent`.
struct Flat {
    bijection: Box<dyn Bijection>,
    latent: Vec<usize>,
}

impl Bijection for Flat {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let (z, log_det) = self.bijection.forward(x, ctx)?;
        Ok((z.flatten_from(1)?, log_det))
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        self.bijection.inverse(&z.reshape([&[z.dim(0)?], self.latent.as_slice()].concat())?, context)
    }
}

fn to() -> (DType, Device) {
    (DType::F64, device())
}

/// Compares the gradient of a function of differentiable samples, about `unit` large, by up to `most` numbers of each parameter with central
/// differences; the samples are those of [`Flow::sample_with_log_prob`].
fn compare(
    what: &str,
    flow: &Flow,
    params: &ParamStore,
    labels: Option<&Tensor>,
    (unit, most): (f64, usize),
) -> Result<f64> {
    let (n, to) = (2, to());
    let to = (to.0, &to.1);
    let w = normal(&[n, flow.dims()], 21, to.1)?;
    let value = |x: &Tensor, log_q: &Tensor| {
        let x = (x.flatten_from(1)? / unit)?;
        // Not linear in either.
        ((x.sin()? * &w)?.sum_all()? + (log_q.sqr()? * 0.1)?.sum_all()?)? + log_q.sum_all()?
    };
    let fixed = || -> Result<f64> {
        let (x, log_q) = flow.sample_with_log_prob(n, &mut rng_for(4, "x"), labels, to)?;
        value(&x, &log_q)?.to_scalar()
    };
    let (x, log_q) = flow.rsample_with_log_prob(n, &mut rng_for(4, "x"), labels, to)?;
    let same = flow.sample_with_log_prob(n, &mut rng_for(4, "x"), labels, to)?;
    for (a, b) in [(&x, &same.0), (&log_q, &same.1)] {
        assert!((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()? < 1e-9, "{what}");
    }
    let of_flow = flow.log_prob(&x.detach(), labels)?;
    assert!((of_flow - &log_q)?.abs()?.max(0)?.to_scalar::<f64>()? < 1e-7, "{what}");
    if params.trained().is_empty() {
        return Ok(0.);
    }
    let loss = value(&x, &log_q)?;
    let mut grads = Gradients::new(params);
    grads.add_all(&loss.backward()?)?;
    let grads = grads.into_grads();
    let mut worst = 0f64;
    for (name, p) in params.trained() {
        let g = grads.get(&name).unwrap_or_else(|| panic!("{what}: `{name}` has no gradient"));
        let g = g.flatten_all()?.to_vec1::<f64>()?;
        let values = p.value().flatten_all()?.to_vec1::<f64>()?;
        let stride = values.len().div_ceil(most);
        for i in (0..values.len()).step_by(stride) {
            let at = |v: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] = v;
                p.set(&Tensor::from_vec(moved, p.value().shape(), p.value().device())?)?;
                fixed()
            };
            // Small: near a whole number the noise of a pixel bends within thousandths of a grey level.
            let h = 2e-6;
            let difference = (at(values[i] + h)? - at(values[i] - h)?) / (2. * h);
            at(values[i])?;
            let off = (difference - g[i]).abs() / (1. + g[i].abs());
            assert!(off < 2e-6, "{what}: `{name}` {i}: {}, but differences say {difference}", g[i]);
            worst = worst.max(off);
        }
    }
    Ok(worst)
}

/// A network of candle-nn's layers, whose parameters are on candle's graph in every pass.
struct TanhNet(Linear, Linear);

impl Net for TanhNet {
    fn forward(&self, x: &Tensor, _: Ctx) -> Result<Tensor> {
        self.1.forward(&self.0.forward(x)?.tanh()?)
    }
}

/// Affine couplings of MLPs in `d` dimensions, the identity at first.
fn couplings(d: usize, n: usize, params: &ParamStore) -> Result<Chain> {
    let mut chain = Chain::new();
    for i in 0..n {
        let vb = params.vb().pp(i);
        chain.push(format!("norm{i}"), ActNorm::new(d, 1., &vb.pp("norm"))?);
        let scale = Scale::Tanh { gain: vb.get(1, "gain", flows::params::Init::Const(1.))? };
        let net = |inputs, outputs| Mlp::new(inputs, &[24], outputs, Start::Identity, &vb.pp("net"));
        let partition = Partition::Halves { swap: i % 2 == 1 };
        let transform = Box::new(Affine { scale, shift_first: false });
        chain.push(format!("coupling{i}"), Coupling::with_net(partition, transform, d, net)?);
    }
    Ok(chain)
}

/// log p~ of a banana, y ~ N(x^2 / 2, .5^2) given x ~ N(0, 1), without its constant: log Z = log(2 pi .5).
fn banana(x: &Tensor) -> Result<Tensor> {
    let (a, b) = (x.narrow(1, 0, 1)?, x.narrow(1, 1, 1)?);
    let off = ((b - (a.sqr()? / 2.)?)? / 0.5)?;
    ((a.sqr()? + off.sqr()?)? * -0.5)?.squeeze(1)
}

const BANANA_LOG_Z: f64 = 1.1447298858494002;

twins! {
    fn samples_of_every_bijection_are_differentiable() {
        for (name, build, x) in laws::rows() {
            let params = ParamStore::seeded(3, DType::F64, &device());
            let bijection = build(&params.vb())?;
            params.perturb(11, 0.1)?;
            let latent = bijection.forward(&x, Ctx::eval())?.0.dims()[1..].to_vec();
            let shape = x.dims()[1..].to_vec();
            let flow = Flow::new(Flat { bijection, latent }, Gaussian, &shape);
            println!("{name:56} {:.0e}", compare(name, &flow, &params, None, (1., 6))?);
        }
        Ok(())
    }

    fn samples_of_models_are_differentiable() {
        for (name, config) in small_models::models() {
            if matches!(config.shape(), [3, _, _] | [_, 8, _]) {
                // As deep as the others, and larger.
                continue;
            }
            let m = Model::new(config, 3, DType::F64, &device())?;
            m.params().perturb(11, 0.1)?;
            let labels = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &device())?;
            m.init(&laws::input(m.config(), 8)?, Some(&labels))?;
            let labels = labels.narrow(0, 1, 2)?;
            let unit = if m.config().preprocess().is_for_vectors() { 1. } else { 256. };
            println!("{name:56} {:.0e}", compare(name, &m, m.params(), Some(&labels), (unit, 3))?);
        }
        Ok(())
    }

    /// The parameters of candle-nn's layers are on the graph of the inverse, too, and must not count twice.
    fn candles_networks_count_once() {
        let params = ParamStore::seeded(3, DType::F64, &device());
        let mut chain = Chain::new();
        for swap in [false, true] {
            let vb = params.vb().pp(swap);
            let net = TanhNet(linear(2, 5, vb.candle().pp("in"))?, linear(5, 4, vb.candle().pp("out"))?);
            let transform = Affine { scale: Scale::Exp, shift_first: false };
            chain.push(swap.to_string(), Coupling::new(Partition::Halves { swap }, net, transform));
        }
        chain.push("diagonal", Diagonal::new(4, &params.vb())?);
        let prior = DiagonalGaussian::new(4, None, &params.vb().pp("prior"))?;
        params.perturb(11, 0.3)?;
        let worst = compare("candle-nn", &Flow::new(chain, prior, &[4]), &params, None, (1., 40))?;
        println!("candle-nn, with a learned prior: {worst:.0e}");
        // A prior without such a derivative says so.
        let params = ParamStore::seeded(3, DType::F64, &device());
        let mixture = Flow::new(Chain::new(), Mixture::new(4, 2, &params.vb())?, &[4]);
        let (dtype, device) = to();
        let e = mixture.rsample_with_log_prob(3, &mut rng_for(0, "x"), None, (dtype, &device)).unwrap_err().to_string();
        assert!(e.contains("no derivative"), "{e}");
        Ok(())
    }

    /// log Z of known targets: exactly where the flow is the target, within four standard errors otherwise.
    fn log_z_is_within_its_error() {
        let (dtype, device) = to();
        let to = (dtype, &device);
        let flow = Flow::new(Chain::new(), Gaussian, &[2]);
        let gaussian = |scale: f64| move |x: &Tensor| (x.sqr()? * (-0.5 / scale.powi(2)))?.sum(1)? + 3.;
        let known = |scale: f64| 3. + (2. * std::f64::consts::PI * scale * scale).ln();
        let exact = flow.log_z(1000, gaussian(1.), &mut rng_for(0, "z"), to)?;
        assert!((exact.log_z - known(1.)).abs() < 1e-12 && exact.std_err < 1e-12);
        assert!((exact.effective_samples - 1000.).abs() < 1e-6);
        // For q of scale 1 and p of scale s, ESS/n = 1 / E w^2 = (2 - s^2) s^2 for two dimensions.
        let other = flow.log_z(100_000, gaussian(0.8), &mut rng_for(0, "z"), to)?;
        assert!((other.log_z - known(0.8)).abs() < 4. * other.std_err, "{other:?}");
        assert!((other.effective_samples / 1e5 - (2. - 0.64) * 0.64).abs() < 0.02, "{other:?}");
        let zero = |x: &Tensor| x.sum(1)?.zeros_like()? - f64::INFINITY;
        let e = flow.log_z(10, zero, &mut rng_for(0, "z"), to).unwrap_err().to_string();
        assert!(e.contains("no sample has a weight"), "{e}");
        let nan = |x: &Tensor| x.sum(1)?.sqrt();
        let e = flow.log_z(10, nan, &mut rng_for(0, "z"), to).unwrap_err().to_string();
        assert!(e.contains("is no number"), "{e}");
        let scalar = |x: &Tensor| x.sum_all();
        let e = flow.log_z(10, scalar, &mut rng_for(0, "z"), to).unwrap_err().to_string();
        assert!(e.contains("one log p~(x) for each"), "{e}");
        Ok(())
    }

    fn reverse_kl_fits_a_target() {
        let (dtype, device) = to();
        let to = (dtype, &device);
        let params = ParamStore::seeded(0, dtype, &device);
        let flow = Flow::new(couplings(2, 4, &params)?, Gaussian, &[2]);
        let before = flow.log_z(4000, banana, &mut rng_for(9, "z"), to)?;
        let mut optimizer = Optimizer::new(Rule::Adam { b1: 0.9, b2: 0.99, eps: 1e-8 }, &params)?;
        let mut rng = rng_for(1, "x");
        for step in 0..300 {
            let mut grads = Gradients::new(&params);
            grads.add_all(&flow.reverse_kl(128, banana, &mut rng, None, to)?.backward()?)?;
            optimizer.step(&grads.into_grads(), 1e-2 * (1. - f64::from(step) / 300.), 1.)?;
        }
        let z = flow.log_z(20_000, banana, &mut rng_for(9, "z"), to)?;
        println!("log Z {:.4} ± {:.4}, known {BANANA_LOG_Z:.4}; ESS {:.3} (before {:.3})", z.log_z, z.std_err,
            z.effective_samples / 2e4, before.effective_samples / 4e3);
        assert!((z.log_z - BANANA_LOG_Z).abs() < (4. * z.std_err).min(0.01), "{z:?}");
        assert!(z.effective_samples > 0.95 * 2e4, "{z:?}");
        Ok(())
    }
}
