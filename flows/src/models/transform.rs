//! The transforms that configs choose from.

use crate::transforms::{Additive, Affine, MixtureOfLogistics, RationalQuadraticSpline, Scale, Transform};
use candle_core::Result;
use serde::{Deserialize, Serialize};

/// The transform of a model's couplings or autoregressive layers: in a config `"additive"`, `"affine"`, or one with settings, of
/// which those left out have their defaults: `{"rational_quadratic_spline": {"bins": 16}}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CouplingTransform {
    /// y = x + t
    Additive,
    /// A shift and a scale: y = x exp(g tanh(h)) + t in NICE and MAF, for vectors that a volume-preserving flow cannot follow;
    /// y = (x + t) sigmoid(h + 2) in Glow.
    Affine,
    /// A monotone spline of rational-quadratic pieces.
    RationalQuadraticSpline(RationalQuadraticSpline),
    /// The distribution function of a mixture of logistics, the logit, a scale and a shift.
    MixtureOfLogistics(MixtureOfLogistics),
}

impl CouplingTransform {
    /// The transform, where `affine` is what the model has for that name. A new transform is a variant and a row here.
    pub(super) fn build(self, affine: impl FnOnce() -> Result<Affine>) -> Result<Box<dyn Transform>> {
        Ok(match self {
            Self::Additive => Box::new(Additive),
            Self::Affine => Box::new(affine()?),
            Self::RationalQuadraticSpline(spline) => Box::new(spline),
            Self::MixtureOfLogistics(mixture) => Box::new(mixture),
        })
    }

    /// Numbers that the network of a layer gives for each element that is changed.
    pub fn params_per_element(self) -> usize {
        let affine = || Ok(Affine { scale: Scale::Exp, shift_first: false });
        self.build(affine).map_or(0, |transform| transform.params_per_element())
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// At the first that no transform has, by its name.
    pub fn check(self) -> Result<()> {
        self.build(|| Ok(Affine { scale: Scale::Exp, shift_first: false }))?.check()
    }
}
