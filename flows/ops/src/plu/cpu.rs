//! The matrix of PLU factors on the CPU, its sums in f64.

use super::spec::Rows;
use crate::real::{Real, View, dispatch, tensor};
use candle_core::{Result, Tensor, bail};

/// U with its diagonal, row-major.
fn upper<T: Real>(packed: &[T], sign: &[f64], n: usize) -> Vec<f64> {
    let mut u = vec![0.; n * n];
    for i in 0..n {
        u[i * n + i] = sign[i] * packed[i * n + i].f64().exp();
        for j in i + 1..n {
            u[i * n + j] = packed[i * n + j].f64();
        }
    }
    u
}

fn size(packed: &Tensor, rows: &Rows) -> Result<usize> {
    let n = rows.perm.len();
    if packed.dims() != [n, n] {
        bail!("a matrix of {n} rows was given as {:?}", packed.shape());
    }
    Ok(n)
}

/// [`super::plu`].
pub(crate) fn plu(packed: &Tensor, rows: &Rows) -> Result<(Tensor, Tensor)> {
    let (n, packed) = (size(packed, rows)?, packed.contiguous()?);
    dispatch!("plu", packed.dtype(), T => {
        let view = View::of("plu", &packed)?;
        let packed = view.get::<T>("plu")?;
        let u = upper(packed, &rows.sign, n);
        let mut out = Vec::with_capacity(n * n);
        let mut row = vec![0.; n];
        for &i in &rows.perm {
            let i = i as usize;
            row.copy_from_slice(&u[i * n..][..n]);
            for k in 0..i {
                let f = packed[i * n + k].f64();
                for (r, &v) in row[k..].iter_mut().zip(&u[k * n + k..(k + 1) * n]) {
                    *r += f * v;
                }
            }
            out.extend(row.iter().map(|&v| T::of(v)));
        }
        let log_det: f64 = (0..n).map(|i| packed[i * n + i].f64()).sum();
        Ok((tensor(out, (n, n))?, tensor(vec![T::of(log_det)], ())?))
    })
}

/// With G the gradient of L U: that of L is G U^T below the diagonal, that of U is L^T G on and above it, and a diagonal
/// element of U is sign exp(log s).
///
/// [`super::plu_backward`].
pub(crate) fn plu_backward(
    packed: &Tensor,
    rows: &Rows,
    gw: &Tensor,
    grad_log_det: &Tensor,
) -> Result<Tensor> {
    let (n, packed, gw) = (size(packed, rows)?, packed.contiguous()?, gw.contiguous()?);
    dispatch!("plu", packed.dtype(), T => {
        let (vp, vg, vl) = (View::of("plu", &packed)?, View::of("plu", &gw)?, View::of("plu", grad_log_det)?);
        let (packed, gw, grad_log_det) = (vp.get::<T>("plu")?, vg.get::<T>("plu")?, vl.get::<T>("plu")?);
        if gw.len() != n * n || grad_log_det.len() != 1 {
            bail!("the gradient of a matrix of {n} rows has {} numbers", gw.len());
        }
        let u = upper(packed, &rows.sign, n);
        let mut g = vec![0.; n * n];
        for (r, &i) in rows.perm.iter().enumerate() {
            for j in 0..n {
                g[i as usize * n + j] = gw[r * n + j].f64();
            }
        }
        let mut gu = g.clone();
        let mut out = vec![T::default(); n * n];
        for i in 0..n {
            for k in 0..i {
                let (gi, uk) = (&g[i * n + k..(i + 1) * n], &u[k * n + k..(k + 1) * n]);
                out[i * n + k] = T::of(gi.iter().zip(uk).map(|(a, b)| a * b).sum());
                let f = packed[i * n + k].f64();
                for j in k..n {
                    gu[k * n + j] += f * g[i * n + j];
                }
            }
        }
        for i in 0..n {
            out[i * n + i] = T::of(gu[i * n + i] * u[i * n + i] + grad_log_det[0].f64());
            for j in i + 1..n {
                out[i * n + j] = T::of(gu[i * n + j]);
            }
        }
        tensor(out, (n, n))
    })
}
