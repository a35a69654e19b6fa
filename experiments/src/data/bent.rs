//! A family of densities p(x | c) whose entropy is known: `bent`, a Gaussian that is moved, stretched and bent.
//!
//! ```text
//! x = m + r (u, k (u^2 - 1) + v / 2),     u, v ~ N(0, 1)
//! m uniform on [-2, 2]^2,     ln r uniform on [0, ln 3],     k uniform on [-1, 1],     c = (m, ln r, k)
//! H(x | c) = H(u, v) + E ln |det dx/d(u, v)| = ln 2 pi e + 2 E ln r + ln 1/2 = ln 2 pi e + ln 3/2
//! ```

use super::{Dataset, Entropy, Request, Rows, Split, Values, example_rng};
use anyhow::Result;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use std::f64::consts::PI;

/// The version of the generator: it changes whenever a seed would give other points.
const VERSION: u32 = 1;
/// r is at most this.
const LARGEST: f64 = 3.;

/// x and c of one example.
fn sample(rng: &mut impl Rng) -> ([f64; 2], [f64; 4]) {
    let [u, v]: [f64; 2] = std::array::from_fn(|_| StandardNormal.sample(rng));
    let [a, b, bend]: [f64; 3] = std::array::from_fn(|_| 2. * rng.random::<f64>() - 1.);
    let log_r = libm::log(LARGEST) * rng.random::<f64>();
    let r = libm::exp(log_r);
    let x = [2. * a + r * u, 2. * b + r * (bend * (u * u - 1.) + 0.5 * v)];
    (x, [2. * a, 2. * b, log_r, bend])
}

/// Draws a data set with a context: 100 000 training, 5 000 validation and 20 000 test points unless the request says otherwise.
///
/// # Errors
/// When no training or test points are asked for.
pub fn dataset(request: &Request) -> Result<Dataset> {
    let h = 1. + (2. * PI).ln() + (0.5 * LARGEST).ln();
    let draw = |part: u64, count: usize| {
        let all = (0..count as u64).map(|i| sample(&mut example_rng(request.seed, "bent", part, i)));
        let (x, c): (Vec<_>, Vec<_>) = all.unzip();
        let floats = |values: &[f64]| values.iter().map(|v| *v as f32).collect();
        let context = Rows { shape: vec![4], values: floats(c.as_flattened()) };
        Split::new(vec![2], Values::Reals(floats(x.as_flattened())), None, None)?.with_context(Some(context))
    };
    request.draw(VERSION, [100_000, 5_000, 20_000], &[], Entropy { lower: h, upper: h }, draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of -log p(x | c) over samples, with log p from the inverse of the map, is the entropy.
    #[test]
    fn the_entropy_agrees_with_samples() {
        let n = 40_000;
        let losses = (0..n).map(|i| {
            let ([x, y], [a, b, log_r, bend]) = sample(&mut example_rng(3, "entropy", 0, i));
            let (u, w) = ((x - a) / log_r.exp(), (y - b) / log_r.exp());
            let v = 2. * (w - bend * (u * u - 1.));
            (2. * PI).ln() + 0.5 * (u * u + v * v) + 2. * log_r - 2f64.ln()
        });
        let losses: Vec<f64> = losses.collect();
        let mean = losses.iter().sum::<f64>() / n as f64;
        let error = (losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n * n) as f64).sqrt();
        let request = Request { name: "bent".into(), train: Some(5), test: Some(1), ..Request::default() };
        let set = dataset(&request).unwrap();
        let h = set.entropy.unwrap().lower;
        println!("bent: entropy {h:.5}, from samples {mean:.5} ± {error:.5}");
        assert!((mean - h).abs() < 4. * error, "{mean} ± {error} against {h}");
        assert_eq!(set.train.context.unwrap().len(), 5);
    }
}
