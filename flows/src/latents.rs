//! Operations on exact latents: interpolation, attributes, single levels, missing pixels, a trace of every layer, and where the bits
//! of an image are.
//!
//! Tensors in, tensors out. An example x has exactly one latent z = f(x), and z exactly one example, which [`Flow::decode`]
//! gives: no separate encoder approximates it. Latents are (B, D) as [`Flow::encode`] gives
//! them; randomness is an argument.
//!
//! ```
//! use candle_core::{DType, Device};
//! use flows::models::GlowConfig;
//! use flows::{Model, ModelConfig, latents};
//!
//! # let config = GlowConfig { shape: [3, 8, 8], levels: 2, depth: 1, width: 8, ..GlowConfig::cifar_paper() };
//! # let model = Model::new(ModelConfig::Glow(config), 0, DType::F64, &Device::Cpu)?;
//! let images = model.sample(4, 0.7, 0, None)?;
//! let z = model.encode(&images, None)?;
//! // From the first image to the second, on an arc.
//! let frames = model.decode(&latents::slerp(&z.get(0)?, &z.get(1)?, &[0., 0.25, 0.5, 0.75, 1.])?, None)?;
//! assert_eq!(frames.dims(), [5, 3, 8, 8]);
//! // The same images with other fine details.
//! let fresh = latents::prior(&model, 4, 1., 1, None)?;
//! let varied = model.decode(&latents::swap_levels(&model, &z, &fresh, &[0])?, None)?;
//! assert_eq!(varied.dims(), images.dims());
//! // Each layer's share of log p.
//! for step in latents::trace(&model, &images, None)? {
//!     println!("{:24} {:?}", step.path, step.log_det.to_vec1::<f64>()?);
//! }
//! # Ok::<(), candle_core::Error>(())
//! ```

pub use crate::core::{LayerStats, TraceEntry};

use crate::core::{self, Context, Ctx, inspect};
use crate::flow::Flow;
use crate::models::Model;
use crate::params::rng_for;
use crate::priors::{PriorCoding, Standard, log_constant};
use candle_core::{DType, Device, Result, Tensor, bail};

/// Points on the line between two tensors of equal shape, stacked in a new first dimension: (..) and (..) to (T, ..),
///
/// ```text
/// z_t = (1 - t) a + t b
/// ```
///
/// In many dimensions the midpoint of two independent Gaussian latents is shorter than either by a factor of sqrt(2). Like a
/// sample at temperature .7, it has a higher density than typical samples have. [`slerp`] keeps the length.
///
/// # Errors
/// When the shapes differ or there is no t.
pub fn lerp(a: &Tensor, b: &Tensor, t: &[f64]) -> Result<Tensor> {
    between(a, b, t, |t| (1. - t, t))
}

/// Points on the arc between two tensors of equal shape, stacked in a new first dimension: (..) and (..) to (T, ..),
///
/// ```text
/// z_t = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,     cos(w) = a . b / (|a| |b|)
/// ```
///
/// (Shoemake 1985; for latents White 2016, arXiv 1609.04468.) The length goes from |a| to |b| without the dip of [`lerp`].
/// Where a and b are parallel the arc is the line.
///
/// # Errors
/// As [`lerp`]; and where a and b point in opposite directions, since no arc between them is shorter than another.
pub fn slerp(a: &Tensor, b: &Tensor, t: &[f64]) -> Result<Tensor> {
    let dot = |x: &Tensor, y: &Tensor| -> Result<f64> {
        (x.to_dtype(DType::F64)? * y.to_dtype(DType::F64)?)?.sum_all()?.to_scalar()
    };
    same_shape(a, b)?;
    let lengths = (dot(a, a)? * dot(b, b)?).sqrt();
    let cos = if lengths > 0. { (dot(a, b)? / lengths).clamp(-1., 1.) } else { 1. };
    let (w, sin) = (cos.acos(), (1. - cos * cos).sqrt());
    if sin < 1e-6 && cos < 0. {
        bail!("two latents in opposite directions have no arc between them: use the straight line");
    }
    if sin < 1e-6 {
        return lerp(a, b, t);
    }
    between(a, b, t, |t| (((1. - t) * w).sin() / sin, (t * w).sin() / sin))
}

