//! The convolutional network on the CPU: a thread takes a block of images through the whole network.

use super::spec::{ConvLayer, ConvNetParams, SavedState};
use crate::conv::cpu::{im2col, shift_add};
use crate::conv::spec::Dims;
use crate::gemm::{Mat, MatMut};
use crate::inner::{Inner, dispatch_inner};
use crate::precision::rounds;
use crate::real::{Real, View, tensor};
use crate::simd::{Job, Width, wide};
use crate::threads::{ranges, unwritten};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Runs `f` on the parameters' numbers and the sizes for `x`.
fn with_parts<T: Real, R>(
    params: &ConvNetParams,
    x: &Tensor,
    f: impl FnOnce(Sizes, &Parts<&[T]>) -> Result<R>,
) -> Result<R> {
    let [first, second, last] = params.layers.as_slice() else { bail!("a fused network has three layers") };
    let (b, inputs, h, w) = x.dims4()?;
    let mut tensors: Vec<Tensor> = [first, second, last]
        .into_iter()
        .flat_map(|l| [l.weight.clone(), l.bias.clone(), l.logs.clone()])
        .collect();
    for layer in [first, last] {
        tensors.extend(params.edge_map(layer)?);
    }
    let views = tensors.iter().map(|t| View::of("conv_net", t)).collect::<Result<Vec<_>>>()?;
    let slices = views.iter().map(|v| v.get::<T>("conv_net")).collect::<Result<Vec<_>>>()?;
    let (width, outputs) = (second.weight.dim(0)?, last.bias.dim(0)?);
    let at = |i: usize| slices.get(i).copied().unwrap_or_default();
    let parts = Parts {
        w1: at(0),
        b1: at(1),
        l1: at(2),
        w2: at(3),
        b2: at(4),
        l2: at(5),
        w3: at(6),
        b3: at(7),
        l3: at(8),
        e1: at(9),
        e3: at(10),
    };
    f(Sizes { inputs, width, outputs, images: [b, h, w] }, &parts)
}

/// [`super::forward`].
pub(crate) fn forward(params: &ConvNetParams, x: Tensor, keep: bool) -> Result<(Tensor, Option<SavedState>)> {
    dispatch_inner!("conv_net", x.dtype(), rounds(x.dtype()), I => {
        let (y, kept) = with_parts(params, &x, |sizes, parts| {
            let view = View::of("conv_net", &x)?;
            let (y, [h1, h2]) = forward_slices::<_, I>(sizes, view.get("conv_net")?, parts, keep);
            let ([b, h, w], n) = (sizes.images, h1.len());
            Ok((tensor(y, (b, sizes.outputs, h, w))?, [tensor(h1, n)?, tensor(h2, n)?]))
        })?;
        let [h1, h2] = kept;
        let saved = keep.then(|| SavedState(vec![x.clone(), h1, h2, y.clone()]));
        Ok((y, saved))
    })
}

/// [`super::backward`].
pub(crate) fn backward(
    params: &ConvNetParams,
    saved: SavedState,
    gy: &Tensor,
) -> Result<(Tensor, Vec<ConvLayer>)> {
    let [x, h1, h2, y] = saved.0.as_slice() else { bail!("the pass was not one on the CPU") };
    if gy.shape() != y.shape() {
        bail!("the gradient of an output {:?} was given as {:?}", y.shape(), gy.shape());
    }
    dispatch_inner!("conv_net", gy.dtype(), h1.dtype() == DType::BF16, I => {
        type T = <I as Inner>::Real;
        let (gx, g) = with_parts::<T, _>(params, x, |sizes, parts| {
            let views = [x, h1, h2, y, gy].map(|t| View::of("conv_net", t));
            let [x, h1, h2, y, gy] = views;
            let (x, h1, h2, y, gy) = (x?, h1?, h2?, y?, gy?);
            let kept = Kept::<I> { h1: h1.get("conv_net")?, h2: h2.get("conv_net")?, y: y.get("conv_net")? };
            Ok(backward_slices(sizes, x.get("conv_net")?, parts, &kept, gy.get("conv_net")?))
        })?;
        let gradients = [[g.w1, g.e1, g.b1, g.l1], [g.w2, Vec::new(), g.b2, g.l2], [g.w3, g.e3, g.b3, g.l3]];
        let of = |(layer, [w, e, b, l]): (&ConvLayer, [Vec<T>; 4])| {
            let o = layer.bias.dim(0)?;
            Ok(ConvLayer {
                weight: tensor(w, layer.weight.shape())?,
                edge: match layer.edge {
                    Some(_) => {
                        let n = e.len() / o.max(1);
                        params.edge_gradient(&tensor(e, (o, n))?)?
                    }
                    None => None,
                },
                bias: tensor(b, o)?,
                logs: tensor(l, o)?,
            })
        };
        let layers = params.layers.iter().zip(gradients).map(of).collect::<Result<Vec<_>>>()?;
        Ok((tensor(gx, x.shape())?, layers))
    })
}

