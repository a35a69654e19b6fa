//! Gradients from candle's graph, of one function at a time, and gradients of one's own on it.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, Var};

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

/// The identity with another gradient.
struct WithGradient<F>(F);

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for WithGradient<F> {
    fn name(&self) -> &'static str {
        "with-gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((x.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((x.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        (self.0)(&g.detach()).map(Some)
    }
}

/// x on candle's graph, with `gradient(g)` for the gradient of x where g is that of the result.
///
/// # Errors
/// If the device has no memory left.
pub fn with_gradient(
    x: &Tensor,
    gradient: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    // A copy begins at the first element of its storage.
    x.copy()?.contiguous()?.apply_op1(WithGradient(gradient))
}
