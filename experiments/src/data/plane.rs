//! Two-dimensional densities whose entropy is known: `moons`, `rings`, `spirals`, `checkerboard`.
//!
//! A flow's average negative log-likelihood on test points, in nats per point, is H(p) + KL(p‖q) and so at
//! least the differential entropy H(p) = −∫ p ln p. Each density is chosen so that ln p and H(p) can be
//! computed:
//!
//! - **checkerboard**: uniform on the eight unit squares of \[−2, 2\]² for which ⌊x⌋ + ⌊y⌋ is even.
//!   p = 1/8 there, so H = ln 8, exactly.
//! - **rings**: a radius R ~ N(r_k, s²), k uniform over K = 4 radii, and a uniform angle. With
//!   g(r) = K⁻¹ Σ_k \[N(r; r_k, s²) + N(−r; r_k, s²)\] the density of |R|, p(x) = g(‖x‖)/(2π‖x‖), and
//!   H = −∫₀^∞ g(r) ln(g(r)/(2πr)) dr, an integral over one variable.
//! - **moons** and **spirals**: a point c(t) of a curve, t ~ w, plus N(0, s²I). p(x) = ∫ w(t) N(x; c(t), s²I)
//!   dt, by Gauss-Legendre quadrature over panels that are no longer than about 4 s, where 16 nodes per panel
//!   leave an error below 1e-10. The moons are two half circles of radius 1 about (∓½, ∓¼), t uniform. The
//!   spirals are ±2τ(cos 3πτ, sin 3πτ) with τ = √u, u uniform on \[0, 1\], so w(τ) = 2τ, and either sign with
//!   probability ½. H is the trapezoidal sum of −p ln p over a grid of step s/3 that reaches 9 s past the
//!   curve; for a smooth integrand that vanishes at the border the sum converges faster than any power of the
//!   step, and a test halves the step.

use super::{Dataset, Entropy, Request, Split, Values, example_rng};
use anyhow::{Context, Result};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use std::f64::consts::PI;
use std::sync::LazyLock;

/// The version of the generator: it changes whenever a seed would give other points.
const VERSION: u32 = 1;

/// Radii of the rings.
const RADII: [f64; 4] = [0.5, 1.0, 1.5, 2.0];
/// Standard deviation about a ring.
const RING_SD: f64 = 0.06;
/// Standard deviation about a moon.
const MOON_SD: f64 = 0.1;
/// Standard deviation about a spiral arm.
const SPIRAL_SD: f64 = 0.08;

/// One of the four densities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// Two half circles that reach into each other.
    Moons,
    /// Four concentric rings.
    Rings,
    /// Two arms that wind one and a half times about the origin.
    Spirals,
    /// Eight squares of a four by four board.
    Checkerboard,
}

/// A curve as quadrature nodes: p(x) = Σ_j weight_j N(x; node_j, sd² I).
struct Curve {
    x: Vec<f64>,
    y: Vec<f64>,
    log_weight: Vec<f64>,
    sd: f64,
}

impl Curve {
    /// Places nodes on both halves `point(false, t)` and `point(true, t)` for t in \[0, 1\], weighted with the density
    /// `weight(t)`.
    fn new(
        sd: f64,
        panels: usize,
        weight: impl Fn(f64) -> f64,
        point: impl Fn(bool, f64) -> [f64; 2],
    ) -> Self {
        let mut curve = Self { x: vec![], y: vec![], log_weight: vec![], sd };
        let rule = legendre16();
        for (half, panel) in [false, true].into_iter().flat_map(|half| (0..panels).map(move |p| (half, p))) {
            for &(node, w) in &rule {
                let t = (panel as f64 + 0.5 * (node + 1.0)) / panels as f64;
                let [x, y] = point(half, t);
                curve.x.push(x);
                curve.y.push(y);
                curve.log_weight.push((0.5 * w / panels as f64 * weight(t)).ln());
            }
        }
        curve
    }

    fn log_density(&self, [px, py]: [f64; 2]) -> f64 {
        let scale = -0.5 / (self.sd * self.sd);
        let term = |j: usize| {
            let (dx, dy) = (px - self.x[j], py - self.y[j]);
            self.log_weight[j] + scale * (dx * dx + dy * dy)
        };
        let top = (0..self.x.len()).map(term).fold(f64::NEG_INFINITY, f64::max);
        // Terms 40 nats below the largest are lost to rounding anyway, and most of a curve is that far away.
        let sum: f64 = (0..self.x.len()).map(term).filter(|t| t - top > -40.0).map(|t| (t - top).exp()).sum();
        top + sum.ln() - (2.0 * PI * self.sd * self.sd).ln()
    }