fn same_shape(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() {
        let (a, b) = (a.shape(), b.shape());
        bail!("only tensors of equal shape have points between them, got {a:?} and {b:?}");
    }
    Ok(())
}

/// u a + v b for the weights (u, v) of each t, stacked.
fn between(a: &Tensor, b: &Tensor, t: &[f64], weights: impl Fn(f64) -> (f64, f64)) -> Result<Tensor> {
    same_shape(a, b)?;
    if t.is_empty() {
        bail!("an interpolation needs at least one t");
    }
    let points = t.iter().map(|&t| {
        let (u, v) = weights(t);
        (a * u)? + (b * v)?
    });
    Tensor::stack(&points.collect::<Result<Vec<_>>>()?, 0)
}

/// The direction of an attribute, (D,), from latents with it (N, D) and without it (M, D):
///
/// ```text
/// v = mean(with) - mean(without)
/// ```
///
/// (Glow, section 6.) v holds everything that differs on average, so correlated attributes are mixed in it.
///
/// # Errors
/// When there is no latent on one side, or their dimensions differ.
pub fn attribute(with: &Tensor, without: &Tensor) -> Result<Tensor> {
    let ((n, d), (m, e)) = (with.dims2()?, without.dims2()?);
    if d != e {
        bail!("latents with the attribute have {d} dimensions, those without have {e}");
    }
    if n == 0 || m == 0 {
        bail!("an attribute's direction needs latents with it and without it, got {n} and {m}");
    }
    with.mean(0)? - without.mean(0)?
}

/// Latents (B, D) moved along a direction (D,) by each strength, example after example: (B S, D),
///
/// ```text
/// z_{b S + s} = z_b + strength_s v
/// ```
///
/// # Errors
/// When the dimensions differ or there is no strength.
pub fn apply(z: &Tensor, direction: &Tensor, strengths: &[f64]) -> Result<Tensor> {
    let ((b, d), v) = (z.dims2()?, direction.dims1()?);
    if d != v || strengths.is_empty() {
        bail!("latents of {d} dimensions, a direction of {v} and {} strengths", strengths.len());
    }
    let s = Tensor::new(strengths, z.device())?.to_dtype(z.dtype())?.reshape((1, strengths.len(), 1))?;
    let moves = s.broadcast_mul(&direction.reshape((1, 1, d))?)?;
    z.unsqueeze(1)?.broadcast_add(&moves)?.reshape((b * strengths.len(), d))
}

/// `n` latents of the prior at a temperature, (n, D), as [`Model::sample`] decodes them.
///
/// # Errors
/// As [`Model::sample`], but for those of decoding.
pub fn prior<'a>(
    model: &Model,
    n: usize,
    temperature: f64,
    seed: u64,
    context: impl Into<Context<'a>>,
) -> Result<Tensor> {
    let params = model.params();
    let to = (params.dtype(), params.device());
    model.draw(n, temperature, &mut rng_for(seed, "sample"), context.into(), to)
}

/// The inverse of [`Model::levels`]: each level's (B, C, H, W) put together to z (B, D).
///
/// # Errors
/// When there is no level, or their batches differ.
pub fn join(levels: &[Tensor]) -> Result<Tensor> {
    if levels.is_empty() {
        bail!("a latent has at least one level");
    }
    let flat = levels.iter().map(|l| l.flatten_from(1)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 1)
}

