//! One convolution pass as cuDNN describes it, and the algorithms that may run it, best first.
//!
//! cudarc's own wrapper keeps only the name of the first algorithm of cuDNN's list. A pass needs more of each entry:
//!
//! - **its math type**: without it a convolution in bf16 does not use the tensor cores;
//! - **whether it is deterministic**: the others add in any order, so two runs differ in their last bits. They are left out
//!   unless [`precision::with_deterministic`](crate::precision::with_deterministic) says otherwise;
//! - **its scratch memory**: entries above [`MOST_SCRATCH`] come last;
//! - **its successors**: an algorithm that refuses to run, or whose scratch does not fit in memory, is followed by the next, which
//!   later passes begin with: where memory runs short the same run may give other last bits.

use candle_core::cuda::cudarc::cudnn::result::{self, CudnnResult};
use candle_core::cuda::cudarc::cudnn::sys;
use candle_core::{DType, Result, bail};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

/// A convolution's sizes: images, channels in and out, height, width and the kernel's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) c: usize,
    pub(super) o: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) k: usize,
    /// Whether channels come last.
    pub(super) last: bool,
}

/// Which of the three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    Forward,
    Input,
    Weight,
}

/// Bytes of scratch memory above which an algorithm is tried after all others.
const MOST_SCRATCH: usize = 2 << 30;

/// cuDNN on one stream. It is never closed: a thread's end may come after the driver's, where closing it fails.
pub(super) struct Handle(sys::cudnnHandle_t);

impl Handle {
    /// For the stream, whose context is the thread's.
    pub(super) fn new(stream: candle_core::cuda::cudarc::driver::sys::CUstream) -> CudnnResult<Self> {
        let handle = result::create_handle()?;
        // SAFETY: the handle was just made; the stream lives as long as the process's device.
        unsafe { result::set_stream(handle, stream.cast()) }?;
        Ok(Self(handle))
    }
}

#[derive(Clone, Copy, Debug)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Input(sys::cudnnConvolutionBwdDataAlgo_t),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// An algorithm with the math type that belongs to it, and its scratch memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    algorithm: Algorithm,
    math: sys::cudnnMathType_t,
    pub(super) scratch: usize,
}

/// The descriptors of a pass, and what may run it.
pub(super) struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
    dtype: DType,
    candidates: Vec<Candidate>,
    /// Those before it failed.
    first: Cell<usize>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: they are the plan's own. After a failure of the device this fails, too, and nothing is left to do.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_filter_descriptor(self.w);
            let _ = result::destroy_convolution_descriptor(self.conv);
        }
    }
}

impl Plan {
    /// Asks cuDNN what may run `pass`; `tf32` lets it round factors of f32.
    pub(super) fn new(
        handle: &Handle,
        pass: Pass,
        d: Dims,
        dtype: DType,
        tf32: bool,
        deterministic: bool,
    ) -> Result<Self> {
        use sys::cudnnDataType_t as Type;
        use sys::cudnnMathType_t as Math;
        let (data, sums, math) = match (dtype, tf32) {
            (DType::F32, false) => (Type::CUDNN_DATA_FLOAT, Type::CUDNN_DATA_FLOAT, Math::CUDNN_FMA_MATH),
            (DType::F32, true) => (Type::CUDNN_DATA_FLOAT, Type::CUDNN_DATA_FLOAT, Math::CUDNN_DEFAULT_MATH),
            (DType::F64, _) => (Type::CUDNN_DATA_DOUBLE, Type::CUDNN_DATA_DOUBLE, Math::CUDNN_DEFAULT_MATH),
            (DType::BF16, _) => {
                (Type::CUDNN_DATA_BFLOAT16, Type::CUDNN_DATA_FLOAT, Math::CUDNN_TENSOR_OP_MATH)
            }
            (other, _) => bail!("conv2d works in f32, f64 and bf16, not {other:?}"),
        };
        let mut plan = Self::described(d, dtype, data, sums, math).map_err(candle_core::Error::wrap)?;
        // Only where factors must not be rounded is the math type not the algorithm's own.
        let only = (math == Math::CUDNN_FMA_MATH).then_some(math);
        plan.candidates =
            plan.candidates(handle, pass, only, deterministic).map_err(candle_core::Error::wrap)?;
        plan.candidates.sort_by_key(|c| c.scratch > MOST_SCRATCH);
        if plan.candidates.is_empty() {
            bail!("cuDNN has no algorithm for the {pass:?} pass of {d:?} in {dtype:?}: try a smaller batch");
        }
        Ok(plan)
    }

