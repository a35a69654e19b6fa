//! The transforms that configs choose from.

use crate::params::{Init, ParamBuilder};
use crate::transforms::{Additive, Affine, MixtureOfLogistics, RationalQuadraticSpline, Scale, Transform};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// The transform of a layer of [`ComposedConfig`](super::ComposedConfig). A new one is its file in
/// [`transforms`](crate::transforms), a variant, and a row in the table below.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TransformConfig {
    /// y = x + t
    Additive {},
    /// y = x exp(s) + t
    Affine {
        /// How s comes from the network's number.
        #[serde(with = "super::named", default)]
        scale: ScaleConfig,
        /// y = (x + t) exp(s) instead.
        #[serde(default)]
        shift_first: bool,
    },
    /// A monotone spline of rational-quadratic pieces.
    RationalQuadraticSpline(RationalQuadraticSpline),
    /// The distribution function of a mixture of logistics, the logit, a scale and a shift.
    MixtureOfLogistics(MixtureOfLogistics),
}

/// The log-scale s of an affine transform as a function of the network's number h.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScaleConfig {
    /// s = h
    Exp {},
    /// s = gain tanh(h), gain learned, one number for each layer.
    Tanh {
        /// Its initial value. At 0 it stays there if the network starts at zero, as the layers' networks here do: neither has a
        /// gradient while the other is zero.
        #[serde(default = "one")]
        gain: f64,
    },
    /// s = log sigmoid(h + 2)
    Sigmoid {},
}

impl Default for TransformConfig {
    fn default() -> Self {
        Self::Affine { scale: ScaleConfig::default(), shift_first: false }
    }
}

impl Default for ScaleConfig {
    fn default() -> Self {
        Self::Tanh { gain: one() }
    }
}

fn one() -> f64 {
    1.
}

impl TransformConfig {
    /// The transform, with its own parameters under `vb`.
    pub(super) fn build(self, vb: &ParamBuilder) -> Result<Box<dyn Transform>> {
        self.made(|gain| Ok(Scale::Tanh { gain: vb.get(1, "gain", Init::Const(gain))? }))
    }

    /// The transform, where `tanh` makes the scale that has a parameter.
    fn made(self, tanh: impl FnOnce(f64) -> Result<Scale>) -> Result<Box<dyn Transform>> {
        Ok(match self {
            Self::Additive {} => Box::new(Additive),
            Self::Affine { scale, shift_first } => {
                let scale = match scale {
                    ScaleConfig::Exp {} => Scale::Exp,
                    ScaleConfig::Tanh { gain } => tanh(gain)?,
                    ScaleConfig::Sigmoid {} => Scale::Sigmoid,
                };
                Box::new(Affine { scale, shift_first })
            }
            Self::RationalQuadraticSpline(spline) => Box::new(spline),
            Self::MixtureOfLogistics(mixture) => Box::new(mixture),
        })
    }

    /// Whether the network gives the log-scale itself.
    pub(super) fn is_exp(self) -> bool {
        matches!(self, Self::Affine { scale: ScaleConfig::Exp {}, .. })
    }

    /// Numbers that the network of a layer gives for each element that is changed, and trained scalars of the transform's own.
    ///
    /// # Errors
    /// At the first setting that no transform has, by its name.
    pub(super) fn sizes(self) -> Result<[usize; 2]> {
        let mut gains = 0;
        let transform = self.made(|gain| {
            if !gain.is_finite() {
                bail!("`gain` = {gain}: it must be finite");
            }
            gains = 1;
            Ok(Scale::Exp)
        })?;
        transform.check()?;
        Ok([transform.params_per_element(), gains])
    }
}

/// The transform of the layers of a paper's model: in a config `"additive"`, `"affine"`, or one with settings, of which those left
/// out have their defaults: `{"rational_quadratic_spline": {"bins": 16}}`.
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
    /// The transform with all its settings, where `affine` is what the model has for that name.
    pub(super) fn config(self, affine: TransformConfig) -> TransformConfig {
        match self {
            Self::Additive => TransformConfig::Additive {},
            Self::Affine => affine,
            Self::RationalQuadraticSpline(spline) => TransformConfig::RationalQuadraticSpline(spline),
            Self::MixtureOfLogistics(mixture) => TransformConfig::MixtureOfLogistics(mixture),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// At the first that no transform has, by its name.
    pub fn check(self) -> Result<()> {
        self.config(TransformConfig::default()).sizes().map(drop)
    }
}
