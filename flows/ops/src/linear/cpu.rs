//! A fully connected layer on the CPU.

use crate::gemm::Mat;
use crate::inner::{Inner, dispatch_inner};
use crate::precision::rounds;
use crate::real::{Real, View, tensor};
use crate::threads::unwritten;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// [`super::linear`].
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    let ((batch, inputs), (outputs, w_inputs)) = (x.dims2()?, w.dims2()?);
    if inputs != w_inputs || b.dims() != [outputs] {
        bail!("a linear layer {:?} with bias {:?} met {inputs} inputs", w.shape(), b.shape());
    }
    let x = x.contiguous()?;
    dispatch_inner!("linear", x.dtype(), rounds(x.dtype()), I => {
        type T = <I as Inner>::Real;
        let (vx, vw, vb) = (View::of("linear", &x)?, View::of("linear", w)?, View::of("linear", b)?);
        let (x, w, b) = (vx.get::<T>("linear")?, vw.get::<T>("linear")?, vb.get::<T>("linear")?);
        // SAFETY: the product writes all of it.
        let mut y = unsafe { unwritten::<T>(batch * outputs) };
        I::rows_by_rows((batch, outputs, inputs), x, w, &mut y);
        y.par_chunks_mut(outputs.max(1)).with_min_len(16).for_each(|row| {
            for (y, &b) in row.iter_mut().zip(b) {
                let v = *y + b;
                *y = if relu && v < T::default() { T::default() } else { v };
            }
        });
        tensor(y, (batch, outputs))
    })
}

/// [`super::linear_backward`].
pub(crate) fn linear_backward(
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    gy: &Tensor,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let ((batch, outputs), inputs) = (gy.dims2()?, w.dim(1)?);
    if w.dim(0)? != outputs || x.dims() != [batch, inputs] || y.dims() != [batch, outputs] {
        bail!("a linear layer {:?} met inputs {:?} and a gradient {:?}", w.shape(), x.shape(), gy.shape());
    }
    let (x, gy) = (x.contiguous()?, gy.contiguous()?);
    dispatch_inner!("linear", gy.dtype(), rounds(gy.dtype()), I => {
        type T = <I as Inner>::Real;
        let (vx, vw) = (View::of("linear", &x)?, View::of("linear", w)?);
        let (vy, vg) = (View::of("linear", y)?, View::of("linear", &gy)?);
        let (x, w) = (vx.get::<T>("linear")?, vw.get::<T>("linear")?);
        let (y, mut g) = (vy.get::<T>("linear")?, vg.get::<T>("linear")?);
        let gated;
        if relu {
            gated = gate(g, y);
            g = &gated;
        }
        // SAFETY: the products write all of both.
        let (mut gx, mut gw) = unsafe { (unwritten::<T>(batch * inputs), unwritten::<T>(outputs * inputs)) };
        I::product_in_parallel((batch, inputs, outputs), Mat::rows(g, outputs), Mat::rows(w, inputs), &mut gx);
        I::product_in_parallel((outputs, inputs, batch), Mat::transposed(g, outputs), Mat::rows(x, inputs), &mut gw);
        let mut gb = vec![T::default(); outputs];
        for row in g.chunks_exact(outputs.max(1)) {
            gb.iter_mut().zip(row).for_each(|(s, &v)| *s += v);
        }
        Ok((tensor(gx, (batch, inputs))?, tensor(gw, (outputs, inputs))?, tensor(gb, outputs)?))
    })
}

/// The gradient before ReLU, which passes it where its output y is positive.
fn gate<T: Real>(g: &[T], y: &[T]) -> Vec<T> {
    // SAFETY: each number is written below.
    let mut out = unsafe { unwritten(g.len()) };
    out.par_chunks_mut(1 << 15).zip(g.par_chunks(1 << 15)).zip(y.par_chunks(1 << 15)).for_each(
        |((o, g), y)| {
            for ((o, &g), &y) in o.iter_mut().zip(g).zip(y) {
                *o = if y > T::default() { g } else { T::default() };
            }
        },
    );
    out
}