/// z with some of its levels taken from `other`, both (B, D):
///
/// ```text
/// z'_l = other_l for l in `taken`, z_l for all others
/// ```
///
/// With `other` from [`prior`] it resamples those levels: what is left of the image is what the kept levels hold. Levels
/// are counted from 0, the first that is factored out and so the finest.
///
/// # Errors
/// When a level is not the model's, or the shapes differ.
pub fn swap_levels(model: &Model, z: &Tensor, other: &Tensor, taken: &[usize]) -> Result<Tensor> {
    same_shape(z, other)?;
    let (mut levels, others) = (model.levels(z)?, model.levels(other)?);
    for &l in taken {
        let Some(level) = levels.get_mut(l) else {
            bail!("there is no level {l}: this model has levels 0 to {}", others.len() - 1);
        };
        *level = others[l].clone();
    }
    join(&levels)
}

/// What [`reconstruct`] measures.
pub struct Reconstruction {
    /// f^-1(f(x)), of x's shape.
    pub x: Tensor,
    /// max |f^-1(f(x)) - x| of each example, (B,), in the units of x.
    pub error: Tensor,
    /// max |f(f^-1(z)) - z| of each example and level, (B, L).
    pub level_error: Tensor,
}

/// How exact the inverse is, from x to z and back, and from z to x and back:
///
/// ```text
/// max |f^-1(f(x)) - x| by example,     max |f(f^-1(z)) - z| by example and level
/// ```
///
/// Both are zero but for rounding; larger values come from a badly conditioned layer.
///
/// # Errors
/// When x has another shape than the flow takes, and those of a layer.
pub fn reconstruct<'a>(model: &Model, x: &Tensor, context: impl Into<Context<'a>>) -> Result<Reconstruction> {
    let context = context.into();
    let z = model.encode(x, context)?;
    let back = model.decode(&z, context)?;
    let worst = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.flatten_from(1)?.max(1);
    let error = worst(&back, x)?;
    let again = model.encode(&back, context)?;
    let pairs = model.levels(&z)?.into_iter().zip(model.levels(&again)?);
    let levels = pairs.map(|(a, b)| worst(&a, &b)).collect::<Result<Vec<_>>>()?;
    Ok(Reconstruction { x: back, error, level_error: Tensor::stack(&levels, 1)? })
}

/// The `k` nearest of `candidates` (N, ..) to each of `queries` (B, ..), nearest first: their places (B, k) in u32, and
/// distances (B, k),
///
/// ```text
/// d(q, c) = sqrt(mean((q - c)^2))
/// ```
///
/// the root-mean-square difference of a value: in grey levels for images. Differences are taken before they are squared, so
/// that a copy is at distance 0 exactly. Of equal distances the first place wins.
///
/// # Errors
/// When the examples' shapes differ, there is none, or k is not 1 to N.
pub fn nearest(queries: &Tensor, candidates: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (b, n) = (queries.dim(0)?, candidates.dim(0)?);
    if queries.dims()[1..] != candidates.dims()[1..] {
        bail!("examples of shape {:?} and {:?} have no distance", queries.shape(), candidates.shape());
    }
    if b == 0 || k == 0 || k > n {
        bail!("{k} nearest of {n} examples to {b}: give at least one of each, and no more than there are");
    }
    // A block at a time: all differences at once would be as large as the whole set.
    const BLOCK: usize = 512;
    let (queries, candidates) = (queries.flatten_from(1)?, candidates.flatten_from(1)?);
    let d = queries.dim(1)? as f64;
    let mut squares: Vec<Vec<f64>> = vec![Vec::with_capacity(n); b];
    for first in (0..n).step_by(BLOCK) {
        let block = candidates.narrow(0, first, BLOCK.min(n - first))?;
        for (i, all) in squares.iter_mut().enumerate() {
            let q = queries.narrow(0, i, 1)?;
            let s = block.broadcast_sub(&q)?.sqr()?.sum(1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            all.extend(s);
        }
    }
    let (mut places, mut distances) = (Vec::with_capacity(b * k), Vec::with_capacity(b * k));
    for all in squares {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| all[i].total_cmp(&all[j]));
        for &i in &order[..k] {
            places.push(i as u32);
            distances.push((all[i] / d).sqrt());
        }
    }
    let distances = Tensor::from_vec(distances, (b, k), &Device::Cpu)?.to_dtype(queries.dtype())?;
    Ok((Tensor::from_vec(places, (b, k), queries.device())?, distances.to_device(queries.device())?))
}

