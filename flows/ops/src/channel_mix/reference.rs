//! A matrix at each position in candle's operations.

use crate::autodiff::gradients;
use candle_core::{Result, Tensor};

/// [`super::channel_mix`].
pub(crate) fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.rank() == 2 {
        return x.matmul(&w.t()?);
    }
    w.unsqueeze(0)?.broadcast_matmul(&x.flatten_from(2)?)?.reshape(x.shape())
}

/// [`super::channel_mix_backward`].
pub(crate) fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut g = gradients(&[x, w], &[gy], |v| Ok(vec![channel_mix(&v[0], &v[1])?]))?;
    let gw = g.pop().expect("two");
    Ok((g.pop().expect("two"), gw))
}
