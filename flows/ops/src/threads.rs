//! How work on one result is divided among the threads.

use crate::real::{Real, Stored};
use std::ops::Range;

/// A slice that several threads write to, each its own part.
pub(crate) struct Shared<T> {
    pub(crate) ptr: *mut T,
    pub(crate) len: usize,
}

// SAFETY: each thread writes only its own columns; see the uses.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(v: &mut [T]) -> Self {
        Self { ptr: v.as_mut_ptr(), len: v.len() }
    }

    /// `len` elements from `at`.
    ///
    /// # Safety
    /// No two threads may hold parts that overlap, and the result may not be used meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "a part reaches past its result");
        // SAFETY: inside the result; the caller answers for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), len) }
    }
}

/// `n` numbers without a value, for a result that all threads write: setting it to zero first would take one thread as long.
///
/// # Safety
/// Each must be written before it is read.
#[allow(clippy::uninit_vec)]
pub(crate) unsafe fn unwritten<T: Stored>(n: usize) -> Vec<T> {
    let mut v = Vec::with_capacity(n);
    // SAFETY: the caller's; numbers have no destructor, and any bits are one.
    unsafe { v.set_len(n) };
    v
}

/// Fixed contiguous ranges of `n` units, one a thread.
pub(crate) fn ranges(n: usize) -> Vec<Range<usize>> {
    let t = rayon::current_num_threads().clamp(1, n.max(1));
    (0..t).map(|i| n * i / t..n * (i + 1) / t).collect()
}

/// The sum of the threads' parts of `len` numbers, in order.
pub(crate) fn add_in_order<T: Real>(parts: Vec<Vec<T>>, len: usize) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![T::default(); len]);
    for p in parts {
        for (a, v) in sum.iter_mut().zip(p) {
            *a += v;
        }
    }
    sum
}
