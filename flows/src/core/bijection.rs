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
//! A layer that is made of others is a [`Composite`]. It says once how data pass its layers in both directions; forward,
//! inverse and backward passes and everything in [`inspect`](super::inspect) follow from that. There is no implementation
//! for `Box<dyn Bijection>`, which could leave out a method; composite layers hold [`Link`]s.

use super::coding::{Coupled, Pieces};
use super::layer_stats::LayerStats;
use super::pass::{Context, Ctx};
use super::shape::zeros_per_example;
use super::tape::{Gradients, Graph, Memory, SavedState};
use crate::ops::log_det;
use candle_core::{Error, Result, Tensor, bail};
use std::sync::atomic::{AtomicBool, Ordering};

/// An invertible map with a tractable log-det.
///
/// # Contract
/// - `forward(x)` gives z = f(x) and log|det dz/dx| of shape (B,), one number an example, in nats.
/// - `inverse(z)` undoes the *evaluated* forward: `inverse(forward(x, Eval).0) == x`.
/// - Shapes: dimension 0 is the batch, dimension 1 the features or channels; (B, D) or (B, C, H, W) as the layer says.
///
/// The other methods have defaults that work for any layer, on every device; a layer overrides them for speed.
pub trait Bijection: Send + Sync {
    /// z and log|det dz/dx|, shape (B,).
    ///
    /// # Errors
    /// When the layer does not take this shape; the message says which size was met and which is needed.
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)>;

    /// x with forward(x) = z in [`Mode::Eval`](super::Mode::Eval).
    ///
    /// # Errors
    /// When the layer does not give this shape.
    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor>;

    /// As [`Bijection::forward`] outside candle's graph, with what [`Bijection::backward`] needs: under [`Memory::Store`] all
    /// of it, under [`Memory::Recompute`] only what the inverse cannot give back, such as the statistics of a batch.
    ///
    /// # Errors
    /// As [`Bijection::forward`].
    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let memory = if self.moves_elements() { Memory::Recompute } else { memory };
        forward_saved_by_graph(self, x, ctx, memory)
    }

    /// The input x and its gradient, from the output z, the gradients of z and of the log-det (B,), and what was saved.
    /// Gradients of parameters go to `grads`. `ctx` is that of the forward pass.
    ///
    /// The default differentiates candle's graph of this layer, after reconstructing x by [`Bijection::inverse`] where nothing
    /// was saved. A layer whose training pass the inverse does not undo (batch norm) overrides it.
    ///
    /// # Errors
    /// When a shape does not fit what was saved.
    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        (gz, grad_log_det): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        if self.moves_elements() {
            return Ok((self.inverse(z, ctx.context)?, self.inverse(gz, ctx.context)?));
        }
        backward_by_graph(self, z, saved, (gz, grad_log_det), ctx, grads)
    }

    /// x from z by the inverse of the *training* pass, with what [`Memory::Recompute`] has saved of it.
    ///
    /// # Errors
    /// As [`Bijection::inverse`].
    fn reconstruct(&self, z: &Tensor, _saved: &SavedState, ctx: Ctx) -> Result<Tensor> {
        self.inverse(z, ctx.context)
    }

    /// The scales or the matrix by which this layer changes `x`.
    ///
    /// # Errors
    /// As [`Bijection::forward`].
    fn layer_stats(&self, _x: &Tensor, _ctx: Ctx) -> Result<LayerStats> {
        Ok(LayerStats::Fixed)
    }

    /// Whether the layer only moves elements, as a permutation does: then the backward pass saves nothing and moves the
    /// gradient by the inverse.
    fn moves_elements(&self) -> bool {
        false
    }

    /// The kind of map that this layer is, for lossless coding ([`codec`](mod@crate::codec)). One that does not say it is coded by
    /// its Jacobian, where examples have few dimensions, and refused otherwise.
    ///
    /// # Errors
    /// When its parameters cannot be read.
    fn coding(&self) -> Result<Coding<'_>> {
        Ok(if self.moves_elements() { Coding::Moves } else { Coding::Jacobian })
    }

    /// The layers that this one is made of, if it is.
    fn composite(&self) -> Option<&dyn Composite> {
        None
    }
}

