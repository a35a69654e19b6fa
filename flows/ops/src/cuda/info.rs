//! What is asked of a GPU itself: its name, and its memory, from the pools that all allocations come from.
//!
//! Everything here does nothing for a CPU, and in builds without CUDA.

#[cfg(feature = "cuda")]
use candle_core::cuda::CudaDevice;
#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::{Device, Result};
#[cfg(feature = "cuda")]
use candle_core::{Error, cuda::WrapErr};

/// How many GPUs there are.
///
/// # Errors
/// Where there is no driver.
pub fn device_count() -> Result<usize> {
    #[cfg(feature = "cuda")]
    return Ok(CudaContext::device_count().w()? as usize);
    #[cfg(not(feature = "cuda"))]
    Ok(0)
}

/// The GPU's own name; `None` for a CPU.
///
/// # Errors
/// Where the driver does not tell.
pub fn gpu_name(device: &Device) -> Result<Option<String>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.cuda_stream().context().name().map(Some).map_err(Error::wrap),
        _ => Ok(None),
    }
}

/// The most bytes of a GPU that were allocated at once since [`reset_peak_memory`]; `None` for a CPU.
///
/// # Errors
/// Where the driver does not tell.
pub fn peak_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => in_pool(cuda, |id, pool| {
            let (mut used, mut graphs) = (0u64, 0u64);
            // SAFETY: both attributes are a u64.
            unsafe {
                result::mem_pool::get_attribute(pool, POOL, (&raw mut used).cast())?;
                sys::cuDeviceGetGraphMemAttribute(id, GRAPHS, (&raw mut graphs).cast()).result()?;
            }
            Ok(Some(used + graphs))
        }),
        _ => Ok(None),
    }
}

/// Lets the peak start from what is allocated now.
///
/// # Errors
/// Where the driver refuses.
pub fn reset_peak_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => in_pool(cuda, |id, pool| {
            let mut zero = 0u64;
            // SAFETY: both attributes are a u64 that may be set to zero.
            unsafe {
                result::mem_pool::set_attribute(pool, POOL, (&raw mut zero).cast())?;
                sys::cuDeviceSetGraphMemAttribute(id, GRAPHS, (&raw mut zero).cast()).result()
            }
        }),
        _ => Ok(()),
    }
}

/// Waits for all that was launched and gives unused memory back to the system: that of the pool of tensors, and that of recorded
/// steps, which have a pool of their own.
///
/// # Errors
/// Where the driver refuses.
pub(crate) fn trim_memory(device: &Device) -> Result<()> {
    device.synchronize()?;
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => in_pool(cuda, trim),
        _ => Ok(()),
    }
}

#[cfg(feature = "cuda")]
fn trim(id: i32, pool: sys::CUmemoryPool) -> std::result::Result<(), DriverError> {
    // SAFETY: what is in use stays.
    unsafe {
        result::mem_pool::trim_to(pool, 0)?;
        sys::cuDeviceGraphMemTrim(id).result()
    }
}

/// Gives unused memory back to the system if less than half of the GPU's is free.
///
/// # Errors
/// Where the driver refuses.
pub fn release_unused_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => in_pool(cuda, |id, pool| {
            let (free, total) = result::mem_get_info()?;
            if free < total / 2 { trim(id, pool) } else { Ok(()) }
        }),
        _ => Ok(()),
    }
}

#[cfg(feature = "cuda")]
const GRAPHS: sys::CUgraphMem_attribute = sys::CUgraphMem_attribute_enum::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
#[cfg(feature = "cuda")]
const POOL: sys::CUmemPool_attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

#[cfg(feature = "cuda")]
fn in_pool<T>(
    cuda: &CudaDevice,
    what: impl FnOnce(i32, sys::CUmemoryPool) -> std::result::Result<T, DriverError>,
) -> Result<T> {
    let stream = cuda.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().map_err(Error::wrap)?;
    let id = context.cu_device();
    // SAFETY: `id` is a device that is open.
    let pool = unsafe { result::device::get_mem_pool(id) };
    pool.and_then(|pool| what(id, pool)).map_err(Error::wrap)
}
