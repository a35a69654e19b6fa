//! The spline on the CPU: sixteen elements at a time.

// Lanes of several arrays share their indices.
#![allow(clippy::needless_range_loop)]

use super::spec::SplineSpec;
use crate::lanes::{Block, Elements, Elementwise, L, Lanes, softmax};
use crate::real::{Real, exp_f64, ln_f64};
use crate::simd::{Job, Width, wide};
use crate::threads::Shared;
use std::ops::Range;

impl Elementwise for SplineSpec {
    const NAME: &'static str = "spline";

    fn each(&self) -> usize {
        self.params()
    }
    fn forward<T: Real>(&self, of: &Elements<T>, elements: Range<usize>, x: &[T], to: [&Shared<T>; 2]) {
        let ([y, log_slope], p) = (to, &Params::new(self, of));
        wide(Forward { p, elements, x, y, log_slope });
    }
    fn inverse<T: Real>(&self, of: &Elements<T>, elements: Range<usize>, y: &[T], x: &Shared<T>) {
        wide(Inverse { p: &Params::new(self, of), elements, y, x });
    }
    fn backward<T: Real>(
        &self,
        of: &Elements<T>,
        elements: Range<usize>,
        given: [&[T]; 3],
        to: [&Shared<T>; 2],
    ) {
        let ([gx, gh], p) = (to, &Params::new(self, of));
        wide(Backward { p, elements, given, gx, gh });
    }
}

/// The settings, and the elements with their parameters.
struct Params<'a, T> {
    spline: SplineSpec,
    /// What is added to the slopes' numbers.
    shift: f64,
    of: &'a Elements<'a, T>,
}

impl<'a, T: Real> Params<'a, T> {
    fn new(spline: &SplineSpec, of: &'a Elements<'a, T>) -> Self {
        Self { spline: *spline, shift: spline.slope_shift(), of }
    }
}

/// The pieces that sixteen elements are in.
struct Piece {
    /// Its number k.
    k: [usize; L],
    /// x_k, w_k, y_k, h_k, d_k and d_k+1.
    x: Lanes,
    w: Lanes,
    y: Lanes,
    h: Lanes,
    d0: Lanes,
    d1: Lanes,
    /// The softmax's shares before the piece, and with it, along both axes.
    before: [Lanes; 2],
    with: [Lanes; 2],
    /// The derivatives of d_k and d_k+1 by the numbers that they come from; 0 for the outer ones, which are fixed.
    slope0: Lanes,
    slope1: Lanes,
}

/// Softplus and its derivative.
#[inline(always)]
fn softplus(a: f64) -> (f64, f64) {
    let positive = a > 0.;
    let e = exp_f64(if positive { -a } else { a });
    let value = (if positive { a } else { 0. }) + ln_f64(1. + e);
    (value, (if positive { 1. } else { e }) / (1. + e))
}

impl<T: Real> Params<'_, T> {
    /// The softmaxes of the widths and of the heights, to `shares` (2 K).
    #[inline(always)]
    fn shares(&self, block: &Block, shares: &mut [Lanes]) {
        for (j, share) in shares.iter_mut().enumerate() {
            *share = self.of.load(block, j);
        }
        for shares in shares.chunks_exact_mut(self.spline.bins) {
            softmax(shares);
        }
    }

    /// The pieces with `at` between their ends along an axis, 0 for x and 1 for y.
    #[inline(always)]
    fn piece(&self, block: &Block, shares: &[Lanes], at: &Lanes, axis: usize) -> Piece {
        let SplineSpec { bins, bound, .. } = self.spline;
        let least = self.spline.shares();
        let zero = [0.; L];
        let mut p = Piece {
            k: [0; L],
            x: zero,
            w: zero,
            y: zero,
            h: zero,
            d0: zero,
            d1: zero,
            before: [zero; 2],
            with: [zero; 2],
            slope0: zero,
            slope1: zero,
        };
        let (mut left, mut sums) = ([[-bound; L]; 2], [zero; 2]);
        for j in 0..bins {
            let (mut right, mut with) = ([[bound; L]; 2], sums);
            for axis in 0..2 {
                for l in 0..L {
                    with[axis][l] += shares[axis * bins + j][l];
                    if j + 1 < bins {
                        let (least, rest) = least[axis];
                        right[axis][l] = 2. * bound * (least * (j + 1) as f64 + rest * with[axis][l]) - bound;
                    }
                }
            }
            for l in 0..L {
                // The first piece also takes what is outside, and what is no number.
                if j == 0 || at[l] >= left[axis][l] {
                    p.k[l] = j;
                    (p.x[l], p.w[l]) = (left[0][l], right[0][l] - left[0][l]);
                    (p.y[l], p.h[l]) = (left[1][l], right[1][l] - left[1][l]);
                    for axis in 0..2 {
                        p.before[axis][l] = sums[axis][l];
                        p.with[axis][l] = with[axis][l];
                    }
                }
            }
            (left, sums) = (right, with);
        }
        self.slopes(block, &mut p);
        p
    }

    /// d_k and d_k+1.
    #[inline(always)]
    fn slopes(&self, block: &Block, p: &mut Piece) {
        let SplineSpec { bins, min_slope, .. } = self.spline;
        for right in [0, 1] {
            let (knot, mut raw) = (p.k.map(|k| k + right), [0.; L]);
            for l in 0..L {
                let j = knot[l].clamp(1, bins - 1) - 1;
                raw[l] = self.of.one(block, l, 2 * bins + j) + self.shift;
            }
            let (d, slope) = if right == 0 { (&mut p.d0, &mut p.slope0) } else { (&mut p.d1, &mut p.slope1) };
            for l in 0..L {
                let inner = knot[l] > 0 && knot[l] < bins;
                let (value, derivative) = softplus(raw[l]);
                d[l] = if inner { min_slope + value } else { 1. };
                slope[l] = if inner { derivative } else { 0. };
            }
        }
    }
}

