//! In-place updates of parameters: one pass over memory for each step of an optimiser, no new tensors.
//!
//! Optimiser state is one tensor of two rows beside each parameter. A step is two in-place ops, state then parameter:
//! candle's in-place ops write one tensor and read one.

use super::gemm::{Real, contiguous, dispatch, dtype};
use super::reference;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Elementwise work is handed out in blocks of this many numbers; sums are taken over these blocks, in order.
const BLOCK: usize = 1 << 15;

/// How the two rows of state follow the gradient g (after clipping: g is multiplied by `clip`).
#[derive(Clone, Copy, Debug)]
pub enum Accumulate {
    /// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2.
    Adam { b1: f64, b2: f64 },
    /// m <- b1 m + (1 - b1) g;  u <- max(b2 u, |g|).
    Adamax { b1: f64, b2: f64 },
    /// v <- rho v + (1 - rho) g^2 (second row);  m <- mu m + lr g / sqrt(v + eps).
    RmsProp { rho: f64, mu: f64, lr: f64, eps: f64 },
}

struct State {
    rule: Accumulate,
    clip: f64,
}

impl InplaceOp2 for State {
    fn name(&self) -> &'static str {
        "optimiser_state"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        dispatch!("optimiser_state", dtype(s1), T => {
            let g = contiguous::<T>("optimiser_state", s2, l2)?;
            let (m, v) = contiguous_mut::<T>(s1, l1)?.split_at_mut(g.len());
            let clip = T::of(self.clip);
            let zip = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)).zip(g.par_chunks(BLOCK));
            match self.rule {
                Accumulate::Adam { b1, b2 } => {
                    let (b1, c1, b2, c2) = (T::of(b1), T::of(1. - b1), T::of(b2), T::of(1. - b2));
                    zip.for_each(|((m, v), g)| {
                        for ((m, v), &g) in m.iter_mut().zip(v).zip(g) {
                            let g = g * clip;
                            *m = b1 * *m + c1 * g;
                            *v = b2 * *v + c2 * g * g;
                        }
                    });
                }
                Accumulate::Adamax { b1, b2 } => {
                    let (b1, c1, b2) = (T::of(b1), T::of(1. - b1), T::of(b2));
                    zip.for_each(|((m, v), g)| {
                        for ((m, v), &g) in m.iter_mut().zip(v).zip(g) {
                            let g = g * clip;
                            *m = b1 * *m + c1 * g;
                            let (a, b) = (b2 * *v, if g < T::default() { -g } else { g });
                            *v = if a > b { a } else { b };
                        }
                    });
                }
                Accumulate::RmsProp { rho, mu, lr, eps } => {
                    let (rho, c, mu) = (T::of(rho), T::of(1. - rho), T::of(mu));
                    let (lr, eps) = (T::of(lr), T::of(eps));
                    zip.for_each(|((m, v), g)| {
                        for ((m, v), &g) in m.iter_mut().zip(v).zip(g) {
                            let g = g * clip;
                            *v = rho * *v + c * g * g;
                            *m = mu * *m + lr * g / (*v + eps).sqrt();
                        }
                    });
                }
            }
        });
        Ok(())
    }
}

/// How a parameter follows its state (m, v).
#[derive(Clone, Copy, Debug)]
pub enum Apply {
    /// p <- p - a m / (sqrt(v) c + eps).
    Adam { a: f64, c: f64, eps: f64 },
    /// p <- p - a m / (v c + eps).
    Adamax { a: f64, c: f64, eps: f64 },
    /// p <- p - m.
    Momentum,
}

impl InplaceOp2 for Apply {
    fn name(&self) -> &'static str {
        "optimiser_apply"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        dispatch!("optimiser_apply", dtype(s1), T => {
            let p = contiguous_mut::<T>(s1, l1)?;
            let (m, v) = contiguous::<T>("optimiser_apply", s2, l2)?.split_at(p.len());
            let zip = p.par_chunks_mut(BLOCK).zip(m.par_chunks(BLOCK)).zip(v.par_chunks(BLOCK));
            match *self {
                Apply::Adam { a, c, eps } => {
                    let (a, c, eps) = (T::of(a), T::of(c), T::of(eps));
                    zip.for_each(|((p, m), v)| {
                        for ((p, &m), &v) in p.iter_mut().zip(m).zip(v) {
                            *p -= a * m / (v.sqrt() * c + eps);
                        }
                    });
                }
                Apply::Adamax { a, c, eps } => {
                    let (a, c, eps) = (T::of(a), T::of(c), T::of(eps));
                    zip.for_each(|((p, m), v)| {
                        for ((p, &m), &v) in p.iter_mut().zip(m).zip(v) {
                            *p -= a * m / (v * c + eps);
                        }
                    });
                }
                Apply::Momentum => zip.for_each(|((p, m), _)| {
                    for (p, &m) in p.iter_mut().zip(m) {
                        *p -= m;
                    }
                }),
            }
        });
        Ok(())
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

/// Moves `state` (2, N) along the gradient `g` (N elements), scaled by `clip`.
pub fn accumulate(state: &Tensor, g: &Tensor, clip: f64, rule: Accumulate) -> Result<()> {
    if state.elem_count() != 2 * g.elem_count() {
        bail!("optimiser state of {} numbers met a gradient of {}", state.elem_count(), g.elem_count());
    }
    if !crate::ops::on_cpu(state) {
        return reference::accumulate(state, g, clip, rule);
    }
    state.inplace_op2(&g.contiguous()?, &State { rule, clip })
}

/// Moves the parameter `p` by its `state`.
pub fn apply(p: &Tensor, state: &Tensor, rule: Apply) -> Result<()> {
    if !crate::ops::on_cpu(p) {
        return reference::apply(p, state, rule);
    }
    p.inplace_op2(state, &rule)
}

/// e <- decay e + (1 - decay) p.
pub fn average(e: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    if !crate::ops::on_cpu(e) {
        return reference::average(e, p, decay);
    }
    e.inplace_op2(p, &Average(decay))
}

/// Overwrites the values of `to`, which may be a scalar, in place.
pub(crate) fn set(to: &Tensor, from: &Tensor) -> Result<()> {
    if to.rank() == 0 {
        return to.reshape(1)?.slice_set(&from.reshape(1)?, 0, 0);
    }
    to.slice_set(&from.contiguous()?, 0, 0)
}

/// The sum of squares in f64: fixed blocks, added in order, so that it is the same for any number of threads.
pub fn sum_of_squares(t: &Tensor) -> Result<f64> {
    let t = t.contiguous()?;
    if !crate::ops::on_cpu(&t) {
        return t.sqr()?.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar();
    }
    let (storage, layout) = t.storage_and_layout();
    let candle_core::Storage::Cpu(s) = &*storage else { unreachable!("checked above") };
    dispatch!("sum_of_squares", dtype(s), T => {
        let v = contiguous::<T>("sum_of_squares", s, layout)?;
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
