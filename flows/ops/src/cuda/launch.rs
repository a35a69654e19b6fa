//! The CUDA kernels (the folder `kernels`) as functions of tensors, outside any graph.
//!
//! **How they reach the binary.** build.rs has nvcc translate one file to PTX, which is part of the binary as text, as candle's
//! own kernels are; the driver translates it for the GPU at hand when the first one is launched, and keeps the result in its
//! cache. That asks nothing of a user beyond what candle's CUDA feature asks already, and one binary serves every GPU from
//! the compute capability it was built for on. NVRTC would be one more library to find at run time; machine code for each
//! generation of GPUs a larger binary, to save a fraction of a second once.
//!
//! **How they are tested.** With the feature `emulate` the same source is compiled by the C compiler and the same functions
//! run it on tensors of the CPU, each of a block's threads as a coroutine: what is launched with which sizes and
//! addresses is then checked against the references in candle's operations where there is no GPU. What only a GPU shows is whether the driver
//! agrees, and how fast it is.
//!
//! All work goes to one stream, so a kernel sees what was launched before it, whichever thread did that, and a tensor that
//! is dropped is freed after the kernels that read it.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

/// Threads of a block, as in portable.h.
pub(crate) const THREADS: usize = 256;
/// Blocks of an elementwise kernel at most: some sixteen for each multiprocessor of a large GPU.
const BLOCKS: usize = 2112;

/// A device address, as kernels take it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Ptr(pub(crate) u64);

impl Ptr {
    /// No tensor.
    pub(crate) const NULL: Self = Self(0);

    /// The first element of a contiguous tensor. It is valid as long as the tensor, and the caller keeps that until the
    /// kernel is launched.
    pub(crate) fn of(t: &Tensor) -> Result<Self> {
        if !t.is_contiguous() {
            bail!("a kernel needs contiguous tensors")
        }
        Self::first(t)
    }

    /// The first element of a vector, and how far apart its elements are: 0 for one number that is expanded.
    pub(crate) fn strided(t: &Tensor) -> Result<(Self, u32)> {
        let [stride] = t.stride() else { bail!("expected a vector, got {:?}", t.shape()) };
        Ok((Self::first(t)?, count(*stride)?))
    }

    fn first(t: &Tensor) -> Result<Self> {
        let (storage, layout) = t.storage_and_layout();
        let start = layout.start_offset();
        let base = match &*storage {
            Storage::Cpu(s) => match s {
                CpuStorage::U8(v) => v.as_ptr() as u64,
                CpuStorage::U32(v) => v.as_ptr() as u64,
                CpuStorage::I64(v) => v.as_ptr() as u64,
                CpuStorage::BF16(v) => v.as_ptr() as u64,
                CpuStorage::F32(v) => v.as_ptr() as u64,
                CpuStorage::F64(v) => v.as_ptr() as u64,
                _ => bail!("no kernel takes {:?}", s.dtype()),
            },
            #[cfg(feature = "cuda")]
            Storage::Cuda(s) => {
                use candle_core::cuda::CudaStorageSlice as Slice;
                use candle_core::cuda::cudarc::driver::DevicePtr;
                let stream = s.device().cuda_stream();
                // The stream's order is all the synchronisation there is.
                match &s.slice {
                    Slice::U8(v) => v.device_ptr(&stream).0,
                    Slice::U32(v) => v.device_ptr(&stream).0,
                    Slice::I64(v) => v.device_ptr(&stream).0,
                    Slice::BF16(v) => v.device_ptr(&stream).0,
                    Slice::F32(v) => v.device_ptr(&stream).0,
                    Slice::F64(v) => v.device_ptr(&stream).0,
                    _ => bail!("no kernel takes {:?}", s.dtype()),
                }
            }
            _ => bail!("a kernel met a tensor of {:?}", t.device().location()),
        };
        Ok(Self(base + (start * t.dtype().size_in_bytes()) as u64))
    }

    /// That of a tensor, or none.
    pub(crate) fn maybe(t: Option<&Tensor>) -> Result<Self> {
        t.map_or(Ok(Self::NULL), Self::of)
    }
}

/// A tensor whose elements a kernel is about to write, all of them.
pub(crate) fn fresh(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        use candle_core::backend::BackendDevice;
        // SAFETY: every element is written before it is read, by the kernel that this is made for.
        let storage = unsafe { cuda.alloc_uninit(&shape, dtype)? };
        return Ok(Tensor::from_storage(
            Storage::Cuda(storage),
            shape,
            candle_core::op::BackpropOp::none(),
            false,
        ));
    }
    Tensor::zeros(shape, dtype, device)
}

