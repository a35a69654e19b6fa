//! `flows::latents` through whole models: what is done to a latent is undone by decoding alone, and the trace of
//! the layers adds up to the flow's own log-det.

use crate::device;
use crate::laws::{input, rows};
use crate::small_models::models;
use candle_core::{DType, Result, Tensor, Var};
use flows::bijections::LogitScale;
use flows::latents::{self, Inpainting, LayerStats};
use flows::testing::normal;
use flows::{Chain, Context, Ctx, Flow, Mode, Model, ModelConfig, ParamStore};

/// Every model of the law, perturbed and initialised, in f64, with labels for `n` examples and the examples.
fn lived(config: ModelConfig, n: usize) -> Result<(Model, Tensor, Tensor)> {
    let m = Model::new(config, 3, DType::F64, &device())?;
    let labels = Tensor::from_vec((0..16).map(|i| i % 3).collect::<Vec<u32>>(), 16, &device())?;
    m.params().perturb(11, 0.1)?;
    m.init(&input(m.config(), 16)?, Some(&labels))?;
    let x = input(m.config(), n)?;
    Ok((m, x, labels.narrow(0, 0, n)?))
}

fn most(t: &Tensor) -> Result<f64> {
    t.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar()
}

/// The log-det of a layer by its statistics, or `None` where that does not tell.
fn by_stats(stats: &LayerStats, positions: usize, batch: usize) -> Result<Option<Vec<f64>>> {
    let of_channels = |s: &Tensor| -> Result<Option<Vec<f64>>> {
        Ok(Some(vec![s.sum_all()?.to_scalar::<f64>()? * positions as f64; batch]))
    };
    match stats {
        LayerStats::Fixed => Ok(None),
        LayerStats::Channels(s) | LayerStats::Statistics(s) => of_channels(s),
        LayerStats::Elements(s) => Ok(Some(s.flatten_from(1)?.sum(1)?.to_vec1()?)),
        LayerStats::Matrix(w) => {
            let (w, n) = flows::ops::linalg::to_host(w)?;
            let values = flows::ops::linalg::singular_values(&w, n)?;
            let log_det = values.iter().map(|v| v.ln()).sum::<f64>() * positions as f64;
            Ok(Some(vec![log_det; batch]))
        }
    }
}

