//! Training batches made on the device from the stored bytes.
//!
//! ```text
//! x = floor(pixel / 2^(8 - bits)) + u,     u uniform on [0, 1), a multiple of 2^-(24 - bits)
//! ```
//!
//! The data set lies on the device as bytes, and an update takes its examples from there: which ones, how each is varied and
//! its noise are functions of (seed, update, place in the batch) by a counter-based generator, Philox4x32-10. So a batch
//! costs one launch and no transfer, nothing has to be drawn in advance, and a resumed run sees the batches that it would
//! have seen. They are not the batches of a run on the CPU, whose generator is ChaCha.

use super::launch::{Args, Ptr, blocks, count, fresh, launch, layout};
use super::upload::Upload;
use candle_core::{DType, Device, Result, Tensor, bail};

/// How examples are varied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variation {
    /// Mirrored left to right, every second time.
    pub hflip: bool,
    /// Shifted by up to so many pixels up or down, edge pixels repeated.
    pub shift_y: usize,
    /// Shifted by up to so many pixels to the left or right.
    pub shift_x: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct BatchArgs {
    pixels: Ptr,
    orders: Ptr,
    labels: Ptr,
    update: Ptr,
    x: Ptr,
    out_labels: Ptr,
    unit: f32,
    examples: u32,
    batch: u32,
    c: u32,
    h: u32,
    w: u32,
    drop: u32,
    shift_bits: u32,
    flip: u32,
    most_y: u32,
    most_x: u32,
    key0: u32,
    key1: u32,
    first: u32,
    whole: u32,
}
// SAFETY: as `Args` asks.
unsafe impl Args for BatchArgs {}
layout!(BatchArgs, 112, whole, 104);

#[repr(C)]
#[derive(Clone, Copy)]
struct Advance {
    update: Ptr,
}
// SAFETY: as `Args` asks.
unsafe impl Args for Advance {}
layout!(Advance, 8, update, 0);

/// A data set on the device, and the number of the next update.
pub struct Batches {
    pixels: Tensor,
    labels: Option<Tensor>,
    orders: Tensor,
    /// The epochs whose orders lie in the even and in the odd half.
    known: [Option<u64>; 2],
    update: Tensor,
    shape: [usize; 3],
    examples: usize,
    /// The places of each batch that are made here, `count` from `first` on, and the size of the batch.
    first: usize,
    count: usize,
    batch: usize,
    bits: u8,
    seed: u64,
    variation: Variation,
}

impl Batches {
    /// `pixels` are examples of `shape` (C, H, W) one after another, with one label each if the model takes labels.
    ///
    /// # Errors
    /// Where sizes do not agree, or a batch is larger than the set.
    pub fn new(
        pixels: &[u8],
        labels: Option<&[u32]>,
        shape: [usize; 3],
        (batch, bits, seed): (usize, u8, u64),
        variation: Variation,
        device: &Device,
    ) -> Result<Self> {
        let dims: usize = shape.iter().product();
        let examples = pixels.len() / dims.max(1);
        if dims == 0 || pixels.len() != examples * dims || labels.is_some_and(|l| l.len() != examples) {
            bail!("{} bytes are not examples of {shape:?}", pixels.len());
        }
        if batch == 0 || batch > examples {
            bail!("a batch of {batch} cannot be taken from {examples} examples");
        }
        if bits == 0 || bits > 8 {
            bail!("images have 1 to 8 bits, not {bits}");
        }
        count(batch * dims)?;
        Ok(Self {
            pixels: Tensor::from_slice(pixels, pixels.len(), device)?,
            labels: labels.map(|l| Tensor::from_slice(l, l.len(), device)).transpose()?,
            orders: Tensor::zeros(2 * examples, DType::U32, device)?,
            known: [None; 2],
            update: Tensor::zeros(1, DType::I64, device)?,
            shape,
            examples,
            first: 0,
            count: batch,
            batch,
            bits,
            seed,
            variation,
        })
    }

