//! The parts of a model that a config builds.

use crate::core::Chain;
use crate::priors::Prior;

/// The layers of a model, its prior, and the shape (C, H, W) of each level of its latent.
pub(crate) struct Built {
    pub(crate) chain: Chain,
    pub(crate) prior: Box<dyn Prior>,
    pub(crate) latent: Vec<[usize; 3]>,
}
