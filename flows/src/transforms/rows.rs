//! Parameters of a transform as rows of a matrix, for transforms that compute with several numbers of a kind for each element.
//!
//! An element is a column and each of its k parameters a row, so that sums over parameters are sums of whole rows, and one
//! product with a triangular matrix accumulates them for all elements at once.

use candle_core::{D, Result, Tensor};

/// h (B, k C, ..) as (k, N), where N counts the elements of (B, C, ..).
pub(super) fn rows(h: &Tensor, k: usize) -> Result<Tensor> {
    let b = h.dim(0)?;
    let n = h.elem_count() / (b * k).max(1);
    h.reshape((b, k, n))?.transpose(0, 1)?.contiguous()?.reshape((k, b * n))
}

/// x (B, C, ..) as one row (1, N).
pub(super) fn row(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.reshape((1, x.elem_count()))
}

/// log sum_k exp(a_k) of each column, (1, N). The largest term is subtracted first, and is no part of the graph: it cancels.
pub(super) fn log_sum_exp(a: &Tensor) -> Result<Tensor> {
    let most = a.max_keepdim(0)?.detach();
    a.broadcast_sub(&most)?.exp()?.sum_keepdim(0)?.log()? + most
}

/// exp(a_k) / sum_j exp(a_j) of each column.
pub(super) fn softmax(a: &Tensor) -> Result<Tensor> {
    let e = a.broadcast_sub(&a.max_keepdim(0)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(0)?)
}

/// The number of rows up to each column's value, (1, N) in u32: how many `a_k` are at most `x`.
pub(super) fn count_up_to(a: &Tensor, x: &Tensor) -> Result<Tensor> {
    x.detach().broadcast_ge(&a.detach())?.to_dtype(candle_core::DType::U32)?.sum_keepdim(0)
}

/// The sums a_0, a_0 + a_1, .. of the first rows, without the last of them: (K - 1, N) of (K, N).
pub(super) fn partial_sums(a: &Tensor) -> Result<Tensor> {
    let k = a.dim(0)?;
    Tensor::tril2(k, a.dtype(), a.device())?.narrow(D::Minus2, 0, k - 1)?.matmul(a)
}
