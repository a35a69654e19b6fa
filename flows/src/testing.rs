//! Checks of the contract of [`Bijection`], for the library's layers and your own: the inverse, the log-det and the gradients.
//!
//! ```text
//! f^-1(f(x)) = x,     log_det(x) = log |det df/dx|,     d/dtheta (w . f(x) + log_det(x)) as central differences have it
//! ```
//!
//! and [`Bijection::backward`] finds the gradients that candle's graph finds, with stored and with reconstructed inputs, in
//! evaluation and in training.
//!
//! [`check_net`] compares a network's own backward with candle's graph in the same way.
//!
//! The Jacobian comes from one backward over D copies of x: copy i is differentiated through output i. Perturb the
//! parameters first ([`ParamStore::perturb`]): at initialisation zero convolutions make every coupling trivial and hide bugs.

use crate::codec;
use crate::core::inspect::visit;
use crate::core::{Bijection, Context, Ctx, Gradients, Memory, Mode, Net};
use crate::ops::linalg;
use crate::params::{self, ParamStore, rng_for};
use candle_core::{DType, Result, Tensor, Var, bail};
use rand::Rng;

/// The largest deviations allowed (and, as a result, met).
#[derive(Clone, Copy, Debug)]
pub struct Deviation {
    /// max |f^-1(f(x)) - x| / (1 + max |x|).
    pub inverse: f64,
    /// max |log_det - log |det J||.
    pub log_det: f64,
    /// max |gradient - central difference| / (1 + |gradient|), over x and a sample of each parameter.
    pub gradient: f64,
    /// max |gradient of `backward` - gradient of the graph| / (1 + max |gradient|), and the reconstructed input's distance, over
    /// x and every parameter, both [`Memory`] modes, evaluation and training.
    pub backward: f64,
}

impl Deviation {
    /// The bounds for single layers in f64.
    pub const LAYER: Self = Self { inverse: 1e-9, log_det: 1e-8, gradient: 1e-6, backward: 1e-9 };
    /// The bounds for whole models in f64.
    pub const MODEL: Self = Self { inverse: 1e-6, log_det: 1e-6, gradient: 1e-6, backward: 1e-9 };
}

/// The pass of the law: evaluation, with a graph.
fn ctx(context: Context) -> Ctx {
    Ctx { mode: Mode::Eval, context, grad: true }
}

/// Deterministic N(0, 1) numbers in f64 of the given shape.
///
/// # Errors
/// When the device has no memory left.
pub fn normal(shape: &[usize], seed: u64, like: &candle_core::Device) -> Result<Tensor> {
    let n = shape.iter().product();
    Tensor::from_vec(params::normal(n, 1., &mut rng_for(seed, "testing")), shape, like)
}

fn max_abs(t: &Tensor) -> Result<f64> {
    t.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar()
}

/// max |got - want| / (1 + max |want|).
///
/// # Errors
/// When `got` has another shape or is not finite, naming it as `what`.
fn distance(what: &str, got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.shape() != want.shape() {
        bail!("{what} has shape {:?}, not {:?}", got.shape(), want.shape());
    }
    // The largest difference leaves out a NaN.
    if !params::is_finite(got)? {
        bail!("{what} is not finite");
    }
    Ok(max_abs(&(got - want)?)? / (1. + max_abs(want)?))
}

/// Measures the deviations on a batch x in f64, at most 64 dimensions; `params` are the trained ones.
///
/// # Errors
/// When a deviation is above `bound` or not a number, saying which; where `f` is made of layers, with the path of the first
/// layer that does not obey the law by itself.
pub fn check<'a>(
    f: &dyn Bijection,
    x: &Tensor,
    context: impl Into<Context<'a>>,
    params: &ParamStore,
    bound: Deviation,
) -> Result<Deviation> {
    let context = context.into();
    let met = check_one(f, x, context, (params, true), bound);
    if met.is_err() && f.composite().is_some() {
        visit(f, x, &mut |leaf| {
            check_one(leaf.layer, leaf.x, context, (params, false), bound)?;
            Ok(leaf.layer.forward(leaf.x, ctx(context).with_grad(false))?.0)
        })?;
    }
    met
}

