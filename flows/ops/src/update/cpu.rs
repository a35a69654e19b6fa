//! Updates of parameters on the CPU: one pass over memory for each step of an optimiser, no new tensors.

use super::spec::RuleStep;
use crate::real::{Real, View, contiguous, dispatch, dtype};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;

/// Elementwise work is handed out in blocks of this many numbers; sums are taken over these blocks, in order.
const BLOCK: usize = 1 << 15;

/// What is smaller becomes zero in the state. Each step multiplies the first moment of a parameter without a gradient by b1, down
/// to a subnormal number that the product is rounded back to, and a processor is far slower with such numbers. The factors of a step
/// times this limit are normal numbers, in f32, too.
const TINY: f64 = 1e-32;

/// `x`, or zero if |x| < `tiny`; not a number stays so.
#[inline(always)]
fn settled<T: Real>(x: T, tiny: T) -> T {
    if -tiny < x && x < tiny { T::default() } else { x }
}

/// A step of the rule that reads and writes each number once. candle's in-place ops write one tensor each, so this op on the state
/// runs another one on the parameter.
struct Step<'a> {
    p: &'a Tensor,
    g: &'a Tensor,
    factor: f64,
    keep: f64,
    step: RuleStep,
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "optimizer_state"
    }

    fn cpu_fwd(&self, state: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let state = RefCell::new((state, layout));
        self.p.inplace_op2(self.g, &OnParameter { of: self, state })
    }
}

/// The same as an op on the parameter, with the state at hand.
struct OnParameter<'a> {
    of: &'a Step<'a>,
    state: RefCell<(&'a mut CpuStorage, &'a Layout)>,
}

impl InplaceOp2 for OnParameter<'_> {
    fn name(&self) -> &'static str {
        "optimizer_step"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (state, layout) = &mut *self.state.borrow_mut();
        dispatch!("optimizer_step", dtype(s1), T => {
            let g = contiguous::<T>("optimizer_step", s2, l2)?;
            let (m, v) = contiguous_mut::<T>(state, layout)?.split_at_mut(g.len());
            self.of.run(contiguous_mut::<T>(s1, l1)?, m, v, g);
        });
        Ok(())
    }
}

impl Step<'_> {
    fn run<T: Real>(&self, p: &mut [T], m: &mut [T], v: &mut [T], g: &[T]) {
        let (factor, keep, tiny) = (T::of(self.factor), T::of(self.keep), T::of(TINY));
        let states = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
        let zip = p.par_chunks_mut(BLOCK).zip(states).zip(g.par_chunks(BLOCK));
        match self.step {
            RuleStep::Adam { b1, b2, a, c, eps } => {
                let (b1, c1, b2, c2) = (T::of(b1), T::of(1. - b1), T::of(b2), T::of(1. - b2));
                let (a, c, eps) = (T::of(a), T::of(c), T::of(eps));
                zip.for_each(|((p, (m, v)), g)| {
                    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                        let g = g * factor;
                        *m = settled(b1 * *m + c1 * g, tiny);
                        *v = settled(b2 * *v + c2 * g * g, tiny);
                        *p = keep * *p - a * *m / ((*v).sqrt() * c + eps);
                    }
                });
            }
            RuleStep::Adamax { b1, b2, a, eps } => {
                let (b1, c1, b2) = (T::of(b1), T::of(1. - b1), T::of(b2));
                let (a, eps) = (T::of(a), T::of(eps));
                zip.for_each(|((p, (m, v)), g)| {
                    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                        let g = g * factor;
                        *m = settled(b1 * *m + c1 * g, tiny);
                        let (old, new) = (b2 * *v, if g < T::default() { -g } else { g });
                        *v = settled(if old > new { old } else { new }, tiny);
                        *p = keep * *p - a * *m / (*v + eps);
                    }
                });
            }
            RuleStep::RmsProp { rho, momentum, lr, eps } => {
                let (rho, c, momentum) = (T::of(rho), T::of(1. - rho), T::of(momentum));
                let (lr, eps) = (T::of(lr), T::of(eps));
                zip.for_each(|((p, (m, v)), g)| {
                    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                        let g = g * factor;
                        *v = settled(rho * *v + c * g * g, tiny);
                        *m = settled(momentum * *m + lr * g / (*v + eps).sqrt(), tiny);
                        *p = keep * *p - *m;
                    }
                });
            }
        }
    }
}

/// e <- decay e + (1 - decay) p.
struct Average(f64);

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "moving_average"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        dispatch!("moving_average", dtype(s1), T => {
            let p = contiguous::<T>("moving_average", s2, l2)?;
            let e = contiguous_mut::<T>(s1, l1)?;
            let (d, c) = (T::of(self.0), T::of(1. - self.0));
            e.par_chunks_mut(BLOCK).zip(p.par_chunks(BLOCK)).for_each(|(e, p)| {
                for (e, &p) in e.iter_mut().zip(p) {
                    *e = d * *e + c * p;
                }
            });
        });
        Ok(())
    }
}

fn contiguous_mut<'a, T: Real>(s: &'a mut CpuStorage, l: &Layout) -> Result<&'a mut [T]> {
    let Some((start, end)) = l.contiguous_offsets() else {
        bail!("an in-place update needs a contiguous tensor, got strides {:?}", l.stride())
    };
    match T::slice_mut(s) {
        Some(v) => Ok(&mut v[start..end]),
        None => bail!("an in-place update met two dtypes"),
    }
}

/// [`super::step`].
pub(crate) fn step(
    p: &Tensor,
    state: &Tensor,
    g: &Tensor,
    factor: f64,
    keep: f64,
    step: RuleStep,
) -> Result<()> {
    let g = &g.contiguous()?;
    state.inplace_op1(&Step { p, g, factor, keep, step })
}

/// [`super::average`].
pub(crate) fn average(e: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    e.inplace_op2(p, &Average(decay))
}

/// [`super::sum_of_squares`].
pub(crate) fn sum_of_squares(t: &Tensor) -> Result<f64> {
    let t = t.contiguous()?;
    dispatch!("sum_of_squares", t.dtype(), T => {
        let view = View::of("sum_of_squares", &t)?;
        let v = view.get::<T>("sum_of_squares")?;
        let parts: Vec<f64> = v
            .par_chunks(1024)
            .map(|c| {
                let mut lanes = [T::default(); 16];
                for group in c.chunks(16) {
                    for (l, &v) in lanes.iter_mut().zip(group) {
                        *l += v * v;
                    }
                }
                lanes.iter().map(|v| v.f64()).sum()
            })
            .collect();
        Ok(parts.into_iter().sum())
    })
}
