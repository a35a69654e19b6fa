//! The bytes of a file of images.
//!
//! | bytes | what |
//! |---|---|
//! | 8, 2 | `FLOWCODE`, the version |
//! | 1, 1 | bytes of a number that the networks compute with, 4 or 8; bits of precision |
//! | 1, 4 each | the dimensions of an image, how many and which |
//! | 4, 4, 8 | images, streams, the seed of the initial bits |
//! | 32 | SHA-256 of the config and the weights |
//! | 8 | the arithmetic: SHA-256 of a probe image's bits |
//! | 1, .. | the processor that it was written on, in words |
//! | 8, 4 each | the state and the words of each stream |
//! | 2 each | SHA-256 of each image |
//! | 4 each | the words of all streams |
//! | 8 | SHA-256 of all that is before |
//!
//! All numbers are little-endian; of a hash shorter than 32 bytes the first ones are kept. Two bytes an image say which image is
//! wrong; that one is, the last 8 bytes say, and a stream that does not end in its initial bits.

use super::stack::Stack;
use candle_core::{Error, Result, bail};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"FLOWCODE";
/// 2: noise and pieces of a logit are finer near its ends.
const VERSION: u16 = 2;

/// Bits of precision that are possible.
pub const PRECISIONS: std::ops::RangeInclusive<u32> = 12..=28;

/// The most bytes that all images of a file have.
pub(super) const MOST_BYTES: u64 = 1 << 32;

/// What a file says before its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a number that the networks compute with: 4, f32, or 8, f64.
    pub float_bytes: u8,
    /// Bits of a latent after the point.
    pub precision: u32,
    /// The shape of an image.
    pub shape: Vec<usize>,
    /// Images.
    pub images: usize,
    /// Streams, which can be decoded at the same time.
    pub streams: usize,
    /// The seed of the initial bits.
    pub seed: u64,
    /// The SHA-256 of the model's config and weights.
    pub weights: [u8; 32],
    /// A hash of the bits of a probe image, which depend on how the processor rounds sums.
    pub arithmetic: [u8; 8],
    /// The processor that it was written on.
    pub machine: String,
}

/// What a file holds.
pub(super) struct File {
    pub(super) header: Header,
    /// The words and the state of each stream.
    pub(super) streams: Vec<(Vec<u32>, u64)>,
    /// The checksum of each image.
    pub(super) sums: Vec<[u8; 2]>,
}

/// The first N bytes of a SHA-256.
pub(super) fn hash<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut sha = Sha256::new();
    parts.iter().for_each(|part| sha.update(part));
    sha.finalize()[..N].try_into().expect("a hash has 32 bytes")
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.0.split_at_checked(n) else {
            bail!("the file was cut short: compress the images again")
        };
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("N bytes"))
    }

    fn number(&mut self, bytes: usize) -> Result<u64> {
        Ok(self.bytes(bytes)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }
}

impl Header {
    /// Reads the first bytes of a file.
    ///
    /// # Errors
    /// When it is no such file, one of another version, or one that no encoder writes.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        Self::take(&mut Reader(bytes))
    }

    fn take(r: &mut Reader) -> Result<Self> {
        if r.0.len() < MAGIC.len() || r.bytes(MAGIC.len())? != MAGIC {
            bail!("this is no file of compressed images: give one that `flow compress` wrote");
        }
        let version = r.number(2)?;
        if version != u64::from(VERSION) {
            bail!(
                "the file has version {version}, and this program reads {VERSION}: use the one that wrote it"
            );
        }
        let (float_bytes, precision) = (r.number(1)? as u8, r.number(1)? as u32);
        let rank = r.number(1)? as usize;
        let shape = (0..rank).map(|_| Ok(r.number(4)? as usize)).collect::<Result<Vec<_>>>()?;
        let (images, streams) = (r.number(4)? as usize, r.number(4)? as usize);
        let (seed, weights, arithmetic) = (r.number(8)?, r.array()?, r.array()?);
        let length = r.number(1)? as usize;
        let machine = std::str::from_utf8(r.bytes(length)?).unwrap_or_default().to_owned();
        let dims = shape.iter().try_fold(1u64, |n, &side| n.checked_mul(side as u64)).unwrap_or(u64::MAX);
        let possible = matches!(float_bytes, 4 | 8)
            && PRECISIONS.contains(&precision)
            && (1..=images).contains(&streams)
            && dims.checked_mul(images as u64).is_some_and(|bytes| bytes <= MOST_BYTES);
        if !possible {
            bail!("the file's header says what no encoder writes: it is damaged, compress the images again");
        }
        Ok(Self { float_bytes, precision, shape, images, streams, seed, weights, arithmetic, machine })
    }

    /// The first and one past the last image of stream `s`.
    pub(super) fn range(&self, s: usize) -> std::ops::Range<usize> {
        let at = |s: usize| s * self.images / self.streams;
        at(s)..at(s + 1)
    }
}

impl File {
    pub(super) fn write(&self) -> Vec<u8> {
        let h = &self.header;
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend([h.float_bytes, h.precision as u8, h.shape.len() as u8]);
        let sizes = h.shape.iter().chain([&h.images, &h.streams]);
        out.extend(sizes.flat_map(|&n| (n as u32).to_le_bytes()));
        out.extend(h.seed.to_le_bytes());
        out.extend(h.weights);
        out.extend(h.arithmetic);
        out.push(h.machine.len() as u8);
        out.extend(h.machine.as_bytes());
        for (words, state) in &self.streams {
            out.extend(state.to_le_bytes());
            out.extend((words.len() as u32).to_le_bytes());
        }
        out.extend(self.sums.iter().flatten());
        out.extend(self.streams.iter().flat_map(|(words, _)| words).flat_map(|word| word.to_le_bytes()));
        let sum = hash::<8>(&[out.as_slice()]);
        out.extend(sum);
        out
    }

    /// What `bytes` hold. Nothing is allocated that they are too short for.
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        let header = Header::take(&mut r)?;
        let content = &bytes[..bytes.len().saturating_sub(8)];
        if bytes[content.len()..] != hash::<8>(&[content]) {
            bail!(
                "the file is damaged or was cut short, it does not have its checksum: compress the images again"
            );
        }
        let mut table = Reader(r.bytes(12 * header.streams)?);
        let sums: Vec<[u8; 2]> =
            r.bytes(2 * header.images)?.chunks_exact(2).map(|sum| [sum[0], sum[1]]).collect();
        let mut streams = Vec::with_capacity(header.streams);
        for _ in 0..header.streams {
            let (state, n) = (table.number(8)?, table.number(4)? as usize);
            let words = r.bytes(n.checked_mul(4).ok_or_else(|| Error::msg("no file has so many words"))?)?;
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            streams.push((words.chunks_exact(4).map(word).collect(), state));
        }
        if r.0.len() != 8 {
            bail!("the file is longer than it says: it is damaged, compress the images again");
        }
        Ok(Self { header, streams, sums })
    }
}

/// The name of a stream's generator.
pub(super) fn stream(s: usize) -> String {
    format!("stream {s}")
}

/// The bytes of a hash that depends on every word of a stack.
pub(super) fn of_stack(stack: Stack) -> [u8; 8] {
    let (words, state) = stack.into_parts();
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    hash(&[words.as_slice(), state.to_le_bytes().as_slice()])
}