/// The settings of [`inpaint`].
#[derive(Clone, Copy, Debug)]
pub struct Inpainting {
    /// Gradients of log p that are taken.
    pub steps: usize,
    /// Values lie in (low, high): for images (0, 2^bits).
    pub range: (f64, f64),
    /// The size of the first step in the middle of the range, as a share of it.
    pub first: f64,
    /// The size of the last step in the middle of the range, as a share of it.
    pub last: f64,
}

impl Inpainting {
    /// `steps` steps from a 16th of the range, 16 grey levels, down to a thousandth of it. 200 of them add up
    /// to 12 in u, nearly from black to white.
    pub fn new(steps: usize, range: (f64, f64)) -> Self {
        Self { steps, range, first: 1. / 16., last: 1e-3 }
    }
}

/// Fills in what is missing of x (B, ..) by gradient ascent of log p from `start`, the known values fixed:
///
/// ```text
/// x_i     = low + (high - low) / (1 + exp(-u_i)) where missing,     g_i = d log p(x_i) / du
/// u_0     = logit((start - low) / (high - low)),     u_i+1 = u_i + 4 a_i m_i / sqrt(v_i)
/// m_i, v_i  = moving averages of g_i and g_i^2, without their bias towards zero (Adam, arXiv 1412.6980)
/// ```
///
/// In the middle of the range a step is a_i of the range, and towards an end in proportion to the distance from it: a flow behind a
/// logit changes as fast there, and with steps of one size the black pixels of MNIST never come to rest. No value comes closer to an end
/// than a 512th of the range, half a grey level: closer to it the density of such a flow keeps rising while the grey level stays the
/// same, and steps become too small to leave the end again.
///
/// It is NICE's inpainting (section 5.2) but for two things that multi-scale flows need. Their log p is a thousand times
/// steeper in some directions than in others, so each value has a step of its own, a_i long, falling geometrically from
/// `first` to `last`. Far from all data, as at the paper's noise, the gradient of a flow's log p does not lead to data: so the
/// ascent starts from what the caller gives, best a sample of the flow, and adds no noise. It finds one likely completion for
/// each start, smoother than data are, since it is a peak of the density and no draw from p(missing | known).
///
/// `known` is 1 where a value is kept and 0 where it is missing, of a shape that broadcasts to x; `start` has x's shape.
/// Gives the filled examples, of x's shape, and log p before each step and at the end, (steps + 1, B).
///
/// # Errors
/// When nothing is missing, the range is empty, or a gradient is not finite.
pub fn inpaint<'a>(
    flow: &Flow,
    x: &Tensor,
    known: &Tensor,
    start: &Tensor,
    context: impl Into<Context<'a>>,
    o: &Inpainting,
) -> Result<(Tensor, Tensor)> {
    inpaint_while(flow, x, known, start, context, o, |_| true)
        .map(|done| done.expect("it goes on to its last step"))
}

