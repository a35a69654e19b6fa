//! Which implementation of an op runs, and how a device is opened.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Which implementation of an op runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Ours, on slices of the host's memory.
    Cpu,
    /// Our kernels for GPUs.
    Kernel,
    /// candle's operations: on its graph, and wherever the other two do not apply.
    Candle,
}

impl Path {
    /// The implementation for these tensors.
    pub(crate) fn of(tensors: &[&Tensor]) -> Self {
        if tensors.iter().any(|t| t.track_op()) {
            return Self::Candle;
        }
        let on = |t: &&Tensor| runs_kernels(t.device()) && matches!(t.dtype(), DType::F32 | DType::F64);
        if tensors.iter().all(on) {
            return Self::Kernel;
        }
        let on_cpu = |t: &&Tensor| t.device().is_cpu() && !runs_kernels(t.device());
        if tensors.iter().all(on_cpu) { Self::Cpu } else { Self::Candle }
    }
}

/// Whether `device` is a GPU.
pub fn is_gpu(device: &Device) -> bool {
    device.is_cuda()
}

/// Whether the kernels for GPUs run on `device`. In a build without them no device can be opened on which they would.
pub fn runs_kernels(device: &Device) -> bool {
    #[cfg(feature = "emulate")]
    if emulating() {
        return device.is_cpu();
    }
    is_gpu(device)
}

#[cfg(feature = "emulate")]
thread_local! {
    static EMULATING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether this thread treats the CPU as a GPU.
#[cfg(feature = "emulate")]
fn emulating() -> bool {
    EMULATING.get()
}

/// Runs `f` with the CPU in the place of a GPU, on this thread: whole models then run as they do on a GPU, through the
/// emulated kernels.
#[cfg(feature = "emulate")]
pub fn emulate<R>(f: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            EMULATING.set(self.0);
        }
    }
    let _before = Before(EMULATING.replace(true));
    f()
}

/// The device that `name` stands for: `cpu`, `cuda:N`, or `cuda` for `cuda:0`.
///
/// candle's own [`Device::new_cuda`] gives each thread a stream of its own, and nothing orders them; a training step that is
/// recorded ([`crate::cuda::Recorder`]) must be on the stream of the work before it. A GPU opened here has one stream for all threads, which is all the order that a flow
/// needs.
///
/// # Errors
/// Where the name is another one, there is no such GPU or no driver, or this build has no CUDA.
pub fn open_device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let ordinal = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
        None => None,
    };
    match ordinal {
        Some(ordinal) => open_gpu(ordinal),
        None => bail!("a device is `cpu` or `cuda:N`, not `{name}`"),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: usize) -> Result<Device> {
    bail!("this binary was built without CUDA, use the device cpu")
}

#[cfg(feature = "cuda")]
fn open_gpu(ordinal: usize) -> Result<Device> {
    let device = candle_core::cuda::CudaDevice::new_with_stream(ordinal)
        .map_err(|e| e.context("this GPU cannot be opened, use the device cpu"))?;
    // SAFETY: everything on this device goes to its one stream, which orders it.
    unsafe { device.disable_event_tracking() };
    keep_memory(&device)?;
    Ok(Device::Cuda(device))
}

/// Has the driver keep what is freed for the next allocation. By default it returns all of it to the system whenever the
/// processor waits for the GPU.
#[cfg(feature = "cuda")]
fn keep_memory(device: &candle_core::cuda::CudaDevice) -> Result<()> {
    use candle_core::Error;
    use candle_core::cuda::cudarc::driver::{result, sys};
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
