//! The trait of priors.

use crate::core::{Bijection, Ctx};
use candle_core::{DType, Device, Result, Tensor};
use rand::RngCore;

/// The distribution of the latent z, (B, D).
///
/// A temperature T multiplies the scale of a distribution about its location, for a mixture the scale of each component: samples
/// are z = m + T s e with noise e of the standard distribution. T = 1 is the prior itself.
pub trait Prior: Send + Sync {
    /// log p(z), the sum over dimensions, in nats: (B, D) to (B,). The parameters are leaves of candle's graph if `ctx.grad`.
    ///
    /// # Errors
    /// When z is no matrix, or has another number of dimensions than the prior.
    fn log_prob(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor>;

    /// How lossless coding treats it, or nothing for a prior that it has no tables for.
    fn coding(&self) -> Option<PriorCoding<'_>> {
        None
    }

    /// Independent samples at a temperature, as many and of as many dimensions as `shape` (n, D) says, from the host generator
    /// `rng`. If `ctx.grad`, they are on candle's graph, and their gradients by the prior's parameters are those of the
    /// distribution.
    ///
    /// # Errors
    /// When the prior has another number of dimensions; and, if `ctx.grad`, when samples have no such gradient.
    fn sample(
        &self,
        shape: (usize, usize),
        temperature: f64,
        rng: &mut dyn RngCore,
        ctx: Ctx,
        to: (DType, &Device),
    ) -> Result<Tensor>;
}

/// A prior of independent dimensions as lossless coding needs it: a layer, if there is one, and a fixed distribution of what it gives.
pub struct PriorCoding<'a> {
    /// The layer.
    pub layer: Option<&'a dyn Bijection>,
    /// The distribution of each dimension after it.
    pub standard: Standard,
}

/// A fixed distribution of one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// N(0, 1).
    Gaussian,
    /// The standard logistic distribution.
    Logistic,
}

impl Standard {
    /// log p of each element, of z's shape, in f64 and in nats.
    ///
    /// ```text
    /// Gaussian: -z^2 / 2 - ln(2 pi) / 2,     logistic: -softplus(z) - softplus(-z)
    /// ```
    pub(crate) fn log_prob(self, z: &Tensor) -> Result<Tensor> {
        let z = z.to_dtype(DType::F64)?;
        match self {
            Self::Gaussian => (z.sqr()? * -0.5)? - 0.5 * (2. * std::f64::consts::PI).ln(),
            // Both are even: -|z| - 2 ln(1 + e^-|z|).
            Self::Logistic => {
                let a = z.abs()?;
                (a.neg()?.exp()? + 1.)?.log()?.affine(-2., 0.)? - a
            }
        }
    }
}