/// The sizes of a network and of its images.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Input channels.
    inputs: usize,
    /// Hidden channels.
    width: usize,
    /// Output channels.
    outputs: usize,
    /// Images, and their sides.
    images: [usize; 3],
}

/// The parameters; e1 (width, H W) and e3 (outputs, H W) are empty where there are no edge maps. As a result: their
/// gradients.
#[derive(Clone)]
struct Parts<V> {
    w1: V,
    b1: V,
    l1: V,
    w2: V,
    b2: V,
    l2: V,
    w3: V,
    b3: V,
    l3: V,
    e1: V,
    e3: V,
}

/// Gradients, as one thread gathers them.
type Grads<T> = Parts<Vec<T>>;

impl<T: Real> Grads<T> {
    fn zeros(p: &Parts<&[T]>) -> Self {
        let z = |v: &[T]| vec![T::default(); v.len()];
        Self {
            w1: z(p.w1),
            b1: z(p.b1),
            l1: z(p.l1),
            w2: z(p.w2),
            b2: z(p.b2),
            l2: z(p.l2),
            w3: z(p.w3),
            b3: z(p.b3),
            l3: z(p.l3),
            e1: z(p.e1),
            e3: z(p.e3),
        }
    }

    fn add(&mut self, o: &Self) {
        for (a, b) in [
            (&mut self.w1, &o.w1),
            (&mut self.b1, &o.b1),
            (&mut self.l1, &o.l1),
            (&mut self.w2, &o.w2),
            (&mut self.b2, &o.b2),
            (&mut self.l2, &o.l2),
            (&mut self.w3, &o.w3),
            (&mut self.b3, &o.b3),
            (&mut self.l3, &o.l3),
            (&mut self.e1, &o.e1),
            (&mut self.e3, &o.e3),
        ] {
            a.par_chunks_mut(1 << 15).zip(b.par_chunks(1 << 15)).for_each(|(a, b)| {
                a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
            });
        }
    }
}

/// What a forward leaves for its backward: h1 and h2 in blocks of images, and y.
struct Kept<'a, I: Inner> {
    h1: &'a [I],
    h2: &'a [I],
    y: &'a [I::Real],
}

#[derive(Clone, Copy)]
struct Plan {
    s: Sizes,
    b: usize,
    h: usize,
    w: usize,
    /// Images in a block.
    step: usize,
}

impl Plan {
    fn new(s: Sizes) -> Self {
        let [b, h, w] = s.images;
        // The hidden activations of a block fill about half a megabyte: a core's second-level cache.
        let cols = (131_072 / s.width.max(1)).clamp(128, 2048);
        let share = b.div_ceil(rayon::current_num_threads()).max(1);
        Self { s, b, h, w, step: (cols / (h * w).max(1)).clamp(1, share) }
    }

    fn hw(&self) -> usize {
        self.h * self.w
    }

    fn dims(&self, images: usize, c: usize, o: usize) -> Dims {
        Dims { c, o, b: images, h: self.h, w: self.w, k: 3 }
    }

    /// The blocks of each thread.
    fn blocks(&self) -> Vec<Vec<Range<usize>>> {
        let cut = |r: Range<usize>| {
            r.clone().step_by(self.step).map(|a| a..(a + self.step).min(r.end)).collect::<Vec<_>>()
        };
        ranges(self.b).into_iter().map(cut).collect()
    }
}

