//! The sum over ranks of what an update needs: gradients, the loss, running statistics.
//!
//! ```text
//! g = sum_r (b_r / B) g_r,     the same for mean log p(x) and for the running statistics of batch norm
//! ```
//!
//! where rank r has b_r of the B examples and g_r is the gradient of its mean: the gradient of the mean over the whole batch, however
//! unevenly it is shared out. Batch norm normalises each share by its own mean and variance, as PyTorch's
//! `DistributedDataParallel` does; its running statistics are averaged here, so that all ranks hold the same ones.
//!
//! All of it travels as one vector, after the backward pass. Sending a part while the rest of that pass runs would hide at most the
//! time of the sum behind it; on a processor that is 1% of an update at most (docs/cluster.md), and on a GPU it would need a second
//! stream.

use crate::ranks::Ranks;
use candle_core::{Result, Tensor};
use flows::{Grads, ParamStore};

/// The gradients and the mean log p(x) of the whole batch, from those of this rank's share, whose gradients are those of its loss
/// times `weight` already. Running statistics in `params` become the weighted mean of those of all ranks.
///
/// Without gradients, of a pass that failed, zeros are sent in their place.
///
/// # Errors
/// When a gradient has another dtype than the parameters, or the ranks cannot add them.
pub fn over_ranks(
    ranks: &dyn Ranks,
    weight: f64,
    params: &ParamStore,
    grads: Grads,
    mean: Tensor,
) -> Result<(Grads, Tensor)> {
    if ranks.size() == 1 {
        return Ok((grads, mean));
    }
    let (trained, running) = (params.trained(), params.running());
    let mut parts = Vec::with_capacity(trained.len() + running.len() + 1);
    for (name, p) in &trained {
        parts.push(match grads.get(name) {
            Some(g) => g.flatten_all()?,
            None => p.value().zeros_like()?.flatten_all()?,
        });
    }
    for (_, p) in &running {
        parts.push((p.value().flatten_all()? * weight)?);
    }
    parts.push((mean.to_dtype(params.dtype())?.reshape(1)? * weight)?);
    let sum = ranks.all_reduce(&Tensor::cat(&parts, 0)?)?;
    drop(parts);

    let mut at = 0;
    let mut next = |like: &Tensor| {
        let n = like.elem_count();
        at += n;
        sum.narrow(0, at - n, n)?.reshape(like.shape())
    };
    let mut summed = Grads::new();
    for (name, p) in &trained {
        let g = next(p.value())?;
        // A parameter that the loss does not depend on has no gradient on any rank.
        if grads.contains_key(name) {
            summed.insert(name.clone(), g);
        }
    }
    for (_, p) in &running {
        p.set(&next(p.value())?)?;
    }
    let mean = next(&mean)?.to_dtype(mean.dtype())?;
    Ok((summed, mean))
}
