//! Actnorm inside a network (Glow, section 3.1), with the parameters and the initialisation that the flow layer shares.

use crate::core::{Ctx, Mode};
use crate::ops::batch_norm::moments;
use crate::ops::elementwise::affine;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{DType, Result, Tensor};

/// Actnorm inside a network.
///
/// ```text
/// y = (x + b) exp(k logs)
/// ```
///
/// with one b and one logs for each channel. In [`Mode::Init`] both are set so that every channel of this batch has mean 0
/// and variance 1.
pub(crate) struct NetActNorm {
    path: String,
    pub(crate) bias: Param,
    pub(crate) logs: Param,
    pub(crate) factor: f64,
}

impl NetActNorm {
    /// The smallest standard deviation that initialisation divides by.
    pub(crate) const FLOOR: f64 = 1e-4;

    /// Parameters `bias` and `logs` under `vb`, zero until a batch sets them; `factor` is k.
    pub(crate) fn new(channels: usize, factor: f64, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            path: vb.path().to_string(),
            bias: vb.get(channels, "bias", Init::Const(0.))?,
            logs: vb.get(channels, "logs", Init::Const(0.))?,
            factor,
        })
    }

    /// Sets the parameters from channel-major activations (C, ..) of the first batch.
    pub(crate) fn initialise(&self, channel_major: &Tensor) -> Result<()> {
        let m: Vec<Vec<f64>> = moments(channel_major)?.to_dtype(DType::F64)?.to_vec2()?;
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
        let set =
            |p: &Param, v: Vec<f64>| p.set(&Tensor::new(v, p.value().device())?.to_dtype(p.value().dtype())?);
        set(&self.bias, m[0].iter().map(|v| -v).collect())?;
        set(&self.logs, m[1].iter().map(|v| -v.sqrt().max(Self::FLOOR).ln() / self.factor).collect())
    }

    /// The map on channel-major activations, with the ReLU of the network's next step where `relu` asks for it.
    pub(crate) fn forward(&self, x: &Tensor, ctx: Ctx, relu: bool) -> Result<Tensor> {
        if ctx.mode == Mode::Init {
            self.initialise(x)?;
        }
        let scale = (self.logs.get(ctx.grad) * self.factor)?.exp()?;
        let shift = (self.bias.get(ctx.grad) * &scale)?;
        affine(x, &scale, &shift, relu)
    }
}
