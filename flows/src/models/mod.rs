//! NICE, RealNVP and Glow as configs; building, saving and loading.
//!
//! A saved model is a folder: config.json builds it, model.safetensors fills it (above `max_shard_size`
//! model-00001-of-0000N.safetensors with model.safetensors.index.json, as others write it; see [`file`](mod@file)).
//! Nothing else is needed and nothing is lost: permutations, running statistics and actnorm's values are tensors of the
//! file.

pub mod file;
pub mod glow;
pub mod nice;
mod preprocess;
pub mod realnvp;

pub use file::{CONFIG, INDEX, WEIGHTS, write_atomic};
pub use glow::GlowConfig;
pub use nice::NiceConfig;
pub use preprocess::Preprocess;
pub use realnvp::RealNvpConfig;

use crate::backward::{Gradients, Grads, Memory};
use crate::bijection::{Chain, Ctx};
use crate::bijections::multiscale::split_levels;
use crate::flow::Flow;
use crate::params::{Params, Vb, rng_for};
use crate::prior::Prior;
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use file::Weights;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One of the three papers' models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum ModelConfig {
    /// NICE.
    Nice(NiceConfig),
    /// RealNVP.
    #[serde(rename = "realnvp")]
    RealNvp(RealNvpConfig),
    /// Glow.
    Glow(GlowConfig),
}

/// What a config builds.
pub(crate) struct Built {
    chain: Chain,
    prior: Prior,
    latent: Vec<[usize; 3]>,
}

impl ModelConfig {
    fn build(&self, vb: &Vb) -> Result<Built> {
        match self {
            ModelConfig::Nice(c) => c.build(vb),
            ModelConfig::RealNvp(c) => c.build(vb),
            ModelConfig::Glow(c) => c.build(vb),
        }
    }

    /// The shape of one example.
    pub fn shape(&self) -> &[usize] {
        match self {
            ModelConfig::Nice(c) => &c.shape,
            ModelConfig::RealNvp(c) => &c.shape,
            ModelConfig::Glow(c) => &c.shape,
        }
    }

    /// Changes the shape of one example, for a recipe that takes any data set.
    pub fn set_shape(&mut self, shape: &[usize]) -> Result<()> {
        let image = || -> Result<[usize; 3]> {
            shape
                .try_into()
                .map_err(|_| Error::msg(format!("this model takes images (C, H, W), got {shape:?}")))
        };
        match self {
            ModelConfig::Nice(c) => c.shape = shape.to_vec(),
            ModelConfig::RealNvp(c) => c.shape = image()?,
            ModelConfig::Glow(c) => c.shape = image()?,
        }
        Ok(())
    }

    /// Refuses sizes that no model has, so that nothing computed from a config overflows and nothing that depends on the
    /// config alone, as a mask does, takes more than a few times [`ModelConfig::MOST_DIMS`].
    ///
    /// # Errors
    /// At the first such size, by its name.
    pub fn check(&self) -> Result<()> {
        let dims = self.shape().iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
        if dims.is_none_or(|dims| dims > Self::MOST_DIMS) {
            bail!(
                "`shape` {:?} has more than {} dimensions: crop or resize the data",
                self.shape(),
                Self::MOST_DIMS
            );
        }
        let sizes = match self {
            ModelConfig::Nice(c) => {
                let widest = c.hidden.iter().flatten().max().copied().unwrap_or_default();
                vec![("hidden", widest)]
            }
            ModelConfig::RealNvp(c) => vec![
                ("scales", c.scales),
                ("features", c.features),
                ("blocks", c.blocks),
                ("checkerboard", c.checkerboard),
                ("channelwise", c.channelwise),
                ("last_checkerboard", c.last_checkerboard),
            ],
            ModelConfig::Glow(c) => vec![
                ("levels", c.levels),
                ("depth", c.depth),
                ("width", c.width),
                ("classes", c.classes.unwrap_or_default()),
            ],
        };
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| *size > Self::LARGEST_SIZE) {
            bail!("`{name}` = {size} is more than {}, which no model has: lower it", Self::LARGEST_SIZE);
        }
        Ok(())
    }

    /// Dimensions of an example, at most: sixteen million, an image of 2364 x 2364 in colour.
    pub const MOST_DIMS: usize = 1 << 24;

    /// Any other size, at most.
    pub const LARGEST_SIZE: usize = 1 << 24;

    /// Bits of a pixel value.
    pub fn bits(&self) -> u8 {
        match self {
            ModelConfig::Nice(c) => c.bits,
            ModelConfig::RealNvp(c) => c.bits,
            ModelConfig::Glow(c) => c.bits,
        }
    }

    /// The first layers.
    pub fn preprocess(&self) -> Preprocess {
        match self {
            ModelConfig::Nice(c) => c.preprocess,
            ModelConfig::RealNvp(c) => c.preprocess,
            ModelConfig::Glow(c) => c.preprocess,
        }
    }

    /// Classes, if the model is class-conditional.
    pub fn classes(&self) -> Option<usize> {
        match self {
            ModelConfig::Glow(c) => c.classes,
            _ => None,
        }
    }
}