/// (B, C, hw) images `r` to (C, images hw).
fn gather<T: Real>(x: &[T], c: usize, hw: usize, r: &Range<usize>, out: &mut [T]) {
    let m = r.len() * hw;
    for (k, i) in r.clone().enumerate() {
        for ch in 0..c {
            out[ch * m + k * hw..][..hw].copy_from_slice(&x[(i * c + ch) * hw..][..hw]);
        }
    }
}

/// (C, images hw) to images laid out one after the other.
fn scatter<T: Real>(src: &[T], c: usize, hw: usize, images: usize, out: &mut [T]) {
    let m = images * hw;
    for k in 0..images {
        for ch in 0..c {
            out[(k * c + ch) * hw..][..hw].copy_from_slice(&src[ch * m + k * hw..][..hw]);
        }
    }
}

/// v = act((v + e + b) exp(3 l)) in place, rows of m.
struct Affine<'a, T> {
    v: &'a mut [T],
    m: usize,
    b: &'a [T],
    l: &'a [T],
    e: &'a [T],
    hw: usize,
    relu: bool,
}

impl<T: Real> Job for Affine<'_, T> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { v, m, b, l, e, hw, relu } = self;
        let zero = T::default();
        for (ch, row) in v.chunks_exact_mut(m).enumerate() {
            let (b, a) = (b[ch], (T::of(3.) * l[ch]).exp());
            if !e.is_empty() {
                for image in row.chunks_exact_mut(hw) {
                    for (v, &e) in image.iter_mut().zip(&e[ch * hw..][..hw]) {
                        *v += e;
                    }
                }
            }
            for v in row {
                let u = (*v + b) * a;
                *v = if relu && u < zero { zero } else { u };
            }
        }
    }
}

fn affine<T: Real>(v: &mut [T], m: usize, b: &[T], l: &[T], e: &[T], hw: usize, relu: bool) {
    wide(Affine { v, m, b, l, e, hw, relu });
}

/// Scratch of one thread, sized for the largest block.
struct Scratch<T> {
    x: Vec<T>,
    cols: Vec<T>,
    taps: Vec<T>,
    y: Vec<T>,
    h1: Vec<T>,
    h2: Vec<T>,
    turned: Vec<T>,
}

impl<T: Real> Scratch<T> {
    fn new(p: &Plan) -> Self {
        let m = p.step * p.hw();
        let (c, o) = (p.s.inputs, p.s.outputs);
        let v = |n: usize| vec![T::default(); n * m];
        let n = p.s.width;
        Self {
            x: v(c),
            cols: v(9 * c.max(o)),
            taps: v(9 * c.max(o)),
            y: v(o),
            h1: v(n),
            h2: v(n),
            turned: Vec::new(),
        }
    }
}

/// w[o, c, t] as rows (t, o): out[(t o), c].
fn by_tap<T: Real>(w: &[T], o: usize, c: usize) -> Vec<T> {
    let mut out = vec![T::default(); w.len()];
    for i in 0..o {
        for j in 0..c {
            for t in 0..9 {
                out[(t * o + i) * c + j] = w[(i * c + j) * 9 + t];
            }
        }
    }
    out
}

/// w[o, c, t] as rows (t, c): out[(t c), o], the transposed convolution by taps.
fn by_tap_transposed<T: Real>(w: &[T], o: usize, c: usize) -> Vec<T> {
    let mut out = vec![T::default(); w.len()];
    for i in 0..o {
        for j in 0..c {
            for t in 0..9 {
                out[(t * c + j) * o + i] = w[(i * c + j) * 9 + t];
            }
        }
    }
    out
}

/// A left factor and what is made of it once for all blocks.
struct Factor<'a, I: Inner> {
    w: Mat<'a, I::Real>,
    packed: I::Packed,
    m: usize,
    k: usize,
}

impl<'a, I: Inner> Factor<'a, I> {
    /// w (m, k).
    fn new(w: Mat<'a, I::Real>, m: usize, k: usize) -> Self {
        Self { w, packed: I::pack(w, m, k), m, k }
    }

    /// out = w x, with `cols` columns.
    fn times(&self, x: &[I::Real], cols: usize, out: &mut [I::Real]) {
        let (x, out) = (Mat::rows(x, cols), MatMut::rows(out, cols));
        I::product((self.m, cols, self.k), (self.w, &self.packed), x, out, false);
    }
}

