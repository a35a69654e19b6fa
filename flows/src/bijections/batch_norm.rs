//! RealNVP's batch norm as a flow layer (section 3.7 and appendix E).

use crate::core::{
    Bijection, Context, Ctx, Gradients, Graph, LayerStats, Memory, Mode, SavedState, backward_by_graph,
    channel_shape, forward_saved_by_graph, positions, same_per_example,
};
use crate::ops::batch_norm::{batch_norm, moments};
use crate::ops::elementwise::affine;
use crate::ops::res_net;
use crate::params::{Init, Param, ParamBuilder};
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
    ///
    /// # Errors
    /// When `vb` has no such tensor.
    pub fn new(
        channels: usize,
        eps: f64,
        momentum: f64,
        statistics: BatchStatistics,
        vb: &ParamBuilder,
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
    fn of_batch(x: &Tensor) -> Result<[Tensor; 2]> {
        let rows = x.transpose(0, 1)?.flatten_from(1)?;
        let mean = rows.mean_keepdim(1)?;
        let var = rows.broadcast_sub(&mean)?.sqr()?.mean(1)?;
        Ok([mean.squeeze(1)?, var])
    }
}

/// What a pass with batch statistics leaves: the running averages before it wrote them, and what it normalised with.
struct Statistics {
    running: [Tensor; 2],
    used: [Tensor; 2],
}

impl BatchNorm {
    /// z and log-det from a given mean and variance of each channel.
    fn normalise(&self, x: &Tensor, mean: &Tensor, var: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = channel_shape(x)?;
        let var = (var + self.eps)?;
        let z =
            x.broadcast_sub(&mean.reshape(shape.as_slice())?)?.broadcast_div(&var.sqrt()?.reshape(shape)?)?;
        let log_det = (var.log()?.sum_all()? * (-0.5 * positions(x)? as f64))?;
        Ok((z, same_per_example(&log_det, x)?))
    }

    /// What a pass in `mode` normalises with, given the running averages, and the batch's own.
    fn statistics(&self, x: &Tensor, mode: Mode, running: &[Tensor; 2]) -> Result<[[Tensor; 2]; 2]> {
        let batch = Self::of_batch(x)?;
        let used = match self.statistics {
            BatchStatistics::Running if mode != Mode::Init => mix_all(running, &batch, self.momentum)?,
            _ => batch.clone(),
        };
        Ok([used, batch])
    }

    /// A copy of the running averages, which later updates do not change.
    fn running(&self) -> Result<[Tensor; 2]> {
        Ok([self.mean.value().copy()?, self.var.value().copy()?])
    }

    fn run(&self, x: &Tensor, ctx: Ctx, running: [Tensor; 2]) -> Result<(Tensor, Tensor, Statistics)> {
        let [used, batch] = self.statistics(x, ctx.mode, &running)?;
        // The first batch sets the running statistics outright, so that evaluation makes sense from the start.
        write_running([&self.mean, &self.var], &running, &batch, ctx.mode.batch_share(self.momentum))?;
        let (z, log_det) = self.normalise(x, &used[0], &used[1])?;
        Ok((z, log_det, Statistics { running, used: used.map(|t| t.detach()) }))
    }
}

/// Mixes the batch's mean and variance into the running ones, where its share is above zero.
fn write_running(
    [mean, var]: [&Param; 2],
    running: &[Tensor; 2],
    batch: &[Tensor; 2],
    share: f64,
) -> Result<()> {
    if share > 0. {
        let [new_mean, new_var] = mix_all(running, batch, share)?;
        mean.set(&new_mean)?;
        var.set(&new_var)?;
    }
    Ok(())
}

fn mix_all(running: &[Tensor; 2], batch: &[Tensor; 2], share: f64) -> Result<[Tensor; 2]> {
    Ok([mix(&running[0], &batch[0], share)?, mix(&running[1], &batch[1], share)?])
}

/// (1 - share) running + share batch.
fn mix(running: &Tensor, batch: &Tensor, share: f64) -> Result<Tensor> {
    (running * (1. - share))? + (batch * share)?
}

