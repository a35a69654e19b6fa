//! The mixture on the CPU: sixteen elements at a time.

// Lanes of several arrays share their indices.
#![allow(clippy::needless_range_loop)]

use super::spec::{LARGEST_LOG_SCALE, MOST_STEPS, MixtureSpec};
use crate::lanes::{Block, Elements, Elementwise, L, Lanes, softmax};
use crate::real::{Real, exp_f64, ln_f64};
use crate::simd::{Job, Width, wide};
use crate::threads::Shared;
use std::ops::Range;

impl Elementwise for MixtureSpec {
    const NAME: &'static str = "mixture";

    fn each(&self) -> usize {
        self.params()
    }
    fn forward<T: Real>(&self, of: &Elements<T>, elements: Range<usize>, x: &[T], to: [&Shared<T>; 2]) {
        let [y, log_slope] = to;
        wide(Forward { mixture: self, of, elements, x, y, log_slope });
    }
    fn inverse<T: Real>(&self, of: &Elements<T>, elements: Range<usize>, y: &[T], x: &Shared<T>) {
        let eps = if size_of::<T>() == size_of::<f64>() { f64::EPSILON } else { f64::from(f32::EPSILON) };
        wide(Inverse { mixture: self, of, elements, eps, y, x });
    }
    fn backward<T: Real>(
        &self,
        of: &Elements<T>,
        elements: Range<usize>,
        given: [&[T]; 3],
        to: [&Shared<T>; 2],
    ) {
        let [gx, gh] = to;
        wide(Backward { mixture: self, of, elements, given, gx, gh });
    }
}

/// c tanh(h / c), and its derivative by h.
#[inline(always)]
fn bounded(h: f64) -> (f64, f64) {
    let t = 1. - 2. / (exp_f64(h * (2. / LARGEST_LOG_SCALE)) + 1.);
    (LARGEST_LOG_SCALE * t, 1. - t * t)
}

/// One component of sixteen elements.
#[derive(Clone, Copy, Default)]
struct Component {
    /// mu and 1 / s.
    mean: Lanes,
    rate: Lanes,
    /// The derivative of log s by the number that it comes from.
    bend: Lanes,
}

/// The mixtures of sixteen elements.
struct Mixtures {
    /// pi.
    weights: Vec<Lanes>,
    components: Vec<Component>,
    /// a, its derivative, exp(a) and b.
    a: Lanes,
    bend: Lanes,
    scale: Lanes,
    b: Lanes,
}

impl Mixtures {
    fn new(mixture: &MixtureSpec) -> Self {
        let (n, zero) = (mixture.components, [0.; L]);
        let (weights, components) = (vec![zero; n], vec![Component::default(); n]);
        Self { weights, components, a: zero, bend: zero, scale: zero, b: zero }
    }

    /// Those of a block.
    #[inline(always)]
    fn read<T: Real>(&mut self, mixture: &MixtureSpec, of: &Elements<T>, block: &Block) {
        let n = self.components.len();
        for (k, (weight, c)) in self.weights.iter_mut().zip(&mut self.components).enumerate() {
            *weight = of.load(block, k);
            let (mean, log_scale) = (of.load(block, n + k), of.load(block, 2 * n + k));
            for l in 0..L {
                c.mean[l] = mixture.mean_factor(k) * mean[l];
                let (log_scale, bend) = bounded(log_scale[l]);
                c.rate[l] = exp_f64(-log_scale);
                c.bend[l] = bend;
            }
        }
        softmax(&mut self.weights);
        let a = of.load(block, 3 * n);
        for l in 0..L {
            (self.a[l], self.bend[l]) = bounded(a[l]);
            self.scale[l] = exp_f64(self.a[l]);
        }
        self.b = of.load(block, 3 * n + 1);
    }

    /// F at x.
    #[inline(always)]
    fn at(&self, x: &Lanes) -> Cdf {
        let (mut low, mut high) = ([f64::INFINITY; L], [f64::NEG_INFINITY; L]);
        for c in &self.components {
            for l in 0..L {
                let u = (x[l] - c.mean[l]) * c.rate[l];
                low[l] = if u < low[l] { u } else { low[l] };
                high[l] = if u > high[l] { u } else { high[l] };
            }
        }
        let zero = [0.; L];
        let mut f = Cdf { shift: zero, small: zero, below: zero, above: zero, density: zero };
        for l in 0..L {
            f.shift[l] = if low[l] > 0. { low[l] } else { 0. } + if high[l] < 0. { high[l] } else { 0. };
            f.small[l] = exp_f64(-f.shift[l].abs());
        }
        for (weight, c) in self.weights.iter().zip(&self.components) {
            for l in 0..L {
                let part = c.at(x[l], f.shift[l], f.small[l], l);
                f.below[l] += weight[l] * part.below;
                f.above[l] += weight[l] * part.above;
                f.density[l] += weight[l] * part.density * c.rate[l];
            }
        }
        f
    }
}

