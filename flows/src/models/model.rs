//! A model: a config with parameters and a flow.

use super::config::ModelConfig;
use super::context;
use super::preprocess;
use crate::core::{Context, Ctx, Gradients, Grads, Memory, split_levels};
use crate::flow::Flow;
use crate::params::{ParamStore, rng_for};
use crate::storage::SaveOptions;
use candle_core::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// A model: its config, its parameters and its flow (to which it derefs).
pub struct Model {
    config: ModelConfig,
    params: ParamStore,
    flow: Flow,
    latent: Vec<[usize; 3]>,
}

impl std::ops::Deref for Model {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Model {
    /// A model with fresh parameters; each depends on `seed` and its name only.
    ///
    /// # Errors
    /// When the config builds no model, saying which setting is wrong.
    pub fn new(config: ModelConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::build(config, &ParamStore::seeded(seed, dtype, device))
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
        let params = ParamStore::from_source(tensors, dtype, device);
        let model = Self::build(config, &params)?;
        params.finish()?;
        Ok(model)
    }

    fn build(config: ModelConfig, params: &ParamStore) -> Result<Self> {
        config.check()?;
        let built = config.build(&params.vb())?;
        let flow = Flow::of(Box::new(built.chain), built.prior, config.shape());
        Ok(Self { config, params: params.clone(), flow, latent: built.latent })
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters.
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// Fits the layer of [`Preprocess::Standardize`](super::Preprocess::Standardize) to rows (N, D), all those that the model will be
    /// trained on; without that layer nothing happens.
    ///
    /// # Errors
    /// As [`Standardize::fit`](crate::bijections::Standardize::fit).
    pub fn standardize(&self, rows: &Tensor) -> Result<()> {
        preprocess::standardize(&self.params, rows)
    }

    /// Fits the standardisation of the context's features, (N, E) or (N, E, H, W), to those of the training data; of a model without such
    /// a context nothing happens. Features that are made of images ([`ContextConfig::of_images`](super::ContextConfig::of_images)) may be
    /// those of a part.
    ///
    /// # Errors
    /// When they have other channels, or one is not finite: the message names it.
    pub fn standardize_context(&self, features: &Tensor) -> Result<()> {
        context::standardize(&self.params, features)
    }

    /// The loss of a training pass and the gradient of every trained parameter; see [`Flow::gradients`].
    ///
    /// # Errors
    /// As [`Flow::gradients`].
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
    ///
    /// # Errors
    /// When z has another number of dimensions.
    pub fn levels(&self, z: &Tensor) -> Result<Vec<Tensor>> {
        split_levels(z, &self.latent)
    }

    /// `n` samples at a temperature, in the units of the data (pixels: [0, 2^bits)); `context` is `None`, or
    /// `Some(&labels)` where the model has classes.
    ///
    /// # Errors
    /// As [`Flow::sample`].
    pub fn sample<'a>(
        &self,
        n: usize,
        temperature: f64,
        seed: u64,
        context: impl Into<Context<'a>>,
    ) -> Result<Tensor> {
        let to = (self.params.dtype(), self.params.device());
        self.flow.sample(n, temperature, &mut rng_for(seed, "sample"), context, to)
    }

    /// Writes config.json and the weights to the folder `dir`: [`ParamStore::save`].
    ///
    /// # Errors
    /// As [`ParamStore::save`].
    pub fn save(&self, dir: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        self.params.save(dir, &self.config, options)
    }

    /// Loads a saved folder onto `device`; f16 and bf16 files are computed in f32, f64 ones in f64.
    ///
    /// # Errors
    /// When a tensor is missing, unknown, misshapen or not finite; the message names it and the file.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load_as(dir, None, device)
    }

    /// As [`Model::load`], computing in `dtype`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_as(dir: impl AsRef<Path>, dtype: Option<DType>, device: &Device) -> Result<Self> {
        let build = |config: &ModelConfig, params: &ParamStore| Self::build(config.clone(), params);
        Ok(ParamStore::load(dir, dtype, device, build)?.0)
    }
}

/// A model from a saved folder: [`Model::load`].
///
/// # Errors
/// As [`Model::load`].
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
