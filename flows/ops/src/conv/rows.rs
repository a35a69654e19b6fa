//! Rows of pixels, as the 3x3 convolutions of many channels read and write them.

use crate::inner::Inner;

/// An image's sides and the tiles that cover it.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) h: usize,
    pub(crate) w: usize,
}

impl Tiles {
    /// Rows of tiles of an image.
    pub(crate) fn rows(self) -> usize {
        self.h.div_ceil(2)
    }

    /// Tiles of a row.
    pub(crate) fn cols(self) -> usize {
        self.w.div_ceil(2)
    }
}

/// Where rows of pixels come from.
pub(crate) trait Source<T>: Sync {
    /// Row i of channel c of an image. To be `#[inline(always)]`.
    fn row(&self, c: usize, image: usize, i: usize, out: &mut [T]);
}

/// Where rows of pixels go.
pub(crate) trait Sink<T> {
    /// Row i of channel o of an image. To be `#[inline(always)]`.
    fn row(&mut self, o: usize, image: usize, i: usize, row: &[T]);
}

/// (C, B, H, W) in memory.
#[derive(Clone, Copy)]
pub(crate) struct Plane<'a, I> {
    pub(crate) x: &'a [I],
    pub(crate) t: Tiles,
    pub(crate) images: usize,
}

impl<'a, I> Plane<'a, I> {
    /// Row i of channel c of an image.
    #[inline(always)]
    pub(crate) fn slice(&self, c: usize, image: usize, i: usize) -> &'a [I] {
        &self.x[((c * self.images + image) * self.t.h + i) * self.t.w..][..self.t.w]
    }
}

impl<I: Inner> Source<I::Real> for Plane<'_, I> {
    #[inline(always)]
    fn row(&self, c: usize, image: usize, i: usize, out: &mut [I::Real]) {
        for (o, &v) in out.iter_mut().zip(self.slice(c, image, i)) {
            *o = v.to_real();
        }
    }
}
