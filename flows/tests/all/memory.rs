//! Training with reconstructed inputs: the same gradients as with stored ones, and what happens where rounding errors grow.

use crate::device;
use crate::small_models::{checkered, composed};
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Init, Linear, Module, linear};
use flows::Grads;
use flows::bijections::{ActNorm, Coupling, Permute};
use flows::models::{GlowConfig, NiceConfig, Preprocess, RealNvpConfig};
use flows::nets::{Mlp, Start};
use flows::params::rng_for;
use flows::priors::Gaussian;
use flows::testing::normal;
use flows::transforms::{Affine, Partition, Scale, Transform};
use flows::{
    Bijection, Chain, Context, Ctx, Drift, Flow, Gradients, Memory, Model, ModelConfig, Net, ParamStore,
};
use rand::Rng;

/// Every shape of model: actnorm, 1x1 convolutions, batch norm of both kinds, masks, halves, several levels.
fn models() -> Vec<(&'static str, ModelConfig)> {
    let glow = GlowConfig { shape: [3, 16, 16], levels: 2, depth: 3, width: 32, ..GlowConfig::cifar_code() };
    let nvp = RealNvpConfig { shape: [3, 16, 16], features: 16, blocks: 2, ..RealNvpConfig::cifar_paper() };
    let code = RealNvpConfig { shape: [3, 16, 16], features: 4, blocks: 1, ..RealNvpConfig::cifar_code() };
    let nice = NiceConfig {
        shape: vec![1, 8, 8],
        preprocess: Preprocess::Unit {},
        hidden: vec![vec![40; 3]; 4],
        ..NiceConfig::mnist_paper()
    };
    vec![
        ("Glow", ModelConfig::Glow(glow)),
        ("RealNVP, appendix E", ModelConfig::RealNvp(nvp)),
        ("RealNVP, code", ModelConfig::RealNvp(code)),
        ("NICE", ModelConfig::Nice(nice)),
        ("composed", composed(checkered())),
    ]
}

/// Pixels with their noise.
fn pixels(shape: &[usize], n: usize) -> Result<Tensor> {
    let mut all = vec![n];
    all.extend(shape);
    let mut rng = rng_for(5, "pixels");
    let v: Vec<f64> = (0..all.iter().product()).map(|_| 256. * rng.random::<f64>()).collect();
    Tensor::from_vec(v, all, &device())
}

/// The model in a dtype, initialised and perturbed alike.
fn build(config: &ModelConfig, dtype: DType) -> Result<Model> {
    let model = Model::new(config.clone(), 1, DType::F64, &device())?;
    model.init(&pixels(config.shape(), 16)?, None)?;
    model.params().perturb(2, 0.02)?;
    let same = Model::new(config.clone(), 1, dtype, &device())?;
    let from = model.params().all();
    for ((_, to), (_, from)) in same.params().all().into_iter().zip(from) {
        to.set(&from.value().to_dtype(to.value().dtype())?)?;
    }
    Ok(same)
}

fn gradients(model: &Model, x: &Tensor, memory: Memory) -> Result<(f64, Grads)> {
    let x = x.to_dtype(model.params().dtype())?;
    let scale = -1. / (model.dims() as f64 * 2f64.ln());
    let (loss, grads) = model.gradients(&x, Ctx::train(), memory, |lp| lp.mean_all()? * scale)?;
    Ok((loss.to_dtype(DType::F64)?.to_scalar()?, grads))
}

/// |a - b| over all parameters, and |b|.
fn distance(a: &Grads, b: &Grads) -> Result<(f64, f64)> {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let (mut off, mut all) = (0., 0.);
    for (name, b) in b {
        let b = b.to_dtype(DType::F64)?;
        off += (a[name].to_dtype(DType::F64)? - &b)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        all += b.sqr()?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok((off.sqrt(), all.sqrt()))
}

/// A network of candle-nn's layers, which are on candle's graph whatever `ctx.grad` says; so are the parameters below.
struct CandleNet(Linear, Linear);

impl Net for CandleNet {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<Tensor> {
        self.1.forward(&self.0.forward(x)?.tanh()?)
    }
}

/// y = x exp(g tanh(h)) with a learned g.
struct CandleTransform(Tensor);

impl Transform for CandleTransform {
    fn params_per_element(&self) -> usize {
        1
    }

    fn forward(&self, x: &Tensor, h: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let s = h.tanh()?.broadcast_mul(&self.0)?;
        Ok(((x * s.exp()?)?, s))
    }

    fn inverse(&self, y: &Tensor, h: &Tensor) -> Result<Tensor> {
        y * h.tanh()?.broadcast_mul(&self.0)?.neg()?.exp()?
    }
}

/// z = x exp(s), elementwise.
struct CandleScale(Tensor);

impl Bijection for CandleScale {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        Ok((x.broadcast_mul(&self.0.exp()?)?, self.0.sum_all()?.broadcast_as(x.dim(0)?)?))
    }

    fn inverse(&self, z: &Tensor, _context: Context) -> Result<Tensor> {
        z.broadcast_mul(&self.0.neg()?.exp()?)
    }
}