/// A model: its config, its parameters and its flow (to which it derefs).
pub struct Model {
    config: ModelConfig,
    params: Params,
    flow: Flow,
    latent: Vec<[usize; 3]>,
}

impl std::ops::Deref for Model {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

/// How to save.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// Bytes of tensors above which the weights are sharded.
    pub max_shard_size: usize,
    /// The dtype of floating-point tensors in the file.
    pub dtype: Option<DType>,
}

impl Default for SaveOptions {
    /// Shards of 5 GB, as the hub's libraries have it; the model's own dtype.
    fn default() -> Self {
        Self { max_shard_size: 5_000_000_000, dtype: None }
    }
}

impl Model {
    /// Fresh parameters; each depends on `seed` and its name only.
    pub fn new(config: ModelConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::with_params(config, Params::seeded(seed, dtype, device))
    }

    /// A model of given tensors, by their names in the file.
    ///
    /// # Errors
    /// When one is missing, unknown, misshapen or not finite.
    pub fn from_tensors(
        config: ModelConfig,
        tensors: BTreeMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::with_params(config, Params::from_tensors(tensors, dtype, device))
    }

    fn with_params(config: ModelConfig, params: Params) -> Result<Self> {
        config.check()?;
        let built = config.build(&params.vb())?;
        params.finish()?;
        let flow = Flow::new(built.chain, built.prior, config.shape());
        Ok(Self { config, params, flow, latent: built.latent })
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The flow alone.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// The loss of a training pass and the gradient of every trained parameter; see [`Flow::gradients`].
    pub fn gradients(
        &self,
        x: &Tensor,
        ctx: Ctx,
        memory: Memory,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Grads)> {
        let mut grads = Gradients::new(&self.params);
        let loss = self.flow.gradients(x, ctx, memory, &mut grads, loss)?;
        Ok((loss, grads.into_grads()))
    }

    /// z (B, D) as one (B, C, H, W) tensor for each level.
    pub fn levels(&self, z: &Tensor) -> Result<Vec<Tensor>> {
        split_levels(z, &self.latent)
    }

    /// `n` samples at a temperature, in the units of the data (pixels: [0, 2^bits)); `cond` are class labels.
    pub fn sample(&self, n: usize, temperature: f64, seed: u64, cond: Option<&Tensor>) -> Result<Tensor> {
        let to = (self.params.dtype(), self.params.device());
        self.flow.sample(n, temperature, &mut rng_for(seed, "sample"), cond, to)
    }

    /// Writes config.json and the weights to `dir`, each file under a temporary name first, then renamed.
    pub fn save(&self, dir: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let tensors: Vec<(String, Tensor)> =
            self.params.all().into_iter().map(|(n, p)| (n, p.value().clone())).collect();
        let SaveOptions { max_shard_size, dtype } = *options;
        file::write(dir.as_ref(), &self.config, self.params.count(), tensors, max_shard_size, dtype)
    }

    /// Loads a saved folder onto `device`; f16 and bf16 files are computed in f32, f64 ones in f64.
    ///
    /// Errors name the file, and the tensor where one is missing, unknown, misshapen or not finite.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load_as(dir, None, device)
    }

    /// As [`Model::load`], computing in `dtype`.
    pub fn load_as(dir: impl AsRef<Path>, dtype: Option<DType>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let (config, hash) = file::read_config(dir)?;
        let weights = Weights::open(dir, &hash)?;
        let dtype = dtype.unwrap_or(if weights.double() { DType::F64 } else { DType::F32 });
        let params = Params::from_source(weights, dtype, device);
        Self::with_params(config, params).map_err(|e| file::at(dir, e))
    }
}

/// A ready model from a saved folder: [`Model::load`].
pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Model> {
    Model::load(dir, device)
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("config", &self.config)
            .field("parameters", &self.params.count())
            .finish()
    }
}
