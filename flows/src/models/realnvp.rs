//! RealNVP (Dinh, Sohl-Dickstein, Bengio 2016, arXiv 1605.08803): affine couplings under checkerboard and channel-wise
//! partitions, batch norm between them, several scales.
//!
//! Where only the released code gives a value (features per scale, the network's input, the order of shift
//! and scale), both presets follow the code; where they differ, `paper` and `code` do. The CIFAR-10 model has no released
//! configuration: its depth and width are section 4.1's.
//!
//! The factor of tanh starts at 1, and the last convolution of a network at zero, so that every coupling starts as the identity.
//! The code starts the factor of checkerboard couplings at 0, that of channel-wise ones at 1, and the last convolution at random.
//! If both started at zero, neither would have a gradient, and the couplings would stay additive.

use super::composed::{ComposedConfig, Level};
use super::context::ContextConfig;
use super::dequantize::Dequantize;
use super::layer::{Layer, LayerConfig, PartitionConfig};
use super::network::NetConfig;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use super::squeezed::squeezed;
use super::transform::{ScaleConfig, TransformConfig};
use crate::bijections::{BatchStatistics, LogitScale};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// The settings of a RealNVP, saved as config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RealNvpConfig {
    /// One example, [C, H, W].
    pub shape: [usize; 3],
    /// Bits of a pixel value.
    pub bits: u8,
    /// The first layers.
    pub preprocess: Preprocess,
    /// Scales: 2 downscale once.
    pub scales: usize,
    /// Channels of the residual networks at the first scale; each scale doubles them, channel-wise couplings again.
    pub features: usize,
    /// Residual blocks of each network.
    pub blocks: usize,
    /// Checkerboard couplings of each scale but the last.
    pub checkerboard: usize,
    /// Channel-wise couplings of each scale but the last.
    pub channelwise: usize,
    /// Checkerboard couplings of the last scale.
    pub last_checkerboard: usize,
    /// y = (x + t) exp(s), as the code has it, instead of x exp(s) + t.
    pub shift_first: bool,
    /// The networks see [x, -x] instead of x.
    pub signed_input: bool,
    /// Weight norm in the networks.
    pub weight_norm: bool,
    /// 1x1 convolutions from each block to the networks' output.
    pub skip: bool,
    /// Batch norm in the networks and after each coupling.
    pub batch_norm: bool,
    /// What a training pass normalises with after couplings: `running` is appendix E.
    pub statistics: BatchStatistics,
    /// The batch's share in the running averages.
    pub momentum: f64,
    /// Added to variances.
    pub eps: f64,
    /// Batch norm after each coupling, where there is `batch_norm`.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub norm_couplings: bool,
    /// The networks' input passes batch norm and a ReLU, as in the released code.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub norm_input: bool,
    /// A learned factor of tanh for each channel instead of one for each coupling.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub channel_gains: bool,
    /// Partitions the other way round, and after the channel-wise couplings the pixels (0, 0) and (1, 1) of each 2x2 square
    /// go on, as in figure 3, instead of the first half of the channels: chrischute/real-nvp has it so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub diagonal: bool,
    /// The prior of the whole latent.
    #[serde(with = "super::named", default, skip_serializing_if = "PriorConfig::is_gaussian")]
    pub prior: PriorConfig,
    /// The noise that is added to pixels.
    #[serde(with = "super::named", default, skip_serializing_if = "Dequantize::is_uniform")]
    pub dequantize: Dequantize,
    /// What the networks see beside x.
    #[serde(with = "super::named", default, skip_serializing_if = "ContextConfig::is_none")]
    pub context: ContextConfig,
}

fn yes() -> bool {
    true
}

impl RealNvpConfig {
    /// CIFAR-10 as in section 4.1 and appendix E.
    pub fn cifar_paper() -> Self {
        Self {
            shape: [3, 32, 32],
            bits: 8,
            preprocess: Preprocess::Logit { alpha: 0.05, scale: LogitScale::Paper },
            scales: 2,
            features: 64,
            blocks: 8,
            checkerboard: 3,
            channelwise: 3,
            last_checkerboard: 4,
            shift_first: false,
            signed_input: true,
            weight_norm: true,
            skip: true,
            batch_norm: true,
            statistics: BatchStatistics::Running,
            momentum: 0.1,
            eps: 1e-4,
            norm_couplings: true,
            norm_input: false,
            channel_gains: false,
            diagonal: false,
            prior: PriorConfig::Gaussian {},
            dequantize: Dequantize::Uniform {},
            context: ContextConfig::None {},
        }
    }

