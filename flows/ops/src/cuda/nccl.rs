//! Sums of tensors over GPUs, each of a process of its own, by NCCL.
//!
//! A sum is enqueued on the stream of all other work, so that nothing waits for it and it can be part of a recorded step. For the
//! same GPUs and the same length NCCL chooses the same algorithm, and with it the same order of additions.

use candle_core::{Device, Result, Tensor};

/// The GPUs that add together, as the process of one of them knows them.
pub struct Nccl {
    #[cfg(feature = "nccl")]
    comm: candle_core::cuda::cudarc::nccl::Comm,
}

// SAFETY: NCCL's communicator may be used by any thread, though by one at a time: a run enqueues all of its work from one thread.
#[cfg(feature = "nccl")]
unsafe impl Send for Nccl {}
// SAFETY: as above.
#[cfg(feature = "nccl")]
unsafe impl Sync for Nccl {}

#[cfg(not(feature = "nccl"))]
fn missing<T>() -> Result<T> {
    candle_core::bail!(
        "this binary was built without NCCL: build it with the feature `nccl`, or use the device cpu"
    )
}

#[cfg(feature = "nccl")]
fn failed(e: candle_core::cuda::cudarc::nccl::result::NcclError) -> candle_core::Error {
    candle_core::Error::msg(format!("NCCL failed ({e:?}): NCCL_DEBUG=WARN says more"))
}

impl Nccl {
    /// An identifier for GPUs that are to add together: one process makes it, and all need it.
    ///
    /// # Errors
    /// Where there is no NCCL.
    pub fn id() -> Result<Vec<u8>> {
        #[cfg(not(feature = "nccl"))]
        return missing();
        #[cfg(feature = "nccl")]
        {
            let id = candle_core::cuda::cudarc::nccl::Id::new().map_err(failed)?;
            Ok(id.internal().iter().map(|byte| *byte as u8).collect())
        }
    }

    /// Waits for all `size` processes that have the identifier, and joins them as number `rank` with this GPU.
    ///
    /// # Errors
    /// Where there is no NCCL, or it finds no way between the GPUs; for a device that is no GPU.
    pub fn new(device: &Device, id: &[u8], rank: usize, size: usize) -> Result<Self> {
        #[cfg(not(feature = "nccl"))]
        {
            let _ = (device, id, rank, size);
            missing()
        }
        #[cfg(feature = "nccl")]
        {
            use candle_core::cuda::cudarc::nccl::{Comm, Id};
            let Device::Cuda(cuda) = device else { candle_core::bail!("NCCL adds on GPUs only") };
            let mut internal = [0; 128];
            if id.len() != internal.len() {
                candle_core::bail!("an identifier of NCCL has {} bytes, not {}", internal.len(), id.len());
            }
            internal.iter_mut().zip(id).for_each(|(to, from)| *to = *from as _);
            let comm = Comm::from_rank(cuda.cuda_stream(), rank, size, Id::uninit(internal));
            Ok(Self { comm: comm.map_err(failed)? })
        }
    }

    /// The sum over all GPUs of a contiguous vector of f32 or f64, of the same length on each. Nothing waits.
    ///
    /// # Errors
    /// For another tensor, and where NCCL fails.
    pub fn all_reduce(&self, values: &Tensor) -> Result<Tensor> {
        #[cfg(not(feature = "nccl"))]
        {
            let _ = values;
            missing()
        }
        #[cfg(feature = "nccl")]
        match values.dtype() {
            candle_core::DType::F32 => self.add::<f32>(values),
            candle_core::DType::F64 => self.add::<f64>(values),
            dtype => candle_core::bail!("GPUs add f32 and f64, not {dtype:?}"),
        }
    }

    #[cfg(feature = "nccl")]
    fn add<T>(&self, values: &Tensor) -> Result<Tensor>
    where
        T: candle_core::cuda_backend::CudaDType
            + candle_core::cuda::cudarc::nccl::NcclType
            + candle_core::cuda::cudarc::driver::DeviceRepr,
    {
        use candle_core::Storage;
        use candle_core::cuda::cudarc::nccl::ReduceOp;
        let (storage, layout) = values.storage_and_layout();
        let (Storage::Cuda(from), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            candle_core::bail!("NCCL adds contiguous vectors on GPUs")
        };
        let device = from.device.clone();
        // SAFETY: NCCL writes every element before any is read, in the order of the stream.
        let mut sum = unsafe { device.alloc::<T>(end - start)? };
        let from = T::as_cuda_slice(from)?.slice(start..end);
        self.comm.all_reduce(&from, &mut sum, &ReduceOp::Sum).map_err(failed)?;
        let sum = Storage::Cuda(T::wrap_cuda_slice(sum, device));
        Ok(Tensor::from_storage(sum, values.shape().clone(), candle_core::op::BackpropOp::none(), false))
    }
}
