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

mod cpu;
pub(crate) mod reference;

use crate::device::Path;
use candle_core::{Result, Tensor};

/// y = act(x W^T + b).
///
/// # Errors
/// If the sizes or dtypes differ.
pub fn linear(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    match Path::of(&[x, w, b]) {
        Path::Cpu => cpu::linear(x, w, b, relu),
        _ => reference::linear(x, w, b, relu),
    }
}

/// The gradients of x, W and b, from y and its gradient.
///
/// # Errors
/// If the sizes or dtypes differ.
pub fn linear_backward(
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    gy: &Tensor,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (x, w, y, gy) = (&x.detach(), &w.detach(), &y.detach(), &gy.detach());
    match Path::of(&[x, w, y, gy]) {
        Path::Cpu => cpu::linear_backward(x, w, y, gy, relu),
        _ => reference::linear_backward(x, w, y, gy, relu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{max_diff, wave};
    use candle_core::Var;

    /// A layer that is wider than the batch goes another way through memory.
    #[test]
    fn wide_layers_agree_with_matmul() -> Result<()> {
        for (batch, inputs, outputs) in [(3, 64, 5), (17, 130, 35), (1, 64, 1), (33, 70, 32)] {
            let (x, w) = (wave(&[batch, inputs], 0.3), wave(&[outputs, inputs], 0.7));
            let b = wave(&[outputs], 1.1);
            let d = max_diff(&linear(&x, &w, &b, false)?, &x.matmul(&w.t()?)?.broadcast_add(&b)?);
            assert!(d < 1e-12, "{d}");
        }
        Ok(())
    }

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
