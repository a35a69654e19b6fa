//! A flow: a bijection and a prior.

use crate::core::{self, Bijection, Context, Ctx, Drift, Gradients, Graph, Memory, Mode, inspect};
use crate::ops::autodiff::with_gradient;
use crate::priors::Prior;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use rand::Rng;
use std::collections::BTreeSet;

/// A normalizing flow: a bijection from data to latents, and a prior of the latents.
///
/// ```text
/// log p(x) = log p_Z(f(x)) + log |det df/dx|
/// ```
///
/// Images enter as pixel values with their noise, x in [0, 2^bits): preprocessing is the first layer of f. Hence
/// **bits/dim = -log p(x) / (D ln 2)** and nothing else. Nothing clamps the inverse: samples may lie outside of that range.
///
/// # Example
/// The tutorial's own: z uniform on [0, 1] and x = 2 z + 1 has density 1/2 on [1, 3]. Here with a Gaussian z,
/// p(x) = N((x - 1)/2) / 2.
///
/// ```
/// use flows::{Flow, bijections::Rescale, priors::Gaussian};
/// use candle_core::{Device, Tensor};
///
/// let flow = Flow::new(Rescale::new(0.5, -0.5)?, Gaussian, &[1]);
/// let x = Tensor::new(&[[1f64], [3.]], &Device::Cpu)?;
/// let p = flow.log_prob(&x, None)?.to_vec1::<f64>()?;
/// let normal = |z: f64| -0.5 * z * z - 0.5 * (2. * std::f64::consts::PI).ln();
/// assert!((p[0] - (normal(0.) - 2f64.ln())).abs() < 1e-12);
/// assert!((p[1] - (normal(1.) - 2f64.ln())).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Flow {
    bijection: Box<dyn Bijection>,
    prior: Box<dyn Prior>,
    shape: Vec<usize>,
}

/// The terms of a log-likelihood, each (B,), in nats.
pub struct LogProbTerms {
    /// log p_Z(z).
    pub prior: Tensor,
    /// log |det dz/dx|.
    pub log_det: Tensor,
    /// The latent, (B, D).
    pub z: Tensor,
}

impl LogProbTerms {
    /// log p(x) = prior + log-det, (B,), in nats.
    ///
    /// # Errors
    /// When the two terms have different shapes.
    pub fn log_prob(&self) -> Result<Tensor> {
        &self.prior + &self.log_det
    }
}

impl Flow {
    /// `shape` is that of one example: `[D]` or `[C, H, W]`.
    pub fn new(bijection: impl Bijection + 'static, prior: impl Prior + 'static, shape: &[usize]) -> Self {
        Self::of(Box::new(bijection), Box::new(prior), shape)
    }

    /// As [`Flow::new`].
    pub(crate) fn of(bijection: Box<dyn Bijection>, prior: Box<dyn Prior>, shape: &[usize]) -> Self {
        Self { bijection, prior, shape: shape.to_vec() }
    }

    /// The shape of one example.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The dimensions of one example.
    pub fn dims(&self) -> usize {
        self.shape.iter().product()
    }

    /// The prior.
    pub fn prior(&self) -> &dyn Prior {
        self.prior.as_ref()
    }

    /// The bijection.
    pub fn bijection(&self) -> &dyn Bijection {
        self.bijection.as_ref()
    }

    /// log p_Z(z), log |det df/dx| and z of one pass in the given context.
    ///
    /// # Errors
    /// For an x of another shape, and those of a layer.
    pub fn terms(&self, x: &Tensor, ctx: Ctx) -> Result<LogProbTerms> {
        self.check(x)?;
        let (z, log_det) = core::forward(self.bijection(), x, ctx)?;
        let z = z.flatten_from(1)?;
        Ok(LogProbTerms { prior: self.prior.log_prob(&z, ctx)?, log_det, z })
    }

