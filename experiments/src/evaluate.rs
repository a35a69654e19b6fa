//! What a model says about a split: bits/dim with its terms and its standard error.
//!
//! ```text
//! bits/dim = -log p(x) / (D ln 2),     log p(x) = log p_Z(f(x)) + log |det df/dx|,     averaged over noise draws, then over images
//! ```
//!
//! By Jensen's inequality the mean over noise draws of log p(x + u) is a lower bound of the log-likelihood of the stored
//! integers, whatever the number of draws: more draws make it less noisy, not higher. A tighter bound takes the mean of K
//! likelihoods before the logarithm (Burda et al. 2016, arXiv 1509.00519, equation 8):
//!
//! ```text
//! L_K = E log (1/K sum_k p(x + u_k)),     L_1 <= L_2 <= ... <= log P(x)
//! ```
//!
//! K is `eval.importance_samples`, and `eval.noise_draws` is how many such estimates of an image are averaged; an evaluation makes
//! `noise_draws` K passes of each image. They are two keys because they are two quantities: one changes the bound, the other one its
//! noise. With learned noise the same is the bound for its density q(u | x), which is part of log p there
//! ([`flows::bijections::VariationalDequantization`]).

use crate::batches::{Augment, Examples};
use crate::data::Split;
use crate::ranks::{Ranks, any};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use flows::params::rng_for;
use flows::{Ctx, Model};
use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;

/// How to evaluate.
#[derive(Clone, Copy)]
pub struct EvalOptions<'a> {
    /// Images in a batch; the result does not depend on it but for rounding.
    pub batch: usize,
    /// Estimates of each image's bound that are averaged.
    pub draws: usize,
    /// Noise draws in each of them, K.
    pub importance: usize,
    /// The seed of the noise, which is a function of it, the draw and the image.
    pub seed: u64,
    /// Only the first so many images.
    pub limit: Option<usize>,
    /// Called after each batch with how many forward passes of an image are done, and of how many. `false` ends the
    /// evaluation early.
    pub progress: Option<&'a dyn Fn(usize, usize) -> bool>,
    /// The processes that share out the batches; the result is the same to the bit for any number of them.
    pub ranks: &'a dyn Ranks,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// -log p(x) / (D ln 2), the mean over images; with K > 1 noise draws the tighter bound.
    pub bits_per_dim: f64,
    /// The standard error of that mean: the images' standard deviation over sqrt(images).
    pub std_err: f64,
    /// Nats for each image on the paper's scale: log p(x) + D log(1 / bin), where one pixel value is `bin` wide.
    #[serde(default = "unknown")]
    pub log_likelihood: f64,
    /// The log-det's share of the bits/dim, the mean over all noise draws.
    #[serde(default = "unknown")]
    pub log_det_bits: f64,
    /// The prior's share of the bits/dim, the mean over all noise draws: with K = 1 the two shares add up to it.
    #[serde(default = "unknown")]
    pub prior_bits: f64,
    /// Nats for each example, -log p(x), for data that are not pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats: Option<f64>,
    /// Values that a pixel may take; 0 for data that are not pixels.
    #[serde(default)]
    pub bins: u32,
    /// Estimates of each image's bound; 0 for data that are not pixels.
    #[serde(default)]
    pub noise_draws: usize,
    /// Noise draws in each of them, K; 0 for data that are not pixels, and in summaries from before there was more than one.
    #[serde(default)]
    pub importance_samples: usize,
    /// Images.
    pub images: usize,
}

/// What a summary that was written elsewhere does not say.
fn unknown() -> f64 {
    f64::NAN
}

/// Evaluates `model` on `split`, without a graph and with the same noise every time.
///
/// # Errors
/// When there is no image, the shapes disagree, or an image's likelihood is not finite: the message names the image and
/// the layer. Nothing is left out silently.
pub fn evaluate(model: &Model, split: &Split, o: &EvalOptions) -> Result<Evaluation> {
    evaluate_until(model, split, o)?.context("the evaluation was interrupted")
}

/// As [`evaluate`]; `None` if `o.progress` ended it.
///
/// # Errors
/// As [`evaluate`], but for the interruption.
pub fn evaluate_until(model: &Model, split: &Split, o: &EvalOptions) -> Result<Option<Evaluation>> {
    Ok(evaluate_each(model, split, o)?.map(|(evaluation, _)| evaluation))
}

