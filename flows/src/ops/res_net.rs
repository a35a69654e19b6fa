//! RealNVP's residual network as one op, forward and backward.
//!
//! ```text
//! h_0 = w * u + b,    c_i = w_i1 * r(h_i) + b_i1,    h_{i+1} = h_i + w_i2 * r(c_i) + b_i2,    r(x) = relu(bn(x))
//! s = sum_i (v_i h_i + d_i),     y = v r(s) + d         (without skips, s is the last h)
//! ```
//!
//! As separate ops each of the network's 64 x 16384 activations is written and read some ten times a step. Here batch norm
//! and ReLU are applied as a convolution reads its input, bias and the residual sum as it writes its output, and what is kept
//! for the backward is h_i and c_i alone: r of them is computed again where it is needed, which costs less than reading it.
//!
//! **Shapes.** Activations channel-major, (C, B H W); f32 and f64.

use super::channel::{Norm, NormGrad};
use super::conv::{self, Dims, Shared, ranges};
use super::gemm::{Mat, Real};
use super::simd;
use super::winograd::{self, Kernel, KernelGrad, Plane, Scratch, Sink, Source, Tiles};
use rayon::prelude::*;

/// A convolution's effective kernel (after weight norm) and bias.
pub(crate) struct Layer<T> {
    w: Vec<T>,
    bias: Vec<T>,
    /// For 3x3 kernels with enough channels.
    kernel: Option<Kernel<T>>,
    d: Dims,
}

/// The gradients of a layer's effective kernel and bias.
pub(crate) struct LayerGrad<T> {
    pub(crate) w: Vec<T>,
    pub(crate) bias: Vec<T>,
}

impl<T: Real> Layer<T> {
    /// w (O, C, k, k), on images of `d`.
    pub(crate) fn new(w: Vec<T>, bias: Vec<T>, d: Dims) -> Self {
        let kernel = conv::winograd(d).then(|| Kernel::new(&w, d.o, d.c));
        Self { w, bias, kernel, d }
    }

    fn tiles(&self) -> Tiles {
        Tiles { h: self.d.h, w: self.d.w }
    }

    /// `base` + w * r(x) + bias; without a norm r is the identity.
    fn forward(&self, x: &[T], norm: Option<&Norm<T>>, base: Option<&[T]>) -> Vec<T> {
        let (d, n) = (self.d, self.d.cols());
        if let Some(kernel) = &self.kernel {
            let t = self.tiles();
            let mut out = vec![T::default(); d.o * n];
            let shared = &Shared::new(&mut out);
            let plane = Plane { x, t, images: d.b };
            ranges(d.b * t.rows()).into_par_iter().for_each(|r| {
                let mut sink = Add { out: shared, base, bias: &self.bias, t, images: d.b };
                let s = &mut Scratch::new();
                match norm {
                    Some(norm) => {
                        let source = Activated { plane, norm };
                        winograd::convolve(kernel, false, t, r, s, &source, &mut sink);
                    }
                    None => winograd::convolve(kernel, false, t, r, s, &plane, &mut sink),
                }
            });
            return out;
        }
        let active;
        let x = match norm {
            Some(norm) => {
                active = norm.apply(x);
                &active
            }
            None => x,
        };
        if d.k == 1 {
            let mut out = match base {
                Some(base) => base.to_vec(),
                None => vec![T::default(); d.o * n],
            };
            out.par_chunks_mut(n.max(1))
                .zip(&self.bias)
                .for_each(|(row, &b)| row.iter_mut().for_each(|v| *v += b));
            conv::pointwise_add(&mut out, x, Mat::rows(&self.w, d.c), d);
            return out;
        }
        let mut out = conv::forward(x, &self.w, d);
        out.par_chunks_mut(n.max(1)).enumerate().for_each(|(o, row)| {
            let b = self.bias[o];
            match base {
                Some(base) => row.iter_mut().zip(&base[o * n..]).for_each(|(v, &h)| *v += h + b),
                None => row.iter_mut().for_each(|v| *v += b),
            }
        });
        out
    }

    /// The gradient of r(x), and of the layer, from that of the output.
    fn backward(&self, x: &[T], norm: Option<&Norm<T>>, gy: &[T]) -> (Vec<T>, LayerGrad<T>) {
        let (d, n) = (self.d, self.d.cols());
        let bias = super::channel::row_totals(gy, n);
        if let Some(kernel) = &self.kernel {
            let t = self.tiles();
            let (xp, gp) = (Plane { x, t, images: d.b }, Plane { x: gy, t, images: d.b });
            let mut gx = vec![T::default(); d.c * n];
            let shared = &Shared::new(&mut gx);
            let parts: Vec<KernelGrad<T>> = ranges(d.b * t.rows())
                .into_par_iter()
                .map(|r| {
                    let s = &mut Scratch::new();
                    let mut sink = conv::Rows { out: shared, t, images: d.b };
                    winograd::convolve(kernel, true, t, r.clone(), s, &gp, &mut sink);
                    let mut sum = KernelGrad::new(d.o, d.c);
                    match norm {
                        Some(norm) => sum.add(t, r, s, &Activated { plane: xp, norm }, &gp),
                        None => sum.add(t, r, s, &xp, &gp),
                    }
                    sum
                })
                .collect();
            return (gx, LayerGrad { w: KernelGrad::finish(&parts), bias });
        }
        let active;
        let x = match norm {
            Some(norm) => {
                active = norm.apply(x);
                &active
            }
            None => x,
        };
        let w = conv::backward_weight(x, gy, d);
        (conv::backward_input(gy, &self.w, d), LayerGrad { w, bias })
    }
}

