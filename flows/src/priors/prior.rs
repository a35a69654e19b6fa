//! The trait of priors.

use crate::core::Ctx;
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
