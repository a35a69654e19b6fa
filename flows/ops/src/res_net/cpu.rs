//! The residual network on the CPU.

use super::spec::{Conv, Output, ResNetGradients, ResNetParams, SavedState};
use crate::batch_norm::cpu::{Norm, NormGrad};
use crate::conv::cpu as conv;
use crate::conv::rows::{Plane, Sink, Source, Tiles};
use crate::conv::spec::Dims;
use crate::conv::three::{Scratch, Three};
use crate::elementwise::swap_axes;
use crate::gemm::Mat;
use crate::inner::{Inner, dispatch_inner};
use crate::precision::rounds;
use crate::real::{Real, View, tensor};
use crate::simd;
use crate::sums::{mean_vars, row_totals};
use crate::threads::{Shared, ranges, unwritten};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use std::borrow::Cow;

/// What a pass keeps: the effective layers and each direction's 1/|v|, in the order of the convolutions.
struct Pass<I: Three> {
    layers: Layers<I>,
    inverse: Vec<Vec<f64>>,
    kept: Kept<I>,
    shape: [usize; 4],
}

fn numbers<T: Real>(t: &Tensor) -> Result<Vec<T>> {
    Ok(View::of("res_net", t)?.get::<T>("res_net")?.to_vec())
}

/// The effective layers for images of (B, _, H, W), and 1/|v| of each.
fn layers<T: Real, I: Three<Real = T>>(
    p: &ResNetParams,
    [b, _, h, w]: [usize; 4],
) -> Result<(Layers<I>, Vec<Vec<f64>>)> {
    let (mut inverse, mut layers) = (Vec::new(), Vec::new());
    for conv in &p.convs {
        let (o, c, k, _) = conv.weight.dims4()?;
        let (kernel, inv) = match &conv.magnitude {
            Some(g) => weight_norm(&numbers::<T>(&conv.weight)?, &numbers::<T>(g)?),
            None => (numbers(&conv.weight)?, Vec::new()),
        };
        inverse.push(inv);
        layers.push(Layer::new(kernel, numbers(&conv.bias)?, Dims { c, o, b, h, w, k }));
    }
    let mut next = layers.into_iter();
    let mut take = || next.next().expect("as many as there are convolutions");
    let first = take();
    let skip = p.skip.then(&mut take);
    let block = |_| {
        let (conv1, conv2) = (take(), take());
        Block { conv1, conv2, skip: p.skip.then(&mut take) }
    };
    let blocks = (0..p.blocks()).map(block).collect();
    let last = take();
    Ok((Layers { first, skip, blocks, last }, inverse))
}

/// [x, -x, mask] channel-major.
fn input<T: Real>(p: &ResNetParams, x: &[T], [b, c, h, w]: [usize; 4]) -> Result<Vec<T>> {
    let mut u = swap_axes(x, b, c);
    if p.signed_input {
        u.extend_from_within(..);
        u[b * c * h * w..].iter_mut().for_each(|v| *v = -*v);
    }
    if let Some(mask) = &p.mask {
        let mask = numbers::<T>(mask)?;
        for _ in 0..b {
            u.extend_from_slice(&mask);
        }
    }
    Ok(u)
}

/// How the i-th normalisation maps x (C, n), and the batch's mean and variance if it uses them.
fn norm<T: Real, I: Inner<Real = T>>(
    p: &ResNetParams,
    i: usize,
    x: &[I],
    n: usize,
) -> Result<(Norm<T>, Option<Tensor>)> {
    let Some(norm) = &p.norms[i] else { return Ok((Norm::identity(x.len() / n.max(1)), None)) };
    let (gamma, beta) = (numbers::<T>(&norm.gamma)?, numbers::<T>(&norm.beta)?);
    if p.batch_statistics {
        let batch = mean_vars(x, n);
        let (means, vars) = (batch.iter().map(|m| m.0), batch.iter().map(|m| m.1));
        let statistics = tensor(means.chain(vars).map(T::of).collect::<Vec<T>>(), (2, batch.len()))?;
        return Ok((Norm::new(&batch, &gamma, &beta, p.eps, true), Some(statistics)));
    }
    let f64s = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
    let running: Vec<_> = f64s(&norm.mean)?.into_iter().zip(f64s(&norm.var)?).collect();
    Ok((Norm::new(&running, &gamma, &beta, p.eps, false), None))
}