twins! {
    /// Where no gradient is asked for, nothing of a pass is on candle's graph, which would keep the activations of all layers.
    fn parameters_of_candle_keep_no_graph() {
        let params = ParamStore::seeded(0, DType::F64, &device());
        let mut chain = Chain::new();
        for (name, swap) in [("first", false), ("second", true)] {
            let vb = params.vb().pp(name).candle();
            let net = CandleNet(linear(2, 8, vb.pp("in"))?, linear(8, 2, vb.pp("out"))?);
            let gain = CandleTransform(vb.get_with_hints(1, "gain", Init::Const(0.5))?);
            chain.push(name, Coupling::new(Partition::Halves { swap }, net, gain));
            chain.push(format!("{name}.scale"), CandleScale(vb.get_with_hints(4, "s", Init::Const(0.1))?));
        }
        let flow = Flow::new(chain, Gaussian, &[4]);
        let x = normal(&[5, 4], 1, &device())?;

        let outside = |what: &str, t: &Tensor| assert!(!t.track_op(), "{what} is on candle's graph");
        for link in flow.bijection().composite().expect("a chain").links() {
            for memory in [Memory::Store, Memory::Recompute] {
                let (z, log_det, saved) = link.layer().forward_saved(&x, Ctx::train(), memory)?;
                outside(&format!("z of {} under {memory:?}", link.name()), &z);
                outside(&format!("log-det of {} under {memory:?}", link.name()), &log_det);
                let g = (&z, &log_det.ones_like()?);
                let (back, gx) = link.layer().backward(&z, saved, g, Ctx::train(), &mut Gradients::new(&params))?;
                outside(&format!("the reconstructed input of {}", link.name()), &back);
                outside(&format!("the gradient of {}", link.name()), &gx);
            }
        }
        let terms = flow.terms(&x, Ctx::eval())?;
        outside("z", &terms.z);
        outside("the log-det", &terms.log_det);
        outside("the decoded latent", &flow.decode(&terms.z, None)?);
        for step in flows::latents::trace(&flow, &x, None)? {
            outside(&step.path, &step.output);
            outside(&step.path, &step.log_det);
        }

        // Where gradients are asked for they come: of the parameters in either memory, and of a latent through the inverse.
        let of = |memory| -> Result<Grads> {
            let mut grads = Gradients::new(&params);
            flow.gradients(&x, Ctx::train(), memory, &mut grads, |lp| lp.mean_all())?;
            Ok(grads.into_grads())
        };
        let stored = of(Memory::Store)?;
        assert_eq!(stored.len(), params.all().len());
        let (off, size) = distance(&of(Memory::Recompute)?, &stored)?;
        assert!(off <= 1e-12 * size, "{off:e} of {size:e}");
        assert!(flow.terms(&x, Ctx::eval().with_grad(true))?.log_prob()?.track_op());
        let z = Var::from_tensor(&terms.z)?;
        let store = flow.decode(z.as_tensor(), None)?.sum_all()?.backward()?;
        assert!(store.get(z.as_tensor()).is_some(), "decoding has no gradient");
        Ok(())
    }

    fn rebuilt_inputs_give_the_same_gradients() {
        for (name, config) in models() {
            let x = pixels(config.shape(), 8)?;
            // A training pass writes running statistics, so each starts from its own copy of the model.
            let stored = gradients(&build(&config, DType::F64)?, &x, Memory::Store)?;
            let reconstructed = gradients(&build(&config, DType::F64)?, &x, Memory::Recompute)?;
            let (off, size) = distance(&reconstructed.1, &stored.1)?;
            println!("{name:<22} f64: {:.1e} of the gradient", off / size);
            assert!(off <= 1e-9 * size, "{name}: {off:e} of {size:e}");
            assert!((reconstructed.0 - stored.0).abs() < 1e-12, "{name}");
        }
        Ok(())
    }

    fn in_single_precision_they_are_as_near_to_the_truth() {
        for (name, config) in models() {
            let x = pixels(config.shape(), 8)?;
            let (_, truth) = gradients(&build(&config, DType::F64)?, &x, Memory::Store)?;
            let of = |memory| -> Result<f64> {
                let model = build(&config, DType::F32)?;
                let drift = model.drift(&x.to_dtype(DType::F32)?, Ctx::train(), Drift::BOUND)?;
                model.store(&drift.over());
                Ok(distance(&gradients(&model, &x, memory)?.1, &truth)?.0)
            };
            let (stored, reconstructed) = (of(Memory::Store)?, of(Memory::Recompute)?);
            println!("{name:<22} f32: stored {stored:.2e}, reconstructed {reconstructed:.2e} from the f64 gradient");
            assert!(reconstructed <= 3. * stored, "{name}: {reconstructed:e} against {stored:e}");
        }
        Ok(())
    }

    /// Batch norm of a training pass uses the batch's statistics, whatever the running ones are: a second update, after the
    /// first has moved them, is reconstructed as exactly.
    fn running_statistics_move_alike() {
        let (_, config) = models().swap_remove(1);
        let x = pixels(config.shape(), 8)?;
        let (a, b) = (build(&config, DType::F64)?, build(&config, DType::F64)?);
        for _ in 0..3 {
            let (_, stored) = gradients(&a, &x, Memory::Store)?;
            let (_, reconstructed) = gradients(&b, &x, Memory::Recompute)?;
            let (off, size) = distance(&reconstructed, &stored)?;
            assert!(off <= 1e-9 * size, "{off:e} of {size:e}");
        }
        for ((name, a), (_, b)) in a.params().all().into_iter().zip(b.params().all()) {
            let off = (a.value().to_dtype(DType::F64)? - b.value().to_dtype(DType::F64)?)?.abs()?;
            assert!(off.flatten_all()?.max(0)?.to_scalar::<f64>()? < 1e-12, "{name}");
        }
        Ok(())
    }

    /// A layer that loses its input in rounding is found, named and stored; the gradient is then right again.
    fn an_ill_conditioned_layer_is_stored() {
        let build = |dtype| -> Result<(Flow, ParamStore)> {
            let params = ParamStore::seeded(3, dtype, &device());
            let vb = params.vb();
            let mut chain = Chain::new();
            for i in 0..3 {
                let net = Mlp::new(2, &[16], 4, Start::Uniform(0.5), &vb.pp(format!("net{i}")))?;
                chain.push(format!("norm{i}"), ActNorm::new(4, 1., &vb.pp(format!("norm{i}")))?);
                let partition = Partition::Halves { swap: false };
                let transform = Affine { scale: Scale::Exp, shift_first: false };
                chain.push(format!("coupling{i}"), Coupling::new(partition, net, transform));
                chain.push(format!("reverse{i}"), Permute::reverse(4, &vb.pp(format!("reverse{i}")))?);
            }
            // x exp(s) + t with s near -16: in f32 nothing of x is left beside t.
            let (_, bias) = params.all().into_iter().find(|(n, _)| n == "net1.1.bias").expect("it has one");
            bias.set(&Tensor::new(&[40., 40., -16., -16.], &device())?.to_dtype(dtype)?)?;
            Ok((Flow::new(chain, Gaussian, &[4]), params))
        };
        let x = normal(&[32, 4], 1, &device())?;
        let run = |dtype, memory, store: bool| -> Result<Grads> {
            let (flow, params) = build(dtype)?;
            let x = x.to_dtype(dtype)?;
            let drift = flow.drift(&x, Ctx::train(), Drift::BOUND)?;
            if dtype == DType::F32 {
                let over: Vec<_> = drift.over().into_iter().collect();
                assert_eq!(over, ["coupling1"], "{:?}", drift.layers());
            }
            if store {
                flow.store(&drift.over());
            }
            let mut grads = Gradients::new(&params);
            flow.gradients(&x, Ctx::train(), memory, &mut grads, |lp| lp.mean_all())?;
            Ok(grads.into_grads())
        };
        let truth = run(DType::F64, Memory::Store, false)?;
        let off = |grads: Grads| Ok::<_, candle_core::Error>(distance(&grads, &truth)?.0);
        let stored = off(run(DType::F32, Memory::Store, false)?)?;
        let reconstructed = off(run(DType::F32, Memory::Recompute, true)?)?;
        let wrong = off(run(DType::F32, Memory::Recompute, false)?)?;
        println!("stored {stored:.1e}, reconstructed where possible {reconstructed:.1e}, reconstructed all the same {wrong:.1e}");
        assert!(reconstructed <= 3. * stored, "{reconstructed:e} against {stored:e}");
        // Too far, or not a number at all.
        let bad = wrong.is_nan() || wrong > 10. * stored;
        assert!(bad, "the layer was not ill-conditioned: {wrong:e} against {stored:e}");
        Ok(())
    }

    /// Measuring drift changes no parameter and no running statistic, and names layers by their paths.
    fn a_probe_writes_nothing() {
        let (_, config) = models().swap_remove(1);
        let model = build(&config, DType::F64)?;
        let all = || -> Result<Vec<Vec<f64>>> {
            model
                .params()
                .all()
                .iter()
                .map(|(_, p)| p.value().to_dtype(DType::F64)?.flatten_all()?.to_vec1())
                .collect()
        };
        let before = all()?;
        let drift = model.drift(&pixels(config.shape(), 4)?, Ctx::train(), Drift::BOUND)?;
        assert_eq!(before, all()?);
        assert!(drift.over().is_empty() && drift.largest_within_bound() < 1e-9, "{:?}", drift.layers());
        assert!(drift.layers().iter().any(|(n, _)| n == "level0.checker0"), "{:?}", drift.layers());
        // A chain's own inverse of a training pass, with nothing kept, is that of the evaluated flow.
        let x = pixels(config.shape(), 2)?;
        let (z, _) = model.bijection().forward(&x, Ctx::eval())?;
        let back = model.bijection().reconstruct(&z, &flows::SavedState::nothing(), Ctx::eval())?;
        assert!((back - x)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()? < 1e-6);
        Ok(())
    }
}
