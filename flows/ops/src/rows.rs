//! Parameters of a transform as rows of a matrix, for transforms that compute with several numbers of a kind for each element.
//!
//! An element is a column and each of its k parameters a row, so that sums over parameters are sums of whole rows.

use candle_core::{DType, Result, Tensor, bail};

/// Errors unless `h` has `k` numbers of x's dtype for each element of `x`, for a transform of this name.
pub(crate) fn check_params(name: &str, k: usize, x: &Tensor, h: &Tensor) -> Result<()> {
    let same = x.dim(0)? == h.dim(0)? && h.elem_count() == k * x.elem_count();
    if !same || x.dtype() != h.dtype() {
        let (x_type, h_type) = (x.dtype(), h.dtype());
        bail!("{name} takes {k} {x_type:?} for each of {:?}, got {:?} of {h_type:?}", x.shape(), h.shape());
    }
    Ok(())
}

/// h (B, k C, ..) as (k, N), where N counts the elements of (B, C, ..).
pub(crate) fn rows(h: &Tensor, k: usize) -> Result<Tensor> {
    let b = h.dim(0)?;
    let n = h.elem_count() / (b * k).max(1);
    h.reshape((b, k, n))?.transpose(0, 1)?.contiguous()?.reshape((k, b * n))
}

/// x (B, C, ..) as one row (1, N).
pub(crate) fn row(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.reshape((1, x.elem_count()))
}

/// Constants as a column (K, 1), made on the device: what is uploaded cannot be part of a recorded training step.
pub(crate) fn column(values: &[f64], like: &Tensor) -> Result<Tensor> {
    let each = |&value: &f64| Tensor::full(value, (1, 1), like.device());
    Tensor::cat(&values.iter().map(each).collect::<Result<Vec<_>>>()?, 0)?.to_dtype(like.dtype())
}

/// log sum_k exp(a_k) of each column, (1, N). The largest term is subtracted first, and is no part of the graph: it cancels.
pub(crate) fn log_sum_exp(a: &Tensor) -> Result<Tensor> {
    let most = a.max_keepdim(0)?.detach();
    a.broadcast_sub(&most)?.exp()?.sum_keepdim(0)?.log()? + most
}

/// exp(a_k) / sum_j exp(a_j) along dimension 1.
pub(crate) fn softmax(a: &Tensor) -> Result<Tensor> {
    let e = a.broadcast_sub(&a.max_keepdim(1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(1)?)
}

/// The number of rows up to each column's value, (1, N) in u32: how many `a_k` are at most `x`.
pub(crate) fn count_up_to(a: &Tensor, x: &Tensor) -> Result<Tensor> {
    x.detach().broadcast_ge(&a.detach())?.to_dtype(DType::U32)?.sum_keepdim(0)
}

/// The sums a_0, a_0 + a_1, .. along dimension 1 of (M, K, N), in log K additions of all of them. A product with a triangular
/// matrix, as candle's own has it, takes twice the time for a few hundred elements, most of it to wake threads.
pub(crate) fn partial_sums(a: &Tensor) -> Result<Tensor> {
    let (k, mut sums, mut shift) = (a.dim(1)?, a.clone(), 1);
    while shift < k {
        sums = (&sums + sums.narrow(1, 0, k - shift)?.pad_with_zeros(1, shift, 0)?)?;
        shift *= 2;
    }
    Ok(sums)
}