/// y and log dy/dx.
struct Forward<'a, T> {
    p: &'a Params<'a, T>,
    elements: Range<usize>,
    x: &'a [T],
    y: &'a Shared<T>,
    log_slope: &'a Shared<T>,
}

impl<T: Real> Job for Forward<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { p: params, elements, x, y, log_slope } = self;
        let mut shares = vec![[0.; L]; 2 * params.spline.bins];
        for at in elements.clone().step_by(L) {
            let block = params.of.block(at, elements.end);
            let x = block.take(x);
            params.shares(&block, &mut shares);
            let p = params.piece(&block, &shares, &x, 0);
            let (mut values, mut logs) = ([0.; L], [0.; L]);
            for l in 0..L {
                let (t, s) = ((x[l] - p.x[l]) / p.w[l], p.h[l] / p.w[l]);
                let both = t * (1. - t);
                let below = s + (p.d1[l] + p.d0[l] - 2. * s) * both;
                let slope = p.d1[l] * t * t + 2. * s * both + p.d0[l] * (1. - t) * (1. - t);
                let inside = x[l].abs() <= params.spline.bound;
                values[l] =
                    if inside { p.y[l] + p.h[l] * (s * t * t + p.d0[l] * both) / below } else { x[l] };
                logs[l] = ln_f64(if inside { slope * (s / below) * (s / below) } else { 1. });
            }
            // SAFETY: this thread alone has these elements.
            unsafe {
                block.put(y, &values);
                block.put(log_slope, &logs);
            }
        }
    }
}

/// x from y. With r = y - y_k: a t^2 + b t + c = 0 where a = h (s - d_k) + r bend, b = h d_k - r bend, c = -s r, bend = d_k+1 + d_k - 2 s
/// (section 3.1, and appendix A.3).
struct Inverse<'a, T> {
    p: &'a Params<'a, T>,
    elements: Range<usize>,
    y: &'a [T],
    x: &'a Shared<T>,
}

impl<T: Real> Job for Inverse<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { p: params, elements, y, x } = self;
        let mut shares = vec![[0.; L]; 2 * params.spline.bins];
        for at in elements.clone().step_by(L) {
            let block = params.of.block(at, elements.end);
            let y = block.take(y);
            params.shares(&block, &mut shares);
            let p = params.piece(&block, &shares, &y, 1);
            let mut values = [0.; L];
            for l in 0..L {
                let (r, s) = (y[l] - p.y[l], p.h[l] / p.w[l]);
                let bent = r * (p.d1[l] + p.d0[l] - 2. * s);
                let (a, b, c) = (p.h[l] * (s - p.d0[l]) + bent, p.h[l] * p.d0[l] - bent, -s * r);
                let square = b * b - 4. * a * c;
                let root = if square > 0. { square.sqrt() } else { 0. };
                // t = 2 c / (-b - root) = (-b + root) / (2 a): where b is negative, the first form would subtract what is
                // nearly equal.
                let q = if b >= 0. { -0.5 * (b + root) } else { -0.5 * (b - root) };
                let t = if b >= 0. { c / q } else { q / a };
                values[l] = if y[l].abs() <= params.spline.bound { p.x[l] + t * p.w[l] } else { y[l] };
            }
            // SAFETY: this thread alone has these elements.
            unsafe { block.put(x, &values) };
        }
    }
}

/// The gradients of x and of h.
struct Backward<'a, T> {
    p: &'a Params<'a, T>,
    elements: Range<usize>,
    /// x, and the gradients of y and of log dy/dx.
    given: [&'a [T]; 3],
    gx: &'a Shared<T>,
    gh: &'a Shared<T>,
}

