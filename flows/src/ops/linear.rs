//! A fully connected layer with its activation, one op forward and one product for each gradient backward.
//!
//! ```text
//! y = act(x W^T + b)
//! ```
//!
//! with act the identity or ReLU. candle's own goes through a transposed view of W whose gradient is added element by
//! element through strides: in NICE, which is nothing but such layers, that costs more than the products.
//!
//! **Shapes.** x (B, I), W (O, I), b (O,), y (B, O), contiguous; f32 and f64.

use super::gemm::{Mat, MatMut, Real, View, contiguous, dispatch, dtype, gemm, tensor};
use super::reference;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// y = act(x W^T + b); errors if the sizes differ.
pub fn linear(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    if !crate::ops::on_cpu(x) {
        return reference::linear(x, w, b, relu);
    }
    x.contiguous()?.apply_op3(w, b, Linear { relu })
}

/// The gradients of x, W and b, from y and its gradient.
pub(crate) fn linear_backward(
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    gy: &Tensor,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    if !crate::ops::on_cpu(x) {
        let g = if relu { (gy * y.gt(0.)?.to_dtype(gy.dtype())?)? } else { gy.clone() };
        return Ok((g.matmul(w)?, g.t()?.matmul(x)?, g.sum(0)?));
    }
    let g = gy.contiguous()?;
    let g = if relu { g.apply_op2_no_bwd(y, &super::channel::ReluBack)? } else { g };
    let gx = g.apply_op2_no_bwd(w, &Product { of_batch: false })?;
    let gw = g.apply_op2_no_bwd(&x.contiguous()?, &Product { of_batch: true })?;
    let gb = dispatch!("linear", g.dtype(), T => {
        let view = View::of("linear", &g)?;
        let n = g.dim(1)?;
        let mut sum = vec![T::default(); n];
        for row in view.get::<T>("linear")?.chunks_exact(n.max(1)) {
            sum.iter_mut().zip(row).for_each(|(s, &v)| *s += v);
        }
        tensor(sum, n)?
    });
    Ok((gx, gw, gb))
}

struct Linear {
    relu: bool,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, inputs) = l1.shape().dims2()?;
        let (outputs, w_inputs) = l2.shape().dims2()?;
        if inputs != w_inputs || l3.shape().dims() != [outputs] {
            bail!("a linear layer {:?} with bias {:?} met {inputs} inputs", l2.shape(), l3.shape());
        }
        let relu = self.relu;
        dispatch!("linear", dtype(s1), T => {
            let x = contiguous::<T>("linear", s1, l1)?;
            let w = contiguous::<T>("linear", s2, l2)?;
            let b = contiguous::<T>("linear", s3, l3)?;
            let mut y = vec![T::default(); batch * outputs];
            gemm(
                (batch, outputs, inputs),
                Mat::rows(x, inputs),
                Mat::transposed(w, inputs),
                MatMut::rows(&mut y, outputs),
                T::of(1.),
                false,
                rayon::current_num_threads(),
            );
            y.par_chunks_mut(outputs.max(1)).with_min_len(16).for_each(|row| {
                for (y, &b) in row.iter_mut().zip(b) {
                    let v = *y + b;
                    *y = if relu && v < T::default() { T::default() } else { v };
                }
            });
            Ok((T::storage(y), (batch, outputs).into()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _b: &Tensor,
        y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = gy.contiguous()?;
        let g = if self.relu { g.apply_op2_no_bwd(&y.detach(), &super::channel::ReluBack)? } else { g };
        let gx = match x.track_op() {
            true => Some(g.apply_op2_no_bwd(&w.detach(), &Product { of_batch: false })?),
            false => None,
        };
        if !w.track_op() {
            return Ok((gx, None, None));
        }
        let gw = g.apply_op2_no_bwd(&x.detach(), &Product { of_batch: true })?;
        Ok((gx, Some(gw), Some(g.sum(0)?)))
    }
}

/// g a (the gradient of x), or g^T a (`of_batch`: the gradient of W).
struct Product {
    of_batch: bool,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear_back"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, outputs) = l1.shape().dims2()?;
        let (_, n) = l2.shape().dims2()?;
        let (m, k) = if self.of_batch { (outputs, batch) } else { (batch, outputs) };
        dispatch!("linear", dtype(s1), T => {
            let g = contiguous::<T>("linear", s1, l1)?;
            let a = contiguous::<T>("linear", s2, l2)?;
            let mut out = vec![T::default(); m * n];
            let g = if self.of_batch { Mat::transposed(g, outputs) } else { Mat::rows(g, outputs) };
            let threads = rayon::current_num_threads();
            gemm((m, n, k), g, Mat::rows(a, n), MatMut::rows(&mut out, n), T::of(1.), false, threads);
            Ok((T::storage(out), (m, n).into()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_tensors::{max_diff, wave};
    use candle_core::Var;

    #[test]
    fn agrees_with_matmul() -> Result<()> {
        let leaf = |shape: &[usize], f: f64| Var::from_tensor(&wave(shape, f)).unwrap();
        let (x, w, b) = (leaf(&[5, 7], 0.3), leaf(&[4, 7], 0.7), leaf(&[4], 1.1));
        let g = wave(&[5, 4], 0.9);
        for relu in [false, true] {
            let ours = linear(&x, &w, &b, relu)?;
            let theirs = x.matmul(&w.t()?)?.broadcast_add(&b)?;
            let theirs = if relu { theirs.relu()? } else { theirs };
            let (a, t) = ((&ours * &g)?.sum_all()?.backward()?, (&theirs * &g)?.sum_all()?.backward()?);
            let mut pairs = vec![(ours.clone(), theirs.clone())];
            pairs.extend([&x, &w, &b].map(|v| (a.get(v).unwrap().clone(), t.get(v).unwrap().clone())));
            for (p, q) in pairs {
                let d = max_diff(&p, &q);
                assert!(d < 1e-13, "{d}");
            }
        }
        Ok(())
    }
}
