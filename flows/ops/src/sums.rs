//! Sums over rows: in vectors of the tensor's own type over short blocks, whose sums are added in f64, in order.

use crate::inner::Inner;
use crate::real::Real;
use crate::simd::{Job, Width, wide};
use rayon::prelude::*;

/// Partial sums side by side, so that they become vectors.
pub(crate) const LANES: usize = 16;
/// Numbers that are summed in the tensor's own type before they join the sum in f64.
pub(crate) const BLOCK: usize = 1024;

/// Mean and biased variance.
fn mean_var<I: Inner>(x: &[I]) -> (f64, f64) {
    let n = x.len().max(1) as f64;
    let mut sums = (0., 0.);
    wide(Sums { x, about: I::Real::default(), sums: &mut sums });
    let mean = sums.0 / n;
    let mut about = (0., 0.);
    wide(Sums { x, about: I::Real::of(mean), sums: &mut about });
    // Corrects the variance for the rounding of the mean.
    (mean, (about.1 / n - (about.0 / n).powi(2)).max(0.))
}

/// Mean and biased variance of each row of n.
pub(crate) fn mean_vars<I: Inner>(x: &[I], n: usize) -> Vec<(f64, f64)> {
    x.par_chunks(n.max(1)).map(mean_var).collect()
}

/// The sum of each row of n.
pub(crate) fn row_totals<T: Real>(x: &[T], n: usize) -> Vec<T> {
    let sum = |x: &[T]| {
        let mut sums = (0., 0.);
        wide(Sums { x, about: T::default(), sums: &mut sums });
        T::of(sums.0)
    };
    x.par_chunks(n.max(1)).map(sum).collect()
}

/// sum (x - about) and sum (x - about)^2.
struct Sums<'a, I: Inner> {
    x: &'a [I],
    about: I::Real,
    sums: &'a mut (f64, f64),
}

impl<I: Inner> Job for Sums<'_, I> {
    #[inline(always)]
    fn run<W: Width>(self) {
        for x in self.x.chunks(BLOCK) {
            let (mut s, mut q) = ([I::Real::default(); LANES], [I::Real::default(); LANES]);
            let (xs, rest) = x.as_chunks::<LANES>();
            for x in xs {
                for k in 0..LANES {
                    let d = x[k].to_real() - self.about;
                    s[k] += d;
                    q[k] += d * d;
                }
            }
            for &x in rest {
                let d = x.to_real() - self.about;
                s[0] += d;
                q[0] += d * d;
            }
            self.sums.0 += s.iter().map(|v| v.f64()).sum::<f64>();
            self.sums.1 += q.iter().map(|v| v.f64()).sum::<f64>();
        }
    }
}
