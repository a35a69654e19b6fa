//! The dequantization that configs choose from.

use super::preprocess::Preprocess;
use crate::bijections::VariationalDequantization;
use crate::core::Chain;
use crate::params::ParamBuilder;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// The noise that is added to pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Dequantize {
    /// Uniform on [0, 1).
    Uniform {},
    /// Learned with the model (Flow++): [`VariationalDequantization`].
    Variational {
        /// Couplings of the conditional flow.
        #[serde(default = "four")]
        couplings: usize,
        /// Hidden channels of their networks.
        #[serde(default = "thirty_two")]
        width: usize,
    },
}

impl Default for Dequantize {
    fn default() -> Self {
        Self::Uniform {}
    }
}

fn four() -> usize {
    4
}

fn thirty_two() -> usize {
    32
}

impl Dequantize {
    /// Appends the layer of learned noise, if there is one, before any other.
    pub(super) fn push(
        &self,
        chain: &mut Chain,
        shape: &[usize],
        (preprocess, bits): (Preprocess, u8),
        vb: &ParamBuilder,
    ) -> Result<()> {
        let &Self::Variational { couplings, width } = self else { return Ok(()) };
        let &[channels, h, w] = shape else {
            bail!("`dequantize`: learned noise is for images, not for examples of shape {shape:?}");
        };
        if preprocess.is_for_vectors() {
            bail!("`dequantize`: with this `preprocess` the data are no pixels, and have no noise added");
        }
        if h % 2 != 0 || w % 2 != 0 {
            bail!("`dequantize`: learned noise needs even sides, not {h}x{w}: crop or resize the images");
        }
        if couplings == 0 || width == 0 {
            bail!("`dequantize`: `couplings` and `width` must be at least 1");
        }
        let vb = vb.pp("dequantize");
        chain.push("dequantize", VariationalDequantization::new(channels, bits, couplings, width, &vb)?);
        Ok(())
    }

    /// Trained scalars for images of `channels` channels, in floating point so that no product overflows.
    pub fn parameters(&self, channels: f64) -> f64 {
        match *self {
            Self::Uniform {} => 0.,
            Self::Variational { couplings, width } => {
                let width = width as f64;
                couplings as f64 * (9. * 10. * channels * width + width * width + 9. * width * 4. * channels)
            }
        }
    }

    /// Whether it is the default, which is not written into files.
    pub(super) fn is_uniform(&self) -> bool {
        *self == Self::default()
    }
}
