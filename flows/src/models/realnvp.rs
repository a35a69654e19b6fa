//! RealNVP (Dinh, Sohl-Dickstein, Bengio 2016, arXiv 1605.08803): affine couplings under checkerboard and channel-wise
//! partitions, batch norm between them, several scales.
//!
//! Where the paper is silent and the released code is not (features per scale, the network's input, the order of shift
//! and scale), both presets follow the code; where they differ, `paper` and `code` do. The CIFAR-10 model has no released
//! configuration: its depth and width are section 4.1's.

use super::built::Built;
use super::preprocess::Preprocess;
use crate::bijections::{BatchNorm, BatchStatistics, Coupling, LogitScale, Multiscale, Permute, Squeeze};
use crate::core::{Bijection, Chain};
use crate::nets::{ResNet, ResNetConfig};
use crate::params::{Init, ParamBuilder};
use crate::prior::Prior;
use crate::transforms::{Affine, Partition, Scale, Transform, checkerboard};
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// Everything that makes a RealNVP; saved as config.json.
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
    #[serde(default, skip_serializing_if = "is_false")]
    pub norm_input: bool,
    /// A learned factor of tanh for each channel instead of one for each coupling.
    #[serde(default, skip_serializing_if = "is_false")]
    pub channel_gains: bool,
    /// Partitions the other way round, and after the channel-wise couplings the pixels (0, 0) and (1, 1) of each 2x2 square
    /// go on, as in figure 3, instead of the first half of the channels: chrischute/real-nvp has it so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub diagonal: bool,
}

fn yes() -> bool {
    true
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A coupling's partition, with the channels of its network.
#[derive(Clone, Copy)]
enum Kind {
    Checkerboard { features: usize },
    Channelwise { features: usize },
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

    /// The coupling `k` of a level on (C, H, W): its layer, and batch norm after it.
    /// Masks are shared by all couplings of a level.
    fn coupling(
        &self,
        chain: &mut Chain,
        kind: Kind,
        k: usize,
        shape: [usize; 3],
        masks: &mut [Option<Tensor>; 2],
        vb: &ParamBuilder,
    ) -> Result<()> {
        let swap = (k % 2 == 1) != self.diagonal;
        let [c, h, w] = shape;
        let (name, features) = match kind {
            Kind::Checkerboard { features } => (format!("checker{k}"), features),
            Kind::Channelwise { features } => (format!("channel{k}"), features),
        };
        let vb = vb.pp(&name);
        let gain = match self.channel_gains {
            true => None,
            false => Some(vb.get(1, "gain", Init::Const(0.))?),
        };
        // With a gain for each channel the network gives log-scales that are bounded already.
        let scale = gain.map_or(Scale::Exp, |gain| Scale::Tanh { gain });
        let transform = Affine { scale, shift_first: self.shift_first };
        let each = transform.params_per_element();
        let (partition, net) = match kind {
            Kind::Checkerboard { .. } => {
                let slot = &mut masks[usize::from(swap)];
                let mask = match slot {
                    Some(mask) => mask.clone(),
                    None => slot.insert(checkerboard(h, w, swap, &vb)?).clone(),
                };
                let net = ResNet::new(self.net(c, each * c, features), Some(mask.clone()), &vb.pp("net"))?;
                (Partition::Mask(mask), net)
            }
            Kind::Channelwise { .. } => {
                let (kept, changed) = if swap { (c - c / 2, c / 2) } else { (c / 2, c - c / 2) };
                let net = ResNet::new(self.net(kept, each * changed, features), None, &vb.pp("net"))?;
                (Partition::Halves { swap }, net)
            }
        };
        chain.push(&name, Coupling::new(partition, net, transform));
        if self.batch_norm && self.norm_couplings {
            let norm = BatchNorm::new(c, self.eps, self.momentum, self.statistics, &vb.pp("norm"))?;
            chain.push(format!("{name}.norm"), norm);
        }
        Ok(())
    }

    pub(super) fn build(&self, vb: &ParamBuilder) -> Result<Built> {
        if self.scales == 0 || self.features == 0 {
            bail!("`scales` and `features` must be at least 1");
        }
        let [mut c, mut h, mut w] = self.shape;
        if c * h * w == 0 {
            bail!("`shape` {:?} has no pixels", self.shape);
        }
        let mut levels: Vec<Box<dyn Bijection>> = Vec::new();
        let mut shapes = Vec::new();
        for i in 0..self.scales {
            let vb = vb.pp(format!("level{i}"));
            let features = self.features << i;
            let mut chain = Chain::new();
            let last = i + 1 == self.scales;
            let n = if last { self.last_checkerboard } else { self.checkerboard };
            let mut masks = [None, None];
            for k in 0..n {
                let kind = Kind::Checkerboard { features };
                self.coupling(&mut chain, kind, k, [c, h, w], &mut masks, &vb)?;
            }
            if !last {
                if h % 2 != 0 || w % 2 != 0 {
                    bail!(
                        "cannot squeeze {h}x{w} at scale {} of {}: both sides must be even; use `scales = {}`, or crop or \
                         resize the images",
                        i + 1,
                        self.scales,
                        i + 1
                    );
                }
                chain.push("squeeze", Squeeze);
                (c, h, w) = (4 * c, h / 2, w / 2);
                for k in 0..self.channelwise {
                    let kind = Kind::Channelwise { features: 2 * features };
                    self.coupling(&mut chain, kind, k, [c, h, w], &mut masks, &vb)?;
                }
                if self.diagonal {
                    // All channels' pixel (0, 0), then all (1, 1), which go on; then (0, 1) and (1, 0).
                    let order: Vec<usize> =
                        [0, 3, 1, 2].iter().flat_map(|p| (0..c / 4).map(move |i| 4 * i + p)).collect();
                    chain.push("order", Permute::given(&order, &vb.pp("order"))?);
                }
            }
            levels.push(Box::new(chain));
            shapes.push([c, h, w]);
            c /= 2;
        }
        let multiscale = Multiscale::new(levels, &shapes)?;
        let latent = multiscale.shapes().to_vec();
        let mut chain = Chain::new();
        self.preprocess.push(&mut chain, &self.shape, self.bits, false, vb)?;
        chain.push("", multiscale);
        Ok(Built { chain, prior: Prior::Gaussian, latent })
    }
}