/// Rows of relu(bn(x)).
struct Activated<'a, T> {
    plane: Plane<'a, T>,
    norm: &'a Norm<T>,
}

impl<T: Real> Source<T> for Activated<'_, T> {
    #[inline(always)]
    fn row(&self, c: usize, image: usize, i: usize, out: &mut [T]) {
        let (m, a, b) = self.norm.of(c);
        simd::map(out, self.plane.slice(c, image, i), |v| {
            let u = (v - m) * a + b;
            // Written so that a NaN passes: damaged weights must not look like good ones.
            if u < T::default() { T::default() } else { u }
        });
    }
}

/// out = base + row + bias.
struct Add<'a, T> {
    out: &'a Shared<T>,
    base: Option<&'a [T]>,
    bias: &'a [T],
    t: Tiles,
    images: usize,
}

impl<T: Real> Sink<T> for Add<'_, T> {
    #[inline(always)]
    fn row(&mut self, o: usize, image: usize, i: usize, row: &[T]) {
        let at = ((o * self.images + image) * self.t.h + i) * self.t.w;
        // SAFETY: threads have their own rows of tiles.
        let out = unsafe { self.out.part(at, row.len()) };
        let b = self.bias[o];
        match self.base {
            Some(base) => simd::zip(out, row, &base[at..at + row.len()], |v, h| v + b + h),
            None => simd::map(out, row, |v| v + b),
        }
    }
}

/// One residual block: two convolutions, and the skip after it.
pub(crate) struct Block<T> {
    pub(crate) conv1: Layer<T>,
    pub(crate) conv2: Layer<T>,
    pub(crate) skip: Option<Layer<T>>,
}

/// The network's effective layers.
pub(crate) struct Layers<T> {
    pub(crate) first: Layer<T>,
    pub(crate) skip: Option<Layer<T>>,
    pub(crate) blocks: Vec<Block<T>>,
    pub(crate) last: Layer<T>,
}

/// What the backward needs: every convolution's input before r, and how r was computed.
pub(crate) struct Kept<T> {
    u: Vec<T>,
    h: Vec<Vec<T>>,
    c: Vec<Vec<T>>,
    s: Option<Vec<T>>,
    norms: Vec<Norm<T>>,
}

/// Gradients in the order first, skip, (conv1, conv2, skip) of each block, last; and of norms in the order of the pass.
pub(crate) struct NetGrad<T> {
    pub(crate) u: Vec<T>,
    pub(crate) layers: Vec<LayerGrad<T>>,
    pub(crate) norms: Vec<NormGrad<T>>,
}

impl<T: Real> Layers<T> {
    /// y (O, B H W) of u (C, B H W). `norm` makes the i-th normalisation of the pass from its input; without `keep`
    /// activations are dropped as the pass goes on.
    pub(crate) fn forward<E>(
        &self,
        u: Vec<T>,
        keep: bool,
        mut norm: impl FnMut(usize, &[T]) -> Result<Norm<T>, E>,
    ) -> Result<(Vec<T>, Option<Kept<T>>), E> {
        let mut kept = Kept { u: Vec::new(), h: Vec::new(), c: Vec::new(), s: None, norms: Vec::new() };
        let mut h = self.first.forward(&u, None, None);
        let mut s = self.skip.as_ref().map(|skip| skip.forward(&h, None, None));
        for (i, block) in self.blocks.iter().enumerate() {
            let n1 = norm(2 * i, &h)?;
            let c = block.conv1.forward(&h, Some(&n1), None);
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
    pub(crate) fn backward(&self, kept: Kept<T>, gy: &[T]) -> NetGrad<T> {
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

impl<T: Real> Layer<T> {
    /// A skip's gradients; that of its input is added to `gh`.
    fn skipped(&self, h: &[T], gs: &[T], gh: &mut Option<Vec<T>>) -> LayerGrad<T> {
        let (d, n) = (self.d, self.d.cols());
        let mut sum = gh.take().unwrap_or_else(|| vec![T::default(); d.c * n]);
        conv::pointwise_add(&mut sum, gs, Mat::transposed(&self.w, d.c), Dims { c: d.o, o: d.c, ..d });
        *gh = Some(sum);
        LayerGrad { w: conv::backward_weight(h, gs, d), bias: super::channel::row_totals(gs, n) }
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
pub(crate) fn weight_norm<T: Real>(v: &[T], g: &[T]) -> (Vec<T>, Vec<f64>) {
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
pub(crate) fn weight_norm_back<T: Real>(gw: &mut [T], v: &[T], g: &[T], inverse: &[f64]) -> Vec<T> {
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
