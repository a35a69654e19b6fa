//! The one abstraction: everything is a [`Bijection`], a tensor in, a tensor and its log-det out.
//!
//! Change of variables (the tutorial's first page): for z = f(x) with prior p_Z,
//!
//! ```text
//! log p(x) = log p_Z(f(x)) + log |det df/dx|
//! ```
//!
//! so a flow needs three things of each layer: f, its inverse, and the log-det. Preprocessing and learned priors are
//! layers, too, which is why no correction term appears anywhere else.
//!
//! A pass says who may write and who keeps a graph: [`Ctx`]. The inverse has neither, for only the evaluated flow has one.

use candle_core::{Result, Tensor, bail};

/// What a pass may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Running statistics, nothing written.
    Eval,
    /// Batch statistics; running statistics are updated.
    Train,
    /// Data-dependent initialisation: actnorm sets itself from this batch.
    Init,
    /// As `Train`, yet nothing is written: for a pass that is repeated.
    Replay,
}

impl Mode {
    /// Whether layers with batch statistics use the batch's own.
    pub fn uses_batch_statistics(self) -> bool {
        !matches!(self, Mode::Eval)
    }
}

/// The context of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// Who may write.
    pub mode: Mode,
    /// Class labels, u32 of shape (B,), for class-conditional models.
    pub cond: Option<&'a Tensor>,
    /// Whether parameters are leaves of a graph. It is apart from `mode`: laws differentiate the evaluated flow, and an
    /// evaluation must not keep a graph that nobody walks.
    pub grad: bool,
}

impl<'a> Ctx<'a> {
    /// Evaluation without a graph.
    pub fn eval() -> Self {
        Self { mode: Mode::Eval, cond: None, grad: false }
    }

    /// A training pass with a graph.
    pub fn train() -> Self {
        Self { mode: Mode::Train, cond: None, grad: true }
    }

    /// Data-dependent initialisation, without a graph.
    pub fn init() -> Self {
        Self { mode: Mode::Init, cond: None, grad: false }
    }

    /// The same pass with class labels.
    pub fn with_cond(self, cond: Option<&'a Tensor>) -> Self {
        Self { cond, ..self }
    }

    /// The same pass with or without a graph.
    pub fn with_grad(self, grad: bool) -> Self {
        Self { grad, ..self }
    }
}

/// An invertible map with a tractable log-det.
///
/// # Contract
/// - `forward(x)` gives z = f(x) and log|det dz/dx| of shape (B,), one number an example, in nats.
/// - `inverse(z)` undoes the *evaluated* forward: `inverse(forward(x, Eval).0) == x`.
/// - Shapes: dimension 0 is the batch, dimension 1 the features or channels; (B, D) or (B, C, H, W) as the layer says.
/// - Errors: a wrong shape is an error that says which size was met and which was needed.
pub trait Bijection: Send + Sync {
    /// z and log|det dz/dx|, shape (B,).
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)>;

    /// x with forward(x) = z in [`Mode::Eval`].
    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor>;

    /// Where a pass first produces a NaN or an infinity: the path of the innermost layer, or `None`.
    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        let (z, log_det) = self.forward(x, ctx)?;
        let bad = !(crate::params::is_finite(&z)? && crate::params::is_finite(&log_det)?);
        Ok(if bad { NonFinite::At(String::new()) } else { NonFinite::Clean(z) })
    }
}

/// The outcome of [`Bijection::find_non_finite`].
pub enum NonFinite {
    /// All finite; the output, for the next layer.
    Clean(Tensor),
    /// The path of the layer.
    At(String),
}

/// Layers in order: z = f_n(... f_1(x)), log-dets added.
#[derive(Default)]
pub struct Chain {
    links: Vec<(String, Box<dyn Bijection>)>,
}

impl Chain {
    /// The identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer; `name` is used in messages.
    pub fn push(&mut self, name: impl Into<String>, link: impl Bijection + 'static) {
        self.links.push((name.into(), Box::new(link)));
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether this is the identity.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The layers with their names.
    pub fn links(&self) -> impl Iterator<Item = (&str, &dyn Bijection)> {
        self.links.iter().map(|(n, b)| (n.as_str(), b.as_ref()))
    }
}

impl Bijection for Chain {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let mut h = x.clone();
        let mut sum = zeros_per_example(x)?;
        for (name, link) in &self.links {
            let (z, log_det) = link.forward(&h, ctx).map_err(|e| e.context(name.clone()))?;
            h = z;
            sum = (sum + log_det)?;
        }
        Ok((h, sum))
    }

    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        let mut h = z.clone();
        for (name, link) in self.links.iter().rev() {
            h = link.inverse(&h, cond).map_err(|e| e.context(name.clone()))?;
        }
        Ok(h)
    }

    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        let mut h = x.clone();
        for (name, link) in &self.links {
            match link.find_non_finite(&h, ctx)? {
                NonFinite::Clean(z) => h = z,
                NonFinite::At(inner) => return Ok(NonFinite::At(join(name, &inner))),
            }
        }
        Ok(NonFinite::Clean(h))
    }
}

pub(crate) fn join(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        (o, "") => o.to_string(),
        ("", i) => i.to_string(),
        (o, i) => format!("{o}.{i}"),
    }
}

impl Bijection for Box<dyn Bijection> {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        self.as_ref().forward(x, ctx)
    }

    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        self.as_ref().inverse(z, cond)
    }

    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        self.as_ref().find_non_finite(x, ctx)
    }
}

/// A log-det of zero for each example of `x`.
pub fn zeros_per_example(x: &Tensor) -> Result<Tensor> {
    let b = x.dim(0)?;
    Tensor::zeros(b, x.dtype(), x.device())
}

/// The same log-det (a scalar tensor, kept in the graph) for each example of `x`.
pub fn same_per_example(log_det: &Tensor, x: &Tensor) -> Result<Tensor> {
    log_det.reshape(1)?.expand(x.dim(0)?)
}

/// The sum over everything but the batch, shape (B,).
pub fn sum_per_example(t: &Tensor) -> Result<Tensor> {
    t.flatten_from(1)?.sum(1)
}

/// The number of positions that share one channel: 1 for (B, D), H W for (B, C, H, W).
pub(crate) fn positions(x: &Tensor) -> Result<usize> {
    if x.rank() < 2 {
        bail!("expected (B, D) or (B, C, H, W), got shape {:?}", x.shape());
    }
    Ok(x.dims()[2..].iter().product())
}

/// The shape in which a per-channel vector broadcasts against `x`: (1, C) or (1, C, 1, 1).
pub(crate) fn channel_shape(x: &Tensor) -> Result<Vec<usize>> {
    positions(x)?;
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    Ok(shape)
}
