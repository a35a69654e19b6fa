//! The preprocessing that configs choose from: the first layers of every model.

use crate::bijections::{Flatten, Logit, LogitScale, Rescale, Standardize, Whiten};
use crate::core::Chain;
use crate::params::{ParamBuilder, ParamStore};
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// The path of the layer that standardizes.
const STANDARDIZE: &str = "standardize";

/// Sets the layer of [`Preprocess::Standardize`], if `params` have one, from rows (N, D).
pub(super) fn standardize(params: &ParamStore, rows: &Tensor) -> Result<()> {
    let all = params.all();
    let find = |name: &str| {
        let key = format!("{STANDARDIZE}.{name}");
        all.iter().find(|(name, _)| *name == key).map(|(_, param)| param.clone())
    };
    match (find("mean"), find("std")) {
        (Some(mean), Some(std)) => Standardize::of(mean, std)?.fit(rows),
        _ => Ok(()),
    }
}

/// The map of x in [0, 2^bits) before the first coupling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Preprocess {
    /// Nothing: x are vectors, not pixels.
    None {},
    /// Mean 0 and variance 1 in each dimension, by the training data: x are vectors, not pixels.
    Standardize {},
    /// x / 2^bits, in [0, 1] (NICE on MNIST).
    Unit {},
    /// 2 x / 2^bits - 1, in [-1, 1] (NICE's code on CIFAR-10).
    Symmetric {},
    /// x / 2^bits - 1/2 (Glow).
    Centered {},
    /// logit(alpha + c x / 2^bits) (RealNVP).
    Logit {
        /// How far from 0 and 1 the data are kept.
        alpha: f64,
        /// Which c.
        scale: LogitScale,
    },
    /// ZCA of the symmetric range (NICE, section 5.1); only models of vectors, flattened or not, take it.
    Zca {
        /// Added to the covariance's diagonal.
        epsilon: f64,
    },
}

impl Preprocess {
    /// logit(10^-6 + (1 - 2 10^-6) x / 2^bits), for images most of whose pixels are 0, such as MNIST's.
    ///
    /// With uniform noise u a black pixel is u / 256. Its standard deviation, before any coupling:
    ///
    /// | preprocessing | |
    /// |---|---:|
    /// | x / 256 - 1/2 | .0011 |
    /// | logit(.05 + .9 x / 256) | .021 |
    /// | this logit: about ln(u / 256), and -ln u is exponential | 1 |
    ///
    /// With the other two the layers learn factors of 1000 or 50 for four pixels of five; measured in docs/results.md. The value of
    /// alpha is that of FFJORD's released code (arXiv 1810.01367), whose default it is for all images.
    pub const DARK: Self = Self::Logit { alpha: 1e-6, scale: LogitScale::Code };

    /// The width of one grey level on the scale of the paper's log-likelihoods, for LL = log p(x) + D ln(1/bin).
    ///
    /// `Unit` and the logit are stated on [0, 1], the others on the range they map to.
    pub fn bin(self, bits: u8) -> f64 {
        let n = f64::from(1u32 << bits);
        match self {
            Preprocess::None {} | Preprocess::Standardize {} => 1.,
            Preprocess::Symmetric {} | Preprocess::Zca { .. } => 2. / n,
            _ => 1. / n,
        }
    }

    /// Whether x are vectors of real numbers, not pixels.
    pub fn is_for_vectors(self) -> bool {
        matches!(self, Preprocess::None {} | Preprocess::Standardize {})
    }

    /// Appends the layers; `flatten` makes vectors of images.
    pub(crate) fn push(
        self,
        chain: &mut Chain,
        shape: &[usize],
        bits: u8,
        flatten: bool,
        vb: &ParamBuilder,
    ) -> Result<()> {
        if bits == 0 || bits > 8 {
            bail!("`bits` must be 1 to 8, got {bits}");
        }
        let n = f64::from(1u32 << bits);
        let rescale = match self {
            Preprocess::None {} | Preprocess::Standardize {} => None,
            Preprocess::Unit {} | Preprocess::Logit { .. } => Some((1. / n, 0.)),
            Preprocess::Symmetric {} | Preprocess::Zca { .. } => Some((2. / n, -1.)),
            Preprocess::Centered {} => Some((1. / n, -0.5)),
        };
        if let Some((scale, shift)) = rescale {
            chain.push("rescale", Rescale::new(scale, shift)?);
        }
        if let Preprocess::Logit { alpha, scale } = self {
            chain.push("logit", Logit::new(alpha, scale)?);
        }
        if flatten {
            chain.push("flatten", Flatten::new(shape));
        }
        if self == (Preprocess::Standardize {}) {
            if shape.len() > 1 {
                bail!("`standardize` works on vectors, not on examples of shape {shape:?}");
            }
            chain.push(STANDARDIZE, Standardize::new(shape.iter().product(), &vb.pp(STANDARDIZE))?);
        }
        if let Preprocess::Zca { epsilon } = self {
            if !flatten && shape.len() > 1 {
                bail!("`zca` works on vectors: this model keeps images as images");
            }
            chain.push("whiten", Whiten::new(shape.iter().product(), epsilon, &vb.pp("whiten"))?);
        }
        Ok(())
    }
}
