//! Every test of the library that computes, each on the CPU and on a GPU: one binary, so that it can be taken to a machine
//! that has a GPU and no compiler.
//!
//! With the feature `emulate` each has a third one, `emulated`: the way of a GPU on the CPU.
//!
//! A test's second half, `cuda`, is skipped with a message where there is no GPU; with the variable `FLOWS_NEED_CUDA` set it
//! fails instead (`just test-cuda`). Both halves hold the same numbers to the same bounds, most of them in f64.

use candle_core::Device;
use std::cell::RefCell;
use std::sync::{LazyLock, Mutex};

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::Cpu) };
}

/// The device that the test at hand runs on.
fn device() -> Device {
    DEVICE.with_borrow(Clone::clone)
}

/// Runs a test on `device`.
fn on(device: Device, test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    DEVICE.set(device);
    test()
}

/// Runs a test on the first GPU, or skips it with a message.
///
/// The GPU is opened once, so that its kernels are loaded once, and serves one test at a time: it has one stream, and what
/// one test records must not hold another's work.
fn on_gpu(test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    static GPU: LazyLock<Mutex<Result<Device, String>>> =
        LazyLock::new(|| Mutex::new(flows::ops::device::open_device("cuda:0").map_err(|e| e.to_string())));
    let gpu = GPU.lock().unwrap_or_else(|failed| failed.into_inner());
    match &*gpu {
        Ok(device) => on(device.clone(), test),
        Err(e) => {
            assert!(std::env::var_os("FLOWS_NEED_CUDA").is_none(), "no GPU can be opened: {e}");
            println!("skipped: no GPU can be opened ({e})");
            Ok(())
        }
    }
}

/// A test with its twin: `name::cpu` and `name::cuda`.
macro_rules! twins {
    ($($(#[$doc:meta])* fn $name:ident() $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;

            fn run() -> anyhow::Result<()> $body

            #[test]
            fn cpu() -> anyhow::Result<()> {
                crate::on(candle_core::Device::Cpu, run)
            }

            /// The way of a GPU, on the CPU through the emulated kernels.
            #[cfg(feature = "emulate")]
            #[test]
            fn emulated() -> anyhow::Result<()> {
                flows::ops::cuda::emulate(|| crate::on(candle_core::Device::Cpu, run))
            }

            #[test]
            fn cuda() -> anyhow::Result<()> {
                crate::on_gpu(run)
            }
        }
    )*};
}

/// A test of what only a GPU does: `name::cuda`, and `name::emulated` with that feature.
macro_rules! gpu_tests {
    ($($(#[$doc:meta])* fn $name:ident() $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;

            fn run() -> anyhow::Result<()> $body

            #[cfg(feature = "emulate")]
            #[test]
            fn emulated() -> anyhow::Result<()> {
                flows::ops::cuda::emulate(|| crate::on(candle_core::Device::Cpu, run))
            }

            #[test]
            fn cuda() -> anyhow::Result<()> {
                crate::on_gpu(run)
            }
        }
    )*};
}
pub(crate) use gpu_tests;

mod codec;
mod composed;
mod errors;
mod flops;
mod golden;
mod gpu;
mod latents;
mod laws;
mod learning;
mod lifecycle;
mod memory;
mod peers;
mod priors;
mod small_models;
mod transforms;
mod variational;
