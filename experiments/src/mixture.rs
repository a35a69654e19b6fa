//! A mixture of Gaussians with full covariances, fitted by expectation maximization (Dempster, Laird and Rubin 1977): what a flow of
//! vectors is compared with. One component is the Gaussian with the data's mean and covariance.
//!
//! ```text
//! r_nk = w_k N(x_n; m_k, S_k) / sum_j w_j N(x_n; m_j, S_j)
//! w_k = mean_n r_nk,     m_k = sum_n r_nk x_n / sum_n r_nk,     S_k = sum_n r_nk (x_n - m_k)(x_n - m_k)^T / sum_n r_nk + RIDGE I
//! ```
//!
//! in coordinates of mean 0 and variance 1, from the centres that k-means++ draws (Arthur and Vassilvitskii 2007).

use crate::data::example_rng;
use rand::Rng;
use rayon::prelude::*;
use std::f64::consts::{LN_2, PI};

/// Added to variances, where that of the data is 1.
const RIDGE: f64 = 1e-6;
/// Iterations, at most.
const ITERATIONS: usize = 100;
/// It ends where an iteration gains less than this, in nats for each row.
const GAIN: f64 = 1e-4;
/// Multiplications of an iteration: of more rows the first are taken ...
const WORK: usize = 50_000_000;
/// ... but so many for each dimension of a component, which otherwise would be fitted to too few.
const ROWS: usize = 20;
/// Rows that a thread takes together.
const CHUNK: usize = 512;

/// A fitted mixture.
pub struct Mixture {
    mean: Vec<f64>,
    std: Vec<f64>,
    components: Vec<Component>,
}

struct Component {
    log_weight: f64,
    mean: Vec<f64>,
    /// The lower triangle L of S = L L^T, row by row.
    factor: Vec<f64>,
}

/// Sums of a component over rows: of r, of r x, and of r x x^T.
#[derive(Clone)]
struct Sums {
    weight: f64,
    x: Vec<f64>,
    xx: Vec<f64>,
}

impl Mixture {
    /// A mixture of `k` Gaussians of the rows (N, dims), or `None` where a column does not vary or there are not enough rows.
    #[must_use]
    pub fn fit(rows: &[f32], dims: usize, k: usize) -> Option<Self> {
        let n = (rows.len() / dims).min((WORK / (k * dims * dims)).max(ROWS * k * dims));
        if n <= k * (dims + 1) {
            return None;
        }
        let column = |d: usize| rows[..n * dims].iter().skip(d).step_by(dims).map(|x| f64::from(*x));
        let mean: Vec<f64> = (0..dims).map(|d| column(d).sum::<f64>() / n as f64).collect();
        let variance = |d: usize| column(d).map(|x| (x - mean[d]).powi(2)).sum::<f64>() / n as f64;
        let std: Vec<f64> = (0..dims).map(|d| variance(d).sqrt()).collect();
        if std.iter().any(|std| !(*std > 0. && std.is_finite())) {
            return None;
        }
        let mut all = Self { mean, std, components: vec![] };
        let x: Vec<f64> = rows[..n * dims].chunks_exact(dims).flat_map(|row| all.standard(row)).collect();
        let identity: Vec<f64> = (0..dims * dims).map(|i| f64::from(u8::from(i % (dims + 1) == 0))).collect();
        all.components = centres(&x, dims, k)
            .into_iter()
            .map(|mean| Component { log_weight: -(k as f64).ln(), mean, factor: identity.clone() })
            .collect();
        let mut before = f64::NEG_INFINITY;
        for _ in 0..ITERATIONS {
            let (log_prob, sums) = all.expect(&x, dims);
            all.components = sums.into_iter().map(|sums| sums.component(n, dims)).collect::<Option<_>>()?;
            if log_prob - before < GAIN {
                break;
            }
            before = log_prob;
        }
        Some(all)
    }

    /// log p(x) of a row, in nats and in the units of the data.
    #[must_use]
    pub fn log_prob(&self, row: &[f32]) -> f64 {
        let terms = self.terms(&self.standard(row));
        log_sum_exp(&terms) - self.std.iter().map(|std| std.ln()).sum::<f64>()
    }

