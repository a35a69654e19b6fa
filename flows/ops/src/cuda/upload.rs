//! Numbers of the host written over a tensor of the device.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};

/// Copies numbers of the host over the first ones of a tensor, in the stream's order.
pub(crate) enum Upload<'a> {
    F64(&'a [f64]),
    I64(&'a [i64]),
}

impl InplaceOp1 for Upload<'_> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        match (self, storage) {
            (Self::F64(from), CpuStorage::F64(to)) => to[..from.len()].copy_from_slice(from),
            (Self::I64(from), CpuStorage::I64(to)) => to[..from.len()].copy_from_slice(from),
            _ => bail!("an upload met another type of numbers"),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let device = storage.device().clone();
        match self {
            Self::F64(from) => {
                let slice = storage.as_cuda_slice_mut::<f64>()?;
                device.memcpy_htod(*from, &mut slice.slice_mut(..from.len()))
            }
            Self::I64(from) => {
                let slice = storage.as_cuda_slice_mut::<i64>()?;
                device.memcpy_htod(*from, &mut slice.slice_mut(..from.len()))
            }
        }
    }
}