/// F, 1 - F and F' of sixteen elements, each times a power of e: see the module.
struct Cdf {
    /// d with the sign of all u_k, and e^-d.
    shift: Lanes,
    small: Lanes,
    /// F e^d where all u_k are negative, and F otherwise.
    below: Lanes,
    /// (1 - F) e^d where all u_k are positive, and 1 - F otherwise.
    above: Lanes,
    /// F' e^d.
    density: Lanes,
}

impl Cdf {
    /// logit F.
    #[inline(always)]
    fn logit(&self, l: usize) -> f64 {
        ln_f64(self.below[l] / self.above[l]) + self.shift[l]
    }

    /// Its derivative.
    #[inline(always)]
    fn slope(&self, l: usize) -> f64 {
        self.density[l] / (self.below[l] * self.above[l])
    }
}

/// A component's u, sigmoid(u), sigmoid(-u) and sigmoid(u) sigmoid(-u), times the powers of e of [`Cdf`]; 1 - 2 sigmoid(u).
struct Part {
    u: f64,
    below: f64,
    above: f64,
    density: f64,
    odd: f64,
}

impl Component {
    #[inline(always)]
    fn at(&self, x: f64, shift: f64, small: f64, l: usize) -> Part {
        let u = (x - self.mean[l]) * self.rate[l];
        let positive = u > 0.;
        let near = exp_f64(shift.abs() - u.abs());
        let e = near * small;
        let most = 1. / (1. + e);
        let least = near * most;
        Part {
            u,
            below: if positive { most } else { least },
            above: if positive { least } else { most },
            density: least * most,
            odd: (if positive { e - 1. } else { 1. - e }) * most,
        }
    }
}

/// y and log dy/dx.
struct Forward<'a, T> {
    mixture: &'a MixtureSpec,
    of: &'a Elements<'a, T>,
    elements: Range<usize>,
    x: &'a [T],
    y: &'a Shared<T>,
    log_slope: &'a Shared<T>,
}

impl<T: Real> Job for Forward<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { mixture, of, elements, x, y, log_slope } = self;
        let mut m = Mixtures::new(mixture);
        for at in elements.clone().step_by(L) {
            let block = of.block(at, elements.end);
            m.read(mixture, of, &block);
            let f = m.at(&block.take(x));
            let (mut values, mut logs) = ([0.; L], [0.; L]);
            for l in 0..L {
                values[l] = m.scale[l] * f.logit(l) + m.b[l];
                logs[l] = m.a[l] + ln_f64(f.slope(l));
            }
            // SAFETY: this thread alone has these elements.
            unsafe {
                block.put(y, &values);
                block.put(log_slope, &logs);
            }
        }
    }
}

/// x from y.
struct Inverse<'a, T> {
    mixture: &'a MixtureSpec,
    of: &'a Elements<'a, T>,
    elements: Range<usize>,
    /// Of the tensors' type.
    eps: f64,
    y: &'a [T],
    x: &'a Shared<T>,
}

/// Brackets around the solutions of sixteen elements.
struct Brackets {
    low: Lanes,
    high: Lanes,
    x: Lanes,
}

impl Mixtures {
    /// The first brackets of the equations logit F(x) = u: from the smallest to the largest mu_k + s_k u. Where all are the
    /// same, the ends are the solution up to rounding.
    #[inline(always)]
    fn brackets(&self, u: &Lanes, eps: f64) -> Brackets {
        let mut s = Brackets { low: [f64::INFINITY; L], high: [f64::NEG_INFINITY; L], x: [0.; L] };
        for c in &self.components {
            for l in 0..L {
                let end = c.mean[l] + u[l] / c.rate[l];
                s.low[l] = if end > s.low[l] { s.low[l] } else { end };
                s.high[l] = if end < s.high[l] { s.high[l] } else { end };
            }
        }
        for l in 0..L {
            s.x[l] = 0.5 * (s.low[l] + s.high[l]);
            let slack = 0.5 * tolerance(s.x[l], eps);
            (s.low[l], s.high[l]) = (s.low[l] - slack, s.high[l] + slack);
        }
        s
    }

