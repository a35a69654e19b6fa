//! The transforms that configs choose from.

use crate::transforms::{Additive, Affine};
use serde::{Deserialize, Serialize};

/// The transform of a model's couplings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CouplingTransform {
    /// y = x + t
    Additive,
    /// A shift and a scale: y = x exp(g tanh(h)) + t in NICE, for vectors that a volume-preserving flow cannot follow;
    /// y = (x + t) sigmoid(h + 2) in Glow.
    Affine,
}

impl CouplingTransform {
    /// Numbers that the network of a coupling gives for each element that is changed.
    pub fn params_per_element(self) -> usize {
        match self {
            CouplingTransform::Additive => Additive::PARAMS,
            CouplingTransform::Affine => Affine::PARAMS,
        }
    }
}
