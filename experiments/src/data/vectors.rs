//! Densities of more than two dimensions whose entropy is known: `mixture8`, `mixture21`, `warped8`, `warped21`, to calibrate flows
//! of vectors.
//!
//! ```text
//! s_i ~ sum_k w_ik N(m_ik, d_ik^2), independent;     y = Q diag(a) s;     x = y (mixture) or f(y) (warped)
//! ```
//!
//! Each s_i is a mixture of three Gaussians, so that s has 3^D modes. Q is a product of reflections, and f consists of additive
//! couplings of sines, whose log-det is 0. So log p(x) and the entropy are known,
//!
//! ```text
//! H(x) = sum_i H(s_i) + sum_i ln a_i
//! ```
//!
//! with H(s_i) a trapezoidal sum, which for a smooth integrand that vanishes at both ends converges faster than any power of the
//! step. All parameters come from a generator of their own, so the density does not depend on the seed of the samples.

use super::{Dataset, Entropy, Request, Split, Values, example_rng};
use anyhow::{Context, Result};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use std::f64::consts::PI;

/// The version of the generator: it changes whenever a seed would give other points.
const VERSION: u32 = 1;
/// Gaussians in each mixture.
const MODES: usize = 3;
/// Reflections that Q is the product of.
const REFLECTIONS: usize = 3;
/// Couplings of f.
const COUPLINGS: usize = 4;

/// One of the densities.
pub struct Density {
    /// The weight, the mean and the standard deviation of each Gaussian of each s_i.
    mixtures: Vec<[[f64; 3]; MODES]>,
    /// a.
    scale: Vec<f64>,
    /// The unit normals of the reflections.
    normals: Vec<Vec<f64>>,
    /// The couplings of f.
    couplings: Vec<Coupling>,
}

/// x_b = y_b + amplitude sin(W y_a + phase), where a are the even or the odd places.
struct Coupling {
    odd: bool,
    weight: Vec<Vec<f64>>,
    phase: Vec<f64>,
    amplitude: f64,
}

impl Coupling {
    /// Adds `sign` times the shift to the places that are changed.
    fn shift(&self, x: &mut [f64], sign: f64) {
        let seen: Vec<f64> = x.iter().copied().skip(usize::from(self.odd)).step_by(2).collect();
        let changed = x.iter_mut().skip(usize::from(!self.odd)).step_by(2);
        for ((x, row), phase) in changed.zip(&self.weight).zip(&self.phase) {
            let angle: f64 = row.iter().zip(&seen).map(|(w, s)| w * s).sum();
            *x += sign * self.amplitude * libm::sin(angle + phase);
        }
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

impl Density {
    /// A density of `dims` dimensions, with f where it is `warped`.
    #[must_use]
    pub fn new(dims: usize, warped: bool) -> Self {
        let rng = &mut example_rng(0, "vectors", u64::from(warped), dims as u64);
        let mixture = |rng: &mut ChaCha8Rng| -> [[f64; 3]; MODES] {
            let weights: [f64; MODES] = std::array::from_fn(|_| 0.5 + rng.random::<f64>());
            let sum: f64 = weights.iter().sum();
            std::array::from_fn(|k| {
                let mean = 1.5 * (k as f64 - 1.) + 0.3 * normal(rng);
                [weights[k] / sum, mean, 0.25 + 0.25 * rng.random::<f64>()]
            })
        };
        let unit = |rng: &mut ChaCha8Rng| -> Vec<f64> {
            let v: Vec<f64> = (0..dims).map(|_| normal(rng)).collect();
            let length = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            v.into_iter().map(|v| v / length).collect()
        };
        let coupling = |i: usize, rng: &mut ChaCha8Rng| {
            let odd = i % 2 == 1;
            let seen = if odd { dims / 2 } else { dims.div_ceil(2) };
            let std = 1.5 / (seen as f64).sqrt();
            let weight = (0..dims - seen).map(|_| (0..seen).map(|_| std * normal(rng)).collect()).collect();
            let phase = (0..dims - seen).map(|_| 2. * PI * rng.random::<f64>()).collect();
            Coupling { odd, weight, phase, amplitude: 0.7 }
        };
        Self {
            mixtures: (0..dims).map(|_| mixture(rng)).collect(),
            scale: (0..dims).map(|_| libm::exp(0.3 * normal(rng))).collect(),
            normals: (0..REFLECTIONS).map(|_| unit(rng)).collect(),
            couplings: (0..if warped { COUPLINGS } else { 0 }).map(|i| coupling(i, rng)).collect(),
        }
    }

    /// The density of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let named = |dims: &str| matches!(dims, "8" | "21").then(|| dims.parse().expect("it is a number"));
        let mixture = name.strip_prefix("mixture").and_then(named).map(|dims| Self::new(dims, false));
        mixture.or_else(|| name.strip_prefix("warped").and_then(named).map(|dims| Self::new(dims, true)))
    }

    /// Draws one point.
    pub fn sample(&self, rng: &mut impl Rng) -> Vec<f64> {
        let draw = |(mixture, a): (&[[f64; 3]; MODES], &f64)| {
            let mut u: f64 = rng.random();
            let of = mixture.iter().find(|[weight, ..]| {
                u -= weight;
                u < 0.
            });
            let [_, mean, sd] = of.unwrap_or(&mixture[MODES - 1]);
            a * (mean + sd * normal(rng))
        };
        let mut x: Vec<f64> = self.mixtures.iter().zip(&self.scale).map(draw).collect();
        self.normals.iter().for_each(|normal| reflect(&mut x, normal));
        self.couplings.iter().for_each(|coupling| coupling.shift(&mut x, 1.));
        x
    }

    /// ln p(x), in nats.
    #[must_use]
    pub fn log_density(&self, x: &[f64]) -> f64 {
        let mut s = x.to_vec();
        self.couplings.iter().rev().for_each(|coupling| coupling.shift(&mut s, -1.));
        self.normals.iter().rev().for_each(|normal| reflect(&mut s, normal));
        let of = |((s, a), mixture): ((f64, &f64), &_)| log_mixture(mixture, s / a) - a.ln();
        s.into_iter().zip(&self.scale).zip(&self.mixtures).map(of).sum()
    }

    /// The differential entropy, in nats per point.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        const STEP: f64 = 1. / 64.;
        let of = |mixture: &_| -> f64 {
            let at = |i: i32| log_mixture(mixture, STEP * f64::from(i));
            (-768..=768).map(at).map(|log_p| -log_p.exp() * log_p * STEP).sum()
        };
        self.mixtures.iter().map(of).sum::<f64>() + self.scale.iter().map(|a| a.ln()).sum::<f64>()
    }
}

