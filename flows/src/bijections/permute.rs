//! Fixed permutations of features or channels: even/odd and reverse (NICE), shuffle (Glow's ablation).

use crate::core::{Bijection, Context, Ctx, zeros_per_example};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A fixed permutation of features or channels.
///
/// ```text
/// z_d = x_{index_d},     log-det = 0
/// ```
///
/// **Shapes.** (B, D) or (B, C, H, W), permuting dimension 1. The indices are a tensor of the file (`index`), so a loaded
/// model has the permutation it was trained with. **Errors** if the stored indices are no permutation.
pub struct Permute {
    index: Param,
    inverse: Tensor,
}

impl Permute {
    /// The permutation that `vb` has, or else the one of `order`.
    fn new(n: usize, vb: &ParamBuilder, order: impl Fn(&mut ChaCha8Rng) -> Vec<usize>) -> Result<Self> {
        let init = |rng: &mut ChaCha8Rng| order(rng).into_iter().map(|i| i as f64).collect();
        let (index, inverse) = vb.permutation(n, "index", Init::With(&init))?;
        let inverse = Tensor::new(inverse, index.value().device())?;
        Ok(Self { index, inverse })
    }

    /// Even positions first, then odd ones (NICE section 5.1's partition, made into halves).
    ///
    /// # Errors
    /// When the indices that `vb` has are no permutation of this size.
    pub fn even_odd(n: usize, vb: &ParamBuilder) -> Result<Self> {
        Self::new(n, vb, |_| (0..n).step_by(2).chain((1..n).step_by(2)).collect())
    }

    /// The positions in reverse order.
    ///
    /// # Errors
    /// When the indices that `vb` has are no permutation of this size.
    pub fn reverse(n: usize, vb: &ParamBuilder) -> Result<Self> {
        Self::new(n, vb, |_| (0..n).rev().collect())
    }

    /// z_d = x_order(d).
    ///
    /// # Errors
    /// When the indices that `vb` has are no permutation of this size.
    pub fn given(order: &[usize], vb: &ParamBuilder) -> Result<Self> {
        Self::new(order.len(), vb, |_| order.to_vec())
    }

    /// A random permutation, fixed by the parameters' seed.
    ///
    /// # Errors
    /// When the indices that `vb` has are no permutation of this size.
    pub fn shuffle(n: usize, vb: &ParamBuilder) -> Result<Self> {
        Self::new(n, vb, |rng| {
            let mut order: Vec<usize> = (0..n).collect();
            order.shuffle(rng);
            order
        })
    }
}

impl Bijection for Permute {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        Ok((x.contiguous()?.index_select(self.index.value(), 1)?, zeros_per_example(x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        z.contiguous()?.index_select(&self.inverse, 1)
    }

    fn moves_elements(&self) -> bool {
        true
    }
}
