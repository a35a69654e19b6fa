//! Batch norm inside a network, with the running statistics that the flow layer shares.

use crate::core::{Ctx, Mode};
use crate::ops::batch_norm::{batch_norm, mix_moments, moments};
use crate::ops::elementwise::affine;
use crate::ops::res_net;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor};

/// The running mean and variance of each channel: buffers `mean`, `var` (C,), 0 and 1 at first.
pub(crate) struct RunningMoments {
    pub(crate) mean: Param,
    pub(crate) var: Param,
    /// The batch's share in the running averages.
    pub(crate) momentum: f64,
}

impl RunningMoments {
    pub(crate) fn new(channels: usize, momentum: f64, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            mean: vb.running(channels, "mean", Init::Const(0.))?,
            var: vb.running(channels, "var", Init::Const(1.))?,
            momentum,
        })
    }

    /// Mixes the mean and variance of a batch, (2, C), into the running ones, where `mode` updates them.
    pub(crate) fn update(&self, batch: &Tensor, mode: Mode) -> Result<()> {
        let share = mode.batch_share(self.momentum);
        if share == 0. {
            return Ok(());
        }
        if mix_moments(self.mean.value(), self.var.value(), batch, share)? {
            self.mean.changed();
            self.var.changed();
            return Ok(());
        }
        let running = [self.mean.value().clone(), self.var.value().clone()];
        let [mean, var] = mix(&running, &[batch.get(0)?, batch.get(1)?], share)?;
        self.mean.set(&mean)?;
        self.var.set(&var)
    }
}

/// (1 - share) running + share batch, for the mean and for the variance.
pub(crate) fn mix(running: &[Tensor; 2], batch: &[Tensor; 2], share: f64) -> Result<[Tensor; 2]> {
    let one = |i: usize| (&running[i] * (1. - share))? + (&batch[i] * share)?;
    Ok([one(0)?, one(1)?])
}

/// Batch norm of channel-major activations with a learned gain and shift, `gamma` and `beta` (C,), in any mode.
pub(crate) struct NetBatchNorm {
    pub(crate) running: RunningMoments,
    pub(crate) gamma: Param,
    pub(crate) beta: Param,
    eps: f64,
}

impl NetBatchNorm {
    pub(crate) fn new(channels: usize, eps: f64, momentum: f64, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            running: RunningMoments::new(channels, momentum, vb)?,
            gamma: vb.get(channels, "gamma", Init::Const(1.))?,
            beta: vb.get(channels, "beta", Init::Const(0.))?,
            eps,
        })
    }

    /// The values, for a fused pass.
    pub(crate) fn values(&self) -> res_net::Norm {
        let [gamma, beta, mean, var] =
            [&self.gamma, &self.beta, &self.running.mean, &self.running.var].map(|p| p.value().clone());
        res_net::Norm { gamma, beta, mean, var }
    }

    /// The map on channel-major activations, with the ReLU of the network's next step where `relu` asks for it.
    pub(crate) fn forward(&self, x: &Tensor, ctx: Ctx, relu: bool) -> Result<Tensor> {
        let (gamma, beta) = (self.gamma.get(ctx.grad), self.beta.get(ctx.grad));
        if ctx.mode.uses_batch_statistics() {
            if ctx.mode.batch_share(self.running.momentum) > 0. {
                self.running.update(&moments(x)?, ctx.mode)?;
            }
            return batch_norm(x, gamma, beta, self.eps, relu);
        }
        let scale = (gamma / (self.running.var.value() + self.eps)?.sqrt()?)?;
        let shift = (beta - (self.running.mean.value() * &scale)?)?;
        affine(x, &scale, &shift, relu)
    }
}
