//! A family of densities p(x | c) whose entropy is known: `turned`, two moons that are turned and stretched.
//!
//! ```text
//! x = r R(t) m,     m ~ moons,     t uniform on [-pi, pi],     ln r uniform on [0, ln 3],     c = (cos t, sin t, ln r)
//! H(x | c) = H(moons) + 2 E ln r = H(moons) + ln 3
//! ```
//!
//! since at a given c the map from m to x is linear with the determinant r^2.

use super::plane::Plane;
use super::{Dataset, Entropy, Request, Rows, Split, Values, example_rng};
use anyhow::Result;
use rand::Rng;
use std::f64::consts::PI;

/// The version of the generator: it changes whenever a seed would give other points.
const VERSION: u32 = 1;
/// ln r is at most this.
const STRETCH: f64 = 1.098_612_288_668_109_8;

/// x and c of one example.
fn sample(rng: &mut impl Rng) -> ([f64; 2], [f64; 3]) {
    let ([x, y], _) = Plane::Moons.sample(rng);
    let (sin, cos) = libm::sincos(PI * (2. * rng.random::<f64>() - 1.));
    let stretch = STRETCH * rng.random::<f64>();
    let r = libm::exp(stretch);
    ([r * (cos * x - sin * y), r * (sin * x + cos * y)], [cos, sin, stretch])
}

/// Draws a data set with a context: 100 000 training, 5 000 validation and 20 000 test points unless the request says otherwise.
///
/// # Errors
/// When no training or test points are asked for.
pub fn dataset(request: &Request) -> Result<Dataset> {
    let h = Plane::Moons.entropy() + STRETCH;
    let draw = |part: u64, count: usize| {
        let all = (0..count as u64).map(|i| sample(&mut example_rng(request.seed, "turned", part, i)));
        let (x, c): (Vec<_>, Vec<_>) = all.unzip();
        let floats = |values: &[f64]| values.iter().map(|v| *v as f32).collect();
        let context = Rows { shape: vec![3], values: floats(c.as_flattened()) };
        Split::new(vec![2], Values::Reals(floats(x.as_flattened())), None, None)?.with_context(Some(context))
    };
    request.draw(VERSION, [100_000, 5_000, 20_000], &[], Entropy { lower: h, upper: h }, draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of -log p(x | c) over samples is the entropy.
    #[test]
    fn the_entropy_agrees_with_samples() {
        let n = 20_000;
        let losses = (0..n).map(|i| {
            let ([x, y], [cos, sin, stretch]) = sample(&mut example_rng(3, "entropy", 0, i));
            let r = stretch.exp();
            2. * stretch - Plane::Moons.log_density([(cos * x + sin * y) / r, (cos * y - sin * x) / r])
        });
        let losses: Vec<f64> = losses.collect();
        let mean = losses.iter().sum::<f64>() / n as f64;
        let error = (losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n * n) as f64).sqrt();
        let request = Request { name: "turned".into(), train: Some(5), test: Some(1), ..Request::default() };
        let set = dataset(&request).unwrap();
        let h = set.entropy.unwrap().lower;
        println!("turned: entropy {h:.5}, from samples {mean:.5} ± {error:.5}");
        assert!((mean - h).abs() < 4. * error, "{mean} ± {error} against {h}");
        assert_eq!(set.train.context.unwrap().len(), 5);
    }
}
