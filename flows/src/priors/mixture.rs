//! A learned mixture of Gaussians.

use super::fixed::Gaussian;
use super::prior::Prior;
use crate::core::Ctx;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{D, DType, Device, Result, Tensor, bail};
use rand::RngCore;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;

/// A learned mixture of K Gaussians with diagonal covariances.
///
/// ```text
/// p(z) = sum_k w_k prod_d N(z_d; mean_{k,d}, exp(logs_{k,d})^2),     w = softmax(weights)
/// ```
///
/// **Shapes.** (B, D); parameters `weights` (K,), `mean` and `logs`, each (K, D). log p keeps (B, K, D) numbers.
///
/// Which component a sample is from is a draw without a derivative, so its samples cannot be differentiated by the parameters.
pub struct Mixture {
    weights: Param,
    mean: Param,
    logs: Param,
}

impl Mixture {
    /// Equal weights, scales of 1, and means drawn from N(0, 1), since equal components would stay equal.
    ///
    /// # Errors
    /// When there is no component, or `vb` has no such tensors.
    pub fn new(dims: usize, components: usize, vb: &ParamBuilder) -> Result<Self> {
        if components == 0 {
            bail!("a mixture of no components: give `components` of at least 1");
        }
        Ok(Self {
            weights: vb.get(components, "weights", Init::Const(0.))?,
            mean: vb.get((components, dims), "mean", Init::Normal(1.))?,
            logs: vb.get((components, dims), "logs", Init::Const(0.))?,
        })
    }
}

/// log sum exp over the last dimension, which is kept.
fn log_sum_exp(t: &Tensor) -> Result<Tensor> {
    let most = t.detach().max_keepdim(D::Minus1)?;
    t.broadcast_sub(&most)?.exp()?.sum_keepdim(D::Minus1)?.log()?.broadcast_add(&most)
}

impl Prior for Mixture {
    fn log_prob(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let [weights, mean, logs] =
            [&self.weights, &self.mean, &self.logs].map(|p| p.get(ctx.grad).unsqueeze(0));
        let (weights, logs) = (weights?, logs?);
        let e = z.unsqueeze(1)?.broadcast_sub(&mean?)?.broadcast_mul(&logs.neg()?.exp()?)?;
        let constant = 0.5 * z.dim(1)? as f64 * (2. * std::f64::consts::PI).ln();
        let of_each = ((e.sqr()?.sum(2)? * -0.5)? - constant)?;
        let log_weights = weights.broadcast_sub(&log_sum_exp(&weights)?)?;
        log_sum_exp(&of_each.broadcast_add(&(log_weights - logs.sum(2)?)?)?)?.squeeze(1)
    }

    fn sample(
        &self,
        (n, dims): (usize, usize),
        temperature: f64,
        rng: &mut dyn RngCore,
        ctx: Ctx,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        if ctx.grad {
            bail!(
                "samples of a mixture have no derivative by its weights, for which component a sample is from is drawn: train by \
                 log_prob, or use another prior"
            );
        }
        let weights = self.weights.value().to_dtype(DType::F64)?;
        let weights = weights.broadcast_sub(&weights.max(0)?)?.exp()?.to_vec1::<f64>()?;
        let components = WeightedIndex::new(weights).map_err(candle_core::Error::wrap)?;
        let drawn: Vec<u32> = (0..n).map(|_| components.sample(&mut &mut *rng) as u32).collect();
        let drawn = Tensor::from_vec(drawn, n, to.1)?;
        let [mean, logs] = [&self.mean, &self.logs].map(|p| p.value().index_select(&drawn, 0));
        let e = Gaussian.sample((n, dims), temperature, rng, ctx, to)?;
        (e * logs?.exp()?)? + mean?
    }
}