/// One block forward: h1 and h2 are filled if they are to be kept, y is left in the scratch.
fn forward_block<T: Real, I: Inner<Real = T>>(
    p: &Plan,
    x: &[T],
    params: &Parts<&[T]>,
    [w1, w2, w3]: &[Factor<I>; 3],
    r: &Range<usize>,
    s: &mut Scratch<T>,
    (h1, h2): (&mut [I], &mut [I]),
) {
    let hw = p.hw();
    let (c, n, o) = (p.s.inputs, p.s.width, p.s.outputs);
    let m = r.len() * hw;
    gather(x, c, hw, r, &mut s.x);
    let d = p.dims(r.len(), c, n);
    im2col(&s.x[..c * m], c, d, 0..r.len() * p.h, &mut s.cols, m, false);
    let v1 = I::work(h1, &mut s.h1[..n * m]);
    w1.times(&s.cols, m, v1);
    affine(v1, m, params.b1, params.l1, params.e1, hw, true);
    let v2 = I::work(h2, &mut s.h2[..n * m]);
    w2.times(v1, m, v2);
    affine(v2, m, params.b2, params.l2, &[], hw, true);
    w3.times(v2, m, &mut s.taps);
    I::keep(h1, &s.h1);
    I::keep(h2, &s.h2);
    let y = &mut s.y[..o * m];
    y.fill(T::default());
    let d = p.dims(r.len(), n, o);
    for ch in 0..o {
        for t in 0..9 {
            shift_add(&s.taps[(t * o + ch) * m..][..m], &mut y[ch * m..][..m], d, r.len(), t);
        }
    }
    affine(y, m, params.b3, params.l3, params.e3, hw, false);
}

/// Cuts `v` into one piece for each block, `unit` elements an image.
fn cut<'a, T>(mut v: &'a mut [T], blocks: &[Vec<Range<usize>>], unit: usize) -> Vec<Vec<&'a mut [T]>> {
    let mut out = Vec::new();
    for thread in blocks {
        let mut mine = Vec::new();
        for r in thread {
            let (a, b) = v.split_at_mut(r.len() * unit);
            mine.push(a);
            v = b;
        }
        out.push(mine);
    }
    out
}

/// y (B, O, H, W), and if `keep` h1 and h2.
fn forward_slices<T: Real, I: Inner<Real = T>>(
    s: Sizes,
    x: &[T],
    params: &Parts<&[T]>,
    keep: bool,
) -> (Vec<T>, [Vec<I>; 2]) {
    let p = &Plan::new(s);
    let (n, o, hw) = (p.s.width, p.s.outputs, p.hw());
    let (c, w3) = (9 * p.s.inputs, by_tap(params.w3, o, n));
    let weights = [
        Factor::<I>::new(Mat::rows(params.w1, c), n, c),
        Factor::new(Mat::rows(params.w2, n), n, n),
        Factor::new(Mat::rows(&w3, n), 9 * o, n),
    ];
    let kept = if keep { p.b * n * hw } else { 0 };
    // SAFETY: blocks cover all images, and each writes its own.
    let (mut y, mut h1, mut h2): (_, Vec<I>, Vec<I>) =
        unsafe { (unwritten(p.b * o * hw), unwritten(kept), unwritten(kept)) };
    let blocks = p.blocks();
    let unit = if keep { n * hw } else { 0 };
    let outs = cut(&mut y, &blocks, o * hw);
    let h1s = cut(&mut h1, &blocks, unit);
    let h2s = cut(&mut h2, &blocks, unit);
    blocks.par_iter().zip(outs).zip(h1s).zip(h2s).for_each(|(((blocks, outs), h1s), h2s)| {
        let mut s = Scratch::new(p);
        for (((r, out), h1), h2) in blocks.iter().zip(outs).zip(h1s).zip(h2s) {
            forward_block(p, x, params, &weights, r, &mut s, (h1, h2));
            scatter(&s.y, o, hw, r.len(), out);
        }
    });
    (y, [h1, h2])
}

/// The gradient through (u + b) exp(3 l) with y at hand: gl += 3 sum g y, gb += exp(3 l) sum g, and g becomes that of u.
struct AffineBack<'a, T, I> {
    g: &'a mut [T],
    y: &'a [I],
    m: usize,
    l: &'a [T],
    gb: &'a mut [T],
    gl: &'a mut [T],
    ge: &'a mut [T],
    hw: usize,
    relu: bool,
}

