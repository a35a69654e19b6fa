//! Functions over the layers of a flow: a trace of what each of them does, the pixels that elements stand for, the rounding errors of
//! reconstructed inputs, the first number that is not finite, and which layers are stored.
//!
//! All of them visit the innermost layers, each with its path: `level0.step3.coupling`.

use super::bijection::{Bijection, Composite, forward, links_in_order, links_reversed};
use super::layer_stats::LayerStats;
use super::pass::Ctx;
use super::shape::split_levels;
use super::tape::Memory;
use crate::ops::squeeze::unsqueeze;
use crate::params::is_finite;
use candle_core::{DType, Result, Tensor, bail};
use std::collections::BTreeSet;

/// An innermost layer with what it is given.
pub(crate) struct Leaf<'a> {
    /// Where the layer is: `level0.step3.coupling`.
    pub(crate) path: &'a str,
    pub(crate) layer: &'a dyn Bijection,
    pub(crate) x: &'a Tensor,
    /// The parts of the latent that were factored out before it, each (B, C, H, W).
    pub(crate) factored: &'a [Tensor],
}

/// The output of `f` for `x`, where `each` gives the output of every innermost layer, in order.
///
/// # Errors
/// Those of `each`, with the names of the layers around.
pub(crate) fn visit(
    f: &dyn Bijection,
    x: &Tensor,
    each: &mut dyn FnMut(Leaf) -> Result<Tensor>,
) -> Result<Tensor> {
    visit_below(f, x, "", &[], each)
}

fn visit_below(
    f: &dyn Bijection,
    x: &Tensor,
    path: &str,
    factored: &[Tensor],
    each: &mut dyn FnMut(Leaf) -> Result<Tensor>,
) -> Result<Tensor> {
    let Some(c) = f.composite() else { return each(Leaf { path, layer: f, x, factored }) };
    links_in_order(c, x, |i, h, inner| {
        let link = &c.links()[i];
        visit_below(link.layer(), h, &join(path, link.name()), &[factored, inner].concat(), each)
    })
}

fn join(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        (o, "") => o.to_string(),
        ("", i) => i.to_string(),
        (o, i) => format!("{o}.{i}"),
    }
}

/// For each innermost layer of a flow of images, in order, the position h W + w of the pixel that every element of its input
/// stands for, of the input's shape with a batch of 1; and those of the flow's output.
///
/// An element stands for the pixel from which layers that only move elements (squeeze, flatten, permutations) brought it there;
/// all other layers leave each element in its place.
///
/// # Errors
/// Those of a layer.
pub(crate) fn positions(f: &dyn Bijection, x: &Tensor) -> Result<(Vec<Tensor>, Tensor)> {
    let (_, c, h, w) = x.dims4()?;
    // Sums and matrix products are not taken of them: f32 holds each exactly.
    let pixels = Tensor::arange(0f32, (h * w) as f32, x.device())?.to_dtype(x.dtype())?;
    let pixels = pixels.reshape((1, 1, h, w))?.broadcast_as((1, c, h, w))?.contiguous()?;
    let mut before = Vec::new();
    let last = visit(f, &pixels, &mut |leaf| {
        before.push(leaf.x.clone());
        if leaf.layer.moves_elements() {
            Ok(forward(leaf.layer, leaf.x, Ctx::eval())?.0)
        } else {
            Ok(leaf.x.clone())
        }
    })?;
    Ok((before, last))
}

/// What one layer did to its input, an entry of a [`trace`].
pub struct TraceEntry {
    /// Where the layer is: `level0.step3.coupling`.
    pub path: String,
    /// Its output, (B, D) or (B, C, H, W).
    pub output: Tensor,
    /// What was factored out before it, level by level, each (B, C, H, W).
    pub done: Vec<Tensor>,
    /// log |det| of this layer, (B,), in nats.
    pub log_det: Tensor,
    /// The scales or the matrix by which it changes its input.
    pub stats: LayerStats,
    /// (C, H, W) of each part of the state, those of `done` first; none for vectors. A layer of (B, D) after one of images has
    /// all parts in its output, as the layer before had them.
    parts: Vec<[usize; 3]>,
}