    /// Runs a training pass and its backward pass, and returns the loss outside any graph. `loss` makes a scalar of log p(x),
    /// shape (B,), by differentiable operations; `memory` says whether activations are stored or reconstructed. Parameters'
    /// gradients are added to `grads`.
    ///
    /// ```text
    /// d loss / d theta,     loss = loss(log p_Z(f(x)) + log |det df/dx|)
    /// ```
    ///
    /// # Errors
    /// For an x of another shape, or an error of `loss`, before any gradient is computed.
    pub fn gradients(
        &self,
        x: &Tensor,
        ctx: Ctx,
        memory: Memory,
        grads: &mut Gradients,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.check(x)?;
        let (z, log_det, saved) = self.bijection.forward_saved(x, ctx, memory)?;
        // The end of the pass, where prior and log-det meet, is on candle's graph.
        let (leaf_z, leaf_log_det) = (Var::from_tensor(&z.detach())?, Var::from_tensor(&log_det.detach())?);
        let log_prob =
            (self.prior.log_prob(&leaf_z.flatten_from(1)?, ctx.with_grad(true))? + leaf_log_det.as_tensor())?;
        let value = loss(&log_prob)?;
        let mut store = value.backward()?;
        let mut of = |v: &Var| store.remove(v).map_or_else(|| v.zeros_like(), |g| Ok(g.detach()));
        let (gz, grad_log_det) = (of(&leaf_z)?, of(&leaf_log_det)?);
        drop((leaf_z, leaf_log_det, log_prob));
        grads.add_all(&store)?;
        drop(store);
        self.bijection.backward(&z, saved, (&gz, &grad_log_det), ctx, grads)?;
        Ok(value.detach())
    }

