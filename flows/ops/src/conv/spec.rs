//! Sizes of a convolution.

use candle_core::{Result, Shape, bail};

/// Input and output channels, images, their sides, and the kernel's side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(crate) c: usize,
    pub(crate) o: usize,
    pub(crate) b: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) k: usize,
}

impl Dims {
    /// Of an input (C, B, H, W) and a kernel (O, C, k, k).
    pub(crate) fn of(x: &Shape, weight: &Shape) -> Result<Self> {
        let (c, b, h, w) = x.dims4()?;
        let (o, wc, k, k2) = weight.dims4()?;
        if k != k2 || (k != 1 && k != 3) {
            bail!("conv2d takes 1x1 and 3x3 kernels, got {k}x{k2}");
        }
        if wc != c {
            bail!("conv2d: the input has {c} channels, the kernel takes {wc}");
        }
        if c * o * b * h * w == 0 {
            bail!("conv2d: an input {x:?} or a kernel {weight:?} is empty");
        }
        Ok(Self { c, o, b, h, w, k })
    }

    /// Columns in all: one for each pixel of each image.
    pub(crate) fn cols(&self) -> usize {
        self.b * self.h * self.w
    }
}