    /// Makes `count` places of each batch from `first` on, the share of one of several processes: the same examples with the same
    /// variation and noise as in the whole batch.
    ///
    /// # Errors
    /// Where the batch has no such places.
    pub fn with_share(mut self, first: usize, count: usize) -> Result<Self> {
        if count == 0 || first + count > self.batch {
            bail!("a batch of {} has no {count} places from {first} on", self.batch);
        }
        (self.first, self.count) = (first, count);
        Ok(self)
    }

    /// Makes `update` the next one.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn start(&self, update: u64) -> Result<()> {
        self.update.inplace_op1(&Upload(&[update as i64]))
    }

    /// Uploads the orders of the epochs that `update` takes examples from, unless the device has them; `order(epoch)` gives a
    /// permutation.
    ///
    /// # Errors
    /// Where `order` gives no permutation of the examples, or the device fails.
    pub fn prepare(&mut self, update: u64, order: impl Fn(u64) -> Vec<u32>) -> Result<()> {
        let first = update * self.batch as u64;
        let n = self.examples as u64;
        for epoch in [first / n, (first + self.batch as u64 - 1) / n] {
            let half = (epoch % 2) as usize;
            if self.known[half] != Some(epoch) {
                let order = order(epoch);
                if order.len() != self.examples || order.iter().any(|&p| u64::from(p) >= n) {
                    bail!("the order of epoch {epoch} is not one of {n} examples");
                }
                let order = Tensor::from_vec(order, self.examples, self.orders.device())?;
                self.orders.slice_set(&order, 0, half * self.examples)?;
                self.known[half] = Some(epoch);
            }
        }
        Ok(())
    }

    /// The batch of the next update in f32, (B, C, H, W), and its labels (B,) in u32. Nothing waits.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn next(&self) -> Result<(Tensor, Option<Tensor>)> {
        let ([c, h, w], device) = (self.shape, self.pixels.device());
        let x = fresh((self.count, c, h, w), DType::F32, device)?;
        let labels = self.labels.as_ref().map(|_| fresh(self.count, DType::U32, device)).transpose()?;
        let args = BatchArgs {
            pixels: Ptr::of(&self.pixels)?,
            orders: Ptr::of(&self.orders)?,
            labels: Ptr::maybe(self.labels.as_ref())?,
            update: Ptr::of(&self.update)?,
            x: Ptr::of(&x)?,
            out_labels: Ptr::maybe(labels.as_ref())?,
            unit: 0.5f32.powi(24 - i32::from(self.bits)),
            examples: count(self.examples)?,
            batch: count(self.count)?,
            c: count(c)?,
            h: count(h)?,
            w: count(w)?,
            drop: u32::from(8 - self.bits),
            shift_bits: u32::from(8 + self.bits),
            flip: self.variation.hflip.into(),
            most_y: count(self.variation.shift_y.min(h - 1))?,
            most_x: count(self.variation.shift_x.min(w - 1))?,
            key0: self.seed as u32,
            key1: (self.seed >> 32) as u32,
            first: count(self.first)?,
            whole: count(self.batch)?,
        };
        launch(device, "batch", None, blocks(self.count * (c * h * w).div_ceil(4)), &args)?;
        Ok((x, labels))
    }

    /// Counts the update, so that [`Batches::next`] gives the following batch.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn advance(&self) -> Result<()> {
        launch(self.update.device(), "advance", None, 1, &Advance { update: Ptr::of(&self.update)? })
    }
}

#[cfg(all(test, feature = "emulate"))]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Random {
        counter: [u32; 4],
        key: [u32; 2],
        out: Ptr,
    }
    // SAFETY: as `Args` asks.
    unsafe impl Args for Random {}
    layout!(Random, 32, out, 24);

    /// The published known answers of Philox4x32-10 (Random123's kat_vectors).
    #[test]
    fn the_generator_is_philox() -> Result<()> {
        let ones = u32::MAX;
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([ones; 4], [ones; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ] {
            let out = Tensor::zeros(4, DType::U32, &Device::Cpu)?;
            launch(&Device::Cpu, "random_numbers", None, 1, &Random { counter, key, out: Ptr::of(&out)? })?;
            assert_eq!(out.to_vec1::<u32>()?, want);
        }
        Ok(())
    }
}
