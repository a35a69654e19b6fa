//! Elements sixteen at a time, each with several parameters of its own: how the kernels of transforms read and write them.

// Lanes of several arrays share their indices.
#![allow(clippy::needless_range_loop)]

use crate::real::{Real, View, dispatch, exp_f64, tensor};
use crate::threads::{Shared, ranges, unwritten};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Elements that pass at once.
pub(crate) const L: usize = 16;

/// A number for each of them.
pub(crate) type Lanes = [f64; L];

/// The parameters of all elements: the j-th of the element (b, e) is h[(b J + j) m + e].
pub(crate) struct Elements<'a, T> {
    h: &'a [T],
    /// Elements, and those of an example.
    n: usize,
    m: usize,
    /// J, numbers of an element.
    each: usize,
}

/// Elements that pass together: `count` of them from `at` on. Lanes after the last repeat it.
pub(crate) struct Block {
    pub(crate) at: usize,
    pub(crate) count: usize,
    /// Where each has its first parameter.
    places: [usize; L],
}

/// exp(a_k) / sum_j exp(a_j) of each lane, in place.
#[inline(always)]
pub(crate) fn softmax(a: &mut [Lanes]) {
    let (mut most, mut sum) = (a[0], [0.; L]);
    for a in a.iter() {
        for l in 0..L {
            most[l] = if a[l] > most[l] { a[l] } else { most[l] };
        }
    }
    for a in a.iter_mut() {
        for l in 0..L {
            a[l] = exp_f64(a[l] - most[l]);
            sum[l] += a[l];
        }
    }
    for a in a.iter_mut() {
        for l in 0..L {
            a[l] /= sum[l];
        }
    }
}

impl Block {
    /// The block's numbers of x.
    #[inline(always)]
    pub(crate) fn take<T: Real>(&self, x: &[T]) -> Lanes {
        let x = &x[self.at..][..self.count];
        let mut values = [x[self.count - 1].f64(); L];
        for (v, x) in values.iter_mut().zip(x) {
            *v = x.f64();
        }
        values
    }

    /// Writes the block's numbers of x.
    ///
    /// # Safety
    /// No other thread may have these elements.
    #[inline(always)]
    pub(crate) unsafe fn put<T: Real>(&self, x: &Shared<T>, values: &Lanes) {
        // SAFETY: the caller's.
        let x = unsafe { x.part(self.at, self.count) };
        for (x, v) in x.iter_mut().zip(values) {
            *x = T::of(*v);
        }
    }

    /// Whether the elements, and so each of their parameters, lie side by side.
    #[inline(always)]
    fn is_row(&self) -> bool {
        self.places[L - 1] == self.places[0] + L - 1
    }
}

impl<'a, T: Real> Elements<'a, T> {
    /// The elements of `x` with `each` parameters in `h`, whose numbers were counted before.
    pub(crate) fn new(op: &str, each: usize, x: &Tensor, h: &'a View) -> Result<Self> {
        let n = x.elem_count();
        Ok(Self { h: h.get(op)?, n, m: n / x.dim(0)?.max(1), each })
    }

    /// Runs `f` on ranges of elements, in threads where there are enough.
    pub(crate) fn for_each(&self, f: impl Fn(Range<usize>) + Send + Sync) {
        if self.n < 64 * L {
            return f(0..self.n);
        }
        ranges(self.n.div_ceil(L)).into_par_iter().for_each(|r| f(r.start * L..(r.end * L).min(self.n)));
    }

    /// The block from `at` on, of elements that end at `end`.
    #[inline(always)]
    pub(crate) fn block(&self, at: usize, end: usize) -> Block {
        let (mut element, count) = (at % self.m, L.min(end - at));
        let mut place = at / self.m * self.each * self.m + element;
        let mut places = [place; L];
        for l in 1..L {
            if l < count {
                element += 1;
                place += 1;
                if element == self.m {
                    (element, place) = (0, place + (self.each - 1) * self.m);
                }
            }
            places[l] = place;
        }
        Block { at, count, places }
    }

    /// The block's j-th parameters.
    #[inline(always)]
    pub(crate) fn load(&self, block: &Block, j: usize) -> Lanes {
        let first = block.places[0] + j * self.m;
        match self.h[first..].first_chunk::<L>() {
            Some(row) if block.is_row() => {
                let mut values = [0.; L];
                for (v, x) in values.iter_mut().zip(row) {
                    *v = x.f64();
                }
                values
            }
            _ => {
                let mut values = [0.; L];
                for (v, place) in values.iter_mut().zip(block.places) {
                    *v = self.h[place + j * self.m].f64();
                }
                values
            }
        }
    }

