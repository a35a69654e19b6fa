//! Priors without parameters.

use super::prior::{Prior, PriorCoding, Standard};
use crate::core::Ctx;
use crate::ops::elementwise::softplus;
use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, RngCore};
use rand_distr::StandardNormal;

/// The standard Gaussian, independent over dimensions.
///
/// ```text
/// log p(z) = sum_d -z_d^2/2 - log(2 pi)/2
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Gaussian;

impl Prior for Gaussian {
    fn coding(&self) -> Result<PriorCoding<'_>> {
        Ok(Standard::Gaussian.into())
    }

    fn log_prob(&self, z: &Tensor, _: Ctx) -> Result<Tensor> {
        let d = z.dim(1)? as f64;
        (z.sqr()?.sum(1)? * -0.5)? - 0.5 * d * (2. * std::f64::consts::PI).ln()
    }

    fn sample(
        &self,
        (n, dims): (usize, usize),
        temperature: f64,
        rng: &mut dyn RngCore,
        _: Ctx,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        scaled((0..n * dims).map(|_| rng.sample(StandardNormal)), (n, dims), temperature, to)
    }
}

/// The standard logistic distribution, independent over dimensions (NICE, section 3.4).
///
/// ```text
/// log p(z) = sum_d -log(1 + e^z_d) - log(1 + e^-z_d)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Logistic;

impl Prior for Logistic {
    fn coding(&self) -> Result<PriorCoding<'_>> {
        Ok(Standard::Logistic.into())
    }

    fn log_prob(&self, z: &Tensor, _: Ctx) -> Result<Tensor> {
        // softplus(z) + softplus(-z) = 2 softplus(z) - z
        ((softplus(z)? * -2.)? + z)?.sum(1)
    }

    fn sample(
        &self,
        (n, dims): (usize, usize),
        temperature: f64,
        rng: &mut dyn RngCore,
        _: Ctx,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        let one = |_| {
            // Never 0 or 1, where the logit is infinite.
            let u: f64 = rng.random_range(f64::EPSILON..1.);
            (u / (1. - u)).ln()
        };
        scaled((0..n * dims).map(one), (n, dims), temperature, to)
    }
}

/// Numbers of the host as a tensor (n, D) on the device `to`, multiplied by `temperature`.
pub(super) fn scaled(
    noise: impl Iterator<Item = f64>,
    shape: (usize, usize),
    temperature: f64,
    (dtype, device): (DType, &Device),
) -> Result<Tensor> {
    let z = Tensor::from_vec(noise.collect(), shape, &Device::Cpu)?;
    z.to_dtype(dtype)?.to_device(device)? * temperature
}
