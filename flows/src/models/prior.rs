//! The priors that configs choose from.

use crate::params::ParamBuilder;
use crate::priors::{DiagonalGaussian, Gaussian, Logistic, Mixture, Prior, StudentT};
use candle_core::Result;
use serde::{Deserialize, Serialize};

/// The prior of a model. A new one is its file in [`priors`](crate::priors), a variant, and a row in each of the two tables
/// below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PriorConfig {
    /// N(0, 1) in each dimension.
    Gaussian {},
    /// The standard logistic distribution in each dimension (NICE).
    Logistic {},
    /// Student's t in each dimension.
    StudentT {
        /// Degrees of freedom, or where learning begins.
        #[serde(default = "five")]
        df: f64,
        /// Learned, for each dimension.
        #[serde(default)]
        learned: bool,
    },
    /// A learned mixture of diagonal Gaussians.
    Mixture {
        /// How many.
        #[serde(default = "ten")]
        components: usize,
    },
    /// A learned diagonal Gaussian, for each class where there are any.
    DiagonalGaussian {
        /// Classes of a class-conditional model.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        classes: Option<usize>,
    },
}

impl Default for PriorConfig {
    fn default() -> Self {
        Self::Gaussian {}
    }
}

fn five() -> f64 {
    5.
}

fn ten() -> usize {
    10
}

impl PriorConfig {
    /// The prior of `dims` dimensions with its parameters under `vb`.
    pub(super) fn build(&self, dims: usize, vb: &ParamBuilder) -> Result<Box<dyn Prior>> {
        Ok(match *self {
            Self::Gaussian {} => Box::new(Gaussian),
            Self::Logistic {} => Box::new(Logistic),
            Self::StudentT { df, learned: false } => Box::new(StudentT::fixed(df)?),
            Self::StudentT { df, learned: true } => Box::new(StudentT::learned(df, dims, vb)?),
            Self::Mixture { components } => Box::new(Mixture::new(dims, components, vb)?),
            Self::DiagonalGaussian { classes } => Box::new(DiagonalGaussian::new(dims, classes, vb)?),
        })
    }

    /// Trained scalars for `dims` dimensions, in floating point so that no product overflows.
    pub fn parameters(&self, dims: f64) -> f64 {
        match *self {
            Self::Gaussian {} | Self::Logistic {} | Self::StudentT { learned: false, .. } => 0.,
            Self::StudentT { .. } => dims,
            Self::Mixture { components } => components as f64 * (2. * dims + 1.),
            Self::DiagonalGaussian { classes } => 2. * dims * classes.unwrap_or(1) as f64,
        }
    }

    /// The standard deviation of a dimension before anything is learned; 1 where the prior has none.
    pub(super) fn std(&self) -> f64 {
        match *self {
            Self::Logistic {} => std::f64::consts::PI / 3f64.sqrt(),
            Self::StudentT { df, .. } if df > 2. => (df / (df - 2.)).sqrt(),
            _ => 1.,
        }
    }

    /// Classes, if the prior depends on them.
    pub(super) fn classes(&self) -> Option<usize> {
        match *self {
            Self::DiagonalGaussian { classes } => classes,
            _ => None,
        }
    }

    /// Whether it is the default, which is not written into the files of models that had no choice before.
    pub(super) fn is_gaussian(&self) -> bool {
        *self == Self::default()
    }
}
