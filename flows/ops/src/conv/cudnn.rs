//! Convolution on NVIDIA GPUs through cuDNN, with the two gradients that candle leaves to its naive transposed convolution.
//!
//! ```text
//! y = w * x,     g_x = w^T * g_y,     g_w = g_y * x
//! ```
//!
//! **Shapes.** x (B, C, H, W), w (O, C, k, k), y (B, O, H, W), contiguous, stride 1, same padding; f32, f64, and bf16 with
//! sums in f32.
//!
//! cuDNN is asked once a shape which algorithm is best, and how much scratch it takes; both are kept for the thread, since a
//! training step meets the same few shapes thousands of times. Products of f32 are rounded to TF32 where candle's switch for
//! its own products says so ([`candle_core::cuda::gemm_reduced_precision_f32`]), so one switch rules both.

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvForward, Cudnn, CudnnDataType, sys,
};
use candle_core::cuda::cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use candle_core::cuda::{CudaDType, CudaDevice, DeviceId, WrapErr};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// y = w * x.
pub(crate) fn conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&w.contiguous()?, Op { pass: Pass::Forward, k: w.dim(2)? })
}

/// The gradients of x and w, outside any graph.
pub(crate) fn conv2d_backward(x: &Tensor, w: &Tensor, gy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, w, gy, k) = (x.contiguous()?, w.contiguous()?, gy.contiguous()?, w.dim(2)?);
    let gx = gy.apply_op2_no_bwd(&w, &Op { pass: Pass::Input, k })?;
    Ok((gx, x.apply_op2_no_bwd(&gy, &Op { pass: Pass::Weight, k })?))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Dims {
    b: usize,
    c: usize,
    o: usize,
    h: usize,
    w: usize,
    k: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pass {
    Forward,
    Input,
    Weight,
}

/// What cuDNN advised: the algorithm, and bytes of scratch.
#[derive(Clone, Copy)]
enum Advice {
    Forward(sys::cudnnConvolutionFwdAlgo_t, usize),
    Input(sys::cudnnConvolutionBwdDataAlgo_t, usize),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t, usize),
}

/// The device, the pass, its sizes, its type, and whether products may be rounded.
type Key = (DeviceId, Pass, Dims, DType, bool);

thread_local! {
    /// Handles are neither `Send` nor `Sync`.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
    static ADVICE: RefCell<HashMap<Key, Advice>> = RefCell::default();
}

fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(h) = handles.get(&device.id()) {
            return Ok(h.clone());
        }
        let h = Cudnn::new(device.cuda_stream()).map_err(candle_core::Error::wrap)?;
        handles.insert(device.id(), h.clone());
        Ok(h)
    })
}

/// The algorithm and scratch for `key`, from the thread's notes or from cuDNN.
fn advice(
    key: Key,
    ask: impl FnOnce() -> std::result::Result<Advice, candle_core::cuda::cudarc::cudnn::CudnnError>,
) -> Result<Advice> {
    if let Some(known) = ADVICE.with_borrow(|a| a.get(&key).copied()) {
        return Ok(known);
    }
    let found = ask().map_err(candle_core::Error::wrap)?;
    ADVICE.with_borrow_mut(|a| a.insert(key, found));
    Ok(found)
}

