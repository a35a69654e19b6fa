//! In which precision networks multiply, and whether a GPU adds in a fixed order.
//!
//! Parameters, the optimiser, log-dets and everything outside the networks stay f32 (f64 sums) whatever is set here: what an
//! inverse must undo is never rounded. On a GPU the gradient of a convolution's kernel is summed in f32 and rounded to bf16 once, as
//! cuDNN writes it. A network's own output is the same on both sides, so
//! rounding inside it costs likelihood, not invertibility; the likelihood is that of the rounded network, which is why a run
//! is evaluated in full precision from its file, and the gap printed.
//!
//! The precision is one setting for the whole process; it also sets candle's own switch for TF32. On the CPU bf16 rounds both
//! factors of the products of convolutions and of linear layers, forward and backward, and sums are f32; TF32 changes nothing
//! there.

use crate::gemm::bf16::Way;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The precision of products inside networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    Full,
    /// On a GPU factors rounded to TF32 (10 bits of mantissa), sums in f32.
    Tf32,
    /// Activations and weights of networks in bf16 (on a GPU those of convolutional ones), sums in f32.
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::Full => "full",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        })
    }
}

static CURRENT: AtomicU8 = AtomicU8::new(0);

/// The precision in force.
pub fn get() -> Precision {
    match CURRENT.load(Ordering::Relaxed) {
        0 => Precision::Full,
        1 => Precision::Tf32,
        _ => Precision::Bf16,
    }
}

/// Sets the precision of all that follows, in every thread.
pub fn set(precision: Precision) {
    CURRENT.store(precision as u8, Ordering::Relaxed);
    #[cfg(feature = "cuda")]
    candle_core::cuda::set_gemm_reduced_precision_f32(precision == Precision::Tf32);
}

/// Runs `f` in a precision, and returns to the one before.
pub fn within<R>(precision: Precision, f: impl FnOnce() -> R) -> R {
    struct Before(Precision);
    impl Drop for Before {
        fn drop(&mut self) {
            set(self.0);
        }
    }
    let _before = Before(get());
    set(precision);
    f()
}

static ANY_ORDER: AtomicBool = AtomicBool::new(false);

/// Whether a GPU's convolutions give the same bits each time: the default.
pub fn deterministic() -> bool {
    !ANY_ORDER.load(Ordering::Relaxed)
}

/// Runs `f` with [`deterministic`] as given, in every thread, and returns to what was before. Where a GPU's convolutions may add
/// in any order, two runs differ in their last bits.
pub fn with_deterministic<R>(yes: bool, f: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ANY_ORDER.store(self.0, Ordering::Relaxed);
        }
    }
    let _before = Before(ANY_ORDER.swap(!yes, Ordering::Relaxed));
    f()
}

/// Whether networks that compute in `dtype` round to bf16.
pub(crate) fn rounds(dtype: DType) -> bool {
    get() == Precision::Bf16 && dtype == DType::F32
}

/// The type of activations inside a network on a GPU whose input is `x`.
pub(crate) fn inside(x: &Tensor) -> DType {
    if rounds(x.dtype()) && x.device().is_cuda() { DType::BF16 } else { x.dtype() }
}

/// How this machine's processor computes products in bf16, in words.
pub fn bf16_on_cpu() -> &'static str {
    match Way::best() {
        #[cfg(target_arch = "x86_64")]
        Way::Tiles => "this processor's bf16 tiles (AMX)",
        #[cfg(target_arch = "x86_64")]
        Way::Pairs => "this processor's bf16 instructions (AVX512-BF16)",
        Way::Rounded => {
            "rounding factors to bf16 and multiplying in f32, which is no faster than full: this processor has no bf16 instructions"
        }
    }
}
