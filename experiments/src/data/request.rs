//! What is asked of a data set, and the random numbers of one that is drawn.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;

/// What to load.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// A name of [`SETS`](super::SETS).
    pub name: String,
    /// The data set's folder or its parent, from `--data` or `FLOW_DATA`; the drawn sets do not look at it.
    pub dir: Option<PathBuf>,
    /// The side that images of a folder are cropped and resized to.
    pub size: Option<usize>,
    /// How many training examples to draw; for a set that is read, keep the first so many.
    pub train: Option<usize>,
    /// How many validation examples to draw; for a set that is read and has none, carve them off the training
    /// set.
    pub valid: Option<usize>,
    /// How many test examples to draw; for a set that is read, keep the first so many.
    pub test: Option<usize>,
    /// The seed of the drawn sets.
    pub seed: u64,
}

/// The random numbers of example `index` of part `part`: independent of every other example, so that neither
/// the number of threads nor the number of examples changes what one of them looks like.
#[must_use]
pub fn example_rng(seed: u64, domain: &str, part: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&part.to_le_bytes());
    for (to, from) in key[16..].iter_mut().zip(domain.bytes()) {
        *to = from;
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}
