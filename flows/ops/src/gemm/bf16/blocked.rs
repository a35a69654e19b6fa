//! Products part by part of the sum, for any kernel.

use super::factor::Factor;
use super::pack::parts;
use crate::gemm::{Mat, MatMut};
use std::cell::RefCell;
use std::ops::Range;

/// A kernel that multiplies packed factors.
pub(super) trait Kernel {
    /// Of the sum, how much is packed at once at most.
    const DEPTH: usize;
    /// Parts of the sum but the last are multiples of this.
    const UNIT: usize;

    /// How many words the packed numbers of `k` columns of a left factor of m rows are.
    fn words(m: usize, k: usize) -> usize;

    /// Packs the columns `part` of a (m, ..) to as many words.
    ///
    /// # Safety
    /// The processor must have the kernel's instructions, `a` must cover the part, and `out` hold the words.
    unsafe fn left<A: Factor>(a: Mat<A>, m: usize, part: Range<usize>, out: *mut u32);

    /// dst = a b (+ dst if `add`) for one part of the sum.
    ///
    /// # Safety
    /// As [`Kernel::left`], which packed `a`; `b` and `dst` must have the numbers of the part.
    unsafe fn sweep<B: Factor>(
        size: (usize, usize),
        part: Range<usize>,
        a: *const u32,
        b: Mat<B>,
        dst: &MatMut<f32>,
        add: bool,
    );
}

/// A left factor (m, k), packed.
///
/// # Safety
/// The processor must have the kernel's instructions, and `a` must cover m x k.
pub(super) unsafe fn pack<K: Kernel, A: Factor>(a: Mat<A>, m: usize, k: usize) -> Vec<u32> {
    let mut words = Vec::new();
    for part in parts(k, K::DEPTH, K::UNIT) {
        // SAFETY: the caller's.
        unsafe { append::<K, A>(a, m, part, &mut words) };
    }
    words
}

unsafe fn append<K: Kernel, A: Factor>(a: Mat<A>, m: usize, part: Range<usize>, words: &mut Vec<u32>) {
    let len = K::words(m, part.len());
    words.reserve(len);
    // SAFETY: the words are reserved, and `left` writes each of them.
    unsafe {
        K::left(a, m, part, words.as_mut_ptr().add(words.len()));
        words.set_len(words.len() + len);
    }
}

/// See [`super::product`].
///
/// # Safety
/// The processor must have the kernel's instructions, and the sizes must be those of the factors and the result.
pub(super) unsafe fn product<K: Kernel, B: Factor>(
    (m, n, k): (usize, usize, usize),
    a: &[u32],
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    let len = parts(k, K::DEPTH, K::UNIT).map(|part| K::words(m, part.len())).sum();
    assert!(a.len() >= len, "a product reads past its packed factor");
    let mut at = 0;
    for part in parts(k, K::DEPTH, K::UNIT) {
        // SAFETY: the caller's; `a` holds this part's words from `at` on.
        unsafe { K::sweep((m, n), part.clone(), a.as_ptr().add(at), b, &dst, add || part.start > 0) };
        at += K::words(m, part.len());
    }
    if k == 0 && !add {
        for i in 0..m {
            // SAFETY: the caller's.
            unsafe { std::slice::from_raw_parts_mut(dst.data.add(i * dst.row), n) }.fill(0.);
        }
    }
}

/// See [`super::product_once`]: a part of the left factor is packed at a time.
///
/// # Safety
/// As [`product`].
pub(super) unsafe fn product_once<K: Kernel, A: Factor, B: Factor>(
    (m, n, k): (usize, usize, usize),
    a: Mat<A>,
    b: Mat<B>,
    dst: MatMut<f32>,
    add: bool,
) {
    thread_local!(static WORDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) });
    if k == 0 {
        // SAFETY: the caller's.
        return unsafe { product::<K, B>((m, n, k), &[], b, dst, add) };
    }
    WORDS.with_borrow_mut(|words| {
        for part in parts(k, K::DEPTH, K::UNIT) {
            words.clear();
            // SAFETY: the caller's.
            unsafe {
                append::<K, A>(a, m, part.clone(), words);
                K::sweep((m, n), part.clone(), words.as_ptr(), b, &dst, add || part.start > 0);
            }
        }
    });
}