/// The gradients of x, of both ends of a piece along both axes, and of both slopes.
struct PieceGrads {
    x: Lanes,
    left: [Lanes; 2],
    right: [Lanes; 2],
    d0: Lanes,
    d1: Lanes,
}

/// Those of a piece, by the chain rule through y = y_k + h N / D and log dy/dx = log M + 2 log s - 2 log D, with
/// N = s t^2 + d_k q, D = s + (d_k+1 + d_k - 2 s) q, M = d_k+1 t^2 + 2 s q + d_k (1 - t)^2 and q = t (1 - t).
#[inline(always)]
fn piece_grads(p: &Piece, [x, gy, gs]: &[Lanes; 3], bound: f64) -> PieceGrads {
    let zero = [0.; L];
    let mut g = PieceGrads { x: zero, left: [zero; 2], right: [zero; 2], d0: zero, d1: zero };
    for l in 0..L {
        let (w, h, d0, d1) = (p.w[l], p.h[l], p.d0[l], p.d1[l]);
        let inside = x[l].abs() <= bound;
        let (t, s) = (if inside { (x[l] - p.x[l]) / w } else { 0. }, h / w);
        let (u, q, bend) = (1. - t, t * (1. - t), d1 + d0 - 2. * s);
        let (n, d, m) = (s * t * t + d0 * q, s + bend * q, d1 * t * t + 2. * s * q + d0 * u * u);
        // Outside, no parameter has a gradient.
        let (gy, gs) = if inside { (gy[l], gs[l]) } else { (0., 0.) };
        let (gn, gm) = (gy * h / d, gs / m);
        let gd = -gy * h * n / (d * d) - 2. * gs / d;
        let gq = gm * 2. * s + gn * d0 + gd * bend;
        let gt = gm * 2. * (d1 * t - d0 * u) + gn * 2. * s * t + gq * (u - t);
        let g_slope = gm * 2. * q + gn * t * t + gd * (1. - 2. * q) + 2. * gs / s;
        let (gh, gw) = (gy * n / d + g_slope / w, -(g_slope * s + gt * t) / w);
        g.x[l] = gt / w;
        (g.left[0][l], g.right[0][l]) = (-gt / w - gw, gw);
        (g.left[1][l], g.right[1][l]) = (gy - gh, gh);
        g.d0[l] = gm * u * u + gn * q + gd * q;
        g.d1[l] = gm * t * t + gd * q;
    }
    g
}

impl<T: Real> Job for Backward<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { p: params, elements, given, gx, gh } = self;
        let SplineSpec { bins, bound, .. } = params.spline;
        let mut shares = vec![[0.; L]; 2 * bins];
        for at in elements.clone().step_by(L) {
            let block = params.of.block(at, elements.end);
            let given = given.map(|v| block.take(v));
            params.shares(&block, &mut shares);
            let p = params.piece(&block, &shares, &given[0], 0);
            let g = piece_grads(&p, &given, bound);
            // SAFETY: this thread alone has these elements.
            let store = |j: usize, values: Lanes| unsafe { params.of.store(&block, j, gh, &values) };
            for axis in 0..2 {
                let scale = 2. * bound * params.spline.shares()[axis].1;
                // The ends of the interval do not move.
                let mut ends = [[0.; L]; 2];
                let mut mean = [0.; L];
                for l in 0..L {
                    ends[0][l] = if p.k[l] > 0 { scale * g.left[axis][l] } else { 0. };
                    ends[1][l] = if p.k[l] + 1 < bins { scale * g.right[axis][l] } else { 0. };
                    mean[l] = ends[0][l] * p.before[axis][l] + ends[1][l] * p.with[axis][l];
                }
                for j in 0..bins {
                    let share = &shares[axis * bins + j];
                    let mut values = [0.; L];
                    for l in 0..L {
                        let before = if j < p.k[l] { ends[0][l] } else { 0. };
                        let with = if j <= p.k[l] { ends[1][l] } else { 0. };
                        values[l] = share[l] * (before + with - mean[l]);
                    }
                    store(axis * bins + j, values);
                }
            }
            for j in 1..bins {
                let mut values = [0.; L];
                for l in 0..L {
                    let left = if j == p.k[l] { g.d0[l] * p.slope0[l] } else { 0. };
                    let right = if j == p.k[l] + 1 { g.d1[l] * p.slope1[l] } else { 0. };
                    values[l] = left + right;
                }
                store(2 * bins + j - 1, values);
            }
            let mut values = [0.; L];
            for l in 0..L {
                values[l] = if given[0][l].abs() <= bound { g.x[l] } else { given[1][l] };
            }
            // SAFETY: this thread alone has these elements.
            unsafe { block.put(gx, &values) };
        }
    }
}
