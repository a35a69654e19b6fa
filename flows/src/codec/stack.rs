//! The stack of bits: constriction's rANS coder, with seeded bits below what has been pushed.
//!
//! What is pushed last is popped first, and popping from a stack on which nothing was pushed under that distribution draws a sample of
//! it: that is how bits-back coding gets its noise. An encoder that pops more than it has pushed draws words of a seeded
//! generator; they are then part of the stack, and of the file.

use crate::params::rng_for;
use crate::priors::Standard;
use candle_core::{Result, bail};
use constriction::stream::model::{ContiguousCategoricalEntropyModel, UniformModel};
use constriction::stream::stack::DefaultAnsCoder;
use constriction::stream::{Code, Decode, Encode};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// Bits of a probability. The coder's state has 32 at least: the 8 between them keep what it loses for each number below 10^-4 bits,
/// and with 32 bits it would be 10^-2.
const PRECISION: usize = 24;

/// The state of a stack on which there is nothing.
const EMPTY: u64 = 1 << 32;

/// Numbers are below this: f64 holds them exactly.
pub(super) const LARGEST: i64 = 1 << 52;

/// The largest range of a uniform number. Probabilities are whole multiples of 2^-24, so one that is no power of 2 costs a little more
/// than its logarithm, at most n 2^-24 nats.
pub(super) const MOST: u64 = 1 << 24;

/// A stack of bits.
pub(super) struct Stack {
    coder: DefaultAnsCoder,
    source: Source,
}

/// Where words come from when there are none left.
enum Source {
    /// A generator, and how many words it gave.
    Seeded(Box<ChaCha8Rng>, usize),
    /// None: whether more was popped than there was.
    Ended(bool),
}

impl Stack {
    /// A stack to encode to, which draws from the generator of this seed and name.
    pub(super) fn seeded(seed: u64, name: &str) -> Self {
        let coder = DefaultAnsCoder::from_raw_parts(Vec::new(), EMPTY);
        Self { coder, source: Source::Seeded(Box::new(rng_for(seed, name)), 0) }
    }

    /// A stack to decode from: the words of a file, and the state.
    pub(super) fn of(words: Vec<u32>, state: u64) -> Result<Self> {
        if state < EMPTY {
            bail!("its state {state:#x} is none of a coder");
        }
        Ok(Self { coder: DefaultAnsCoder::from_raw_parts(words, state), source: Source::Ended(false) })
    }

    /// The words and the state.
    pub(super) fn into_parts(self) -> (Vec<u32>, u64) {
        self.coder.into_raw_parts()
    }

    /// Bits on the stack; none on an empty one.
    pub(super) fn bits(&self) -> f64 {
        32. * (self.coder.bulk().len() as f64 - 1.) + (self.coder.state() as f64).log2()
    }

    /// Bits that were drawn from the generator.
    pub(super) fn drawn(&self) -> u64 {
        match self.source {
            Source::Seeded(_, words) => 32 * words as u64,
            Source::Ended(_) => 0,
        }
    }

    /// Whether more was popped than there was.
    pub(super) fn is_short(&self) -> bool {
        matches!(self.source, Source::Ended(true))
    }

    /// Whether what is left is what an encoder of this seed and name drew, and nothing else.
    pub(super) fn was_drawn_from(self, seed: u64, name: &str) -> bool {
        let (words, state) = self.into_parts();
        let mut rng = rng_for(seed, name);
        state == EMPTY && words.iter().rev().all(|&word| word == rng.next_u32())
    }

    /// Makes sure that there is a word for the next pop.
    fn fill(&mut self) {
        if !self.coder.bulk().is_empty() {
            return;
        }
        match &mut self.source {
            Source::Seeded(rng, drawn) => {
                let word = rng.next_u32();
                *drawn += 1;
                let (mut words, state) = std::mem::take(&mut self.coder).into_raw_parts();
                words.push(word);
                self.coder = DefaultAnsCoder::from_raw_parts(words, state);
            }
            // A pop that needs no word may still follow; the state falls below that of an empty stack only after the last one.
            Source::Ended(short) => *short |= self.coder.state() < EMPTY,
        }
    }

    /// Pushes a number below `n`, 0 < n <= [`MOST`].
    pub(super) fn push(&mut self, value: u64, n: u64) {
        debug_assert!(value < n && n <= MOST);
        if n > 1 {
            let model = UniformModel::<u32, PRECISION>::new(n as usize);
            self.coder.encode_symbol(value as usize, model).expect("it is below n, and memory grows");
        }
    }

