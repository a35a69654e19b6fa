//! Loops compiled for the vectors that the machine has.

/// A piece of work whose `run` is inlined (`#[inline(always)]`) into a function compiled for the machine's vectors. A
/// closure would not do: nothing makes the compiler inline one, and left alone it is compiled for any x86-64.
pub(crate) trait Job {
    /// Does it.
    fn run(self);
}

/// Runs `job` compiled for AVX-512 or AVX2 where the processor has them: plain loops become the compiler's own vectors,
/// with no change to what is computed (nothing is fused or reordered). The crate itself is built for any x86-64, whose
/// vectors are a quarter as wide.
pub(crate) fn wide<J: Job>(job: J) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi1,bmi2")]
        fn avx512<J: Job>(job: J) {
            job.run();
        }
        #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
        fn avx2<J: Job>(job: J) {
            job.run();
        }
        let v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        let v4 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        // SAFETY: the processor has the features, as just asked.
        if v3 && v4 {
            return unsafe { avx512(job) };
        }
        if v3 {
            return unsafe { avx2(job) };
        }
    }
    job.run();
}