/// Sizes and places inside kernels are 32-bit, and a thread's last stride must not pass their end.
pub(crate) fn count(n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) if n <= u32::MAX - (BLOCKS * THREADS) as u32 => Ok(n),
        _ => bail!("{n} elements are more than a kernel counts: use a smaller batch"),
    }
}

/// Blocks of an elementwise kernel over n elements.
pub(crate) fn blocks(n: usize) -> usize {
    n.div_ceil(THREADS).clamp(1, BLOCKS)
}

/// Marks what may be passed to a kernel by value.
///
/// # Safety
/// The struct is `repr(C)` and has the fields of the kernel's struct, in order, and its addresses are of tensors of the
/// sizes that the kernel works on.
pub(crate) unsafe trait Args: Copy {}

/// Checks when this is compiled that a struct of arguments has the size, and its last field the place, that `LAYOUT` beside the
/// kernel checks of the kernel's own struct.
macro_rules! layout {
    ($args:ty, $size:literal, $last:ident, $at:literal) => {
        const _: () = assert!(size_of::<$args>() == $size && std::mem::offset_of!($args, $last) == $at);
    };
}
pub(crate) use layout;

/// Runs the kernel `name`, for tensors of `dtype`, on `blocks` blocks.
pub(crate) fn launch<A: Args>(
    device: &Device,
    name: &str,
    dtype: Option<DType>,
    blocks: usize,
    args: &A,
) -> Result<()> {
    let name = match dtype {
        Some(DType::F32) => format!("{name}_f32"),
        Some(DType::F64) => format!("{name}_f64"),
        Some(DType::BF16) => format!("{name}_bf16"),
        Some(other) => bail!("`{name}` has no kernel for {other:?}"),
        None => name.to_string(),
    };
    if blocks == 0 {
        return Ok(());
    }
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            use candle_core::cuda::WrapErr;
            use candle_core::cuda::cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
            #[derive(Clone, Copy)]
            #[repr(transparent)]
            struct ByValue<A>(A);
            // SAFETY: `Args` promises that it is plain data.
            unsafe impl<A: Args> DeviceRepr for ByValue<A> {}
            let func = device.get_or_load_custom_func(
                &name,
                "flows",
                include_str!(concat!(env!("OUT_DIR"), "/flows.ptx")),
            )?;
            let config = LaunchConfig {
                grid_dim: (count(blocks)?, 1, 1),
                block_dim: (THREADS as u32, 1, 1),
                shared_mem_bytes: 0,
            };
            let args = ByValue(*args);
            let mut builder = func.builder();
            builder.arg(&args);
            // SAFETY: `Args` promises that the struct is the kernel's and its addresses are valid.
            unsafe { builder.launch(config) }.w()?;
            Ok(())
        }
        #[cfg(feature = "emulate")]
        Device::Cpu => emulated::run(&name, count(blocks)?, args),
        _ => {
            let _ = args;
            bail!("`{name}` is a kernel for GPUs")
        }
    }
}

#[cfg(feature = "emulate")]
mod emulated {
    use super::Args;
    use candle_core::{Result, bail};
    use std::ffi::{CString, c_char, c_int, c_uint, c_void};
    use std::sync::Mutex;

    unsafe extern "C" {
        fn flows_emulate(name: *const c_char, blocks: c_uint, args: *const c_void) -> c_int;
    }

    /// The emulation keeps its coroutines in static memory.
    static ONE: Mutex<()> = Mutex::new(());

    pub(super) fn run<A: Args>(name: &str, blocks: u32, args: &A) -> Result<()> {
        let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        let c = CString::new(name).map_err(candle_core::Error::wrap)?;
        // SAFETY: as for a launch.
        match unsafe { flows_emulate(c.as_ptr(), blocks, std::ptr::from_ref(args).cast()) } {
            0 => Ok(()),
            1 => bail!("there is no kernel `{name}`"),
            _ => bail!("no memory for the emulated threads of `{name}`"),
        }
    }
}

/// (B, C, positions) of x (B, C, ...).
pub(crate) fn sizes(x: &Tensor) -> Result<(usize, usize, usize)> {
    match x.dims() {
        [b, c, rest @ ..] => Ok((*b, *c, rest.iter().product())),
        _ => bail!("expected (B, C, ...), got {:?}", x.shape()),
    }
}

/// Errors where a vector has not one number for each of `c` channels.
pub(crate) fn channels(c: usize, vectors: &[Option<&Tensor>]) -> Result<()> {
    match vectors.iter().flatten().find(|v| v.elem_count() != c) {
        Some(v) => bail!("a per-channel vector of {:?} met {c} channels", v.shape()),
        None => Ok(()),
    }
}

/// The type of parameters beside activations of `dtype`.
pub(crate) fn parameters(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}
