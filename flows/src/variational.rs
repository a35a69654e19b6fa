//! A flow fitted to a density that is known up to its constant, instead of to data.
//!
//! ```text
//! p(x) = p~(x) / Z,     KL(q | p) = E_q [log q(x) - log p~(x)] + log Z
//! ```
//!
//! Z is what physics and statistics ask for: a partition function, a marginal likelihood. A fitted flow q estimates it by
//! importance sampling, with an error that its own samples tell, however bad the fit is elsewhere (boltzmann generators, Noe et al.
//! 2019, arXiv 1812.01729; [Neal 2003](https://doi.org/10.1214/aos/1056562461) for the funnel of the examples).

use crate::core::Context;
use crate::flow::Flow;
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;

/// Samples that [`Flow::log_z`] draws at a time.
const BATCH: usize = 4096;

/// log Z by importance sampling: [`Flow::log_z`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogZ {
    /// The estimate, in nats.
    pub log_z: f64,
    /// Its standard error, in nats: that of the mean weight over the mean weight.
    pub std_err: f64,
    /// The effective sample size, (sum w)^2 / sum w^2: as many samples of p itself would be as good.
    pub effective_samples: f64,
    /// Samples that were drawn.
    pub samples: usize,
}

impl Flow {
    /// The reverse KL divergence but for log Z, a scalar on candle's graph, from `n` fresh samples:
    ///
    /// ```text
    /// KL(q | p) - log Z = mean(log q(x) - log p~(x)),     x ~ q
    /// ```
    ///
    /// `log_target` gives log p~(x) (n,) of samples x by differentiable operations. The gradients by name are those of
    /// [`Gradients::add_all`](crate::Gradients::add_all) of `backward()`. It is at least -log Z, in the mean.
    ///
    /// # Errors
    /// As [`Flow::rsample_with_log_prob`], those of `log_target`, and when it does not give one number for each sample.
    pub fn reverse_kl<'a>(
        &self,
        n: usize,
        log_target: impl FnOnce(&Tensor) -> Result<Tensor>,
        rng: &mut impl Rng,
        context: impl Into<Context<'a>>,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        let (x, log_q) = self.rsample_with_log_prob(n, rng, context, to)?;
        let log_p = log_target(&x)?;
        check(&log_p, n)?;
        (log_q - log_p)?.mean_all()
    }

    /// log Z by importance sampling with this flow:
    ///
    /// ```text
    /// log Z = log mean(w),     w = p~(x) / q(x),     x ~ q
    /// ```
    ///
    /// The estimate of Z has no bias, so that of log Z is low by half its variance. Where q misses a part of p, no sample says so:
    /// a small error is to be believed only if q covers p. Without class labels or features that differ from sample to sample.
    ///
    /// # Errors
    /// As [`Flow::sample`], those of `log_target`, and when a weight is not a number or all of them are zero.
    pub fn log_z(
        &self,
        n: usize,
        log_target: impl Fn(&Tensor) -> Result<Tensor>,
        rng: &mut impl Rng,
        to: (DType, &Device),
    ) -> Result<LogZ> {
        let mut logs = Vec::with_capacity(n);
        while logs.len() < n {
            let batch = BATCH.min(n - logs.len());
            let (x, log_q) = self.sample_with_log_prob(batch, rng, None, to)?;
            let log_p = log_target(&x)?.detach();
            check(&log_p, batch)?;
            logs.extend((log_p - log_q)?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        }
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if let Some(i) = logs.iter().position(|log| log.is_nan() || *log == f64::INFINITY) {
            bail!("the weight of sample {i} is no number: its log p~(x) - log q(x) is {}", logs[i]);
        }
        if !most.is_finite() {
            bail!("no sample has a weight above zero: the target is zero wherever the flow has samples");
        }
        let weights: Vec<f64> = logs.iter().map(|log| (log - most).exp()).collect();
        let (sum, squares) = weights.iter().fold((0., 0.), |(s, q), w| (s + w, q + w * w));
        let mean = sum / n as f64;
        let variance = weights.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / (n.max(2) - 1) as f64;
        Ok(LogZ {
            log_z: most + mean.ln(),
            std_err: (variance / n as f64).sqrt() / mean,
            effective_samples: sum * sum / squares,
            samples: n,
        })
    }
}

fn check(log_p: &Tensor, n: usize) -> Result<()> {
    if log_p.dims() != [n] {
        bail!("the target gave {:?} for {n} samples: one log p~(x) for each is needed", log_p.shape());
    }
    Ok(())
}
