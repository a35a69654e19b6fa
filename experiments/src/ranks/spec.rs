//! The trait of ranks, one process alone, and a rank's share of a batch.

use candle_core::{Device, Result, Tensor};

/// Processes that work together. All of them make the same calls in the same order; each call waits for the others.
///
/// A rank that fails says why and calls [`Ranks::abort`], which ends all of them: a call that waits for it never hangs.
pub trait Ranks: Send + Sync {
    /// The number of this one, from 0. Rank 0 writes files, logs and prints.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// The number of this one among those on the same machine, and how many these are.
    fn local(&self) -> (usize, usize);

    /// Prepares sums of tensors on this device.
    ///
    /// # Errors
    /// Where this build cannot add tensors of such a device.
    fn open(&self, device: &Device) -> Result<()>;

    /// The sum over all ranks of a vector of f32 or f64, of the same length on each: the same bits on all of them, and for the
    /// same number of ranks in every run.
    ///
    /// # Errors
    /// For another dtype, a tensor of more than one dimension, and where the device fails.
    fn all_reduce(&self, values: &Tensor) -> Result<Tensor>;

    /// Replaces `bytes` on all ranks by those of rank `from`.
    fn broadcast(&self, from: usize, bytes: &mut Vec<u8>);

    /// Waits until all ranks are here.
    fn barrier(&self);

    /// Ends all ranks at once with this exit code.
    fn abort(&self, code: i32) -> !;

    /// [`Ranks::all_reduce`] of a few numbers.
    ///
    /// # Errors
    /// As there.
    fn sum(&self, numbers: Vec<f64>) -> Result<Vec<f64>> {
        if self.size() == 1 {
            return Ok(numbers);
        }
        self.all_reduce(&Tensor::new(numbers, &Device::Cpu)?)?.to_vec1()
    }
}

/// One process alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Ranks for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local(&self) -> (usize, usize) {
        (0, 1)
    }

    fn open(&self, _: &Device) -> Result<()> {
        Ok(())
    }

    fn all_reduce(&self, values: &Tensor) -> Result<Tensor> {
        Ok(values.clone())
    }

    fn broadcast(&self, _: usize, _: &mut Vec<u8>) {}

    fn barrier(&self) {}

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

/// The part of something that is shared out, a batch or a number of samples, that is a rank's own: `len` places from `first` on,
/// of `of`.
///
/// ```text
/// first = floor(rank of / size),     end = floor((rank + 1) of / size)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The first place.
    pub first: usize,
    /// How many places.
    pub len: usize,
    /// Of how many.
    pub of: usize,
}

impl Share {
    /// The share of this rank; shares differ by one place at most.
    #[must_use]
    pub fn new(of: usize, ranks: &dyn Ranks) -> Self {
        let start = |rank: usize| (rank as u128 * of as u128 / ranks.size() as u128) as usize;
        let first = start(ranks.rank());
        Self { first, len: start(ranks.rank() + 1) - first, of }
    }

    /// All of it.
    #[must_use]
    pub fn all(of: usize) -> Self {
        Self { first: 0, len: of, of }
    }

    /// What a mean over the share counts in the mean over all: 1 for all of it.
    #[must_use]
    pub fn weight(self) -> f64 {
        self.len as f64 / self.of as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads;

    #[test]
    fn shares_are_a_partition() {
        for (of, size) in [(7, 3), (64, 5), (2, 2), (1, 3)] {
            let shares = threads::run(size, |ranks| Share::new(of, ranks));
            let places: Vec<usize> = shares.iter().flat_map(|s| s.first..s.first + s.len).collect();
            assert_eq!(places, (0..of).collect::<Vec<_>>());
            assert!((shares.iter().map(|s| s.weight()).sum::<f64>() - 1.).abs() < 1e-15);
        }
        assert_eq!(Share::new(9, &Single), Share::all(9));
        assert_eq!(Share::all(9).weight(), 1.);
    }
}
