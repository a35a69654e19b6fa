//! What networks see of the [`Context`](crate::Context) beside their input, and context networks.
//!
//! ```text
//! h = net([x, e(c)]),     e(c) = c,  (c - mean) / std,  a row of a table for each class,  or any network of it
//! ```
//!
//! A coupling or an autoregressive layer whose network sees c has log p(x | c), for the log-det and the inverse are those of x at a
//! fixed c. A context network e is shared: each layer's network has a [`WithFeatures`] around it with the same [`Features`], and
//! the gradients of e are the sum of those that reach it from all of them. e is computed once for each of these networks in each
//! pass. One that costs more than the flow itself is better trained before, and what it makes of c given as the context.
//!
//! **A context network of one's own** is any [`Net`]: its input is the context's features, its output what the layers' networks see.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use flows::nets::{Features, Mlp, Start, WithFeatures};
//! use flows::transforms::{Affine, Partition, Scale};
//! use flows::{Chain, Context, Flow, ParamStore, bijections::Coupling, priors::Gaussian};
//! use std::sync::Arc;
//!
//! let params = ParamStore::seeded(0, DType::F32, &Device::Cpu);
//! let vb = params.vb();
//! // Ten numbers c beside x, seen through a network of four outputs; a struct of your own with `impl Net` stands here as well.
//! let own = Mlp::new(10, &[32], 4, Start::Uniform(0.3), &vb.pp("context"))?;
//! let features = Arc::new(Features::given(&[10]).through(own, &[4]));
//! let mut chain = Chain::new();
//! for (i, swap) in [false, true].into_iter().enumerate() {
//!     let vb = vb.pp(format!("coupling{i}"));
//!     let net = |inputs, outputs| {
//!         let mlp = Mlp::new(inputs + features.channels_at(&[])?, &[16], outputs, Start::Identity, &vb)?;
//!         Ok(WithFeatures { net: mlp, features: Some(features.clone()) })
//!     };
//!     let affine = Box::new(Affine { scale: Scale::Exp, shift_first: false });
//!     chain.push(format!("coupling{i}"), Coupling::with_net(Partition::Halves { swap }, affine, 2, net)?);
//! }
//! let flow = Flow::new(chain, Gaussian, &[2]);
//! let (x, c) = (Tensor::zeros((5, 2), DType::F32, &Device::Cpu)?, Tensor::ones((5, 10), DType::F32, &Device::Cpu)?);
//! assert_eq!(flow.log_prob(&x, Context::features(&c))?.dims(), [5]); // log p(x | c), in nats
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::core::{Ctx, Gradients, Graph, Net, SavedState};
use crate::params::{Init, Param, ParamBuilder};
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

/// The context as the networks of a flow are given it; see the module.
pub struct Features {
    source: Source,
    net: Option<Box<dyn Net>>,
    /// The shape of what networks see, (E) or (E, H, W).
    shape: Vec<usize>,
}

/// What is taken of the context.
enum Source {
    /// Its features, of this shape.
    Features { shape: Vec<usize>, moments: Option<Moments> },
    /// Its labels, each a row of a table (classes, E).
    Labels(Param),
}

/// The mean and the standard deviation of each channel, (E,).
struct Moments {
    mean: Param,
    std: Param,
}

impl Features {
    /// The context's features as they are: (B, E) for the shape `[E]`, or maps (B, E, H, W) for `[E, H, W]`. Maps of E channels are
    /// taken for `[E]`, too, where they are as large as x.
    pub fn given(shape: &[usize]) -> Self {
        let source = Source::Features { shape: shape.to_vec(), moments: None };
        Self { source, net: None, shape: shape.to_vec() }
    }

    /// As [`Features::given`], less the mean of each channel and divided by its standard deviation: buffers `mean` and `std` under `vb`,
    /// 0 and 1 until [`standardize`](crate::Model::standardize) sets them.
    ///
    /// # Errors
    /// When the shape has no channels, or `vb` has no such tensors.
    pub fn standardized(shape: &[usize], vb: &ParamBuilder) -> Result<Self> {
        let Some(&channels) = shape.first() else { bail!("a context has the shape [E] or [E, H, W]") };
        let mean = vb.buffer(channels, "mean", Init::Const(0.))?;
        let moments = Some(Moments { mean, std: vb.buffer(channels, "std", Init::Const(1.))? });
        let source = Source::Features { shape: shape.to_vec(), moments };
        Ok(Self { source, net: None, shape: shape.to_vec() })
    }

