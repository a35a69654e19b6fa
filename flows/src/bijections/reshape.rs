//! Squeeze and flatten: the shape changes, the numbers do not.

use crate::core::{Bijection, Context, Ctx, zeros_per_example};
use crate::ops::squeeze::{squeeze, unsqueeze};
use candle_core::{Result, Tensor, bail};

/// Space to channels, 2x2 (RealNVP section 3.6): (B, C, H, W) to (B, 4 C, H/2, W/2),
///
/// ```text
/// z[4 c + 2 u + v, i, j] = x[c, 2 i + u, 2 j + v],     log-det = 0
/// ```
///
/// which is nflows's order. **Errors** if H or W is odd.
#[derive(Clone, Copy, Debug, Default)]
pub struct Squeeze;

impl Bijection for Squeeze {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let (_, _, h, w) = x.dims4()?;
        if h % 2 != 0 || w % 2 != 0 {
            bail!(
                "cannot squeeze {h}x{w}: both sides must be even; crop or resize the images, or use fewer levels"
            );
        }
        Ok((squeeze(x)?, zeros_per_example(x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        let (_, c, _, _) = z.dims4()?;
        if c % 4 != 0 {
            bail!("cannot undo a squeeze of {c} channels: their number must be a multiple of 4");
        }
        unsqueeze(z)
    }

    fn moves_elements(&self) -> bool {
        true
    }
}

/// (B, C, H, W) to (B, C H W), and back.
#[derive(Clone, Debug)]
pub struct Flatten {
    shape: Vec<usize>,
}

impl Flatten {
    /// `shape` is that of one example, without the batch.
    pub fn new(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec() }
    }
}

impl Bijection for Flatten {
    fn forward(&self, x: &Tensor, _ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if x.dims()[1..] != self.shape {
            bail!("this model takes examples of shape {:?}, got {:?}", self.shape, &x.dims()[1..]);
        }
        Ok((x.flatten_from(1)?, zeros_per_example(x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        z.reshape([&[z.dim(0)?], self.shape.as_slice()].concat())
    }

    fn moves_elements(&self) -> bool {
        true
    }
}