/// The kind of a layer's map, by which lossless coding treats it: what it does to the elements of one example. How their bits are
/// written is [`codec`](mod@crate::codec)'s.
pub enum Coding<'a> {
    /// It moves elements, as a permutation does; `forward` and `inverse` move whole numbers, too.
    Moves,
    /// Each element by a function of its own, which `forward` and `inverse` compute.
    Elements(Pieces),
    /// Some elements are kept, and the others changed one by one by functions that depend on those.
    Coupled(&'a dyn Coupled),
    /// z = W (x - shift) for the channels at each position.
    Matrix {
        /// W, (C, C).
        weight: Tensor,
        /// (C,), or nothing for 0.
        shift: Option<Tensor>,
    },
    /// The inverse of another layer.
    Inverse(&'a dyn Bijection),
    /// The noise of pixels, changed by a flow of its own.
    Noise(&'a dyn NoiseFlow),
    /// None of these: by its Jacobian, for which there is time where an example has few dimensions.
    Jacobian,
}

/// A flow f_n by which learned noise v of pixels n becomes u = sigmoid(f_n(logit(v))), all of them squeezed.
pub trait NoiseFlow: Send + Sync {
    /// f_n, which is given its features as [`Context::features`].
    fn flow(&self) -> &dyn Bijection;

    /// The features of squeezed pixels n.
    ///
    /// # Errors
    /// When n has another shape.
    fn features(&self, n: &Tensor) -> Result<Tensor>;
}

/// Runs layer i of a composite: called with the index, the layer's input, and the parts of the latent that were factored out
/// before it (empty in a chain), it returns the layer's output.
pub type RunLayer<'a> = &'a mut dyn FnMut(usize, &Tensor, &[Tensor]) -> Result<Tensor>;

/// Runs layer i of a composite backwards: called with the index and the layer's outputs, it returns its inputs.
pub type RunReversed<'a> = &'a mut dyn FnMut(usize, &[Tensor]) -> Result<Vec<Tensor>>;

/// A layer that is made of other layers. Every `Composite` is a [`Bijection`] through the implementation below.
pub trait Composite: Send + Sync {
    /// The layers.
    fn links(&self) -> &[Link];

    /// Passes `x` through the layers in order, calling `run` for each, and returns the output.
    ///
    /// # Errors
    /// Those of `run`.
    fn pass(&self, x: &Tensor, run: RunLayer) -> Result<Tensor>;

    /// Passes the tensors `z` back through the layers, last layer first, calling `run` for each, and returns the inputs. The
    /// backward pass sends a latent and its gradient through together.
    ///
    /// # Errors
    /// Those of `run`.
    fn pass_reversed(&self, z: &[&Tensor], run: RunReversed) -> Result<Vec<Tensor>>;
}

/// Every layer's pass, log-dets added. Errors carry the layer's name.
// A pass calls `links_forward` or `links_reversed`, these call `Composite::pass` or `pass_reversed`, and these call back, for each
// layer, the closure that is given here.
impl<C: Composite> Bijection for C {
    fn forward(&self, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
        links_forward(self, x, |i, h| forward(self.links()[i].layer(), h, ctx))
    }

    fn inverse(&self, z: &Tensor, context: Context) -> Result<Tensor> {
        let each = |i: usize, t: &[Tensor]| Ok(vec![inverse(self.links()[i].layer(), &t[0], context)?]);
        Ok(links_reversed(self, &[z], each)?.swap_remove(0))
    }

    fn forward_saved(&self, x: &Tensor, ctx: Ctx, memory: Memory) -> Result<(Tensor, Tensor, SavedState)> {
        let mut all = Vec::with_capacity(self.links().len());
        let (z, log_det) = links_forward(self, x, |i, h| {
            let link = &self.links()[i];
            let memory = if link.is_stored() { Memory::Store } else { memory };
            let (z, log_det, saved) = link.layer.forward_saved(h, ctx, memory)?;
            all.push(saved);
            Ok((z, log_det))
        })?;
        Ok((z, log_det, SavedState::new(all)))
    }

    fn backward(
        &self,
        z: &Tensor,
        saved: SavedState,
        (gz, grad_log_det): (&Tensor, &Tensor),
        ctx: Ctx,
        grads: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let mut all: Vec<SavedState> = saved.take().unwrap_or_default();
        let mut input = links_reversed(self, &[z, gz], |i, t| {
            let saved = all.get_mut(i).map(std::mem::take).unwrap_or_default();
            let (x, gx) = self.links()[i].layer.backward(&t[0], saved, (&t[1], grad_log_det), ctx, grads)?;
            Ok(vec![x, gx])
        })?;
        let gx = input.pop().expect("a gradient passes with the latent");
        let x = input.pop().expect("a gradient passes with the latent");
        Ok((x, gx))
    }

    fn reconstruct(&self, z: &Tensor, saved: &SavedState, ctx: Ctx) -> Result<Tensor> {
        let Some(saved) = saved.get::<Vec<SavedState>>() else { return self.inverse(z, ctx.context) };
        let each =
            |i: usize, t: &[Tensor]| Ok(vec![self.links()[i].layer.reconstruct(&t[0], &saved[i], ctx)?]);
        Ok(links_reversed(self, &[z], each)?.swap_remove(0))
    }

    fn composite(&self) -> Option<&dyn Composite> {
        Some(self)
    }
}

/// A named layer of a [`Composite`].
pub struct Link {
    name: String,
    layer: Box<dyn Bijection>,
    /// Whether a pass saves all that this layer's gradient needs, whatever [`Memory`] says.
    stored: AtomicBool,
}

impl Link {
    /// `name` appears in paths and messages; where it is empty, the path goes on below without a part for this layer.
    pub fn new(name: impl Into<String>, layer: Box<dyn Bijection>) -> Self {
        Self { name: name.into(), layer, stored: AtomicBool::new(false) }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The layer.
    pub fn layer(&self) -> &dyn Bijection {
        self.layer.as_ref()
    }

    /// Whether a pass saves all that this layer's gradient needs, whatever [`Memory`] says.
    pub fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Relaxed)
    }

    /// Sets [`Link::is_stored`].
    pub fn set_stored(&self, stored: bool) {
        self.stored.store(stored, Ordering::Relaxed);
    }

    fn name_error(&self, e: Error) -> Error {
        if self.name.is_empty() { e } else { e.context(self.name.clone()) }
    }
}

/// [`Bijection::forward`], outside candle's graph where neither `x` nor `ctx` asks for it: a parameter of candle-nn's layers
/// is on the graph in every pass, and the graph of a whole flow would be kept.
pub(crate) fn forward<B: Bijection + ?Sized>(f: &B, x: &Tensor, ctx: Ctx) -> Result<(Tensor, Tensor)> {
    let (z, log_det) = f.forward(x, ctx)?;
    Ok(if ctx.grad || x.track_op() { (z, log_det) } else { (z.detach(), log_det.detach()) })
}

/// [`Bijection::inverse`], outside candle's graph where `z` is; see [`forward`].
pub(crate) fn inverse<B: Bijection + ?Sized>(f: &B, z: &Tensor, context: Context) -> Result<Tensor> {
    let x = f.inverse(z, context)?;
    Ok(if z.track_op() { x } else { x.detach() })
}

/// Refuses what a bijection cannot give: another number of examples or of elements.
fn check_size(given: &Tensor, got: &Tensor) -> Result<()> {
    if given.dims().first() != got.dims().first() || given.elem_count() != got.elem_count() {
        let (given, got) = (given.shape(), got.shape());
        bail!("it makes {got:?} of {given:?}, but a bijection keeps the number of examples and of elements");
    }
    Ok(())
}

/// [`Composite::pass`] with the layer's name in errors.
pub(super) fn links_in_order(
    c: &dyn Composite,
    x: &Tensor,
    mut each: impl FnMut(usize, &Tensor, &[Tensor]) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut checked = |i: usize, h: &Tensor, factored: &[Tensor]| {
        let z = each(i, h, factored)?;
        check_size(h, &z).map(|()| z)
    };
    c.pass(x, &mut |i, h, factored| checked(i, h, factored).map_err(|e| c.links()[i].name_error(e)))
}

/// [`Composite::pass_reversed`] with the layer's name in errors.
pub(super) fn links_reversed(
    c: &dyn Composite,
    z: &[&Tensor],
    mut each: impl FnMut(usize, &[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let mut checked = |i: usize, t: &[Tensor]| {
        let x = each(i, t)?;
        t.iter().zip(&x).try_for_each(|(t, x)| check_size(t, x)).map(|()| x)
    };
    c.pass_reversed(z, &mut |i, t| checked(i, t).map_err(|e| c.links()[i].name_error(e)))
}

/// The output of `c` and the sum of the log-dets of its layers, where `each` gives those of layer i.
fn links_forward(
    c: &dyn Composite,
    x: &Tensor,
    mut each: impl FnMut(usize, &Tensor) -> Result<(Tensor, Tensor)>,
) -> Result<(Tensor, Tensor)> {
    let (mut log_dets, examples) = (Vec::with_capacity(c.links().len()), x.dim(0)?);
    let z = links_in_order(c, x, |i, h, _| {
        let (z, log_det) = each(i, h)?;
        if log_det.dims() != [examples] {
            let got = log_det.shape();
            bail!("its log-det has shape {got:?}, but [{examples}] is needed: one number for each example");
        }
        log_dets.push(log_det);
        Ok(z)
    })?;
    let sum = if log_dets.is_empty() { zeros_per_example(x)? } else { log_det::sum(&log_dets)? };
    Ok((z, sum))
}

/// The default of [`Bijection::forward_saved`]: candle's graph of the layer under [`Memory::Store`], nothing otherwise.
///
/// # Errors
/// Those of the layer.
pub fn forward_saved_by_graph<B: Bijection + ?Sized>(
    f: &B,
    x: &Tensor,
    ctx: Ctx,
    memory: Memory,
) -> Result<(Tensor, Tensor, SavedState)> {
    match memory {
        Memory::Recompute => {
            let (z, log_det) = forward(f, &x.detach(), ctx.with_grad(false))?;
            Ok((z, log_det, SavedState::nothing()))
        }
        Memory::Store => {
            let (graph, [z, log_det]) = Graph::of(x, |x| f.forward(x, ctx.with_grad(true)).map(Into::into))?;
            Ok((z, log_det, SavedState::new(graph)))
        }
    }
}

/// The default of [`Bijection::backward`], for what [`forward_saved_by_graph`] has saved.
///
/// # Errors
/// Those of the layer.
pub fn backward_by_graph<B: Bijection + ?Sized>(
    f: &B,
    z: &Tensor,
    saved: SavedState,
    (gz, grad_log_det): (&Tensor, &Tensor),
    ctx: Ctx,
    grads: &mut Gradients,
) -> Result<(Tensor, Tensor)> {
    let graph = match saved.take::<Graph>() {
        Some(graph) => graph,
        None => {
            let x = f.inverse(z, ctx.context)?;
            Graph::of::<2>(&x, |x| f.forward(x, ctx.replay()).map(Into::into))?.0
        }
    };
    Ok((graph.x(), graph.backward(&[gz, grad_log_det], grads)?.swap_remove(0)))
}