/// As [`inpaint`], but `go_on` is asked before each step; `None` when it answers no.
///
/// # Errors
/// Those of [`inpaint`].
pub fn inpaint_while<'a>(
    flow: &Flow,
    x: &Tensor,
    known: &Tensor,
    start: &Tensor,
    context: impl Into<Context<'a>>,
    o: &Inpainting,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Option<(Tensor, Tensor)>> {
    const DECAYS: [f64; 2] = [0.8, 0.9];
    const END: f64 = 1. / 512.;
    let context = context.into();
    let (low, high) = o.range;
    let ordered = low < high && o.first > 0. && o.last > 0. && o.first.is_finite() && o.last.is_finite();
    if !ordered || o.steps == 0 {
        bail!("inpainting needs at least one step, steps above 0 and a range, got {o:?}");
    }
    same_shape(x, start)?;
    let known = known.broadcast_as(x.shape())?.to_dtype(x.dtype())?.contiguous()?;
    let missing = (1. - &known)?;
    let counts = missing.flatten_from(1)?.sum(1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    if counts.contains(&0.) {
        bail!("nothing is missing: there is nothing to fill in");
    }
    let farthest = (1. / END - 1.).ln();
    let given = (x * &known)?;
    // x and dx/du, but for a factor that steps do not depend on.
    let place = |unit: &Tensor| -> Result<(Tensor, Tensor)> {
        let x = (&given + (unit.affine(high - low, low)? * &missing)?)?;
        Ok((x, ((unit * (1. - unit)?)? * &missing)?))
    };
    let unit = ((start - low)? / (high - low))?.clamp(END, 1. - END)?;
    let mut u = (unit.log()? - (1. - &unit)?.log()?)?;
    let (mut at, mut slope) = place(&unit)?;
    let (mut m, mut v) = (at.zeros_like()?, at.zeros_like()?);
    let mut climbed = Vec::with_capacity(o.steps + 1);
    for i in 0..o.steps {
        if !go_on(i) {
            return Ok(None);
        }
        let (log_p, g) = flow.score(&at, context)?;
        if !crate::params::is_finite(&g)? {
            bail!("the gradient of log p is not finite at step {i} of inpainting");
        }
        climbed.push(log_p);
        let g = (g * &slope)?;
        let [b1, b2] = DECAYS;
        m = ((m * b1)? + (&g * (1. - b1))?)?;
        v = ((v * b2)? + (g.sqr()? * (1. - b2))?)?;
        let n = i as i32 + 1;
        let size = ((&v / (1. - b2.powi(n)))?.sqrt()? + f64::from(f32::MIN_POSITIVE))?;
        let direction = ((&m / (1. - b1.powi(n)))? / size)?;
        let share = i as f64 / (o.steps.max(2) - 1) as f64;
        let step = 4. * o.first * (o.last / o.first).powf(share);
        u = (u + (direction * step)?)?.clamp(-farthest, farthest)?;
        (at, slope) = place(&(u.neg()?.exp()? + 1.)?.recip()?)?;
    }
    climbed.push(flow.log_prob(&at, context)?);
    Ok(Some((at, Tensor::stack(&climbed, 0)?)))
}

/// Every layer's output, log-det and scales or matrix for `x`, in order; see [`inspect::trace`].
///
/// # Errors
/// When x has another shape than the flow takes, and those of a layer.
pub fn trace<'a>(flow: &Flow, x: &Tensor, context: impl Into<Context<'a>>) -> Result<Vec<TraceEntry>> {
    flow.check(x)?;
    inspect::trace(flow.bijection(), x, Ctx::eval().with_context(context))
}