/// x less twice its part along a unit normal.
fn reflect(x: &mut [f64], normal: &[f64]) {
    let along: f64 = x.iter().zip(normal).map(|(x, n)| x * n).sum();
    x.iter_mut().zip(normal).for_each(|(x, n)| *x -= 2. * along * n);
}

/// ln p(s) of one mixture.
fn log_mixture(mixture: &[[f64; 3]; MODES], s: f64) -> f64 {
    let terms =
        mixture.map(|[w, mean, sd]| (w / (sd * (2. * PI).sqrt())).ln() - 0.5 * ((s - mean) / sd).powi(2));
    let most = terms.into_iter().fold(f64::NEG_INFINITY, f64::max);
    most + terms.into_iter().map(|t| (t - most).exp()).sum::<f64>().ln()
}

/// Draws a data set: 100 000 training, 5 000 validation and 20 000 test points unless the request says otherwise.
///
/// # Errors
/// When the name is not one of the four, or no training or test points are asked for.
pub fn dataset(request: &Request) -> Result<Dataset> {
    let name = &request.name;
    let density = Density::from_name(name).with_context(|| {
        format!("there is no density `{name}`: choose mixture8, mixture21, warped8 or warped21")
    })?;
    let h = density.entropy();
    let draw = |part: u64, count: usize| {
        let point = |i| density.sample(&mut example_rng(request.seed, name, part, i));
        let points: Vec<Vec<f64>> = (0..count as u64).into_par_iter().map(point).collect();
        let values = points.concat().into_iter().map(|v| v as f32).collect();
        Split::new(vec![density.scale.len()], Values::Reals(values), None, None)
    };
    request.draw(VERSION, [100_000, 5_000, 20_000], &[], Entropy { lower: h, upper: h }, draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of -log p over samples is the entropy.
    #[test]
    fn entropies_agree_with_samples() {
        for name in ["mixture8", "mixture21", "warped8", "warped21"] {
            let density = Density::from_name(name).unwrap();
            let n = 40_000;
            let losses: Vec<f64> = (0..n)
                .into_par_iter()
                .map(|i| -density.log_density(&density.sample(&mut example_rng(5, "entropy", 0, i))))
                .collect();
            let mean = losses.iter().sum::<f64>() / n as f64;
            let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n as f64;
            let (error, h) = ((variance / n as f64).sqrt(), density.entropy());
            println!("{name}: entropy {h:.5}, from samples {mean:.5} ± {error:.5}");
            assert!((mean - h).abs() < 4. * error, "{name}: {mean} ± {error} against {h}");
        }
    }

    /// The warp keeps volumes: the determinant of its Jacobian, by central differences, is 1 up to its sign.
    #[test]
    fn the_warp_keeps_volumes() {
        let density = Density::new(8, true);
        let warp = |y: &[f64]| {
            let mut x = y.to_vec();
            density.couplings.iter().for_each(|coupling| coupling.shift(&mut x, 1.));
            x
        };
        let y = density.sample(&mut example_rng(1, "warp", 0, 0));
        let mut jacobian = vec![0.; 64];
        for j in 0..8 {
            let at = |h: f64| {
                let mut moved = y.clone();
                moved[j] += h;
                warp(&moved)
            };
            for (i, (up, down)) in at(1e-5).into_iter().zip(at(-1e-5)).enumerate() {
                jacobian[8 * i + j] = (up - down) / 2e-5;
            }
        }
        let log_det = flows::ops::linalg::lu(&jacobian, 8).unwrap().log_abs_det();
        assert!(log_det.abs() < 1e-7, "{log_det}");
        assert!(warp(&y).iter().zip(&y).any(|(x, y)| (x - y).abs() > 0.3), "it moves points");
    }
}
