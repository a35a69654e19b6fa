//! Elementwise affine maps with learned parameters: NICE's diagonal, and learned Gaussian priors as layers, for each channel
//! (Glow's top prior) or for each dimension of the latent.

use crate::core::{
    Bijection, Coding, Context, Ctx, LayerStats, Mode, Pieces, channel_shape, positions, same_per_example,
    sum_per_example,
};
use crate::nets::NetActNorm;
use crate::ops::batch_norm::moments;
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{DType, Result, Tensor, bail};

/// NICE's last layer (section 3.3), one scale for each dimension:
///
/// ```text
/// z = exp(s) x,     log-det = sum_d s_d
/// ```
///
/// **Shapes.** (B, D); parameter `logs` (D,).
pub struct Diagonal {
    logs: Param,
    /// The standard deviation that initialisation gives each z_d.
    std: Option<f64>,
}

impl Diagonal {
    /// Parameter `logs` of `dims` numbers under `vb`, zero at first.
    ///
    /// # Errors
    /// When `vb` has no such tensor.
    pub fn new(dims: usize, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self { logs: vb.get(dims, "logs", Init::Const(0.))?, std: None })
    }

    /// The same, whose first batch sets s so that each z_d has this standard deviation, s_d = log(std / std x_d), as actnorm does. With
    /// Adam s moves by the learning rate in an update, so that what it does not start with takes hundreds of updates. A dimension
    /// whose standard deviation is below [`ActNorm::FLOOR`](super::ActNorm::FLOOR), constant but for rounding, keeps s_d = 0.
    #[must_use]
    pub fn from_data(self, std: f64) -> Self {
        Self { std: Some(std), ..self }
    }

    /// Sets s by the moments of `x`.
    fn initialise(&self, x: &Tensor, std: f64) -> Result<()> {
        let moments = moments(&x.t()?.contiguous()?)?.to_dtype(DType::F64)?;
        let var: Vec<f64> = moments.get(1)?.to_vec1()?;
        let log_scale = |of_x: f64| if of_x < NetActNorm::FLOOR { 0. } else { (std / of_x).ln() };
        let logs: Vec<f64> = var.iter().map(|var| log_scale(var.sqrt())).collect();
        let like = self.logs.value();
        self.logs.set(&Tensor::new(logs, like.device())?.to_dtype(like.dtype())?)
    }
}

impl Bijection for Diagonal {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Channels(self.logs.value().clone()))
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        if let (Mode::Init, Some(std)) = (ctx.mode, self.std) {
            self.initialise(x, std)?;
        }
        let logs = self.logs.get(ctx.grad);
        Ok((x.broadcast_mul(&logs.exp()?)?, same_per_example(&logs.sum_all()?, x)?))
    }

    fn inverse(&self, z: &Tensor, _: Context) -> Result<Tensor> {
        z.broadcast_mul(&self.logs.value().neg()?.exp()?)
    }
}

/// Glow's learned top prior as a bijection: N(mean_c, exp(logs_c)^2) for each channel, optionally for each class,
///
/// ```text
/// (mean, logs) = (bias + emb[class]) exp(3 gain),     z = (x - mean) exp(-logs),     log-det = -H W sum_c logs_c
/// ```
///
/// With z ~ N(0, 1) this is the code's `prior`: a zero convolution applied to zeros is its bias and its gain alone, so the
/// kernel that the code multiplies with zero (9 (2C)^2 numbers that never change) is left out.
///
/// **Shapes.** (B, C, H, W); parameters `bias`, `gain` (2C,), and `emb` (classes, 2C) for a class-conditional model.
pub struct ChannelPrior {
    bias: Param,
    gain: Param,
    emb: Option<Param>,
}

impl ChannelPrior {
    /// N(0, 1) at first, for every class.
    ///
    /// # Errors
    /// When `vb` has no such tensors.
    pub fn new(channels: usize, classes: Option<usize>, vb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            bias: vb.get(2 * channels, "bias", Init::Const(0.))?,
            gain: vb.get(2 * channels, "gain", Init::Const(0.))?,
            emb: classes.map(|n| vb.get((n, 2 * channels), "emb", Init::Const(0.))).transpose()?,
        })
    }

    /// Mean and log standard deviation, each (1 or B, C, 1, 1).
    fn mean_logs(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let grad = ctx.grad;
        let mut h = self.bias.get(grad).unsqueeze(0)?;
        if let Some(emb) = &self.emb {
            let labels = labels(ctx, x.dim(0)?, emb.value().dim(0)?)?;
            h = h.broadcast_add(&emb.get(grad).index_select(labels, 0)?)?;
        }
        let h = h.broadcast_mul(&(self.gain.get(grad) * 3.)?.exp()?.unsqueeze(0)?)?;
        let h = h.reshape((h.dim(0)?, h.dim(1)?, 1, 1))?;
        let c = channel_shape(x)?[1];
        Ok((h.narrow(1, 0, c)?, h.narrow(1, c, c)?))
    }
}

