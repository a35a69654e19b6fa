//! Convolution on NVIDIA GPUs through cuDNN, with the two gradients that candle leaves to its naive transposed convolution.
//!
//! ```text
//! y = w * x,     g_x = w^T * g_y,     g_w = g_y * x
//! ```
//!
//! **Shapes.** x (B, C, H, W), w (O, C, k, k), y (B, O, H, W), contiguous, stride 1, same padding; or channels last, x
//! (B, H, W, C), w (O, k, k, C), y (B, H, W, O), which is what the matrix units read: cuDNN turns the others around before and
//! after. f32, f64 (not channels last), and bf16 with sums in f32.
//!
//! cuDNN is asked once a shape what may run it; the answer (the module `plan`) is kept for the thread, since a
//! training step meets the same few shapes thousands of times. Products of f32 are rounded to TF32 where candle's switch for
//! its own products says so ([`candle_core::cuda::gemm_reduced_precision_f32`]), so one switch rules both.

mod plan;

use crate::precision;
use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::cudnn::CudnnDataType;
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits};
use candle_core::cuda::{CudaDType, CudaDevice, DeviceId, WrapErr};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use plan::{Dims, Handle, Pass, Plan};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// y = w * x.
pub(crate) fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&w.contiguous()?, Op { pass: Pass::Forward, k: w.dim(2)?, last: false })
}

/// y = w * x, channels last and outside any graph.
pub(crate) fn conv_last(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let op = Op { pass: Pass::Forward, k: w.dim(1)?, last: true };
    x.contiguous()?.apply_op2_no_bwd(&w.contiguous()?, &op)
}

/// The gradients of x and w, channels last and outside any graph.
pub(crate) fn conv_last_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    backward(x, w, gy, w.dim(1)?, true)
}

/// The gradients of x and w, outside any graph.
pub(crate) fn conv2d_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    backward(x, w, gy, w.dim(2)?, false)
}

fn backward(x: &Tensor, w: &Tensor, gy: &Tensor, k: usize, last: bool) -> Result<(Tensor, Tensor)> {
    let (x, w, gy) = (x.contiguous()?, w.contiguous()?, gy.contiguous()?);
    let gx = gy.apply_op2_no_bwd(&w, &Op { pass: Pass::Input, k, last })?;
    Ok((gx, x.apply_op2_no_bwd(&gy, &Op { pass: Pass::Weight, k, last })?))
}

/// The device, the pass, its sizes, its type, whether f32 is rounded to TF32, and whether only deterministic algorithms run.
type Key = (DeviceId, Pass, Dims, DType, bool, bool);

thread_local! {
    /// cuDNN's handles belong to one thread.
    static HANDLES: RefCell<HashMap<DeviceId, Rc<Handle>>> = RefCell::default();
    static PLANS: RefCell<HashMap<Key, Rc<Plan>>> = RefCell::default();
}

fn handle(device: &CudaDevice) -> Result<Rc<Handle>> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(known) = handles.get(&device.id()) {
            return Ok(known.clone());
        }
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let made = Rc::new(Handle::new(stream.cu_stream()).map_err(candle_core::Error::wrap)?);
        handles.insert(device.id(), made.clone());
        Ok(made)
    })
}

/// The plan for a pass, from the thread's notes or from cuDNN.
fn plan(handle: &Handle, device: &CudaDevice, pass: Pass, d: Dims, dtype: DType) -> Result<Rc<Plan>> {
    let tf32 = candle_core::cuda::gemm_reduced_precision_f32();
    let deterministic = precision::deterministic();
    let key = (device.id(), pass, d, dtype, tf32, deterministic);
    if let Some(known) = PLANS.with_borrow(|plans| plans.get(&key).cloned()) {
        return Ok(known);
    }
    let made = Rc::new(Plan::new(handle, pass, d, dtype, tf32, deterministic)?);
    PLANS.with_borrow_mut(|plans| plans.insert(key, made.clone()));
    Ok(made)
}

