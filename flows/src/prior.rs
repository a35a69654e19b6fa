//! Priors without parameters: whatever is learned is a bijection.

use crate::ops::elementwise::softplus;
use candle_core::{Result, Tensor};
use rand::Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// The density of z, independent over dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prior {
    /// log p(z) = -z^2/2 - log(2 pi)/2
    Gaussian,
    /// log p(z) = -log(1 + e^z) - log(1 + e^-z) (NICE, section 3.4)
    Logistic,
}

impl Prior {
    /// The sum over dimensions, in nats: (B, D) to (B,).
    pub fn log_prob(self, z: &Tensor) -> Result<Tensor> {
        match self {
            Prior::Gaussian => {
                let d = z.dim(1)? as f64;
                (z.sqr()?.sum(1)? * -0.5)? - 0.5 * d * (2. * std::f64::consts::PI).ln()
            }
            // softplus(z) + softplus(-z) = 2 softplus(z) - z
            Prior::Logistic => ((softplus(z)? * -2.)? + z)?.sum(1),
        }
    }

    /// `n` independent draws from the host generator `rng`.
    pub fn draw(self, n: usize, rng: &mut impl Rng) -> Vec<f64> {
        let one = |rng: &mut _| match self {
            Prior::Gaussian => Rng::sample(rng, StandardNormal),
            Prior::Logistic => {
                // Never 0 or 1, where the logit is infinite.
                let u: f64 = Rng::random_range(rng, f64::EPSILON..1.);
                (u / (1. - u)).ln()
            }
        };
        (0..n).map(|_| one(rng)).collect()
    }
}
