//! A learned mixture of Gaussians.

use super::fixed::Gaussian;
use super::prior::{Components, Prior, PriorCoding, Standard};
use crate::bijections::DiagonalPrior;
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
/// The components are the classes of a [`DiagonalPrior`]. Which one a sample is from is a draw without a derivative, so samples
/// cannot be differentiated by the parameters.
pub struct Mixture {
    weights: Param,
    components: DiagonalPrior,
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
            components: DiagonalPrior::about(Init::Normal(1.), dims, Some(components), vb)?,
        })
    }

    /// log w, (1, K).
    fn log_weights_in(&self, grad: bool) -> Result<Tensor> {
        let weights = self.weights.get(grad).unsqueeze(0)?;
        weights.broadcast_sub(&log_sum_exp(&weights)?)
    }

    /// log w_k p_k(z), (B, K).
    fn log_joint_in(&self, z: &Tensor, grad: bool) -> Result<Tensor> {
        let [mean, logs] = self.components.all(grad).map(|p| p.unsqueeze(0));
        let logs = logs?;
        let e = z.unsqueeze(1)?.broadcast_sub(&mean?)?.broadcast_mul(&logs.neg()?.exp()?)?;
        let constant = 0.5 * z.dim(1)? as f64 * (2. * std::f64::consts::PI).ln();
        let of_each = ((e.sqr()?.sum(2)? * -0.5)? - constant)?;
        of_each.broadcast_add(&(self.log_weights_in(grad)? - logs.sum(2)?)?)
    }
}

/// log sum exp over the last dimension, which is kept.
fn log_sum_exp(t: &Tensor) -> Result<Tensor> {
    let most = t.detach().max_keepdim(D::Minus1)?;
    t.broadcast_sub(&most)?.exp()?.sum_keepdim(D::Minus1)?.log()?.broadcast_add(&most)
}

impl Components for Mixture {
    fn log_weights(&self) -> Result<Vec<f64>> {
        self.log_weights_in(false)?.squeeze(0)?.to_dtype(DType::F64)?.to_vec1()
    }

    fn log_joint(&self, z: &Tensor) -> Result<Vec<f64>> {
        self.log_joint_in(z, false)?.squeeze(0)?.to_dtype(DType::F64)?.to_vec1()
    }
}

impl Prior for Mixture {
    fn coding(&self) -> Result<PriorCoding<'_>> {
        Ok(PriorCoding {
            mixture: Some(self),
            layer: Some(&self.components),
            standard: vec![Standard::Gaussian],
        })
    }

    fn log_prob(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        log_sum_exp(&self.log_joint_in(z, ctx.grad)?)?.squeeze(1)
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
        let weights = self.log_weights()?.into_iter().map(f64::exp);
        let components = WeightedIndex::new(weights).map_err(candle_core::Error::wrap)?;
        let drawn: Vec<u32> = (0..n).map(|_| components.sample(&mut &mut *rng) as u32).collect();
        let drawn = Tensor::from_vec(drawn, n, to.1)?;
        let e = Gaussian.sample((n, dims), temperature, rng, ctx, to)?;
        self.components.inverse_in(&e, ctx.with_context(Some(&drawn)))
    }
}
