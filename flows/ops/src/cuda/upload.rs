//! Numbers of the host written over a tensor of the device.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};

/// Copies numbers of the host over the first ones of a tensor, in the stream's order.
pub(crate) struct Upload<'a>(pub(crate) &'a [i64]);

impl InplaceOp1 for Upload<'_> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let CpuStorage::I64(to) = storage else { bail!("an upload met another type of numbers") };
        to[..self.0.len()].copy_from_slice(self.0);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let device = storage.device().clone();
        let slice = storage.as_cuda_slice_mut::<i64>()?;
        device.memcpy_htod(self.0, &mut slice.slice_mut(..self.0.len()))
    }
}
