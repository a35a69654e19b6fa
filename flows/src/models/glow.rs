//! Glow (Kingma, Dhariwal 2018, arXiv 1807.03039): actnorm, a learned permutation of channels, a coupling; K steps a
//! level, L levels.
//!
//! The network's output holds the shifts first and the raw scales second, where the released code interleaves them: a
//! renaming of output channels.

use super::built::Built;
use super::context::{ContextConfig, Given};
use super::dequantize::Dequantize;
use super::levels::Levels;
use super::preprocess::Preprocess;
use super::prior::PriorConfig;
pub use super::transform::CouplingTransform;
use crate::bijections::{ActNorm, ChannelPrior, Conv1x1, Coupling, DiagonalPrior, Permute, Weight};
use crate::core::Chain;
use crate::nets::ConvNet;
use crate::params::ParamBuilder;
use crate::transforms::{Affine, Partition, Scale};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// Every coupling keeps the first half of the channels.
const HALVES: Partition = Partition::Halves { swap: false };

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

    /// Native 28x28x1 MNIST, which no paper configures: L 2, K 32, width 512.
    pub fn mnist() -> Self {
        Self { shape: [1, 28, 28], levels: 2, ..Self::cifar_paper() }
    }

    fn step(
        &self,
        chain: &mut Chain,
        name: &str,
        ([c, h, w], given): ([usize; 3], &Given),
        vb: &ParamBuilder,
    ) -> Result<()> {
        let vb = vb.pp(name);
        let join = |part: &str| format!("{name}.{part}");
        chain.push(join("actnorm"), ActNorm::new(c, 3., &vb.pp("actnorm"))?);
        let pv = vb.pp("permutation");
        let name = join("permutation");
        match self.permutation {
            Permutation::Plu => chain.push(name, Conv1x1::new(c, Weight::Plu, &pv)?),
            Permutation::Plain => chain.push(name, Conv1x1::new(c, Weight::Plain, &pv)?),
            Permutation::Shuffle => chain.push(name, Permute::shuffle(c, &pv)?),
            Permutation::Reverse => chain.push(name, Permute::reverse(c, &pv)?),
        }
        let affine = Affine { scale: Scale::Sigmoid, shift_first: true };
        let transform = self.law.build(|| Ok(affine))?;
        let net = |inputs, outputs| {
            let vb = vb.pp("net");
            given
                .net(inputs, &[h, w], |inputs| ConvNet::new(inputs, self.width, outputs, self.edge_bias, &vb))
        };
        chain.push(join("coupling"), Coupling::with_net(HALVES, transform, c, net)?);
        Ok(())
    }

    pub(super) fn build(&self, vb: &ParamBuilder) -> Result<Built> {
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
        let given = self.context.build(&self.shape, vb)?;
        let mut levels = Levels::new(self.shape)?;
        for i in 0..self.levels {
            let vb = vb.pp(format!("level{i}"));
            let mut chain = Chain::new();
            levels.squeeze(&mut chain, "level", self.levels, i)?;
            let [c, h, w] = levels.shape;
            for k in 0..self.depth {
                self.step(&mut chain, &format!("step{k}"), (levels.shape, &given), &vb)?;
            }
            let last = i + 1 == self.levels;
            if !last && self.learn_split {
                let transform = Box::new(Affine { scale: Scale::Exp, shift_first: true });
                let net = |inputs, outputs| {
                    let vb = vb.pp("split");
                    given.net(inputs, &[h, w], |inputs| ConvNet::new(inputs, 0, outputs, self.edge_bias, &vb))
                };
                chain.push("split", Coupling::with_net(HALVES, transform, c, net)?);
            }
            if last && self.learn_top {
                chain.push("top", ChannelPrior::new(c, self.classes, &vb.pp("top"))?);
            }
            levels.push(chain);
        }
        let mut chain = Chain::new();
        self.dequantize.push(&mut chain, &self.shape, (self.preprocess, self.bits), vb)?;
        self.preprocess.push(&mut chain, &self.shape, self.bits, false, vb)?;
        let prior = self.prior.build(self.shape.iter().product(), &vb.pp("prior"))?;
        let mut built = levels.build(chain, prior)?;
        if self.learn_latent {
            let dims = self.shape.iter().product();
            built.chain.push("latent", DiagonalPrior::new(dims, self.classes, &vb.pp("latent"))?);
        }
        Ok(built)
    }
}