    /// −∫ p ln p by the trapezoidal rule with `step` in units of the noise.
    fn entropy(&self, step: f64) -> f64 {
        let (step, reach) = (step * self.sd, 9.0 * self.sd);
        let range = |v: &[f64]| {
            let low = v.iter().copied().fold(f64::INFINITY, f64::min) - reach;
            let high = v.iter().copied().fold(f64::NEG_INFINITY, f64::max) + reach;
            (low, ((high - low) / step).ceil() as usize)
        };
        let ((left, columns), (bottom, rows)) = (range(&self.x), range(&self.y));
        // Rows are added up in their order, so that the sum does not depend on the number of threads.
        let sums: Vec<f64> = (0..=rows)
            .into_par_iter()
            .map(|row| {
                let y = bottom + row as f64 * step;
                (0..=columns)
                    .map(|column| {
                        let log_p = self.log_density([left + column as f64 * step, y]);
                        -log_p.exp() * log_p
                    })
                    .sum()
            })
            .collect();
        sums.iter().sum::<f64>() * step * step
    }
}

/// Nodes and weights of the 16-point Gauss-Legendre rule on \[−1, 1\]: roots of P₁₆ by Newton's method,
/// weights 2/((1−x²) P₁₆′(x)²).
fn legendre16() -> Vec<(f64, f64)> {
    const N: usize = 16;
    (0..N)
        .map(|i| {
            let mut x = (PI * (i as f64 + 0.75) / (N as f64 + 0.5)).cos();
            let mut slope = 0.0;
            for _ in 0..20 {
                let (mut before, mut p) = (1.0, x);
                for n in 2..=N {
                    let n = n as f64;
                    (before, p) = (p, ((2.0 * n - 1.0) * x * p - (n - 1.0) * before) / n);
                }
                slope = N as f64 * (x * p - before) / (x * x - 1.0);
                x -= p / slope;
            }
            (x, 2.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect()
}

fn moon(lower: bool, t: f64) -> [f64; 2] {
    let (sin, cos) = libm::sincos(PI * t);
    if lower { [0.5 + cos, 0.25 - sin] } else { [-0.5 + cos, -0.25 + sin] }
}

fn spiral(second: bool, tau: f64) -> [f64; 2] {
    let sign = if second { -1.0 } else { 1.0 };
    let (sin, cos) = libm::sincos(3.0 * PI * tau);
    [sign * 2.0 * tau * cos, sign * 2.0 * tau * sin]
}

fn moon_curve(panels: usize) -> Curve {
    Curve::new(MOON_SD, panels, |_| 0.5, moon)
}

fn spiral_curve(panels: usize) -> Curve {
    Curve::new(SPIRAL_SD, panels, |tau| tau, |half, tau| spiral(!half, tau))
}

static MOONS: LazyLock<Curve> = LazyLock::new(|| moon_curve(10));
static SPIRALS: LazyLock<Curve> = LazyLock::new(|| spiral_curve(60));

/// The density of the rings' radius, g in the module's notation.
fn ring_radius_density(r: f64) -> f64 {
    let normal = |z: f64| (-0.5 * z * z).exp() / (RING_SD * (2.0 * PI).sqrt());
    RADII.iter().map(|&k| normal((r - k) / RING_SD) + normal((r + k) / RING_SD)).sum::<f64>()
        / RADII.len() as f64
}

impl Plane {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Moons, Self::Rings, Self::Spirals, Self::Checkerboard];

    /// The density of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plane| plane.name() == name)
    }

    /// The name it is asked for by.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The name of the density and the names of its components, which are the classes.
    fn names(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Moons => ("moons", &["upper", "lower"]),
            Self::Rings => ("rings", &["innermost", "second", "third", "outermost"]),
            Self::Spirals => ("spirals", &["first arm", "second arm"]),
            Self::Checkerboard => ("checkerboard", &["bottom row", "second row", "third row", "top row"]),
        }
    }

    /// Draws one point and the component (moon, ring, arm, row of squares) that it came from.
    pub fn sample(self, rng: &mut impl Rng) -> ([f64; 2], u32) {
        let normal = |sd: f64, rng: &mut _| {
            let z: f64 = StandardNormal.sample(rng);
            sd * z
        };
        match self {
            Self::Moons => {
                let lower: bool = rng.random();
                let [x, y] = moon(lower, rng.random());
                ([x + normal(MOON_SD, rng), y + normal(MOON_SD, rng)], u32::from(lower))
            }
            Self::Spirals => {
                let second: bool = rng.random();
                let [x, y] = spiral(second, rng.random::<f64>().sqrt());
                ([x + normal(SPIRAL_SD, rng), y + normal(SPIRAL_SD, rng)], u32::from(second))
            }
            Self::Rings => {
                let k = rng.random_range(0..RADII.len());
                let r = RADII[k] + normal(RING_SD, rng);
                let (sin, cos) = libm::sincos(2.0 * PI * rng.random::<f64>());
                ([r * cos, r * sin], k as u32)
            }
            Self::Checkerboard => {
                let row = rng.random_range(0..4_u32);
                let column = 2 * rng.random_range(0..2_u32) + row % 2;
                let (x, y): (f64, f64) = rng.random();
                ([f64::from(column) - 2.0 + x, f64::from(row) - 2.0 + y], row)
            }
        }
    }

    /// ln p(x), in nats; −∞ where the density is 0.
    #[must_use]
    pub fn log_density(self, point: [f64; 2]) -> f64 {
        match self {
            Self::Moons => MOONS.log_density(point),
            Self::Spirals => SPIRALS.log_density(point),
            Self::Rings => {
                let r = point[0].hypot(point[1]);
                // A radius through 0 leaves a pole at the origin, integrable and of a mass below 1e-14.
                (ring_radius_density(r) / (2.0 * PI * r.max(f64::MIN_POSITIVE))).ln()
            }
            Self::Checkerboard => {
                let [x, y] = point;
                let inside = (-2.0..2.0).contains(&x) && (-2.0..2.0).contains(&y);
                if inside && (x.floor() + y.floor()).rem_euclid(2.0) == 0.0 {
                    -(8.0_f64.ln())
                } else {
                    f64::NEG_INFINITY
                }
            }
        }
    }

    /// The differential entropy −∫ p ln p, in nats per point, to better than 1e-6.
    #[must_use]
    pub fn entropy(self) -> f64 {
        static MOON_ENTROPY: LazyLock<f64> = LazyLock::new(|| MOONS.entropy(1.0 / 3.0));
        static SPIRAL_ENTROPY: LazyLock<f64> = LazyLock::new(|| SPIRALS.entropy(1.0 / 3.0));
        match self {
            Self::Moons => *MOON_ENTROPY,
            Self::Spirals => *SPIRAL_ENTROPY,
            Self::Rings => {
                let step = RING_SD / 64.0;
                let last = ((RADII[RADII.len() - 1] + 9.0 * RING_SD) / step) as usize;
                (1..=last)
                    .map(|i| {
                        let r = i as f64 * step;
                        let g = ring_radius_density(r);
                        // g underflows between the rings' tails and the origin, where g ln g is 0 in the
                        // limit.
                        if g > 0.0 { -g * (g / (2.0 * PI * r)).ln() * step } else { 0.0 }
                    })
                    .sum()
            }
            Self::Checkerboard => 8.0_f64.ln(),
        }
    }
}