    /// A learned embedding of the context's labels: `width` numbers for each class, `embedding` (classes, width) under `vb`, N(0, 1)
    /// at first.
    ///
    /// # Errors
    /// When `vb` has no such tensor.
    pub fn embedded(classes: usize, width: usize, vb: &ParamBuilder) -> Result<Self> {
        let table = vb.get((classes, width), "embedding", Init::Normal(1.))?;
        Ok(Self { source: Source::Labels(table), net: None, shape: vec![width] })
    }

    /// What `net` makes of it, of the shape `[E]` or `[E, H, W]` for each example.
    #[must_use]
    pub fn through(self, net: impl Net + 'static, shape: &[usize]) -> Self {
        Self { net: Some(Box::new(net)), shape: shape.to_vec(), ..self }
    }

    /// How many channels it has for a network of vectors (`sides` is empty) or of images with the `sides` `[H, W]`:
    ///
    /// - numbers for a network of images are the same at every pixel;
    /// - a map of larger sides is squeezed, (E, k H, k W) to (E k^2, H, W), and of one of smaller sides each pixel is repeated;
    /// - a map for a network of vectors is flattened.
    ///
    /// # Errors
    /// When the sides of a map are no multiple of `sides` or the other way round.
    pub fn channels_at(&self, sides: &[usize]) -> Result<usize> {
        Ok(match (self.shape.as_slice(), sides) {
            (&[channels, h, w], &[p, q]) => match fit([h, w], [p, q])? {
                Fit::Squeeze(k) => channels * k * k,
                Fit::Repeat(_) => channels,
            },
            (&[channels], _) => channels,
            (all, _) => all.iter().product(),
        })
    }

    /// Whether there is something to train in it.
    fn is_trained(&self) -> bool {
        self.net.is_some() || matches!(self.source, Source::Labels(_))
    }

    /// What a network sees beside x, in x's sides and dtype.
    fn beside(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let values = self.values(x, ctx)?;
        let values = self.net.as_ref().map_or_else(|| Ok(values.clone()), |net| net.forward(&values, ctx))?;
        match (values.dims(), x.dims()) {
            (_, [_, _]) => values.flatten_from(1),
            (&[b, e], &[_, _, h, w]) => values.reshape((b, e, 1, 1))?.expand((b, e, h, w))?.contiguous(),
            (&[b, e, h, w], &[_, _, p, q]) => match fit([h, w], [p, q])? {
                Fit::Squeeze(1) => Ok(values),
                Fit::Squeeze(k) => {
                    let blocks = values.reshape(&[b, e, p, k, q, k][..])?;
                    blocks.permute([0, 1, 3, 5, 2, 4])?.contiguous()?.reshape((b, e * k * k, p, q))
                }
                Fit::Repeat(k) => {
                    let each = values.reshape(&[b, e, h, 1, w, 1][..])?;
                    each.expand(&[b, e, h, k, w, k][..])?.contiguous()?.reshape((b, e, p, q))
                }
            },
            (context, x) => bail!("a context of shape {context:?} does not go with inputs of shape {x:?}"),
        }
    }

    /// What is taken of the context, in x's dtype.
    fn values(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        let (shape, moments) = match &self.source {
            Source::Labels(table) => {
                let Some(labels) = ctx.context.labels else {
                    bail!("this model is given class labels as its context: give one for each example")
                };
                return table.get(ctx.grad).index_select(labels, 0);
            }
            Source::Features { shape, moments } => (shape, moments),
        };
        let e = shape.first().copied().unwrap_or_default();
        let of =
            if let &[_, h, w] = shape.as_slice() { format!(" in maps of {h}x{w}") } else { String::new() };
        let Some(c) = ctx.context.features else {
            bail!("this network takes {e} context features of each example{of}: give `Context::features`")
        };
        let fits =
            c.rank() > shape.len() && c.dims()[1..=shape.len()] == shape[..] && c.dim(0)? == x.dim(0)?;
        if !fits {
            let (c, n) = (c.shape(), x.dim(0)?);
            bail!("this network takes {e} context features of each example{of}, got {c:?} for {n} examples");
        }
        let c = c.to_dtype(x.dtype())?;
        let Some(Moments { mean, std }) = moments else { return Ok(c) };
        let column = |p: &Param| p.value().reshape([&[1, e][..], &vec![1; c.rank() - 2]].concat());
        c.broadcast_sub(&column(mean)?)?.broadcast_div(&column(std)?)
    }
}

