//! What is multiplied: f32, to be rounded, or bf16.

use half::bf16;

/// What a factor's numbers are before they are packed.
pub(crate) trait Factor: Copy + Send + Sync + 'static {
    /// Rounded to bf16, as f32.
    fn rounded(self) -> f32;
    /// Sixteen bf16 from `x`, zero where `mask` is.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16, and the numbers of the mask must be readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(x: *const Self, mask: u16) -> std::arch::x86_64::__m256i;
}

impl Factor for f32 {
    fn rounded(self) -> f32 {
        bf16::from_f32(self).to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(x: *const Self, mask: u16) -> std::arch::x86_64::__m256i {
        use std::arch::x86_64::{_mm512_cvtneps_pbh, _mm512_maskz_loadu_ps};
        // SAFETY: the caller's; both types are 32 bytes of bits.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x))) }
    }
}

impl Factor for bf16 {
    fn rounded(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(x: *const Self, mask: u16) -> std::arch::x86_64::__m256i {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm256_maskz_loadu_epi16(mask, x.cast()) }
    }
}