/// [`super::forward`].
pub(crate) fn forward(p: &ResNetParams, x: &Tensor, keep: bool) -> Result<Output> {
    let (b, c, h, w) = x.dims4()?;
    let (shape, n) = ([b, c, h, w], b * h * w);
    dispatch_inner!("res_net", x.dtype(), rounds(x.dtype()), I => {
        let view = View::of("res_net", x)?;
        let u = I::all(input(p, view.get("res_net")?, shape)?);
        let (layers, inverse) = layers::<_, I>(p, shape)?;
        let mut statistics = Vec::new();
        let (y, kept) = layers.forward(u, keep, |i, x| {
            let (norm, batch) = norm(p, i, x, n)?;
            statistics.push(batch);
            Ok(norm)
        })?;
        let outputs = layers.last.d.o;
        let y = tensor(swap_axes(&y, outputs, b), (b, outputs, h, w))?;
        let saved = kept.map(|kept| SavedState(Box::new(Pass { layers, inverse, kept, shape })));
        Ok(Output { y, statistics, saved })
    })
}

/// [`super::backward`].
pub(crate) fn backward(p: &ResNetParams, saved: SavedState, gy: &Tensor) -> Result<ResNetGradients> {
    let rounded = saved.0.is::<Pass<half::bf16>>();
    dispatch_inner!("res_net", gy.dtype(), rounded, I => match saved.0.downcast::<Pass<I>>() {
        Ok(pass) => pass.backward(p, gy),
        Err(_) => bail!("the pass was not one on the CPU in {:?}", gy.dtype()),
    })
}

impl<T: Real, I: Three<Real = T>> Pass<I> {
    fn backward(self, p: &ResNetParams, gy: &Tensor) -> Result<ResNetGradients> {
        let Pass { layers, inverse, kept, shape: [b, c, h, w] } = self;
        let want = [b, layers.last.d.o, h, w];
        if gy.dims() != want {
            bail!("the gradient of an output {want:?} was given as {:?}", gy.shape());
        }
        let view = View::of("res_net", gy)?;
        let gy = swap_axes(view.get::<T>("res_net")?, b, layers.last.d.o);
        let NetGrad { u, layers, norms } = layers.backward(kept, &gy);
        let mut convs = Vec::new();
        for ((conv, mut g), inverse) in p.convs.iter().zip(layers).zip(&inverse) {
            let magnitude = match &conv.magnitude {
                Some(m) => {
                    let gm = weight_norm_back(&mut g.w, &numbers(&conv.weight)?, &numbers(m)?, inverse);
                    Some(tensor(gm, m.shape())?)
                }
                None => None,
            };
            let (weight, bias) = (tensor(g.w, conv.weight.shape())?, tensor(g.bias, conv.bias.shape())?);
            convs.push(Conv { weight, magnitude, bias });
        }
        let of = |(norm, g): (&Option<_>, NormGrad<T>)| match norm {
            Some(_) => {
                let n = g.gamma.len();
                Ok(Some([tensor(g.gamma, n)?, tensor(g.beta, n)?]))
            }
            None => Ok(None),
        };
        let norms = p.norms.iter().zip(norms).map(of).collect::<Result<Vec<_>>>()?;
        let n = b * c * h * w;
        let mut gx = u[..n].to_vec();
        if p.signed_input {
            gx.iter_mut().zip(&u[n..2 * n]).for_each(|(a, &b)| *a -= b);
        }
        Ok(ResNetGradients { x: tensor(swap_axes(&gx, c, b), (b, c, h, w))?, convs, norms })
    }
}

/// A convolution's effective kernel (after weight norm) and bias.
struct Layer<I: Three> {
    w: Vec<I::Real>,
    bias: Vec<I::Real>,
    /// For 3x3 kernels with enough channels.
    kernel: Option<I::Kernel>,
    d: Dims,
}

/// The gradients of a layer's effective kernel and bias.
struct LayerGrad<T> {
    w: Vec<T>,
    bias: Vec<T>,
}

impl<T: Real, I: Three<Real = T>> Layer<I> {
    /// w (O, C, k, k), on images of `d`.
    fn new(w: Vec<T>, bias: Vec<T>, d: Dims) -> Self {
        let kernel = conv::many(d).then(|| I::kernel(&w, d.o, d.c));
        Self { w, bias, kernel, d }
    }

    fn tiles(&self) -> Tiles {
        Tiles { h: self.d.h, w: self.d.w }
    }

