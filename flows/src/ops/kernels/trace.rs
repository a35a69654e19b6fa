//! What a GPU does in a stretch of work, for where a step cannot be recorded: how much is launched, and how long it is idle.
//!
//! CUPTI, which comes with CUDA and with PyTorch, notes begin and end of each kernel, copy and fill on the device's own
//! clock, whoever launched it: this library, candle, cuBLAS or cuDNN. It is opened when it is asked for and not before, so that
//! nobody needs it to train.

use candle_core::{Device, Result};

/// What [`trace`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    /// Kernels, copies and fills.
    pub launches: usize,
    /// Seconds in which the GPU was at one of them or more.
    pub busy: f64,
    /// Seconds from before the first launch until the GPU had done everything. Each launch takes longer while it is traced.
    pub seconds: f64,
}

impl Traced {
    /// The share of `seconds` in which the GPU has nothing to do.
    pub fn idle(&self) -> f64 {
        (1. - self.busy / self.seconds).clamp(0., 1.)
    }
}

/// Runs `work`, and tells what the GPU did for it. Everything else on the GPU has to rest meanwhile.
///
/// # Errors
/// The first is that of `work`, which runs in any case; the second says why nothing could be traced.
pub fn trace<R>(device: &Device, work: impl FnOnce() -> Result<R>) -> (Result<R>, Result<Traced>) {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let tracing = device.synchronize().and_then(|()| super::cupti::Tracing::begin());
        let clock = std::time::Instant::now();
        let result = work();
        let traced = tracing.and_then(|tracing| {
            device.synchronize()?;
            let seconds = clock.elapsed().as_secs_f64();
            let done = tracing.end()?;
            Ok(Traced { launches: done.len(), busy: union(done) as f64 * 1e-9, seconds })
        });
        return (result, traced);
    }
    (work(), Err(candle_core::Error::msg(format!("{:?} is not a GPU", device.location()))))
}

/// Nanoseconds in which at least one was under way.
#[cfg(any(feature = "cuda", test))]
fn union(mut stretches: Vec<(u64, u64)>) -> u64 {
    stretches.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (start, end) in stretches {
        sum += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_that_overlap_count_once() {
        assert_eq!(union(vec![]), 0);
        assert_eq!(union(vec![(10, 20), (0, 5), (15, 30), (16, 18), (30, 31)]), 5 + 21);
        let traced = Traced { launches: 2, busy: 0.25, seconds: 1. };
        assert_eq!(traced.idle(), 0.75);
    }
}
