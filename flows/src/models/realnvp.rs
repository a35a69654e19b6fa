//! RealNVP (Dinh, Sohl-Dickstein, Bengio 2016, arXiv 1605.08803): affine couplings under checkerboard and channel-wise
//! partitions, batch norm between them, several scales.
//!
//! Where only the released code gives a value (features per scale, the network's input, the order of shift
//! and scale), both presets follow the code; where they differ, `paper` and `code` do. The CIFAR-10 model has no released
//! configuration: its depth and width are section 4.1's.

use super::built::Built;
use super::context::{ContextConfig, Given};
use super::dequantize::Dequantize;
use super::levels::Levels;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use crate::bijections::{BatchNorm, BatchStatistics, Coupling, LogitScale, Permute};
use crate::core::Chain;
use crate::nets::{ResNet, ResNetConfig};
use crate::params::{Init, ParamBuilder};
use crate::transforms::{Affine, Partition, Scale, checkerboard};
use candle_core::{Result, Tensor, bail};
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

    /// Native 28x28x1 MNIST, which no paper configures: the code's conventions, two scales.
    pub fn mnist() -> Self {
        Self { shape: [1, 28, 28], ..Self::cifar_code() }
    }

    /// The settings of a coupling's network.
    fn net(&self, inputs: usize, outputs: usize, features: usize) -> ResNetConfig {
        ResNetConfig {
            inputs,
            features,
            outputs,
            blocks: self.blocks,
            signed_input: self.signed_input,
            weight_norm: self.weight_norm,
            batch_norm: self.batch_norm,
            skip: self.skip,
            norm_input: self.norm_input,
            channel_gains: self.channel_gains,
            eps: self.eps,
            momentum: self.momentum,
        }
    }

    /// Appends the coupling `name` of C channels, and the batch norm after it.
    fn coupling(
        &self,
        chain: &mut Chain,
        name: &str,
        partition: Partition,
        ([channels, h, w], features, given): ([usize; 3], usize, &Given),
        vb: &ParamBuilder,
    ) -> Result<()> {
        let vb = vb.pp(name);
        let scale = match self.channel_gains {
            // The network gives log-scales that its own gains bound already.
            true => Scale::Exp,
            false => Scale::Tanh { gain: vb.get(1, "gain", Init::Const(0.))? },
        };
        let transform = Box::new(Affine { scale, shift_first: self.shift_first });
        let mask = match &partition {
            Partition::Mask(mask) => Some(mask.clone()),
            Partition::Halves { .. } => None,
        };
        let net = |inputs, outputs| {
            let net = |inputs| ResNet::new(self.net(inputs, outputs, features), mask, &vb.pp("net"));
            given.net(inputs, &[h, w], net)
        };
        chain.push(name, Coupling::with_net(partition, transform, channels, net)?);
        if self.batch_norm && self.norm_couplings {
            let norm = BatchNorm::new(channels, self.eps, self.momentum, self.statistics, &vb.pp("norm"))?;
            chain.push(format!("{name}.norm"), norm);
        }
        Ok(())
    }

    /// Whether coupling `k` of a level swaps the kept and the changed part: every second one, or the others with `diagonal`.
    fn swap(&self, k: usize) -> bool {
        (k % 2 == 1) != self.diagonal
    }

    pub(super) fn build(&self, vb: &ParamBuilder) -> Result<Built> {
        if self.scales == 0 || self.features == 0 {
            bail!("`scales` and `features` must be at least 1");
        }
        let given = self.context.build(&self.shape, vb)?;
        let mut levels = Levels::new(self.shape)?;
        for i in 0..self.scales {
            let vb = vb.pp(format!("level{i}"));
            let features = self.features << i;
            let mut chain = Chain::new();
            let last = i + 1 == self.scales;
            let [_, h, w] = levels.shape;
            let n = if last { self.last_checkerboard } else { self.checkerboard };
            // The couplings of a level share their masks.
            let masks: Vec<Tensor> =
                (0..n.min(2)).map(|k| checkerboard(h, w, self.swap(k), &vb)).collect::<Result<_>>()?;
            for k in 0..n {
                let partition = Partition::Mask(masks[k % 2].clone());
                let sizes = (levels.shape, features, &given);
                self.coupling(&mut chain, &format!("checker{k}"), partition, sizes, &vb)?;
            }
            if !last {
                levels.squeeze(&mut chain, "scale", self.scales, i + 1)?;
                let c = levels.shape[0];
                for k in 0..self.channelwise {
                    let partition = Partition::Halves { swap: self.swap(k) };
                    let sizes = (levels.shape, 2 * features, &given);
                    self.coupling(&mut chain, &format!("channel{k}"), partition, sizes, &vb)?;
                }
                if self.diagonal {
                    // All channels' pixel (0, 0), then all (1, 1), which go on; then (0, 1) and (1, 0).
                    let order: Vec<usize> =
                        [0, 3, 1, 2].iter().flat_map(|p| (0..c / 4).map(move |i| 4 * i + p)).collect();
                    chain.push("order", Permute::given(&order, &vb.pp("order"))?);
                }
            }
            levels.push(chain);
        }
        let mut chain = Chain::new();
        self.dequantize.push(&mut chain, &self.shape, (self.preprocess, self.bits), vb)?;
        self.preprocess.push(&mut chain, &self.shape, self.bits, false, vb)?;
        let prior = self.prior.build(self.shape.iter().product(), &vb.pp("prior"))?;
        levels.build(chain, prior)
    }
}
