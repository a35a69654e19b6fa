//! A learned Gaussian with a diagonal covariance, for each class if there are any.

use super::fixed::Gaussian;
use super::prior::{Prior, PriorCoding, Standard};
use crate::bijections::DiagonalPrior;
use crate::core::{Bijection, Ctx};
use crate::params::ParamBuilder;
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::RngCore;

/// A learned Gaussian, independent over dimensions, optionally one for each class y (as in FlowGMM, Izmailov et al. 2020,
/// section 3.1, with diagonal covariances).
///
/// ```text
/// p(z | y) = prod_d N(z_d; mean_{y,d}, exp(logs_{y,d})^2)
/// ```
///
/// It is [`DiagonalPrior`] before a standard Gaussian, as a distribution: latents keep their location and scale.
///
/// **Shapes.** (B, D); parameters `mean` and `logs`, each (classes, D), or (1, D) without classes.
pub struct DiagonalGaussian(DiagonalPrior);

impl DiagonalGaussian {
    /// N(0, 1) at first, for every class.
    ///
    /// # Errors
    /// When there are 0 classes, or `vb` has no such tensors.
    pub fn new(dims: usize, classes: Option<usize>, vb: &ParamBuilder) -> Result<Self> {
        if classes == Some(0) {
            bail!("a prior of 0 classes: give at least one, or leave `classes` out");
        }
        DiagonalPrior::new(dims, classes, vb).map(Self)
    }
}

impl Prior for DiagonalGaussian {
    fn coding(&self) -> Result<PriorCoding<'_>> {
        Ok(PriorCoding { layer: Some(&self.0), ..Standard::Gaussian.into() })
    }

    fn log_prob(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let (e, log_det) = self.0.forward(z, ctx)?;
        Gaussian.log_prob(&e, ctx)? + log_det
    }

    fn sample(
        &self,
        shape: (usize, usize),
        temperature: f64,
        rng: &mut dyn RngCore,
        ctx: Ctx,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        self.0.inverse_in(&Gaussian.sample(shape, temperature, rng, ctx, to)?, ctx)
    }
}
