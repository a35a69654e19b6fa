//! The trait of priors.

use crate::core::{Bijection, Ctx};
use candle_core::{DType, Device, Result, Tensor, bail};
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

    /// How lossless coding ([`codec`](mod@crate::codec)) treats it.
    ///
    /// # Errors
    /// When it does not say, or its parameters cannot be read.
    fn coding(&self) -> Result<PriorCoding<'_>> {
        bail!("images are compressed with a prior that says how (Prior::coding), and this one does not")
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

/// A prior as lossless coding needs it: a layer that takes latents to independent numbers, and the distribution of each of those.
pub struct PriorCoding<'a> {
    /// For a mixture its components. The layer is given the number of one as the class.
    pub mixture: Option<&'a dyn Components>,
    /// The layer, if there is one.
    pub layer: Option<&'a dyn Bijection>,
    /// The distribution of each dimension after it, or one for all dimensions.
    pub standard: Vec<Standard>,
}

impl From<Standard> for PriorCoding<'_> {
    fn from(standard: Standard) -> Self {
        Self { mixture: None, layer: None, standard: vec![standard] }
    }
}

/// The components of a mixture p(z) = sum_k w_k p_k(z).
pub trait Components: Send + Sync {
    /// log w_k of each.
    ///
    /// # Errors
    /// When the parameters cannot be read.
    fn log_weights(&self) -> Result<Vec<f64>>;

    /// log w_k p_k(z) of each, for one latent (1, D).
    ///
    /// # Errors
    /// When z has another number of dimensions.
    fn log_joint(&self, z: &Tensor) -> Result<Vec<f64>>;
}

/// A fixed distribution of one dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standard {
    /// N(0, 1).
    Gaussian,
    /// The standard logistic distribution.
    Logistic,
    /// Student's t with these degrees of freedom.
    StudentT(f64),
}