/// Sets the mean and the standard deviation (E,) of [`Features::standardized`] from the features of the training data, (N, E) or
/// (N, E, H, W) in f32, whose sums are in f64. A channel that does not vary is only less its mean.
///
/// # Errors
/// When they have other channels, or a channel is not finite: the message names it.
pub(crate) fn fit_moments(mean: &Param, std: &Param, c: &Tensor) -> Result<()> {
    let channels = mean.value().dim(0)?;
    if c.rank() < 2 || c.dim(0)? == 0 || c.dim(1)? != channels {
        bail!(
            "this model's context has {channels} features, and that of the training data the shape {:?}",
            c.shape()
        );
    }
    let rows = c.flatten_from(1)?.reshape((c.dim(0)?, channels, c.dims()[2..].iter().product::<usize>()))?;
    let (mut means, mut stds) = (vec![], vec![]);
    for channel in 0..channels {
        let values: Vec<f32> = rows.narrow(1, channel, 1)?.flatten_all()?.to_vec1()?;
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let std = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        if !std.is_finite() {
            bail!(
                "column {channel} of the context holds numbers that are not finite: correct or remove them"
            );
        }
        means.push(mean);
        // What is left of a constant is rounding.
        stds.push(if std > f64::from(f32::EPSILON) * mean.abs() { std } else { 1. });
    }
    for (param, values) in [(mean, means), (std, stds)] {
        let like = param.value();
        param.set(
            &Tensor::from_vec(values, channels, &Device::Cpu)?
                .to_dtype(like.dtype())?
                .to_device(like.device())?,
        )?;
    }
    Ok(())
}

/// How a map is brought to the sides of an image.
enum Fit {
    /// k x k pixels become channels.
    Squeeze(usize),
    /// Each pixel becomes k x k.
    Repeat(usize),
}

fn fit([h, w]: [usize; 2], [p, q]: [usize; 2]) -> Result<Fit> {
    let multiple = |[a, b]: [usize; 2], [c, d]: [usize; 2]| {
        (c > 0 && d > 0 && a % c == 0 && b % d == 0 && a / c == b / d).then(|| a / c)
    };
    match (multiple([h, w], [p, q]), multiple([p, q], [h, w])) {
        (Some(k), _) => Ok(Fit::Squeeze(k)),
        (_, Some(k)) => Ok(Fit::Repeat(k)),
        _ => bail!("a context of {h}x{w} does not fit on {p}x{q}: one must be a multiple of the other"),
    }
}

/// A network that sees the features of the context as further channels behind those of its input; see the module.
///
/// **Shapes.** x (B, C, ..); the network takes C channels and those that [`Features::channels_at`] says. Without `features` it is the
/// network alone.
///
/// **Errors** where the pass is given no such context, or one of another shape.
pub struct WithFeatures<N> {
    /// The network.
    pub net: N,
    /// What it sees beside x.
    pub features: Option<Arc<Features>>,
}

/// What a pass saves.
struct Pass {
    channels: usize,
    net: SavedState,
    /// The features on candle's graph, where there is something to train in them.
    graph: Option<Graph>,
}

impl<N: Net> Net for WithFeatures<N> {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<Tensor> {
        match &self.features {
            None => self.net.forward(x, ctx),
            Some(features) => self.net.forward(&Tensor::cat(&[x, &features.beside(x, ctx)?], 1)?, ctx),
        }
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, SavedState)> {
        let Some(features) = &self.features else { return self.net.forward_saved(x, ctx) };
        let mut beside = None;
        let graph = match features.is_trained() {
            true => Some(Graph::new(&[], |_| {
                let values = features.beside(x, ctx.with_grad(true))?;
                beside = Some(values.detach());
                Ok(vec![values])
            })?),
            false => None,
        };
        let beside = beside.map_or_else(|| features.beside(x, ctx), Ok)?.detach();
        let (y, net) = self.net.forward_saved(&Tensor::cat(&[x, &beside], 1)?, ctx)?;
        Ok((y, SavedState::new(Pass { channels: x.dim(1)?, net, graph })))
    }

    fn backward(&self, saved: SavedState, gy: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        if self.features.is_none() {
            return self.net.backward(saved, gy, grads);
        }
        let Pass { channels, net, graph } = saved.take().expect("saved by forward_saved");
        let g = self.net.backward(net, gy, grads)?;
        if let Some(graph) = graph {
            graph.backward(&[&g.narrow(1, channels, g.dim(1)? - channels)?], grads)?;
        }
        g.narrow(1, 0, channels)?.contiguous()
    }
}
