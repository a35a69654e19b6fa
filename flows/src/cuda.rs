//! Opening a GPU.

use candle_core::cuda::CudaDevice;
use candle_core::{Device, Result};

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
    Ok(Device::Cuda(device))
}