twins! {
    fn what_a_layer_is_inside_gives_its_log_det() {
        let mut told = 0;
        for (name, build, x) in rows().into_iter().chain(crate::transforms::rows()) {
            let p = ParamStore::seeded(3, DType::F64, &device());
            let layer = build(&p.vb())?;
            p.perturb(11, 0.1)?;
            let positions = x.dims()[2..].iter().product();
            let ctx = Ctx { mode: Mode::Eval, context: Context::none(), grad: false };
            let Some(want) = by_stats(&layer.layer_stats(&x, ctx)?, positions, x.dim(0)?)? else { continue };
            told += 1;
            for (a, b) in layer.forward(&x, ctx)?.1.to_vec1::<f64>()?.iter().zip(want) {
                assert!((a - b).abs() < 1e-9, "{name}: {a} {b}");
            }
        }
        assert!(told > 12, "{told} layers say what they are");
        Ok(())
    }

    fn a_trace_adds_up_to_the_log_likelihood() {
        for (name, config) in models() {
            let (m, x, labels) = lived(config, 3)?;
            let terms = m.terms(&x, Ctx::eval().with_context(Some(&labels)))?;
            let steps = latents::trace(&m, &x, Some(&labels))?;
            let mut sum = terms.log_det.zeros_like()?;
            for step in &steps {
                sum = (sum + &step.log_det)?;
                // A step's state holds as many numbers as the example, in its shape.
                assert_eq!(step.layout(m.shape())?.dims(), x.dims(), "{name}: {}", step.path);
                let positions = step.output.dims()[2..].iter().product();
                if let Some(want) = by_stats(&step.stats, positions, 3)? {
                    for (a, b) in step.log_det.to_vec1::<f64>()?.iter().zip(want) {
                        assert!((a - b).abs() < 1e-8 * (1. + b.abs()), "{name}: {}: {a} {b}", step.path);
                    }
                }
            }
            assert!(most(&(sum - terms.log_det)?)? < 1e-9, "{name}");
            let last = steps.last().expect("a model has layers");
            let mut parts = last.done.clone();
            parts.push(last.output.clone());
            assert_eq!(most(&(latents::join(&parts)? - &terms.z)?)?, 0., "{name}");
        }
        Ok(())
    }

    fn a_layout_undoes_squeezes_and_splits_only() {
        let config = models().into_iter().find(|(name, _)| *name == "Glow, paper").expect("listed").1;
        let (m, x, _) = lived(config, 2)?;
        let steps = latents::trace(&m, &x, None)?;
        // After preprocessing and the first squeeze it is the preprocessed image.
        let squeezed = steps.iter().position(|s| s.path == "level0.squeeze").expect("Glow squeezes");
        let before = &steps[squeezed - 1].output;
        assert_eq!(most(&(steps[squeezed].layout(m.shape())? - before)?)?, 0.);
        // The second level's squeeze moves numbers, too, and factoring out loses none.
        let next = steps.iter().position(|s| s.path == "level1.squeeze").expect("Glow has two levels");
        let (a, b) = (steps[next - 1].layout(m.shape())?, steps[next].layout(m.shape())?);
        assert_eq!(most(&(a - b)?)?, 0.);
        assert!(steps[next].layout(&[3, 5, 5]).is_err());
        // So does a layer of the whole latent, at first the identity, that comes after the levels.
        let config = models().into_iter().find(|(name, _)| *name == "Glow, all learned priors").expect("listed").1;
        let m = Model::new(config, 3, DType::F64, &device())?;
        let steps = latents::trace(&m, &input(m.config(), 2)?, None)?;
        let [.., before, latent] = steps.as_slice() else { panic!("a Glow has layers") };
        assert_eq!((latent.path.as_str(), latent.output.rank()), ("latent", 2));
        assert_eq!(most(&(before.layout(m.shape())? - latent.layout(m.shape())?)?)?, 0.);
        Ok(())
    }

    fn the_score_is_the_gradient_of_log_p() {
        for (name, config) in models() {
            let (m, x, labels) = lived(config, 2)?;
            let (log_p, g) = m.score(&x, Some(&labels))?;
            let leaf = Var::from_tensor(&x)?;
            let ctx = Ctx { mode: Mode::Eval, context: Context::labels(&labels), grad: true };
            let want = m.terms(leaf.as_tensor(), ctx)?.log_prob()?;
            assert!(most(&(log_p - want.detach())?)? < 1e-9, "{name}");
            let grads = want.sum_all()?.backward()?;
            let want = grads.get(&leaf).expect("log p depends on x");
            assert!(most(&(&g - want)?)? < 1e-9 * (1. + most(want)?), "{name}");
        }
        Ok(())
    }

    fn interpolations_moves_and_swapped_levels_are_inverted() {
        for (name, config) in models() {
            let (m, x, labels) = lived(config, 3)?;
            let cond = Some(&labels);
            let z = m.encode(&x, cond)?;
            let same = |a: &Tensor, b: &Tensor, what: &str| -> Result<()> {
                let off = most(&(a - b)?)? / (1. + most(b)?);
                assert!(off < 1e-6, "{name}: {what} is off by {off}");
                Ok(())
            };
            // Both ends of an interpolation are the examples.
            let (first, last) = (z.get(0)?, z.get(2)?);
            for path in [latents::lerp(&first, &last, &[0., 0.3, 1.])?, latents::slerp(&first, &last, &[0., 0.3, 1.])?] {
                // A class-conditional prior takes an end back under its own label.
                let labels = Tensor::cat(&[labels.narrow(0, 0, 2)?, labels.narrow(0, 2, 1)?], 0)?;
                let frames = m.decode(&path, Some(&labels))?;
                same(&frames.get(0)?, &x.get(0)?, "the first frame")?;
                same(&frames.get(2)?, &x.get(2)?, "the last frame")?;
            }
            // A move and its opposite cancel.
            let v = latents::attribute(&z.narrow(0, 0, 2)?, &z.narrow(0, 2, 1)?)?;
            let there = latents::apply(&z, &v, &[1.])?;
            same(&latents::apply(&there, &v, &[-1.])?, &z, "the move undone")?;
            // Swapped levels are the other's, all others stay, also through the image.
            let other = latents::prior(&m, 3, 0.5, 4, cond)?;
            let levels = m.levels(&z)?.len();
            let swapped = latents::swap_levels(&m, &z, &other, &[levels - 1])?;
            let again = m.encode(&m.decode(&swapped, cond)?, cond)?;
            same(&again, &swapped, "a swapped level")?;
            let (new, old, fresh) = (m.levels(&again)?, m.levels(&z)?, m.levels(&other)?);
            for l in 0..levels {
                same(&new[l], if l + 1 == levels { &fresh[l] } else { &old[l] }, "a level")?;
            }
            same(&latents::join(&old)?, &z, "the joined levels")?;
            assert!(latents::swap_levels(&m, &z, &other, &[levels]).unwrap_err().to_string().contains("no level"));
            let r = latents::reconstruct(&m, &x, cond)?;
            assert_eq!((r.error.dims(), r.level_error.dims()), (&[3][..], &[3, levels][..]), "{name}");
            same(&r.x, &x, "the reconstruction")?;
            assert!(most(&r.error)? < 1e-6 * 256. && most(&r.level_error)? < 1e-6 * (1. + most(&z)?), "{name}");
        }
        Ok(())
    }

    fn inpainting_climbs_and_keeps_what_is_known() {
        // log p of a Gaussian: the missing value goes to its mean.
        let flow = Flow::new(flows::bijections::Rescale::new(0.5, -1.)?, flows::priors::Gaussian, &[2]);
        let x = Tensor::new(&[[1f64, 9.], [3., -7.]], &device())?;
        let known = Tensor::new(&[[1f64, 0.]], &device())?;
        let start = Tensor::new(&[[5f64, 8.], [5., -9.]], &device())?;
        let o = Inpainting::new(200, (-10., 10.));
        let (filled, climbed) = latents::inpaint(&flow, &x, &known, &start, None, &o)?;
        assert_eq!(filled.get(0)?.to_vec1::<f64>()?[0], 1.);
        for row in filled.to_vec2::<f64>()? {
            assert!((row[1] - 2.).abs() < 0.05, "{row:?}");
        }
        assert_eq!(climbed.dims(), [201, 2]);
        let err = |known: f64, o: &Inpainting| {
            let known = Tensor::full(known, (1, 2), &device()).unwrap();
            latents::inpaint(&flow, &x, &known, &start, None, o).unwrap_err().to_string()
        };
        assert!(err(1., &o).contains("nothing is missing"));
        assert!(err(0., &Inpainting { range: (1., 1.), ..o }).contains("range"));

        let config = models().into_iter().find(|(name, _)| *name == "Glow, paper").expect("listed").1;
        let (m, x, _) = lived(config, 2)?;
        let known = Tensor::cat(&[Tensor::ones((1, 1, 4, 2), DType::F64, &device())?, Tensor::zeros((1, 1, 4, 2), DType::F64, &device())?], 3)?;
        let start = x.affine(-1., 256.)?;
        let o = Inpainting::new(20, (0., 256.));
        let (filled, climbed) = latents::inpaint(&m, &x, &known, &start, None, &o)?;
        assert_eq!(most(&(filled.narrow(3, 0, 2)? - x.narrow(3, 0, 2)?)?)?, 0.);
        let (start, end) = (climbed.get(0)?.to_vec1::<f64>()?, climbed.get(20)?.to_vec1::<f64>()?);
        assert!(start.iter().zip(&end).all(|(a, b)| b > a), "{start:?} {end:?}");
        let inside = filled.flatten_all()?.to_vec1::<f64>()?;
        assert!(inside.iter().all(|v| (0. ..256.).contains(v)));
        Ok(())
    }

    fn inpainting_comes_to_rest_near_black() {
        // u = logit(x / 256) of N(-4, 1): d log p(x) / du = -(u + 4) + 2 s - 1 is 0 at x = 256 s, 1.7 grey levels from black.
        let mut chain = Chain::new();
        chain.push("unit", flows::bijections::Rescale::new(1. / 256., 0.)?);
        chain.push("logit", flows::bijections::Logit::new(1e-9, LogitScale::Code)?);
        chain.push("mean", flows::bijections::Rescale::new(1., 4.)?);
        let flow = Flow::new(chain, flows::priors::Gaussian, &[2]);
        let x = Tensor::new(&[[128f64, 200.]], &device())?;
        let known = Tensor::new(&[[1f64, 0.]], &device())?;
        let start = Tensor::new(&[[0f64, 40.]], &device())?;
        let o = Inpainting::new(200, (0., 256.));
        let (filled, _) = latents::inpaint(&flow, &x, &known, &start, None, &o)?;
        let s = filled.to_vec2::<f64>()?[0][1] / 256.;
        let u = (s / (1. - s)).ln();
        assert!((-(u + 4.) + 2. * s - 1.).abs() < 0.02, "{s}");
        // From beyond the end to the other half of the range.
        let flow = Flow::new(flows::bijections::Rescale::new(1., -200.)?, flows::priors::Gaussian, &[2]);
        let start = Tensor::new(&[[0f64, -3.]], &device())?;
        let (filled, _) = latents::inpaint(&flow, &x, &known, &start, None, &o)?;
        assert!((filled.to_vec2::<f64>()?[0][1] - 200.).abs() < 0.1, "{filled}");
        Ok(())
    }

    fn neighbours_are_found_where_the_examples_are() {
        let all = normal(&[40, 3, 2, 2], 2, &device())?;
        let (places, distances) = latents::nearest(&all.narrow(0, 7, 2)?, &all, 2)?;
        let places = places.to_vec2::<u32>()?;
        assert_eq!((places[0][0], places[1][0]), (7, 8));
        assert_eq!(distances.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f64>()?, [0., 0.]);
        Ok(())
    }
}
