//! The numerical kernels of `flows`: each op on CPUs and GPUs, with its own backward.
//!
//! This is the only crate with `unsafe`, and the only one that asks which device a tensor is on. An op takes tensors and
//! chooses its implementation ([`device`]): our own on slices of the host's memory, our kernels on a GPU, or candle's
//! operations, which also serve candle's graph.
//!
//! **Layers.** A file uses only what stands above it in this list:
//!
//! 1. `simd` (vectors), [`device`] (which implementation, opening a device), [`precision`], `autodiff` (gradients of one
//!    function).
//! 2. `real` (f32 and f64, slices of tensors), then `gemm`, `threads`, `inner` (bf16 inside networks), `sums`, [`elementwise`],
//!    `rows`, `lanes` (sixteen elements at a time).
//! 3. [`cuda`]: launching a kernel, recording a step, batches made on the device. The kernels themselves are in the folder
//!    `kernels` beside this one, in CUDA's C.
//! 4. [`linalg`].
//! 5. The ops, one folder each: `spec.rs` holds its types, `cpu.rs`, `cuda.rs` and `reference.rs` (candle's operations) its
//!    implementations, and `mod.rs` chooses among them. An implementation never uses its `mod.rs`.
//! 6. [`conv_net`] and [`res_net`], whole networks made of ops.
//!
//! Builds without the features `cuda` and `emulate` have the same functions: no device can be opened on which a kernel would
//! run, and a launch would be an error.

pub mod act_norm;
pub mod autodiff;
pub mod batch_norm;
pub mod channel_mix;
pub mod conv;
pub mod conv_net;
pub mod coupling;
pub mod cuda;
pub mod device;
pub mod elementwise;
mod gemm;
mod inner;
mod lanes;
pub mod linalg;
pub mod linear;
pub mod log_det;
pub mod mixture;
pub mod plu;
pub mod precision;
mod real;
pub mod res_net;
mod rows;
mod simd;
pub mod spline;
pub mod squeeze;
mod sums;
#[cfg(test)]
mod tests;
mod threads;
pub mod update;