    /// `base` + w * r(x) + bias; without a norm r is the identity.
    fn forward<O: Inner<Real = T>>(&self, x: &[I], norm: Option<&Norm<T>>, base: Option<&[I]>) -> Vec<O> {
        let (d, n) = (self.d, self.d.cols());
        if let Some(kernel) = &self.kernel {
            let t = self.tiles();
            // SAFETY: tiles cover all rows of all images.
            let mut out = unsafe { unwritten(d.o * n) };
            let shared = &Shared::new(&mut out);
            let plane = Plane { x, t, images: d.b };
            ranges(d.b * t.rows()).into_par_iter().for_each(|r| {
                let mut sink = Add { out: shared, base, bias: &self.bias, t, images: d.b };
                let s = &mut Scratch::new();
                match norm {
                    Some(norm) => {
                        let source = Activated { plane, norm };
                        I::convolve(kernel, false, t, r, s, &source, &mut sink);
                    }
                    None => I::convolve(kernel, false, t, r, s, &plane, &mut sink),
                }
            });
            return out;
        }
        let x = &activated(x, norm);
        if d.k == 1 {
            // SAFETY: each output channel's row is written whole.
            let mut out: Vec<T> = unsafe { unwritten(d.o * n) };
            out.par_chunks_mut(n.max(1)).zip(&self.bias).enumerate().for_each(|(o, (row, &b))| match base {
                Some(base) => simd::map(row, &base[o * n..][..n], |h| h.to_real() + b),
                None => row.fill(b),
            });
            conv::pointwise_add::<T, I>(&mut out, x, Mat::rows(&self.w, d.c), d);
            return O::all(out);
        }
        let mut out = conv::forward::<T, I>(x, &self.w, d);
        out.par_chunks_mut(n.max(1)).enumerate().for_each(|(o, row)| {
            let b = self.bias[o];
            match base {
                Some(base) => row.iter_mut().zip(&base[o * n..]).for_each(|(v, &h)| *v += h.to_real() + b),
                None => row.iter_mut().for_each(|v| *v += b),
            }
        });
        O::all(out)
    }

    /// The gradient of r(x), and of the layer, from that of the output.
    fn backward(&self, x: &[I], norm: Option<&Norm<T>>, gy: &[T]) -> (Vec<T>, LayerGrad<T>) {
        let (d, n) = (self.d, self.d.cols());
        let bias = row_totals(gy, n);
        if let Some(kernel) = &self.kernel {
            let t = self.tiles();
            let (xp, gp) = (Plane { x, t, images: d.b }, Plane { x: gy, t, images: d.b });
            // SAFETY: tiles cover all rows of all images.
            let mut gx = unsafe { unwritten(d.c * n) };
            let shared = &Shared::new(&mut gx);
            let parts = ranges(d.b * t.rows())
                .into_par_iter()
                .map(|r| {
                    let s = &mut Scratch::new();
                    let mut sink = conv::Rows { out: shared, t, images: d.b };
                    I::convolve(kernel, true, t, r.clone(), s, &gp, &mut sink);
                    match norm {
                        Some(norm) => {
                            I::kernel_grad((d.o, d.c), t, r, s, &Activated { plane: xp, norm }, &gp)
                        }
                        None => I::kernel_grad((d.o, d.c), t, r, s, &xp, &gp),
                    }
                })
                .collect();
            return (gx, LayerGrad { w: I::finish(parts), bias });
        }
        let w = conv::backward_weight::<T, I>(&activated(x, norm), gy, d);
        (conv::backward_input::<T, I>(gy, &self.w, d), LayerGrad { w, bias })
    }
}

/// r(x); without a norm r is the identity.
fn activated<'a, I: Inner>(x: &'a [I], norm: Option<&Norm<I::Real>>) -> Cow<'a, [I::Real]> {
    match norm {
        Some(norm) => norm.apply(x).into(),
        None => I::reals(x),
    }
}

/// Rows of relu(bn(x)).
struct Activated<'a, I: Inner> {
    plane: Plane<'a, I>,
    norm: &'a Norm<I::Real>,
}

impl<T: Real, I: Inner<Real = T>> Source<T> for Activated<'_, I> {
    #[inline(always)]
    fn row(&self, c: usize, image: usize, i: usize, out: &mut [T]) {
        let (m, a, b) = self.norm.of(c);
        simd::map(out, self.plane.slice(c, image, i), |v| {
            let u = (v.to_real() - m) * a + b;
            // Written so that a NaN passes: damaged weights must not look like good ones.
            if u < T::default() { T::default() } else { u }
        });
    }
}