impl TraceEntry {
    /// The whole state after this layer in the order of an image: `output` and all of `done`, every squeeze undone and
    /// every split joined again, nothing else; (B, C, H, W) of the given `[C, H, W]`, (B, D) for vectors.
    ///
    /// A flow keeps the number of dimensions, so each of its states is a picture of the input's size.
    ///
    /// # Errors
    /// When the state cannot have come from an example of this shape.
    pub fn layout(&self, shape: &[usize]) -> Result<Tensor> {
        let mut parts = match (self.output.rank(), self.parts.as_slice()) {
            (4, _) => [self.done.as_slice(), std::slice::from_ref(&self.output)].concat(),
            (_, []) => return self.output.reshape([&[self.output.dim(0)?], shape].concat()),
            (_, parts) => split_levels(&self.output, parts)?,
        };
        let mut h = parts.pop().expect("a state has at least one part");
        loop {
            match parts.last() {
                Some(part) if part.dims()[2..] == h.dims()[2..] => {
                    h = Tensor::cat(&[&h, &parts.pop().expect("the last is there")], 1)?;
                }
                None if h.dims()[1..] == *shape => return Ok(h),
                _ if h.dim(1)?.is_multiple_of(4) => h = unsqueeze(&h)?,
                _ => bail!("a state of shape {:?} is no rearranged {shape:?}", self.output.shape()),
            }
        }
    }
}

/// (C, H, W) of a tensor (B, C, H, W).
fn image_shape(t: &Tensor) -> Result<[usize; 3]> {
    let (_, c, h, w) = t.dims4()?;
    Ok([c, h, w])
}

/// Every layer's output, log-det and [`LayerStats`] for the input `x`, in order.
///
/// ```text
/// h_0 = x,   h_i = f_i(h_i-1),     log |det df| = sum_i log |det df_i|
/// ```
///
/// # Errors
/// Those of a layer, with its path.
pub fn trace(f: &dyn Bijection, x: &Tensor, ctx: Ctx) -> Result<Vec<TraceEntry>> {
    let mut steps = Vec::new();
    visit(f, x, &mut |leaf| {
        let stats = leaf.layer.layer_stats(leaf.x, ctx)?;
        let (z, log_det) = forward(leaf.layer, leaf.x, ctx)?;
        let (path, done) = (leaf.path.to_owned(), leaf.factored.to_vec());
        let parts = match z.rank() {
            4 => done.iter().chain([&z]).map(image_shape).collect::<Result<_>>()?,
            _ => steps.last().map_or_else(Vec::new, |before: &TraceEntry| before.parts.clone()),
        };
        steps.push(TraceEntry { path, output: z.clone(), done, log_det, stats, parts });
        Ok(z)
    })?;
    Ok(steps)
}

/// Runs `f` on `x` and looks for the first layer whose output or log-det is not finite: `Ok(Err(path))` names it, and
/// `Ok(Ok(z))` is the output if all are finite.
///
/// # Errors
/// Those of a layer, with its path.
pub fn find_non_finite(
    f: &dyn Bijection,
    x: &Tensor,
    ctx: Ctx,
) -> Result<std::result::Result<Tensor, String>> {
    let mut found = None;
    let z = visit(f, x, &mut |leaf| {
        let (z, log_det) = forward(leaf.layer, leaf.x, ctx)?;
        if !(is_finite(&z)? && is_finite(&log_det)?) {
            found = Some(leaf.path.to_owned());
            bail!("not finite: the pass ends here");
        }
        Ok(z)
    });
    found.map_or_else(|| z.map(Ok), |path| Ok(Err(path)))
}

/// How far the inputs that [`Memory::Recompute`] reconstructs are from the true ones, for every layer:
///
/// ```text
/// max |x' - x| / rms(x)
/// ```
///
/// with x' as the backward pass reconstructs it. Rounding errors add up from layer to layer, and an ill-conditioned layer
/// multiplies them. Where a layer drifts beyond `bound`, the measurement goes on with its true input, because training will
/// store that layer.
#[derive(Debug)]
pub struct Drift {
    bound: f64,
    layers: Vec<(String, f64)>,
}

impl Drift {
    /// The bound that training holds drift to. Where it is met, f32 gradients with reconstructed inputs are as near to the f64
    /// gradient as those with stored ones, within the factor 3 that the tests assert.
    pub const BOUND: f64 = 1e-3;

