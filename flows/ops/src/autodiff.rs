//! Gradients from candle's graph, of one function at a time.

use candle_core::{Result, Tensor, Var};

/// The gradients of `inputs` through `f`, given those of its outputs.
pub(crate) fn gradients(
    inputs: &[&Tensor],
    of_outputs: &[&Tensor],
    f: impl FnOnce(&[Var]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(|t| Var::from_tensor(&t.detach())).collect::<Result<Vec<_>>>()?;
    let mut sum: Option<Tensor> = None;
    for (y, g) in f(&vars)?.iter().zip(of_outputs) {
        let term = (y * *g)?.sum_all()?;
        sum = Some(match sum {
            Some(s) => (s + term)?,
            None => term,
        });
    }
    let mut store = sum.expect("at least one output").backward()?;
    vars.iter().map(|v| store.remove(v).map_or_else(|| v.zeros_like(), |g| Ok(g.detach()))).collect()
}