    /// A parameter of one lane, the j-th.
    #[inline(always)]
    pub(crate) fn one(&self, block: &Block, lane: usize, j: usize) -> f64 {
        self.h[block.places[lane] + j * self.m].f64()
    }

    /// Writes numbers of the block's j-th parameters.
    ///
    /// # Safety
    /// No other thread may have these elements.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, block: &Block, j: usize, to: &Shared<T>, values: &Lanes) {
        if block.is_row() {
            // SAFETY: the caller's.
            let to = unsafe { to.part(block.places[0] + j * self.m, L) };
            for (to, v) in to.iter_mut().zip(values) {
                *to = T::of(*v);
            }
            return;
        }
        for (place, v) in block.places[..block.count].iter().zip(values) {
            // SAFETY: the caller's.
            unsafe { to.part(place + j * self.m, 1)[0] = T::of(*v) };
        }
    }
}

/// A transform's kernel, on ranges of elements.
pub(crate) trait Elementwise: Sync {
    /// Its name in errors.
    const NAME: &'static str;
    /// How many parameters an element has.
    fn each(&self) -> usize;
    /// y and log dy/dx of x.
    fn forward<T: Real>(&self, of: &Elements<T>, elements: Range<usize>, x: &[T], to: [&Shared<T>; 2]);
    /// x of y.
    fn inverse<T: Real>(&self, of: &Elements<T>, elements: Range<usize>, y: &[T], x: &Shared<T>);
    /// The gradients of x and h, from x and those of y and of log dy/dx.
    fn backward<T: Real>(
        &self,
        of: &Elements<T>,
        elements: Range<usize>,
        given: [&[T]; 3],
        to: [&Shared<T>; 2],
    );
}

/// y and log dy/dx.
pub(crate) fn forward<K: Elementwise>(kernel: &K, x: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, h) = (x.contiguous()?, h.contiguous()?);
    dispatch!(K::NAME, x.dtype(), T => {
        let (vx, vh) = (View::of(K::NAME, &x)?, View::of(K::NAME, &h)?);
        let (of, x_all) = (Elements::<T>::new(K::NAME, kernel.each(), &x, &vh)?, vx.get::<T>(K::NAME)?);
        // SAFETY: the kernel writes each element's numbers.
        let (mut y, mut log_slope) = unsafe { (unwritten::<T>(of.n), unwritten::<T>(of.n)) };
        let to = [&Shared::new(&mut y), &Shared::new(&mut log_slope)];
        of.for_each(|elements| kernel.forward(&of, elements, x_all, to));
        Ok((tensor(y, x.shape())?, tensor(log_slope, x.shape())?))
    })
}

/// x of y.
pub(crate) fn inverse<K: Elementwise>(kernel: &K, y: &Tensor, h: &Tensor) -> Result<Tensor> {
    let (y, h) = (y.contiguous()?, h.contiguous()?);
    dispatch!(K::NAME, y.dtype(), T => {
        let (vy, vh) = (View::of(K::NAME, &y)?, View::of(K::NAME, &h)?);
        let (of, y_all) = (Elements::<T>::new(K::NAME, kernel.each(), &y, &vh)?, vy.get::<T>(K::NAME)?);
        // SAFETY: the kernel writes each element.
        let mut x = unsafe { unwritten::<T>(of.n) };
        let to = &Shared::new(&mut x);
        of.for_each(|elements| kernel.inverse(&of, elements, y_all, to));
        tensor(x, y.shape())
    })
}

/// The gradients of x and h, from those of y and of log dy/dx.
pub(crate) fn backward<K: Elementwise>(
    kernel: &K,
    (x, h): (&Tensor, &Tensor),
    (gy, gs): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor)> {
    let (x, h, gy, gs) = (x.contiguous()?, h.contiguous()?, gy.contiguous()?, gs.contiguous()?);
    dispatch!(K::NAME, x.dtype(), T => {
        let (vx, vh) = (View::of(K::NAME, &x)?, View::of(K::NAME, &h)?);
        let (vy, vs) = (View::of(K::NAME, &gy)?, View::of(K::NAME, &gs)?);
        let of = Elements::<T>::new(K::NAME, kernel.each(), &x, &vh)?;
        let given = [vx.get::<T>(K::NAME)?, vy.get(K::NAME)?, vs.get(K::NAME)?];
        // SAFETY: the kernel writes each element's numbers.
        let (mut gx, mut gh) = unsafe { (unwritten::<T>(of.n), unwritten::<T>(of.h.len())) };
        let to = [&Shared::new(&mut gx), &Shared::new(&mut gh)];
        of.for_each(|elements| kernel.backward(&of, elements, given, to));
        Ok((tensor(gx, x.shape())?, tensor(gh, h.shape())?))
    })
}