    /// The mean of -log p / (D ln 2) over rows (N, D), and its standard error.
    #[must_use]
    pub fn bits_per_dim(&self, rows: &[f32]) -> (f64, f64) {
        let dims = self.mean.len();
        let bits: Vec<f64> =
            rows.par_chunks_exact(dims).map(|row| -self.log_prob(row) / (dims as f64 * LN_2)).collect();
        let (n, mean) = (bits.len() as f64, bits.iter().sum::<f64>() / bits.len() as f64);
        let squares: f64 = bits.iter().map(|b| (b - mean).powi(2)).sum();
        (mean, (squares / (n - 1.).max(1.) / n).sqrt())
    }

    fn standard(&self, row: &[f32]) -> Vec<f64> {
        let moments = self.mean.iter().zip(&self.std);
        row.iter().zip(moments).map(|(x, (mean, std))| (f64::from(*x) - mean) / std).collect()
    }

    /// log w_k N(x; m_k, S_k) of each component.
    fn terms(&self, x: &[f64]) -> Vec<f64> {
        let dims = x.len();
        let of = |c: &Component| {
            // L z = x - m, row by row.
            let (mut z, mut sum) = (vec![0.; dims], c.log_weight - 0.5 * dims as f64 * (2. * PI).ln());
            for i in 0..dims {
                let row = &c.factor[i * dims..][..=i];
                let known: f64 = row[..i].iter().zip(&z).map(|(l, z)| l * z).sum();
                z[i] = (x[i] - c.mean[i] - known) / row[i];
                sum -= 0.5 * z[i] * z[i] + row[i].ln();
            }
            sum
        };
        self.components.iter().map(of).collect()
    }

    /// The mean of log p over standardized rows, and the sums of each component.
    fn expect(&self, x: &[f64], dims: usize) -> (f64, Vec<Sums>) {
        let empty =
            vec![Sums { weight: 0., x: vec![0.; dims], xx: vec![0.; dims * dims] }; self.components.len()];
        let of = |rows: &[f64]| {
            let (mut log_prob, mut all) = (0., empty.clone());
            for row in rows.chunks_exact(dims) {
                let terms = self.terms(row);
                let total = log_sum_exp(&terms);
                log_prob += total;
                for (sums, term) in all.iter_mut().zip(terms) {
                    sums.add(row, (term - total).exp());
                }
            }
            (log_prob, all)
        };
        let parts: Vec<_> = x.par_chunks(CHUNK * dims).map(of).collect();
        // In their order, so that the sum does not depend on the number of threads.
        let (mut log_prob, mut all) = (0., empty.clone());
        for (part, sums) in parts {
            log_prob += part;
            for (all, one) in all.iter_mut().zip(sums) {
                all.weight += one.weight;
                all.x.iter_mut().zip(one.x).for_each(|(sum, x)| *sum += x);
                all.xx.iter_mut().zip(one.xx).for_each(|(sum, x)| *sum += x);
            }
        }
        (log_prob / (x.len() / dims) as f64, all)
    }
}

impl Sums {
    fn add(&mut self, row: &[f64], r: f64) {
        // What a row adds to a component that is far away is lost to rounding.
        if r < 1e-15 {
            return;
        }
        self.weight += r;
        let dims = row.len();
        for (i, x) in row.iter().enumerate() {
            self.x[i] += r * x;
            let lower = &mut self.xx[i * dims..][..=i];
            lower.iter_mut().zip(row).for_each(|(sum, y)| *sum += r * x * y);
        }
    }

