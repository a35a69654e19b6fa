//! Convolution, stride 1, same padding, kernels 1x1 and 3x3, channel-major.
//!
//! ```text
//! y[o, b, i, j] = sum_{c, u, v} w[o, c, u, v] x[c, b, i + u - 1, j + v - 1]        (zero outside the image)
//! ```
//!
//! **Shapes.** x (C, B, H, W), w (O, C, k, k), y (O, B, H, W), all contiguous; f32 and f64.
//!
//! Where both sides have channels enough, 3x3 kernels are multiplied by the module `winograd`, or by `direct` where a processor
//! multiplies bf16 by tiles. Everything else is one GEMM a
//! block of columns, and the nine shifted copies that a 3x3 kernel needs ("im2col") are always
//! made of the side with *fewer* channels:
//!
//! - C <= O: columns of x (9 C rows), multiplied by w.
//! - C > O: w (9 O rows) multiplies x directly, and the nine results are shifted and added.
//!
//! Flows are full of lopsided convolutions (6 channels into 512 and back to 12), where this is the difference between
//! packing 54 rows and packing 4608. The backward for the input is the forward with the kernel flipped and transposed;
//! the one for the weight is the same product with columns of x or of the gradient, again whichever has fewer rows.
//!
//! Columns are split over the threads in fixed ranges and partial sums are added in order, so a result depends on the
//! number of threads and on nothing else.
//!
//! **What was tried**, for 64 channels, 3x3, 32x32, batch 16, forward, two threads of an AVX-512 machine, where PyTorch
//! (oneDNN) does 410 to 440 GFLOP/s:
//!
//! - candle's own convolution: 16.
//! - GEMM on packed columns, over the `gemm` crate with its AVX-512 kernels: 346. It remains for few channels.
//! - Winograd's F(2x2, 3x3) with transforms left to the compiler: 170 (beside other work) as closures, which are compiled for any x86-64; 290 as
//!   arrays, which it spills; 406 as loops over slices.
//! - The same with the transforms in vectors, and streams that are not a power of two apart: 620. This is what runs.
//! - The product with a transposed factor, which every gradient of weights is: the `gemm` crate packs that factor element by
//!   element. Turning it first in squares of vectors took a Glow of width 64 from 945 to 1148 images/s a training step.
//! - oneDNN itself is a C++ library outside cargo; PyTorch's figure is what it would give.
//!
//! `just bench` measures all of it again, beside PyTorch.

pub(crate) mod cpu;
#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(target_arch = "x86_64")]
mod direct;
pub(crate) mod reference;
pub(crate) mod rows;
pub(crate) mod spec;
pub(crate) mod three;
mod winograd;

use crate::autodiff::gradients;
use crate::device::Path;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use spec::Dims;

/// y = w * x, stride 1, same padding; see the module for shapes.
///
/// # Errors
/// If the kernel is neither 1x1 nor 3x3, or if the channels differ.
pub fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    Dims::of(x.shape(), w.shape())?;
    match Path::of(&[&x.detach(), &w.detach()]) {
        Path::Cpu => x.apply_op2(w, Conv),
        _ => reference::conv2d(x, w),
    }
}

/// The gradients of x and of w, from that of y; see [`conv2d`].
///
/// # Errors
/// As [`conv2d`], or if the gradient has another shape than y.
pub fn conv2d_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let d = Dims::of(x.shape(), w.shape())?;
    if gy.dims() != [d.o, d.b, d.h, d.w] {
        bail!("conv2d: the gradient of an output {:?} was given as {:?}", [d.o, d.b, d.h, d.w], gy.shape());
    }
    let (x, w, gy) = (&x.detach(), &w.detach(), &gy.detach());
    if Path::of(&[x, w, gy]) == Path::Cpu {
        let gy = gy.contiguous()?;
        return Ok((cpu::input_gradient(w, &gy, d)?, cpu::weight_gradient(x, &gy, d)?));
    }
    let mut g = gradients(&[x, w], &[gy], |v| Ok(vec![reference::conv2d(&v[0], &v[1])?]))?;
    let gw = g.pop().expect("two");
    Ok((g.pop().expect("two"), gw))
}