    /// CIFAR-10 with the released code's conventions: logit(.05 + .9 x), (x + t) exp(s), the batch's own statistics.
    pub fn cifar_code() -> Self {
        Self {
            preprocess: Preprocess::Logit { alpha: 0.05, scale: LogitScale::Code },
            shift_first: true,
            statistics: BatchStatistics::Batch,
            ..Self::cifar_paper()
        }
    }

    /// Native 28x28x1 MNIST, which no paper configures: the code's conventions, two scales, the logit of [`Preprocess::DARK`].
    pub fn mnist() -> Self {
        Self { shape: [1, 28, 28], preprocess: Preprocess::DARK, ..Self::cifar_code() }
    }

    /// A step: a coupling, and the batch norm after it.
    fn step(&self, partition: PartitionConfig, features: usize) -> Vec<Layer> {
        let scale = match self.channel_gains {
            // The network gives log-scales that its own gains bound already.
            true => ScaleConfig::Exp {},
            false => ScaleConfig::default(),
        };
        let net = NetConfig::ResNet {
            features,
            blocks: self.blocks,
            signed_input: self.signed_input,
            weight_norm: self.weight_norm,
            batch_norm: self.batch_norm,
            skip: self.skip,
            norm_input: self.norm_input,
            channel_gains: self.channel_gains,
            eps: self.eps,
            momentum: self.momentum,
        };
        let transform = TransformConfig::Affine { scale, shift_first: self.shift_first };
        let mut step = vec![LayerConfig::Coupling { partition, transform, net }.into()];
        if self.batch_norm && self.norm_couplings {
            let &Self { eps, momentum, statistics, .. } = self;
            step.push(LayerConfig::BatchNorm { eps, momentum, statistics }.into());
        }
        step
    }

    /// The model as a list of its layers.
    pub(super) fn composed(&self) -> Result<ComposedConfig> {
        if self.scales == 0 || self.features == 0 {
            bail!("`scales` and `features` must be at least 1");
        }
        let steps = |layers: &mut Vec<Layer>, name, repeat, partition, features| {
            if repeat > 0 {
                let steps = LayerConfig::Steps { repeat, layers: self.step(partition, features) };
                layers.push(steps.named(name));
            }
        };
        // Every second coupling swaps the kept and the changed part, or the others with `diagonal`.
        let (swap, alternate) = (self.diagonal, true);
        let (mut levels, mut shape) = (vec![], self.shape);
        for i in 0..self.scales {
            let last = i + 1 == self.scales;
            let features = self.features << i;
            let mut layers = vec![];
            let n = if last { self.last_checkerboard } else { self.checkerboard };
            steps(&mut layers, "checker", n, PartitionConfig::Checkerboard { swap, alternate }, features);
            if !last {
                shape = squeezed(shape, "scale", (i, self.scales), i + 1)?;
                layers.push(LayerConfig::Squeeze {}.into());
                let halves = PartitionConfig::Halves { swap, alternate };
                steps(&mut layers, "channel", self.channelwise, halves, 2 * features);
                if self.diagonal {
                    // All channels' pixel (0, 0), then all (1, 1), which go on; then (0, 1) and (1, 0).
                    let pixel = |p| (0..shape[0] / 4).map(move |i| 4 * i + p);
                    let order = [0, 3, 1, 2].into_iter().flat_map(pixel).collect();
                    layers.push(LayerConfig::Permute { order }.named("order"));
                }
                shape[0] /= 2;
            }
            levels.push(Level { layers });
        }
        Ok(ComposedConfig {
            shape: self.shape.to_vec(),
            bits: self.bits,
            preprocess: self.preprocess,
            levels,
            layers: vec![],
            prior: self.prior.clone(),
            dequantize: self.dequantize.clone(),
            context: self.context.clone(),
        })
    }
}
