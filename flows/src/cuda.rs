//! Opening a GPU.

use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::{result, sys};
use candle_core::{Device, Error, Result};

/// The GPU number `ordinal`, with one stream for all threads.
///
/// candle's own [`Device::new_cuda`] gives each thread a stream of its own, and keeps events to order them; a training step
/// that is recorded ([`crate::ops::kernels::Graph`]) must neither wait for an event from before the recording nor be on
/// another stream than the work before it. One stream is all the order that a flow needs.
///
/// # Errors
/// Where there is no such GPU, or no driver.
pub fn device(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: everything on this device goes to its one stream, which orders it.
    unsafe { device.disable_event_tracking() };
    keep_memory(&device)?;
    Ok(Device::Cuda(device))
}

/// Has the driver keep what is freed for the next allocation. By default it returns all of it to the system whenever the
/// processor waits for the GPU.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    context.bind_to_thread().map_err(Error::wrap)?;
    let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut all = u64::MAX;
    // SAFETY: the device is open, and the attribute is a u64.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).map_err(Error::wrap)?;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()).map_err(Error::wrap)
    }
}