impl Bijection for BatchNorm {
    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Statistics(((self.var.value() + self.eps)?.log()? * -0.5)?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if ctx.mode.uses_batch_statistics() {
            let (z, log_det, _) = self.run(x, ctx, self.running()?)?;
            return Ok((z, log_det));
        }
        self.normalise(x, self.mean.value(), self.var.value())
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        self.restore(z, self.mean.value(), self.var.value())
    }

    /// Under [`Memory::Recompute`] the statistics are kept: the inverse of a training pass needs the batch's.
    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        if memory == Memory::Store || !ctx.mode.uses_batch_statistics() {
            return forward_saved_by_graph(self, x, ctx, memory);
        }
        let (z, log_det, statistics) = self.run(x, ctx.with_grad(false), self.running()?)?;
        Ok((z, log_det, SavedState::new(statistics)))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        g: (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        if !saved.is::<Statistics>() {
            return backward_by_graph(self, z, saved, g, ctx, grads);
        }
        let x = self.reconstruct(z, &saved, ctx)?;
        let running = saved.take::<Statistics>().expect("checked above").running;
        let (graph, _) = Graph::of(&x, |x| self.run(x, ctx.replay(), running).map(|(z, l, _)| [z, l]))?;
        Ok((x, graph.backward(&[g.0, g.1], grads)?.swap_remove(0)))
    }

    fn reconstruct(&self, z: &Tensor, saved: &SavedState, ctx: Ctx) -> Result<Tensor> {
        if !saved.is::<Statistics>() {
            return self.inverse(z, ctx.context);
        }
        let [mean, var] = &saved.get::<Statistics>().expect("checked above").used;
        self.restore(z, mean, var)
    }
}

impl BatchNorm {
    fn restore(&self, z: &Tensor, mean: &Tensor, var: &Tensor) -> Result<Tensor> {
        let shape = channel_shape(z)?;
        let std = (var + self.eps)?.sqrt()?;
        z.broadcast_mul(&std.reshape(shape.as_slice())?)?.broadcast_add(&mean.reshape(shape)?)
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
    pub(crate) fn new(channels: usize, eps: f64, momentum: f64, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            mean: vb.buffer(channels, "mean", Init::Const(0.))?,
            var: vb.buffer(channels, "var", Init::Const(1.))?,
            gamma: vb.get(channels, "gamma", Init::Const(1.))?,
            beta: vb.get(channels, "beta", Init::Const(0.))?,
            eps,
            momentum,
        })
    }

    /// The values, for a fused pass.
    pub(crate) fn values(&self) -> res_net::Norm {
        let [gamma, beta, mean, var] =
            [&self.gamma, &self.beta, &self.mean, &self.var].map(|p| p.value().clone());
        res_net::Norm { gamma, beta, mean, var }
    }

    /// Mixes the mean and variance of a batch into the running ones, as `mode` says.
    pub(crate) fn follow(&self, batch: &[Tensor; 2], mode: Mode) -> Result<()> {
        let running = [self.mean.value().clone(), self.var.value().clone()];
        write_running([&self.mean, &self.var], &running, batch, mode.batch_share(self.momentum))
    }

    /// The learned gain and shift.
    pub(crate) fn gamma_beta(&self) -> [&Param; 2] {
        [&self.gamma, &self.beta]
    }

    pub(crate) fn channel_major(&self, x: &Tensor, ctx: Ctx, relu: bool) -> Result<Tensor> {
        let (gamma, beta) = (self.gamma.get(ctx.grad), self.beta.get(ctx.grad));
        if ctx.mode.uses_batch_statistics() {
            if ctx.mode.batch_share(self.momentum) > 0. {
                let m = moments(x)?;
                self.follow(&[m.get(0)?, m.get(1)?], ctx.mode)?;
            }
            return batch_norm(x, gamma, beta, self.eps, relu);
        }
        let scale = (gamma / (self.var.value() + self.eps)?.sqrt()?)?;
        let shift = (beta - (self.mean.value() * &scale)?)?;
        affine(x, &scale, &shift, relu)
    }
}