fn check_one(
    f: &dyn Bijection,
    x: &Tensor,
    context: Context,
    (params, whole): (&ParamStore, bool),
    bound: Deviation,
) -> Result<Deviation> {
    let d: usize = x.dims()[1..].iter().product();
    if x.dtype() != DType::F64 || d > 64 {
        bail!("the law is tested in f64 and at most 64 dimensions, got {:?} of {d}", x.dtype());
    }
    let (z, log_det) = f.forward(x, ctx(context))?;
    if log_det.dims() != [x.dim(0)?] {
        bail!("log-det has shape {:?}, not ({},)", log_det.shape(), x.dim(0)?);
    }
    let met = Deviation {
        inverse: distance("the inverse", &f.inverse(&z.detach(), context)?, x)?,
        log_det: log_det_deviation(f, x, context, &log_det.detach())?,
        gradient: gradient_deviation(f, x, context, params, whole)?,
        backward: backward_deviation(f, x, context, params)?,
    };
    for (what, got, max) in [
        ("inverse", met.inverse, bound.inverse),
        ("log-det", met.log_det, bound.log_det),
        ("gradient", met.gradient, bound.gradient),
        ("layer's own backward", met.backward, bound.backward),
    ] {
        if got.is_nan() || got > max {
            bail!("the {what} is off by {got:e}, {max:e} is allowed");
        }
    }
    Ok(met)
}

fn log_det_deviation(f: &dyn Bijection, x: &Tensor, context: Context, log_det: &Tensor) -> Result<f64> {
    let b = x.dim(0)?;
    let d: usize = x.dims()[1..].iter().product();
    let got = log_det.to_vec1::<f64>()?;
    let mut worst = 0f64;
    for (i, got) in got.iter().enumerate().take(b) {
        let copies = Var::from_tensor(&x.narrow(0, i, 1)?.repeat(copies_of(d, x.rank()))?)?;
        let of_one = |t: &Tensor| t.narrow(0, i, 1)?.repeat(copies_of(d, t.rank()));
        let labels = context.labels.map(of_one).transpose()?;
        let features = context.features.map(of_one).transpose()?;
        let copied = Context { labels: labels.as_ref(), features: features.as_ref() };
        let (z, _) = f.forward(copies.as_tensor(), ctx(copied))?;
        let eye = Tensor::eye(d, DType::F64, x.device())?;
        let grads = (z.flatten_from(1)? * eye)?.sum_all()?.backward()?;
        let Some(j) = grads.get(&copies) else { bail!("the output does not depend on the input") };
        let (j, n) = linalg::to_host(&j.flatten_from(1)?)?;
        worst = worst.max((linalg::lu(&j, n)?.log_abs_det() - got).abs());
    }
    Ok(worst)
}

fn copies_of(d: usize, rank: usize) -> Vec<usize> {
    let mut r = vec![1; rank];
    r[0] = d;
    r
}

/// `whole` says that all of `params` belong to `f`: then a parameter without a gradient is an error.
fn gradient_deviation(
    f: &dyn Bijection,
    x: &Tensor,
    context: Context,
    params: &ParamStore,
    whole: bool,
) -> Result<f64> {
    let x = Var::from_tensor(&x.copy()?)?;
    let shape = f.forward(x.as_tensor(), ctx(context))?.0.dims().to_vec();
    let w = normal(&shape, 99, x.device())?;
    let objective = || -> Result<Tensor> {
        let (z, log_det) = f.forward(x.as_tensor(), ctx(context))?;
        (z * &w)?.sum_all()? + log_det.sum_all()?
    };
    let grads = objective()?.backward()?;
    let mut leaves = vec![("x".to_string(), x.clone())];
    leaves.extend(params.trained().into_iter().map(|(n, p)| (n, p.var().clone())));
    let mut worst = 0f64;
    for (name, leaf) in leaves {
        let n = leaf.elem_count();
        let Some(g) = grads.get(&leaf) else {
            if whole { bail!("`{name}` has no gradient") } else { continue }
        };
        let g = g.flatten_all()?.to_vec1::<f64>()?;
        let values = leaf.flatten_all()?.to_vec1::<f64>()?;
        let mut rng = rng_for(5, &name);
        for k in 0..n.min(24) {
            let i = if n <= 24 { k } else { rng.random_range(0..n) };
            let h = 1e-5 * (1. + values[i].abs());
            let at = |v: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] = v;
                leaf.set(&Tensor::from_vec(moved, leaf.shape(), leaf.device())?)?;
                objective()?.detach().to_scalar::<f64>()
            };
            let difference = (at(values[i] + h)? - at(values[i] - h)?) / (2. * h);
            at(values[i])?;
            let off = (difference - g[i]).abs() / (1. + g[i].abs());
            if off.is_nan() {
                bail!("the gradient of `{name}` is not a number");
            }
            worst = worst.max(off);
        }
    }
    Ok(worst)
}

