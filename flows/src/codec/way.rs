//! An example on its way through the layers: a tensor of whole numbers, the stack, and the context.

use super::stack::{LARGEST, Stack};
use crate::core::Context;
use candle_core::{Device, Result, Tensor, bail};

/// The way of one example: the stack, and what a conditional model is given.
pub(super) struct Way<'a, 's> {
    pub(super) stack: &'s mut Stack,
    pub(super) context: Context<'a>,
}

/// Whole numbers of an example's tensor, and back. The tensor is of f64, which holds them exactly.
pub(super) fn numbers(t: &Tensor) -> Result<Vec<i64>> {
    let v: Vec<f64> = t.flatten_all()?.to_vec1()?;
    Ok(v.into_iter().map(|x| x as i64).collect())
}

/// The tensor of whole numbers.
pub(super) fn tensor(v: Vec<i64>, shape: &[usize]) -> Result<Tensor> {
    if v.iter().any(|x| x.abs() >= LARGEST) {
        bail!(
            "a number is too large to be kept exactly: this example is far from what the model was trained on"
        );
    }
    Tensor::from_vec(v.into_iter().map(|x| x as f64).collect::<Vec<_>>(), shape, &Device::Cpu)
}
