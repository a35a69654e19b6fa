//! The matrix of PLU factors in candle's operations.

use candle_core::{Result, Tensor};

/// [`super::plu`].
pub(crate) fn plu(packed: &Tensor, perm: &[u32], sign: &[f64]) -> Result<(Tensor, Tensor)> {
    let (n, dtype, device) = (packed.dim(0)?, packed.dtype(), packed.device());
    let eye = Tensor::eye(n, dtype, device)?;
    let upper = (Tensor::triu2(n, dtype, device)? - &eye)?;
    let lower = (Tensor::tril2(n, dtype, device)? - &eye)?;
    let logs = (packed * &eye)?.sum(1)?;
    let diagonal = (logs.exp()? * Tensor::new(sign, device)?.to_dtype(dtype)?)?;
    let l = ((packed * lower)? + &eye)?;
    let u = ((packed * upper)? + eye.broadcast_mul(&diagonal)?)?;
    let rows = Tensor::new(perm, device)?;
    Ok((l.matmul(&u)?.index_select(&rows, 0)?, logs.sum_all()?))
}
