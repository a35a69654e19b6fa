//! The CUDA kernels (flows/kernels) as functions of tensors, outside any graph.
//!
//! **How they reach the binary.** build.rs has nvcc translate one file to PTX, which is part of the binary as text, as candle's
//! own kernels are; the driver translates it for the GPU at hand when the first one is launched, and keeps the result in its
//! cache. That asks nothing of a user beyond what candle's CUDA feature asks already, and one binary serves every GPU from
//! the compute capability it was built for on. NVRTC would be one more library to find at run time; machine code for each
//! generation of GPUs a larger binary, to save a fraction of a second once.
//!
//! **How they are tested.** With the feature `emulate` the same source is compiled by the C compiler and the same functions
//! run it on tensors of the CPU, each of a block's threads as a coroutine: what is launched with which sizes and
//! addresses is then checked against [`super::reference`] where there is no GPU. What only a GPU shows is whether the driver
//! agrees, and how fast it is.
//!
//! All work goes to one stream, so a kernel sees what was launched before it, whichever thread did that, and a tensor that
//! is dropped is freed after the kernels that read it.

mod batches;
#[cfg(feature = "cuda")]
mod cupti;
mod graph;
#[cfg(all(test, feature = "emulate"))]
mod tests;
mod trace;
mod update;

pub use batches::{Batches, Variation};
pub use graph::{Graph, capture, warm_up};
pub use trace::{Traced, trace};
pub use update::Tally;
pub(crate) use update::{Hyper, Update};

use super::coupling::{Back, Law, LogScale};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

/// Threads of a block, as in portable.h.
const THREADS: usize = 256;
/// Blocks of an elementwise kernel at most: some sixteen for each multiprocessor of a large GPU.
const BLOCKS: usize = 2112;

/// Whether the kernels take these tensors: on a GPU, f32 or f64, outside any graph.
pub(crate) fn take(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|t| run_on(t.device()) && !t.track_op() && matches!(t.dtype(), DType::F32 | DType::F64))
}

/// Whether kernels run on `device`.
pub fn run_on(device: &Device) -> bool {
    #[cfg(feature = "emulate")]
    if emulating() {
        return device.is_cpu();
    }
    device.is_cuda()
}

#[cfg(feature = "emulate")]
thread_local! {
    static EMULATING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether this thread treats the CPU as a GPU.
#[cfg(feature = "emulate")]
pub(crate) fn emulating() -> bool {
    EMULATING.get()
}

/// Runs `f` with the CPU in the place of a GPU, on this thread: whole models then go the way that they go on a GPU, through
/// the emulated kernels.
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

/// A device address, as kernels take it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Ptr(u64);

impl Ptr {
    const NULL: Self = Self(0);

    /// The first element of a contiguous tensor. It is valid as long as the tensor, and the caller keeps that until the
    /// kernel is launched.
    fn of(t: &Tensor) -> Result<Self> {
        let (storage, layout) = t.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("a kernel needs contiguous tensors")
        };
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

    fn maybe(t: Option<&Tensor>) -> Result<Self> {
        t.map_or(Ok(Self::NULL), Self::of)
    }
}

/// A tensor whose elements a kernel is about to write, all of them.
fn fresh(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
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
fn count(n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) if n <= u32::MAX - (BLOCKS * THREADS) as u32 => Ok(n),
        _ => bail!("{n} elements are more than a kernel counts: use a smaller batch"),
    }
}

/// Blocks of an elementwise kernel over n elements.
fn blocks(n: usize) -> usize {
    n.div_ceil(THREADS).clamp(1, BLOCKS)
}

/// Marks what may be passed to a kernel by value.
///
/// # Safety
/// The struct is `repr(C)` and has the fields of the kernel's struct, in order, and its addresses are of tensors of the
/// sizes that the kernel works on.
unsafe trait Args: Copy {}