    /// log p(x) (B,) in nats, and its gradient by x, of x's shape, outside any graph:
    ///
    /// ```text
    /// d log p(x) / dx = J^T d log p_Z(z) / dz + d log|det J| / dx
    /// ```
    ///
    /// the direction in which an example becomes more likely, by the layers' own backward.
    ///
    /// # Errors
    /// For an x of another shape, and those of a layer.
    pub fn score<'a>(&self, x: &Tensor, context: impl Into<Context<'a>>) -> Result<(Tensor, Tensor)> {
        self.check(x)?;
        let (ctx, mut none) = (Ctx::eval().with_context(context), Gradients::default());
        let (z, log_det, saved) = self.bijection.forward_saved(x, ctx, Memory::Store)?;
        let (graph, [prior]) = Graph::of(&z, |z| Ok([self.prior.log_prob(&z.flatten_from(1)?, ctx)?]))?;
        let one = log_det.ones_like()?.detach();
        let gz = graph.backward(&[&one], &mut none)?.swap_remove(0);
        let (_, gx) = self.bijection.backward(&z, saved, (&gz, &one), ctx, &mut none)?;
        Ok(((prior + log_det.detach())?, gx.detach()))
    }

    /// How far inputs that [`Memory::Recompute`] reconstructs are from the true ones, on the batch x; nothing is written.
    /// [`Flow::store`] takes the layers over `bound`.
    ///
    /// # Errors
    /// For an x of another shape, and those of a layer.
    pub fn drift(&self, x: &Tensor, ctx: Ctx, bound: f64) -> Result<Drift> {
        self.check(x)?;
        Drift::measure(self.bijection(), x, ctx, bound)
    }

    /// Makes [`Memory::Recompute`] store the layers of these paths, and reconstruct the inputs of all others.
    pub fn store(&self, paths: &BTreeSet<String>) {
        inspect::store(self.bijection(), "", paths);
    }

    /// log p(x) of each example in nats, (B,). `context` is what a conditional model is given: `None`, or
    /// `Some(&labels)` where the model has classes.
    ///
    /// # Errors
    /// As [`Flow::terms`]; and when a class-conditional model is given no labels.
    pub fn log_prob<'a>(&self, x: &Tensor, context: impl Into<Context<'a>>) -> Result<Tensor> {
        self.terms(x, Ctx::eval().with_context(context))?.log_prob()
    }

    /// -log p(x) / (D ln 2) of each example, (B,).
    ///
    /// # Errors
    /// As [`Flow::log_prob`].
    pub fn bits_per_dim<'a>(&self, x: &Tensor, context: impl Into<Context<'a>>) -> Result<Tensor> {
        self.log_prob(x, context)? * (-1. / (self.dims() as f64 * std::f64::consts::LN_2))
    }

    /// The latent z = f(x), (B, D).
    ///
    /// # Errors
    /// As [`Flow::log_prob`].
    pub fn encode<'a>(&self, x: &Tensor, context: impl Into<Context<'a>>) -> Result<Tensor> {
        Ok(self.terms(x, Ctx::eval().with_context(context))?.z)
    }

    /// x from a latent z, (B, D): the exact inverse of [`Flow::encode`].
    ///
    /// # Errors
    /// When z has another number of dimensions or no example, and those of a layer.
    pub fn decode<'a>(&self, z: &Tensor, context: impl Into<Context<'a>>) -> Result<Tensor> {
        let (b, d) = z.dims2()?;
        if d != self.dims() {
            bail!("this model's latent has {} dimensions, got {d}", self.dims());
        }
        if b == 0 {
            bail!("there is no latent to decode: give at least one");
        }
        let x = core::inverse(self.bijection(), z, context.into())?;
        x.reshape([&[b], self.shape()].concat())
    }

    /// `n` samples, x = f^-1(z) with z of the prior at a temperature, which multiplies the prior's scale (see [`Prior`]).
    ///
    /// # Errors
    /// When the temperature is negative or not finite, and those of [`Flow::decode`].
    pub fn sample<'a>(
        &self,
        n: usize,
        temperature: f64,
        rng: &mut impl Rng,
        context: impl Into<Context<'a>>,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        let context = context.into();
        self.decode(&self.draw(n, temperature, rng, context, to)?, context)
    }

    /// `n` samples x, of the shape of examples, and log q(x) (n,) in nats, outside any graph.
    ///
    /// # Errors
    /// As [`Flow::sample`].
    pub fn sample_with_log_prob<'a>(
        &self,
        n: usize,
        rng: &mut impl Rng,
        context: impl Into<Context<'a>>,
        to: (DType, &Device),
    ) -> Result<(Tensor, Tensor)> {
        let ctx = Ctx::eval().with_context(context);
        let z = self.draw(n, 1., rng, ctx.context, to)?;
        let x = self.decode(&z, ctx.context)?;
        let (_, log_det) = core::forward(self.bijection(), &x, ctx)?;
        Ok((x, (self.prior.log_prob(&z, ctx)? + log_det)?))
    }

    /// As [`Flow::sample_with_log_prob`], on candle's graph: both can be differentiated by the parameters of the flow and of its
    /// prior, for a loss of samples such as [`Flow::reverse_kl`].
    ///
    /// ```text
    /// x = f^-1(z),  z ~ p_Z fixed,     dx/dtheta = -J^-1 df/dtheta,     J = df/dx
    /// ```
    ///
    /// which is the derivative of f(x) = z (the implicit function theorem). So a layer needs no inverse that is differentiable by its
    /// parameters: J^-1 is the derivative of the inverse by z, and df/dtheta that of the forward pass. Both are of the evaluated
    /// flow: batch norm has its running statistics. Activations are stored; the cost is that of an inverse and two forward passes
    /// with their gradients.
    ///
    /// # Errors
    /// As [`Flow::sample`], and when the prior's samples cannot be differentiated by its parameters.
    pub fn rsample_with_log_prob<'a>(
        &self,
        n: usize,
        rng: &mut impl Rng,
        context: impl Into<Context<'a>>,
        to: (DType, &Device),
    ) -> Result<(Tensor, Tensor)> {
        let ctx = Ctx::eval().with_context(context).with_grad(true);
        if n == 0 {
            bail!("there is nothing to differentiate in no samples: ask for at least one");
        }
        let z = self.prior.sample((n, self.dims()), 1., rng, ctx, to)?;
        let (inverse, [x]) = Graph::of(&z, |z| Ok([self.decode(z, ctx.context)?]))?;
        // Zero, with the derivative of z - f(x) by all parameters at this x.
        let step = (&z - self.bijection.forward(&x, ctx)?.0.flatten_from(1)?)?;
        let carrier = (&x + (&step - step.detach())?.reshape(x.shape())?)?;
        let x = with_gradient(&carrier, move |gx| {
            let gz = inverse.backward(&[gx], &mut Gradients::default())?.swap_remove(0);
            gz.reshape(gx.shape())
        })?;
        let (_, log_det) = self.bijection.forward(&x, ctx)?;
        let log_prob = (self.prior.log_prob(&z, ctx)? + log_det)?;
        Ok((x, log_prob))
    }

    /// `n` latents of the prior at a temperature, (n, D).
    ///
    /// # Errors
    /// When the temperature is negative or not finite, and those of the prior.
    pub(crate) fn draw(
        &self,
        n: usize,
        temperature: f64,
        rng: &mut impl Rng,
        context: Context,
        to: (DType, &Device),
    ) -> Result<Tensor> {
        if !(temperature >= 0. && temperature.is_finite()) {
            bail!("a temperature is a number from 0 on, got {temperature}");
        }
        self.prior.sample((n, self.dims()), temperature, rng, Ctx::eval().with_context(context), to)
    }

    /// Data-dependent initialisation from one batch: actnorm, running statistics, whitening.
    ///
    /// # Errors
    /// As [`Flow::log_prob`].
    pub fn init<'a>(&self, x: &Tensor, context: impl Into<Context<'a>>) -> Result<()> {
        self.terms(x, Ctx::init().with_context(context)).map(|_| ())
    }

    /// Measures the running statistics of batch norm for the parameters as they are, from several batches: each of them becomes
    ///
    /// ```text
    /// (1 - 1 / k) running + batch / k,     in the k-th call, from k = 1 on: the mean over all batches
    /// ```
    ///
    /// Needed where parameters were replaced: the running statistics of training are those of the weights of the last updates, and
    /// averaged weights ([`Ema`](crate::optim::Ema)) have others. PyTorch calls it `update_bn`. Layers without running statistics do
    /// not change.
    ///
    /// # Errors
    /// When k is 0, and as [`Flow::log_prob`].
    pub fn measure<'a>(&self, x: &Tensor, context: impl Into<Context<'a>>, k: u32) -> Result<()> {
        if k == 0 {
            bail!("the batches of a measurement are counted from 1");
        }
        let ctx = Ctx { mode: Mode::Measure(k), context: context.into(), grad: false };
        self.terms(x, ctx).map(|_| ())
    }

    /// The path of the first layer whose output is not finite on this batch, or `None`.
    ///
    /// # Errors
    /// Those of a layer.
    pub fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<Option<String>> {
        match inspect::find_non_finite(self.bijection(), x, ctx)? {
            Err(path) => Ok(Some(path)),
            Ok(z) => {
                let p = self.prior.log_prob(&z.flatten_from(1)?, ctx)?;
                Ok((!crate::params::is_finite(&p)?).then(|| "prior".to_string()))
            }
        }
    }

    pub(crate) fn check(&self, x: &Tensor) -> Result<()> {
        if x.rank() != self.shape.len() + 1 || x.dims()[1..] != self.shape {
            bail!("this model takes (B, {:?}), got {:?}", self.shape, x.shape());
        }
        if x.dim(0)? == 0 {
            bail!("a batch of no examples has no log-likelihood: give at least one");
        }
        Ok(())
    }
}
