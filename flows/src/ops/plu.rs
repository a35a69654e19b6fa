//! The matrix of a PLU-parameterised 1x1 convolution as one op.
//!
//! ```text
//! W = P L (U + diag(sign exp(log s))),     log|det W| = sum log s
//! ```
//!
//! L's strict lower part, log s and U's strict upper part are packed in one C x C tensor. As separate ops this is some
//! twenty tiny tensors forward and forty backward for each step of flow, which at small widths costs more than the
//! convolution. The sums are in f64 on the host.
//!
//! **Shapes.** packed (C, C); the result is flat: W row-major, then log|det W|. f32 and f64.

use super::gemm::{Real, contiguous, dispatch, dtype};
use super::reference;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// The parts that are not trained: the order of the rows and the signs of U's diagonal.
pub struct Rows {
    perm: Vec<u32>,
    sign: Vec<f64>,
    /// The permutation, its inverse and the signs where kernels find them.
    #[cfg(kernels)]
    there: [Tensor; 3],
}

impl Rows {
    /// Row r of W is row `perm[r]` of L U; `like` says where W is and in which dtype.
    ///
    /// # Errors
    /// If `perm` is no permutation, or there are more or fewer signs.
    pub fn new(perm: Vec<u32>, sign: Vec<f64>, like: &Tensor) -> Result<Self> {
        let mut place = vec![u32::MAX; perm.len()];
        for (r, &i) in perm.iter().enumerate() {
            match place.get_mut(i as usize) {
                Some(p) if *p == u32::MAX => *p = r as u32,
                _ => bail!("{perm:?} is no permutation"),
            }
        }
        if sign.len() != perm.len() {
            bail!("{} rows have {} signs", perm.len(), sign.len());
        }
        #[cfg(kernels)]
        let there = {
            let to = like.device();
            let signs = Tensor::new(sign.as_slice(), to)?.to_dtype(like.dtype())?;
            [Tensor::new(perm.as_slice(), to)?, Tensor::new(place, to)?, signs]
        };
        #[cfg(not(kernels))]
        let _ = like;
        Ok(Self {
            perm,
            sign,
            #[cfg(kernels)]
            there,
        })
    }
}

/// W (C, C) and log |det W| (a scalar) of `packed`.
pub fn plu(packed: &Tensor, rows: &Rows) -> Result<(Tensor, Tensor)> {
    if !super::on_cpu(packed) {
        reference::kernel!([packed], super::kernels::plu(packed, &rows.there[0], &rows.there[2]));
        return reference::plu(packed, &rows.perm, &rows.sign);
    }
    let n = packed.dim(0)?;
    let flat = packed.apply_op1(Plu { perm: rows.perm.clone(), sign: rows.sign.clone() })?;
    Ok((flat.narrow(0, 0, n * n)?.reshape((n, n))?, flat.narrow(0, n * n, 1)?.reshape(())?))
}

/// W^-1: a kernel where there is one, else the host's in f64.
pub(crate) fn plu_inverse(packed: &Tensor, rows: &Rows) -> Result<Tensor> {
    reference::kernel!([packed], super::kernels::plu_inverse(packed, &rows.there[0], &rows.there[2]));
    Ok(crate::linalg::inverse_log_det(&plu(packed, rows)?.0)?.0)
}

/// The gradient of `packed`, from that of W (C, C) and that of the log-det.
pub(crate) fn plu_backward(packed: &Tensor, rows: &Rows, gw: &Tensor, gld: &Tensor) -> Result<Tensor> {
    if !super::on_cpu(packed) {
        reference::kernel!(
            [packed, gw, gld],
            super::kernels::plu_backward(packed, &rows.there[1], &rows.there[2], gw, gld)
        );
        let mut g = reference::gradients(&[packed], &[gw, gld], |v| {
            let (w, log_det) = reference::plu(&v[0], &rows.perm, &rows.sign)?;
            Ok(vec![w, log_det])
        })?;
        return Ok(g.pop().expect("one"));
    }
    let g = Tensor::cat(&[&gw.flatten_all()?, &gld.reshape(1)?], 0)?;
    let op = Plu { perm: rows.perm.clone(), sign: rows.sign.clone() };
    packed.apply_op2_no_bwd(&g, &PluBack(op))
}

#[derive(Clone)]
struct Plu {
    perm: Vec<u32>,
    sign: Vec<f64>,
}

impl Plu {
    /// U with its diagonal, row-major.
    fn upper<T: Real>(&self, packed: &[T], n: usize) -> Vec<f64> {
        let mut u = vec![0.; n * n];
        for i in 0..n {
            u[i * n + i] = self.sign[i] * packed[i * n + i].f64().exp();
            for j in i + 1..n {
                u[i * n + j] = packed[i * n + j].f64();
            }
        }
        u
    }
}

impl CustomOp1 for Plu {
    fn name(&self) -> &'static str {
        "plu"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, _) = l.shape().dims2()?;
        dispatch!("plu", dtype(s), T => {
            let packed = contiguous::<T>("plu", s, l)?;
            let u = self.upper(packed, n);
            let mut out = Vec::with_capacity(n * n + 1);
            let mut row = vec![0.; n];
            for &i in &self.perm {
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
            out.push(T::of(log_det));
            Ok((T::storage(out), (n * n + 1).into()))
        })
    }

    fn bwd(&self, packed: &Tensor, _flat: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let back = PluBack(self.clone());
        packed.detach().apply_op2_no_bwd(&g.contiguous()?, &back).map(Some)
    }
}

/// With G the gradient of L U: that of L is G U^T below the diagonal, that of U is L^T G on and above it, and a diagonal
/// element of U is sign exp(log s).
struct PluBack(Plu);

impl CustomOp2 for PluBack {
    fn name(&self) -> &'static str {
        "plu_back"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, _) = l1.shape().dims2()?;
        dispatch!("plu", dtype(s1), T => {
            let packed = contiguous::<T>("plu", s1, l1)?;
            let flat = contiguous::<T>("plu", s2, l2)?;
            let u = self.0.upper(packed, n);
            let mut g = vec![0.; n * n];
            for (r, &i) in self.0.perm.iter().enumerate() {
                for j in 0..n {
                    g[i as usize * n + j] = flat[r * n + j].f64();
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
                out[i * n + i] = T::of(gu[i * n + i] * u[i * n + i] + flat[n * n].f64());
                for j in i + 1..n {
                    out[i * n + j] = T::of(gu[i * n + j]);
                }
            }
            Ok((T::storage(out), (n, n).into()))
        })
    }
}
