//! RealNVP's batch norm as a flow layer (section 3.7 and appendix E).

use crate::core::{
    Bijection, Coding, Context, Ctx, Gradients, Graph, LayerStats, Memory, Mode, Pieces, SavedState,
    backward_by_graph, channel_shape, forward_saved_by_graph, positions, same_per_example,
};
use crate::nets::{RunningMoments, mix};
use crate::params::ParamBuilder;
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

/// Batch norm: normalises each channel to mean 0 and variance 1.
///
/// ```text
/// z = (x - mean_c) / sqrt(var_c + eps),     log-det = -(H W / 2) sum_c log(var_c + eps)
/// ```
///
/// Training uses the batch's mean and variance (or, with [`BatchStatistics::Running`], appendix E's running averages) and
/// moves the running statistics by `momentum`; evaluation uses the running ones, and its inverse is exact.
///
/// **Shapes.** (B, D) or (B, C, H, W); buffers `mean`, `var` (C,).
pub struct BatchNorm {
    running: RunningMoments,
    eps: f64,
    statistics: BatchStatistics,
}

/// What a pass with batch statistics saves: the running averages before it updated them, and what it normalised with.
struct Statistics {
    running: [Tensor; 2],
    used: [Tensor; 2],
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
        Ok(Self { running: RunningMoments::new(channels, momentum, vb)?, eps, statistics })
    }

    /// Mean and variance of each channel of the batch, in the graph.
    fn of_batch(x: &Tensor) -> Result<[Tensor; 2]> {
        let rows = x.transpose(0, 1)?.flatten_from(1)?;
        let mean = rows.mean_keepdim(1)?;
        let var = rows.broadcast_sub(&mean)?.sqr()?.mean(1)?;
        Ok([mean.squeeze(1)?, var])
    }

    /// z and log-det from a given mean and variance of each channel.
    fn normalise(&self, x: &Tensor, mean: &Tensor, var: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = channel_shape(x)?;
        let var = (var + self.eps)?;
        let z =
            x.broadcast_sub(&mean.reshape(shape.as_slice())?)?.broadcast_div(&var.sqrt()?.reshape(shape)?)?;
        let log_det = (var.log()?.sum_all()? * (-0.5 * positions(x)? as f64))?;
        Ok((z, same_per_example(&log_det, x)?))
    }

    /// x from z, for a given mean and variance of each channel.
    fn denormalise(&self, z: &Tensor, mean: &Tensor, var: &Tensor) -> Result<Tensor> {
        let shape = channel_shape(z)?;
        let std = (var + self.eps)?.sqrt()?;
        z.broadcast_mul(&std.reshape(shape.as_slice())?)?.broadcast_add(&mean.reshape(shape)?)
    }

    /// A copy of the running averages, which later updates do not change.
    fn copy_running(&self) -> Result<[Tensor; 2]> {
        Ok([self.running.mean.value().copy()?, self.running.var.value().copy()?])
    }

    /// A pass with batch statistics, given the running averages before it.
    fn run(&self, x: &Tensor, ctx: Ctx, running: [Tensor; 2]) -> Result<(Tensor, Tensor, Statistics)> {
        let batch = Self::of_batch(x)?;
        let used = match self.statistics {
            // In initialisation and measurement the running averages are those of other parameters, so the batch's own are used.
            BatchStatistics::Running if matches!(ctx.mode, Mode::Train | Mode::Replay) => {
                mix(&running, &batch, self.running.momentum)?
            }
            _ => batch.clone(),
        };
        // Initialisation sets the running statistics to the first batch's, so that evaluation makes sense from the start.
        self.running.update(&Tensor::stack(&batch, 0)?.detach(), ctx.mode)?;
        let (z, log_det) = self.normalise(x, &used[0], &used[1])?;
        Ok((z, log_det, Statistics { running, used: used.map(|t| t.detach()) }))
    }
}

impl Bijection for BatchNorm {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Statistics(((self.running.var.value() + self.eps)?.log()? * -0.5)?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if ctx.mode.uses_batch_statistics() {
            let (z, log_det, _) = self.run(x, ctx, self.copy_running()?)?;
            return Ok((z, log_det));
        }
        self.normalise(x, self.running.mean.value(), self.running.var.value())
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        self.denormalise(z, self.running.mean.value(), self.running.var.value())
    }

    /// Under [`Memory::Recompute`] the statistics are kept: the inverse of a training pass needs the batch's.
    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        if memory == Memory::Store || !ctx.mode.uses_batch_statistics() {
            return forward_saved_by_graph(self, x, ctx, memory);
        }
        let (z, log_det, statistics) = self.run(x, ctx.with_grad(false), self.copy_running()?)?;
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
        match saved.get::<Statistics>() {
            Some(Statistics { used: [mean, var], .. }) => self.denormalise(z, mean, var),
            None => self.inverse(z, ctx.context),
        }
    }
}