impl<T: Real, I: Inner<Real = T>> Job for AffineBack<'_, T, I> {
    #[inline(always)]
    fn run<W: Width>(self) {
        let Self { g, y, m, l, gb, gl, ge, hw, relu } = self;
        let zero = T::default();
        for (ch, (g, y)) in g.chunks_exact_mut(m).zip(y.chunks_exact(m)).enumerate() {
            let a = (T::of(3.) * l[ch]).exp();
            const LANES: usize = 16;
            let (mut sg, mut sgy) = ([zero; LANES], [zero; LANES]);
            // Whole arrays at a time, without branches: this is what the compiler makes vectors of.
            let (gs, g_rest) = g.as_chunks_mut::<LANES>();
            let (ys, y_rest) = y.as_chunks::<LANES>();
            for (g, y) in gs.iter_mut().zip(ys) {
                let (mut v, y) = (*g, y.map(Inner::to_real));
                if relu {
                    for k in 0..LANES {
                        v[k] = if y[k] > zero { v[k] } else { zero };
                    }
                }
                for k in 0..LANES {
                    sg[k] += v[k];
                    sgy[k] += v[k] * y[k];
                    g[k] = v[k] * a;
                }
            }
            for (g, y) in g_rest.iter_mut().zip(y_rest) {
                let y = y.to_real();
                let v = if relu && y <= zero { zero } else { *g };
                sg[0] += v;
                sgy[0] += v * y;
                *g = v * a;
            }
            let sum = |v: [T; LANES]| v.iter().map(|v| v.f64()).sum::<f64>();
            gb[ch] += a * T::of(sum(sg));
            gl[ch] += T::of(3. * sum(sgy));
            if !ge.is_empty() {
                for image in g.chunks_exact(hw) {
                    for (e, &g) in ge[ch * hw..][..hw].iter_mut().zip(image) {
                        *e += g;
                    }
                }
            }
        }
    }
}

fn affine_back<T: Real, I: Inner<Real = T>>(
    g: &mut [T],
    y: &[I],
    m: usize,
    l: &[T],
    (gb, gl, ge): (&mut [T], &mut [T], &mut [T]),
    hw: usize,
    relu: bool,
) {
    wide(AffineBack { g, y, m, l, gb, gl, ge, hw, relu });
}

/// What the backward pass of a block is given beside its images.
struct Backward<'a, T: Real, I: Inner<Real = T>> {
    plan: &'a Plan,
    params: &'a Parts<&'a [T]>,
    x: &'a [T],
    kept: &'a Kept<'a, I>,
    gy: &'a [T],
    /// The transposed weights, as left factors of the products that give the gradients of activations.
    w1: Factor<'a, I>,
    w2: Factor<'a, I>,
    w3: Factor<'a, I>,
}

