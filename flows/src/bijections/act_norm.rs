//! Actnorm: an affine map for each channel that sets itself from the first minibatch (Glow, section 3.1).

use crate::core::{
    Bijection, Coding, Context, Ctx, Gradients, LayerStats, Memory, Mode, Pieces, SavedState, positions,
    same_per_example,
};
use crate::nets::NetActNorm;
use crate::ops::act_norm::{act_norm, act_norm_backward, act_norm_inverse};
use crate::ops::log_det::scaled_sum;
use crate::params::ParamBuilder;
use candle_core::{Result, Tensor};

/// Actnorm: scales and shifts each channel; the first batch sets both.
///
/// ```text
/// z = (x + b) exp(k logs),     log-det = H W sum_c k logs_c
/// ```
///
/// with one b and one logs for each channel. The released code has k = 3, which scales the learning rate of logs.
/// In [`Mode::Init`] b and logs are set so that every channel of this batch has mean 0 and variance 1.
///
/// **Shapes.** (B, D) or (B, C, H, W); parameters `bias`, `logs` of shape (C,).
///
/// A channel that is constant over the batch has no scale to learn from: its standard deviation is floored at
/// [`ActNorm::FLOOR`] and a warning names the layer.
pub struct ActNorm(NetActNorm);

impl ActNorm {
    /// The smallest standard deviation that initialisation divides by. Dequantisation noise alone is above 1e-3 on the
    /// unit interval, so no channel of real data is near it.
    pub const FLOOR: f64 = NetActNorm::FLOOR;

    /// Parameters `bias` and `logs` under `vb`, zero until a batch sets them; `factor` is k.
    ///
    /// # Errors
    /// When `vb` has no such tensor.
    pub fn new(channels: usize, factor: f64, vb: &ParamBuilder) -> Result<Self> {
        NetActNorm::new(channels, factor, vb).map(Self)
    }
}

impl Bijection for ActNorm {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Channels((self.0.logs.value() * self.0.factor)?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let NetActNorm { bias, logs, factor, .. } = &self.0;
        if ctx.mode == Mode::Init {
            self.0.initialise(&x.transpose(0, 1)?.contiguous()?)?;
        }
        let z = act_norm(x, bias.get(ctx.grad), logs.get(ctx.grad), *factor)?;
        let log_det = scaled_sum(logs.get(ctx.grad), factor * positions(x)? as f64)?;
        Ok((z, same_per_example(&log_det, x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        act_norm_inverse(z, self.0.bias.value(), self.0.logs.value(), self.0.factor)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let (z, log_det) = self.forward(x, ctx.with_grad(false))?;
        Ok((z, log_det, SavedState::if_stored(memory, x.clone())))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        (gz, grad_log_det): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let NetActNorm { bias, logs, factor, .. } = &self.0;
        let x = saved.take().map_or_else(|| self.inverse(z, ctx.context), Ok)?;
        let (gx, grad_bias, grad_logs) = act_norm_backward(z, gz, logs.value(), *factor)?;
        grads.add(bias, grad_bias)?;
        let of_log_det = scaled_sum(grad_log_det, factor * positions(z)? as f64)?;
        grads.add(logs, grad_logs.broadcast_add(&of_log_det)?)?;
        Ok((x, gx))
    }
}
