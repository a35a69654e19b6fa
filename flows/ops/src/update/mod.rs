//! In-place updates of parameters.
//!
//! Optimizer state is one tensor of two rows beside each parameter. On a GPU [`FusedUpdate`] does all parameters in three
//! launches.

mod cpu;
mod cuda;
pub(crate) mod reference;
mod spec;

pub use cuda::FusedUpdate;
pub use reference::set;
pub use spec::{Numbers, Penalty, RuleStep, Tally};

use crate::device::Path;
use candle_core::{DType, Result, Tensor, bail};

/// One step of a rule: moves `state` (2, N) along the gradient `g` (N elements) times `factor`, and the parameter times `keep` by
/// its state. `keep` is 1, or less with weight decay.
///
/// # Errors
/// If sizes or dtypes differ.
pub fn step(p: &Tensor, state: &Tensor, g: &Tensor, factor: f64, keep: f64, step: RuleStep) -> Result<()> {
    if state.elem_count() != 2 * g.elem_count() {
        bail!("optimizer state of {} numbers met a gradient of {}", state.elem_count(), g.elem_count());
    }
    match Path::of(&[&state.detach()]) {
        Path::Cpu => cpu::step(p, state, g, factor, keep, step),
        _ => reference::step(p, state, g, factor, keep, step),
    }
}

/// e <- decay e + (1 - decay) p.
///
/// # Errors
/// If shapes or dtypes differ.
pub fn average(e: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    match Path::of(&[&e.detach()]) {
        Path::Cpu => cpu::average(e, p, decay),
        _ => reference::average(e, p, decay),
    }
}

/// The sum of squares in f64: fixed blocks, added in order, so that it is the same for any number of threads.
///
/// # Errors
/// If the dtype is neither f32 nor f64.
pub fn sum_of_squares(t: &Tensor) -> Result<f64> {
    match Path::of(&[&t.detach()]) {
        Path::Cpu => cpu::sum_of_squares(t),
        _ => t.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar(),
    }
}