impl Bijection for ChannelPrior {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn layer_stats(&self, x: &Tensor, ctx: Ctx) -> Result<LayerStats> {
        log_scales(x, &self.mean_logs(x, ctx.with_grad(false))?)
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        to_standard(x, &self.mean_logs(x, ctx)?)
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        from_standard(z, &self.mean_logs(z, Ctx::eval().with_context(context))?)
    }
}

/// A learned diagonal Gaussian over a whole latent as a bijection: N(mean_d, exp(logs_d)^2) for each dimension, optionally for
/// each class y,
///
/// ```text
/// z_d = (x_d - mean_{y,d}) exp(-logs_{y,d}),     log-det = -sum_d logs_{y,d}
/// ```
///
/// **Shapes.** (B, D); parameters `mean` and `logs`, each (classes, D), or (1, D) for a model without classes.
pub struct DiagonalPrior {
    mean: Param,
    logs: Param,
    classes: Option<usize>,
}

impl DiagonalPrior {
    /// N(0, 1) at first, for every class.
    ///
    /// # Errors
    /// When `vb` has no such tensors.
    pub fn new(dims: usize, classes: Option<usize>, vb: &ParamBuilder) -> Result<Self> {
        Self::about(Init::Const(0.), dims, classes, vb)
    }

    /// As [`DiagonalPrior::new`], about such means at first.
    pub(crate) fn about(mean: Init, dims: usize, classes: Option<usize>, vb: &ParamBuilder) -> Result<Self> {
        let shape = (classes.unwrap_or(1), dims);
        let (mean, logs) = (vb.get(shape, "mean", mean)?, vb.get(shape, "logs", Init::Const(0.))?);
        Ok(Self { mean, logs, classes })
    }

    /// Mean and log standard deviation of all classes, each (classes, D).
    pub(crate) fn all(&self, grad: bool) -> [&Tensor; 2] {
        [self.mean.get(grad), self.logs.get(grad)]
    }

    /// Mean and log standard deviation, each (1 or B, D).
    fn mean_logs(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let [mean, logs] = self.all(ctx.grad);
        let Some(classes) = self.classes else { return Ok((mean.clone(), logs.clone())) };
        let labels = labels(ctx, x.dim(0)?, classes)?;
        Ok((mean.index_select(labels, 0)?, logs.index_select(labels, 0)?))
    }

    /// The inverse in the graph of the parameters if `ctx.grad`.
    pub(crate) fn inverse_in(&self, z: &Tensor, ctx: Ctx) -> Result<Tensor> {
        from_standard(z, &self.mean_logs(z, ctx)?)
    }
}

impl Bijection for DiagonalPrior {
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(Coding::Elements(Pieces::Line))
    }

    fn layer_stats(&self, x: &Tensor, ctx: Ctx) -> Result<LayerStats> {
        log_scales(x, &self.mean_logs(x, ctx.with_grad(false))?)
    }

    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        to_standard(x, &self.mean_logs(x, ctx)?)
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        self.inverse_in(z, Ctx::eval().with_context(context))
    }
}

/// The class labels of `b` examples, each below `classes`.
fn labels<'a>(ctx: Ctx<'a>, b: usize, classes: usize) -> Result<&'a Tensor> {
    let Some(labels) = ctx.context.labels else {
        bail!("this model is class-conditional: give the class labels")
    };
    if labels.dims() != [b] {
        bail!("{} class labels were given for {b} examples", labels.elem_count());
    }
    // A training step on a GPU reads nothing back: the labels of a data set were checked when it was loaded.
    let training = matches!(ctx.mode, Mode::Train | Mode::Replay);
    if (labels.device().is_cpu() || !training)
        && let Some(bad) = labels.to_vec1::<u32>()?.iter().find(|&&l| l as usize >= classes)
    {
        bail!("class {bad} is out of range: this model has {classes} classes");
    }
    Ok(labels)
}

/// x of N(mean, exp(logs)^2) as z of N(0, 1), and the log-det, (B,). `mean` and `logs` have one number for each channel, or for
/// each dimension of (B, D), and one row or one for each example.
fn to_standard(x: &Tensor, (mean, logs): &(Tensor, Tensor)) -> Result<(Tensor, Tensor)> {
    let z = x.broadcast_sub(mean)?.broadcast_mul(&logs.neg()?.exp()?)?;
    let log_det = (sum_per_example(logs)? * -(positions(x)? as f64))?;
    Ok((z, log_det.broadcast_as(x.dim(0)?)?))
}

/// The inverse of [`to_standard`].
fn from_standard(z: &Tensor, (mean, logs): &(Tensor, Tensor)) -> Result<Tensor> {
    z.broadcast_mul(&logs.exp()?)?.broadcast_add(mean)
}

/// The log-scales of [`to_standard`], one for each element of x.
fn log_scales(x: &Tensor, (_, logs): &(Tensor, Tensor)) -> Result<LayerStats> {
    Ok(LayerStats::Elements(logs.neg()?.broadcast_as(x.shape())?.contiguous()?))
}
