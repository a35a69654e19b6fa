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

/// y (B, H, W, O) = w * x for x (B, H, W, C) and w (O, k, k, C), in the type of x: channels last.
pub(crate) fn conv_last(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    // cuDNN has no such convolution in f64.
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() && x.dtype() != candle_core::DType::F64 {
        return super::cudnn::conv_last(x, w);
    }
    channels_last(&conv_nchw(&channels_first(x)?, &channels_first(w)?)?)
}

/// The gradients of x and w of [`conv_last`].
pub(crate) fn conv_last_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() && x.dtype() != candle_core::DType::F64 {
        return super::cudnn::conv_last_backward(x, w, gy);
    }
    let (gx, gw) = conv_nchw_backward(&channels_first(x)?, &channels_first(w)?, &channels_first(gy)?)?;
    Ok((channels_last(&gx)?, channels_last(&gw)?))
}

fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?.contiguous()
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// The gradients of x and w.
fn conv_nchw_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return super::cudnn::conv2d_backward(x, w, gy);
    }
    let mut g = gradients(&[x, w], &[gy], |v| Ok(vec![conv_nchw(&v[0], &v[1])?]))?;
    let gw = g.pop().expect("two");
    Ok((g.pop().expect("two"), gw))
}
