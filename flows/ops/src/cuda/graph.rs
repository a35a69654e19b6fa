//! A whole training step as one launch: a CUDA graph, recorded once and replayed.
//!
//! A step of a deep flow is thousands of small kernels, each of which takes the processor longer to launch than the GPU to
//! run. Recorded, they are one launch. What that asks of the step (read in candle's and cudarc's source):
//!
//! - it runs a few times before ([`warm_up`]), so that libraries are loaded, algorithms chosen, and the small tables of
//!   sizes that candle uploads with each launch are kept on the device;
//! - nothing in it reads from the device; what changes from step to step (the rate, the number of the update) lies in device
//!   memory and is written before the launch;
//! - every tensor that it makes is dropped in it, and none from outside is dropped in it. Their memory belongs to the graph.
//!
//! Emulated kernels on the CPU cannot be recorded: there [`capture`] returns an error and every step runs kernel by kernel.

use super::info::trim_memory;
use crate::device::runs_kernels;
use candle_core::{Device, Result};

/// A recorded step.
struct Graph {
    #[cfg(feature = "cuda")]
    graph: candle_core::cuda::cudarc::driver::CudaGraph,
    nodes: usize,
}

impl Graph {
    /// Runs the step again; returns before it is done.
    ///
    /// # Errors
    /// Where the device fails.
    fn launch(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.graph.launch().map_err(candle_core::Error::wrap);
        #[cfg(not(feature = "cuda"))]
        unreachable!("only a GPU records")
    }

    /// Kernels, copies and allocations of a step.
    fn nodes(&self) -> usize {
        self.nodes
    }
}

/// Runs `step` as it is to be recorded.
///
/// # Errors
/// Those of `step`.
fn warm_up<R>(device: &Device, step: impl FnOnce() -> Result<R>) -> Result<R> {
    #[cfg(feature = "cuda")]
    let _kept = match device {
        Device::Cuda(device) => Some(device.enable_cuda_graph_htod_cache()),
        _ => None,
    };
    #[cfg(not(feature = "cuda"))]
    let _ = device;
    step()
}

/// Records `step`, without running it.
///
/// # Errors
/// Where the step does what cannot be recorded, or its own error.
fn capture(device: &Device, step: impl FnOnce() -> Result<()>) -> Result<Graph> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            use candle_core::cuda::cudarc::driver::sys;
            let wrap = candle_core::Error::wrap;
            let stream = cuda.cuda_stream();
            stream
                .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
                .map_err(wrap)?;
            let result = warm_up(device, step);
            // The recording has to end, whatever happened: what was freed in one that is refused has left an error behind,
            // which the next call would return instead of doing anything.
            let left = stream.context().check_err();
            let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = stream.end_capture(flags).map_err(wrap);
            result?;
            left.map_err(wrap)?;
            let Some(graph) = graph? else { candle_core::bail!("the recording of a step is empty") };
            let mut nodes = 0;
            // SAFETY: the graph is alive, and without an array only their number is written.
            unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) }
                .result()
                .map_err(wrap)?;
            graph.upload().map_err(wrap)?;
            Ok(Graph { graph, nodes })
        }
        _ => {
            let _ = step;
            candle_core::bail!("only a step on a GPU can be recorded")
        }
    }
}

/// Runs of a step before it is recorded.
const WARM_UP: u32 = 3;

/// Runs the same step again and again: a few times kernel by kernel, then recorded as a graph and replayed.
///
/// Where a recording is refused, and on a CPU, every run is made kernel by kernel.
pub struct Recorder {
    next: Next,
    refused: Option<String>,
}

enum Next {
    /// Kernel by kernel, so many times until the step is recorded.
    WarmUp(u32),
    Replay(Graph),
    Each,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { next: Next::WarmUp(WARM_UP), refused: None }
    }
}

impl Recorder {
    /// Has the step recorded anew, because it has changed.
    pub fn record_again(&mut self) {
        if let Next::Replay(_) = self.next {
            self.next = Next::WarmUp(WARM_UP);
        }
    }

    /// Nodes of the recorded graph (kernels, copies, allocations), once there is one.
    pub fn nodes(&self) -> Option<usize> {
        match &self.next {
            Next::Replay(graph) => Some(graph.nodes()),
            _ => None,
        }
    }

    /// Why a recording was refused; returned once.
    pub fn take_refusal(&mut self) -> Option<String> {
        self.refused.take()
    }

    /// Runs the step once; returns before a GPU is done with it.
    ///
    /// # Errors
    /// The step's own error, or that of a launch.
    pub fn run(&mut self, device: &Device, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        if !runs_kernels(device) {
            return step();
        }
        if let Next::WarmUp(0) = self.next {
            self.next = match capture(device, &mut step) {
                Ok(graph) => {
                    // The activations of the runs before lie in the pool of tensors; the recording has its own.
                    trim_memory(device)?;
                    Next::Replay(graph)
                }
                Err(e) => {
                    self.refused = Some(e.to_string().lines().next().unwrap_or_default().to_string());
                    Next::Each
                }
            };
        }
        match &mut self.next {
            Next::Replay(graph) => graph.launch(),
            Next::WarmUp(left) => {
                *left -= 1;
                warm_up(device, step)
            }
            Next::Each => step(),
        }
    }
}