/// As [`evaluate_until`], with the bound of log p(x) of each example in nats.
///
/// # Errors
/// As [`evaluate_until`].
pub fn evaluate_each(
    model: &Model,
    split: &Split,
    o: &EvalOptions,
) -> Result<Option<(Evaluation, Vec<f64>)>> {
    ensure!(o.batch > 0, "`batch` must be at least 1 to evaluate");
    ensure!(o.draws > 0, "`noise_draws` must be at least 1 to evaluate");
    ensure!(o.importance > 0, "`importance_samples` must be at least 1 to evaluate");
    let examples = Examples::new(split, model.config())?;
    let n = examples.len().min(o.limit.unwrap_or(usize::MAX));
    ensure!(n > 0, "there is no image to evaluate: the split is empty");
    // Vectors are taken as they are, so another draw would be the same one.
    let pixels = split.is_pixels();
    let (groups, k) = if pixels { (o.draws, o.importance) } else { (1, 1) };
    let draws = groups * k;
    let (mut prior, mut log_det, mut each) = (vec![0f64; n], vec![0f64; n], vec![0f64; n]);
    let mut sums = vec![LogSum::default(); n];
    let device = model.params().device();
    let mut ended = false;
    'draws: for draw in 0..draws {
        let noise = rng_for(o.seed, &format!("evaluation {draw}"));
        for first in (0..n).step_by(o.batch) {
            // All draws of an image are made by one rank.
            if first / o.batch % o.ranks.size() != o.ranks.rank() {
                continue;
            }
            let end = (first + o.batch).min(n);
            let host = examples.host((first..end).map(|i| (i, i as u64)), &noise, Augment::default());
            let batch = examples.batch(host, device)?;
            let ctx = Ctx::eval().with_context(batch.context());
            let x = batch.x.to_dtype(model.params().dtype())?;
            let terms = model.terms(&x, ctx)?;
            let to_host = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
            let (p, l) = (to_host(&terms.prior)?, to_host(&terms.log_det)?);
            for i in first..end {
                let (p, l) = (p[i - first], l[i - first]);
                if !(p + l).is_finite() {
                    let layer = model.find_non_finite(&x, ctx)?.unwrap_or_else(|| "the sum".to_string());
                    bail!(
                        "image {i} has log-likelihood {} (prior {p}, log-det {l}), first not finite in layer \
                         `{layer}`: no mean is reported over the others; `flow doctor` says whether the weights are \
                         broken or this image is far from what they were trained on",
                        p + l
                    );
                }
                prior[i] += p / draws as f64;
                log_det[i] += l / draws as f64;
                sums[i].add(p + l);
                if (draw + 1) % k == 0 {
                    each[i] += (std::mem::take(&mut sums[i]).log() - (k as f64).ln()) / groups as f64;
                }
            }
            if o.progress.is_some_and(|go_on| !go_on(draw * n + end, draws * n)) {
                ended = true;
                break 'draws;
            }
        }
    }
    if any(o.ranks, [ended])? == [true] {
        return Ok(None);
    }
    // Another rank's images are zeros here.
    for values in [&mut prior, &mut log_det, &mut each] {
        *values = o.ranks.sum(std::mem::take(values))?;
    }
    let means = [&prior, &log_det].map(|values| mean(values));
    Ok(Some((summed(model, split, means, &each, (groups, k)), each)))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The means of the prior's and the log-det's terms and log p of `each` example, put together.
fn summed(
    model: &Model,
    split: &Split,
    [prior, log_det]: [f64; 2],
    each: &[f64],
    (draws, importance): (usize, usize),
) -> Evaluation {
    let (n, dims) = (each.len(), split.dims() as f64);
    let bits = |nats: f64| -nats / (dims * LN_2);
    let (pixels, config, log_p) = (split.is_pixels(), model.config(), mean(each));
    let squares: f64 = each.iter().map(|l| (bits(*l) - bits(log_p)).powi(2)).sum();
    Evaluation {
        bits_per_dim: bits(log_p),
        std_err: if n > 1 { (squares / (n - 1) as f64 / n as f64).sqrt() } else { 0. },
        log_likelihood: log_p - dims * config.preprocess().bin(config.bits()).ln(),
        log_det_bits: bits(log_det),
        prior_bits: bits(prior),
        nats: (!pixels).then_some(-log_p),
        bins: if pixels { 1 << config.bits() } else { 0 },
        noise_draws: if pixels { draws } else { 0 },
        importance_samples: if pixels { importance } else { 0 },
        images: n,
    }
}