/// Runs one pass: the two operands as the pass has them, and the result's storage.
fn run<T>(
    pass: Pass,
    d: Dims,
    (s1, l1): (&CudaStorage, &Layout),
    (s2, l2): (&CudaStorage, &Layout),
) -> Result<CudaStorage>
where
    T: CudaDType + CudnnDataType + DeviceRepr + ValidAsZeroBits + candle_core::WithDType,
{
    let (Some((a0, a1)), Some((b0, b1))) = (l1.contiguous_offsets(), l2.contiguous_offsets()) else {
        bail!("conv2d needs contiguous tensors")
    };
    if s1.device().id() != s2.device().id() {
        bail!(
            "conv2d met tensors of two openings of one GPU, whose work is not ordered: open the device once"
        )
    }
    let device = s1.device().clone();
    let stream = device.cuda_stream();
    let (a, b) = (s1.as_cuda_slice::<T>()?.slice(a0..a1), s2.as_cuda_slice::<T>()?.slice(b0..b1));
    let len = match pass {
        Pass::Forward => d.b * d.o * d.h * d.w,
        Pass::Input => d.b * d.c * d.h * d.w,
        Pass::Weight => d.o * d.c * d.k * d.k,
    };
    // SAFETY: every element is written by the pass.
    let mut out: CudaSlice<T> = unsafe { stream.alloc(len) }.w()?;
    let scratch = |bytes: usize| -> Result<(Option<CudaSlice<u8>>, u64)> {
        if bytes == 0 {
            return Ok((None, 0));
        }
        // SAFETY: cuDNN writes scratch memory before it reads it.
        let space: CudaSlice<u8> = unsafe { stream.alloc(bytes) }.w()?;
        let at = space.device_ptr(&stream).0;
        Ok((Some(space), at))
    };
    let handle = handle(&device)?;
    let plan = plan(&handle, &device, pass, d, T::DTYPE)?;
    let at = (a.device_ptr(&stream).0, b.device_ptr(&stream).0, out.device_ptr_mut(&stream).0);
    // SAFETY: the slices have the plan's sizes and outlive the launch, and all memory is freed in the stream's order.
    unsafe { plan.run(&handle, at, scratch) }?;
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}

/// One pass as candle's op: (x, w), (g_y, w) or (x, g_y). The kernel's side is told to the pass that makes its gradient.
struct Op {
    pass: Pass,
    k: usize,
    last: bool,
}

impl Op {
    /// The convolution's sizes, from the shapes of the operands, and the result's shape.
    fn sizes(&self, l1: &Layout, l2: &Layout) -> Result<(Dims, Shape)> {
        // Batch or outputs, channels, height, width.
        let parts = |l: &Layout| -> Result<[usize; 4]> {
            let (a, b, c, d) = l.shape().dims4()?;
            Ok(if self.last { [a, d, b, c] } else { [a, b, c, d] })
        };
        let ([b, c1, h, w], [n2, c2, k, k2]) = (parts(l1)?, parts(l2)?);
        let last = self.last;
        let shape = |n: usize, c: usize, h: usize, w: usize| -> Shape {
            if last { (n, h, w, c).into() } else { (n, c, h, w).into() }
        };
        Ok(match self.pass {
            Pass::Forward if c2 != c1 || k != k2 || k % 2 == 0 => {
                bail!("conv2d: a kernel {:?} met an input {:?}", l2.shape(), l1.shape())
            }
            Pass::Input if c1 != n2 || k != k2 || k != self.k => {
                bail!("conv2d: a kernel {:?} met the gradient {:?} of an output", l2.shape(), l1.shape())
            }
            Pass::Weight if b != n2 || (h, w) != (k, k2) => {
                bail!("conv2d: an input {:?} met the gradient {:?} of an output", l1.shape(), l2.shape())
            }
            Pass::Forward => (Dims { b, c: c1, o: n2, h, w, k, last }, shape(b, n2, h, w)),
            Pass::Input => (Dims { b, c: c2, o: c1, h, w, k, last }, shape(b, c2, h, w)),
            Pass::Weight => {
                let k = self.k;
                (Dims { b, c: c1, o: c2, h, w, k, last }, shape(c2, c1, k, k))
            }
        })
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Forward => "conv2d_cudnn",
            Pass::Input => "conv2d_cudnn_back_input",
            Pass::Weight => "conv2d_cudnn_back_weight",
        }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cuDNN's convolution met a tensor of the CPU")
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (d, shape) = self.sizes(l1, l2)?;
        let out = match s1.dtype() {
            DType::F32 => run::<f32>(self.pass, d, (s1, l1), (s2, l2))?,
            DType::F64 => run::<f64>(self.pass, d, (s1, l1), (s2, l2))?,
            DType::BF16 => run::<half::bf16>(self.pass, d, (s1, l1), (s2, l2))?,
            other => bail!("conv2d works in f32, f64 and bf16, not {other:?}"),
        };
        Ok((out, shape))
    }

    /// Of the forward pass: the others run outside any graph.
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gy, k) = (gy.contiguous()?, w.dim(2)?);
        let gx = match x.track_op() {
            true => Some(gy.apply_op2_no_bwd(&w.detach(), &Op { pass: Pass::Input, k, last: false })?),
            false => None,
        };
        let gw = match w.track_op() {
            true => Some(x.detach().apply_op2_no_bwd(&gy, &Op { pass: Pass::Weight, k, last: false })?),
            false => None,
        };
        Ok((gx, gw))
    }
}