    /// The component of these sums over `n` rows; `None` where they hold a number that is not finite.
    fn component(&self, n: usize, dims: usize) -> Option<Component> {
        // A component that has lost its rows keeps a place that weighs nothing.
        let weight = self.weight.max(1e-12);
        let mean: Vec<f64> = self.x.iter().map(|x| x / weight).collect();
        let mut factor = vec![0.; dims * dims];
        for i in 0..dims {
            for j in 0..=i {
                let known: f64 = (0..j).map(|l| factor[i * dims + l] * factor[j * dims + l]).sum();
                let covariance = self.xx[i * dims + j] / weight - mean[i] * mean[j];
                factor[i * dims + j] = match i == j {
                    // Rounding may leave a variance below zero.
                    true => (covariance + RIDGE - known).max(RIDGE).sqrt(),
                    false => (covariance - known) / factor[j * dims + j],
                };
            }
        }
        let finite = factor.iter().chain(&mean).all(|v| v.is_finite());
        finite.then_some(Component { log_weight: (weight / n as f64).ln(), mean, factor })
    }
}

fn log_sum_exp(terms: &[f64]) -> f64 {
    let most = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + terms.iter().map(|t| (t - most).exp()).sum::<f64>().ln()
}

/// `k` rows, each drawn with a probability that grows with the square of its distance to the nearest one before.
fn centres(x: &[f64], dims: usize, k: usize) -> Vec<Vec<f64>> {
    let rng = &mut example_rng(0, "k-means++", 0, 0);
    let row = |i: usize| x[i * dims..][..dims].to_vec();
    let mut centres = vec![row(rng.random_range(0..x.len() / dims))];
    let mut nearest = vec![f64::INFINITY; x.len() / dims];
    while centres.len() < k {
        let last = &centres[centres.len() - 1];
        for (nearest, row) in nearest.iter_mut().zip(x.chunks_exact(dims)) {
            let square = row.iter().zip(last).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            *nearest = nearest.min(square);
        }
        let mut left = rng.random::<f64>() * nearest.iter().sum::<f64>();
        let drawn = nearest.iter().position(|square| {
            left -= square;
            left < 0.
        });
        centres.push(row(drawn.unwrap_or(0)));
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Request, Values, load};

    /// The mean of -log p over rows of the plane, in nats.
    fn nats(mixture: &Mixture, rows: &[f32]) -> f64 {
        mixture.bits_per_dim(rows).0 * 2. * LN_2
    }

    /// One component has the closed form of a Gaussian with the sample's covariance, in any units.
    #[test]
    fn one_component_is_the_fitted_gaussian() {
        let rng = &mut example_rng(1, "gaussian", 0, 0);
        let mut normal = || -> f64 { rand_distr::Distribution::sample(&rand_distr::StandardNormal, rng) };
        let rows: Vec<f32> = (0..20_000)
            .flat_map(|_| {
                let (a, b) = (normal(), normal());
                [(1000. + 50. * a) as f32, (0.01 * (a + 2. * b)) as f32]
            })
            .collect();
        let fitted = Mixture::fit(&rows, 2, 1).unwrap();
        // The determinant of the true map is 50 * .02.
        let entropy = (2. * PI * std::f64::consts::E).ln() + (50. * 0.02f64).ln();
        let got = nats(&fitted, &rows);
        assert!((got - entropy).abs() < 0.02, "{got} against {entropy}");
        assert!(Mixture::fit(&[1., 2., 1., 3., 1., 4., 1., 5.], 2, 1).is_none(), "a constant column");
    }

    /// Ten components are nearer to moons than one and above the entropy; on a mixture they are near it.
    #[test]
    fn ten_components_are_better_than_one() {
        let request =
            Request { name: "moons".into(), train: Some(5000), test: Some(5000), ..Request::default() };
        let set = load(&request, None).unwrap();
        let (Values::Reals(train), Values::Reals(test)) = (&set.train.values, &set.test.values) else {
            panic!()
        };
        let nats = [1, 10].map(|k| nats(&Mixture::fit(train, 2, k).unwrap(), test));
        let h = set.entropy.unwrap().lower;
        println!("moons: a Gaussian {:.4}, ten {:.4}, entropy {h:.4}", nats[0], nats[1]);
        assert!(nats[0] > nats[1] + 0.4 && nats[1] > h && nats[1] < h + 0.15, "{nats:?} {h}");
    }
}
