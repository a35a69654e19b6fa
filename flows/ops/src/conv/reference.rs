//! Convolution in candle's operations, or cuDNN's where there is one.

use crate::autodiff::gradients;
use candle_core::{Result, Tensor};

/// [`super::conv2d`].
pub(crate) fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    conv_nchw(&x.transpose(0, 1)?.contiguous()?, w)?.transpose(0, 1)?.contiguous()
}

/// y (B, O, H, W) = w * x for x (B, C, H, W), in the type of x.
pub(crate) fn conv_nchw(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    // candle's own gradients of a convolution on a GPU are those of its naive transposed convolution, with cuDNN, too.
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return super::cudnn::conv2d(x, w);
    }
    x.conv2d(w, w.dim(2)? / 2, 1, 1, 1)
}

/// The gradients of x and w.
pub(crate) fn conv_nchw_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return super::cudnn::conv2d_backward(x, w, gy);
    }
    let mut g = gradients(&[x, w], &[gy], |v| Ok(vec![conv_nchw(&v[0], &v[1])?]))?;
    let gw = g.pop().expect("two");
    Ok((g.pop().expect("two"), gw))
}