/// On candle's graph, whose own gradients of a convolution are slow.
struct Conv;

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cpu::conv2d((s1, l1), (s2, l2))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (d, gy) = (Dims::of(x.shape(), w.shape())?, gy.contiguous()?);
        let gx = if x.track_op() { Some(cpu::input_gradient(w, &gy, d)?) } else { None };
        let gw = if w.track_op() { Some(cpu::weight_gradient(x, &gy, d)?) } else { None };
        Ok((gx, gw))
    }
}

/// For each tap of a 3x3 kernel and each pixel, 1 where the tap falls outside the image: shape (9, H W).
///
/// Glow's code appends a channel that is 1 on the padding and 0 inside; its contribution is the kernel of that channel
/// times this matrix, which is the same for all images.
///
/// # Errors
/// If the dtype of `like` is no float.
pub fn edge_columns(h: usize, w: usize, like: &Tensor) -> Result<Tensor> {
    let mut v = vec![0f32; 9 * h * w];
    for t in 0..9 {
        for i in 0..h {
            for j in 0..w {
                let (y, x) = (i as isize + t as isize / 3 - 1, j as isize + t as isize % 3 - 1);
                let inside = y >= 0 && x >= 0 && y < h as isize && x < w as isize;
                v[(t * h + i) * w + j] = if inside { 0. } else { 1. };
            }
        }
    }
    Tensor::from_vec(v, (9, h * w), like.device())?.to_dtype(like.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{max_diff, wave};
    use candle_core::{DType, Var};

    /// Against candle's own convolution and its gradients, for every branch: 1x1, few to many, many to few, equal.
    #[test]
    fn agrees_with_candle() -> Result<()> {
        for (c, o, k, h, w) in [
            (3, 5, 1, 4, 6),
            (2, 7, 3, 5, 4),
            (7, 2, 3, 4, 5),
            (3, 3, 3, 1, 1),
            (2, 3, 3, 2, 1),
            (40, 48, 3, 8, 8),
            (16, 17, 3, 7, 5),
            (18, 16, 3, 3, 6),
            (64, 64, 3, 32, 32),
            (130, 140, 3, 8, 8),
        ] {
            let b = 3;
            let x = Var::from_tensor(&wave(&[c, b, h, w], 0.37))?;
            let wt = Var::from_tensor(&wave(&[o, c, k, k], 0.91))?;
            let y = conv2d(&x, &wt)?;
            let want = x.transpose(0, 1)?.conv2d(&wt, k / 2, 1, 1, 1)?.transpose(0, 1)?;
            assert!(max_diff(&y, &want) < 1e-12, "{c} {o} {k}");
            let g = wave(&[o, b, h, w], 0.53);
            let ours = (y * &g)?.sum_all()?.backward()?;
            let theirs = (want * &g)?.sum_all()?.backward()?;
            for v in [x.as_tensor(), wt.as_tensor()] {
                let d = max_diff(ours.get(v).unwrap(), theirs.get(v).unwrap());
                assert!(d < 1e-11, "{c} {o} {k}: {d}");
            }
            // In f32 a sum of n products is off by at most (n + 2) u sum |w x|, with the operands' own rounding in it.
            let f = |t: &Var| t.as_tensor().to_dtype(DType::F32).unwrap();
            let single = conv2d(&f(&x), &f(&wt))?.to_dtype(DType::F64)?;
            let bound = (conv2d(&x.abs()?, &wt.abs()?)? * ((c * k * k + 2) as f64 * 0.5f64.powi(24)))?;
            let over = ((single - conv2d(&x, &wt)?)?.abs()? - bound)?.flatten_all()?.max(0)?;
            assert!(over.to_scalar::<f64>()? <= 0., "{c} {o} {k}: f32 is off by more than rounding explains");
        }
        Ok(())
    }

    #[test]
    fn wrong_sizes_are_named() {
        let e = conv2d(&wave(&[3, 1, 4, 4], 1.), &wave(&[5, 2, 3, 3], 1.)).unwrap_err().to_string();
        assert!(e.contains("3 channels") && e.contains("takes 2"), "{e}");
        assert!(conv2d(&wave(&[3, 1, 4, 4], 1.), &wave(&[5, 3, 5, 5], 1.)).is_err());
    }
}