fn backward_deviation(f: &dyn Bijection, x: &Tensor, context: Context, params: &ParamStore) -> Result<f64> {
    let mut worst = 0f64;
    for mode in [Mode::Eval, Mode::Replay] {
        let ctx = Ctx { mode, context, grad: true };
        let leaf = Var::from_tensor(&x.copy()?)?;
        let (z, log_det) = f.forward(leaf.as_tensor(), ctx)?;
        let gz = normal(z.dims(), 98, x.device())?;
        let grad_log_det = normal(log_det.dims(), 97, x.device())?;
        let store = ((&z * &gz)?.sum_all()? + (&log_det * &grad_log_det)?.sum_all()?)?.backward()?;
        for memory in [Memory::Store, Memory::Recompute] {
            let mut grads = Gradients::new(params);
            let (y, _, saved) = f.forward_saved(x, ctx, memory)?;
            let (reconstructed, gx) = f.backward(&y, saved, (&gz, &grad_log_det), ctx, &mut grads)?;
            let grads = grads.into_grads();
            let of_x = store.get(&leaf).cloned().map_or_else(|| leaf.zeros_like(), Ok)?;
            worst = worst.max(distance("the output of the saved pass", &y, &z.detach())?);
            worst = worst.max(distance("the input of the backward pass", &reconstructed, x)?);
            worst = worst.max(distance("the gradient of the input", &gx, &of_x)?);
            for (name, p) in params.trained() {
                match (grads.get(&name), store.get(p.var())) {
                    (Some(a), Some(b)) => {
                        worst = worst.max(distance(&format!("the gradient of `{name}`"), a, b)?);
                    }
                    (None, None) => {}
                    (a, _) => {
                        let which = if a.is_some() { "the graph" } else { "the layer's own backward" };
                        bail!("{which} has no gradient of `{name}` under {mode:?}, {memory:?}");
                    }
                }
            }
        }
    }
    Ok(worst)
}

/// A network's own backward against candle's graph of it, on a random input of `shape` in f64, without class labels, in
/// evaluation and in training (nothing is written): the output, the gradient of the input and of every parameter, each within
/// `bound` of 1 + its largest element. A gradient that is missing counts as zero. Perturb the parameters first.
///
/// # Errors
/// At the first of these that is further off.
pub fn check_net(net: &dyn Net, shape: &[usize], params: &ParamStore, bound: f64) -> Result<()> {
    let x = Var::from_tensor(&normal(shape, 3, params.device())?)?;
    for mode in [Mode::Eval, Mode::Replay] {
        let ctx = Ctx { mode, context: Context::none(), grad: true };
        let want = net.forward(x.as_tensor(), ctx)?;
        let gy = normal(want.dims(), 4, params.device())?;
        let store = (&want * &gy)?.sum_all()?.backward()?;
        let mut grads = Gradients::new(params);
        let (y, saved) = net.forward_saved(&x.as_tensor().detach(), ctx.with_grad(false))?;
        let gx = net.backward(saved, &gy, &mut grads)?;
        let or_zero = |g: Option<Tensor>, v: &Var| g.map_or_else(|| v.zeros_like(), Ok);
        let of_x = or_zero(store.get(&x).cloned(), &x)?;
        let mut pairs = vec![
            ("the output".to_string(), y, want.detach()),
            ("the input's gradient".to_string(), gx, of_x),
        ];
        let mut own = grads.into_grads();
        for (name, p) in params.trained() {
            let (own, of_graph) = (own.remove(&name), store.get(p.var()).cloned());
            pairs.push((name, or_zero(own, p.var())?, or_zero(of_graph, p.var())?));
        }
        for (name, got, want) in pairs {
            let off = distance(&name, &got, &want)?;
            if off.is_nan() || off > bound {
                bail!("{name} is off by {off:e} under {mode:?}, {bound:e} is allowed");
            }
        }
    }
    Ok(())
}

/// What lossless coding makes of an example; see [`code`].
pub struct Coded {
    /// z, up to the rounding of its numbers.
    pub z: Tensor,
    /// Bits that were popped beyond those that were pushed: log2 |det dz/dx|.
    pub bits: f64,
    /// Whether x came back, and every bit with it.
    pub exact: bool,
}

/// Codes one example (1, ..) through a layer in numbers of `precision` bits, and back ([`codec`](mod@crate::codec)).
///
/// # Errors
/// When the layer is none that can be coded.
pub fn code(layer: &dyn Bijection, x: &Tensor, context: Context, precision: u32) -> Result<Coded> {
    codec::code_layer(layer, x, context, precision).map(|(z, bits, exact)| Coded { z, bits, exact })
}