/// out = base + row + bias.
struct Add<'a, I: Inner, O> {
    out: &'a Shared<O>,
    base: Option<&'a [I]>,
    bias: &'a [I::Real],
    t: Tiles,
    images: usize,
}

impl<T: Real, I: Inner<Real = T>, O: Inner<Real = T>> Sink<T> for Add<'_, I, O> {
    #[inline(always)]
    fn row(&mut self, o: usize, image: usize, i: usize, row: &[T]) {
        let at = ((o * self.images + image) * self.t.h + i) * self.t.w;
        // SAFETY: threads have their own rows of tiles.
        let out = unsafe { self.out.part(at, row.len()) };
        let b = self.bias[o];
        match self.base {
            Some(base) => {
                simd::zip(out, row, &base[at..at + row.len()], |v, h| O::from_real(v + b + h.to_real()))
            }
            None => simd::map(out, row, |v| O::from_real(v + b)),
        }
    }
}

/// One residual block: two convolutions, and the skip after it.
struct Block<I: Three> {
    conv1: Layer<I>,
    conv2: Layer<I>,
    skip: Option<Layer<I>>,
}

/// The network's effective layers.
struct Layers<I: Three> {
    first: Layer<I>,
    skip: Option<Layer<I>>,
    blocks: Vec<Block<I>>,
    last: Layer<I>,
}

/// What the backward needs: every convolution's input before r, and how r was computed.
struct Kept<I: Inner> {
    u: Vec<I>,
    h: Vec<Vec<I>>,
    c: Vec<Vec<I>>,
    s: Option<Vec<I>>,
    norms: Vec<Norm<I::Real>>,
}

/// Gradients in the order first, skip, (conv1, conv2, skip) of each block, last; and of norms in the order of the pass.
struct NetGrad<T> {
    u: Vec<T>,
    layers: Vec<LayerGrad<T>>,
    norms: Vec<NormGrad<T>>,
}

impl<T: Real, I: Three<Real = T>> Layers<I> {
    /// y (O, B H W) of u (C, B H W). `norm` makes the i-th normalisation of the pass from its input; without `keep`
    /// activations are dropped as the pass goes on.
    fn forward(
        &self,
        u: Vec<I>,
        keep: bool,
        mut norm: impl FnMut(usize, &[I]) -> Result<Norm<T>>,
    ) -> Result<(Vec<T>, Option<Kept<I>>)> {
        let mut kept = Kept { u: Vec::new(), h: Vec::new(), c: Vec::new(), s: None, norms: Vec::new() };
        let mut h: Vec<I> = self.first.forward(&u, None, None);
        let mut s: Option<Vec<I>> = self.skip.as_ref().map(|skip| skip.forward(&h, None, None));
        for (i, block) in self.blocks.iter().enumerate() {
            let n1 = norm(2 * i, &h)?;
            let c: Vec<I> = block.conv1.forward(&h, Some(&n1), None);
            let n2 = norm(2 * i + 1, &c)?;
            let next = block.conv2.forward(&c, Some(&n2), Some(&h));
            if let Some(skip) = &block.skip {
                let sum = s.take().expect("skips are all or none");
                s = Some(skip.forward(&next, None, Some(&sum)));
            }
            if keep {
                kept.h.push(std::mem::replace(&mut h, next));
                kept.c.push(c);
                kept.norms.extend([n1, n2]);
            } else {
                h = next;
            }
        }
        let n = norm(2 * self.blocks.len(), s.as_ref().unwrap_or(&h))?;
        let y = self.last.forward(s.as_ref().unwrap_or(&h), Some(&n), None);
        if !keep {
            return Ok((y, None));
        }
        kept.h.push(h);
        kept.norms.push(n);
        Ok((y, Some(Kept { u, s, ..kept })))
    }

