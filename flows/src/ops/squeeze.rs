//! Space to channels, 2x2, as a copy.
//!
//! ```text
//! z[b, 4 c + 2 u + v, i, j] = x[b, c, 2 i + u, 2 j + v]
//! ```

use super::reference::kernel;
use candle_core::{Result, Tensor};

/// (B, C, H, W) to (B, 4 C, H/2, W/2); both sides are even.
pub(crate) fn squeeze(x: &Tensor) -> Result<Tensor> {
    kernel!([x], super::kernels::squeeze(x, false));
    let (b, c, h, w) = x.dims4()?;
    let z = x.reshape(&[b, c, h / 2, 2, w / 2, 2])?.permute((0, 1, 3, 5, 2, 4))?;
    z.reshape((b, 4 * c, h / 2, w / 2))
}

/// (B, 4 C, H, W) to (B, C, 2 H, 2 W).
pub(crate) fn unsqueeze(z: &Tensor) -> Result<Tensor> {
    kernel!([z], super::kernels::squeeze(z, true));
    let (b, c, h, w) = z.dims4()?;
    let x = z.reshape(&[b, c / 4, 2, 2, h, w])?.permute((0, 1, 4, 2, 5, 3))?;
    x.reshape((b, c / 4, 2 * h, 2 * w))
}
