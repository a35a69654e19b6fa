//! NICE, RealNVP and Glow as configs; building, saving and loading.
//!
//! A saved model is a folder: config.json builds it, model.safetensors fills it (above `max_shard_size`
//! model-00001-of-0000N.safetensors with model.safetensors.index.json, as others write it). Nothing else is needed and
//! nothing is lost: permutations, running statistics and actnorm's values are tensors of the file.

pub mod glow;
pub mod nice;
mod preprocess;
pub mod realnvp;

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
use candle_core::{DType, Device, Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
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

/// config.json.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// The version of this format; a newer one is refused with a sentence.
    format: u32,
    /// The version of the library that wrote it, for people.
    flows_version: String,
    /// Trained scalars, for people.
    parameters: usize,
    config: ModelConfig,
}

const FORMAT: u32 = 1;
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

#[derive(Serialize, Deserialize)]
struct Index {
    metadata: BTreeMap<String, serde_json::Value>,
    weight_map: BTreeMap<String, String>,
}

impl Model {
    /// Fresh parameters; each depends on `seed` and its name only.
    pub fn new(config: ModelConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::with_params(config, Params::seeded(seed, dtype, device))
    }

    fn with_params(config: ModelConfig, params: Params) -> Result<Self> {
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
        self.save_tensors(dir.as_ref(), tensors, options)
    }

    fn save_tensors(&self, dir: &Path, tensors: Vec<(String, Tensor)>, options: &SaveOptions) -> Result<()> {
        fs::create_dir_all(dir).map_err(|e| Error::wrap(e).with_path(dir))?;
        let mut shards: Vec<Vec<(String, Tensor)>> = vec![vec![]];
        let mut size = 0;
        for (name, t) in tensors {
            let t = match options.dtype {
                Some(d) if t.dtype().is_float() => t.to_dtype(d)?,
                _ => t,
            };
            let bytes = t.elem_count() * t.dtype().size_in_bytes();
            if size + bytes > options.max_shard_size && size > 0 {
                shards.push(vec![]);
                size = 0;
            }
            size += bytes;
            shards.last_mut().expect("never empty").push((name, t));
        }
        let file = ConfigFile {
            format: FORMAT,
            flows_version: env!("CARGO_PKG_VERSION").to_string(),
            parameters: self.params.count(),
            config: self.config.clone(),
        };
        let n = shards.len();
        let mut weight_map = BTreeMap::new();
        let mut total = 0;
        for (i, shard) in shards.into_iter().enumerate() {
            let file = match n {
                1 => WEIGHTS.to_string(),
                _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            for (name, t) in &shard {
                total += t.elem_count() * t.dtype().size_in_bytes();
                weight_map.insert(name.clone(), file.clone());
            }
            // One key: several would be written in a random order, and a model's bytes should depend on the model only.
            let meta = HashMap::from([("format".to_string(), format!("flows-{FORMAT}"))]);
            let shard = shard
                .into_iter()
                .map(|(n, t)| Ok((n, t.to_device(&Device::Cpu)?)))
                .collect::<Result<Vec<_>>>()?;
            let bytes = safetensors::serialize(shard.iter().map(|(n, t)| (n, t)), Some(meta))?;
            write_atomic(&dir.join(file), &bytes)?;
        }
        let index = dir.join(INDEX);
        if n > 1 {
            let metadata = BTreeMap::from([("total_size".to_string(), total.into())]);
            let json = serde_json::to_vec_pretty(&Index { metadata, weight_map }).map_err(Error::wrap)?;
            write_atomic(&index, &json)?;
        } else if index.exists() {
            // An older, sharded save in the same folder would win over this file.
            fs::remove_file(&index).map_err(|e| Error::wrap(e).with_path(&index))?;
        }
        let json = serde_json::to_vec_pretty(&file).map_err(Error::wrap)?;
        write_atomic(&dir.join("config.json"), &json)
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
        let path = dir.join("config.json");
        let text = read(&path)?;
        // The version first: a newer format may have a config this version cannot read.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let bad = |e: serde_json::Error| Error::msg(format!("not a model's config: {e}")).with_path(&path);
        let version: Version = serde_json::from_slice(&text).map_err(bad)?;
        if version.format > FORMAT {
            let m = format!(
                "format {} is newer than {FORMAT}, which this version reads: update flows",
                version.format
            );
            return Err(Error::msg(m).with_path(&path));
        }
        let file: ConfigFile = serde_json::from_slice(&text).map_err(bad)?;
        let index = dir.join(INDEX);
        let mut files = vec![WEIGHTS.to_string()];
        if index.exists() {
            let idx: Index = serde_json::from_slice(&read(&index)?)
                .map_err(|e| Error::msg(format!("not an index of shards: {e}")).with_path(&index))?;
            files = idx.weight_map.into_values().collect();
            files.sort();
            files.dedup();
            if let Some(f) = files.iter().find(|f| Path::new(f).components().count() != 1 || f.contains(".."))
            {
                return Err(Error::msg(format!("shard `{f}` leaves the folder")).with_path(&index));
            }
        }
        let mut tensors = BTreeMap::new();
        for f in files {
            let path = dir.join(f);
            let bytes = read(&path)?;
            let shard = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
                .map_err(|e| Error::msg(format!("not a complete safetensors file ({e})")).with_path(&path))?;
            tensors.extend(shard);
        }
        let double = tensors.values().any(|t| t.dtype() == DType::F64);
        let dtype = dtype.unwrap_or(if double { DType::F64 } else { DType::F32 });
        let params = Params::from_tensors(tensors, dtype, device);
        Self::with_params(file.config, params).map_err(|e| e.with_path(dir))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::msg("no such file: a model is a folder with config.json and model.safetensors")
                .with_path(path)
        }
        _ => Error::wrap(e).with_path(path),
    })
}

/// Writes a file so that a reader sees the old content or the new one, never a part: to a temporary name in the same
/// folder, synced, renamed, and the folder synced.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".tmp{}", std::process::id()));
    let tmp = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut f = fs::File::create(&tmp)?;
        f.write_all(bytes)?;
        f.sync_all()?;
        fs::rename(&tmp, path)?;
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&tmp);
        Error::wrap(e).with_path(path)
    })
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