/// log of a sum of numbers whose logarithms are given, one by one.
#[derive(Clone, Copy)]
struct LogSum {
    most: f64,
    /// The sum, divided by exp(most).
    sum: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        Self { most: f64::NEG_INFINITY, sum: 0. }
    }
}

impl LogSum {
    fn add(&mut self, log: f64) {
        let most = self.most.max(log);
        self.sum = self.sum * (self.most - most).exp() + (log - most).exp();
        self.most = most;
    }

    fn log(self) -> f64 {
        self.most + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Values;
    use crate::ranks::{Single, threads};
    use candle_core::Device;
    use flows::ModelConfig;
    use flows::models::{GlowConfig, NiceConfig, Preprocess};

    const OPTIONS: EvalOptions<'static> = EvalOptions {
        batch: 3,
        draws: 1,
        importance: 1,
        seed: 0,
        limit: None,
        progress: None,
        ranks: &Single,
    };

    fn pixels(n: usize) -> Split {
        let values = (0..n * 16).map(|i| (i * 59 % 256) as u8).collect();
        Split::new(vec![1, 4, 4], Values::Pixels(values), None, None).unwrap()
    }

    fn glow() -> Model {
        let config =
            GlowConfig { shape: [1, 4, 4], levels: 2, depth: 1, width: 4, ..GlowConfig::cifar_paper() };
        let model = Model::new(ModelConfig::Glow(config), 1, DType::F32, &Device::Cpu).unwrap();
        model.params().perturb(2, 0.1).unwrap();
        model
    }

    #[test]
    fn the_terms_add_up_and_repeat() -> Result<()> {
        let (model, split) = (glow(), pixels(7));
        let e = evaluate(&model, &split, &OPTIONS)?;
        assert_eq!((e.images, e.bins, e.noise_draws, e.nats), (7, 256, 1, None));
        assert!((e.prior_bits + e.log_det_bits - e.bits_per_dim).abs() < 1e-12);
        let want = 8. - e.log_likelihood / (16. * LN_2);
        assert!((e.bits_per_dim - want).abs() < 1e-9, "LL is on the scale on which a pixel is 1/256 wide");
        assert_eq!(e, evaluate(&model, &split, &OPTIONS)?);
        let other = evaluate(&model, &split, &EvalOptions { batch: 7, ..OPTIONS })?;
        assert!((e.bits_per_dim - other.bits_per_dim).abs() < 1e-5, "noise belongs to the image");
        let first = evaluate(&model, &split, &EvalOptions { limit: Some(3), ..OPTIONS })?;
        assert_eq!(first, evaluate(&model, &split.take(3), &OPTIONS)?);
        Ok(())
    }