/// Runs one pass: the two operands as the pass has them, and the result's storage.
fn run<T, Sum: CudnnDataType>(
    pass: Pass,
    d: Dims,
    (s1, l1): (&CudaStorage, &Layout),
    (s2, l2): (&CudaStorage, &Layout),
    (one, zero): (T, T),
) -> Result<CudaStorage>
where
    T: CudaDType + CudnnDataType + DeviceRepr + ValidAsZeroBits + candle_core::WithDType,
{
    let (Some((a0, a1)), Some((b0, b1))) = (l1.contiguous_offsets(), l2.contiguous_offsets()) else {
        bail!("conv2d needs contiguous tensors")
    };
    let device = s1.device().clone();
    let (a, b) = (s1.as_cuda_slice::<T>()?.slice(a0..a1), s2.as_cuda_slice::<T>()?.slice(b0..b1));
    let cudnn = handle(&device)?;
    let reduced = candle_core::cuda::gemm_reduced_precision_f32();
    let wrap = candle_core::Error::wrap;
    let nchw = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
    let pad = (d.k / 2) as i32;
    let mut conv = cudnn
        .create_conv2d::<Sum>([pad; 2], [1; 2], [1; 2], sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION)
        .map_err(wrap)?;
    let math = match reduced || T::DTYPE == DType::BF16 {
        true => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        false => sys::cudnnMathType_t::CUDNN_FMA_MATH,
    };
    conv.set_math_type(math).map_err(wrap)?;
    let tensor = |c: usize| {
        cudnn.create_4d_tensor::<T>(nchw, [d.b as i32, c as i32, d.h as i32, d.w as i32]).map_err(wrap)
    };
    let (x, y) = (tensor(d.c)?, tensor(d.o)?);
    let filter =
        cudnn.create_4d_filter::<T>(nchw, [d.o as i32, d.c as i32, d.k as i32, d.k as i32]).map_err(wrap)?;
    let key = (device.id(), pass, d, T::DTYPE, reduced);
    let stream = device.cuda_stream();
    let scratch = |bytes: usize| -> Result<CudaSlice<u8>> {
        // SAFETY: scratch is written before it is read, by cuDNN.
        unsafe { stream.alloc::<u8>(bytes.max(1)) }.w()
    };
    let len = match pass {
        Pass::Forward => d.b * d.o * d.h * d.w,
        Pass::Input => d.b * d.c * d.h * d.w,
        Pass::Weight => d.o * d.c * d.k * d.k,
    };
    // SAFETY: every element is written by the pass: beta is 0.
    let mut out = unsafe { stream.alloc::<T>(len) }.w()?;
    match pass {
        Pass::Forward => {
            let op = ConvForward { conv: &conv, x: &x, w: &filter, y: &y };
            let found = advice(key, || {
                let algo = op.pick_algorithm()?;
                Ok(Advice::Forward(algo, op.get_workspace_size(algo)?))
            })?;
            let Advice::Forward(algo, bytes) = found else { unreachable!("the pass is part of the key") };
            let mut space = scratch(bytes)?;
            // SAFETY: the descriptors are those of the slices.
            unsafe { op.launch(algo, Some(&mut space), (one, zero), &a, &b, &mut out) }.map_err(wrap)?;
        }
        Pass::Input => {
            let op = ConvBackwardData { conv: &conv, dx: &x, w: &filter, dy: &y };
            let found = advice(key, || {
                let algo = op.pick_algorithm()?;
                Ok(Advice::Input(algo, op.get_workspace_size(algo)?))
            })?;
            let Advice::Input(algo, bytes) = found else { unreachable!("the pass is part of the key") };
            let mut space = scratch(bytes)?;
            // SAFETY: the descriptors are those of the slices; a is the gradient of y, b the kernel.
            unsafe { op.launch(algo, Some(&mut space), (one, zero), &mut out, &b, &a) }.map_err(wrap)?;
        }
        Pass::Weight => {
            let op = ConvBackwardFilter { conv: &conv, x: &x, dw: &filter, dy: &y };
            let found = advice(key, || {
                let algo = op.pick_algorithm()?;
                Ok(Advice::Weight(algo, op.get_workspace_size(algo)?))
            })?;
            let Advice::Weight(algo, bytes) = found else { unreachable!("the pass is part of the key") };
            let mut space = scratch(bytes)?;
            // SAFETY: the descriptors are those of the slices; a is the input, b the gradient of y.
            unsafe { op.launch(algo, Some(&mut space), (one, zero), &a, &mut out, &b) }.map_err(wrap)?;
        }
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device))
}

/// One pass as candle's op: (x, w), (g_y, w) or (x, g_y). The kernel's side is told to the pass that makes its gradient.
struct Op {
    pass: Pass,
    k: usize,
}

impl Op {
    /// The convolution's sizes, from the shapes of the operands, and the result's shape.
    fn sizes(&self, l1: &Layout, l2: &Layout) -> Result<(Dims, Shape)> {
        let ((b, c1, h, w), (n2, c2, k, k2)) = (l1.shape().dims4()?, l2.shape().dims4()?);
        Ok(match self.pass {
            Pass::Forward if c2 != c1 || k != k2 || k % 2 == 0 => {
                bail!("conv2d: a kernel {:?} met an input {:?}", l2.shape(), l1.shape())
            }
            Pass::Forward => (Dims { b, c: c1, o: n2, h, w, k }, (b, n2, h, w).into()),
            Pass::Input => (Dims { b, c: c2, o: c1, h, w, k }, (b, c2, h, w).into()),
            Pass::Weight => {
                let k = self.k;
                (Dims { b, c: c1, o: c2, h, w, k }, (c2, c1, k, k).into())
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
            DType::F32 => run::<f32, f32>(self.pass, d, (s1, l1), (s2, l2), (1., 0.))?,
            DType::F64 => run::<f64, f64>(self.pass, d, (s1, l1), (s2, l2), (1., 0.))?,
            DType::BF16 => {
                let scale = (half::bf16::ONE, half::bf16::ZERO);
                run::<half::bf16, f32>(self.pass, d, (s1, l1), (s2, l2), scale)?
            }
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
            true => Some(gy.apply_op2_no_bwd(&w.detach(), &Op { pass: Pass::Input, k })?),
            false => None,
        };
        let gw = match w.track_op() {
            true => Some(x.detach().apply_op2_no_bwd(&gy, &Op { pass: Pass::Weight, k })?),
            false => None,
        };
        Ok((gx, gw))
    }
}
