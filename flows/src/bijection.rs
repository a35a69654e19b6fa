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

use crate::backward::{self, Gradients, Memory, Saved};
use crate::latents::{Inside, Trace};
use candle_core::{DType, Result, Tensor, bail};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

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

    /// The same pass once more, with a graph and writing nothing.
    pub fn replay(self) -> Self {
        let mode = if self.mode == Mode::Train { Mode::Replay } else { self.mode };
        Self { mode, grad: true, ..self }
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

    /// As [`Bijection::forward`], outside any graph, keeping what [`Bijection::backward`] will need: under
    /// [`Memory::Store`] all of it, under [`Memory::Recompute`] only what the inverse cannot give back, such as the
    /// statistics of a batch.
    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, Saved)> {
        backward::forward_saved(self, x, ctx, memory)
    }

    /// From the output z, the gradients of z and of the log-det (B,), and what was kept: the input x and its gradient.
    /// Parameters' gradients go to `grads`. `ctx` is the forward's.
    ///
    /// The default differentiates candle's graph of this layer, after rebuilding x by [`Bijection::inverse`] where nothing
    /// was kept. A layer whose training pass the inverse does not undo (batch norm) brings its own.
    fn backward(
        &self,
        z: &Tensor,
        saved: Saved,
        g: (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        backward::backward(self, z, saved, g, ctx, grads)
    }

    /// x from z by the inverse of the *training* pass, with what [`Memory::Recompute`] kept of it.
    fn rebuild(&self, z: &Tensor, _saved: &Saved, ctx: Ctx) -> Result<Tensor> {
        self.inverse(z, ctx.cond)
    }

    /// How far a rebuilt input is from the true one: from the true input x and this layer's output as the walk back has it,
    /// the input as the walk back rebuilds it. A chain records each of its links in `drift`.
    fn probe(&self, x: &Tensor, z: &Tensor, ctx: Ctx, _drift: &mut Drift) -> Result<Tensor> {
        let (_, _, saved) = self.forward_saved(x, ctx, Memory::Recompute)?;
        self.rebuild(z, &saved, ctx)
    }

    /// Under [`Memory::Recompute`], keep what the links named in `paths` need instead of rebuilding their inputs; `path` is
    /// this layer's own. Only a chain has links.
    fn store_links(&self, _paths: &BTreeSet<String>, _path: &str) {}

    /// Where a pass first produces a NaN or an infinity: the path of the innermost layer, or `None`.
    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        let (z, log_det) = self.forward(x, ctx)?;
        let bad = !(crate::params::is_finite(&z)? && crate::params::is_finite(&log_det)?);
        Ok(if bad { NonFinite::At(String::new()) } else { NonFinite::Clean(z) })
    }

    /// What this layer does to `x`, for [`crate::latents::trace`]: its scales or its matrix.
    fn inside(&self, _x: &Tensor, _ctx: Ctx) -> Result<Inside> {
        Ok(Inside::Fixed)
    }

    /// The output; each layer's own step goes to `trace`. Only what has layers inside brings its own.
    fn trace(&self, x: &Tensor, ctx: Ctx, trace: &mut Trace) -> Result<Tensor> {
        let inside = self.inside(x, ctx)?;
        let (z, log_det) = self.forward(x, ctx)?;
        trace.push(&z, log_det, inside);
        Ok(z)
    }
}

/// The outcome of [`Bijection::find_non_finite`].
pub enum NonFinite {
    /// All finite; the output, for the next layer.
    Clean(Tensor),
    /// The path of the layer.
    At(String),
}

/// What [`Bijection::probe`] finds: the drift of every layer's rebuilt input,
///
/// ```text
/// max |x' - x| / rms(x)
/// ```
///
/// with x' as the walk back has it. Rounding errors add up on the way, and an ill-conditioned layer multiplies them; beyond
/// `bound` the true input is taken, as a stored layer would, and the walk goes on from there.
#[derive(Debug)]
pub struct Drift {
    bound: f64,
    path: String,
    layers: Vec<(String, f64)>,
}