/// Runs the kernel `name`, for tensors of `dtype`, on `blocks` blocks.
fn launch<A: Args>(device: &Device, name: &str, dtype: Option<DType>, blocks: usize, args: &A) -> Result<()> {
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
        _ => bail!("`{name}` is a kernel for GPUs"),
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
fn sizes(x: &Tensor) -> Result<(usize, usize, usize)> {
    match x.dims() {
        [b, c, rest @ ..] => Ok((*b, *c, rest.iter().product())),
        _ => bail!("expected (B, C, ...), got {:?}", x.shape()),
    }
}

fn channels(c: usize, vectors: &[Option<&Tensor>]) -> Result<()> {
    match vectors.iter().flatten().find(|v| v.elem_count() != c) {
        Some(v) => bail!("a per-channel vector of {:?} met {c} channels", v.shape()),
        None => Ok(()),
    }
}

/// The type of parameters beside activations of `dtype`.
fn parameters(dtype: DType) -> DType {
    if dtype == DType::BF16 { DType::F32 } else { dtype }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNorm {
    x: Ptr,
    bias: Ptr,
    logs: Ptr,
    out: Ptr,
    factor: f64,
    channels: u32,
    positions: u32,
    total: u32,
    inverse: u32,
    relu: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNorm {}

/// z = act((x + bias_c) exp(factor logs_c)) for x (B, C, ...), f32, f64 or bf16; no bias is 0, no logs are 0.
pub(crate) fn act_norm(
    x: &Tensor,
    bias: Option<&Tensor>,
    logs: Option<&Tensor>,
    factor: f64,
    relu: bool,
) -> Result<Tensor> {
    act_norm_pass(x, bias, logs, factor, (false, relu))
}

/// x = z exp(-factor logs_c) - bias_c.
pub(crate) fn act_norm_inverse(z: &Tensor, bias: &Tensor, logs: &Tensor, factor: f64) -> Result<Tensor> {
    act_norm_pass(z, Some(bias), Some(logs), factor, (true, false))
}

fn act_norm_pass(
    x: &Tensor,
    bias: Option<&Tensor>,
    logs: Option<&Tensor>,
    factor: f64,
    (inverse, relu): (bool, bool),
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (_, c, p) = sizes(&x)?;
    channels(c, &[bias, logs])?;
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = ActNorm {
        x: Ptr::of(&x)?,
        bias: Ptr::maybe(bias)?,
        logs: Ptr::maybe(logs)?,
        out: Ptr::of(&out)?,
        factor,
        channels: count(c)?,
        positions: count(p)?,
        total: count(n)?,
        inverse: inverse.into(),
        relu: relu.into(),
    };
    launch(x.device(), "act_norm", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ActNormBack {
    z: Ptr,
    gz: Ptr,
    logs: Ptr,
    gx: Ptr,
    gbias: Ptr,
    glogs: Ptr,
    factor: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    relu: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for ActNormBack {}

/// The gradients of x, bias and logs from z, ReLU's output if there is one, and its gradient; without the log-det's share.
pub(crate) fn act_norm_backward(
    z: &Tensor,
    gz: &Tensor,
    logs: &Tensor,
    factor: f64,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (z, gz) = (z.contiguous()?, gz.contiguous()?);
    let (b, c, p) = sizes(&z)?;
    channels(c, &[Some(logs)])?;
    let gx = fresh(z.shape(), z.dtype(), z.device())?;
    let vector = || fresh(c, parameters(z.dtype()), z.device());
    let (gbias, glogs) = (vector()?, vector()?);
    let args = ActNormBack {
        z: Ptr::of(&z)?,
        gz: Ptr::of(&gz)?,
        logs: Ptr::of(logs)?,
        gx: Ptr::of(&gx)?,
        gbias: Ptr::of(&gbias)?,
        glogs: Ptr::of(&glogs)?,
        factor,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: relu.into(),
    };
    launch(z.device(), "act_norm_back", Some(z.dtype()), c, &args)?;
    Ok((gx, gbias, glogs))
}

/// The gradient of a bias: the sum of g over all but the channels; g (B, C, ...).
pub(crate) fn bias_backward(g: &Tensor) -> Result<Tensor> {
    let g = g.contiguous()?;
    let (b, c, p) = sizes(&g)?;
    let gbias = fresh(c, parameters(g.dtype()), g.device())?;
    let args = ActNormBack {
        z: Ptr::NULL,
        gz: Ptr::of(&g)?,
        logs: Ptr::NULL,
        gx: Ptr::NULL,
        gbias: Ptr::of(&gbias)?,
        glogs: Ptr::NULL,
        factor: 0.,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: 0,
    };
    launch(g.device(), "act_norm_back", Some(g.dtype()), c, &args)?;
    Ok(gbias)
}

/// The gradient of ReLU's input from its output y and that one's gradient.
pub(crate) fn relu_backward(y: &Tensor, gy: &Tensor) -> Result<Tensor> {
    let (y, gy) = (y.contiguous()?, gy.contiguous()?);
    let (b, c, p) = sizes(&y)?;
    let gx = fresh(y.shape(), y.dtype(), y.device())?;
    let args = ActNormBack {
        z: Ptr::of(&y)?,
        gz: Ptr::of(&gy)?,
        logs: Ptr::NULL,
        gx: Ptr::of(&gx)?,
        gbias: Ptr::NULL,
        glogs: Ptr::NULL,
        factor: 0.,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
        relu: 1,
    };
    launch(y.device(), "act_norm_back", Some(y.dtype()), c, &args)?;
    Ok(gx)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Moments {
    x: Ptr,
    out: Ptr,
    batch: u32,
    channels: u32,
    positions: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Moments {}

/// Mean and biased variance of each channel of x (B, C, ...), (2, C).
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, p) = sizes(&x)?;
    let out = fresh((2, c), parameters(x.dtype()), x.device())?;
    let args = Moments {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
    };
    launch(x.device(), "moments", Some(x.dtype()), c, &args)?;
    Ok(out)
}

/// A batch norm inside a network: vectors of C, and whether mean and variance are those of the batch at hand.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
    pub(crate) gamma: Tensor,
    pub(crate) beta: Tensor,
    pub(crate) eps: f64,
    pub(crate) own: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArgs {
    x: Ptr,
    mean: Ptr,
    var: Ptr,
    gamma: Ptr,
    beta: Ptr,
    out: Ptr,
    eps: f64,
    channels: u32,
    positions: u32,
    total: u32,
    relu: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NormArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormBack {
    x: Ptr,
    gy: Ptr,
    mean: Ptr,
    var: Ptr,
    gamma: Ptr,
    beta: Ptr,
    gx: Ptr,
    ggamma: Ptr,
    gbeta: Ptr,
    eps: f64,
    batch: u32,
    channels: u32,
    positions: u32,
    relu: u32,
    own: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for NormBack {}

impl Norm {
    fn check(&self, c: usize) -> Result<()> {
        channels(c, &[Some(&self.mean), Some(&self.var), Some(&self.gamma), Some(&self.beta)])
    }

    /// act(gamma (x - mean) / sqrt(var + eps) + beta) for x (B, C, ...).
    pub(crate) fn forward(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let x = x.contiguous()?;
        let ((_, c, p), n) = (sizes(&x)?, x.elem_count());
        self.check(c)?;
        let out = fresh(x.shape(), x.dtype(), x.device())?;
        let args = NormArgs {
            x: Ptr::of(&x)?,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            out: Ptr::of(&out)?,
            eps: self.eps,
            channels: count(c)?,
            positions: count(p)?,
            total: count(n)?,
            relu: relu.into(),
        };
        launch(x.device(), "norm", Some(x.dtype()), blocks(n), &args)?;
        Ok(out)
    }

    /// The gradients of x, gamma and beta.
    pub(crate) fn backward(&self, x: &Tensor, gy: &Tensor, relu: bool) -> Result<(Tensor, Tensor, Tensor)> {
        let (x, gy) = (x.contiguous()?, gy.contiguous()?);
        let (b, c, p) = sizes(&x)?;
        self.check(c)?;
        let gx = fresh(x.shape(), x.dtype(), x.device())?;
        let vector = || fresh(c, parameters(x.dtype()), x.device());
        let (ggamma, gbeta) = (vector()?, vector()?);
        let args = NormBack {
            x: Ptr::of(&x)?,
            gy: Ptr::of(&gy)?,
            mean: Ptr::of(&self.mean)?,
            var: Ptr::of(&self.var)?,
            gamma: Ptr::of(&self.gamma)?,
            beta: Ptr::of(&self.beta)?,
            gx: Ptr::of(&gx)?,
            ggamma: Ptr::of(&ggamma)?,
            gbeta: Ptr::of(&gbeta)?,
            eps: self.eps,
            batch: count(b)?,
            channels: count(c)?,
            positions: count(p)?,
            relu: relu.into(),
            own: self.own.into(),
        };
        launch(x.device(), "norm_back", Some(x.dtype()), c, &args)?;
        Ok((gx, ggamma, gbeta))
    }
}

/// A range of an example's numbers, and the mask on it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Part {
    mask: Ptr,
    start: u32,
    len: u32,
    example: u32,
    positions: u32,
    mask_channel: u32,
    mask_position: u32,
}

impl Part {
    /// `channels` channels from `start` of x (B, C, ...); a mask is (1 or C, H, W), (1, 1 or C, H, W) or (C,), and broadcasts.
    fn new(x: &Tensor, start: usize, channels: usize, mask: Option<&Tensor>) -> Result<Self> {
        let (_, c, p) = sizes(x)?;
        if start + channels > c {
            bail!("channels {start} to {} of {:?} were asked for", start + channels, x.shape());
        }
        let (mut mask_channel, mut mask_position) = (0, 0);
        if let Some(mask) = mask {
            let dims = match mask.dims() {
                [1, rest @ ..] if rest.len() + 1 == x.rank() => rest,
                all if all.len() + 1 == x.rank() => all,
                all => bail!("a mask of shape {all:?} met {:?}", x.shape()),
            };
            let at_each: usize = dims[1..].iter().product();
            if ![1, channels].contains(&dims[0]) || ![1, p].contains(&at_each) {
                bail!("a mask of shape {:?} met {:?}", mask.shape(), x.shape());
            }
            mask_channel = if dims[0] == 1 { 0 } else { at_each };
            mask_position = usize::from(at_each != 1);
        }
        Ok(Self {
            mask: Ptr::maybe(mask)?,
            start: count(start * p)?,
            len: count(channels * p)?,
            example: count(c * p)?,
            positions: count(p)?,
            mask_channel: count(mask_channel)?,
            mask_position: count(mask_position)?,
        })
    }

    fn of_law(law: &Law, x: &Tensor) -> Result<Self> {
        Self::new(x, law.changed.start, law.changed.len(), law.mask)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CouplingArgs {
    x: Ptr,
    net: Ptr,
    gain: Ptr,
    out: Ptr,
    log_det: Ptr,
    part: Part,
    kind: u32,
    shift_first: u32,
    inverse: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for CouplingArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct CouplingBack {
    x: Ptr,
    net: Ptr,
    gain: Ptr,
    gy: Ptr,
    gld: Ptr,
    gx: Ptr,
    gnet: Ptr,
    ggain: Ptr,
    part: Part,
    kind: u32,
    shift_first: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for CouplingBack {}

/// The kernels' number of a log-scale.
fn kind(law: &Law) -> Result<u32> {
    Ok(match law.scale {
        LogScale::Zero => 0,
        LogScale::Exp => 1,
        LogScale::Sigmoid => 2,
        LogScale::Tanh if law.gain.is_some_and(|g| g.elem_count() == 1) => 3,
        LogScale::Tanh => bail!("a coupling's learned gain is one number"),
    })
}

fn coupling_pass(law: &Law, x: &Tensor, net: &Tensor, log_det: Option<&Tensor>) -> Result<Tensor> {
    let (x, net) = (x.contiguous()?, net.contiguous()?);
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let args = CouplingArgs {
        x: Ptr::of(&x)?,
        net: Ptr::of(&net)?,
        gain: Ptr::maybe(law.gain)?,
        out: Ptr::of(&out)?,
        log_det: Ptr::maybe(log_det)?,
        part: Part::of_law(law, &x)?,
        kind: kind(law)?,
        shift_first: law.shift_first.into(),
        inverse: log_det.is_none().into(),
    };
    launch(x.device(), "coupling", Some(x.dtype()), x.dim(0)?, &args)?;
    Ok(out)
}

/// [`Law::forward`].
pub(crate) fn coupling(law: &Law, x: &Tensor, net: &Tensor) -> Result<(Tensor, Tensor)> {
    let log_det = fresh(x.dim(0)?, x.dtype(), x.device())?;
    Ok((coupling_pass(law, x, net, Some(&log_det))?, log_det))
}

/// [`Law::inverse`].
pub(crate) fn coupling_inverse(law: &Law, y: &Tensor, net: &Tensor) -> Result<Tensor> {
    coupling_pass(law, y, net, None)
}

/// [`Law::backward`].
pub(crate) fn coupling_backward(
    law: &Law,
    x: &Tensor,
    net: &Tensor,
    gy: &Tensor,
    gld: &Tensor,
) -> Result<Back> {
    let (x, net, gy, gld) = (x.contiguous()?, net.contiguous()?, gy.contiguous()?, gld.contiguous()?);
    let like = |t: &Tensor| fresh(t.shape(), x.dtype(), x.device());
    let (gx, gnet) = (like(&x)?, like(&net)?);
    let ggain = match law.scale {
        LogScale::Tanh => Some(fresh(x.dim(0)?, x.dtype(), x.device())?),
        _ => None,
    };
    let args = CouplingBack {
        x: Ptr::of(&x)?,
        net: Ptr::of(&net)?,
        gain: Ptr::maybe(law.gain)?,
        gy: Ptr::of(&gy)?,
        gld: Ptr::of(&gld)?,
        gx: Ptr::of(&gx)?,
        gnet: Ptr::of(&gnet)?,
        ggain: Ptr::maybe(ggain.as_ref())?,
        part: Part::of_law(law, &x)?,
        kind: kind(law)?,
        shift_first: law.shift_first.into(),
    };
    launch(x.device(), "coupling_back", Some(x.dtype()), x.dim(0)?, &args)?;
    let ggain = ggain.map(|g| g.sum_keepdim(0)).transpose()?;
    Ok(Back { gx, gnet, ggain })
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TakeArgs {
    x: Ptr,
    out: Ptr,
    part: Part,
    total: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for TakeArgs {}

/// `channels` channels from `start` of x (B, C, ...), times the mask if there is one.
pub(crate) fn take_part(x: &Tensor, start: usize, channels: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut shape = x.dims().to_vec();
    shape[1] = channels;
    let out = fresh(shape, x.dtype(), x.device())?;
    let n = out.elem_count();
    let args = TakeArgs {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        part: Part::new(&x, start, channels, mask)?,
        total: count(n)?,
    };
    launch(x.device(), "take_part", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AddPart {
    x: Ptr,
    add: Ptr,
    out: Ptr,
    part: Part,
    total: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for AddPart {}

/// x (B, C, ...) with `add` (B, C', ...), times the mask if there is one, added to its channels from `start`.
pub(crate) fn add_part(x: &Tensor, add: &Tensor, start: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (x, add) = (x.contiguous()?, add.contiguous()?);
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = AddPart {
        x: Ptr::of(&x)?,
        add: Ptr::of(&add)?,
        out: Ptr::of(&out)?,
        part: Part::new(&x, start, add.dim(1)?, mask)?,
        total: count(n)?,
    };
    launch(x.device(), "add_part", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SqueezeArgs {
    x: Ptr,
    out: Ptr,
    channels: u32,
    h: u32,
    w: u32,
    total: u32,
    inverse: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for SqueezeArgs {}

/// (B, C, H, W) to (B, 4 C, H/2, W/2), or back; the caller has checked the sizes.
pub(crate) fn squeeze(x: &Tensor, inverse: bool) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, h, w) = x.dims4()?;
    let (c, h, w) = if inverse { (c / 4, h, w) } else { (c, h / 2, w / 2) };
    let shape = if inverse { (b, c, 2 * h, 2 * w) } else { (b, 4 * c, h, w) };
    let out = fresh(shape, x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = SqueezeArgs {
        x: Ptr::of(&x)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        h: count(h)?,
        w: count(w)?,
        total: count(n)?,
        inverse: inverse.into(),
    };
    launch(x.device(), "squeeze", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MixArgs {
    x: Ptr,
    w: Ptr,
    out: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
    transpose: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for MixArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Outer {
    x: Ptr,
    gy: Ptr,
    gw: Ptr,
    batch: u32,
    channels: u32,
    positions: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Outer {}

fn mix(x: &Tensor, w: &Tensor, transpose: bool) -> Result<Tensor> {
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let (_, c, p) = sizes(&x)?;
    if w.dims() != [c, c] {
        bail!("a matrix of {:?} met {c} channels", w.shape());
    }
    let out = fresh(x.shape(), x.dtype(), x.device())?;
    let n = x.elem_count();
    let args = MixArgs {
        x: Ptr::of(&x)?,
        w: Ptr::of(&w)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        positions: count(p)?,
        total: count(n)?,
        transpose: transpose.into(),
    };
    launch(x.device(), "channel_mix", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

/// [`super::conv::channel_mix`], never in a reduced precision.
pub(crate) fn channel_mix(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    mix(x, w, false)
}

/// The gradients of x and w.
pub(crate) fn channel_mix_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, gy) = (x.contiguous()?, gy.contiguous()?);
    let gx = mix(&gy, w, true)?;
    let (b, c, p) = sizes(&x)?;
    let gw = fresh((c, c), x.dtype(), x.device())?;
    let args = Outer {
        x: Ptr::of(&x)?,
        gy: Ptr::of(&gy)?,
        gw: Ptr::of(&gw)?,
        batch: count(b)?,
        channels: count(c)?,
        positions: count(p)?,
    };
    launch(x.device(), "channel_outer", Some(x.dtype()), c * c, &args)?;
    Ok((gx, gw))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PluArgs {
    packed: Ptr,
    sign: Ptr,
    perm: Ptr,
    w: Ptr,
    log_det: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for PluArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct PluBack {
    packed: Ptr,
    sign: Ptr,
    gw: Ptr,
    gld: Ptr,
    place: Ptr,
    out: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for PluBack {}

/// [`super::plu::plu`]; `perm` (C,) in u32, `sign` (C,) in the type of `packed`.
pub(crate) fn plu(packed: &Tensor, perm: &Tensor, sign: &Tensor) -> Result<(Tensor, Tensor)> {
    let n = packed.dim(0)?;
    channels(n, &[Some(perm), Some(sign)])?;
    let (w, log_det) =
        (fresh((n, n), packed.dtype(), packed.device())?, fresh((), packed.dtype(), packed.device())?);
    let args = PluArgs {
        packed: Ptr::of(packed)?,
        sign: Ptr::of(sign)?,
        perm: Ptr::of(perm)?,
        w: Ptr::of(&w)?,
        log_det: Ptr::of(&log_det)?,
        n: count(n)?,
    };
    launch(packed.device(), "plu", Some(packed.dtype()), blocks(n * n), &args)?;
    Ok((w, log_det))
}

/// [`super::plu::plu_backward`]; `place` is the inverse of the permutation.
pub(crate) fn plu_backward(
    packed: &Tensor,
    place: &Tensor,
    sign: &Tensor,
    gw: &Tensor,
    gld: &Tensor,
) -> Result<Tensor> {
    let n = packed.dim(0)?;
    channels(n, &[Some(place), Some(sign)])?;
    let (gw, gld) = (gw.contiguous()?, gld.contiguous()?);
    let out = fresh((n, n), packed.dtype(), packed.device())?;
    let args = PluBack {
        packed: Ptr::of(packed)?,
        sign: Ptr::of(sign)?,
        gw: Ptr::of(&gw)?,
        gld: Ptr::of(&gld)?,
        place: Ptr::of(place)?,
        out: Ptr::of(&out)?,
        n: count(n)?,
    };
    launch(packed.device(), "plu_back", Some(packed.dtype()), blocks(n * n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PluInverse {
    packed: Ptr,
    sign: Ptr,
    perm: Ptr,
    work: Ptr,
    out: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for PluInverse {}

/// W^-1, from the same tensors as [`plu`].
pub(crate) fn plu_inverse(packed: &Tensor, perm: &Tensor, sign: &Tensor) -> Result<Tensor> {
    let n = packed.dim(0)?;
    channels(n, &[Some(perm), Some(sign)])?;
    let work = fresh((n, n), DType::F64, packed.device())?;
    let out = fresh((n, n), packed.dtype(), packed.device())?;
    let args = PluInverse {
        packed: Ptr::of(packed)?,
        sign: Ptr::of(sign)?,
        perm: Ptr::of(perm)?,
        work: Ptr::of(&work)?,
        out: Ptr::of(&out)?,
        n: count(n)?,
    };
    launch(packed.device(), "plu_inverse", Some(packed.dtype()), blocks(n), &args)?;
    Ok(out)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Invert {
    w: Ptr,
    work: Ptr,
    inverse: Ptr,
    log_det: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Invert {}

/// W^-1 and log |det W|, neither finite where W is singular.
pub(crate) fn invert(w: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, m) = w.dims2()?;
    if n != m {
        bail!("expected a square matrix, got {n}x{m}");
    }
    let w = w.contiguous()?;
    count(2 * n * n)?;
    let work = fresh((n, 2 * n), DType::F64, w.device())?;
    let (inverse, log_det) = (fresh((n, n), w.dtype(), w.device())?, fresh((), w.dtype(), w.device())?);
    let args = Invert {
        w: Ptr::of(&w)?,
        work: Ptr::of(&work)?,
        inverse: Ptr::of(&inverse)?,
        log_det: Ptr::of(&log_det)?,
        n: count(n)?,
    };
    launch(w.device(), "invert", Some(w.dtype()), 1, &args)?;
    Ok((inverse, log_det))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct WeightNormArgs {
    v: Ptr,
    g: Ptr,
    w: Ptr,
    inverse: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for WeightNormArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct WeightNormBack {
    gw: Ptr,
    v: Ptr,
    g: Ptr,
    inverse: Ptr,
    gv: Ptr,
    gg: Ptr,
    n: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for WeightNormBack {}

/// w = g v / |v| for each output channel of v (O, ...), and 1/|v| in f64.
pub(crate) fn weight_norm(v: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    let o = v.dim(0)?;
    channels(o, &[Some(g)])?;
    let (w, inverse) = (fresh(v.shape(), v.dtype(), v.device())?, fresh(o, DType::F64, v.device())?);
    let args = WeightNormArgs {
        v: Ptr::of(v)?,
        g: Ptr::of(g)?,
        w: Ptr::of(&w)?,
        inverse: Ptr::of(&inverse)?,
        n: count(v.elem_count() / o.max(1))?,
    };
    launch(v.device(), "weight_norm", Some(v.dtype()), o, &args)?;
    Ok((w, inverse))
}

/// The gradients of v and g, from that of w.
pub(crate) fn weight_norm_backward(
    gw: &Tensor,
    v: &Tensor,
    g: &Tensor,
    inverse: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (gw, o) = (gw.contiguous()?, v.dim(0)?);
    let (gv, gg) = (fresh(v.shape(), v.dtype(), v.device())?, fresh(o, v.dtype(), v.device())?);
    let args = WeightNormBack {
        gw: Ptr::of(&gw)?,
        v: Ptr::of(v)?,
        g: Ptr::of(g)?,
        inverse: Ptr::of(inverse)?,
        gv: Ptr::of(&gv)?,
        gg: Ptr::of(&gg)?,
        n: count(v.elem_count() / o.max(1))?,
    };
    launch(v.device(), "weight_norm_back", Some(v.dtype()), o, &args)?;
    Ok((gv, gg))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Signed {
    x: Ptr,
    mask: Ptr,
    out: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
    signs: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Signed {}

#[repr(C)]
#[derive(Clone, Copy)]
struct SignedBack {
    gu: Ptr,
    gx: Ptr,
    channels: u32,
    positions: u32,
    total: u32,
    signs: u32,
    rows: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for SignedBack {}

/// [x, -x, mask] along the channels of x (B, C, H, W); -x if `signed`, a mask of H W numbers if there is one.
pub(crate) fn signed_input(x: &Tensor, signed: bool, mask: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (b, c, h, w) = x.dims4()?;
    channels(h * w, &[mask])?;
    let signs = 1 + usize::from(signed);
    let out = fresh((b, signs * c + usize::from(mask.is_some()), h, w), x.dtype(), x.device())?;
    let n = out.elem_count();
    let args = Signed {
        x: Ptr::of(&x)?,
        mask: Ptr::maybe(mask)?,
        out: Ptr::of(&out)?,
        channels: count(c)?,
        positions: count(h * w)?,
        total: count(n)?,
        signs: count(signs)?,
    };
    launch(x.device(), "signed_input", Some(x.dtype()), blocks(n), &args)?;
    Ok(out)
}

/// The gradient of x (B, `c`, H, W) from that of [x, -x, mask].
pub(crate) fn signed_input_backward(gu: &Tensor, c: usize, signed: bool) -> Result<Tensor> {
    let gu = gu.contiguous()?;
    let (b, rows, h, w) = gu.dims4()?;
    let gx = fresh((b, c, h, w), gu.dtype(), gu.device())?;
    let n = gx.elem_count();
    let args = SignedBack {
        gu: Ptr::of(&gu)?,
        gx: Ptr::of(&gx)?,
        channels: count(c)?,
        positions: count(h * w)?,
        total: count(n)?,
        signs: 1 + u32::from(signed),
        rows: count(rows)?,
    };
    launch(gu.device(), "signed_input_back", Some(gu.dtype()), blocks(n), &args)?;
    Ok(gx)
}
