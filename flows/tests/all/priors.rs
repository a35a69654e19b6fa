//! One table over every prior: it integrates to one, its samples follow log_prob at every temperature, and its gradients are
//! those of central differences, in f64. A new prior is a row.

use crate::device;
use candle_core::{DType, Result, Tensor, Var};
use flows::bijections::Diagonal;
use flows::models::{GlowConfig, NiceConfig, Preprocess, PriorConfig, RealNvpConfig};
use flows::params::rng_for;
use flows::priors::{DiagonalGaussian, Gaussian, Logistic, Mixture, StudentT};
use flows::testing::normal;
use flows::{
    Chain, Context, Ctx, Flow, Gradients, Memory, Model, ModelConfig, ParamBuilder, ParamStore, Prior,
    SaveOptions,
};

type Row = (&'static str, fn(usize, &ParamBuilder) -> Result<Box<dyn Prior>>);

fn rows() -> Vec<Row> {
    vec![
        ("Gaussian", |_, _| Ok(Box::new(Gaussian))),
        ("logistic", |_, _| Ok(Box::new(Logistic))),
        ("Student's t", |_, _| Ok(Box::new(StudentT::fixed(3.)?))),
        ("Student's t, learned", |d, vb| Ok(Box::new(StudentT::learned(4., d, vb)?))),
        ("mixture", |d, vb| Ok(Box::new(Mixture::new(d, 3, vb)?))),
        ("diagonal Gaussian", |d, vb| Ok(Box::new(DiagonalGaussian::new(d, None, vb)?))),
        ("diagonal Gaussian, classes", |d, vb| Ok(Box::new(DiagonalGaussian::new(d, Some(2), vb)?))),
    ]
}

/// A prior of the table with perturbed parameters.
fn build((name, build): Row, dims: usize) -> Result<(Box<dyn Prior>, ParamStore)> {
    let params = ParamStore::seeded(3, DType::F64, &device());
    let prior = build(dims, &params.vb()).map_err(|e| e.context(name))?;
    params.perturb(11, 0.3)?;
    Ok((prior, params))
}

/// Class 1 for `n` examples.
fn labels(n: usize) -> Result<Tensor> {
    Tensor::ones(n, DType::U32, &device())
}

/// log p of rows (N, D).
fn log_prob(prior: &dyn Prior, z: Vec<f64>, dims: usize) -> Result<Vec<f64>> {
    let n = z.len() / dims;
    let labels = labels(n)?;
    let ctx = Ctx::eval().with_context(Some(&labels));
    prior.log_prob(&Tensor::from_vec(z, (n, dims), &device())?, ctx)?.to_vec1()
}

/// `n` midpoints of the whole line as (z, width): z = s / (1 - s^2), so that heavy tails are reached.
fn line(n: usize) -> Vec<(f64, f64)> {
    let at = |i: usize| {
        let s = (2. * i as f64 + 1.) / n as f64 - 1.;
        let r = 1. / (1. - s * s);
        (s * r, 2. / n as f64 * (1. + s * s) * r * r)
    };
    (0..n).map(at).collect()
}

twins! {
    fn priors_integrate_to_one() {
        for row in rows() {
            let points = line(20_000);
            let lp = log_prob(build(row, 1)?.0.as_ref(), points.iter().map(|p| p.0).collect(), 1)?;
            let mass: f64 = lp.iter().zip(&points).map(|(l, (_, width))| l.exp() * width).sum();
            assert!((mass - 1.).abs() < 1e-8, "{}: {mass}", row.0);
            let points = line(500);
            let grid = points.iter().flat_map(|a| points.iter().map(|b| [a.0, b.0])).flatten().collect();
            let lp = log_prob(build(row, 2)?.0.as_ref(), grid, 2)?;
            let widths = points.iter().flat_map(|a| points.iter().map(move |b| a.1 * b.1));
            let plane: f64 = lp.iter().zip(widths).map(|(l, width)| l.exp() * width).sum();
            println!("{:28} {:.0e} {:.0e}", row.0, mass - 1., plane - 1.);
            assert!((plane - 1.).abs() < 1e-6, "{}: {plane}", row.0);
        }
        Ok(())
    }

    /// Kolmogorov and Smirnov: the largest distance of the two distribution functions, times sqrt(n), is below 1.63 in 99 of 100
    /// cases. And a temperature scales the distance from the location.
    fn samples_follow_log_prob() {
        let n = 20_000;
        for row in rows() {
            let (prior, _) = build(row, 1)?;
            let labels = labels(n)?;
            let draw = |t: f64| -> Result<Vec<f64>> {
                let ctx = Ctx::eval().with_context(Some(&labels));
                let rng = &mut rng_for(5, "sample");
                prior.sample((n, 1), t, rng, ctx, (DType::F64, &device()))?.flatten_all()?.to_vec1()
            };
            let [zero, half, mut one] = [draw(0.)?, draw(0.5)?, draw(1.)?];
            for ((location, half), one) in zero.iter().zip(half).zip(&one) {
                assert!((half - location - 0.5 * (one - location)).abs() < 1e-12, "{}", row.0);
            }
            one.sort_by(f64::total_cmp);
            let points = line(100_000);
            let lp = log_prob(prior.as_ref(), points.iter().map(|p| p.0).collect(), 1)?;
            let (mut worst, mut below, mut counted) = (0f64, 0., 0);
            for ((z, width), lp) in points.iter().zip(lp) {
                while counted < n && one[counted] < z - width / 2. {
                    counted += 1;
                }
                worst = worst.max((counted as f64 / n as f64 - below).abs());
                below += lp.exp() * width;
            }
            println!("{:28} {:.2}", row.0, worst * (n as f64).sqrt());
            assert!(worst * (n as f64).sqrt() < 1.63, "{}: {worst}", row.0);
        }
        Ok(())
    }

    fn gradients_are_those_of_differences() {
        let (labels, w) = (Tensor::new(&[0u32, 1, 1, 0], &device())?, normal(&[4], 7, &device())?);
        for row in rows() {
            let (prior, params) = build(row, 3)?;
            let z = Var::from_tensor(&normal(&[4, 3], 8, &device())?)?;
            let ctx = Ctx::eval().with_context(Some(&labels)).with_grad(true);
            let of_log_prob = || (prior.log_prob(z.as_tensor(), ctx)? * &w)?.sum_all();
            let mut leaves: Vec<(String, Var)> = vec![("z".into(), z.clone())];
            leaves.extend(params.trained().into_iter().map(|(name, p)| (name, p.var().clone())));
            differences(row.0, &leaves, &of_log_prob)?;
            // Samples by the parameters, or why there is no derivative.
            let m = normal(&[4, 3], 9, &device())?;
            let of_sample = || {
                let rng = &mut rng_for(5, "sample");
                (prior.sample((4, 3), 0.7, rng, ctx, (DType::F64, &device()))? * &m)?.sum_all()
            };
            match (row.0, params.count()) {
                (_, 0) => assert!(!of_sample()?.track_op()),
                ("mixture" | "Student's t, learned", _) => {
                    let e = of_sample().unwrap_err().to_string();
                    assert!(e.contains("have no derivative"), "{e}");
                }
                _ => differences(row.0, &leaves[1..], &of_sample)?,
            }
        }
        Ok(())
    }

    /// A training pass collects the gradients of a prior's parameters, whichever way the layers' are computed.
    fn training_passes_reach_the_prior() {
        let labels = Tensor::new(&[0u32, 1, 1, 0], &device())?;
        for row in rows() {
            let params = ParamStore::seeded(3, DType::F64, &device());
            let mut chain = Chain::new();
            chain.push("diagonal", Diagonal::new(3, &params.vb().pp("diagonal"))?);
            let prior = row.1(3, &params.vb().pp("prior"))?;
            params.perturb(11, 0.3)?;
            let flow = Flow::new(chain, Boxed(prior), &[3]);
            let x = normal(&[4, 3], 8, &device())?;
            let ctx = Ctx::train().with_context(Some(&labels));
            let want = flow.terms(&x, ctx)?.log_prob()?.mean_all()?.backward()?;
            for memory in [Memory::Store, Memory::Recompute] {
                let mut grads = Gradients::new(&params);
                flow.gradients(&x, ctx.with_grad(false), memory, &mut grads, |lp| lp.mean_all())?;
                let grads = grads.into_grads();
                for (name, p) in params.trained() {
                    let (a, b) = (&grads[&name], want.get(p.var()).expect("it is in the graph"));
                    let off = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                    assert!(off < 1e-13, "{}: {name} is off by {off}", row.0);
                }
            }
            let (lp, score) = flow.score(&x, Context::labels(&labels))?;
            assert_eq!((lp.dims(), score.dims()), (&[4][..], &[4, 3][..]));
        }
        Ok(())
    }

    /// Student's t as scipy.stats.t.logpdf has it: few and many degrees of freedom.
    fn students_t_has_its_constants() {
        for (df, z, want) in [(5., 1.5, -2.083310258352173), (0.7, -20., -6.619418348967155), (1e4, 0.3, -0.9639678306886811)] {
            let got = log_prob(&StudentT::fixed(df)?, vec![z], 1)?[0];
            assert!((got - want).abs() < 1e-11, "t({df}) at {z}: {got}, not {want}");
        }
        Ok(())
    }
}

struct Boxed(Box<dyn Prior>);

impl Prior for Boxed {
    fn log_prob(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        self.0.log_prob(z, ctx)
    }

    fn sample(
        &self,
        shape: (usize, usize),
        temperature: f64,
        rng: &mut dyn rand::RngCore,
        ctx: Ctx,
        to: (DType, &candle_core::Device),
    ) -> Result<Tensor> {
        self.0.sample(shape, temperature, rng, ctx, to)
    }
}

/// Compares the gradient of `f` by each element of the leaves with central differences.
pub(crate) fn differences(
    what: &str,
    leaves: &[(String, Var)],
    f: &dyn Fn() -> Result<Tensor>,
) -> Result<()> {
    let grads = f()?.backward()?;
    for (name, leaf) in leaves {
        let values = leaf.flatten_all()?.to_vec1::<f64>()?;
        let Some(g) = grads.get(leaf) else { candle_core::bail!("{what}: `{name}` has no gradient") };
        for (i, g) in g.flatten_all()?.to_vec1::<f64>()?.into_iter().enumerate() {
            let at = |v: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] = v;
                leaf.set(&Tensor::from_vec(moved, leaf.shape(), leaf.device())?)?;
                f()?.detach().to_scalar()
            };
            let difference = (at(values[i] + 1e-5)? - at(values[i] - 1e-5)?) / 2e-5;
            at(values[i])?;
            let off = (difference - g).abs() / (1. + g.abs());
            assert!(off < 1e-7, "{what}: `{name}` {i}: {g}, but differences say {difference}");
        }
    }
    Ok(())
}

