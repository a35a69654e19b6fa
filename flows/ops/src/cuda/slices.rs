//! How the sums over a channel are shared out over blocks, and added.
//!
//! A GPU has more multiprocessors than most layers have channels, so several blocks, the channel's slices, each add up a part
//! of it in f64; a second kernel adds these partial sums in order. The same sizes give the same bits.

use super::launch::{Args, Ptr, THREADS, blocks, count, fresh, launch};
use candle_core::{DType, Device, Result, Tensor};

/// Numbers that a thread takes at once, as in norms.h.
const GROUP: usize = 4;
/// Blocks that keep a large GPU busy: some eight for each multiprocessor.
const BLOCKS: usize = 1056;
/// Groups of a slice at least: two for each thread.
const LEAST: usize = 2 * THREADS;

/// Whether threads take groups of neighbours in one access: where positions divide into groups and all addresses allow it.
pub(crate) fn wide(positions: usize, addresses: &[Ptr]) -> bool {
    positions.is_multiple_of(GROUP) && addresses.iter().all(|p| p.0.is_multiple_of(16))
}

/// The number of groups, or of single numbers, in `n` numbers.
pub(crate) fn groups(n: usize, wide: bool) -> usize {
    if wide { n / GROUP } else { n }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SliceSums {
    partial: Ptr,
    out: Ptr,
    rows: u32,
    slices: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for SliceSums {}

/// The slices of each channel, and room for `sums` partial sums of each.
pub(crate) struct Slices {
    partial: Tensor,
    pub(crate) slices: usize,
}

impl Slices {
    /// For `channels` channels of `groups` groups each.
    pub(crate) fn new(channels: usize, groups: usize, sums: usize, device: &Device) -> Result<Self> {
        let slices = BLOCKS.div_ceil(channels.max(1)).min(groups.div_ceil(LEAST)).max(1);
        Ok(Self { partial: fresh((sums, channels, slices), DType::F64, device)?, slices })
    }

    /// The address of the partial sums.
    pub(crate) fn partial(&self) -> Result<Ptr> {
        Ptr::of(&self.partial)
    }

    /// Adds the partial sums to `out`, one number for each sum and channel; one slice has been written there already.
    pub(crate) fn add_up(&self, out: &Tensor) -> Result<()> {
        if self.slices == 1 {
            return Ok(());
        }
        let rows = out.elem_count();
        let args = SliceSums {
            partial: self.partial()?,
            out: Ptr::of(out)?,
            rows: count(rows)?,
            slices: count(self.slices)?,
        };
        launch(out.device(), "slice_sums", Some(out.dtype()), blocks(rows), &args)
    }
}
