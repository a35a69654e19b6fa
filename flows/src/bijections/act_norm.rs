//! Actnorm: an affine map for each channel that sets itself from the first minibatch (Glow, section 3.1).

use crate::core::{
    Bijection, Context, Ctx, Gradients, LayerStats, Memory, Mode, SavedState, positions, same_per_example,
};
use crate::ops::act_norm::{act_norm, act_norm_backward, act_norm_inverse};
use crate::ops::batch_norm::moments;
use crate::ops::elementwise::affine;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Result, Tensor};

/// ```text
/// z = (x + b) exp(k logs),     log-det = H W sum_c k logs_c
/// ```
///
/// with one b and one logs for each channel and k = 3, the released code's factor, which is a learning rate in disguise.
/// In [`Mode::Init`] b and logs are set so that every channel of this batch has mean 0 and variance 1.
///
/// **Shapes.** (B, D) or (B, C, H, W); parameters `bias`, `logs` of shape (C,).
///
/// A channel that is constant over the batch has no scale to learn from: its standard deviation is floored at
/// [`ActNorm::FLOOR`] and a warning names the layer.
pub struct ActNorm {
    path: String,
    bias: Param,
    logs: Param,
    factor: f64,
}

impl ActNorm {
    /// The smallest standard deviation that initialisation divides by. Dequantisation noise alone is above 1e-3 on the
    /// unit interval, so no channel of real data is near it.
    pub const FLOOR: f64 = 1e-4;

    /// Parameters `bias` and `logs` under `vb`, zero until a batch sets them.
    ///
    /// # Errors
    /// When `vb` has no such tensor.
    pub fn new(channels: usize, factor: f64, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            path: vb.path().to_string(),
            bias: vb.get(channels, "bias", Init::Const(0.))?,
            logs: vb.get(channels, "logs", Init::Const(0.))?,
            factor,
        })
    }

    /// The parameter b.
    pub(crate) fn bias(&self) -> &Param {
        &self.bias
    }

    /// The parameter logs.
    pub(crate) fn logs(&self) -> &Param {
        &self.logs
    }

    /// Sets the parameters from the mean and variance of each channel, (2, C).
    fn set_from(&self, moments: &Tensor) -> Result<()> {
        let m: Vec<Vec<f64>> = moments.to_dtype(candle_core::DType::F64)?.to_vec2()?;
        let floored = m[1].iter().filter(|v| v.sqrt() < Self::FLOOR).count();
        if floored > 0 {
            tracing::warn!(
                layer = %self.path,
                "{floored} of {} channels are constant over the first batch; actnorm takes {} for their standard \
                 deviation",
                m[1].len(),
                Self::FLOOR
            );
        }
        let logs: Vec<f64> = m[1].iter().map(|v| -v.sqrt().max(Self::FLOOR).ln() / self.factor).collect();
        let like = self.bias.value();
        let put = |p: &Param, v: Vec<f64>| -> Result<()> {
            p.set(&Tensor::new(v, like.device())?.to_dtype(like.dtype())?)
        };
        put(&self.bias, m[0].iter().map(|v| -v).collect())?;
        put(&self.logs, logs)
    }

    /// The map on channel-major activations inside a network, where no log-det is needed, with ReLU fused.
    pub(crate) fn channel_major(&self, x: &Tensor, ctx: Ctx, relu: bool) -> Result<Tensor> {
        if ctx.mode == Mode::Init {
            self.set_from(&moments(x)?)?;
        }
        let scale = (self.logs.get(ctx.grad) * self.factor)?.exp()?;
        let shift = (self.bias.get(ctx.grad) * &scale)?;
        affine(x, &scale, &shift, relu)
    }
}

impl Bijection for ActNorm {
    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Channels((self.logs.value() * self.factor)?))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if ctx.mode == Mode::Init {
            self.set_from(&moments(&x.transpose(0, 1)?.contiguous()?)?)?;
        }
        let logs = self.logs.get(ctx.grad);
        let z = act_norm(x, self.bias.get(ctx.grad), logs, self.factor)?;
        let log_det = (logs.sum_all()? * (self.factor * positions(x)? as f64))?;
        Ok((z, same_per_example(&log_det, x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        act_norm_inverse(z, self.bias.value(), self.logs.value(), self.factor)
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let (z, log_det) = self.forward(x, ctx.with_grad(false))?;
        let saved = if memory == Memory::Store { SavedState::new(x.clone()) } else { SavedState::nothing() };
        Ok((z, log_det, saved))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        (gz, grad_log_det): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let x = saved.take().map_or_else(|| self.inverse(z, ctx.context), Ok)?;
        let (gx, gb, gl) = act_norm_backward(z, gz, self.logs.value(), self.factor)?;
        grads.add(&self.bias, gb)?;
        let of_log_det = (grad_log_det.sum_all()? * (self.factor * positions(z)? as f64))?;
        grads.add(&self.logs, gl.broadcast_add(&of_log_det)?)?;
        Ok((x, gx))
    }
}
