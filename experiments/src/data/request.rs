//! The request for a data set, and how a set is drawn from it.

use super::{Dataset, Entropy, Split};
use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;

/// What to load.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// A name of [`SETS`](super::SETS).
    pub name: String,
    /// The data set's folder or its parent, from `--data` or `FLOW_DATA`; sets that are drawn ignore it.
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
    /// Whether all examples are put into the test split.
    pub join: Join,
}

/// Whether all examples of a data set are put into its test split, [`Dataset::join`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Join {
    /// They are not: training and test examples are told apart.
    #[default]
    Never,
    /// They are where the data name no parts, and nothing was trained on them.
    Unnamed,
    /// They are.
    Always,
}

impl Request {
    /// Draws a data set with version `version` of its generator. `draw` makes so many examples of part 0 (training), 1
    /// (validation) or 2 (test), as many as the request or else `counts` says.
    ///
    /// # Errors
    /// When no training or test examples are asked for, or as `draw`.
    pub(super) fn draw(
        &self,
        version: u32,
        counts: [usize; 3],
        classes: &[&str],
        entropy: Entropy,
        draw: impl Fn(u64, usize) -> Result<Split>,
    ) -> Result<Dataset> {
        let asked = [self.train, self.valid, self.test];
        let [train, valid, test] = std::array::from_fn(|i| asked[i].unwrap_or(counts[i]));
        ensure!(
            train > 0 && test > 0,
            "`{}` needs training and test examples: ask for at least one of each",
            self.name
        );
        let revision = format!("{} generator version {version}, seed {}", self.name, self.seed);
        Ok(Dataset {
            valid: if valid > 0 { Some(draw(1, valid)?) } else { None },
            entropy: Some(entropy),
            ..Dataset::new(&self.name, draw(0, train)?, draw(2, test)?, classes, revision)
        })
    }
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