impl Drift {
    /// The bound that training holds drift to. Where it is met, f32 gradients with rebuilt inputs are as near to the f64
    /// gradient as those with stored ones, within the factor 3 that the tests assert.
    pub const BOUND: f64 = 1e-3;

    pub(crate) fn new(bound: f64) -> Self {
        Self { bound, path: String::new(), layers: Vec::new() }
    }

    /// (path, drift) of every layer, last layer first.
    pub fn layers(&self) -> &[(String, f64)] {
        &self.layers
    }

    /// The layers over the bound: those to store. A drift that is not a number is over any bound.
    pub fn over(&self) -> BTreeSet<String> {
        self.layers.iter().filter(|(_, d)| beyond(*d, self.bound)).map(|(n, _)| n.clone()).collect()
    }

    /// The largest drift within the bound.
    pub fn largest(&self) -> f64 {
        self.layers.iter().map(|l| l.1).filter(|d| !beyond(*d, self.bound)).fold(0., f64::max)
    }

    /// Runs `f` with `name` appended to the path.
    pub(crate) fn within<R>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.path.clone();
        self.path = join(&outer, name);
        let r = f(self);
        self.path = outer;
        r
    }
}

/// Whether a drift is over the bound, as one that is not a number is.
fn beyond(drift: f64, bound: f64) -> bool {
    drift.is_nan() || drift > bound
}

fn drift_of(rebuilt: &Tensor, x: &Tensor) -> Result<f64> {
    let f64s = |t: Tensor| -> Result<f64> { t.to_dtype(DType::F64)?.to_scalar() };
    let most = f64s((rebuilt - x)?.abs()?.flatten_all()?.max(0)?)?;
    let rms = f64s(x.sqr()?.mean_all()?)?.sqrt();
    // max ignores a NaN, the mean does not.
    let any = f64s((rebuilt - x)?.mean_all()?)?;
    Ok(if any.is_finite() { most / rms.max(f64::MIN_POSITIVE) } else { f64::NAN })
}

/// Layers in order: z = f_n(... f_1(x)), log-dets added.
///
/// It is the only place that knows whether inputs are stored or rebuilt ([`Memory`]): a link is stored under
/// [`Memory::Store`], or because [`Bijection::store_links`] named it.
#[derive(Default)]
pub struct Chain {
    links: Vec<Link>,
}

struct Link {
    name: String,
    layer: Box<dyn Bijection>,
    stored: AtomicBool,
}

impl Chain {
    /// The identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer; `name` is used in messages.
    pub fn push(&mut self, name: impl Into<String>, link: impl Bijection + 'static) {
        self.links.push(Link { name: name.into(), layer: Box::new(link), stored: AtomicBool::new(false) });
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
        self.links.iter().map(|l| (l.name.as_str(), l.layer.as_ref()))
    }
}

