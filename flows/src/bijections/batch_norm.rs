//! RealNVP's batch norm as a flow layer (section 3.7 and appendix E).

use crate::bijection::{Bijection, Ctx, Mode, channel_shape, positions, same_per_example};
use crate::ops::channel;
use crate::params::{Init, Param, Vb};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// Which statistics a training pass normalises with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatistics {
    /// The batch's own, as the released code does.
    Batch,
    /// Appendix E: the running average after this batch is mixed in; gradients pass through the batch's share only.
    Running,
}

/// ```text
/// z = (x - mean_c) / sqrt(var_c + eps),     log-det = -(H W / 2) sum_c log(var_c + eps)
/// ```
///
/// Training uses the batch's mean and variance (or, with [`BatchStatistics::Running`], appendix E's running averages) and
/// moves the running statistics by `momentum`; evaluation uses the running ones, and its inverse is exact.
///
/// **Shapes.** (B, D) or (B, C, H, W); buffers `mean`, `var` (C,).
pub struct BatchNorm {
    mean: Param,
    var: Param,
    eps: f64,
    momentum: f64,
    statistics: BatchStatistics,
}

impl BatchNorm {
    /// Running mean 0 and variance 1 at first; `momentum` is the batch's share in the running average.
    pub fn new(
        channels: usize,
        eps: f64,
        momentum: f64,
        statistics: BatchStatistics,
        vb: &Vb,
    ) -> Result<Self> {
        Ok(Self {
            mean: vb.buffer(channels, "mean", Init::Const(0.))?,
            var: vb.buffer(channels, "var", Init::Const(1.))?,
            eps,
            momentum,
            statistics,
        })
    }

    /// Mean and variance of each channel of the batch, in the graph.
    fn of_batch(x: &Tensor) -> Result<(Tensor, Tensor)> {
        let rows = x.transpose(0, 1)?.flatten_from(1)?;
        let mean = rows.mean_keepdim(1)?;
        let var = rows.broadcast_sub(&mean)?.sqr()?.mean(1)?;
        Ok((mean.squeeze(1)?, var))
    }

    fn mix(&self, running: &Param, batch: &Tensor, share: f64) -> Result<Tensor> {
        (running.value() * (1. - share))? + (batch * share)?
    }
}

impl Bijection for BatchNorm {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let shape = channel_shape(x)?;
        let (mean, var) = if ctx.mode.uses_batch_statistics() {
            let (mean, var) = Self::of_batch(x)?;
            let (m, v) = match self.statistics {
                BatchStatistics::Running if ctx.mode != Mode::Init => {
                    (self.mix(&self.mean, &mean, self.momentum)?, self.mix(&self.var, &var, self.momentum)?)
                }
                _ => (mean.clone(), var.clone()),
            };
            // The first batch sets the running statistics outright, so that evaluation makes sense from the start.
            let share = match ctx.mode {
                Mode::Init => 1.,
                Mode::Train => self.momentum,
                _ => 0.,
            };
            if share > 0. {
                self.mean.set(&self.mix(&self.mean, &mean, share)?)?;
                self.var.set(&self.mix(&self.var, &var, share)?)?;
            }
            (m, v)
        } else {
            (self.mean.value().clone(), self.var.value().clone())
        };
        let var = (var + self.eps)?;
        let z =
            x.broadcast_sub(&mean.reshape(shape.as_slice())?)?.broadcast_div(&var.sqrt()?.reshape(shape)?)?;
        let log_det = (var.log()?.sum_all()? * (-0.5 * positions(x)? as f64))?;
        Ok((z, same_per_example(&log_det, x)?))
    }

    fn inverse(&self, z: &Tensor, _cond: Option<&Tensor>) -> Result<Tensor> {
        let shape = channel_shape(z)?;
        let std = (self.var.value() + self.eps)?.sqrt()?;
        z.broadcast_mul(&std.reshape(shape.as_slice())?)?.broadcast_add(&self.mean.value().reshape(shape)?)
    }
}

/// Batch norm inside a network, with learned gain and shift, on channel-major activations: no log-det, any mode, ReLU
/// fused.
pub(crate) struct NetBatchNorm {
    mean: Param,
    var: Param,
    gamma: Param,
    beta: Param,
    eps: f64,
    momentum: f64,
}

impl NetBatchNorm {
    pub(crate) fn new(channels: usize, eps: f64, momentum: f64, vb: &Vb) -> Result<Self> {
        Ok(Self {
            mean: vb.buffer(channels, "mean", Init::Const(0.))?,
            var: vb.buffer(channels, "var", Init::Const(1.))?,
            gamma: vb.get(channels, "gamma", Init::Const(1.))?,
            beta: vb.get(channels, "beta", Init::Const(0.))?,
            eps,
            momentum,
        })
    }

    pub(crate) fn channel_major(&self, x: &Tensor, ctx: Ctx, relu: bool) -> Result<Tensor> {
        let (gamma, beta) = (self.gamma.get(ctx.grad), self.beta.get(ctx.grad));
        if ctx.mode.uses_batch_statistics() {
            let share = match ctx.mode {
                Mode::Init => 1.,
                Mode::Train => self.momentum,
                _ => 0.,
            };
            if share > 0. {
                let m = channel::moments(x)?;
                for (p, batch) in [(&self.mean, m.get(0)?), (&self.var, m.get(1)?)] {
                    p.set(&((p.value() * (1. - share))? + (batch * share)?)?)?;
                }
            }
            return channel::batch_norm(x, gamma, beta, self.eps, relu);
        }
        let scale = (gamma / (self.var.value() + self.eps)?.sqrt()?)?;
        let shift = (beta - (self.mean.value() * &scale)?)?;
        channel::affine(x, &scale, &shift, relu)
    }
}
