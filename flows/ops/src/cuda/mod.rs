//! Kernels on a GPU: how one is launched, how a step is recorded, and training batches made on the device.

mod batches;
mod graph;
mod info;
pub(crate) mod launch;
mod nccl;
pub(crate) mod network;
pub(crate) mod slices;
pub(crate) mod upload;

#[cfg(feature = "emulate")]
pub use crate::device::emulate;
pub use crate::device::runs_kernels;
pub use batches::{Batches, Variation};
pub use graph::Recorder;
pub use info::{device_count, gpu_name, peak_memory, release_unused_memory, reset_peak_memory};
pub use nccl::Nccl;