/// Today's names stay names; tables have their settings; a wrong key is said; a saved model has its prior.
#[test]
fn configs_name_their_prior() -> anyhow::Result<()> {
    let mut nice = NiceConfig {
        shape: vec![4],
        preprocess: Preprocess::None {},
        hidden: vec![vec![4]; 2],
        ..NiceConfig::mnist_paper()
    };
    let written = |nice: &NiceConfig| serde_json::to_value(nice).map(|v| v["prior"].clone());
    assert_eq!(written(&nice)?, "logistic");
    for (text, prior) in [
        (r#""gaussian""#, PriorConfig::Gaussian {}),
        (r#"{"kind": "gaussian"}"#, PriorConfig::Gaussian {}),
        (r#""student_t""#, PriorConfig::StudentT { df: 5., learned: false }),
        (r#"{"kind": "student_t", "learned": true}"#, PriorConfig::StudentT { df: 5., learned: true }),
        (r#"{"kind": "mixture", "components": 4}"#, PriorConfig::Mixture { components: 4 }),
        (r#""diagonal_gaussian""#, PriorConfig::DiagonalGaussian { classes: None }),
        (
            r#"{"kind": "diagonal_gaussian", "classes": 3}"#,
            PriorConfig::DiagonalGaussian { classes: Some(3) },
        ),
    ] {
        let mut value = serde_json::to_value(&nice)?;
        value["prior"] = serde_json::from_str(text)?;
        let read: NiceConfig = serde_json::from_value(value)?;
        assert_eq!(read.prior, prior);
        assert_eq!(serde_json::from_value::<NiceConfig>(serde_json::to_value(&read)?)?, read);
        nice.prior = prior.clone();
        let dir = tempfile::tempdir()?;
        let model = Model::new(ModelConfig::Nice(nice.clone()), 1, DType::F64, &device())?;
        model.params().perturb(2, 0.2)?;
        model.save(dir.path(), &SaveOptions::default())?;
        let (again, labels) = (Model::load(dir.path(), &device())?, labels(3)?);
        let cond = model.config().classes().map(|_| &labels);
        let x = model.sample(3, 0.9, 4, cond)?;
        assert_eq!(model.log_prob(&x, cond)?.to_vec1::<f64>()?, again.log_prob(&x, cond)?.to_vec1::<f64>()?);
        if model.config().classes().is_some() {
            assert!(model.sample(3, 1., 4, None).unwrap_err().to_string().contains("class"));
        }
        let scalars: usize = model
            .params()
            .trained()
            .iter()
            .filter(|(n, _)| n.starts_with("prior."))
            .map(|(_, p)| p.value().elem_count())
            .sum();
        assert_eq!(scalars as f64, prior.parameters(4.));
    }
    for (wrong, said) in [
        (r#"{"kind": "mixture", "df": 4}"#, "unknown field `df`"),
        (r#"{"kind": "gaussian", "df": 4}"#, "unknown field `df`"),
        (r#""cauchy""#, "unknown variant `cauchy`"),
        ("3", "a name, or a table"),
    ] {
        let mut value = serde_json::to_value(&nice)?;
        value["prior"] = serde_json::from_str(wrong)?;
        let e = serde_json::from_value::<NiceConfig>(value).unwrap_err().to_string();
        assert!(e.contains(said), "{wrong}: {e}");
    }
    // What had no choice of prior before is written as before, and takes one now.
    let glow = GlowConfig { shape: [1, 4, 4], levels: 1, depth: 1, width: 2, ..GlowConfig::cifar_paper() };
    let nvp = RealNvpConfig { shape: [1, 4, 4], features: 2, blocks: 1, ..RealNvpConfig::cifar_code() };
    for config in [ModelConfig::Glow(glow.clone()), ModelConfig::RealNvp(nvp)] {
        let mut value = serde_json::to_value(&config)?;
        assert!(value.get("prior").is_none());
        value["prior"] = "mixture".into();
        let model = Model::new(serde_json::from_value(value)?, 1, DType::F32, &device())?;
        assert!(model.params().trained().iter().any(|(name, _)| name == "prior.weights"));
    }
    for (prior, said) in [
        (PriorConfig::StudentT { df: 0., learned: true }, "`df` = 0"),
        (PriorConfig::Mixture { components: 0 }, "at least 1"),
        (PriorConfig::Mixture { components: usize::MAX }, "no model has"),
        (PriorConfig::DiagonalGaussian { classes: Some(0) }, "`prior.classes` = 0"),
        (PriorConfig::DiagonalGaussian { classes: Some(2) }, "`prior.classes` = 2"),
    ] {
        let glow = GlowConfig { prior, classes: Some(3), ..glow.clone() };
        let e = Model::new(ModelConfig::Glow(glow), 1, DType::F32, &device()).unwrap_err().to_string();
        assert!(e.contains(said), "{e}");
    }
    Ok(())
}