    /// The solutions.
    #[inline(always)]
    fn solve(&self, u: &Lanes, eps: f64) -> Lanes {
        let mut s = self.brackets(u, eps);
        for step in 1..=MOST_STEPS {
            let f = self.at(&s.x);
            let mut open = [0.; L];
            for l in 0..L {
                let (x, off) = (s.x[l], f.logit(l) - u[l]);
                let (above, below) = (off > 0., off <= 0.);
                // What is no number stays so: both ends become it.
                s.high[l] = if above {
                    x
                } else if below {
                    s.high[l]
                } else {
                    off
                };
                s.low[l] = if below {
                    x
                } else if above {
                    s.low[l]
                } else {
                    off
                };
                let most = tolerance(x, eps);
                open[l] = if s.high[l] - s.low[l] > most { 1. } else { 0. };
                let halved = 0.5 * (s.low[l] + s.high[l]);
                // A little past the root, so that the bracket closes from both sides.
                let newton = x - off / f.slope(l) + if above { -0.5 * most } else { 0.5 * most };
                let within = newton > s.low[l] && newton < s.high[l] && step % 3 != 0;
                s.x[l] = if within { newton } else { halved };
            }
            if open == [0.; L] {
                break;
            }
        }
        let mut x = [0.; L];
        for l in 0..L {
            x[l] = 0.5 * (s.low[l] + s.high[l]);
        }
        x
    }
}

/// The length of a bracket around x that is short enough.
#[inline(always)]
fn tolerance(x: f64, eps: f64) -> f64 {
    8. * eps * (1. + x.abs())
}

impl<T: Real> Job for Inverse<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { mixture, of, elements, eps, y, x } = self;
        let mut m = Mixtures::new(mixture);
        for at in elements.clone().step_by(L) {
            let block = of.block(at, elements.end);
            m.read(mixture, of, &block);
            let mut u = block.take(y);
            for l in 0..L {
                u[l] = (u[l] - m.b[l]) / m.scale[l];
            }
            // SAFETY: this thread alone has these elements.
            unsafe { block.put(x, &m.solve(&u, eps)) };
        }
    }
}

/// The gradients of x and of h.
struct Backward<'a, T> {
    mixture: &'a MixtureSpec,
    of: &'a Elements<'a, T>,
    elements: Range<usize>,
    /// x, and the gradients of y and of log dy/dx.
    given: [&'a [T]; 3],
    gx: &'a Shared<T>,
    gh: &'a Shared<T>,
}

impl<T: Real> Job for Backward<'_, T> {
    /// With g = exp(a) gy, those of F, 1 - F and F' are (g - gs) / F, -(g + gs) / (1 - F) and gs / F', and that of u_k is
    ///
    /// ```text
    /// pi_k sigmoid(u_k) sigmoid(-u_k) (g_F - g_1-F + g_F' (1 - 2 sigmoid(u_k)) / s_k)
    /// ```
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { mixture, of, elements, given, gx, gh } = self;
        let n = mixture.components;
        let mut m = Mixtures::new(mixture);
        for at in elements.clone().step_by(L) {
            let block = of.block(at, elements.end);
            m.read(mixture, of, &block);
            let [x, gy, gs] = given.map(|v| block.take(v));
            let f = m.at(&x);
            // SAFETY: this thread alone has these elements.
            let store = |j: usize, values: &Lanes| unsafe { of.store(&block, j, gh, values) };
            let zero = [0.; L];
            let (mut below, mut above, mut density) = (zero, zero, zero);
            let (mut across, mut of_a, mut of_x) = (zero, zero, zero);
            for l in 0..L {
                let g = m.scale[l] * gy[l];
                below[l] = (g - gs[l]) / f.below[l];
                above[l] = -(g + gs[l]) / f.above[l];
                density[l] = gs[l] / f.density[l];
                let (negative, positive) = (f.shift[l] < 0., f.shift[l] > 0.);
                across[l] = below[l] * if positive { f.small[l] } else { 1. }
                    - above[l] * if negative { f.small[l] } else { 1. };
                of_a[l] = (g * f.logit(l) + gs[l]) * m.bend[l];
            }
            for (k, (weight, c)) in m.weights.iter().zip(&m.components).enumerate() {
                let (mut of_weight, mut of_mean, mut of_scale) = (zero, zero, zero);
                for l in 0..L {
                    let (part, weight, rate) = (c.at(x[l], f.shift[l], f.small[l], l), weight[l], c.rate[l]);
                    let of_density = density[l] * part.density * rate;
                    let of_u = weight * (part.density * across[l] + of_density * part.odd);
                    of_weight[l] =
                        weight * (below[l] * part.below + above[l] * part.above + of_density + gs[l]);
                    of_mean[l] = -mixture.mean_factor(k) * of_u * rate;
                    of_scale[l] = -(of_u * part.u + weight * of_density) * c.bend[l];
                    of_x[l] += of_u * rate;
                }
                store(k, &of_weight);
                store(n + k, &of_mean);
                store(2 * n + k, &of_scale);
            }
            store(3 * n, &of_a);
            store(3 * n + 1, &gy);
            // SAFETY: this thread alone has these elements.
            unsafe { block.put(gx, &of_x) };
        }
    }
}
