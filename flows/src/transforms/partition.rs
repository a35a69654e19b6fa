//! Which elements a coupling keeps and which it changes.

use crate::core::sum_per_example;
use crate::ops::coupling::{add_masked, add_part, masked, take_part};
use crate::params::ParamBuilder;
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// Which part of a tensor is kept.
#[derive(Clone, Debug)]
pub enum Partition {
    /// The first floor(C / 2) channels are kept and the others changed; with `swap` the other way round.
    Halves {
        /// Keep the second part instead of the first.
        swap: bool,
    },
    /// 1 where kept, 0 where changed; broadcasts against (B, D) or (B, C, H, W).
    Mask(Tensor),
}

impl Partition {
    /// The changed part of a tensor of x's shape.
    ///
    /// # Errors
    /// When there are fewer than two channels to halve.
    pub fn changed(&self, x: &Tensor) -> Result<Changed<'_>> {
        Ok(match self {
            Partition::Halves { swap } => Changed { channels: halves(x, *swap)?.1, mask: None },
            Partition::Mask(mask) => Changed { channels: 0..x.dim(1)?, mask: Some(mask) },
        })
    }

    /// Of C channels, how many the network sees and how many are changed; a mask leaves all C on both sides.
    pub fn channels(&self, c: usize) -> (usize, usize) {
        match self {
            Partition::Halves { swap: false } => (c / 2, c - c / 2),
            Partition::Halves { swap: true } => (c - c / 2, c / 2),
            Partition::Mask(_) => (c, c),
        }
    }

    /// What the network sees of x: the kept channels, or all of x with its changed elements zeroed.
    pub(crate) fn seen(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Partition::Halves { swap } => {
                let (kept, _) = halves(x, *swap)?;
                take_part(x, kept.start, kept.len())
            }
            Partition::Mask(mask) => masked(x, mask),
        }
    }

    /// As [`Partition::seen`], on candle's graph.
    pub(crate) fn seen_in_graph(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Partition::Halves { swap } => {
                let (kept, _) = halves(x, *swap)?;
                x.narrow(1, kept.start, kept.len())?.contiguous()
            }
            Partition::Mask(mask) => x.broadcast_mul(mask),
        }
    }

    /// `gx` plus the gradient of the network's input, added at the elements that the network sees.
    pub(crate) fn add_seen(&self, gx: &Tensor, of_seen: &Tensor) -> Result<Tensor> {
        match self {
            Partition::Halves { swap } => add_part(gx, of_seen, halves(gx, *swap)?.0.start),
            Partition::Mask(mask) => add_masked(gx, of_seen, mask),
        }
    }
}

/// The channels of x that are kept and those that are changed.
fn halves(x: &Tensor, swap: bool) -> Result<(Range<usize>, Range<usize>)> {
    let c = if x.rank() < 2 { 0 } else { x.dim(1)? };
    if c < 2 {
        bail!("cannot halve {:?}: a coupling needs at least two channels", x.shape());
    }
    Ok(if swap { (c / 2..c, 0..c / 2) } else { (0..c / 2, c / 2..c) })
}

/// The part of a tensor (B, D) or (B, C, H, W) that a coupling changes.
#[derive(Clone, Debug)]
pub struct Changed<'a> {
    /// The channels that are changed.
    pub channels: Range<usize>,
    /// 1 where an element of these channels is kept, 0 where it is changed; broadcasts against x.
    pub mask: Option<&'a Tensor>,
}

impl Changed<'_> {
    /// All channels of x.
    ///
    /// # Errors
    /// When x has no channels.
    pub(crate) fn all(x: &Tensor) -> Result<Self> {
        Ok(Self { channels: 0..x.dim(1)?, mask: None })
    }

    /// Errors if the output `h` of a network does not have `k` numbers for each element of the changed channels of `x`.
    pub(crate) fn check(&self, x: &Tensor, h: &Tensor, k: usize) -> Result<()> {
        let mut want = x.dims().to_vec();
        want[1] = k * self.channels.len();
        if h.dims() != want {
            bail!("the layer's network gave {:?}, {want:?} are needed", h.shape());
        }
        Ok(())
    }

    /// The changed channels of x and the network's output for them. Under a mask both are zero where x is kept: a transform
    /// is evaluated there, too, and what it gives is left out.
    pub(crate) fn take(&self, x: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
        let part = x.narrow(1, self.channels.start, self.channels.len())?;
        let Some(mask) = self.mask else { return Ok((part, h.clone())) };
        let changed = (1. - mask)?;
        let per_channel = if changed.dim(1)? == 1 { 1 } else { h.dim(1)? / part.dim(1)? };
        let mut repeats = vec![1; changed.rank()];
        repeats[1] = per_channel;
        Ok((part.broadcast_mul(&changed)?, h.broadcast_mul(&changed.repeat(repeats)?)?))
    }

    /// x with its changed elements replaced by those of `y`, (B, C', ..) of the changed channels.
    pub(crate) fn put(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if let Some(mask) = self.mask {
            return x.broadcast_mul(mask)? + y.broadcast_mul(&(1. - mask)?)?;
        }
        let (c, Range { start, end }) = (x.dim(1)?, self.channels.clone());
        let parts = [x.narrow(1, 0, start)?, y.clone(), x.narrow(1, end, c - end)?];
        let parts: Vec<&Tensor> = parts.iter().filter(|t| t.dims()[1] > 0).collect();
        Tensor::cat(&parts, 1)
    }

    /// `t`, a number for each element of the changed channels, with 0 at the elements that the mask keeps.
    pub(crate) fn only(&self, t: &Tensor) -> Result<Tensor> {
        self.mask.map_or_else(|| Ok(t.clone()), |mask| t.broadcast_mul(&(1. - mask)?))
    }

    /// The sum over the changed elements of each example, (B,).
    pub(crate) fn sum(&self, t: &Tensor) -> Result<Tensor> {
        sum_per_example(&self.only(t)?)
    }
}

/// The checkerboard mask of RealNVP (figure 3): 1 where i + j is even, the other way round with `swap`; (1, 1, H, W).
///
/// # Errors
/// When the device has no memory left.
pub fn checkerboard(h: usize, w: usize, swap: bool, vb: &ParamBuilder) -> Result<Tensor> {
    let v = (0..h * w).map(|p| f32::from(u8::from((p / w + p % w + usize::from(swap)).is_multiple_of(2))));
    Tensor::from_vec(v.collect(), (1, 1, h, w), vb.device())?.to_dtype(vb.dtype())
}
