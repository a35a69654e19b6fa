//! The kernels of sums of log-dets.

use crate::cuda::launch::{Args, Ptr, blocks, count, fresh, launch, layout};
use candle_core::{Result, Tensor, bail};

/// Vectors that one launch adds, as in layers.h.
const VECTORS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct SumArgs {
    out: Ptr,
    n: u32,
    vectors: u32,
    v: [Ptr; VECTORS],
    stride: [u32; VECTORS],
}
// SAFETY: as `Args` asks.
unsafe impl Args for SumArgs {}
layout!(SumArgs, 1552, stride, 1040);

/// [`super::sum`].
pub(super) fn sum(vectors: &[Tensor]) -> Result<Tensor> {
    let (n, dtype) = (vectors[0].dims1()?, vectors[0].dtype());
    let mut total: Option<Tensor> = None;
    for part in vectors.chunks(VECTORS - 1) {
        let all = total.iter().chain(part);
        let out = fresh(n, dtype, vectors[0].device())?;
        let mut args = SumArgs {
            out: Ptr::of(&out)?,
            n: count(n)?,
            vectors: 0,
            v: [Ptr::NULL; VECTORS],
            stride: [0; VECTORS],
        };
        for (i, v) in all.enumerate() {
            if v.dims() != [n] || v.dtype() != dtype {
                bail!("a log-det of {:?} was added to one of {n} examples", v.shape());
            }
            (args.v[i], args.stride[i]) = Ptr::strided(v)?;
            args.vectors += 1;
        }
        launch(out.device(), "sum_vectors", Some(dtype), blocks(n), &args)?;
        total = Some(out);
    }
    Ok(total.expect("there is a vector"))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ScaledSum {
    x: Ptr,
    out: Ptr,
    factor: f64,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ScaledSum {}
layout!(ScaledSum, 32, n, 24);

/// [`super::scaled_sum`].
pub(super) fn scaled_sum(x: &Tensor, factor: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let out = fresh((), x.dtype(), x.device())?;
    let args = ScaledSum { x: Ptr::of(&x)?, out: Ptr::of(&out)?, factor, n: count(x.elem_count())? };
    launch(x.device(), "scaled_sum", Some(x.dtype()), 1, &args)?;
    Ok(out)
}