impl Bijection for Chain {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        let mut h = x.clone();
        let mut sum = zeros_per_example(x)?;
        for (name, link) in self.links() {
            let (z, log_det) = link.forward(&h, ctx).map_err(|e| e.context(name.to_string()))?;
            h = z;
            sum = (sum + log_det)?;
        }
        Ok((h, sum))
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, Saved)> {
        let mut h = x.clone();
        let mut sum = zeros_per_example(x)?;
        let mut kept = Vec::with_capacity(self.links.len());
        for link in &self.links {
            let memory = if link.stored.load(Ordering::Relaxed) { Memory::Store } else { memory };
            let (z, log_det, saved) =
                link.layer.forward_saved(&h, ctx, memory).map_err(|e| e.context(link.name.clone()))?;
            h = z;
            sum = (sum + log_det)?;
            kept.push(saved);
        }
        Ok((h, sum, Saved::new(kept)))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: Saved,
        (gz, gld): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let mut kept: Vec<Saved> = saved.take().unwrap_or_default();
        let (mut h, mut g) = (z.clone(), gz.clone());
        for link in self.links.iter().rev() {
            let saved = kept.pop().unwrap_or_default();
            (h, g) = link
                .layer
                .backward(&h, saved, (&g, gld), ctx, grads)
                .map_err(|e| e.context(link.name.clone()))?;
        }
        Ok((h, g))
    }

    fn rebuild(&self, z: &Tensor, saved: &Saved, ctx: Ctx) -> Result<Tensor> {
        let Some(kept) = saved.get::<Vec<Saved>>() else { return self.inverse(z, ctx.cond) };
        let mut h = z.clone();
        for (link, saved) in self.links.iter().zip(kept).rev() {
            h = link.layer.rebuild(&h, saved, ctx).map_err(|e| e.context(link.name.clone()))?;
        }
        Ok(h)
    }

    fn probe(&self, x: &Tensor, z: &Tensor, ctx: Ctx, drift: &mut Drift) -> Result<Tensor> {
        let mut inputs = Vec::with_capacity(self.links.len());
        let mut h = x.clone();
        for (_, link) in self.links() {
            inputs.push(h.clone());
            h = link.forward(&h, ctx.with_grad(false))?.0;
        }
        let mut h = z.clone();
        for (link, x) in self.links.iter().zip(&inputs).rev() {
            let before = drift.layers.len();
            h = drift.within(&link.name, |drift| link.layer.probe(x, &h, ctx, drift))?;
            let d = drift_of(&h, x)?;
            // A link that has links of its own has recorded them.
            if drift.layers.len() == before {
                let path = drift.within(&link.name, |drift| drift.path.clone());
                drift.layers.push((path, d));
            }
            if beyond(d, drift.bound) || link.stored.load(Ordering::Relaxed) {
                h = x.clone();
            }
        }
        Ok(h)
    }

    fn store_links(&self, paths: &BTreeSet<String>, path: &str) {
        for link in &self.links {
            let inner = join(path, &link.name);
            link.stored.store(paths.contains(&inner), Ordering::Relaxed);
            link.layer.store_links(paths, &inner);
        }
    }

    fn inverse(&self, z: &Tensor, cond: Option<&Tensor>) -> Result<Tensor> {
        let mut h = z.clone();
        for link in self.links.iter().rev() {
            h = link.layer.inverse(&h, cond).map_err(|e| e.context(link.name.clone()))?;
        }
        Ok(h)
    }

    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        let mut h = x.clone();
        for (name, link) in self.links() {
            match link.find_non_finite(&h, ctx)? {
                NonFinite::Clean(z) => h = z,
                NonFinite::At(inner) => return Ok(NonFinite::At(join(name, &inner))),
            }
        }
        Ok(NonFinite::Clean(h))
    }

    fn trace(&self, x: &Tensor, ctx: Ctx, trace: &mut Trace) -> Result<Tensor> {
        let mut h = x.clone();
        for (name, link) in self.links() {
            h = trace.within(name, |trace| link.trace(&h, ctx, trace))?;
        }
        Ok(h)
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

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, Saved)> {
        self.as_ref().forward_saved(x, ctx, memory)
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: Saved,
        g: (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        self.as_ref().backward(z, saved, g, ctx, grads)
    }

    fn rebuild(&self, z: &Tensor, saved: &Saved, ctx: Ctx) -> Result<Tensor> {
        self.as_ref().rebuild(z, saved, ctx)
    }

    fn probe(&self, x: &Tensor, z: &Tensor, ctx: Ctx, drift: &mut Drift) -> Result<Tensor> {
        self.as_ref().probe(x, z, ctx, drift)
    }

    fn store_links(&self, paths: &BTreeSet<String>, path: &str) {
        self.as_ref().store_links(paths, path);
    }

    fn find_non_finite(&self, x: &Tensor, ctx: Ctx) -> Result<NonFinite> {
        self.as_ref().find_non_finite(x, ctx)
    }

    fn inside(&self, x: &Tensor, ctx: Ctx) -> Result<Inside> {
        self.as_ref().inside(x, ctx)
    }

    fn trace(&self, x: &Tensor, ctx: Ctx, trace: &mut Trace) -> Result<Tensor> {
        self.as_ref().trace(x, ctx, trace)
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