    /// The tighter bound is the log of the mean likelihood of the very draws that are averaged otherwise, and grows with K.
    #[test]
    fn more_samples_give_a_tighter_bound() -> Result<()> {
        let (model, split) = (glow(), pixels(6));
        let at = |draws, importance| {
            let o = EvalOptions { draws, importance, ..OPTIONS };
            evaluate_each(&model, &split, &o).map(|measured| measured.expect("it is not ended"))
        };
        let (both, tight) = at(1, 2)?;
        let first = at(1, 1)?.1;
        // The second draw from the mean of both.
        for ((tight, first), mean) in tight.iter().zip(&first).zip(at(2, 1)?.1) {
            let second = 2. * mean - first;
            let most = first.max(second);
            let want = most + ((first - most).exp() + (second - most).exp()).ln() - 2f64.ln();
            assert!((tight - want).abs() < 1e-9 && *tight >= mean);
        }
        assert_eq!((both.noise_draws, both.importance_samples), (1, 2));
        let shares = both.prior_bits + both.log_det_bits;
        assert!((shares - at(2, 1)?.0.bits_per_dim).abs() < 1e-12, "shares are means over all draws");
        // 64 draws in groups: every image's bound grows with the size of the groups, by Jensen's inequality.
        let bounds = [1, 4, 16, 64].map(|k| at(64 / k, k).map(|(_, each)| each));
        let bounds = bounds.into_iter().collect::<Result<Vec<_>>>()?;
        for pair in bounds.windows(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(looser, tighter)| looser <= tighter));
        }
        // What an earlier version wrote has no K.
        let mut earlier = serde_json::to_value(&both)?;
        earlier.as_object_mut().unwrap().remove("importance_samples");
        assert_eq!(serde_json::from_value::<Evaluation>(earlier)?.importance_samples, 0);
        Ok(())
    }

    #[test]
    fn the_uniform_density_has_eight_bits_and_a_gaussian_its_constant() -> Result<()> {
        // z = 0 for every image under N(0, 1) at 8 bits would be 9.3257 bits/dim: here the log-det alone is 8.
        let config = GlowConfig {
            shape: [1, 4, 4],
            levels: 1,
            depth: 0,
            width: 1,
            preprocess: Preprocess::Unit {},
            ..GlowConfig::cifar_paper()
        };
        let model = Model::new(ModelConfig::Glow(config), 1, DType::F32, &Device::Cpu)?;
        let e = evaluate(&model, &pixels(5), &EvalOptions { draws: 3, ..OPTIONS })?;
        assert!((e.log_det_bits - 8.).abs() < 1e-6);
        assert_eq!(e.noise_draws, 3);
        Ok(())
    }

    #[test]
    fn vectors_have_nats() -> Result<()> {
        let config =
            NiceConfig { shape: vec![2], preprocess: Preprocess::None {}, ..NiceConfig::mnist_paper() };
        let config =
            NiceConfig { hidden: vec![vec![4]; 2], prior: flows::models::PriorConfig::Gaussian {}, ..config };
        let model = Model::new(ModelConfig::Nice(config), 1, DType::F32, &Device::Cpu)?;
        let split = Split::new(vec![2], Values::Reals(vec![0.1, 0.2, -1., 1.]), None, None)?;
        let e = evaluate(&model, &split, &OPTIONS)?;
        assert_eq!((e.bins, e.noise_draws), (0, 0));
        assert!((e.nats.unwrap() - e.bits_per_dim * 2. * LN_2).abs() < 1e-9);
        assert!((e.nats.unwrap() + e.log_likelihood).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn an_image_without_a_likelihood_is_named() {
        let model = glow();
        let values = (0..5 * 2).map(|i| if i == 7 { f32::NAN } else { 0.3 }).collect();
        let split = Split::new(vec![2], Values::Reals(values), None, None).unwrap();
        let config =
            NiceConfig { shape: vec![2], preprocess: Preprocess::None {}, ..NiceConfig::mnist_paper() };
        let config = NiceConfig { hidden: vec![vec![4]; 2], ..config };
        let nice = Model::new(ModelConfig::Nice(config), 1, DType::F32, &Device::Cpu).unwrap();
        let err = evaluate(&nice, &split, &OPTIONS).unwrap_err().to_string();
        assert!(err.contains("image 3") && err.contains("layer `even_odd`"), "{err}");
        let empty = EvalOptions { limit: Some(0), ..OPTIONS };
        assert!(evaluate(&model, &pixels(1), &empty).unwrap_err().to_string().contains("no image"));
    }

    #[test]
    fn ranks_share_out_the_batches_and_get_the_same_bits() -> Result<()> {
        let split = pixels(11);
        let o = EvalOptions { draws: 2, importance: 2, ..OPTIONS };
        let alone = evaluate_each(&glow(), &split, &o)?;
        for size in [2, 3, 5] {
            let shared = threads::run(size, |ranks| {
                evaluate_each(&glow(), &split, &EvalOptions { draws: 2, importance: 2, ranks, ..OPTIONS })
                    .unwrap()
            });
            assert!(shared.iter().all(|one| *one == alone));
            // One of them ends it, and it ends for all.
            let ended = threads::run(size, |ranks| {
                let go_on = |done: usize, _: usize| ranks.rank() != 1 || done < 20;
                evaluate_each(
                    &glow(),
                    &split,
                    &EvalOptions { draws: 4, ranks, progress: Some(&go_on), ..OPTIONS },
                )
                .unwrap()
            });
            assert!(ended.iter().all(Option::is_none));
        }
        Ok(())
    }

    #[test]
    fn it_can_be_ended_early() -> Result<()> {
        let go_on = |done: usize, of: usize| done < 3 && of == 7;
        let o = EvalOptions { progress: Some(&go_on), ..OPTIONS };
        assert_eq!(evaluate_until(&glow(), &pixels(7), &o)?, None);
        Ok(())
    }
}