/// Where the bits of images x (B, C, H, W) are: (B, H, W) in f64, whose sum over positions is
///
/// ```text
/// sum_p bits_p = -log2 p(x) = -(log p_Z(z) + sum_i log |det df_i|) / ln 2
/// ```
///
/// Each term of a latent's log-density and of a log-det that belongs to one element counts at the pixel from which that element
/// came: a squeeze, a split or a permutation moves it, a coupling or an actnorm leaves it in its place. What a coupling says of
/// some channels is shared by all channels of that place. A term of no single element (the matrix of a 1x1 convolution, a prior
/// of the whole latent) is shared by all positions equally. So position p has what the flow says at p; the networks of
/// couplings see its surroundings, and the map is not a conditional density of one pixel.
///
/// # Errors
/// When the model takes no images, x has another shape, and those of a layer.
pub fn bits_by_position<'a>(model: &Model, x: &Tensor, context: impl Into<Context<'a>>) -> Result<Tensor> {
    let &[_, h, w] = model.shape() else {
        bail!("only images have positions, this model takes examples of shape {:?}", model.shape());
    };
    let ctx = Ctx::eval().with_context(context);
    let steps = trace(model, x, ctx.context)?;
    let (places, last) = inspect::positions(model.bijection(), x)?;
    let mut map = Map { b: x.dim(0)?, size: h * w, nats: vec![0.; x.dim(0)? * h * w] };
    for (step, places) in steps.iter().zip(&places) {
        match &step.stats {
            LayerStats::Elements(logs) => map.add(&step.log_det, Some(logs), places)?,
            LayerStats::Channels(logs) if places.rank() == 2 && logs.elem_count() == places.elem_count() => {
                let logs =
                    logs.reshape((1, places.elem_count()))?.broadcast_as((map.b, places.elem_count()))?;
                map.add(&step.log_det, Some(&logs), places)?;
            }
            _ => map.add(&step.log_det, None, places)?,
        }
    }
    let z = match steps.last() {
        // The levels that were factored out before the last layer, and what it gives.
        Some(step) if step.output.rank() == 4 => {
            join(&[&step.done[..], std::slice::from_ref(&step.output)].concat())?
        }
        Some(step) => step.output.clone(),
        None => x.flatten_from(1)?,
    };
    let last = last.flatten_from(1)?;
    let each = match model.prior().coding() {
        Ok(PriorCoding { mixture: None, layer: None, standard }) => Some(log_prob_of_each(&standard, &z)?),
        Ok(PriorCoding { mixture: None, layer: Some(layer), standard }) => {
            let e = log_prob_of_each(&standard, &core::forward(layer, &z, ctx)?.0)?;
            match layer.layer_stats(&z, ctx)? {
                LayerStats::Elements(logs) => Some((e + logs.to_dtype(DType::F64)?.reshape(z.shape())?)?),
                _ => Some(e),
            }
        }
        // A mixture is of the whole latent; a prior of one's own says nothing of single elements.
        _ => None,
    };
    map.add(&model.prior().log_prob(&z, ctx)?, each.as_ref(), &last)?;
    Tensor::from_vec(map.nats, (map.b, h, w), x.device())? * (-1. / std::f64::consts::LN_2)
}

/// log p of each element of z (B, D), in f64: under one distribution for all dimensions, or each dimension's own.
fn log_prob_of_each(standard: &[Standard], z: &Tensor) -> Result<Tensor> {
    let of = |standard: Standard, z: &Tensor| match standard {
        Standard::Gaussian => (z.sqr()? * -0.5)? - 0.5 * (2. * std::f64::consts::PI).ln(),
        // -softplus(z) - softplus(-z) = -|z| - 2 ln(1 + e^-|z|).
        Standard::Logistic => {
            let a = z.abs()?;
            (a.neg()?.exp()? + 1.)?.log()?.affine(-2., 0.)? - a
        }
        Standard::StudentT(df) => {
            let constant = log_constant(&Tensor::new(df, z.device())?)?.to_scalar::<f64>()?;
            ((z.sqr()? / df)? + 1.)?.log()?.affine(-0.5 * (df + 1.), constant)
        }
    };
    let z = z.to_dtype(DType::F64)?;
    match standard {
        [all] => of(*all, &z),
        each => {
            let columns = each.iter().enumerate().map(|(i, standard)| of(*standard, &z.narrow(1, i, 1)?));
            Tensor::cat(&columns.collect::<Result<Vec<_>>>()?, 1)
        }
    }
}

/// Nats by position.
struct Map {
    b: usize,
    size: usize,
    nats: Vec<f64>,
}

