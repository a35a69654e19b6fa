//! The networks of couplings that configs choose from.

use super::range::{at_least, positive, range};
use super::size::Size;
use crate::core::Net;
use crate::nets::{ConvNet, Mlp, ResNet, ResNetConfig, Start};
use crate::params::ParamBuilder;
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// The network of a coupling. A new one is its file in [`nets`](crate::nets), a variant, and a row in each of the two tables below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetConfig {
    /// [`Mlp`], of vectors.
    Mlp {
        /// The hidden widths.
        hidden: Vec<usize>,
        /// Weights start as U(-init, init); 0 starts the coupling as the identity.
        #[serde(default)]
        init: f64,
    },
    /// [`ConvNet`], of images.
    ConvNet {
        /// Hidden channels.
        width: usize,
        /// The edge-bias channel of Glow's released code.
        #[serde(default)]
        edge_bias: bool,
    },
    /// [`ResNet`], of images; under a mask it sees the mask, too. The defaults are RealNVP's.
    ResNet {
        /// Channels of the residual stream.
        features: usize,
        /// Residual blocks.
        blocks: usize,
        /// It sees [x, -x] instead of x.
        #[serde(default = "yes")]
        signed_input: bool,
        /// Weight norm.
        #[serde(default = "yes")]
        weight_norm: bool,
        /// Batch norm before each ReLU.
        #[serde(default = "yes")]
        batch_norm: bool,
        /// 1x1 convolutions from each block to the output.
        #[serde(default = "yes")]
        skip: bool,
        /// The input passes batch norm and a ReLU.
        #[serde(default)]
        norm_input: bool,
        /// A learned factor of tanh for each channel of the scales, for an affine transform of the scale `exp`.
        #[serde(default)]
        channel_gains: bool,
        /// Added to variances.
        #[serde(default = "eps")]
        eps: f64,
        /// The batch's share in the running averages.
        #[serde(default = "momentum")]
        momentum: f64,
    },
}

fn yes() -> bool {
    true
}

/// What is added to variances by default: RealNVP's.
pub(super) fn eps() -> f64 {
    1e-4
}

/// The batch's share in running averages by default: RealNVP's.
pub(super) fn momentum() -> f64 {
    0.1
}

impl NetConfig {
    /// The network of so many channels, which sees `mask` beside x if it sees masks.
    pub(super) fn build(
        &self,
        inputs: usize,
        outputs: usize,
        mask: Option<Tensor>,
        vb: &ParamBuilder,
    ) -> Result<Box<dyn Net>> {
        Ok(match *self {
            Self::Mlp { ref hidden, init } => {
                let start = if init > 0. { Start::Uniform(init) } else { Start::Identity };
                Box::new(Mlp::new(inputs, hidden, outputs, start, vb)?)
            }
            Self::ConvNet { width, edge_bias } => {
                Box::new(ConvNet::new(inputs, width, outputs, edge_bias, vb)?)
            }
            Self::ResNet {
                features,
                blocks,
                signed_input,
                weight_norm,
                batch_norm,
                skip,
                norm_input,
                channel_gains,
                eps,
                momentum,
            } => {
                let config = ResNetConfig {
                    inputs,
                    features,
                    outputs,
                    blocks,
                    signed_input,
                    weight_norm,
                    batch_norm,
                    skip,
                    norm_input,
                    channel_gains,
                    eps,
                    momentum,
                };
                Box::new(ResNet::new(config, mask, vb)?)
            }
        })
    }

    /// The size of a network of so many channels of examples of this shape.
    ///
    /// # Errors
    /// When it does not take such examples, or a setting cannot be, by its name.
    pub(super) fn size(&self, inputs: f64, outputs: f64, shape: &[usize]) -> Result<Size> {
        let image = shape.len() == 3;
        let area = shape[1..].iter().map(|&side| side as f64).product::<f64>();
        match *self {
            Self::Mlp { .. } if image => {
                bail!(
                    "`net`: an mlp takes vectors, not images: use conv_net or res_net, or put the layer in `model.layers`"
                )
            }
            Self::ConvNet { .. } | Self::ResNet { .. } if !image => {
                bail!(
                    "`net`: convolutions take images, not vectors: use {{ kind = \"mlp\", hidden = [64, 64] }}"
                )
            }
            Self::Mlp { ref hidden, init } => {
                range("init", init, 0., f64::MAX)?;
                connected(inputs, hidden, outputs)
            }
            Self::ConvNet { width, .. } => {
                let width = at_least("width", width, 1)?;
                let weights = 9. * inputs * width + width * width + 9. * width * outputs;
                // Without a gradient the fused network takes a few images at a time through its hidden layers.
                Ok(Size::net(weights + 4. * width + 2. * outputs, 2. * width * area, 0.))
            }
            Self::ResNet { features, blocks, signed_input, skip, eps, momentum, .. } => {
                let (f, blocks) = (at_least("features", features, 1)?, at_least("blocks", blocks, 0)?);
                positive("eps", eps, 1.)?;
                range("momentum", momentum, 0., 1.)?;
                let first = 9. * inputs * if signed_input { 2. } else { 1. } * f;
                let skips = if skip { (blocks + 1.) * f * f } else { 0. };
                let parameters = first + blocks * 18. * f * f + skips + f * outputs;
                Ok(Size::net(parameters, 2. * blocks * f * area, f * area))
            }
        }
    }
}

/// The size of a fully connected network.
pub(super) fn connected(inputs: f64, hidden: &[usize], outputs: f64) -> Result<Size> {
    let hidden = hidden.iter().map(|&n| at_least("hidden", n, 1)).collect::<Result<Vec<_>>>()?;
    let widths: Vec<f64> = std::iter::once(inputs).chain(hidden.iter().copied()).chain([outputs]).collect();
    let weights: f64 = widths.windows(2).map(|w| w[0] * w[1]).sum();
    let units: f64 = hidden.iter().sum();
    Ok(Size::net(weights + units + outputs, units, hidden.into_iter().fold(0., f64::max)))
}
