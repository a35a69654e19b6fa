//! The stack of bits: constriction's rANS coder, with seeded bits below what has been pushed.
//!
//! What is pushed last is popped first, and popping from a stack on which nothing was pushed under that distribution draws a sample of
//! it: that is how bits-back coding gets its noise. An encoder that pops more than it has pushed draws words of a seeded
//! generator; they are then part of the stack, and of the file.

use super::table::{Choice, FAR, PRECISION, Table};
use crate::params::rng_for;
use candle_core::{Result, bail};
use constriction::stream::model::UniformModel;
use constriction::stream::stack::DefaultAnsCoder;
use constriction::stream::{Code, Decode, Encode};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// The state of a stack on which there is nothing. The 8 bits that it has beyond a probability's keep what the coder loses for each
/// number below 10^-4 bits; with none it would be 10^-2.
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

    /// Pushes which of a few it is.
    pub(super) fn push_choice(&mut self, which: usize, choice: &Choice) {
        self.coder.encode_symbol(which, choice).expect("each has a probability, and memory grows");
    }

    /// Pops what [`Stack::push_choice`] pushed.
    pub(super) fn pop_choice(&mut self, choice: &Choice) -> usize {
        self.fill();
        let Ok(which) = self.coder.decode_symbol(choice);
        which
    }

    /// Pushes a whole number of 2^-k under a standard distribution.
    pub(super) fn push_standard(&mut self, z: i64, k: u32, table: &Table) {
        let (bin, place) = table.find(z, k);
        self.push_bits(place, table.bits(bin, k));
        self.push_choice(bin, &table.bins);
    }

    /// Pops what [`Stack::push_standard`] pushed.
    ///
    /// # Errors
    /// When it is a number that none was.
    pub(super) fn pop_standard(&mut self, k: u32, table: &Table) -> Result<i64> {
        let bin = self.pop_choice(&table.bins);
        let bits = table.bits(bin, k);
        let z = (bits <= FAR).then(|| table.number(bin, self.pop_bits(bits), k));
        match z.filter(|z| z.abs() < LARGEST) {
            Some(z) => Ok(z),
            None => bail!("it is no latent: the file is damaged"),
        }
    }
}