impl<T: Real, I: Inner<Real = T>> Backward<'_, T, I> {
    /// Writes the gradient of the images `r` to `gx` and adds those of the parameters to `acc`, except w3's, which is added to
    /// `gw3` as ((o, t), c).
    fn block(
        &self,
        r: &Range<usize>,
        gx: &mut [T],
        s: &mut Scratch<T>,
        (acc, gw3): (&mut Grads<T>, &mut [T]),
    ) {
        let (p, params) = (self.plan, self.params);
        let (c, n, o, hw) = (p.s.inputs, p.s.width, p.s.outputs, p.hw());
        let m = r.len() * hw;
        let at = r.start * n * hw;
        let (h1, h2) = (&self.kept.h1[at..at + n * m], &self.kept.h2[at..at + n * m]);
        // y and its gradient, channel-major; the scratch of x is free until the columns of x are needed.
        let mut g = std::mem::take(&mut s.y);
        let mut y = std::mem::take(&mut s.taps);
        gather(self.gy, o, hw, r, &mut g);
        gather(self.kept.y, o, hw, r, &mut y);
        {
            let (gb, gl, ge) = (&mut acc.b3[..], &mut acc.l3[..], &mut acc.e3[..]);
            affine_back(&mut g[..o * m], &y[..o * m], m, params.l3, (gb, gl, ge), hw, false);
        }
        let d = p.dims(r.len(), o, n);
        im2col(&g[..o * m], o, d, 0..r.len() * p.h, &mut s.cols, m, true);
        I::add_abt_kept((9 * o, n, m), (&s.cols, m), (h2, m), (gw3, n), &mut s.turned);
        let mut g2 = std::mem::take(&mut s.h2);
        self.w3.times(&s.cols, m, &mut g2);
        {
            let (gb, gl) = (&mut acc.b2[..], &mut acc.l2[..]);
            affine_back(&mut g2[..n * m], h2, m, params.l2, (gb, gl, &mut []), hw, true);
        }
        I::add_abt_kept((n, n, m), (&g2, m), (h1, m), (&mut acc.w2, n), &mut s.turned);
        let mut g1 = std::mem::take(&mut s.h1);
        self.w2.times(&g2, m, &mut g1);
        {
            let (gb, gl, ge) = (&mut acc.b1[..], &mut acc.l1[..], &mut acc.e1[..]);
            affine_back(&mut g1[..n * m], h1, m, params.l1, (gb, gl, ge), hw, true);
        }
        gather(self.x, c, hw, r, &mut s.x);
        let d = p.dims(r.len(), c, n);
        im2col(&s.x[..c * m], c, d, 0..r.len() * p.h, &mut s.cols, m, false);
        I::add_abt((n, 9 * c, m), (&g1, m), (&s.cols, m), (&mut acc.w1, 9 * c), &mut s.turned);
        self.w1.times(&g1, m, &mut y);
        let gxc = &mut s.x[..c * m];
        gxc.fill(T::default());
        for ch in 0..c {
            for t in 0..9 {
                shift_add(&y[(t * c + ch) * m..][..m], &mut gxc[ch * m..][..m], d, r.len(), 8 - t);
            }
        }
        scatter(gxc, c, hw, r.len(), gx);
        (s.y, s.taps, s.h1, s.h2) = (g, y, g1, g2);
    }
}

/// The gradients of x (B, C, H, W) and of the parameters.
fn backward_slices<T: Real, I: Inner<Real = T>>(
    s: Sizes,
    x: &[T],
    params: &Parts<&[T]>,
    kept: &Kept<I>,
    gy: &[T],
) -> (Vec<T>, Parts<Vec<T>>) {
    let p = &Plan::new(s);
    let (c, n, o, hw) = (p.s.inputs, p.s.width, p.s.outputs, p.hw());
    // w3[o, c, t] as (c, (o, t)): the transposed convolution from columns of the gradient.
    let w3 = params.w3;
    let mut w3_back = vec![T::default(); w3.len()];
    for i in 0..o {
        for j in 0..n {
            w3_back[j * 9 * o + i * 9..][..9].copy_from_slice(&w3[(i * n + j) * 9..][..9]);
        }
    }
    let w1_back = by_tap_transposed(params.w1, n, c);
    let pass = Backward {
        plan: p,
        params,
        x,
        kept,
        gy,
        w1: Factor::<I>::new(Mat::rows(&w1_back, n), 9 * c, n),
        w2: Factor::<I>::new(Mat::transposed(params.w2, n), n, n),
        w3: Factor::<I>::new(Mat::rows(&w3_back, 9 * o), n, 9 * o),
    };
    // SAFETY: blocks cover all images, and each writes its own.
    let mut gx = unsafe { unwritten(p.b * c * hw) };
    let blocks = p.blocks();
    let gxs = cut(&mut gx, &blocks, c * hw);
    let grads: Vec<Grads<T>> = blocks
        .par_iter()
        .zip(gxs)
        .map(|(blocks, gxs)| {
            let mut s = Scratch::new(p);
            let mut acc = Grads::zeros(params);
            let mut gw3 = vec![T::default(); w3.len()];
            for (r, gx) in blocks.iter().zip(gxs) {
                pass.block(r, gx, &mut s, (&mut acc, &mut gw3));
            }
            // From ((o, t), c) to (o, c, t).
            for i in 0..o {
                for t in 0..9 {
                    for j in 0..n {
                        acc.w3[(i * n + j) * 9 + t] = gw3[(i * 9 + t) * n + j];
                    }
                }
            }
            acc
        })
        .collect();
    let mut grads = grads.into_iter();
    let mut sum = grads.next().unwrap_or_else(|| Grads::zeros(params));
    grads.for_each(|g| sum.add(&g));
    (gx, sum)
}