    /// Pops a number below `n`, 0 < n <= [`MOST`].
    pub(super) fn pop(&mut self, n: u64) -> u64 {
        if n <= 1 {
            return 0;
        }
        self.fill();
        let Ok(value) = self.coder.decode_symbol(UniformModel::<u32, PRECISION>::new(n as usize));
        value as u64
    }

    /// Pushes the lowest `bits` bits of a number.
    pub(super) fn push_bits(&mut self, value: u64, bits: u32) {
        for at in (0..bits).step_by(16) {
            let n = 1 << 16.min(bits - at);
            self.push((value >> at) % n, n);
        }
    }

    /// Pops what [`Stack::push_bits`] pushed.
    pub(super) fn pop_bits(&mut self, bits: u32) -> u64 {
        (0..bits).step_by(16).rev().fold(0, |value, at| value | self.pop(1 << 16.min(bits - at)) << at)
    }

    fn push_bin(&mut self, bin: usize, table: &Table) {
        self.coder.encode_symbol(bin, &table.bins).expect("every bin has a probability, and memory grows");
    }

    fn pop_bin(&mut self, table: &Table) -> usize {
        self.fill();
        let Ok(bin) = self.coder.decode_symbol(&table.bins);
        bin
    }

    /// Pushes a whole number of 2^-k under a standard distribution.
    pub(super) fn push_standard(&mut self, z: i64, k: u32, table: &Table) {
        let low = k - BIN;
        let (bin, last) = (z >> low, table.reach << BIN);
        if (-last..last).contains(&bin) {
            self.push_bits((z & ((1 << low) - 1)) as u64, low);
            self.push_bin((bin + last) as usize + 1, table);
        } else {
            // Outside: how far it is, in full.
            let (end, beyond) = if bin < 0 { (0, -1 - z) } else { (2 * last as usize + 1, z) };
            self.push_bits(beyond as u64, FAR);
            self.push_bin(end, table);
        }
    }

    /// Pops what [`Stack::push_standard`] pushed.
    ///
    /// # Errors
    /// When it is a number that none was.
    pub(super) fn pop_standard(&mut self, k: u32, table: &Table) -> Result<i64> {
        let (low, last) = (k - BIN, table.reach << BIN);
        let z = match self.pop_bin(table) {
            0 => -1 - self.pop_bits(FAR) as i64,
            bin if bin as i64 == 2 * last + 1 => self.pop_bits(FAR) as i64,
            bin => ((bin as i64 - 1 - last) << low) | self.pop_bits(low) as i64,
        };
        if z.abs() >= LARGEST {
            bail!("it is no latent: the file is damaged");
        }
        Ok(z)
    }
}

/// The bins of a standard distribution are 2^-6 wide, within which its density is taken as constant: that costs 10^-5 nats.
pub(super) const BIN: u32 = 6;

/// Bits of a number that lies outside of the bins.
const FAR: u32 = 56;

/// The bins of a standard distribution, with one more at each end for all that is beyond.
pub(super) struct Table {
    bins: ContiguousCategoricalEntropyModel<u32, Vec<u32>, PRECISION>,
    /// The bins reach from minus this to this.
    reach: i64,
}

impl Table {
    pub(super) fn new(standard: Standard) -> Result<Self> {
        let (reach, density): (i64, fn(f64) -> f64) = match standard {
            Standard::Gaussian => (10, |x| (-0.5 * x * x).exp() / (2. * std::f64::consts::PI).sqrt()),
            Standard::Logistic => (24, |x| (-x.abs()).exp() / (1. + (-x.abs()).exp()).powi(2)),
        };
        let width = 0.5f64.powi(BIN as i32);
        // Simpson's rule, whose error is below 10^-10 of a bin.
        let mass = |i: i64| {
            let x = i as f64 * width;
            width / 6. * (density(x) + 4. * density(x + width / 2.) + density(x + width))
        };
        let last = reach << BIN;
        let beyond = std::iter::once(1e-9);
        let masses: Vec<f64> = beyond.clone().chain((-last..last).map(mass)).chain(beyond).collect();
        let bins = ContiguousCategoricalEntropyModel::from_floating_point_probabilities_fast(&masses, None);
        let bins = bins.map_err(|()| candle_core::Error::msg("the table of a prior cannot be made"))?;
        Ok(Self { bins, reach })
    }
}
