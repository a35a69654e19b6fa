//! The matrix of a PLU-parameterised 1x1 convolution as one op.
//!
//! ```text
//! W = P L (U + diag(sign exp(log s))),     log|det W| = sum log s
//! ```
//!
//! L's strict lower part, log s and U's strict upper part are packed in one C x C tensor. As separate ops this is some
//! twenty tiny tensors forward and forty backward for each step of flow, which at small widths costs more than the
//! convolution. The sums are in f64 on the host.
//!
//! **Shapes.** packed and W (C, C), log|det W| a scalar; f32 and f64.

mod cpu;
pub(crate) mod cuda;
pub(crate) mod reference;
mod spec;

pub use spec::Rows;

use crate::autodiff::gradients;
use crate::device::Path;
use crate::linalg;
use candle_core::{Result, Tensor};

/// W (C, C) and log |det W| (a scalar) of `packed`.
///
/// # Errors
/// If `packed` has another size than `rows`.
pub fn plu(packed: &Tensor, rows: &Rows) -> Result<(Tensor, Tensor)> {
    match Path::of(&[packed]) {
        Path::Cpu => cpu::plu(packed, rows),
        Path::Kernel => cuda::plu(packed, &rows.there[0], &rows.there[2]),
        Path::Candle => reference::plu(packed, &rows.perm, &rows.sign),
    }
}

/// W^-1: a kernel where there is one, else the host's in f64.
///
/// # Errors
/// If `packed` has another size than `rows`.
pub fn plu_inverse(packed: &Tensor, rows: &Rows) -> Result<Tensor> {
    match Path::of(&[packed]) {
        Path::Kernel => cuda::plu_inverse(packed, &rows.there[0], &rows.there[2]),
        _ => Ok(linalg::inverse_log_det(&plu(packed, rows)?.0)?.0),
    }
}

/// The gradient of `packed`, from that of W (C, C) and that of the log-det.
///
/// # Errors
/// If the sizes or dtypes differ.
pub fn plu_backward(packed: &Tensor, rows: &Rows, gw: &Tensor, grad_log_det: &Tensor) -> Result<Tensor> {
    let (packed, gw, grad_log_det) = (&packed.detach(), &gw.detach(), &grad_log_det.detach());
    match Path::of(&[packed, gw, grad_log_det]) {
        Path::Cpu => cpu::plu_backward(packed, rows, gw, grad_log_det),
        Path::Kernel => cuda::plu_backward(packed, &rows.there[1], &rows.there[2], gw, grad_log_det),
        Path::Candle => {
            let mut g = gradients(&[packed], &[gw, grad_log_det], |v| {
                let (w, log_det) = reference::plu(&v[0], &rows.perm, &rows.sign)?;
                Ok(vec![w, log_det])
            })?;
            Ok(g.pop().expect("one"))
        }
    }
}
