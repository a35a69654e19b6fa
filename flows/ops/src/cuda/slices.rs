//! How the sums over a channel are shared out over blocks, and added.
//!
//! A GPU has more multiprocessors than most layers have channels, so several blocks, each over a slice of what is added, make
//! partial sums in f64, and a second kernel adds these in order. The same sizes give the same bits.

use super::launch::{Args, Ptr, THREADS, count, fresh, launch, layout};
use candle_core::{DType, Device, Result, Tensor};

/// Blocks that keep a large GPU busy: some eight for each multiprocessor.
const BLOCKS: usize = 1056;

#[repr(C)]
#[derive(Clone, Copy)]
struct SliceSums {
    partial: Ptr,
    out: Ptr,
    slices: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for SliceSums {}
layout!(SliceSums, 24, slices, 16);

/// Room for the partial sums.
pub(crate) struct Slices {
    partial: Tensor,
    pub(crate) slices: usize,
}

impl Slices {
    fn new(sums: usize, slices: usize, device: &Device) -> Result<Self> {
        Ok(Self { partial: fresh((sums, slices), DType::F64, device)?, slices })
    }

    /// For `sums` sums, of which `blocks` are made by blocks of their own, over `n` numbers each.
    pub(crate) fn of_numbers(sums: usize, blocks: usize, n: usize, device: &Device) -> Result<Self> {
        let slices = BLOCKS.div_ceil(blocks.max(1)).min(n.div_ceil(4 * THREADS)).max(1);
        Self::new(sums, slices, device)
    }

    /// For `sums` sums over `rows` rows of `columns` groups of channels, where a block takes all columns.
    pub(crate) fn of_rows(sums: usize, rows: usize, columns: usize, device: &Device) -> Result<Self> {
        let at_once = (THREADS / columns.clamp(1, THREADS)).max(1);
        Self::new(sums, rows.div_ceil(4 * at_once).clamp(1, BLOCKS / 4), device)
    }

    /// The address of the partial sums.
    pub(crate) fn partial(&self) -> Result<Ptr> {
        Ptr::of(&self.partial)
    }

    /// Adds the partial sums: one number of `out` each.
    pub(crate) fn add_up(&self, out: &Tensor) -> Result<()> {
        let args = SliceSums { partial: self.partial()?, out: Ptr::of(out)?, slices: count(self.slices)? };
        launch(out.device(), "slice_sums", Some(out.dtype()), out.elem_count(), &args)
    }
}
