//! Glow (Kingma, Dhariwal 2018, arXiv 1807.03039): actnorm, a learned permutation of channels, a coupling; K steps a
//! level, L levels.
//!
//! The network's output holds the shifts first and the raw scales second, where the released code interleaves them: a
//! renaming of output channels.

use super::composed::{ComposedConfig, Level};
use super::context::ContextConfig;
use super::dequantize::Dequantize;
use super::layer::{Layer, LayerConfig, PartitionConfig};
use super::network::NetConfig;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
use super::squeezed::squeezed;
pub use super::transform::CouplingTransform;
use super::transform::{ScaleConfig, TransformConfig};
use crate::bijections::Weight;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// What mixes the channels between couplings (section 3.2 and figure 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permutation {
    /// A 1x1 convolution, PLU.
    Plu,
    /// A 1x1 convolution, plain W.
    Plain,
    /// A fixed shuffle.
    Shuffle,
    /// Reversed channels.
    Reverse,
}

/// The settings of a Glow, saved as config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlowConfig {
    /// One example, [C, H, W].
    pub shape: [usize; 3],
    /// Bits of a pixel value.
    pub bits: u8,
    /// The first layers.
    pub preprocess: Preprocess,
    /// Levels L.
    pub levels: usize,
    /// Steps of flow K in each level.
    pub depth: usize,
    /// Hidden channels of the couplings' networks.
    pub width: usize,
    /// The transform of the couplings.
    pub law: CouplingTransform,
    /// What mixes the channels.
    pub permutation: Permutation,
    /// The edge-bias channel of the released code.
    pub edge_bias: bool,
    /// The top prior has a learned mean and scale for each channel (and class).
    pub learn_top: bool,
    /// Factored-out halves have a learned prior given the half that goes on.
    pub learn_split: bool,
    /// The whole latent has a learned mean and scale for each dimension (and class).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub learn_latent: bool,
    /// Classes of a class-conditional model, whose learned top prior and latent differ from class to class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// The prior of the whole latent; learned top and split priors are layers before it.
    #[serde(with = "super::named", default, skip_serializing_if = "PriorConfig::is_gaussian")]
    pub prior: PriorConfig,
    /// The noise that is added to pixels.
    #[serde(with = "super::named", default, skip_serializing_if = "Dequantize::is_uniform")]
    pub dequantize: Dequantize,
    /// What the networks see beside x.
    #[serde(with = "super::named", default, skip_serializing_if = "ContextConfig::is_none")]
    pub context: ContextConfig,
}

impl GlowConfig {
    /// CIFAR-10 as in table 3: L 3, K 32, affine, 512 hidden channels, PLU.
    pub fn cifar_paper() -> Self {
        Self {
            shape: [3, 32, 32],
            bits: 8,
            preprocess: Preprocess::Centered {},
            levels: 3,
            depth: 32,
            width: 512,
            law: CouplingTransform::Affine,
            permutation: Permutation::Plu,
            edge_bias: false,
            learn_top: true,
            learn_split: true,
            learn_latent: false,
            classes: None,
            prior: PriorConfig::Gaussian {},
            dequantize: Dequantize::Uniform {},
            context: ContextConfig::None {},
        }
    }

    /// CIFAR-10 as in the released code: plain W, the edge-bias channel.
    pub fn cifar_code() -> Self {
        Self { permutation: Permutation::Plain, edge_bias: true, ..Self::cifar_paper() }
    }

    /// Native 28x28x1 MNIST, which no paper configures: L 2, K 32, width 512, the logit of [`Preprocess::DARK`].
    pub fn mnist() -> Self {
        Self { shape: [1, 28, 28], levels: 2, preprocess: Preprocess::DARK, ..Self::cifar_paper() }
    }

    /// The model as a list of its layers.
    pub(super) fn composed(&self) -> Result<ComposedConfig> {
        if self.levels == 0 || self.width == 0 {
            bail!("`levels` and `width` must be at least 1");
        }
        if self.classes == Some(0) {
            bail!("`classes` = 0: give at least one, or leave it out");
        }
        let of_prior = self.prior.classes();
        if self.classes.is_some() && !self.learn_top && !self.learn_latent && of_prior.is_none() {
            bail!("`classes` needs `learn_top = true`, `learn_latent = true` or a prior with `classes`");
        }
        if let (Some(classes), Some(of_prior)) = (self.classes, of_prior)
            && classes != of_prior
        {
            bail!("`classes` = {classes} and `prior.classes` = {of_prior}: give both the same number");
        }
        let &Self { edge_bias, classes, width, .. } = self;
        let affine = TransformConfig::Affine { scale: ScaleConfig::Sigmoid {}, shift_first: true };
        let step = vec![
            LayerConfig::Actnorm { factor: 3. }.into(),
            match self.permutation {
                Permutation::Plu => LayerConfig::Conv1x1 { weight: Weight::Plu },
                Permutation::Plain => LayerConfig::Conv1x1 { weight: Weight::Plain },
                Permutation::Shuffle => LayerConfig::Shuffle {},
                Permutation::Reverse => LayerConfig::Reverse {},
            }
            .into(),
            LayerConfig::Coupling {
                partition: PartitionConfig::default(),
                transform: self.law.config(affine),
                net: NetConfig::ConvNet { width, edge_bias },
            }
            .into(),
        ];
        let (mut levels, mut shape) = (vec![], self.shape);
        for i in 0..self.levels {
            let last = i + 1 == self.levels;
            shape = squeezed(shape, "level", (i, self.levels), i)?;
            let mut layers: Vec<Layer> = vec![LayerConfig::Squeeze {}.into()];
            if self.depth > 0 {
                layers.push(LayerConfig::Steps { repeat: self.depth, layers: step.clone() }.into());
            }
            if !last && self.learn_split {
                layers.push(LayerConfig::SplitPrior { edge_bias }.into());
            }
            if last && self.learn_top {
                layers.push(LayerConfig::ChannelPrior { classes }.into());
            }
            levels.push(Level { layers });
            shape[0] /= 2;
        }
        Ok(ComposedConfig {
            shape: self.shape.to_vec(),
            bits: self.bits,
            preprocess: self.preprocess,
            levels,
            layers: if self.learn_latent {
                vec![LayerConfig::DiagonalPrior { classes }.into()]
            } else {
                vec![]
            },
            prior: self.prior.clone(),
            dequantize: self.dequantize.clone(),
            context: self.context.clone(),
        })
    }
}