/// Draws `count` points of part `part` (0 training, 1 validation, 2 test).
fn draw(plane: Plane, seed: u64, part: u64, count: usize) -> Result<Split> {
    let points: Vec<([f64; 2], u32)> = (0..count as u64)
        .into_par_iter()
        .map(|i| plane.sample(&mut example_rng(seed, plane.name(), part, i)))
        .collect();
    Split::new(
        vec![2],
        Values::Reals(points.iter().flat_map(|(p, _)| p.map(|v| v as f32)).collect()),
        Some(points.iter().map(|&(_, component)| component).collect()),
        None,
    )
}

/// Draws a data set: 20 000 training, 2 000 validation and 10 000 test points unless the request says
/// otherwise. The class of a point is the component it came from.
///
/// # Errors
/// When the name is not one of the four, or no training or test points are asked for.
pub fn dataset(request: &Request) -> Result<Dataset> {
    let plane = Plane::from_name(&request.name).with_context(|| {
        format!("there is no density `{}`: choose moons, rings, spirals or checkerboard", request.name)
    })?;
    let (h, draw) = (plane.entropy(), |part, count| draw(plane, request.seed, part, count));
    let entropy = Entropy { lower: h, upper: h };
    request.draw(VERSION, [20_000, 2_000, 10_000], plane.names().1, entropy, draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauss_legendre_integrates_polynomials() {
        let rule = legendre16();
        let integral = |power: i32| rule.iter().map(|&(x, w)| w * x.powi(power)).sum::<f64>();
        for power in [0, 2, 10, 30] {
            assert!((integral(power) - 2.0 / f64::from(power + 1)).abs() < 1e-13, "x^{power}");
        }
        assert!(integral(31).abs() < 1e-13);
    }

    #[test]
    fn nodes_are_dense_enough() {
        for (plane, coarse, fine) in
            [(Plane::Moons, &MOONS, moon_curve(20)), (Plane::Spirals, &SPIRALS, spiral_curve(120))]
        {
            for i in 0..300 {
                let point = plane.sample(&mut example_rng(8, "nodes", 0, i)).0;
                let (a, b) = (coarse.log_density(point), fine.log_density(point));
                assert!((a - b).abs() < 1e-9, "{plane:?} at {point:?}: {a} against {b}");
            }
        }
    }

    #[test]
    fn densities_integrate_to_one() {
        for plane in Plane::ALL {
            // Midpoints: the checkerboard's edges lie between them.
            let (step, reach) = (0.0125, 3.2);
            let n = (2.0 * reach / step) as usize;
            let at = |i: usize| (i as f64 + 0.5) * step - reach;
            let mass: f64 = (0..n)
                .into_par_iter()
                .map(|row| (0..n).map(|column| plane.log_density([at(column), at(row)]).exp()).sum::<f64>())
                .sum::<f64>()
                * step
                * step;
            assert!((mass - 1.0).abs() < 1e-6, "{plane:?} has mass {mass}");
        }
    }

    #[test]
    fn entropy_agrees_with_samples() {
        for plane in Plane::ALL {
            let n = 40_000;
            let losses: Vec<f64> = (0..n)
                .into_par_iter()
                .map(|i| -plane.log_density(plane.sample(&mut example_rng(5, "entropy", 0, i)).0))
                .collect();
            let mean = losses.iter().sum::<f64>() / n as f64;
            let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            let error = (variance / n as f64).sqrt();
            let h = plane.entropy();
            println!("{plane:?}: entropy {h:.6}, from samples {mean:.6} ± {error:.6}");
            assert!((mean - h).abs() <= 4.0 * error + 1e-12, "{plane:?}: {mean} ± {error} against {h}");
        }
    }

    #[test]
    fn entropy_has_converged() {
        assert!((Plane::Moons.entropy() - MOONS.entropy(1.0 / 5.0)).abs() < 1e-6);
        assert!((Plane::Spirals.entropy() - SPIRALS.entropy(1.0 / 5.0)).abs() < 1e-6);
        // Rings of disjoint support would give ln 4 + ln(s √(2πe)) + mean of E ln(2πr), with E ln r = ln r_k
        // − s²/2r_k².
        let rough =
            RADII.iter().map(|r| (2.0 * PI * r).ln() - RING_SD * RING_SD / (2.0 * r * r)).sum::<f64>() / 4.0
                + 4.0_f64.ln()
                + (RING_SD * (2.0 * PI * std::f64::consts::E).sqrt()).ln();
        assert!((Plane::Rings.entropy() - rough).abs() < 1e-3);
    }

    #[test]
    fn points_depend_on_seed_part_and_place_only() {
        for plane in Plane::ALL {
            let long = draw(plane, 3, 0, 200).unwrap();
            assert_eq!(draw(plane, 3, 0, 50).unwrap(), long.take(50));
            assert_ne!(draw(plane, 4, 0, 50).unwrap(), long.take(50));
            assert_ne!(draw(plane, 3, 2, 50).unwrap(), long.take(50));
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(one.install(|| draw(plane, 3, 0, 200)).unwrap(), long);
        }
    }

    #[test]
    fn sets_state_their_entropy() {
        let request = Request {
            name: "moons".into(),
            train: Some(10),
            valid: Some(0),
            test: Some(5),
            ..Request::default()
        };
        let set = dataset(&request).unwrap();
        assert_eq!((set.train.len(), set.valid, set.test.len()), (10, None, 5));
        assert_eq!(set.entropy.unwrap().lower, Plane::Moons.entropy());
        assert!(dataset(&Request { test: Some(0), ..request }).is_err());
    }
}
