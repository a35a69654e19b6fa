//! The settings of a recipe.

use crate::data::{Join, Request};
use flows::ops::precision::Precision;
use flows::optim::Rule;
use flows::{Memory, ModelConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A whole recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The name it is called by: `glow-cifar`, `glow-cifar@paper`, `glow-cifar-small`.
    #[serde(default)]
    pub name: String,
    /// One sentence for `flow list`.
    pub about: String,
    /// The data set.
    pub data: Data,
    /// The model (in the file: `preset = ".."` with overrides, or every field).
    pub model: ModelConfig,
    /// Training.
    pub train: Train,
    /// Evaluation.
    #[serde(default)]
    pub eval: Eval,
    /// The number in the paper, if there is one.
    pub paper: Option<Paper>,
    /// Key (`train.lr`) to where its value comes from, for `flow explain`.
    #[serde(default)]
    pub source: BTreeMap<String, String>,
}

/// The data set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A name of [`SETS`](crate::data::SETS).
    pub set: String,
    /// Training examples: how many to draw, or, of a set that is read, how many of the first to keep (all if absent).
    pub train: Option<usize>,
    /// Validation images: the last so many of the training set.
    pub validation: usize,
    /// Test images: the first so many; all if absent.
    pub test: Option<usize>,
    /// The side to which a user's images are cropped and resized.
    pub size: Option<usize>,
    /// The seed of a built-in set.
    #[serde(default)]
    pub seed: u64,
}

/// Training.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Images in a batch.
    pub batch: usize,
    /// Stop after so many epochs ...
    pub epochs: Option<f64>,
    /// ... or so many updates, or so many minutes, whichever comes first; one of the three is needed.
    pub updates: Option<u64>,
    /// Wall-clock minutes of training. A run stopped by the clock is not repeatable to the bit; summary.json says so.
    pub minutes: Option<f64>,
    /// The update rule.
    pub optimizer: Rule,
    /// The learning rate after warm-up.
    pub lr: f64,
    /// How it changes.
    #[serde(default)]
    pub schedule: Schedule,
    /// Multiply the rate by a factor from an update on. A run that diverged goes on with it from its best checkpoint.
    pub lower: Option<Lower>,
    /// Images over which the rate rises linearly from 0.
    #[serde(default)]
    pub warmup_images: u64,
    /// The global gradient norm is clipped to this (of the loss in bits/dim).
    pub clip_norm: Option<f64>,
    /// The unit of the loss. It scales the gradient, and so the effect of `clip_norm` and of the optimiser's eps.
    #[serde(default)]
    pub loss: LossUnit,
    /// Decay of the moving average of weights that is validated, evaluated and saved; batch norm's running statistics are measured
    /// for it.
    pub ema: Option<f64>,
    /// Weight of the L2 penalty on weight-norm scales (`.magnitude`) and the gains of couplings (`.gain`, `.gains`).
    #[serde(default)]
    pub l2: f64,
    /// Decoupled weight decay of the networks' weights: beside each update w <- (1 - lr weight_decay) w (AdamW, Loshchilov and
    /// Hutter 2019).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub weight_decay: f64,
    /// Whether an update stores its activations or reconstructs them in the backward pass.
    #[serde(default)]
    pub memory: Memory,
    /// In which precision networks multiply during training ("tf32" on GPUs only); every evaluation is in full precision.
    #[serde(default)]
    pub precision: Precision,
    /// Whether a GPU adds in a fixed order, so that the same run gives the same bits; `false` may be faster.
    // Left out where it is the default: the recipe of an older checkpoint has no such line.
    #[serde(default = "default_deterministic", skip_serializing_if = "is_true")]
    pub deterministic: bool,
    /// With `memory = "recompute"`: how far reconstructed inputs drift is measured every so many updates, and layers beyond the
    /// bound are stored from then on.
    #[serde(default = "default::<1000, _>")]
    pub probe_every: u64,
    /// Images of the batch that actnorm (batch norm, whitening) is initialised from; beyond the training set's, their mirror images, where
    /// `hflip` is set.
    #[serde(default = "default::<256, _>")]
    pub init_images: usize,
    /// Horizontal flips.
    #[serde(default)]
    pub hflip: bool,
    /// Shifts by up to this share of each side, edge pixels repeated.
    #[serde(default)]
    pub shift: f64,
    /// Validate every so many updates (and checkpoint; the best is kept).
    pub validate_every: u64,
    /// Validation images used each time; all if absent.
    pub validate_images: Option<usize>,
    /// Stop after so many validations without a better one.
    pub patience: Option<u32>,
    /// Save a checkpoint every so many updates.
    pub checkpoint_every: u64,
    /// Write a line of metrics every so many updates.
    #[serde(default = "default::<50, _>")]
    pub log_every: u64,
    /// Start from these weights, a folder or `hf:user/name`, instead of random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// The seed of parameters, order, augmentation and noise.
    #[serde(default)]
    pub seed: u64,
}

fn default_deterministic() -> bool {
    true
}

fn is_zero(x: &f64) -> bool {
    *x == 0.
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn is_true(yes: &bool) -> bool {
    *yes
}

fn default<const N: u16, T: From<u16>>() -> T {
    N.into()
}

/// What the loss is measured in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossUnit {
    /// Bits for each dimension: -log p / (D ln 2), averaged over the batch (Glow's code).
    #[default]
    BitsPerDim,
    /// Nats for each image, averaged over the batch.
    Nats,
}

/// How the learning rate changes after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// lr / factor^updates, not below `min` (NICE's code).
    Divide {
        /// The divisor for each update.
        factor: f64,
        /// The smallest rate.
        min: f64,
    },
    /// Half a cosine from lr to lr `end` at the last update (needs `updates` or `epochs`).
    Cosine {
        /// The last rate as a share of the first.
        end: f64,
    },
}

/// A learning rate that is lower from an update on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lower {
    /// Updates made at the full rate.
    pub after: u64,
    /// What the rate is multiplied by from then on.
    pub factor: f64,
}

/// Evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Images in a batch.
    pub batch: usize,
    /// Estimates of each image's bound of log p, whose mean is reported: more of them make it less noisy.
    pub noise_draws: usize,
    /// Noise draws K in each of them, whose likelihoods are averaged before the logarithm: more of them make the bound tighter.
    // Left out where it is the default: the recipe of an older checkpoint has no such line.
    #[serde(skip_serializing_if = "is_one")]
    pub importance_samples: usize,
    /// Images to sample.
    pub samples: usize,
    /// Their temperature.
    pub temperature: f64,
    /// Test images that the lossless codecs compress (the first so many); the same images are evaluated for the
    /// comparison. 0 leaves codecs out.
    pub codec_images: usize,
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            batch: 100,
            noise_draws: 1,
            importance_samples: 1,
            samples: 64,
            temperature: 1.,
            codec_images: 1000,
        }
    }
}

/// The number in the paper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Bits/dim.
    pub bits_per_dim: f64,
    /// Nats for each image on the paper's scale.
    pub log_likelihood: Option<f64>,
    /// Where it is printed.
    pub source: String,
}

impl Recipe {
    /// The data to ask for, from this folder where they are read from files.
    #[must_use]
    pub fn request(&self, dir: Option<PathBuf>) -> Request {
        let Data { set, train, validation, test, size, seed } = self.data.clone();
        Request { name: set, dir, size, train, valid: Some(validation), test, seed, join: Join::Never }
    }
}