    /// Measures the drift of every layer of `f` on the batch `x`; nothing is written.
    ///
    /// # Errors
    /// Those of a layer, with its path.
    pub fn measure(f: &dyn Bijection, x: &Tensor, ctx: Ctx, bound: f64) -> Result<Self> {
        let ctx = ctx.replay().with_grad(false);
        let mut drift = Self { bound, layers: Vec::new() };
        let (z, _) = forward(f, x, ctx)?;
        drift.reconstruct(f, "", (x, &z), ctx, false)?;
        Ok(drift)
    }

    /// The input of `f` as the backward pass has it, from the true input x and from the output z as the backward pass has
    /// it.
    fn reconstruct(
        &mut self,
        f: &dyn Bijection,
        path: &str,
        (x, z): (&Tensor, &Tensor),
        ctx: Ctx,
        stored: bool,
    ) -> Result<Tensor> {
        let (reconstructed, beyond) = match f.composite() {
            Some(c) => (self.rebuild_links(c, path, (x, z), ctx)?, false),
            None => {
                let (_, _, saved) = f.forward_saved(x, ctx, Memory::Recompute)?;
                let reconstructed = f.reconstruct(z, &saved, ctx)?.detach();
                let distance = distance(&reconstructed, x)?;
                self.layers.push((path.to_owned(), distance));
                (reconstructed, self.is_beyond(distance))
            }
        };
        Ok(if beyond || stored { x.clone() } else { reconstructed })
    }

    fn rebuild_links(
        &mut self,
        c: &dyn Composite,
        path: &str,
        (x, z): (&Tensor, &Tensor),
        ctx: Ctx,
    ) -> Result<Tensor> {
        let mut inputs = Vec::with_capacity(c.links().len());
        links_in_order(c, x, |i, h, _| {
            inputs.push(h.clone());
            Ok(forward(c.links()[i].layer(), h, ctx)?.0)
        })?;
        let mut input = links_reversed(c, &[z], |i, t| {
            let link = &c.links()[i];
            let path = join(path, link.name());
            Ok(vec![self.reconstruct(link.layer(), &path, (&inputs[i], &t[0]), ctx, link.is_stored())?])
        })?;
        Ok(input.swap_remove(0))
    }

    /// (path, drift) of every layer, last layer first.
    pub fn layers(&self) -> &[(String, f64)] {
        &self.layers
    }

    /// The layers over the bound: those to store. A drift that is not a number is over any bound.
    pub fn over(&self) -> BTreeSet<String> {
        self.layers.iter().filter(|(_, d)| self.is_beyond(*d)).map(|(n, _)| n.clone()).collect()
    }

    /// The largest drift among the layers that are within the bound; [`Drift::over`] lists the others.
    pub fn largest_within_bound(&self) -> f64 {
        self.layers.iter().map(|l| l.1).filter(|d| !self.is_beyond(*d)).fold(0., f64::max)
    }

    fn is_beyond(&self, drift: f64) -> bool {
        drift.is_nan() || drift > self.bound
    }
}

fn distance(reconstructed: &Tensor, x: &Tensor) -> Result<f64> {
    let f64s = |t: Tensor| -> Result<f64> { t.to_dtype(DType::F64)?.to_scalar() };
    let most = f64s((reconstructed - x)?.abs()?.flatten_all()?.max(0)?)?;
    let rms = f64s(x.sqr()?.mean_all()?)?.sqrt();
    // max ignores a NaN, the mean does not.
    let any = f64s((reconstructed - x)?.mean_all()?)?;
    Ok(if any.is_finite() { most / rms.max(f64::MIN_POSITIVE) } else { f64::NAN })
}

/// Makes [`Memory::Recompute`] store the layers of these paths, and reconstruct the inputs of all others.
/// `outer` is the path of `f`, empty for a whole flow.
pub fn store(f: &dyn Bijection, outer: &str, paths: &BTreeSet<String>) {
    for link in f.composite().map_or(&[][..], Composite::links) {
        let path = join(outer, link.name());
        link.set_stored(paths.contains(&path));
        store(link.layer(), &path, paths);
    }
}