    fn described(
        d: Dims,
        dtype: DType,
        data: sys::cudnnDataType_t,
        sums: sys::cudnnDataType_t,
        math: sys::cudnnMathType_t,
    ) -> CudnnResult<Self> {
        let format = match d.last {
            true => sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
            false => sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
        };
        let of = |n: usize| n as c_int;
        let pad = of(d.k / 2);
        let plan = Self {
            x: result::create_tensor_descriptor()?,
            y: result::create_tensor_descriptor()?,
            w: result::create_filter_descriptor()?,
            conv: result::create_convolution_descriptor()?,
            dtype,
            candidates: Vec::new(),
            first: Cell::new(0),
        };
        let correlation = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        // SAFETY: the descriptors were just made.
        unsafe {
            result::set_tensor4d_descriptor(plan.x, format, data, [of(d.b), of(d.c), of(d.h), of(d.w)])?;
            result::set_tensor4d_descriptor(plan.y, format, data, [of(d.b), of(d.o), of(d.h), of(d.w)])?;
            result::set_filter4d_descriptor(plan.w, data, format, [of(d.o), of(d.c), of(d.k), of(d.k)])?;
            result::set_convolution2d_descriptor(plan.conv, pad, pad, 1, 1, 1, 1, correlation, sums)?;
            result::set_convolution_math_type(plan.conv, math)?;
        }
        Ok(plan)
    }

    fn candidates(
        &self,
        handle: &Handle,
        pass: Pass,
        only: Option<sys::cudnnMathType_t>,
        deterministic: bool,
    ) -> CudnnResult<Vec<Candidate>> {
        // The three lists differ in their types alone. An algorithm may be listed once for each math type.
        macro_rules! ask {
            ($query:ident($($descriptor:ident),*), $algorithm:path, $most:expr) => {{
                // SAFETY: the struct is plain data, for which zero is a value.
                let mut list = [unsafe { std::mem::zeroed() }; 2 * $most as usize];
                let mut found: c_int = 0;
                // SAFETY: descriptors and handle are alive, and the list is as long as said.
                unsafe {
                    result::$query(
                        handle.0, $(self.$descriptor),*, 2 * $most as c_int, &raw mut found, list.as_mut_ptr(),
                    )
                }?;
                list[..found as usize]
                    .iter()
                    .filter(|e| e.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS)
                    .filter(|e| !deterministic || e.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC)
                    .map(|e| Candidate {
                        algorithm: $algorithm(e.algo),
                        math: only.unwrap_or(e.mathType),
                        scratch: e.memory,
                    })
                    .collect()
            }};
        }
        Ok(match pass {
            Pass::Forward => ask!(
                get_convolution_forward_algorithm(x, w, conv, y),
                Algorithm::Forward,
                sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_COUNT
            ),
            Pass::Input => ask!(
                get_convolution_backward_data_algorithm(w, y, conv, x),
                Algorithm::Input,
                sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT
            ),
            Pass::Weight => ask!(
                get_convolution_backward_filter_algorithm(x, y, conv, w),
                Algorithm::Weight,
                sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT
            ),
        })
    }

    /// Runs the pass with the first candidate that works; `scratch` allocates its memory and gives the address.
    ///
    /// # Safety
    /// `a` and `b` are the pass's operands, `out` its result: (x, w, y), (g_y, w, g_x) or (x, g_y, g_w), of the plan's sizes.
    pub(super) unsafe fn run<S>(
        &self,
        handle: &Handle,
        (a, b, out): (u64, u64, u64),
        scratch: impl Fn(usize) -> Result<(S, u64)>,
    ) -> Result<()> {
        let (first, mut errors) = (self.first.get(), Vec::new());
        // Those that failed once are tried again only when all others fail.
        for i in (first..self.candidates.len()).chain(0..first) {
            let candidate = &self.candidates[i];
            let ran = scratch(candidate.scratch).and_then(|(_kept, space)| {
                // SAFETY: as the caller's; the scratch memory is as large as the candidate asked.
                unsafe { self.launch(handle, *candidate, a as _, b as _, out as _, space as _) }
                    .map_err(candle_core::Error::wrap)
            });
            match ran {
                Ok(()) => {
                    self.first.set(i);
                    return Ok(());
                }
                Err(e) => errors.push(format!("{:?}: {e}", candidate.algorithm)),
            }
        }
        bail!("cuDNN ran no algorithm for a convolution: {}", errors.join("; "))
    }

    unsafe fn launch(
        &self,
        handle: &Handle,
        candidate: Candidate,
        a: *const c_void,
        b: *const c_void,
        out: *mut c_void,
        space: *mut c_void,
    ) -> CudnnResult<()> {
        // Factors of the result and of what it replaces: f64 for f64, f32 for everything else.
        let (single, double) = ([1f32, 0.], [1f64, 0.]);
        let scale = |i: usize| -> *const c_void {
            if self.dtype == DType::F64 {
                (&raw const double[i]).cast()
            } else {
                (&raw const single[i]).cast()
            }
        };
        let (h, one, zero, bytes) = (handle.0, scale(0), scale(1), candidate.scratch);
        let Self { x, y, w, conv, .. } = *self;
        // SAFETY: the caller's promise.
        unsafe {
            result::set_convolution_math_type(conv, candidate.math)?;
            match candidate.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    h, one, x, a, w, b, conv, algorithm, space, bytes, zero, y, out,
                ),
                Algorithm::Input(algorithm) => result::convolution_backward_data(
                    h, one, w, b, y, a, conv, algorithm, space, bytes, zero, x, out,
                ),
                Algorithm::Weight(algorithm) => result::convolution_backward_filter(
                    h, one, x, a, y, b, conv, algorithm, space, bytes, zero, w, out,
                ),
            }
        }
    }
}