impl Map {
    /// Adds `total` (B,), of which `parts` says how much belongs to which element: (B, D), or (B, C', H', W') with at most the
    /// channels of `places` (1, C, H', W'). What is left is shared by all positions.
    fn add(&mut self, total: &Tensor, parts: Option<&Tensor>, places: &Tensor) -> Result<()> {
        let mut rest: Vec<f64> = total.to_dtype(DType::F64)?.to_vec1()?;
        let fits = |p: &&Tensor| match (p.dims(), places.dims()) {
            ([_, .., h, w], [_, _, i, j]) if p.rank() == 4 => (h, w) == (i, j),
            ([_, d], [_, e]) => d == e,
            _ => false,
        };
        if let Some(parts) = parts.filter(fits) {
            let (channels, values) = match parts.rank() {
                4 => (places.dim(1)?, parts.to_dtype(DType::F64)?.sum(1)?),
                _ => (1, parts.to_dtype(DType::F64)?),
            };
            let values: Vec<f64> = values.flatten_all()?.to_vec1()?;
            let places: Vec<f64> = places.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
            let area = values.len() / self.b;
            for (i, value) in values.iter().enumerate() {
                let (example, at) = (i / area, i % area);
                rest[example] -= value;
                for channel in 0..channels {
                    let pixel = places[channel * area + at] as usize;
                    self.nats[example * self.size + pixel] += value / channels as f64;
                }
            }
        }
        for (map, rest) in self.nats.chunks_exact_mut(self.size).zip(rest) {
            map.iter_mut().for_each(|nats| *nats += rest / self.size as f64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    fn rows(t: &Tensor) -> Vec<Vec<f64>> {
        t.to_vec2().unwrap()
    }

    #[test]
    fn interpolations_begin_and_end_where_they_should() -> Result<()> {
        let (a, b) = (Tensor::new(&[3f64, 0.], &Device::Cpu)?, Tensor::new(&[0., 4f64], &Device::Cpu)?);
        let t = [0., 0.5, 1.];
        assert_eq!(rows(&lerp(&a, &b, &t)?), [[3., 0.], [1.5, 2.], [0., 4.]]);
        let half = std::f64::consts::FRAC_1_SQRT_2;
        for (got, want) in rows(&slerp(&a, &b, &t)?).iter().zip([[3., 0.], [3. * half, 4. * half], [0., 4.]])
        {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?}");
        }
        // Parallel ones have the line between them, opposite ones nothing, and a zero is no direction.
        assert_eq!(rows(&slerp(&a, &(&a * 3.)?, &[0.5])?), [[6., 0.]]);
        assert_eq!(rows(&slerp(&(&a * 0.)?, &a, &[0.5])?), [[1.5, 0.]]);
        assert!(slerp(&a, &a.neg()?, &t).unwrap_err().to_string().contains("opposite"));
        assert!(
            lerp(&a, &normal(&[3], 0, &Device::Cpu)?, &t).unwrap_err().to_string().contains("equal shape")
        );
        assert!(lerp(&a, &b, &[]).is_err());
        Ok(())
    }

    #[test]
    fn the_arc_keeps_the_length_and_the_line_does_not() -> Result<()> {
        let z = normal(&[2, 2000], 5, &Device::Cpu)?;
        let (a, b) = (z.get(0)?, z.get(1)?);
        let length = |t: Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
        let (line, arc) = (length(lerp(&a, &b, &[0.5])?)?, length(slerp(&a, &b, &[0.5])?)?);
        let end = length(a)?;
        assert!(
            (arc / end - 1.).abs() < 0.05 && (line / end * 2f64.sqrt() - 1.).abs() < 0.05,
            "{line} {arc} {end}"
        );
        Ok(())
    }

    #[test]
    fn an_attribute_is_a_difference_of_means() -> Result<()> {
        let with = Tensor::new(&[[1f64, 4.], [3., 4.]], &Device::Cpu)?;
        let without = Tensor::new(&[[1f64, 1.]], &Device::Cpu)?;
        let v = attribute(&with, &without)?;
        assert_eq!(v.to_vec1::<f64>()?, [1., 3.]);
        let moved = apply(&with, &v, &[-1., 0., 2.])?;
        assert_eq!(rows(&moved), [[0., 1.], [1., 4.], [3., 10.], [2., 1.], [3., 4.], [5., 10.]]);
        assert!(apply(&with, &v, &[]).is_err());
        let none = with.narrow(0, 0, 0)?;
        assert!(attribute(&with, &none).unwrap_err().to_string().contains("2 and 0"));
        assert!(attribute(&with, &normal(&[2, 3], 0, &Device::Cpu)?).is_err());
        Ok(())
    }

    #[test]
    fn bits_by_position_add_up_and_lie_where_the_pixels_are() -> Result<()> {
        use crate::ModelConfig;
        use crate::models::{GlowConfig, NiceConfig, RealNvpConfig};
        let glow =
            GlowConfig { shape: [3, 8, 8], levels: 2, depth: 2, width: 8, ..GlowConfig::cifar_paper() };
        let realnvp = RealNvpConfig {
            shape: [3, 8, 8],
            scales: 1,
            features: 4,
            blocks: 1,
            ..RealNvpConfig::cifar_paper()
        };
        let nice = NiceConfig { shape: vec![1, 4, 4], hidden: vec![vec![8]; 4], ..NiceConfig::mnist_paper() };
        for config in [ModelConfig::Glow(glow), ModelConfig::RealNvp(realnvp), ModelConfig::Nice(nice)] {
            let model = Model::new(config, 0, DType::F64, &Device::Cpu)?;
            model.params().perturb(1, 0.1)?;
            let x = ((normal(&[&[2], model.shape()].concat(), 3, &Device::Cpu)? * 20.)? + 128.)?;
            let map = bits_by_position(&model, &x, None)?;
            assert_eq!(map.dims()[1..], model.shape()[1..]);
            let sums = map.flatten_from(1)?.sum(1)?.to_vec1::<f64>()?;
            let bits = (model.bits_per_dim(&x, None)? * model.dims() as f64)?.to_vec1::<f64>()?;
            for (sum, bits) in sums.iter().zip(bits) {
                assert!((sum - bits).abs() < 1e-9 * bits.abs(), "{sum} {bits}");
            }
        }
        // Without couplings' influence a pixel far out costs at its own place: even_odd has moved it, the map moves it back.
        let nice = NiceConfig { shape: vec![1, 4, 4], hidden: vec![vec![4]; 2], ..NiceConfig::mnist_paper() };
        let model = Model::new(ModelConfig::Nice(nice), 0, DType::F64, &Device::Cpu)?;
        for (_, param) in model.params().all().into_iter().filter(|(name, _)| name.contains("coupling")) {
            param.set(&param.value().zeros_like()?)?;
        }
        let far: Vec<f64> = (0..16).map(|i| if i == 6 { 5000. } else { 0. }).collect();
        let map = bits_by_position(&model, &Tensor::from_vec(far, (1, 1, 4, 4), &Device::Cpu)?, None)?;
        let map = map.flatten_all()?.to_vec1::<f64>()?;
        let most = (0..16).max_by(|&i, &j| map[i].total_cmp(&map[j]));
        assert_eq!(most, Some(6), "{map:?}");
        Ok(())
    }

    #[test]
    fn the_nearest_are_found_across_blocks() -> Result<()> {
        let all = normal(&[1100, 6], 2, &Device::Cpu)?;
        let queries = Tensor::cat(&[all.narrow(0, 700, 1)?, (all.narrow(0, 3, 1)? + 0.01)?], 0)?;
        let (places, distances) = nearest(&queries, &all, 3)?;
        let (places, distances) = (places.to_vec2::<u32>()?, rows(&distances));
        assert_eq!((places[0][0], distances[0][0]), (700, 0.));
        assert_eq!(places[1][0], 3);
        assert!((distances[1][0] - 0.01).abs() < 1e-12);
        assert!(distances.iter().all(|d| d[0] <= d[1] && d[1] <= d[2]));
        for k in [0, 1101] {
            assert!(nearest(&queries, &all, k).is_err());
        }
        assert!(nearest(&queries.narrow(1, 0, 5)?, &all, 1).is_err());
        Ok(())
    }
}
