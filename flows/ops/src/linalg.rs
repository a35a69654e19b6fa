//! Small dense linear algebra on the host in f64: what candle lacks (determinant, inverse, LU, QR).
//!
//! Matrices are row-major slices of n * n numbers. The sizes met are the channels of a 1x1 convolution (at most a few
//! hundred), done plainly, and the dimensions of ZCA whitening (3072 for CIFAR-10), done with GEMM.

use crate::cuda::launch::{Args, Ptr, count, fresh, launch, layout};
use crate::device::Path;
use crate::gemm::{Mat, MatMut, gemm};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// A matrix tensor as row-major f64 on the host, with its size.
///
/// # Errors
/// If it is not square.
pub fn to_host(t: &Tensor) -> Result<(Vec<f64>, usize)> {
    let (n, m) = t.dims2()?;
    if n != m {
        bail!("expected a square matrix, got {n}x{m}");
    }
    let v = t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok((v, n))
}

/// A matrix of rank 2 from row-major f64.
///
/// # Errors
/// If `v` has not n^2 numbers.
pub fn from_host(v: Vec<f64>, n: usize, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(v, (n, n), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

/// W^-1 and log |det W| of a square matrix, on its device and in its dtype: in f64 on the host, or by a kernel on a GPU.
///
/// # Errors
/// Where it is singular; a kernel, which the host does not wait for, gives numbers that are not finite instead.
pub fn inverse_log_det(w: &Tensor) -> Result<(Tensor, Tensor)> {
    if Path::of(&[w]) == Path::Kernel {
        return invert(w);
    }
    let (host, n) = to_host(w)?;
    let f = lu(&host, n)?;
    let log_det = Tensor::new(f.log_abs_det(), &Device::Cpu)?.to_dtype(w.dtype())?.to_device(w.device())?;
    Ok((from_host(f.inverse(), n, w)?, log_det))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Invert {
    w: Ptr,
    work: Ptr,
    inverse: Ptr,
    log_det: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Invert {}
layout!(Invert, 40, n, 32);

/// W^-1 and log |det W|, neither finite where W is singular.
pub(crate) fn invert(w: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, m) = w.dims2()?;
    if n != m {
        bail!("expected a square matrix, got {n}x{m}");
    }
    let w = w.contiguous()?;
    count(2 * n * n)?;
    let work = fresh((n, 2 * n), DType::F64, w.device())?;
    let (inverse, log_det) = (fresh((n, n), w.dtype(), w.device())?, fresh((), w.dtype(), w.device())?);
    let args = Invert {
        w: Ptr::of(&w)?,
        work: Ptr::of(&work)?,
        inverse: Ptr::of(&inverse)?,
        log_det: Ptr::of(&log_det)?,
        n: count(n)?,
    };
    launch(w.device(), "invert", Some(w.dtype()), 1, &args)?;
    Ok((inverse, log_det))
}

/// The singular values of a matrix, largest first: one-sided Jacobi rotations, which find small ones to full relative accuracy.
///
/// Their first over their last is the condition number, by which an inverse multiplies rounding errors.
///
/// # Errors
/// For a NaN or an infinity, to which no rotation converges.
pub fn singular_values(a: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut columns: Vec<Vec<f64>> = (0..n).map(|j| (0..n).map(|i| a[i * n + j]).collect()).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..60 {
        let mut worst = 0f64;
        for p in 0..n {
            for q in p + 1..n {
                let (head, tail) = columns.split_at_mut(q);
                let (x, y) = (&mut head[p], &mut tail[0]);
                let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
                if xy == 0. {
                    continue;
                }
                worst = worst.max(xy.abs() / (xx * yy).sqrt().max(f64::MIN_POSITIVE));
                // The rotation that makes the two columns orthogonal.
                let zeta = (yy - xx) / (2. * xy);
                let t = zeta.signum() / (zeta.abs() + (1. + zeta * zeta).sqrt());
                let c = 1. / (1. + t * t).sqrt();
                for (x, y) in x.iter_mut().zip(y.iter_mut()) {
                    (*x, *y) = (c * (*x - t * *y), c * (t * *x + *y));
                }
            }
        }
        if worst < 1e-14 {
            let mut values: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
            values.sort_by(|a, b| b.total_cmp(a));
            if values.iter().all(|v| v.is_finite()) {
                return Ok(values);
            }
        }
    }
    bail!("a {n}x{n} matrix has no singular values that can be found: does it hold a NaN?")
}

/// A random orthogonal matrix, uniform under the Haar measure: modified Gram-Schmidt, run twice, of a Gaussian matrix.
pub fn orthogonal(n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut a: Vec<f64> = (0..n * n).map(|_| rng.sample(StandardNormal)).collect();
    for i in 0..n {
        for _ in 0..2 {
            for j in 0..i {
                let dot: f64 = (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum();
                for k in 0..n {
                    a[i * n + k] -= dot * a[j * n + k];
                }
            }
        }
        let norm = (0..n).map(|k| a[i * n + k].powi(2)).sum::<f64>().sqrt();
        for k in 0..n {
            a[i * n + k] /= norm;
        }
    }
    a
}

/// P A = L U packed in one matrix (L's unit diagonal left out), with partial pivoting.
pub struct Lu {
    n: usize,
    /// Strict lower part L, upper part with diagonal U.
    pub packed: Vec<f64>,
    /// Row i of L U is row `rows[i]` of A.
    pub rows: Vec<usize>,
    /// Whether the permutation is odd.
    odd: bool,
}

/// LU decomposition with partial pivoting.
///
/// # Errors
/// If A is singular.
pub fn lu(a: &[f64], n: usize) -> Result<Lu> {
    let mut m = a.to_vec();
    let mut rows: Vec<usize> = (0..n).collect();
    let mut odd = false;
    for k in 0..n {
        let p = (k..n).max_by(|&i, &j| m[i * n + k].abs().total_cmp(&m[j * n + k].abs())).unwrap();
        let pivot = m[p * n + k];
        if pivot == 0. || !pivot.is_finite() {
            bail!(
                "a {n}x{n} matrix is singular at pivot {k}: it has no inverse and its log-det is not finite"
            );
        }
        if p != k {
            for c in 0..n {
                m.swap(p * n + c, k * n + c);
            }
            rows.swap(p, k);
            odd = !odd;
        }
        for i in k + 1..n {
            let f = m[i * n + k] / pivot;
            m[i * n + k] = f;
            if f != 0. {
                for c in k + 1..n {
                    m[i * n + c] -= f * m[k * n + c];
                }
            }
        }
    }
    Ok(Lu { n, packed: m, rows, odd })
}

impl Lu {
    /// log |det A|.
    pub fn log_abs_det(&self) -> f64 {
        (0..self.n).map(|i| self.packed[i * self.n + i].abs().ln()).sum()
    }

    /// The sign of det A.
    pub fn sign(&self) -> f64 {
        let flips = (0..self.n).filter(|i| self.packed[i * self.n + i] < 0.).count();
        if (flips % 2 == 1) != self.odd { -1. } else { 1. }
    }

    /// A^-1.
    pub fn inverse(&self) -> Vec<f64> {
        let (n, m) = (self.n, &self.packed);
        let mut inv = vec![0.; n * n];
        let mut col = vec![0.; n];
        for c in 0..n {
            for i in 0..n {
                let mut v = if self.rows[i] == c { 1. } else { 0. };
                for k in 0..i {
                    v -= m[i * n + k] * col[k];
                }
                col[i] = v;
            }
            for i in (0..n).rev() {
                let mut v = col[i];
                for k in i + 1..n {
                    v -= m[i * n + k] * col[k];
                }
                col[i] = v / m[i * n + i];
            }
            for i in 0..n {
                inv[i * n + c] = col[i];
            }
        }
        inv
    }
}

/// For a symmetric positive definite A: (A^-1/2, A^1/2, log det A), by the coupled Newton-Schulz iteration
///
/// ```text
/// T = (3 I - Z Y) / 2,  Y <- Y T -> (A/s)^1/2,  Z <- T Z -> (A/s)^-1/2,   s = |A|_F
/// ```
///
/// It is three GEMMs an iteration, which makes the 3072 x 3072 covariance of CIFAR-10 a matter of a minute where a plain
/// eigensolver takes many. The smallest eigenvalue must be above about 1e-10 |A|; callers add a floor first.
///
/// # Errors
/// If A is not finite, or the iteration does not converge because A is nearly singular.
pub fn inverse_sqrt(a: &[f64], n: usize) -> Result<(Vec<f64>, Vec<f64>, f64)> {
    let s = a.iter().map(|v| v * v).sum::<f64>().sqrt();
    if !(s.is_finite() && s > 0.) {
        bail!("the covariance is zero or not finite: is the data constant or does it hold a NaN?");
    }
    let matmul = |x: &[f64], y: &[f64], alpha: f64| {
        let mut out = vec![0.; n * n];
        gemm(
            (n, n, n),
            Mat::rows(x, n),
            Mat::rows(y, n),
            MatMut::rows(&mut out, n),
            alpha,
            false,
            rayon::current_num_threads(),
        );
        out
    };
    let mut y: Vec<f64> = a.iter().map(|v| v / s).collect();
    let mut z = vec![0.; n * n];
    (0..n).for_each(|i| z[i * n + i] = 1.);
    for _ in 0..100 {
        let mut t = matmul(&z, &y, -0.5);
        let mut off = 0f64;
        for i in 0..n {
            off = off.max((t[i * n + i] + 0.5).abs());
            t[i * n + i] += 1.5;
        }
        y = matmul(&y, &t, 1.);
        z = matmul(&t, &z, 1.);
        // Convergence is quadratic: once the step is below 1e-7, one more makes it exact to rounding, and it was taken.
        if off < 1e-7 {
            let r = s.sqrt();
            let log_det = cholesky_log_det(a, n)?;
            y.iter_mut().for_each(|v| *v *= r);
            z.iter_mut().for_each(|v| *v /= r);
            return Ok((z, y, log_det));
        }
    }
    bail!("the covariance is too badly conditioned to whiten: raise `epsilon`")
}

/// log det of a symmetric positive definite matrix.
fn cholesky_log_det(a: &[f64], n: usize) -> Result<f64> {
    let mut l = a.to_vec();
    let mut sum = 0.;
    for j in 0..n {
        let (done, rest) = l.split_at_mut(j * n);
        let row = &mut rest[..n];
        for i in 0..j {
            let li = &done[i * n..i * n + i];
            let dot: f64 = li.iter().zip(&row[..i]).map(|(a, b)| a * b).sum();
            row[i] = (row[i] - dot) / done[i * n + i];
        }
        let d = row[j] - row[..j].iter().map(|v| v * v).sum::<f64>();
        if d <= 0. {
            bail!("the covariance is not positive definite at dimension {j}: raise `epsilon`");
        }
        row[j] = d.sqrt();
        sum += d.ln();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn mul(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
        let at = |i: usize, j: usize| (0..n).map(|k| a[i * n + k] * b[k * n + j]).sum();
        (0..n * n).map(|e| at(e / n, e % n)).collect()
    }

    fn assert_identity(m: &[f64], n: usize, tol: f64) {
        for i in 0..n {
            for j in 0..n {
                let want = f64::from(u8::from(i == j));
                assert!((m[i * n + j] - want).abs() < tol, "({i},{j}): {}", m[i * n + j]);
            }
        }
    }

    #[test]
    fn orthogonal_is_orthogonal() -> Result<()> {
        let n = 24;
        let q = orthogonal(n, &mut ChaCha8Rng::seed_from_u64(1));
        let qt: Vec<f64> = (0..n * n).map(|e| q[(e % n) * n + e / n]).collect();
        assert_identity(&mul(&q, &qt, n), n, 1e-14);
        assert!(lu(&q, n)?.log_abs_det().abs() < 1e-13);
        Ok(())
    }

    #[test]
    fn lu_gives_inverse_and_determinant() -> Result<()> {
        // det [[2,1],[1,3]] = 5; swapping the rows flips the sign.
        let f = lu(&[2., 1., 1., 3.], 2)?;
        assert!((f.log_abs_det() - 5f64.ln()).abs() < 1e-15 && f.sign() == 1.);
        assert_eq!(lu(&[1., 3., 2., 1.], 2)?.sign(), -1.);
        assert_identity(&mul(&[2., 1., 1., 3.], &f.inverse(), 2), 2, 1e-15);
        assert!(lu(&[1., 2., 2., 4.], 2).is_err());
        Ok(())
    }

    #[test]
    fn singular_values_are_those_of_the_factors() -> Result<()> {
        let n = 9;
        let (u, v) = (
            orthogonal(n, &mut ChaCha8Rng::seed_from_u64(3)),
            orthogonal(n, &mut ChaCha8Rng::seed_from_u64(4)),
        );
        let want: Vec<f64> = (0..n).map(|i| 10f64.powi(3 - i as i32)).collect();
        let scaled: Vec<f64> = (0..n * n).map(|e| u[e] * want[e % n]).collect();
        for (got, want) in singular_values(&mul(&scaled, &v, n), n)?.iter().zip(&want) {
            assert!((got - want).abs() < 1e-9 * want.max(1.), "{got} {want}");
        }
        assert_eq!(singular_values(&[2., 0., 0., 0.], 2)?, [2., 0.]);
        assert!(singular_values(&[f64::NAN, 0., 0., 1.], 2).is_err());
        Ok(())
    }

    #[test]
    fn inverse_sqrt_whitens() -> Result<()> {
        let n = 12;
        let q = orthogonal(n, &mut ChaCha8Rng::seed_from_u64(2));
        // Eigenvalues from 1e-4 to 1e2.
        let ev: Vec<f64> = (0..n).map(|i| 10f64.powf(-4. + 6. * i as f64 / (n - 1) as f64)).collect();
        let at = |i: usize, j: usize| (0..n).map(|k| q[k * n + i] * ev[k] * q[k * n + j]).sum();
        let a: Vec<f64> = (0..n * n).map(|e| at(e / n, e % n)).collect();
        let (z, y, log_det) = inverse_sqrt(&a, n)?;
        assert_identity(&mul(&mul(&z, &a, n), &z, n), n, 1e-6);
        assert_identity(&mul(&z, &y, n), n, 1e-8);
        assert!((log_det - ev.iter().map(|v| v.ln()).sum::<f64>()).abs() < 1e-8);
        Ok(())
    }
}