    /// The gradients, from that of y.
    fn backward(&self, kept: Kept<I>, gy: &[T]) -> NetGrad<T> {
        let Kept { u, mut h, mut c, s, mut norms } = kept;
        let (mut layers, mut norm_grads) = (Vec::new(), Vec::new());
        let top = s.as_ref().unwrap_or_else(|| h.last().expect("h_0 at least"));
        let norm = norms.pop().expect("kept");
        let (mut gs, g) = self.last.backward(top, Some(&norm), gy);
        layers.push(g);
        norm_grads.push(norm.backward(&mut gs, top));
        drop(s);
        let skips = self.skip.is_some();
        // With skips the last h feeds its skip alone.
        let mut gh = if skips { None } else { Some(std::mem::take(&mut gs)) };
        for block in self.blocks.iter().rev() {
            let last = h.pop().expect("one for each block");
            if let Some(skip) = &block.skip {
                layers.push(skip.skipped(&last, &gs, &mut gh));
            }
            drop(last);
            let g = gh.as_ref().expect("the block's output is used");
            let (x, c) = (h.last().expect("the block's input"), c.pop().expect("one for each block"));
            let (n2, n1) = (norms.pop().expect("kept"), norms.pop().expect("kept"));
            let (mut gc, g2) = block.conv2.backward(&c, Some(&n2), g);
            norm_grads.push(n2.backward(&mut gc, &c));
            drop(c);
            let (mut gx, g1) = block.conv1.backward(x, Some(&n1), &gc);
            norm_grads.push(n1.backward(&mut gx, x));
            layers.extend([g2, g1]);
            add(gh.as_mut().expect("as above"), &gx);
        }
        let first = h.pop().expect("h_0");
        if let Some(skip) = &self.skip {
            layers.push(skip.skipped(&first, &gs, &mut gh));
        }
        drop((first, gs));
        let (gu, g) = self.first.backward(&u, None, &gh.expect("h_0 is used"));
        layers.push(g);
        layers.reverse();
        norm_grads.reverse();
        NetGrad { u: gu, layers, norms: norm_grads }
    }
}

impl<T: Real, I: Three<Real = T>> Layer<I> {
    /// A skip's gradients; that of its input is added to `gh`.
    fn skipped(&self, h: &[I], gs: &[T], gh: &mut Option<Vec<T>>) -> LayerGrad<T> {
        let (d, n) = (self.d, self.d.cols());
        let (w, turned) = (Mat::transposed(&self.w, d.c), Dims { c: d.o, o: d.c, ..d });
        match gh {
            Some(sum) => conv::pointwise_add::<T, I>(sum, gs, w, turned),
            None => *gh = Some(conv::pointwise::<T, I>(gs, w, turned)),
        }
        LayerGrad { w: conv::backward_weight::<T, I>(&I::reals(h), gs, d), bias: row_totals(gs, n) }
    }
}

fn add<T: Real>(a: &mut [T], b: &[T]) {
    a.par_chunks_mut(1 << 15).zip(b.par_chunks(1 << 15)).for_each(|(a, b)| {
        for (a, &b) in a.iter_mut().zip(b) {
            *a += b;
        }
    });
}

/// w = g v / |v| for each output channel: the effective kernel, and 1 / |v|.
fn weight_norm<T: Real>(v: &[T], g: &[T]) -> (Vec<T>, Vec<f64>) {
    let n = v.len() / g.len().max(1);
    let mut w = v.to_vec();
    let mut inverse = Vec::with_capacity(g.len());
    for (row, &g) in w.chunks_exact_mut(n.max(1)).zip(g) {
        // As the layers that it replaces: a direction of zeros has no norm to divide by.
        let norm = (row.iter().map(|v| v.f64() * v.f64()).sum::<f64>() + 1e-12).sqrt();
        let a = T::of(g.f64() / norm);
        row.iter_mut().for_each(|v| *v = *v * a);
        inverse.push(1. / norm);
    }
    (w, inverse)
}

/// The gradients of v (in place of that of w) and of g:
/// g_g = g_w . v / |v|,  g_v = g / |v| (g_w - (g_w . v / |v|) v / |v|).
fn weight_norm_back<T: Real>(gw: &mut [T], v: &[T], g: &[T], inverse: &[f64]) -> Vec<T> {
    let n = v.len() / g.len().max(1);
    let rows = gw.chunks_exact_mut(n.max(1)).zip(v.chunks_exact(n.max(1)));
    rows.zip(g.iter().zip(inverse))
        .map(|((gw, v), (&g, &inverse))| {
            let along = gw.iter().zip(v).map(|(a, b)| a.f64() * b.f64()).sum::<f64>() * inverse;
            let (a, b) = (T::of(g.f64() * inverse), T::of(along * inverse));
            for (gw, &v) in gw.iter_mut().zip(v) {
                *gw = a * (*gw - b * v);
            }
            T::of(along)
        })
        .collect()
}
